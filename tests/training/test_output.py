"""The output folder: whose files may be replaced."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from ptune.errors import ConfigError, OutputError
from ptune.training.output import OutputFolder, cut_metrics, find_checkpoint


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


def test_resume_keeps_the_folder_and_cuts_the_metrics(tmp_path: Path):
    folder = own_run(tmp_path / "out")
    lines = [{"step": 5, "loss": 1.0}, {"step": 10, "loss": 0.9}, {"step": 12, "loss": 0.8}]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines) + '{"step": 1')
    with OutputFolder(folder, resume=folder / "checkpoint-10") as output:
        output.claim()
    kept = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert kept == lines[:2]
    assert (folder / "checkpoint-10").exists()


def test_resume_from_elsewhere_needs_an_empty_folder(tmp_path: Path):
    folder = own_run(tmp_path / "out")
    with pytest.raises(OutputError, match="not empty"):
        OutputFolder(folder, resume=tmp_path / "elsewhere" / "checkpoint-10")


def test_find_checkpoint(tmp_path: Path):
    folder = own_run(tmp_path / "out")
    (folder / "checkpoint-9").mkdir()
    (folder / "checkpoint-9" / "trainer_state.json").write_text('{"global_step": 9}')
    (folder / "checkpoint-11").mkdir()  # cut off while it was written
    assert find_checkpoint(None, folder) is None
    assert find_checkpoint("false", folder) is None
    assert find_checkpoint("True", folder) == folder / "checkpoint-10"
    assert find_checkpoint(str(folder / "checkpoint-9"), folder) == folder / "checkpoint-9"
    with pytest.raises(ConfigError, match="no checkpoint to resume from"):
        find_checkpoint(str(folder / "checkpoint-11"), folder)
    with pytest.raises(ConfigError, match="no checkpoint in"):
        find_checkpoint("true", tmp_path)


def test_cutting_metrics_that_are_not_there(tmp_path: Path):
    cut_metrics(tmp_path / "none", 3)
    assert not (tmp_path / "none").exists()
