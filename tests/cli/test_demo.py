"""`ptune demo` on a small model in place of the real one: what it prints, draws and reports of all three columns."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from rich.console import Console
from transformers import PreTrainedTokenizerFast

from architectures import build
from commands import run
from ptune.cli import demo
from ptune.data.example import Example
from ptune.evaluation.evaluation_result import Cost, Evaluation
from ptune.evaluation.items import Item
from ptune.evaluation.outcomes import Outcome

COLUMNS = ("alone", "written", "prompt")
TITLES = ("frozen model alone", "told in words", "with the prompt")


@pytest.fixture
def small_model(tmp_path: Path, tiny_tokenizer: PreTrainedTokenizerFast, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A small model with room for the written prompt in place of the demo's."""
    folder = tmp_path / "model"
    build("llama", max_position_embeddings=2048).save_pretrained(folder)
    tiny_tokenizer.save_pretrained(folder)
    monkeypatch.setattr(demo, "MODEL", str(folder))
    return folder


def test_three_columns_with_their_costs(small_model: Path, tmp_path: Path):
    out = tmp_path / "out"
    ran = run("demo", "--output", out, "--max-steps", 2, "--rows", 3, "--json")
    assert ran.code == 0, ran.err
    found = json.loads(ran.out)
    for name, metric in (("valid_json", "json_valid"), ("exact_match", "json_exact")):
        for when, column in zip(("before", "told", "after"), COLUMNS, strict=True):
            assert found[f"{name}_{when}"] == found["evaluation"]["metrics"][metric][column]["value"]
    assert found["answered_rows"] == found["evaluation"]["items"] == 3
    costs = found["evaluation"]["costs"]
    assert costs["alone"]["prompt_tokens"] == 0
    assert costs["prompt"]["prompt_tokens"] == demo.VIRTUAL_TOKENS
    assert costs["written"]["prompt_tokens"] > len(demo.WRITTEN_PROMPT) / 4
    assert all(costs[column]["seconds_a_question"] > 0 for column in COLUMNS)
    (told,) = [fact for fact in found["evaluation"]["facts"] if fact.startswith("Told in words")]
    assert demo.WRITTEN_PROMPT in told
    assert f"{demo.WRITTEN_SHOTS} examples" in told
    for part in (*TITLES, "tokens of prompt", "seconds an answer", f"chat {out} --compare"):
        assert part in ran.err
    for path in (out / "result.png", out / "evaluation" / "scores.png"):
        assert path.read_bytes().startswith(b"\x89PNG")
        assert str(out / "result.png") in ran.err
    assert (out / "evaluation" / "report.html").is_file()


def test_an_answer_is_marked_right_as_it_is_scored(capsys: pytest.CaptureFixture[str]):
    """The same object in other white space, or with its keys in another order, is the right ticket."""
    said = {"alone": "Sure!", "written": '{"b": "2", "a": "1"}', "prompt": '{"a":"1","b":"3"}'}
    evaluation = Evaluation(
        title="",
        columns=COLUMNS,
        items=[Item((Example(instruction="message", output='{"a":"1","b":"2"}'),))],
        labels=(),
        outcomes={name: [Outcome(0.0, 1, 0, answer=answer)] for name, answer in said.items()},
        metrics=(),
        costs={name: Cost(0, 0.0) for name in COLUMNS},
        unrelated=None,
        facts=(),
    )
    demo.show(evaluation, Console(width=200))
    printed = capsys.readouterr().out
    for mark, title in zip("✗✓✗", TITLES, strict=True):
        assert f"{mark} {title}: " in printed
