"""A whole evaluation on a small model: its figures, its folder, going on after an interruption, unrelated rows."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import PreTrainedTokenizerFast

from architectures import build
from prompting import encoder_prompt
from ptune import evaluate
from ptune.answering import Answerer
from ptune.data.collate import PackingCollator
from ptune.data.records import load_examples
from ptune.data.template import get_template
from ptune.data.tokenize import tokenize_examples
from ptune.errors import ConfigError, DataError, OutputError
from ptune.evaluation import evaluate as story
from ptune.evaluation.held_out_loss import held_out_loss
from ptune.evaluation.items import Kind, kind_of, make_items

ROWS = [
    {"instruction": f"where is order {at}", "output": f"{'at home' if at % 3 else 'in the store'} {at}"}
    for at in range(9)
]


@pytest.fixture
def answerer(tiny_tokenizer: PreTrainedTokenizerFast) -> Answerer:
    model = encoder_prompt(build("llama")).eval()
    return Answerer(model, tiny_tokenizer, get_template("tutorial", tiny_tokenizer))


@pytest.fixture
def rows(tmp_path: Path) -> Callable[..., str]:
    def write(name: str, content: list[dict[str, Any]]) -> str:
        path = tmp_path / name
        path.write_text("".join(json.dumps(row) + "\n" for row in content), encoding="utf-8")
        return str(path)

    return write


def plain_loss(answerer: Answerer, question: str, answer: str, *, prompt: bool) -> tuple[float, int, int]:
    """Summed loss, tokens and right tokens of one row, by the model's own forward."""
    model, tokenizer = answerer.model, answerer.tokenizer
    asked = tokenizer(f"Human: {question}\n\nAssistant: ")["input_ids"]
    learned = tokenizer(answer + "<eos>")["input_ids"]
    with torch.no_grad():
        vectors = model.encode() if prompt else torch.zeros(0, model.base.config.hidden_size)
        words = model.base.get_input_embeddings()(torch.tensor(asked + learned))
        logits = model.base(inputs_embeds=torch.cat([vectors, words])[None]).logits[0]
    made = logits[-len(learned) - 1 : -1].log_softmax(-1)
    wanted = torch.tensor(learned)
    return -float(made.gather(1, wanted[:, None]).sum()), len(learned), int((made.argmax(-1) == wanted).sum())


def test_losses_are_those_of_the_model_row_by_row(answerer: Answerer, rows: Callable[..., str]):
    many = [{"instruction": f"q {at}{'x' * (at % 7)}", "output": f"a {at % 5}{'y' * (at % 4)}"} for at in range(60)]
    found = evaluate(answerer, data=rows("many.jsonl", many), metrics=["tokens"], shots=0, bootstrap=20)
    assert found.columns == ("alone", "prompt")
    for column in found.columns:
        each = [plain_loss(answerer, row["instruction"], row["output"], prompt=column == "prompt") for row in many]
        total, tokens, right = (sum(part) for part in zip(*each, strict=True))
        assert found.score("loss", column) == pytest.approx(total / tokens, rel=1e-5)
        assert found.score("perplexity", column) == pytest.approx(math.exp(total / tokens), rel=1e-4)
        assert found.score("token_accuracy", column) == pytest.approx(right / tokens)


def test_the_loss_is_the_one_that_training_measures(answerer: Answerer, rows: Callable[..., str]):
    data = rows("rows.jsonl", ROWS)
    tokens = tokenize_examples(load_examples(data), answerer.template, answerer.tokenizer, max_length=60)
    found = evaluate(answerer, data=data, metrics=["loss"], max_length=60, bootstrap=5)
    for column, with_prompt in (("alone", False), ("prompt", True)):
        wanted = held_out_loss(answerer.model, tokens.dataset, PackingCollator(), with_prompt=with_prompt)
        assert found.score("loss", column) == pytest.approx(wanted.loss, rel=1e-5)


def test_three_columns_and_what_is_written(answerer: Answerer, rows: Callable[..., str], tmp_path: Path):
    out = tmp_path / "out"
    data = rows("rows.jsonl", ROWS)
    answerer.model.train()
    found = evaluate(answerer, data=data, written_prompt="Say where.", shots=2, output=str(out), bootstrap=50)
    assert answerer.model.training
    assert answerer.model.prompt_names == ["default"]
    assert found.columns == ("alone", "written", "prompt")
    assert found.costs["prompt"].prompt_tokens == 6
    assert found.costs["written"].prompt_tokens > 20
    lines = [json.loads(line) for line in (out / "predictions.jsonl").read_text().splitlines()]
    assert [(line["row"], line["column"]) for line in lines] == [
        (row, column) for row in range(len(ROWS)) for column in found.columns
    ]
    assert lines[0]["references"] == [ROWS[0]["output"]]
    assert lines[0]["source"] == f"{data}:1"
    assert [one.metric.name for one in found.metrics][:4] == ["loss", "perplexity", "token_accuracy", "exact_match"]
    page, text = (out / "report.html").read_text(), (out / "report.md").read_text()
    assert "http://" not in page.replace("http://www.w3.org", "")
    assert "<script" not in page
    for part in (
        "frozen model alone",
        "told in words",
        "with the prompt",
        "Say where.",
        "exact match",
        "where is order 0",
    ):
        assert part in page
        assert part in text
    assert (out / "scores.png").read_bytes().startswith(b"\x89PNG")
    json.dumps(found.to_dict())


@pytest.mark.parametrize("stop_after", [1, 4, 7])
def test_an_interrupted_evaluation_goes_on(
    stop_after: int, answerer: Answerer, rows: Callable[..., str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    settings: dict[str, Any] = {"data": rows("rows.jsonl", ROWS), "batch_size": 3, "bootstrap": 20, "shots": 1}
    settings["unrelated"] = rows("other.jsonl", [{"instruction": "add 1 and 1", "output": "2"}] * 2)
    whole = evaluate(answerer, **settings, output=str(tmp_path / "whole"))
    asked: list[int] = []

    def counted(*args: Any, **more: Any) -> Any:
        if len(asked) == stop_after:
            raise KeyboardInterrupt
        asked.append(1)
        return outcomes(*args, **more)

    outcomes = story.outcomes
    monkeypatch.setattr(story, "outcomes", counted)
    out = tmp_path / "out"
    with pytest.raises(KeyboardInterrupt):
        evaluate(answerer, **settings, output=str(out))
    with (out / "predictions.jsonl").open("a") as file:
        file.write('{"row": 8, "column": "pro')  # a last line that was cut off
    monkeypatch.setattr(story, "outcomes", outcomes)
    batches = count_batches(monkeypatch)
    found = evaluate(answerer, **settings, output=str(out))
    assert len(asked) == stop_after
    # Three columns of three batches or, where some rows are told otherwise than the rest, more.
    assert 0 < len(batches) < total_batches(tmp_path, answerer, settings, monkeypatch)
    assert same(found.to_dict(), whole.to_dict())
    again = count_batches(monkeypatch)
    evaluate(answerer, **settings, output=str(out))
    assert again == []


def count_batches(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    counted: list[int] = []
    now = story.outcomes

    def count(*args: Any, **more: Any) -> Any:
        counted.append(1)
        return now(*args, **more)

    monkeypatch.setattr(story, "outcomes", count)
    return counted


def total_batches(tmp_path: Path, answerer: Answerer, settings: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> int:
    counted = count_batches(monkeypatch)
    evaluate(answerer, **settings, output=str(tmp_path / "counted"))
    shutil.rmtree(tmp_path / "counted")
    return len(counted)


def same(found: dict[str, Any], wanted: dict[str, Any]) -> bool:
    """Equal but for the time it took."""
    return all(found[key] == wanted[key] for key in ("metrics", "unrelated", "items", "labels"))


def test_another_evaluation_is_not_mixed_with(answerer: Answerer, rows: Callable[..., str], tmp_path: Path):
    out = tmp_path / "out"
    data = rows("rows.jsonl", ROWS)
    settings: dict[str, Any] = {"data": data, "metrics": ["loss"], "bootstrap": 5, "output": str(out)}
    evaluate(answerer, **settings)
    with pytest.raises(OutputError, match="another evaluation: other shots") as fault:
        evaluate(answerer, **settings, shots=1)
    assert "--overwrite" in str(fault.value)
    with torch.no_grad():
        answerer.model.prompts["default"].embedding.weight.add_(1)
    with pytest.raises(OutputError, match="other prompt"):
        evaluate(answerer, **settings)
    evaluate(answerer, **settings, overwrite=True)
    mine = tmp_path / "mine"
    mine.mkdir()
    (mine / "report.md").write_text("mine")
    with pytest.raises(OutputError, match="holds no evaluation"):
        evaluate(answerer, **{**settings, "output": str(mine)}, overwrite=True)
    assert (mine / "report.md").read_text() == "mine"


def test_several_right_answers(answerer: Answerer, rows: Callable[..., str]):
    grouped = [
        {"instruction": "a", "output": "x y"},
        {"instruction": "b", "output": "z"},
        {"instruction": "a", "output": "w"},
    ]
    listed = [{"instruction": "a", "output": ["x y", "w"]}, {"instruction": "b", "output": ["z"]}]
    both = [
        evaluate(answerer, data=rows(f"{at}.jsonl", content), metrics=["loss", "exact_match"], shots=0, bootstrap=5)
        for at, content in enumerate((grouped, listed))
    ]
    for found in both:
        assert [item.references for item in found.items] == [("x y", "w"), ("z",)]
    assert same({**both[0].to_dict(), "facts": []}, {**both[1].to_dict(), "facts": []})
    total = sum(plain_loss(answerer, row["instruction"], row["output"], prompt=True)[0] for row in grouped)
    tokens = sum(plain_loss(answerer, row["instruction"], row["output"], prompt=True)[1] for row in grouped)
    assert both[0].score("loss") == pytest.approx(total / tokens, rel=1e-5)


def test_labels_in_the_data_and_labels_that_are_named(answerer: Answerer, rows: Callable[..., str]):
    labelled = [{"text": f"text {at}", "label": ["good", "bad"][at % 2]} for at in range(12)]
    data = rows("labelled.jsonl", labelled + labelled[:2])
    found = evaluate(answerer, data=data, bootstrap=5)
    assert found.labels == ("bad", "good")
    assert len(found.items) == 14  # the same row twice counts twice
    assert [one.metric.name for one in found.metrics][3:] == ["accuracy", "accuracy_norm", "macro_f1", "macro_f1_norm"]
    named = evaluate(answerer, data=data, labels="good,bad,so so", metrics="accuracy", bootstrap=5)
    assert named.labels == ("good", "bad", "so so")
    with pytest.raises(DataError, match=r"labelled.jsonl:1: the answer 'good' is not among the labels bad, worse"):
        evaluate(answerer, data=data, labels=["bad", "worse"])


def test_examples_come_in_the_columns_of_the_data_and_fit_the_context(answerer: Answerer, rows: Callable[..., str]):
    settings: dict[str, Any] = {"columns": {"instruction": "mr", "output": "ref"}, "metrics": ["loss"], "bootstrap": 5}
    data = rows("e2e.jsonl", [{"mr": f"name {at}", "ref": f"it is {at}"} for at in range(3)])
    shots = rows("shots.jsonl", [{"mr": "food", "ref": "it is good"}])
    unrelated = rows("other.jsonl", [{"instruction": "a", "output": "b"}])
    found = evaluate(answerer, data=data, shots_data=shots, unrelated=unrelated, **settings)
    assert found.columns == ("alone", "written", "prompt")
    assert any(f"1 example from {shots}" in fact for fact in found.facts)
    long = rows("long.jsonl", [{"mr": "x " * 60, "ref": "y"}])
    assert evaluate(answerer, data=data, shots_data=long, **settings).columns == ("alone", "prompt")


def test_unrelated_rows(answerer: Answerer, rows: Callable[..., str]):
    other = [{"instruction": f"add {at}", "output": f"it is {at + 1}"} for at in range(5)]
    found = evaluate(
        answerer, data=rows("rows.jsonl", ROWS), unrelated=rows("other.jsonl", other), metrics=["loss"], bootstrap=50
    ).unrelated
    assert found is not None
    assert found.rows == 5
    alike = tokens = 0
    for row in other:
        asked = answerer.tokenizer(f"Human: {row['instruction']}\n\nAssistant: ")["input_ids"]
        learned = answerer.tokenizer(row["output"] + "<eos>")["input_ids"]
        ids = torch.tensor([asked + learned])
        best = [
            answerer.model(input_ids=ids, prompt_names=names, return_logits=True)
            .logits[0, len(asked) - 1 : -1]
            .argmax(-1)
            for names in (None, [None])
        ]
        alike, tokens = alike + int((best[0] == best[1]).sum()), tokens + len(learned)
    assert found.agreement.value == pytest.approx(alike / tokens)
    for column, prompt in (("alone", False), ("prompt", True)):
        total = sum(plain_loss(answerer, row["instruction"], row["output"], prompt=prompt)[0] for row in other)
        assert found.loss.scores[column].value == pytest.approx(total / tokens, rel=1e-5)
    alone = found.loss.scores["prompt"].value - found.loss.scores["alone"].value
    assert found.loss.differences["alone"].value == pytest.approx(alone)


def test_texts_without_questions(answerer: Answerer, rows: Callable[..., str]):
    found = evaluate(answerer, data=rows("texts.jsonl", [{"text": "a b c"}, {"text": "where is it"}]), bootstrap=5)
    assert found.columns == ("alone", "prompt")
    assert [one.metric.name for one in found.metrics] == ["loss", "perplexity", "token_accuracy"]
    with pytest.raises(DataError, match="a text without a question, which bleu cannot measure"):
        evaluate(answerer, data=rows("texts.jsonl", [{"text": "a b c"}]), metrics=["bleu"])


def test_what_suits_the_data():
    def kind(*answers: str) -> Kind:
        from ptune.data.example import Example

        return kind_of([Example(instruction=str(at), output=one) for at, one in enumerate(answers)])

    assert kind(*["yes", "no"] * 4) is Kind.LABELS
    assert kind("yes", "no", "perhaps") is Kind.TEXTS  # too few rows to say
    assert kind(*["yes"] * 9) is Kind.TEXTS
    assert kind(*["yes " * 20, "no"] * 9) is Kind.TEXTS
    assert kind('{"a": 1}', ' {"b": 2}') is Kind.JSON
    assert len(make_items([], group=True)) == 0


def test_settings_are_checked_together():
    with pytest.raises(ConfigError) as fault:
        evaluate("nowhere", data="", metrics=["exact", "loss"], labels="a", shots=-1)
    for part in ("data is missing", "unknown metric 'exact'", "at least two", "shots must be", "ptune evaluate --help"):
        assert part in str(fault.value)
