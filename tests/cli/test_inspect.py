"""`ptune inspect`: facts, nearest tokens and shape of a prompt; the base model is not loaded, and need not be there."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from architectures import build
from commands import run


def facts(*words: object) -> dict[str, Any]:
    ran = run("inspect", *words, "--json")
    assert (ran.code, ran.err) == (0, "")
    found: dict[str, Any] = json.loads(ran.out)
    return found


@pytest.fixture
def orphan(prompt_dir: Path, tmp_path: Path) -> Path:
    """The prompt, its base model out of reach."""
    folder = Path(shutil.copytree(prompt_dir, tmp_path / "orphan"))
    path = folder / "ptune.json"
    path.write_text(path.read_text().replace(json.loads(path.read_text())["base_model"], "/nowhere/model"))
    return folder


def test_facts(prompt_dir: Path, tiny_model_dir: Path, monkeypatch: pytest.MonkeyPatch):
    def refuse(*_args: object, **_kwargs: object) -> None:
        raise AssertionError("the model was loaded")

    monkeypatch.setattr(AutoModelForCausalLM, "from_pretrained", refuse)
    found = facts(prompt_dir, "--nearest", 3)
    vectors = load_file(prompt_dir / "adapter_model.safetensors")["prompt_embeddings"]
    assert found["base_model"] == str(tiny_model_dir)
    assert (found["encoder"], found["virtual_tokens"], found["token_dim"]) == ("embedding", 4, 32)
    assert found["norms"] == pytest.approx(vectors.norm(dim=1).tolist(), rel=1e-5)
    assert found["vector_norms"]["mean"] == pytest.approx(float(vectors.norm(dim=1).mean()))
    assert torch.tensor(found["similarity"]).shape == (4, 4)
    assert 1 <= found["effective_rank"] <= 4
    assert (found["steps"], found["written_by"]) == (2, "ptune")


def test_nearest_tokens_are_the_models_own(prompt_dir: Path, tiny_model_dir: Path):
    found = facts(prompt_dir, "--nearest", 3)
    table = load_file(tiny_model_dir / "model.safetensors")["model.embed_tokens.weight"]
    vectors = load_file(prompt_dir / "adapter_model.safetensors")["prompt_embeddings"]
    tokenizer = AutoTokenizer.from_pretrained(tiny_model_dir)
    cosine = torch.nn.functional.cosine_similarity(vectors[:, None], table[None], dim=2)
    for row, scores in zip(found["nearest"], cosine, strict=True):
        best = scores.topk(3)
        assert [one["id"] for one in row] == best.indices.tolist()
        assert [one["cosine"] for one in row] == pytest.approx(best.values.tolist(), abs=1e-5)
        for one in row:
            assert one["text"] in (tokenizer.decode([one["id"]]), tokenizer.convert_ids_to_tokens(one["id"]))
    assert found["vocabulary"]["norms"]["p5"] <= found["vocabulary"]["norms"]["p95"]
    by_distance = facts(prompt_dir, "--metric", "l2")
    assert by_distance["nearest"][0][0]["l2"] == pytest.approx(float((vectors[0] - table).norm(dim=1).min()), rel=1e-5)


def test_for_people(prompt_dir: Path, tmp_path: Path):
    picture = tmp_path / "prompt.png"
    ran = run("inspect", prompt_dir, "--plot", picture)
    assert (ran.code, ran.err) == (0, "")
    for words in (
        "virtual tokens",
        "effective rank",
        "cosine between",
        "nearest in the vocabulary",
        "norms of the voc",
    ):
        assert words in ran.out
    assert f"plot: {picture}" in ran.out
    assert "\x1b" not in ran.out
    assert picture.read_bytes().startswith(b"\x89PNG")


def test_without_the_base_model(orphan: Path, tiny_model_dir: Path):
    ran = run("inspect", orphan)
    assert (ran.code, ran.err) == (0, "")
    assert "effective rank" in ran.out
    (line,) = [line for line in ran.out.splitlines() if line.startswith("nearest tokens:")]
    assert "/nowhere/model" in line
    assert line.endswith("name the base model with --model")
    assert facts(orphan)["nearest"] is None
    assert facts(orphan)["nearest_missing"]
    assert facts(orphan, "--no-nearest")["nearest_missing"] is None
    assert len(facts(orphan, "--model", tiny_model_dir)["nearest"]) == 4


def test_a_model_that_was_named_must_fit(prompt_dir: Path, tmp_path: Path, tiny_model_dir: Path):
    ran = run("inspect", prompt_dir, "--model", tmp_path / "none")
    assert ran.code != 0
    assert "none" in ran.err
    wide = tmp_path / "wide"
    build("llama", hidden_size=64).save_pretrained(wide)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(tiny_model_dir / name, wide)
    ran = run("inspect", prompt_dir, "--model", wide)
    assert ran.code != 0
    assert "have 64 numbers, and the virtual tokens 32" in ran.err


def test_a_folder_that_peft_made(tmp_path: Path):
    import peft

    config = peft.PromptEncoderConfig(task_type="CAUSAL_LM", num_virtual_tokens=3, encoder_hidden_size=16)
    peft.get_peft_model(build("llama"), config).save_pretrained(tmp_path)
    found = facts(tmp_path)
    assert (found["virtual_tokens"], found["token_dim"], found["written_by"]) == (3, 32, "PEFT")
    assert "does not name its base model" in found["nearest_missing"]
    assert run("inspect", tmp_path).code == 0


def test_wrong_words(prompt_dir: Path, tmp_path: Path):
    assert "PNG" in run("inspect", prompt_dir, "--plot", tmp_path / "x.svg").err
    assert run("inspect", prompt_dir, "--nearest", -1).code == 2
    assert run("inspect", prompt_dir, "--metric", "taxi").code == 2
    ran = run("inspect", prompt_dir, "--plot", tmp_path / "no folder" / "x.png")
    assert ran.code != 0
    assert "cannot write" in ran.err
