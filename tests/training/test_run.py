"""A whole run: what it learns, what it writes, and that its figures are right."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console
from safetensors.torch import load_file
from torch.nn import functional as F
from transformers import AutoTokenizer, LlamaForCausalLM
from transformers.integrations import neftune

from ptune import PTunedModel
from ptune.choices import ENCODER_NAMES
from ptune.errors import ConfigError
from ptune.recipe import TrainRecipe
from ptune.training.progress import read_metrics
from ptune.training.rows import read_rows
from ptune.training.train import TrainResult, train

QUIET = Console(quiet=True)


def run(recipe: dict[str, Any], **values: Any) -> TrainResult:
    made = TrainRecipe(num_virtual_tokens=6, **recipe)
    return train(made, {"max_steps": 4, "logging_steps": 1, "use_cpu": True, **values}, QUIET)


@pytest.fixture
def task(tiny_model_dir: Path, train_file: Path, tmp_path: Path) -> dict[str, Any]:
    return {"model": str(tiny_model_dir), "data": str(train_file), "output": str(tmp_path / "out")}


def loss_by_hand(model_dir: Path, data: Path, vectors: torch.Tensor) -> tuple[float, int]:
    """Loss and answer tokens of a file, with the tutorial's text and the vectors put together by hand."""
    tokenizer, model = AutoTokenizer.from_pretrained(model_dir), LlamaForCausalLM.from_pretrained(model_dir)
    total, tokens = 0.0, 0
    for row in json.loads(data.read_text()):
        ids = tokenizer(f"Human: {row['instruction']}\n\nAssistant: ")["input_ids"]
        answer = tokenizer(row["output"] + tokenizer.eos_token)["input_ids"]
        embeds = torch.cat([vectors, model.get_input_embeddings()(torch.tensor(ids + answer))])
        with torch.no_grad():
            logits = model(inputs_embeds=embeds.unsqueeze(0)).logits[0, -len(answer) - 1 : -1]
        total += float(F.cross_entropy(logits, torch.tensor(answer), reduction="sum"))
        tokens += len(answer)
    return total / tokens, tokens


@pytest.mark.parametrize("encoder", ENCODER_NAMES)
def test_loss_falls(task: dict[str, Any], encoder: str, held_out_file: Path):
    rate = 0.2 if encoder == "prefix" else 0.01  # keys and values are larger than embeddings
    result = run({**task, "encoder": encoder, "eval_data": str(held_out_file)}, max_steps=60, learning_rate=rate)
    losses = [entry["loss"] for entry in read_metrics(result.folder / "metrics.jsonl") if "loss" in entry]
    assert len(losses) == 60
    assert sum(losses[-5:]) / 5 < 0.9 * losses[0]
    assert result.before is not None
    assert result.after is not None
    assert result.after.loss < 0.85 * result.before.loss


def test_held_out_losses_are_right(task: dict[str, Any], held_out_file: Path, tiny_model_dir: Path):
    result = run({**task, "eval_data": str(held_out_file)})
    vectors = load_file(result.folder / "adapter_model.safetensors")["prompt_embeddings"]
    before, tokens = loss_by_hand(tiny_model_dir, held_out_file, vectors[:0])
    after, _ = loss_by_hand(tiny_model_dir, held_out_file, vectors)
    assert result.before is not None
    assert result.after is not None
    assert (result.before.tokens, result.after.tokens) == (tokens, tokens)
    assert result.before.loss == pytest.approx(before, abs=1e-5)
    assert result.after.loss == pytest.approx(after, abs=1e-5)
    assert abs(before - after) > 1e-2
    evaluated = [entry for entry in read_metrics(result.folder / "metrics.jsonl") if "eval_loss" in entry]
    assert evaluated[-1]["step"] == 4
    assert evaluated[-1]["eval_loss"] == pytest.approx(result.after.loss, abs=1e-5)


TALK = {
    "messages": [
        {"role": role, "content": content}
        for role, content in (("user", "red"), ("assistant", "blue"), ("user", "green"), ("assistant", "black"))
    ]
}
TALK_PARTS = [("Human: red\n\nAssistant: ", False), ("blue</s>", True)]
TALK_PARTS += [("\n\nHuman: green\n\nAssistant: ", False), ("black</s>", True)]


@pytest.mark.parametrize("packing", [True, False])
@pytest.mark.parametrize(
    ("row", "parts", "settings"),
    [
        (TALK, TALK_PARTS, {"train_on": "all-turns"}),
        (TALK, [("".join(text for text, _ in TALK_PARTS[:3]), False), TALK_PARTS[3]], {}),
        ({"text": "red green blue"}, [("red green blue</s>", True)], {}),
    ],
    ids=["all-turns", "last", "text"],
)
def test_the_loss_is_over_the_learned_tokens(
    task: dict[str, Any], tiny_model_dir: Path, tmp_path: Path, row: Any, parts: Any, settings: Any, packing: bool
):
    tokenizer, model = AutoTokenizer.from_pretrained(tiny_model_dir), LlamaForCausalLM.from_pretrained(tiny_model_dir)
    data = tmp_path / "one.jsonl"
    data.write_text(json.dumps(row))
    result = run({**task, "eval_data": str(data), "data": str(data), "packing": packing, **settings}, max_steps=1)
    ids, learned = [], []
    for text, counts in parts:
        made = tokenizer(text.replace("</s>", tokenizer.eos_token), add_special_tokens=False)["input_ids"]
        ids += made
        learned += [counts] * len(made)
    vectors = load_file(result.folder / "adapter_model.safetensors")["prompt_embeddings"]
    for measured, prompt in ((result.after, vectors), (result.before, vectors[:0])):
        embeds = torch.cat([prompt, model.get_input_embeddings()(torch.tensor(ids))])
        with torch.no_grad():
            logits = model(inputs_embeds=embeds.unsqueeze(0)).logits[0]
        places = [at for at, counts in enumerate(learned) if counts and len(prompt) + at > 0]
        given = logits[[len(prompt) + at - 1 for at in places]]
        assert measured is not None
        assert measured.tokens == len(places)
        assert measured.loss == pytest.approx(float(F.cross_entropy(given, torch.tensor(ids)[places])), abs=1e-5)


def test_held_out_rows_are_not_trained_on(train_file: Path):
    recipe = TrainRecipe(model="m", data=str(train_file), output="o", eval_rows=7)
    kept, held_out = read_rows(recipe, seed=1)
    assert held_out is not None
    assert (len(kept), len(held_out)) == (33, 7)
    assert not {row.instruction for row in kept} & {row.instruction for row in held_out}
    again, other = read_rows(recipe, seed=1)[1], read_rows(recipe, seed=2)[1]
    assert again is not None
    assert other is not None
    assert list(again) == list(held_out)
    assert list(other) != list(held_out)


def test_what_is_written(task: dict[str, Any], tiny_model_dir: Path):
    result = run({**task, "eval_rows": 5}, save_steps=2)
    names = {path.name for path in result.folder.iterdir()}
    assert names == {
        "adapter_config.json", "adapter_model.safetensors", "encoder.safetensors", "ptune.json", "README.md",
        "metrics.jsonl", "loss.png", "checkpoint-2", "checkpoint-4",
    }  # fmt: skip
    png = (result.folder / "loss.png").read_bytes()
    assert png.startswith(b"\x89PNG\r\n\x1a\n")
    assert png.endswith(b"IEND\xaeB`\x82")
    lines = [json.loads(line) for line in (result.folder / "metrics.jsonl").read_text().splitlines()]
    trained = [line for line in lines if "loss" in line]
    assert [line["step"] for line in trained] == [1, 2, 3, 4]
    for line in trained:
        assert all(math.isfinite(line[name]) for name in ("loss", "grad_norm", "learning_rate", "tokens_per_second"))
    noted = json.loads((result.folder / "ptune.json").read_text())
    assert (noted["base_model"], noted["encoder"], noted["template"]) == (str(tiny_model_dir), "embedding", "tutorial")
    assert noted["data_report"]["kept"] == 40
    assert noted["tokens_report"]["kept"] == 35
    assert noted["recipe"]["eval_rows"] == 5
    assert noted["metrics"] == result.metrics()
    assert noted["metrics"]["train_loss"] == pytest.approx(sum(line["loss"] for line in trained) / 4, abs=1e-5)
    assert result.to_dict()["rows"] == 35


def test_checkpoint_is_a_prompt_folder(task: dict[str, Any]):
    result = run(task, save_steps=2, save_total_limit=9)
    last = PTunedModel.from_pretrained(result.folder / "checkpoint-4")
    early = PTunedModel.from_pretrained(result.folder / "checkpoint-2")
    assert torch.equal(last.encode(), load_file(result.folder / "adapter_model.safetensors")["prompt_embeddings"])
    assert not torch.equal(last.encode(), early.encode())


def weights(folder: Path) -> bytes:
    return (folder / "encoder.safetensors").read_bytes()


def losses(folder: Path) -> list[float]:
    return [entry["loss"] for entry in read_metrics(folder / "metrics.jsonl") if "loss" in entry]


def test_same_seed_same_bits(task: dict[str, Any], tmp_path: Path):
    first, second, other = (
        run({**task, "encoder": "lstm", "encoder_dropout": 0.3, "output": str(tmp_path / name)}, seed=seed)
        for name, seed in (("a", 1), ("b", 1), ("c", 2))
    )
    assert losses(first.folder) == losses(second.folder)
    assert weights(first.folder) == weights(second.folder)
    assert weights(first.folder) != weights(other.folder)


@pytest.mark.parametrize("last", [2, 4, 6])
@pytest.mark.parametrize(
    "batches", [{}, {"tokens_per_batch": 400}, {"packing": False}], ids=["packed", "tokens", "padded"]
)
def test_resumed_run_is_the_uninterrupted_one(task: dict[str, Any], tmp_path: Path, batches: dict[str, Any], last: int):
    """Resumed within the first epoch, after it, and within the second."""
    settings = {"max_steps": 8, "save_steps": 2, "save_total_limit": 9, "gradient_accumulation_steps": 2}
    if "tokens_per_batch" not in batches:
        settings["per_device_train_batch_size"] = 5
    whole = run({**task, **batches, "encoder_dropout": 0.2}, **settings)
    cut = {**task, **batches, "encoder_dropout": 0.2, "output": str(tmp_path / "cut")}
    shutil.copytree(whole.folder, cut["output"])
    for step in range(last + 2, 9, 2):
        shutil.rmtree(tmp_path / "cut" / f"checkpoint-{step}")
    resumed = run(cut, **settings, resume_from_checkpoint="true")
    assert weights(resumed.folder) == weights(whole.folder)
    assert losses(resumed.folder) == losses(whole.folder)
    assert sorted(path.name for path in resumed.folder.glob("checkpoint-*")) == [
        f"checkpoint-{step}" for step in (2, 4, 6, 8)
    ]


def test_best_checkpoint_is_what_remains(task: dict[str, Any]):
    # The highest loss is called the best here, so that the best is not the last.
    result = run(
        {**task, "eval_rows": 8},
        max_steps=6,
        eval_strategy="steps",
        eval_steps=2,
        save_steps=2,
        load_best_model_at_end=True,
        greater_is_better=True,
        learning_rate=0.1,
    )
    evaluated = [line["eval_loss"] for line in read_metrics(result.folder / "metrics.jsonl") if "eval_loss" in line]
    assert result.after is not None
    assert max(evaluated) > evaluated[-1] + 0.01
    assert result.after.loss == pytest.approx(max(evaluated), abs=1e-5)
    assert (result.folder / "checkpoint-2").is_dir()


def test_without_packing_the_model_does_not_pack_by_itself(task: dict[str, Any], tmp_path: Path):
    packed, padded = (
        run({**task, "packing": packing, "output": str(tmp_path / str(packing))}, max_steps=1).model
        for packing in (True, False)
    )
    assert (packed.packs, packed.pack_batches) == (padded.packs, not padded.pack_batches) == (True, True)


def test_tokens_are_cached(task: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("PTUNE_CACHE", str(tmp_path / "cache"))
    first = run(task, max_steps=1)
    second = run({**task, "output": str(tmp_path / "again")}, max_steps=1)
    cached = [
        json.loads((one.folder / "ptune.json").read_text())["tokens_report"]["from_cache"] for one in (first, second)
    ]
    assert cached == [False, True]
    assert weights(first.folder) == weights(second.folder)


def test_cache_that_cannot_be_written_is_done_without(
    task: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("PTUNE_CACHE", str(tmp_path / "file"))
    assert run(task, max_steps=1).steps == 1


def test_training_argument_that_cannot_be_used_leaves_nothing(task: dict[str, Any]):
    with pytest.raises(ConfigError, match="nobody is not supported"):
        run(task, report_to="nobody")
    assert not Path(task["output"]).exists()


def test_noise_on_the_embeddings_has_the_rows_strength_in_packed_batches(
    task: dict[str, Any], monkeypatch: pytest.MonkeyPatch
):
    """NEFTune (arXiv:2310.05914): uniform within alpha / sqrt(row length x width) on text; the prompt gets none."""
    plain = run(task)
    noises, original = [], neftune.neftune_post_forward_hook

    def watched(module: torch.nn.Embedding, given: tuple[torch.Tensor], output: torch.Tensor) -> torch.Tensor:
        noised: torch.Tensor = original(module, given, output)
        if module.training:
            noises.append((given[0].shape, (noised - output).detach()))
        return noised

    monkeypatch.setattr(neftune, "neftune_post_forward_hook", watched)
    noised = run({**task, "overwrite": True}, neftune_noise_alpha=5.0)
    assert plain.train_loss != noised.train_loss
    assert len(noises) == 4
    for (rows, length), noise in noises:
        assert rows == 8
        most = 5 / math.sqrt(length * noise.shape[-1])
        assert 0.95 * most < float(noise.abs().max()) <= most
