"""`benchmarks/few_shot.py` on small data: what is chosen, how it is scored, and that what was measured is kept."""

from __future__ import annotations

import argparse
import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console
from transformers import AutoTokenizer, LlamaForCausalLM

import few_shot
from ptune.data.template import template_blocks

BLOCK = re.compile(r"\{prompt:\d+\}")


@pytest.fixture
def options(tmp_path: Path, tiny_model_dir: Path) -> argparse.Namespace:
    """COPA, whose answers are sentences, and CB, which has three labels."""
    data = tmp_path / "data"
    causes: list[dict[str, Any]] = [
        {
            "premise": f"It is {at}.",
            "choice1": "I am late.",
            "choice2": "The lamp is on.",
            "question": ("cause", "effect")[at % 2],
            "label": at % 2,
        }
        for at in range(10)
    ]
    pairs = [
        {
            "premise": f"so it is {at}",
            "hypothesis": "It is.",
            "label": ("entailment", "neutral", "contradiction")[at % 3],
        }
        for at in range(10)
    ]
    for name, rows in (("COPA", causes), ("CB", pairs)):
        (data / name).mkdir(parents=True)
        for part in ("train", "val"):
            (data / name / f"{part}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return argparse.Namespace(
        model=str(tiny_model_dir), data=str(data), tasks="COPA,CB", seeds=2, steps=2, held_out=7, threads=1,
        work=str(tmp_path / "work"), output=tmp_path / "result.json",
    )  # fmt: skip


@pytest.mark.parametrize("name", few_shot.TASKS)
def test_both_places_have_the_same_words_and_as_many_virtual_tokens(name: str):
    task = few_shot.TASKS[name]
    assert BLOCK.sub("", task.front) == BLOCK.sub("", task.around)
    front, around = template_blocks(task.front), template_blocks(task.around)
    assert [block.leads for block in front] == [True]
    assert [block.leads for block in around] == [True, False, False]
    assert sum(len(block.ids) for block in front) == sum(len(block.ids) for block in around) == 10


def test_sentences_become_second_halves():
    asked = {"premise": "The sky is dark. ", "choice1": "I left.", "choice2": "The sun set.", "question": "cause"}
    task = few_shot.TASKS["COPA"]
    assert task.fields(asked) == ("The sky is dark", "because")
    assert task.answers(asked) == [" I left", " the sun set"]
    assert few_shot.TASKS["CB"].answers({}) == [" yes", " no", " maybe"]


def by_hand(right: str, chosen: str) -> dict[str, float]:
    pairs = list(zip(right, chosen, strict=True))
    f1 = []
    for one in sorted(set(right) | set(chosen)):
        hits = sum(pair == (one, one) for pair in pairs)
        f1.append(2 * hits / sum((a == one) + (b == one) for a, b in pairs))
    return {"accuracy": sum(a == b for a, b in pairs) / len(pairs), "macro_f1": sum(f1) / len(f1)}


def test_everything_is_measured_and_kept(options: argparse.Namespace, monkeypatch: pytest.MonkeyPatch):
    result = few_shot.measure(options, Console(quiet=True))
    assert result["status"] == "ok"
    assert [(one["task"], one["rows"]) for one in result["compared"]] == [("COPA", 7), ("CB", 7)]
    for one in result["compared"]:
        for place in (few_shot.FRONT, few_shot.AROUND):
            for seed in range(2):
                run = result["runs"][f"{one['task']}/{place}-2-steps-rows-7-seed-{seed}"]
                for name, score in by_hand(one["right"], run["chosen"]).items():
                    assert one["scores"][place][name][seed] == pytest.approx(score)
        alone = by_hand(one["right"], result["runs"][f"{one['task']}/alone-rows-7"]["chosen"])
        assert one["scores"]["alone"]["accuracy"] == [pytest.approx(alone["accuracy"])]
        gap = one["differences"]["around less in front"]["accuracy"]
        means = {place: sum(one["scores"][place]["accuracy"]) / 2 for place in (few_shot.FRONT, few_shot.AROUND)}
        assert gap["value"] == pytest.approx(means[few_shot.AROUND] - means[few_shot.FRONT])
        assert gap["low"] <= gap["value"] <= gap["high"]
    losses = {run["train_loss"] for run in result["runs"].values() if "train_loss" in run}
    assert len(losses) == 8  # each run trained something of its own
    assert json.loads(options.output.read_text())["compared"] == json.loads(json.dumps(result["compared"]))
    monkeypatch.setattr(few_shot, "train", None)
    monkeypatch.setattr(few_shot, "load_model", None)
    again = few_shot.measure(options, Console(quiet=True))
    assert (again["compared"], again["runs"]) == (result["compared"], result["runs"])
    few_shot.report(again, Console(quiet=True))


def test_what_is_chosen_is_the_likeliest_by_the_models_own_forward(options: argparse.Namespace):
    tokenizer = AutoTokenizer.from_pretrained(options.model)
    model = LlamaForCausalLM.from_pretrained(options.model)
    lab = few_shot.Lab(options, "COPA", tokenizer, {})
    wanted = ""
    for row in lab.rows:
        given = tokenizer(f"{row.instruction} {row.input}")["input_ids"]
        sums = []
        for answer in row.answers:
            said = tokenizer(answer)["input_ids"]
            with torch.no_grad():
                logits = model(torch.tensor([given + said])).logits[0].log_softmax(-1)
            sums.append(float(sum(logits[len(given) - 1 + at, token] for at, token in enumerate(said))))
        wanted += str(sums.index(max(sums)))
    assert lab.alone()["chosen"] == wanted


def test_long_texts_are_cut(options: argparse.Namespace, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(few_shot, "LONGEST_TEXT", 3)
    tokenizer = AutoTokenizer.from_pretrained(options.model)
    lab = few_shot.Lab(options, "CB", tokenizer, {})
    assert {len(tokenizer(row.instruction)["input_ids"]) for row in lab.rows} == {3}
    assert all("so it is".startswith(row.instruction) for row in lab.rows)


def test_the_interval_of_a_difference_is_that_of_paired_rows(options: argparse.Namespace):
    lab = few_shot.Lab(options, "CB", AutoTokenizer.from_pretrained(options.model), {})
    right = "".join(str(row.right) for row in lab.rows)
    wrong = "".join(str((row.right + 1) % 3) for row in lab.rows)
    all_right, all_wrong = (lab.counts(chosen)["accuracy"] for chosen in (right, wrong))
    assert few_shot.difference([all_wrong, all_wrong], [all_right, all_right]) == {"value": 1, "low": 1, "high": 1}
    # Two seeds that are right in other rows: the mean over them is one half in every row, whatever is drawn.
    half = [lab.counts(one)["accuracy"] for one in (right[:3] + wrong[3:], wrong[:3] + right[3:])]
    assert few_shot.difference(half, [all_right, all_right]) == pytest.approx({"value": 0.5, "low": 0.5, "high": 0.5})
