"""`ptune plan --task`: with data and without, and what it refuses."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import BertConfig, PreTrainedTokenizerFast, T5Config

from commands import run
from ptune.planning import clock
from ptune.planning.clock import MachineRates

WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "good", "bad", "film", "to", "see", "twice"]


def _folder(folder: Path, config: Any) -> Path:
    """A configuration and a tokenizer, and no weights."""
    core = Tokenizer(models.WordLevel({word: at for at, word in enumerate(WORDS)}, unk_token="[UNK]"))
    core.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    core.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    special = {"pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]"}
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=core, mask_token="[MASK]", eos_token="[SEP]", **special)
    tokenizer.save_pretrained(folder)
    config.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def bert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    sizes: dict[str, Any] = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
    config = BertConfig(vocab_size=len(WORDS), intermediate_size=48, max_position_embeddings=64, **sizes)
    return _folder(tmp_path_factory.mktemp("bert"), config)


@pytest.fixture(scope="session")
def t5(tmp_path_factory: pytest.TempPathFactory) -> Path:
    config = T5Config(vocab_size=len(WORDS), d_model=32, d_kv=8, d_ff=48, num_layers=2, num_heads=4)
    return _folder(tmp_path_factory.mktemp("t5"), config)


@pytest.fixture
def reviews(tmp_path: Path) -> Path:
    rows = [{"text": "film " * at, "label": ("good", "bad", "a")[at % 3]} for at in range(1, 13)]
    return _lines(tmp_path / "reviews.jsonl", rows)


def _lines(path: Path, rows: Sequence[dict[str, str]]) -> Path:
    path.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    return path


def plan(model: Path, *words: object) -> list[object]:
    return [
        "plan", "--model", model, "--num-virtual-tokens", 4, "--no-calibrate", "--device", "cpu", "--max-length", 32,
        "--dtype", "float32", *words,
    ]  # fmt: skip


def test_without_data(bert: Path):
    told = json.loads(run(*plan(bert, "--task", "classify", "--methods", "full,mlp", "--json")).out)
    assert (told["task"], told["data"]) == ("classify", None)
    assert [one["length"] for one in told["forecasts"]] == [32, 32]
    many = json.loads(run(*plan(bert, "--task", "classify", "--num-labels", 5, "--methods", "mlp", "--json")).out)
    added = many["forecasts"][0]["trainable_parameters"] - told["forecasts"][1]["trainable_parameters"]
    assert added == 3 * (32 + 1)
    assert told["command"].startswith(f"ptune train --model {bert} --data DATA --task classify --output OUTPUT")


def test_rows_and_labels_of_the_data(bert: Path, reviews: Path):
    told = json.loads(run(*plan(bert, "--task", "classify", "--data", reviews, "--methods", "mlp", "--json")).out)
    found = {name: told["data"][name] for name in ("rows", "longest", "mean", "num_labels")}
    assert found == {"rows": 12, "longest": 14, "mean": 8, "num_labels": 3}
    (one,) = told["forecasts"]
    assert (one["length"], one["target_length"]) == (14, None)
    assert f"--task classify --data {reviews}" in told["command"]
    assert "--max-length 32" in told["command"]


def test_the_command_reads_the_data_as_the_plan_did(bert: Path, tmp_path: Path):
    rows = [{"said": "film " * at, "kind": ("good", "bad")[at % 2]} for at in range(1, 9)]
    data = _lines(tmp_path / "two words.jsonl", rows)
    words = ("--columns", "text=said", "label=kind", "--methods", "mlp", "--json")
    told = json.loads(run(*plan(bert, "--task", "classify", "--data", data, *words)).out)
    assert (told["data"]["rows"], told["data"]["num_labels"]) == (8, 2)
    assert f"--data '{data}' --columns text=said label=kind --output" in told["command"]


def test_time_is_that_of_average_rows(bert: Path, reviews: Path, monkeypatch: pytest.MonkeyPatch):
    rates = MachineRates(
        flops_per_second=1e6, own_flops_per_second=1e6, bytes_per_second=1e15, seconds_per_operation=0.0
    )
    monkeypatch.setattr(clock, "calibrate", lambda **_: rates)
    words = [word for word in plan(bert, "--task", "classify", "--methods", "full") if word != "--no-calibrate"]
    data = run(*words, "--data", reviews)
    assert data.code == 0, data.err
    assert "Data: 12 rows of 8 tokens on average, 14 at most; 3 labels." in data.out
    assert "an epoch" in data.out
    long, average = (
        json.loads(run(*words, *more, "--json").out)["forecasts"][0]["step_seconds"]
        for more in (("--max-length", 14, "--num-labels", 3), ("--data", reviews))
    )
    assert average == pytest.approx(8 / 14 * long, rel=0.1)


def test_texts_to_write(t5: Path, tmp_path: Path):
    rows = [{"instruction": "see " * at, "output": "good " * (2 * at)} for at in range(1, 7)]
    data = _lines(tmp_path / "d.jsonl", rows)
    without = json.loads(
        run(*plan(t5, "--task", "seq2seq", "--target-length", 9, "--methods", "mlp,prefix", "--json")).out
    )
    assert [one["target_length"] for one in without["forecasts"]] == [9, 9]
    told = json.loads(run(*plan(t5, "--task", "seq2seq", "--data", data, "--methods", "mlp", "--json")).out)
    assert told["data"]["longest_target"] == told["forecasts"][0]["target_length"] > 12
    shown = run(*plan(t5, "--task", "seq2seq", "--data", data, "--methods", "mlp"))
    assert f"8 × {told['data']['longest']} → {told['data']['longest_target']}" in shown.out


def test_virtual_tokens_of_a_template(bert: Path, reviews: Path):
    words = [
        word for word in plan(bert, "--task", "fill", "--data", reviews) if word not in ("--num-virtual-tokens", 4)
    ]
    told = json.loads(
        run(*words, "--template", "{prompt:3}{text} {mask}", "--methods", "mlp,prompt-tuning", "--json").out
    )
    assert told["data"]["virtual_tokens"] == 3
    assert told["forecasts"][1]["trainable_parameters"] == 3 * 32
    assert "--num-virtual-tokens 3" in told["command"]


def test_a_causal_models_data(config_only_causal: Path, tmp_path: Path):
    rows = [{"instruction": "see " * at, "output": "good"} for at in range(1, 7)]
    data = _lines(tmp_path / "d.jsonl", rows)
    told = json.loads(run(*plan(config_only_causal, "--data", data, "--methods", "mlp", "--json")).out)
    assert 0 < told["data"]["supervised_share"] < 0.5
    assert told["forecasts"][0]["length"] == told["data"]["longest"]


@pytest.fixture(scope="session")
def config_only_causal(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from architectures import build

    return _folder(tmp_path_factory.mktemp("llama"), build("llama").config)


def test_only_methods_of_others_are_compared(bert: Path):
    told = json.loads(run(*plan(bert, "--task", "classify", "--methods", "full,lora", "--json")).out)
    assert told["command"].startswith(f"ptune compare --model {bert} --data DATA --task classify")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--task", "clasify"], "unknown task 'clasify'. Did you mean 'classify'?"),
        (["--task", "tag"], "the number of tags is not known. Set num_labels, or give the data."),
        (["--task", "qa", "--num-labels", "3"], "num_labels=3, but QUESTION_ANS has no labels to count."),
        (["--task", "classify", "--num-labels", "1"], "num_labels must be at least 2, not 1."),
        (["--task", "seq2seq"], "is not a model from sequence to sequence: its type is 'bert'."),
        (["--task", "classify", "--target-length", "9"], "target_length is for the task seq2seq."),
        (["--task", "classify", "--columns", "text=a"], "columns is given, but no data. Add --data"),
        (["--task", "classify", "--data", "DATA", "--num-labels", "3"], "num_labels is given, and data too"),
        (["--task", "classify", "--data", "DATA", "--rows", "3"], "rows is given, and data too"),
        (["--task", "classify", "--data", "DATA", "--max-length", "8,16"], "several lengths are given, and data too"),
        (["--task", "classify", "--data", "nowhere.jsonl"], "nowhere.jsonl"),
        (["--task", "fill", "--methods", "peft-mlp"], "PEFT has no prompts for masked language models."),
    ],
    ids=" ".join,
)
def test_what_cannot_be_planned(bert: Path, reviews: Path, words: list[str], said: str):
    ran = run(*plan(bert, *(str(reviews) if word == "DATA" else word for word in words)))
    assert ran.code == 2
    assert said in ran.err
    assert ran.err.count("\n") == 1
    assert ran.out == ""
