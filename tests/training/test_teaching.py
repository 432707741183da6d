"""A run that learns from a teacher is any other run: batches as wanted, both ways alike, resumed to the last bit."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from rich.console import Console

from ptune.data.collate import PaddingCollator
from ptune.data.labels import IGNORE_INDEX
from ptune.data.soft_labels import TEACHER_IDS, TEACHER_LOG_PROBS
from ptune.data.tokenize import encode_rows
from ptune.loading.load import load_model
from ptune.model.taught import divergence
from ptune.model.wrapper import PTunedModel
from ptune.recipe import TrainRecipe
from ptune.training.checkpoint_store import CheckpointStore
from ptune.training.progress import read_metrics
from ptune.training.teaching import Teaching
from ptune.training.train import TrainResult, train

QUIET = Console(quiet=True)
KEPT, VOCABULARY = 4, 128
SAME = ("loss", "eval_loss", "grad_norm", "learning_rate", "train_loss", "epoch")


class Killed(BaseException):
    """What ends a process that nobody may catch."""


def distribution(ids: Sequence[int], place: int) -> tuple[torch.Tensor, torch.Tensor]:
    """What the teacher says of a place of a row: the same of every place, and something of its own."""
    alike, own = (
        torch.randn(VOCABULARY, generator=torch.Generator().manual_seed(seed))
        for seed in (0, hash((*ids, place)) % 2**31)
    )
    best = (3 * alike + own).log_softmax(0).topk(KEPT)
    return best.indices, best.values


def label(dataset: Dataset) -> Dataset:
    columns: dict[str, list[list[float]]] = {TEACHER_IDS: [], TEACHER_LOG_PROBS: []}
    for row in dataset:
        places = [at for at, one in enumerate(row["labels"]) if one != IGNORE_INDEX]
        said = [distribution(row["input_ids"], place) for place in places]
        for name, parts in zip(columns, zip(*said, strict=True), strict=True):
            columns[name].append(torch.cat(parts).tolist())
    for name, values in columns.items():
        dataset = dataset.add_column(name, values)
    return dataset


@pytest.fixture
def task(tiny_model_dir: Path, train_file: Path, tmp_path: Path) -> dict[str, Any]:
    return {
        "model": str(tiny_model_dir),
        "data": str(train_file),
        "output": str(tmp_path / "out"),
        "encoder": "prefix",
        "num_virtual_tokens": 4,
    }


def run(recipe: dict[str, Any], start: torch.Tensor | None = None, **values: Any) -> TrainResult:
    made = TrainRecipe(**recipe)
    model = PTunedModel(load_model(made.model, device="cpu")).requires_grad_(False)
    teaching = Teaching(model=model, label=label, start=lambda: start, details={"compression": {"text": "t.txt"}})
    given = {"logging_steps": 1, "use_cpu": True, "remove_unused_columns": False, **values}
    return train(made, given, QUIET, teaching=teaching)


def logged(folder: Path) -> list[dict[str, Any]]:
    return [
        {"step": line["step"], **{name: line[name] for name in SAME if name in line}}
        for line in read_metrics(folder / "metrics.jsonl")
    ]


def losses(folder: Path) -> list[float]:
    return [line["loss"] for line in logged(folder) if "loss" in line]


def prompt(result: TrainResult) -> torch.Tensor:
    return result.model.get_prompt_embedding_to_save()


def labelled(result: TrainResult, examples: Any) -> dict[str, torch.Tensor]:
    """Examples as one batch."""
    rows = [encode_rows(one, result.template, result.tokenizer, 256)[0] for one in examples]
    return PaddingCollator(0)(
        label(Dataset.from_list([{"input_ids": row.input_ids, "labels": row.labels} for row in rows]))
    )


def test_the_loss_is_the_divergence(task: dict[str, Any]):
    """That of every row at the start, and of held-out rows at the end, computed outside the run."""
    result = run(
        {**task, "eval_rows": 6},
        per_device_train_batch_size=34,
        max_steps=1,
        learning_rate=0.5,
        lr_scheduler_type="constant",
    )
    batch, held_out = (labelled(result, examples) for examples in (result.examples, result.held_out))
    begun = run({**task, "output": task["output"] + "-begun", "eval_rows": 6}, max_steps=1, learning_rate=0.0)
    with torch.no_grad():
        assert losses(result.folder)[0] == pytest.approx(float(divergence(begun.model.eval(), batch)), rel=1e-4)
        nothing = [None] * 6
        assert result.before is not None
        assert result.after is not None
        wanted = float(divergence(result.model.eval(), held_out, prompt_names=nothing))
        assert result.before.loss == pytest.approx(wanted, rel=1e-4)
        assert result.after.loss == pytest.approx(float(divergence(result.model, held_out)), rel=1e-4)
    assert not torch.allclose(prompt(result), prompt(begun))
    assert json.loads((result.folder / "ptune.json").read_text())["compression"] == {"text": "t.txt"}


def test_it_falls(task: dict[str, Any]):
    result = run({**task, "eval_rows": 0}, max_steps=40, learning_rate=0.05, per_device_train_batch_size=8)
    found = losses(result.folder)
    assert sum(found[-5:]) < 0.8 * sum(found[:5])


def test_accumulated_batches_are_one(task: dict[str, Any]):
    found = {}
    for size, steps in ((8, 1), (4, 2), (1, 8)):
        recipe = {**task, "output": f"{task['output']}-{size}"}
        result = run(
            recipe, per_device_train_batch_size=size, gradient_accumulation_steps=steps, max_steps=4, max_grad_norm=0.5
        )
        found[size] = prompt(result), losses(result.folder)
    for size in (4, 1):
        torch.testing.assert_close(found[size][0], found[8][0], rtol=1e-3, atol=1e-4)
        assert found[size][1] == pytest.approx(found[8][1], rel=1e-4)


def test_padded_as_packed(task: dict[str, Any]):
    found = [
        run(
            {**task, "output": f"{task['output']}-{packing}", "packing": packing, "eval_rows": 5},
            max_steps=4,
            per_device_train_batch_size=35,  # all rows: batches are drawn otherwise on the two ways
        )
        for packing in (True, False)
    ]
    assert losses(found[0].folder) == pytest.approx(losses(found[1].folder), rel=1e-4)
    torch.testing.assert_close(prompt(found[0]), prompt(found[1]), rtol=1e-3, atol=1e-4)
    assert found[0].after is not None
    assert found[1].after is not None
    assert found[0].after.loss == pytest.approx(found[1].after.loss, rel=1e-4)


def test_where_the_prompt_starts(task: dict[str, Any]):
    vectors = torch.randn(4, 32, generator=torch.Generator().manual_seed(5))
    result = run({**task, "encoder": "embedding"}, vectors, max_steps=1, learning_rate=0.0)
    torch.testing.assert_close(prompt(result), vectors)


# 32 rows in batches of 5: epochs of 7 steps.
SETUPS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "keys and values": (
        {"eval_rows": 8, "num_frozen_tokens": 1},
        {"save_strategy": "epoch", "eval_strategy": "epoch", "max_steps": 16},
    ),
    "accumulated, padded": (
        {"encoder": "mlp", "encoder_dropout": 0.3, "packing": False},
        {"gradient_accumulation_steps": 2, "save_steps": 2, "max_steps": 5},
    ),
}


@pytest.mark.parametrize("setup", SETUPS)
def test_cut_off_after_any_checkpoint(setup: str, task: dict[str, Any], monkeypatch: pytest.MonkeyPatch):
    recipe, settings = SETUPS[setup]
    settings = {"per_device_train_batch_size": 5, **settings}
    whole = run({**task, **recipe}, **settings)
    write: Callable[..., None] = CheckpointStore._write
    for number in (1, 2):
        folder = f"{task['output']}-{number}"
        count = iter(range(1, 100))

        def cut(self: Any, *args: Any, after: int = number, count: Any = count) -> None:
            write(self, *args)
            if next(count) == after:
                raise Killed

        monkeypatch.setattr(CheckpointStore, "_write", cut)
        with pytest.raises(Killed):
            run({**task, **recipe, "output": folder}, **settings)
        monkeypatch.setattr(CheckpointStore, "_write", write)
        resumed = run({**task, **recipe, "output": folder, "resume": True}, **settings)
        assert logged(Path(folder)) == logged(whole.folder)
        assert (resumed.folder / "encoder.safetensors").read_bytes() == (
            whole.folder / "encoder.safetensors"
        ).read_bytes()
        assert (resumed.after and resumed.after.loss) == (whole.after and whole.after.loss)
        assert resumed.train_loss == whole.train_loss
