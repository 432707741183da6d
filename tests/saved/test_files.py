"""Sets of files survive a crash at any system call; what a folder holds is read as untrusted input."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from ptune.errors import OutputError, PromptError
from ptune.saved import files
from ptune.saved.files import holds, read_bytes, read_json, write_set

OLD = {"a": b"old a", "b": b"old b", "c": b"old c"}
NEW = {"a": b"new a", "b": b"new b", "c": b"new c"}


class Killed(BaseException):
    """What ends a process that nobody may catch."""


def read_all(folder: Path) -> dict[str, bytes]:
    return {name: read_bytes(folder, name, limit=100) for name in OLD if holds(folder, name)}


def counted(monkeypatch: pytest.MonkeyPatch, stop_at: int) -> list[str]:
    """Every call that changes the disk, counted; the one of number `stop_at` does not come to pass."""
    calls: list[str] = []

    def watch(owner: object, name: str) -> None:
        real: Callable[..., object] = getattr(owner, name)

        def call(*args: object, **kwargs: object) -> object:
            if len(calls) == stop_at:
                raise Killed
            calls.append(name)
            return real(*args, **kwargs)

        monkeypatch.setattr(owner, name, call)

    for name in ("rename", "replace", "mkdir", "rmdir"):
        watch(Path, name)
    watch(files.os, "fsync")
    watch(files, "write_flushed")
    return calls


def test_a_set_is_the_old_one_or_the_new_one_wherever_it_is_cut_off(tmp_path: Path) -> None:
    seen = set()
    with pytest.MonkeyPatch.context() as patch:
        write_set(tmp_path / "whole", OLD)
        done = counted(patch, -1)
        write_set(tmp_path / "whole", NEW)
        total = len(done)
    assert total > 10
    for stop in range(total):
        folder = tmp_path / str(stop)
        write_set(folder, OLD)
        with pytest.MonkeyPatch.context() as patch:
            counted(patch, stop)
            with pytest.raises(Killed):
                write_set(folder, NEW)
        found = read_all(folder)
        assert found in (OLD, NEW), f"cut off at call {stop}"
        seen.add(found == NEW)
        # Whatever was left lying there, the next one comes through.
        third = dict.fromkeys(OLD, b"third")
        write_set(folder, third)
        assert read_all(folder) == third
        assert {path.name for path in folder.iterdir()} == set(OLD)
    assert seen == {True, False}


def test_a_full_disk_leaves_the_old_set(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_set(tmp_path, OLD)

    def full(*_args: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(files.os, "fsync", full)
    with pytest.raises(OutputError, match="No space left"):
        write_set(tmp_path, NEW)
    assert read_all(tmp_path) == OLD
    assert {path.name for path in tmp_path.iterdir()} == set(OLD)


def test_links_out_of_the_folder_are_refused(tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("secret")
    folder = tmp_path / "prompt"
    write_set(folder, OLD)
    (folder / "a").unlink()
    (folder / "a").symlink_to(tmp_path / "secret")
    with pytest.raises(PromptError, match="link to a place outside its folder"):
        read_bytes(folder, "a", limit=100)
    (folder / "b").unlink()
    (folder / "b").symlink_to(folder / "c")
    assert read_bytes(folder, "b", limit=100) == b"old c"
    (folder / "d").symlink_to(folder / "d")
    with pytest.raises(PromptError, match="cannot read"):
        read_bytes(folder, "d", limit=100)


def test_a_folder_of_the_hubs_cache_may_link_to_its_blobs(tmp_path: Path) -> None:
    repository = tmp_path / "models--user--prompt"
    snapshot = repository / "snapshots" / "abc"
    snapshot.mkdir(parents=True)
    (repository / "blobs").mkdir()
    (repository / "blobs" / "1").write_bytes(b"content")
    (snapshot / "a").symlink_to("../../blobs/1")
    assert read_bytes(snapshot, "a", limit=100) == b"content"
    (tmp_path / "secret").write_text("secret")
    (snapshot / "b").symlink_to("../../../secret")
    with pytest.raises(PromptError, match="outside"):
        read_bytes(snapshot, "b", limit=100)


def test_what_is_no_file_is_refused_without_waiting(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "folder").mkdir()
    for name in ("pipe", "folder"):
        with pytest.raises(PromptError, match=r"not a regular file|Is a directory"):
            read_bytes(tmp_path, name, limit=100)


def test_a_file_that_is_too_large_is_not_read(tmp_path: Path) -> None:
    with (tmp_path / "large").open("wb") as file:
        file.truncate(2**40)
    with pytest.raises(PromptError, match=r"1,099,511,627,776 bytes, more than the 4,194,304"):
        read_json(tmp_path, "large")
