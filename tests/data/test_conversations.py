"""Conversations as people write them: roles, parts, tool calls, and what says that a turn is learned."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from ptune.data.example import Example, answers, learned_turns
from ptune.data.records import Examples, load_examples
from ptune.errors import DataError

CALL = {"id": "1", "type": "function", "function": {"name": "add", "arguments": {"a": 1}}}


def load(folder: Path, *rows: Any, column: str = "messages", **options: Any) -> Examples:
    """Rows of conversations; a list is the conversation alone."""
    path = folder / "chat.jsonl"
    made = [row if isinstance(row, dict) else {column: row} for row in rows]
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in made), encoding="utf-8")
    return load_examples(path, **options)


def talk(*turns: tuple[str, Any] | tuple[str, Any, dict[str, Any]]) -> list[dict[str, Any]]:
    return [{"role": turn[0], "content": turn[1], **(turn[2] if len(turn) > 2 else {})} for turn in turns]


def share_gpt(*turns: tuple[str, str]) -> list[dict[str, str]]:
    return [{"from": role, "value": content} for role, content in turns]


@pytest.mark.parametrize("column", ["messages", "conversations", "conversation"])
@pytest.mark.parametrize(
    "messages",
    [
        talk(("system", "s"), ("user", "q1"), ("assistant", "a1"), ("user", "q2"), ("assistant", "a2")),
        talk(("developer", "s"), ("human", "q1"), ("bot", "a1"), ("user", "q2"), ("model", "a2")),
        share_gpt(("system", "s"), ("human", "q1"), ("gpt", "a1"), ("human", "q2"), ("gpt", "a2")),
        share_gpt(("System", "s"), (" Human", "q1"), ("GPT", "a1"), ("user", "q2"), ("chatgpt", "a2")),
    ],
)
def test_spellings_of_roles(tmp_path: Path, column: str, messages: list[dict[str, str]]):
    example = load(tmp_path, messages, column=column)[0]
    assert (example.instruction, example.output, example.system) == ("q2", "a2", "s")
    assert example.history == (("user", "q1"), ("assistant", "a1"))


@pytest.mark.parametrize("role", ["tool", "function", "observation", "ipython", "function_response"])
def test_what_a_tool_gives_stands_between_question_and_answer(tmp_path: Path, role: str):
    call = {"tool_calls": [{**CALL, "function": {"name": "add", "arguments": '{"a": 1}'}}]}
    given = talk(("user", "q"), ("assistant", None, call), (role, "1", {"tool_call_id": "1"}), ("assistant", "a"))
    example = load(tmp_path, given)[0]
    assert (example.instruction, example.output) == ("q", "a")
    assert example.steps == (("assistant", ""), ("tool", "1"))
    assert [(turn, json.loads(extras)) for turn, extras in example.extras] == [
        (1, {"tool_calls": [CALL]}),
        (2, {"tool_call_id": "1"}),
    ]
    assert (answers(example), learned_turns(example, "all-turns"), learned_turns(example, "last")) == (
        [1, 3],
        [1, 3],
        [3],
    )


@pytest.mark.parametrize(
    "message",
    [
        {"role": "assistant", "tool_calls": [CALL]},
        {"role": "assistant", "content": None, "function_call": {"name": "add", "arguments": '{"a": 1}'}},
        {"from": "function_call", "value": '{"name": "add", "arguments": {"a": 1}}'},
        {"from": "function_call", "value": '[{"name": "add", "arguments": {"a": 1}}]'},
    ],
)
def test_a_tool_call_can_be_the_answer(tmp_path: Path, message: dict[str, Any]):
    example = load(tmp_path, [{"role": "user", "content": "q"}, message])[0]
    assert (example.instruction, example.output) == ("q", "")
    ((turn, extras),) = example.extras
    assert turn == 1
    assert json.loads(extras)["tool_calls"][0]["function"] == {"name": "add", "arguments": {"a": 1}}


def test_the_text_of_parts_is_joined(tmp_path: Path):
    parts = [{"type": "text", "text": "one "}, {"type": "input_text", "text": "two"}, " three", {"text": " 4"}]
    example = load(tmp_path, talk(("user", parts), ("assistant", [{"type": "text", "text": "a"}])))[0]
    assert (example.instruction, example.output) == ("one two three 4", "a")


@pytest.mark.parametrize("kind", ["image_url", "image", "input_audio", None])
def test_a_part_that_is_no_text_is_refused_by_name(tmp_path: Path, kind: str | None):
    parts = [{"type": "text", "text": "look"}, {"type": kind, "url": "x"}]
    with pytest.raises(
        DataError, match=rf"jsonl:1: part 2 of the content of message 1 \(user\) is of the type {kind!r}"
    ):
        load(tmp_path, talk(("user", parts), ("assistant", "a")))


def test_what_stands_after_the_last_answer_is_left_out_and_counted(tmp_path: Path):
    examples = load(
        tmp_path,
        talk(("user", "q"), ("assistant", "a"), ("user", "thanks")),
        talk(("user", "r"), ("assistant", "b"), ("user", "x"), ("assistant", " ")),
        talk(("user", "s"), ("assistant", "c"), ("user", "x"), ("tool", "y")),
        talk(("user", "no answer")),
        talk(("user", "nor here"), ("assistant", "")),
        talk(("assistant", "nobody asked")),
        talk(("user", "t"), ("assistant", "d")),
    )
    assert [(one.instruction, one.output) for one in examples] == [("q", "a"), ("r", "b"), ("s", "c"), ("t", "d")]
    report = examples.report
    assert (report.cut_conversations, report.empty_answers, report.empty_questions) == (3, 2, 1)
    assert "left out what stands after the last answer of 3 conversations" in report.lines()


def test_a_last_question_stays_where_no_answer_is_needed(tmp_path: Path):
    examples = load(tmp_path, talk(("user", "q"), ("assistant", "a"), ("user", "r")), require_output=False)
    assert (examples[0].instruction, examples[0].output, examples.report.cut_conversations) == ("r", "", 0)


def test_an_assistant_that_speaks_first_has_answered_nothing(tmp_path: Path):
    example = load(tmp_path, talk(("assistant", "hello"), ("user", "q"), ("assistant", "a")))[0]
    assert example.history == (("assistant", "hello"),)
    assert answers(example) == [2]


def test_messages_say_whether_they_are_learned(tmp_path: Path):
    yes, no = {"train": True}, {"train": False}
    turns = [("user", "q1"), ("assistant", "a1", yes), ("user", "q2", no), ("assistant", "a2"), ("user", "q3")]
    marked = load(tmp_path, talk(*turns, ("assistant", "a3", no)))[0]
    assert marked.train == ((1, True), (5, False))
    assert learned_turns(marked, "last") == [1]
    assert learned_turns(marked, "all-turns") == [1, 3]
    weighted = load(
        tmp_path,
        talk(*turns[:1], ("assistant", "a1", {"weight": 1}), ("user", "q"), ("assistant", "a", {"weight": 0.0})),
    )[0]
    assert (learned_turns(weighted, "last"), learned_turns(weighted, "all-turns")) == ([1], [1])
    none = {"train": None, "weight": None}
    unsaid = load(tmp_path, talk(*turns[:1], ("assistant", "a1", none), ("user", "q"), ("assistant", "a", none)))[0]
    assert unsaid.train == ()


def test_what_a_message_has_beside_its_text_is_no_answer(tmp_path: Path):
    named = {"name": "Ann", "reasoning_content": "hm"}
    examples = load(
        tmp_path,
        talk(("user", "q", named), ("assistant", "", named)),
        talk(("user", "q"), ("assistant", " ", named), ("user", "r"), ("assistant", "a")),
    )
    assert (len(examples), examples.report.empty_answers) == (1, 1)
    assert learned_turns(examples[0], "all-turns") == [3]


def test_empty_answers_inside_are_not_learned(tmp_path: Path):
    example = load(tmp_path, talk(("user", "q"), ("assistant", " "), ("user", "r"), ("assistant", "a")))[0]
    assert learned_turns(example, "all-turns") == [3]


def test_history_is_turns_to_learn_too():
    example = Example(instruction="q2", output="a2", history=(("user", "q1"), ("assistant", "a1")))
    assert (learned_turns(example, "last"), learned_turns(example, "all-turns")) == ([3], [1, 3])
    assert learned_turns(Example(instruction="q", output="a"), "all-turns") == [1]


def test_a_system_column_stands_for_the_message(tmp_path: Path):
    talked = talk(("user", "q"), ("assistant", "a"))
    assert load(tmp_path, {"messages": talked, "system": "s"})[0].system == "s"
    both = {"messages": talk(("system", "s"), ("user", "q"), ("assistant", "a")), "system": "s"}
    assert load(tmp_path, both)[0].system == "s"
    with pytest.raises(DataError, match=r"two system messages, 'other' and 's'"):
        load(tmp_path, {**both, "system": "other"})


def test_keys_of_messages_that_nothing_reads_are_reported(tmp_path: Path):
    rows = [talk(("user", "q", {"id": n}), ("assistant", f"a{n}", {"id": n, "model": None})) for n in range(3)]
    assert load(tmp_path, *rows).report.unused_columns == {"messages.id": 3}


def test_rows_that_differ_in_what_is_learned_are_no_repetition(tmp_path: Path):
    rows = [talk(("user", "q"), ("assistant", "a", {"train": said})) for said in (True, False, True)]
    assert len(load(tmp_path, *rows)) == 2


def test_numbers_in_messages_are_text(tmp_path: Path):
    examples = load(tmp_path, talk(("user", 5), ("assistant", 2.5)))
    assert (examples[0].instruction, examples[0].output, examples.report.converted) == ("5", "2.5", {"messages": 2})
