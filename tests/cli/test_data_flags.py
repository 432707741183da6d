"""What the data flags of `ptune train` reach: the run, its folder, a resumed run, a recipe and a comparison."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest

from commands import Ran, run, train_words
from ptune.comparison.compare import _claim
from ptune.comparison.job import Job
from ptune.errors import OutputError
from ptune.recipe import TrainRecipe

Train = Callable[..., Ran]


@pytest.fixture
def talks(tmp_path: Path) -> Path:
    """Six conversations of two answers, some with a question after them."""
    path = tmp_path / "talks.jsonl"
    rows = []
    for number in range(6):
        turns = [("human", f"red {number}"), ("gpt", "blue"), ("human", "green"), ("gpt", f"black {number}")]
        turns += [("human", "white")] * (number % 2)
        rows.append({"conversations": [{"from": role, "value": text} for role, text in turns]})
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def noted(folder: Path) -> dict[str, Any]:
    details: dict[str, Any] = json.loads((folder / "ptune.json").read_text())
    return details


def test_every_answer_is_learned_when_asked_for(train: Train, talks: Path, tmp_path: Path):
    ran = train(data=talks)
    assert ran.code == 0, ran.err
    assert "6 rows have earlier answers (6) that are not learned; --train-on all-turns learns them\n" in ran.err
    assert "left out what stands after the last answer of 3 conversations\n" in ran.err
    assert noted(tmp_path / "out")["tokens_report"]["answers"] == 6
    ran = train("--overwrite", data=talks, train_on="all-turns", save_steps=1)
    assert ran.code == 0, ran.err
    assert "learning 12 answers of 6 rows\n" in ran.err
    assert noted(tmp_path / "out")["recipe"]["train_on"] == "all-turns"
    assert run("train", "--resume", tmp_path / "out", "--max-steps", 3).code == 0
    other = run("train", "--resume", tmp_path / "out", "--max-steps", 4, "--train-on", "last")
    assert other.code == 2
    assert "it was trained on other rows (data, data_weights, template, train_on" in other.err


def test_several_files_with_weights(train: Train, talks: Path, data_file: Path, tmp_path: Path):
    words = ["--data", data_file, talks, "--data-weights", "0.5", "2"]
    ran = train(*words, data=None, save_steps=1)
    assert ran.code == 0, ran.err
    assert f"read 20 rows from {data_file} (Alpaca columns), kept 20\nweight 0.5: 10 of its rows an epoch\n" in ran.err
    assert "weight 2: 12 of its rows an epoch\n" in ran.err
    assert "together 26 rows of 2 sources\nan epoch has 22 rows\n" in ran.err
    details = noted(tmp_path / "out")
    assert details["data"] == f"{data_file}, {talks}"
    assert details["recipe"]["data"] == [str(data_file), str(talks)]
    assert details["tokens_report"]["kept"] == 22
    ran = run("train", "--resume", tmp_path / "out", "--max-steps", 3)
    assert ran.code == 0, ran.err
    ran = run("train", "--resume", tmp_path / "out", "--max-steps", 4, "--data-weights", 1, 2)
    assert (ran.code, "it was trained on other rows" in ran.err) == (2, True)


def test_one_file_is_noted_as_before(train: Train, data_file: Path, tmp_path: Path):
    assert train().code == 0
    details = noted(tmp_path / "out")
    assert details["data"] == details["recipe"]["data"] == str(data_file)
    assert details["recipe"]["data_weights"] is None


def test_a_recipe_takes_lists(talks: Path, data_file: Path, tiny_model_dir: Path, tmp_path: Path):
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(
        f"model: {tiny_model_dir}\ndata: [{data_file}, {talks}]\ndata-weights: [5e-1, 2]\ntrain_on: all-turns\n"
        f"output: {tmp_path / 'out'}\nmax_steps: 1\n"
    )
    ran = run("train", "--config", recipe)
    assert ran.code == 0, ran.err
    assert noted(tmp_path / "out")["recipe"]["data_weights"] == [0.5, 2]
    ran = run("train", "--config", recipe, "--overwrite", "--data", data_file, "--data-weights", 2)
    assert ran.code == 0, ran.err
    assert noted(tmp_path / "out")["recipe"]["data"] == str(data_file)


def test_a_text_file_trains_and_is_gone_on_with(train: Train, tmp_path: Path):
    book = tmp_path / "book.txt"
    book.write_text("red green blue black " * 40)
    ran = train(data=book, max_length=32)
    assert ran.code == 0, ran.err
    assert "1 texts without a question: every token is learned, no template is applied" in ran.err
    assert noted(tmp_path / "out")["template"] == "{instruction}{output}"
    ran = run("generate", tmp_path / "out", "red green", "--max-new-tokens", 3)
    assert ran.code == 0, ran.err


def test_encoding_sheet_and_help(train: Train, tmp_path: Path):
    path = tmp_path / "rows.jsonl"
    path.write_bytes(json.dumps({"content": "类型", "summary": "裤子"}, ensure_ascii=False).encode("gb18030"))
    ran = train(data=path)
    assert (ran.code, ran.err.count("\n")) == (2, 1)
    assert "Pass --encoding gb18030" in ran.err
    assert train(data=path, encoding="gb18030").code == 0
    text = " ".join(run("train", "--help").out.split())
    for said in ("--data DATA [DATA ...]", "--data-weights X [X ...]", "--train-on last|all-turns", "--sheet SHEET"):
        assert said in text
    assert "--train-on last|all-turns" in " ".join(run("compare", "--help").out.split())


def test_a_comparison_hands_sources_and_weights_to_its_jobs(tmp_path: Path):
    made = TrainRecipe(
        model="m", data=["a", "b"], data_weights=[1, 2.5], output=str(tmp_path / "c"), train_on="all-turns"
    )
    job = Job(method="mlp", seed=1, folder="f", recipe=asdict(made))
    handed = Job.from_json(job.to_json())
    assert handed.train_recipe() == made
    assert handed.key() == job.key()
    _claim(Path(made.output), made, {})
    _claim(Path(made.output), made, {})
    with pytest.raises(OutputError, match=r"other settings \(data_weights\)"):
        _claim(Path(made.output), replace(made, data_weights=[1, 2]), {})


def test_a_stray_word_after_the_data_is_a_missing_file(tiny_model_dir: Path, data_file: Path, tmp_path: Path):
    words = train_words(tiny_model_dir, data_file, tmp_path / "out")
    words.insert(words.index(data_file) + 1, "stray.json")
    ran = run(*words)
    assert (ran.code, "no file or folder 'stray.json'" in ran.err) == (2, True)
