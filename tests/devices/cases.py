"""ptune on the simulated accelerator; `test_simulated.py` runs these cases in a process of their own.

A tensor on the wrong device fails, a wait of the host for the device is counted, and the numbers are the CPU's.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from architectures import ARCHITECTURES, build
from devices.gpu_tensor import GpuTensor, cpu, is_gpu
from devices.ledger import LEDGER
from devices.placing import GPU, on_gpu, prompted, rows, spread
from devices.simulated_accelerator import FakeGpu, to_gpu
from ptune import PrefixTuningConfig, PTunedModel
from ptune.data.collate import PackingCollator, PaddingCollator
from ptune.packed import attention

SOME = ["default", None, "default", None]
NAMES = [name for name in ARCHITECTURES if name != "mamba"]
HALF = [torch.bfloat16, torch.float16]


BATCHES: dict[str, tuple[Any, dict[str, Any]]] = {
    "packed": (PackingCollator(), {}),
    "right": (PaddingCollator(0), {}),
    "left": (PaddingCollator(0, "left"), {}),
    "logits": (PaddingCollator(0, "left"), {"return_logits": True}),
    "head": (PaddingCollator(0, "left"), {"return_logits": False}),
    "prompts": (PaddingCollator(0, "left"), {"prompt_names": SOME, "return_logits": True}),
}
INSIDE = {name: BATCHES[name] for name in ("packed", "left", "logits")}


def step(model: PTunedModel, batch: dict[str, Any], **options: Any) -> tuple[torch.Tensor, torch.Tensor]:
    """Loss and gradient, on the CPU."""
    loss = model(**batch, **options).loss
    loss.backward()
    grads = torch.cat([cpu(one.grad).flatten() for one in model.prompts.parameters()])
    model.zero_grad()
    return cpu(loss.detach()), grads


def assert_close(found: tuple[torch.Tensor, torch.Tensor], wanted: tuple[torch.Tensor, torch.Tensor]) -> None:
    for one, other in zip(found, wanted, strict=True):
        torch.testing.assert_close(one, other, atol=1e-4, rtol=1e-3)


# ---- the device ----------------------------------------------------------------------------------------------------


def test_the_device_is_strict() -> None:
    with FakeGpu():
        here, there = torch.ones(3, device=GPU), torch.ones(3, device="gpux:1")
        for wrong in (
            lambda: here + torch.ones(3),
            lambda: here + there,
            lambda: torch.cat([here, torch.ones(1)]),
            here.numpy,
            lambda: torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
                *[torch.ones(1, 1, 2, 8, device=GPU)] * 3
            ),
        ):
            with pytest.raises((RuntimeError, TypeError, NotImplementedError)):
                wrong()
        LEDGER.reset()
        assert bool(here.sum() > 2)
        assert sum(LEDGER.waits.values()) == 1


@pytest.mark.parametrize("fault", ["index of the host", "host number in a layer", "other device"])
def test_planted_faults_are_caught(fault: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each kind of fault that the cases below look for is seen when it is there."""
    real = attention.attend

    def spoilt(query: torch.Tensor, key: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        if fault == "index of the host":
            query = query[:, torch.arange(query.shape[1])]
        elif fault == "host number in a layer":
            query = query * float(query.detach().abs().max() > -1)
        else:
            key = GpuTensor(cpu(key.detach()), torch.device("gpux:1"))
        return real(query, key, *args, **kwargs)

    with FakeGpu():
        model, batch = prompted(to_gpu(build("gpt2"))), on_gpu(PackingCollator()(rows()))
        waits = []
        for attend in (real, spoilt):
            monkeypatch.setattr(attention, "attend", attend)
            LEDGER.reset()
            if attend is spoilt and fault == "other device":
                with pytest.raises(RuntimeError, match="same device"):
                    model(**batch)
                return
            model(**batch).loss.backward()
            waits.append(sum(LEDGER.waits.values()))
        assert waits[1] >= waits[0] + 2  # one a layer


# ---- a step --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", BATCHES)
@pytest.mark.parametrize("name", NAMES)
def test_a_step_is_the_cpus(name: str, kind: str) -> None:
    collate, options = BATCHES[kind]
    batch = collate(rows())
    wanted = step(prompted(build(name)), batch, **options)
    with FakeGpu():
        assert_close(step(prompted(to_gpu(build(name))), on_gpu(batch), **options), wanted)


@pytest.mark.parametrize("kind", INSIDE)
@pytest.mark.parametrize("name", ["llama", "bloom"])
def test_virtual_tokens_inside_the_text(name: str, kind: str) -> None:
    """A step is the CPU's, answers too, and the host waits no more often than without any inside."""
    collate, options = INSIDE[kind]
    waits = []
    made = [
        {"input_ids": [row["input_ids"][0], -4, *row["input_ids"][1:]], "labels": [-100, *row["labels"]]}
        for row in rows()
    ]
    batch = collate(made)
    wanted = step(prompted(build(name), tokens_in_text=1), batch, **options)
    with FakeGpu():
        assert_close(step(prompted(to_gpu(build(name)), tokens_in_text=1), on_gpu(batch), **options), wanted)
        for inside, given in ((0, rows()), (1, made)):
            model, there = prompted(to_gpu(build(name)), tokens_in_text=inside), on_gpu(collate(given))
            LEDGER.reset()
            model(**there, **options).loss.backward()
            waits.append(sum(LEDGER.waits.values()))
        assert waits[0] == waits[1]
        if "attention_mask" in batch:
            ask = {"attention_mask": batch["attention_mask"], "max_new_tokens": 4, "do_sample": False}
            there = on_gpu({"input_ids": batch["input_ids"], **ask})
            answers = model.eval().generate(**there)
    if "attention_mask" in batch:
        said = prompted(build(name), tokens_in_text=1).eval().generate(batch["input_ids"], **ask)
        assert torch.equal(cpu(answers), said)


@pytest.mark.parametrize("kind", ["LSTM", "RESIDUAL", "EMBEDDING"])
def test_every_encoder(kind: str) -> None:
    batch = PackingCollator()(rows())
    wanted = step(prompted(build("llama"), kind), batch)
    with FakeGpu():
        assert_close(step(prompted(to_gpu(build("llama")), kind), on_gpu(batch)), wanted)


@pytest.mark.parametrize("dtype", HALF)
@pytest.mark.parametrize("name", NAMES)
def test_half_precision_is_near_float32(name: str, dtype: torch.dtype) -> None:
    """By variable-length attention where it can be; no further off than the CPU in the same precision."""
    batch = PackingCollator()(rows())
    exact = step(prompted(build(name)), batch)
    here = step(prompted(build(name).to(dtype)), batch)
    with FakeGpu():
        there = step(prompted(to_gpu(build(name).to(dtype))), on_gpu(batch))
    for found, own, right in zip(there, here, exact, strict=True):
        limit = 2 * float((own.float() - right).norm()) + 0.02 * float(right.norm())
        assert float((found.float() - right).norm()) <= limit


@pytest.mark.parametrize("dtype", HALF)
@pytest.mark.parametrize("name", NAMES)
def test_a_float32_model_under_autocast(name: str, dtype: torch.dtype) -> None:
    with FakeGpu():
        model = prompted(to_gpu(build(name)))
        with torch.autocast("gpux", dtype=dtype):
            loss = model(**on_gpu(PackingCollator()(rows()))).loss
        loss.backward()
        assert torch.isfinite(cpu(loss.detach()))
        assert all(torch.isfinite(cpu(one.grad)).all() for one in model.prompts.parameters())


@pytest.mark.parametrize("name", ["llama", "mistral", "qwen3", "bloom", "gpt2"])
def test_no_layer_waits_for_the_device(name: str) -> None:
    """The waits of a packed step do not grow with the layers, and there are few of them."""
    found = []
    for layers in (2, 4):
        size = {"bloom": "n_layer", "gpt2": "n_layer"}.get(name, "num_hidden_layers")
        with FakeGpu():
            model = prompted(to_gpu(build(name, **{size: layers}).to(torch.bfloat16)))
            batch = on_gpu(PackingCollator()(rows()))
            LEDGER.reset()
            model(**batch).loss.backward()
        found.append((sum(LEDGER.waits.values()), LEDGER.kernels))
    (few, small), (many, large) = found
    assert many == few <= 3, LEDGER.report()
    assert (large - small) / 2 < 70, LEDGER.report()


# ---- several devices, answers, folders -----------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["packed", "right", "head", "prompts"])
@pytest.mark.parametrize("name", ["llama", "bloom", "gpt2", "qwen2", "opt"])
def test_a_model_spread_over_two_devices(name: str, kind: str) -> None:
    collate, options = BATCHES[kind]
    batch = collate(rows())
    wanted = step(prompted(build(name)), batch, **options)
    with FakeGpu():
        assert_close(step(prompted(spread(build(name))), on_gpu(batch), **options), wanted)


@pytest.mark.parametrize("spreads", [False, True], ids=["one", "spread"])
@pytest.mark.parametrize("kind", ["packed", "left", "prompts"])
@pytest.mark.parametrize("name", ["llama", "bloom", "gpt2"])
def test_keys_and_values_of_every_layer(name: str, kind: str, spreads: bool) -> None:
    """A step with a deep prompt, and its answers: on one device, or on the device of each layer."""
    collate, options = BATCHES[kind]
    batch = collate(rows())
    own = {name: one for name, one in options.items() if name == "prompt_names"}
    ask = {"max_new_tokens": 4, "do_sample": False, **own}

    def made(base: Any) -> PTunedModel:
        torch.manual_seed(1)
        return PTunedModel(base, PrefixTuningConfig(num_virtual_tokens=4, prefix_projection=True)).train()

    here = made(build(name))
    wanted = step(here, batch, **options)
    with FakeGpu():
        there = made(spread(build(name)) if spreads else to_gpu(build(name)))
        assert_close(step(there, on_gpu(batch), **options), wanted)
        if "attention_mask" in batch:
            mine = {"input_ids": batch["input_ids"], "attention_mask": batch["attention_mask"]}
            said = cpu(there.eval().generate(**on_gpu(mine), **ask))
    if "attention_mask" in batch:
        assert torch.equal(said, here.eval().generate(**mine, **ask))


@pytest.mark.parametrize("options", [{}, {"num_beams": 2}, {"prompt_names": SOME}], ids=["greedy", "beams", "prompts"])
@pytest.mark.parametrize("name", NAMES)
def test_answers_are_the_cpus(name: str, options: dict[str, Any]) -> None:
    batch = PaddingCollator(0, "left")(rows())
    ask = {"max_new_tokens": 4, "do_sample": False, **options}
    said = prompted(build(name)).eval().generate(batch["input_ids"], attention_mask=batch["attention_mask"], **ask)
    with FakeGpu():
        there = on_gpu(batch)
        model = prompted(to_gpu(build(name))).eval()
        again = model.generate(there["input_ids"], attention_mask=there["attention_mask"], **ask)
    assert torch.equal(cpu(again), said)


def test_a_prompt_is_saved_and_loaded(tmp_path: Path) -> None:
    with FakeGpu():
        model = prompted(to_gpu(build("llama")))
        folder = model.save_pretrained(tmp_path / "prompt")
        again = PTunedModel.from_pretrained(folder, base=to_gpu(build("llama")), trainable=True)
        assert all(is_gpu(one) for one in again.prompts.parameters())
        assert torch.equal(cpu(again.encode().detach()), cpu(model.eval().encode().detach()))
    assert torch.equal(PTunedModel.from_pretrained(folder, base=build("llama")).encode(), cpu(again.encode().detach()))
