"""The embedding table by itself is the one that the loaded model has."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from architectures import build
from ptune.errors import ModelError
from ptune.loading import embedding_table
from ptune.loading.embedding_table import load_embedding_table


def whole(name: str | Path, **options: Any) -> torch.Tensor:
    table = load_embedding_table(str(name), **options)
    parts = list(table.pieces())
    assert [first for first, _ in parts] == list(range(0, table.tokens, embedding_table._PIECE_ROWS))
    return torch.cat([part for _, part in parts])


@pytest.fixture
def nothing_is_loaded(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_args: object, **_kwargs: object) -> None:
        raise AssertionError("the model was loaded")

    monkeypatch.setattr(AutoModelForCausalLM, "from_pretrained", refuse)


# Gemma 3 scales its embeddings, and a virtual token lives behind that.
@pytest.mark.parametrize("name", ["llama", "bloom", "gpt2", "opt", "gemma3", "gpt_neox"])
@pytest.mark.usefixtures("nothing_is_loaded")
def test_the_table_is_what_the_embedding_layer_gives(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(embedding_table, "_PIECE_ROWS", 50)
    model = build(name)
    model.save_pretrained(tmp_path)
    layer: Any = model.get_input_embeddings()
    with torch.no_grad():
        expected = layer(torch.arange(layer.weight.shape[0]))
    torch.testing.assert_close(whole(tmp_path), expected)


@pytest.mark.usefixtures("nothing_is_loaded")
def test_in_shards_and_under_a_shorter_name(tmp_path: Path):
    model = build("bloom")
    model.save_pretrained(tmp_path)
    weights = {
        name.removeprefix("transformer."): value for name, value in load_file(tmp_path / "model.safetensors").items()
    }
    (tmp_path / "model.safetensors").unlink()
    table = weights.pop("word_embeddings.weight")
    save_file({"word_embeddings.weight": table}, tmp_path / "b.safetensors", metadata={"format": "pt"})
    (tmp_path / "model.safetensors.index.json").write_text(
        json.dumps(
            {"weight_map": {**dict.fromkeys(weights, "a.safetensors"), "word_embeddings.weight": "b.safetensors"}}
        )
    )
    # The shard with the rest of the model is not even there.
    assert torch.equal(whole(tmp_path), table)


def test_other_formats_are_loaded(tmp_path: Path):
    model = build("llama")
    model.config.save_pretrained(tmp_path)
    torch.save(model.state_dict(), tmp_path / "pytorch_model.bin")
    layer: Any = model.get_input_embeddings()
    assert torch.equal(whole(tmp_path), layer.weight)


def test_half_precision_is_read_as_it_is(tmp_path: Path):
    model = build("llama").to(torch.bfloat16)
    model.save_pretrained(tmp_path)
    layer: Any = model.get_input_embeddings()
    assert torch.equal(whole(tmp_path), layer.weight.float())


def test_what_cannot_be_read(tmp_path: Path):
    build("llama").save_pretrained(tmp_path)
    weights = tmp_path / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:100])
    with pytest.raises(ModelError, match="cannot read the weights"):
        load_embedding_table(str(tmp_path))
    with pytest.raises(ModelError, match="hub"):
        load_embedding_table("somebody/nothing", local_files_only=True)
