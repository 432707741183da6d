"""The output folder: whose files may be replaced."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from ptune.errors import OutputError
from ptune.training.output import OutputFolder


def own_run(folder: Path) -> Path:
    """What an earlier run leaves, in short."""
    (folder / "checkpoint-10").mkdir(parents=True)
    (folder / "checkpoint-10" / "ptune.json").write_text("{}")
    (folder / "checkpoint-10" / "trainer_state.json").write_text('{"global_step": 10}')
    (folder / "README.md").write_text("---\nlibrary_name: ptune\n---\n")
    for name in ("ptune.json", "adapter_config.json", "adapter_model.safetensors", "encoder.safetensors"):
        (folder / name).write_text("x")
    for name in ("metrics.jsonl", "loss.png"):
        (folder / name).write_text("x")
    return folder


def test_own_files_are_removed_and_others_stay(tmp_path: Path):
    folder = own_run(tmp_path / "out")
    (folder / "notes.txt").write_text("mine")
    (folder / "data").mkdir()
    (folder / "data" / "ptune.json").write_text("mine")
    with OutputFolder(folder, overwrite=True) as output:
        assert (folder / "ptune.json").exists(), "nothing goes before training begins"
        output.claim()
    assert sorted(str(path.relative_to(folder)) for path in folder.rglob("*")) == [
        "data",
        "data/ptune.json",
        "notes.txt",
    ]


@pytest.mark.parametrize("foreign", ["README.md", "checkpoint-500/model.safetensors", "adapter_config.json"])
def test_somebody_elses_files_are_not_replaced(tmp_path: Path, foreign: str):
    path = tmp_path / foreign
    path.parent.mkdir(exist_ok=True)
    path.write_text("mine")
    with pytest.raises(OutputError, match="is not ptune's") as caught:
        OutputFolder(tmp_path, overwrite=True)
    assert foreign.split("/", maxsplit=1)[0] in str(caught.value)
    assert path.read_text() == "mine"


def test_not_empty_is_refused(tmp_path: Path):
    (tmp_path / "x").write_text("")
    with pytest.raises(OutputError, match=r"not empty.*--overwrite"):
        OutputFolder(tmp_path)


def test_write_protected_place_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("os.access", lambda *_: False)
    with pytest.raises(OutputError, match="write-protected"):
        OutputFolder(tmp_path / "a" / "b")


def fail_in(output: OutputFolder, write: str | None = None) -> None:
    """A run that ends with an error, after having written a file or before."""

    def attempt() -> None:
        with output:
            output.claim()
            if write is not None:
                (output.path / write).write_text("{}")
            raise RuntimeError

    with pytest.raises(RuntimeError):
        attempt()


def test_failure_removes_the_empty_folders_it_made(tmp_path: Path):
    fail_in(OutputFolder(tmp_path / "a" / "b"))
    assert list(tmp_path.iterdir()) == []


def test_failure_keeps_what_was_written(tmp_path: Path):
    fail_in(OutputFolder(tmp_path / "a" / "b"), write="metrics.jsonl")
    assert (tmp_path / "a" / "b" / "metrics.jsonl").exists()


def test_resume_keeps_the_folder_and_what_was_logged_by_then(tmp_path: Path):
    folder = own_run(tmp_path / "out")
    history = [{"step": 5, "loss": 1.0, "total_flos": 3}, {"step": 10, "loss": 0.1 + 0.2}]
    (folder / "checkpoint-10" / "trainer_state.json").write_text(
        json.dumps({"global_step": 10, "log_history": history})
    )
    (folder / "metrics.jsonl").write_text('{"step": 12, "loss": 0.8}\n{"step": 1')
    (folder / ".checkpoint-12.new").mkdir()
    (folder / ".checkpoint-5.old").mkdir()
    with OutputFolder(folder, resume=folder / "checkpoint-10") as output:
        output.claim()
    kept = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert kept == [{"step": 5, "loss": 1.0}, {"step": 10, "loss": 0.1 + 0.2}]
    assert (folder / "checkpoint-10").exists()
    assert not list(folder.glob(".checkpoint-*"))


def test_resume_from_elsewhere_needs_an_empty_folder(tmp_path: Path):
    folder = own_run(tmp_path / "out")
    with pytest.raises(OutputError, match="not empty"):
        OutputFolder(folder, resume=tmp_path / "elsewhere" / "checkpoint-10")
