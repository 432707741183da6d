"""The floor counts every product that a step needs, once, and no other."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn import functional as F

import floor
from architectures import build
from harness import Benchmark

ROWS = [{"labels": [-100, -100, 5]}, {"labels": [-100, 4, 5, 6]}, {"labels": [7, 8]}]


def test_batches_are_counted_in_real_and_supervised_tokens():
    assert floor.batch_sizes(ROWS, 2) == [(7, 4), (2, 2)]


def test_each_product_runs_forward_and_back():
    model = build("llama")
    seen: list[tuple[int, int, int]] = []

    def note(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        seen.append((len(x), *weight.shape))
        return F.linear(x, weight)

    head = model.get_output_embeddings().weight
    layers = floor.linear_layers(model)
    inputs = floor.make_inputs(7, [*(weight for weight, _ in layers), head])
    flops = floor.run_products([(7, 4), (2, 2)], layers, head, note, inputs)
    # Two layers of seven products; on the way back the first layer's q, k and v have nobody to tell.
    assert len(layers) == 14
    assert len(seen) == 2 * (14 + 2 + 14 - 3)
    assert seen.count((7, 64, 32)) == 2 * 2 + 2  # gate and up, and the way back through down
    assert seen.count((7, 32, 32)) == 2 * 2 + 3  # q and o, and back through all but the first q
    assert seen.count((7, 16, 32)) == 2 * 2  # k and v
    assert seen.count((7, 32, 16)) == 2
    assert [one for one in seen if 128 in one] == [(4, 128, 32), (4, 32, 128), (2, 128, 32), (2, 32, 128)]
    assert flops == sum(2 * rows * wide * narrow for rows, wide, narrow in seen)


@pytest.mark.parametrize("architecture", ["llama", "bloom", "gpt2", "gpt_neox"])
def test_what_the_floor_multiplies_is_what_the_model_multiplies(architecture: str):
    model = build(architecture)
    inside = {weight.data_ptr() for weight, _ in floor.linear_layers(model)}
    head = model.get_output_embeddings().weight.data_ptr()
    used: set[int] = set()

    class Watch(torch.overrides.TorchFunctionMode):
        def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            if func is F.linear or func is torch.addmm:
                used.add(args[1 if func is F.linear else 2].data_ptr())
            return func(*args, **(kwargs or {}))

    with torch.no_grad(), Watch():
        model(torch.tensor([[3, 4, 5]]))
    assert used == inside | {head}
    assert sum(not back for _, back in floor.linear_layers(model)) == (3 if architecture == "llama" else 1)


def test_both_kernels_compute_the_product():
    torch.manual_seed(0)
    x, weight = torch.randn(9, 33), torch.randn(17, 33)
    for product in floor.PRODUCTS.values():
        torch.testing.assert_close(product(x, weight), x @ weight.T, atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(product(x[:, :17], weight.t()), x[:, :17] @ weight, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("native", [False, True])
def test_the_script_sets_training_against_both_floors(
    words: list[str],
    tmp_path: Path,
    in_this_process: Callable[[Benchmark], None],
    monkeypatch: pytest.MonkeyPatch,
    native: bool,
):
    monkeypatch.setattr(floor, "cpu_multiplies_bfloat16", lambda: native)
    in_this_process(floor.BENCHMARK)
    floor.run([*words, "--rows=8"])
    result = json.loads((tmp_path / "result.json").read_text())
    assert result["status"] == "ok"
    entries = result["cases"][0]["contenders"]
    names = ["floor-torch", "floor-onednn", "ptune-packed", "peft", "peft-grouped"]
    kinds = ["float32", "bfloat16"] if native else ["float32"]
    assert list(entries) == [f"{name} {kind}" for name in names for kind in kinds]
    for kind in kinds:
        ours, bare = entries[f"ptune-packed {kind}"], entries[f"floor-onednn {kind}"]
        share = bare["rounds"][0]["cpu_seconds"] / ours["rounds"][0]["cpu_seconds"]
        assert ours["ratios"][f"floor-onednn {kind}"]["cpu_seconds"]["median"] == pytest.approx(share)
        assert bare["rounds"][0]["gflop"] == entries[f"floor-torch {kind}"]["rounds"][0]["gflop"] > 0
        assert bare["rounds"][0]["tokens"] == ours["rounds"][0]["tokens"]
    if native:
        assert entries["ptune-packed bfloat16"]["ratios"]["peft float32"]["cpu_seconds"]["median"] > 0
        assert len({entries[f"ptune-packed {kind}"]["rounds"][0]["train_loss"] for kind in kinds}) == 2
