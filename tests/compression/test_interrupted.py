"""A compression that is cut off anywhere and goes on is the one that was left alone, to the last byte."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ptune.compression import compress as compression
from ptune.compression import self_study
from ptune.compression.compress import CompressResult
from ptune.compression.compress_report import COMPRESSED
from ptune.training.checkpoint_store import CheckpointStore
from small_runs import made, run


class Killed(BaseException):
    """What ends a process that nobody may catch."""


WHERE: dict[str, tuple[Any, str, int]] = {
    "the first questions": (self_study, "_written", 0),
    "questions": (self_study, "_written", 2),
    "the first answers": (self_study, "_answers", 0),
    "answers": (self_study, "_answers", 1),
    "the first soft labels": (self_study, "write_labels", 0),
    "soft labels": (self_study, "write_labels", 2),
    "training": (CheckpointStore, "_write", 1),
    "the report": (compression, "make_report", 0),
}
"""What the run is cut off in, and how many calls of it are done before."""


@pytest.fixture
def cut_off(monkeypatch: pytest.MonkeyPatch) -> Callable[..., dict[str, int]]:
    """Cut the next run off; gives how often each of the functions was called."""
    originals = {where: getattr(home, name) for where, (home, name, _) in WHERE.items()}

    def cut(where: str | None) -> dict[str, int]:
        calls = dict.fromkeys((name for _, name, _ in WHERE.values()), 0)
        for one, (home, name, after) in WHERE.items():
            if where is not None and name == WHERE[where][1] and one != where:
                continue

            def counted(*args: Any, one: str = one, name: str = name, after: int = after, **options: Any) -> Any:
                if one == where and calls[name] == after:
                    raise Killed
                calls[name] += 1
                return originals[one](*args, **options)

            monkeypatch.setattr(home, name, counted)
        return calls

    monkeypatch.setattr(self_study, "_ROWS_A_FILE", 4)
    return cut


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory, model_dir: Path, text: Path) -> CompressResult:
    """With soft labels in several files. Read only."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(self_study, "_ROWS_A_FILE", 4)
        return run(text, model_dir, tmp_path_factory.mktemp("alone") / "out")


@pytest.mark.parametrize(
    "where", [pytest.param(one, marks=pytest.mark.slow if one.startswith("the ") else ()) for one in WHERE]
)
def test_cut_off(
    where: str, model_dir: Path, text: Path, tmp_path: Path, alone: CompressResult, cut_off: Callable[..., Any]
):
    out = tmp_path / "out"
    cut_off(where)
    with pytest.raises(Killed):
        run(text, model_dir, out)
    calls = cut_off(None)
    resumed = run(text, model_dir, out, resume=True)
    assert made(out) == made(alone.trained.folder)
    assert resumed.trained.train_loss == alone.trained.train_loss
    assert resumed.report is not None
    assert alone.report is not None
    assert resumed.report[COMPRESSED].divergence == alone.report[COMPRESSED].divergence
    assert resumed.report.samples == alone.report.samples
    # What was done is not done again.
    files = len(list((out / "study").glob("teacher-*")))
    left = {
        "the first questions": (3, 3, files),
        "questions": (1, 3, files),
        "the first answers": (0, 3, files),
        "answers": (0, 2, files),
        "the first soft labels": (0, 0, files),
        "soft labels": (0, 0, files - 2),
        "training": (0, 0, 0),
        "the report": (0, 0, 0),
    }
    assert files >= 3
    assert (calls["_written"], calls["_answers"], calls["write_labels"]) == left[where]


@pytest.mark.parametrize("share", [*(pytest.param(one, marks=pytest.mark.slow) for one in (0.0, 0.3, 0.99)), 0.7])
@pytest.mark.parametrize("name", ["questions.jsonl", "rows.jsonl"])
def test_a_file_that_was_cut_off(
    name: str,
    share: float,
    model_dir: Path,
    text: Path,
    tmp_path: Path,
    alone: CompressResult,
    cut_off: Callable[..., Any],
):
    """Within a line, within a batch."""
    out = tmp_path / "out"
    where = "the first answers" if name == "questions.jsonl" else "the first soft labels"
    cut_off(where)
    with pytest.raises(Killed):
        run(text, model_dir, out)
    file = out / "study" / name
    whole = file.read_bytes()
    file.write_bytes(whole[: int(share * len(whole))])
    cut_off("the first soft labels")
    with pytest.raises(Killed):
        run(text, model_dir, out, resume=True)
    for one in ("questions.jsonl", "rows.jsonl"):
        assert (out / "study" / one).read_bytes() == (alone.trained.folder / "study" / one).read_bytes()


def test_questions_that_come_again_are_asked_once(
    model_dir: Path, text: Path, tmp_path: Path, cut_off: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
):
    """Also where the last of a batch are such, and the run is cut off behind it."""
    monkeypatch.setattr(self_study, "named", lambda seed, _: f"Is it number {seed.excerpt % 3} here?")
    values = {"kinds": ["passage"], "questions": 12, "max_steps": 1, "report_rows": 0}
    done = run(text, model_dir, tmp_path / "whole", **values)
    out = tmp_path / "out"
    starts = []
    written = self_study._written

    def cut(study: Any, batch: Any, start: int) -> list[str]:
        starts.append(start)
        if starts == [0, 5]:
            raise Killed
        return written(study, batch, start)

    monkeypatch.setattr(self_study, "_written", cut)
    with pytest.raises(Killed):
        run(text, model_dir, out, **values)
    run(text, model_dir, out, resume=True, **values)
    assert starts == [0, 5, 5, 10]
    assert made(out) == made(done.trained.folder)
    asked = (out / "study" / "rows.jsonl").read_text().splitlines()
    assert len(asked) == len(set(asked)) == 3


def test_damaged_soft_labels_are_computed_again(
    model_dir: Path, text: Path, tmp_path: Path, alone: CompressResult, cut_off: Callable[..., Any]
):
    out = tmp_path / "out"
    cut_off("training")
    with pytest.raises(Killed):
        run(text, model_dir, out)
    first, second, *_ = sorted((out / "study").glob("teacher-*"))
    first.write_bytes(first.read_bytes()[:-7])
    second.write_bytes((alone.trained.folder / "encoder.safetensors").read_bytes())
    calls = cut_off(None)
    run(text, model_dir, out, resume=True)
    assert calls["write_labels"] == 2
    assert made(out) == made(alone.trained.folder)


def test_nothing_of_a_run_that_was_begun_anew_is_gone_on_with(
    model_dir: Path, text: Path, tmp_path: Path, alone: CompressResult, cut_off: Callable[..., Any]
):
    """It was finished; begun anew with other settings and cut off, the first run's checkpoints are not its own."""
    out = tmp_path / "out"
    run(text, model_dir, out, questions=8, num_train_epochs=5)
    cut_off("answers")
    with pytest.raises(Killed):
        run(text, model_dir, out, overwrite=True)
    assert not list(out.glob("checkpoint-*"))
    assert not (out / "compression.json").exists()
    cut_off(None)
    run(text, model_dir, out, resume=True)
    assert made(out) == made(alone.trained.folder)
