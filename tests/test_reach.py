"""A hub that is not there is said so after one request, and what is in the cache is taken."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest

from ptune import reach
from ptune.data.records import load_examples
from ptune.errors import DataError, ModelError, PromptError
from ptune.loading import load
from ptune.loading.load import load_config, load_model, load_tokenizer
from ptune.saved.hub import prompt_folder

NOWHERE = "http://127.0.0.1:9"


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """A hub that does not answer; gives the addresses that were asked for."""
    addresses: list[str] = []

    def refused(address: str, **_: object) -> object:
        addresses.append(address)
        raise ConnectionRefusedError("connection refused")

    monkeypatch.setattr(reach, "is_offline_mode", lambda: False)
    monkeypatch.setattr(reach, "get_hf_file_metadata", refused)
    monkeypatch.setattr(reach, "hf_hub_url", lambda *names, **_: "/".join([NOWHERE, *names]))
    return addresses


@pytest.mark.parametrize("read", [load_config, load_tokenizer, load_model])
def test_a_model_that_cannot_be_reached(read: object, asked: list[str]) -> None:
    with pytest.raises(ModelError, match=r"'nobody/none' from the hub: .*refused.*Check the id and the connection"):
        read("nobody/none")  # type: ignore[operator]
    assert asked == [f"{NOWHERE}/nobody/none/config.json"]


def test_a_model_in_the_cache_is_taken(
    asked: list[str], tiny_model_dir: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(load, "try_to_load_from_cache", lambda *_, **__: str(tiny_model_dir / "config.json"))
    source = load._Source(pretrained="some/model")
    with caplog.at_level(logging.WARNING, "ptune"):
        assert load._cached_alone("model", source, None) == {"local_files_only": True}
    assert "some/model is taken from the cache" in caplog.text
    assert load._cached_alone("model", load._Source(folder=tiny_model_dir), None) == {}
    assert len(asked) == 1


def test_a_prompt_and_a_data_set_that_cannot_be_reached(asked: list[str]) -> None:
    with pytest.raises(PromptError, match=r"no prompt folder 'some/one' here, and it cannot be downloaded: .*refused"):
        prompt_folder("some/one")
    with pytest.raises(DataError, match=r"no file or folder 'some/rows', and the hub cannot be reached: .*refused"):
        load_examples("some/rows")
    assert asked == [f"{NOWHERE}/some/one/ptune.json", f"{NOWHERE}/some/rows/README.md"]


def test_offline_nothing_is_asked(asked: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reach, "is_offline_mode", lambda: True)
    assert reach.no_connection("nobody/none", "config.json") is None
    assert not asked
