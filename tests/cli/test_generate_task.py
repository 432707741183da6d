"""`ptune generate` with prompts for tasks: what it prints, and flags that have no use there."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from commands import Ran, run
from ptune.choices import CLASSIFY, FILL, QA, SEQ2SEQ, TAG
from ptune.data.tasks.task_example import TaskExample
from ptune.task_answering import TaskAnswerer
from small_tasks import prompt_folder

CONTEXT = "Peter Blackburn wrote from Brussels on 22 August 1996 ."


def generated(folder: Path, *words: object, stdin: str = "") -> Ran:
    done = run("generate", folder, *words, stdin=stdin)
    assert done.code == 0, done.err
    return done


def test_a_label_and_how_likely_each_is(task_folders: dict[str, Path]):
    (one,) = TaskAnswerer.open(task_folders[CLASSIFY]).predictions([TaskExample(text="it was great")])
    assert generated(task_folders[CLASSIFY], "it was great").out == f"{one.label}\n"
    found = json.loads(generated(task_folders[CLASSIFY], "-", "--json", stdin="it was great\n").out)
    assert found["tuned"]["probabilities"] == pytest.approx(dict(one.probabilities))
    assert (found["text"], found["task"], found["tuned"]["label"]) == ("it was great", "classify", one.label)


def test_the_input_is_the_second_text_of_a_pair(task_folders: dict[str, Path]):
    pair = TaskExample(text="it was great", second="where is my order ?")
    (one,) = TaskAnswerer.open(task_folders[CLASSIFY]).predictions([pair])
    found = json.loads(generated(task_folders[CLASSIFY], pair.text, "--input", pair.second, "--json").out)
    assert found["tuned"]["probabilities"] == pytest.approx(dict(one.probabilities))


def test_a_tag_a_line(task_folders: dict[str, Path], task_bases: dict[str, Path], tmp_path: Path):
    words = "Peter wrote from Brussels"
    (one,) = TaskAnswerer.open(task_folders[TAG]).predictions([TaskExample(words=tuple(words.split()))])
    lines = generated(task_folders[TAG], words).out.splitlines()
    assert [line.split("\t") for line in lines] == [
        [word, tag] for word, tag in zip(words.split(), one.tags, strict=True)
    ]
    assert json.loads(generated(task_folders[TAG], words, "--json").out)["words"] == words.split()
    short = prompt_folder(tmp_path / "short", task_bases[TAG], TAG, recipe={"max_length": 4})
    done = generated(short, "it was great again")
    assert done.out.endswith("\t\n")
    assert "2 of the words were cut off, or have no token" in done.err


def test_an_answer_in_a_context_or_none(task_folders: dict[str, Path]):
    words = ("who wrote", "--input", CONTEXT)
    answer = generated(task_folders[QA], *words).out.strip()
    assert answer
    assert answer in CONTEXT
    found = json.loads(generated(task_folders[QA], *words, "--json").out)["tuned"]
    assert found["answer"] == answer == found["candidates"][0]["text"]
    assert generated(task_folders[QA], *words, "--null-threshold", -1000).out == "\n"


def test_texts_and_gaps_beside_the_frozen_model_alone(task_folders: dict[str, Path]):
    answerer = TaskAnswerer.open(task_folders[SEQ2SEQ])
    both = [answerer.predictions([TaskExample(text="it was")], with_prompt=one)[0].text for one in (True, False)]
    tuned, base = generated(task_folders[SEQ2SEQ], "it was", "--compare").out.splitlines()
    assert [tuned, base] == [f"tuned: {both[0]}".rstrip("\n"), f"base: {both[1]}"]
    assert generated(task_folders[SEQ2SEQ], "it was", "--no-prompt").out == f"{both[1]}\n"
    drawn = [
        generated(task_folders[SEQ2SEQ], "it was", "--temperature", 40, "--seed", seed, "--max-new-tokens", 4).out
        for seed in (1, 1, 2, 3, 4)
    ]
    assert drawn[0] == drawn[1]
    assert len(set(drawn)) > 1
    found = json.loads(generated(task_folders[FILL], "it was", "--compare", "--json").out)
    assert found["tuned"]["probabilities"] != found["base"]["probabilities"]
    assert set(found["base"]["probabilities"]) == {"bad", "good"}


@pytest.mark.parametrize(
    ("task", "words", "parts"),
    [
        (CLASSIFY, ("--no-prompt",), ("--no-prompt has no use", "classify: the frozen model's head is untrained")),
        (TAG, ("--compare",), ("--compare has no use", "Leave --compare out")),
        (QA, ("--input", CONTEXT, "--compare"), ("--compare has no use", "task qa")),
        (QA, (), ("there is no context to find the answer in", "--input")),
        (FILL, ("--temperature", 1), ("--temperature has no use", "it writes no text")),
        (CLASSIFY, ("--max-new-tokens", 4), ("--max-new-tokens has no use",)),
        (SEQ2SEQ, ("--system", "x"), ("--system has no use", "no system message")),
        (TAG, ("--input", "x"), ("--input has no use", "the words of one text")),
        (FILL, ("--null-threshold", 1), ("--null-threshold has no use", "marks no answer")),
        (TAG, ("--template", "{text}"), ("the task tag takes no template",)),
        (CLASSIFY, ("--template", "{words}"), ("unknown placeholder", "{words}")),
    ],
)
def test_flags_of_other_prompts_are_refused(
    task_folders: dict[str, Path], task: str, words: tuple[object, ...], parts: tuple[str, ...]
):
    done = run("generate", task_folders[task], "it was great", *words)
    assert (done.code, done.out, done.err.count("\n")) == (2, "", 1)
    for part in parts:
        assert part in done.err


def test_prompts_that_answer_texts_have_no_threshold(prompt_dir: Path):
    done = run("generate", prompt_dir, "a", "--null-threshold", 1)
    assert "--null-threshold is for prompts that mark answers in a context" in done.err


@pytest.mark.parametrize("task", [CLASSIFY, SEQ2SEQ])
@pytest.mark.parametrize("command", ["chat", "serve"])
def test_commands_for_texts_say_what_takes_the_prompt(task_folders: dict[str, Path], command: str, task: str):
    words = [task_folders[task]] if command == "chat" else ["--prompts", task_folders[task]]
    done = run(command, *words)
    kind = "SEQ_CLS" if task == CLASSIFY else "SEQ_2_SEQ_LM"
    assert (done.code, done.out, done.err.count("\n")) == (2, "", 1)
    assert f"holds a prompt for {kind}" in done.err
    assert "ptune generate and ptune evaluate take it" in done.err
