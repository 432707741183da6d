"""The rows of a run: several sources, weights, what is held out, and the template of whole texts."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer, TrainingArguments

from ptune.data.records import load_examples
from ptune.data.template import get_template
from ptune.errors import ConfigError, DataError
from ptune.recipe import TrainRecipe
from ptune.training.rows import load_rows, place_of, read_rows


@pytest.fixture
def sources(tmp_path: Path) -> list[str]:
    """10 rows of Alpaca columns and 6 of others; the last two of these stand in the first file too."""
    first = [{"instruction": f"a{number}", "output": str(number)} for number in range(10)]
    second = [{"question": f"b{number}", "answer": str(number), "id": 1} for number in range(4)]
    second += [{"question": f"a{number}", "answer": str(number)} for number in range(2)]
    (tmp_path / "a=1.json").write_text(json.dumps(first))
    (tmp_path / "b:2.jsonl").write_text("".join(json.dumps(row) + "\n" for row in second))
    return [str(tmp_path / "a=1.json"), str(tmp_path / "b:2.jsonl")]


def recipe(data: Any, **values: Any) -> TrainRecipe:
    return TrainRecipe(model="m", data=data, output="o", **values)


def asked(examples: Any) -> list[str]:
    return [one.instruction for one in examples]


def test_one_source_is_the_same_however_it_is_written(sources: list[str]):
    plain, listed = recipe(sources[0]), recipe(sources[:1])
    assert plain == listed
    assert plain.data == sources[0]
    assert list(read_rows(plain, 1)[0]) == list(load_examples(sources[0]))
    assert read_rows(plain, 1)[0].report.to_dict() == load_examples(sources[0]).report.to_dict()


def test_several_sources_are_read_in_order_and_reported_one_by_one(sources: list[str]):
    examples, held_out = read_rows(recipe(sources), seed=1)
    assert held_out is None
    assert asked(examples) == [*(f"a{number}" for number in range(10)), *(f"b{number}" for number in range(4))]
    report = examples.report
    assert [part.kept for part in report.parts] == [10, 4]
    assert (report.kept, report.duplicates, report.rows_read) == (14, 2, 16)
    assert report.lines() == [
        f"read 10 rows from {sources[0]} (Alpaca columns), kept 10",
        f"read 6 rows from {sources[1]} (question/answer columns), kept 4",
        "columns used: question as instruction, answer as output",
        "columns not used: id (4 rows)",
        "dropped 2 rows that repeat an earlier one",
        "together 14 rows of 2 sources",
    ]
    plain = json.loads(json.dumps(report.to_dict()))
    assert [part["kept"] for part in plain["parts"]] == [10, 4]
    assert len(load_examples(sources, drop_duplicates=False)) == 16
    assert len(load_examples(sources, limit=3)) == 6, "the limit is each source's"
    with pytest.raises(DataError, match="none of the 10 rows can be learned: 10 repeat rows of the sources before"):
        load_examples([sources[0], sources[0]])
    with pytest.raises(ConfigError, match="no data are named"):
        load_examples([])


@pytest.mark.parametrize(
    ("weights", "times"),
    [((2, 0.5), ({2}, {0, 1})), ((1, 1), ({1}, {1})), ((0.3, 2.5), ({0, 1}, {2, 3})), ((3.0, 1), ({3}, {1}))],
)
def test_weights_multiply_rows(sources: list[str], weights: tuple[float, float], times: tuple[set[int], set[int]]):
    examples, _ = read_rows(recipe(sources, data_weights=weights), seed=1)
    counts = Counter(asked(examples))
    for letter, rows, weight, want in zip("ab", (10, 4), weights, times, strict=True):
        own = [counts[f"{letter}{number}"] for number in range(rows)]
        assert set(own) == want
        assert sum(own) == round(weight * rows)
    assert [part.rows_an_epoch for part in examples.report.parts] == [round(10 * weights[0]), round(4 * weights[1])]
    lines = examples.report.lines()
    assert f"weight {weights[0]:g}: {round(10 * weights[0]):,} of its rows an epoch" in lines
    assert lines[-1] == f"an epoch has {len(examples):,} rows"


def test_the_draw_is_the_seeds(sources: list[str]):
    draws = [asked(read_rows(recipe(sources, data_weights=(0.5, 1)), seed=seed)[0]) for seed in (1, 1, 2)]
    assert draws[0] == draws[1] != draws[2]


def test_a_weight_for_one_source(sources: list[str]):
    examples, _ = read_rows(recipe(sources[0], data_weights=[2]), seed=1)
    assert len(examples) == 20
    assert "weight 2: 20 of its rows an epoch" in examples.report.lines()


def test_no_copy_of_a_held_out_row_is_trained_on(sources: list[str]):
    for seed in range(5):
        examples, held_out = read_rows(recipe(sources, data_weights=(3, 2), eval_rows=6), seed=seed)
        assert held_out is not None
        assert len(set(asked(held_out))) == 6
        assert not set(asked(held_out)) & set(asked(examples))
        assert len(set(asked(examples))) == 8
        assert set(Counter(asked(examples)).values()) <= {2, 3}


def test_weights_that_leave_nothing(sources: list[str]):
    with pytest.raises(ConfigError, match=r"data_weights: 0.01 of the 4 rows of .*b:2.jsonl leaves none"):
        read_rows(recipe(sources, data_weights=(1, 0.01)), seed=1)


@pytest.mark.parametrize(
    ("values", "complaint"),
    [
        ({"data": ["a", "b"], "data_weights": [1]}, "data has 2 sources, data_weights has 1 weights"),
        ({"data": "a", "data_weights": [0]}, "data_weights must be above 0 and at most 1000, not 0"),
        ({"data": "a", "data_weights": [float("nan")]}, "not nan"),
        ({"data": "a", "data_weights": 2}, "data_weights must be a list (a number each), not 2"),
        ({"data": "a", "data_weights": ["x"]}, "data_weights must be a list (a number each), not "),
        ({"data": ["a", 5]}, "data must be text or a list (text each), not "),
        ({"data": ["a", ""]}, "data names nothing in one place"),
        ({"data": []}, "data is missing"),
        ({"data": "a", "encoding": "gb1803"}, "unknown encoding 'gb1803'"),
        ({"data": "a", "encoding": "zlib"}, "unknown encoding 'zlib'"),
        ({"data": "a", "train_on": "every"}, "unknown train_on 'every'"),
    ],
)
def test_settings_that_cannot_be_used(values: dict[str, Any], complaint: str):
    with pytest.raises(ConfigError) as caught:
        recipe(**values)
    assert complaint in str(caught.value)


def test_whole_texts_are_answered_without_a_template(tiny_model_dir: Path, tmp_path: Path):
    tokenizer = AutoTokenizer.from_pretrained(tiny_model_dir)
    args = TrainingArguments(output_dir=str(tmp_path / "out"), use_cpu=True)
    (tmp_path / "book.txt").write_text("red green blue " * 60)
    (tmp_path / "rows.json").write_text('[{"prompt": "red", "completion": "blue"}]')
    made = recipe(str(tmp_path / "book.txt"), max_length=32)
    rows = load_rows(made, get_template("tutorial", tokenizer), tokenizer, args, progress=False)
    assert rows.template.prompt("red green").prompt == "red green"
    assert len(rows.tokens.dataset) > 3
    last = rows.tokens.dataset["input_ids"][-1]
    assert place_of(rows, tokenizer, made, last) == f"{tmp_path / 'book.txt'}:1"
    both = recipe([made.data, str(tmp_path / "rows.json")])
    mixed = load_rows(both, get_template("tutorial", tokenizer), tokenizer, args, progress=False)
    assert mixed.template.name == "tutorial"


def test_one_document_cannot_be_divided(tmp_path: Path):
    (tmp_path / "book.txt").write_text("one")
    with pytest.raises(ConfigError, match="name held-out data of their own with eval_data"):
        read_rows(recipe(str(tmp_path / "book.txt"), eval_rows=1), seed=1)


def test_a_row_is_found_by_the_tokens_that_it_was_learned_with(tiny_model_dir: Path, tmp_path: Path):
    tokenizer = AutoTokenizer.from_pretrained(tiny_model_dir)
    args = TrainingArguments(output_dir=str(tmp_path / "out"), use_cpu=True)
    path = tmp_path / "chat.jsonl"
    row = {"instruction": "red", "output": "blue", "history": [["green", "red"]]}
    path.write_text(json.dumps(row) + "\n" + json.dumps({**row, "output": "green"}))
    for train_on in ("last", "all-turns"):
        made = recipe(str(path), train_on=train_on)
        rows = load_rows(made, get_template("tutorial", tokenizer), tokenizer, args, progress=False)
        assert place_of(rows, tokenizer, made, rows.tokens.dataset["input_ids"][1]) == f"{path}:2"
        assert rows.tokens.report.answers == {"last": 2, "all-turns": 4}[train_on]
