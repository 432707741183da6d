"""What docs/engines.md says of other engines is what was measured; an answer is judged by its tokens."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from engine_servers import Reply, reply
from engines import ALONE, QUESTIONS, TICKETS, Asked, Judge, by_system, by_text, by_variable, is_right

ROOT = Path(__file__).parents[2]
TASKS = (TICKETS, QUESTIONS, ALONE)


@pytest.fixture(scope="module")
def result() -> dict[str, Any]:
    found: dict[str, Any] = json.loads((ROOT / "benchmarks/results/engines.json").read_text(encoding="utf-8"))
    return found


@pytest.fixture(scope="module")
def text() -> str:
    return (ROOT / "docs/engines.md").read_text(encoding="utf-8")


def same(judged: dict[str, Any]) -> str:
    return " | ".join(f"{judged[one]['same']} of {judged[one]['asked']}" if one in judged else "" for one in TASKS)


def test_quoted_equality_is_the_measured_one(result: dict[str, Any], text: str):
    vllm, llama = result["vllm"], result["llama_cpp"]
    rows = [vllm[way] for way in ("system_message", "chat_template_kwargs", "completions", "dtype_auto")]
    for judged in [*rows, llama["f32"], llama["f32_as_it_comes"]]:
        assert f" | {same(judged)} |" in text
    every = [*rows, *(one for one in llama.values() if isinstance(one, dict) and "tokens" in one)]
    assert sum(one["virtual_tokens"] for one in every) == 0
    assert f"0 of {sum(one['tokens'] for one in every):,}" in text
    assert vllm["unknown_prompt"]["message"] in text
    assert vllm["alone_as_untouched_in_vllm"] == 50


def test_quoted_quantizations_are_the_measured_ones(result: dict[str, Any], text: str):
    llama = result["llama_cpp"]
    for name in ("f32_as_it_comes", "F16", "Q8_0", "Q8_0_embeddings_f16", "Q4_K_M", "Q4_K_M_embeddings_f16"):
        one = llama[name]
        right = " | ".join(str(one[task]["right"]) for task in (TICKETS, QUESTIONS))
        equal = " | ".join(str(one[task]["same"]) for task in TASKS)
        assert f" | {one['bytes'] / 1e6:.0f} MB | {equal} | {right} |" in text, name


def test_answers_are_judged_by_their_tokens():
    class Far:
        def at_first_difference(self, _asked: Asked, ids: list[int]) -> dict[str, Any]:
            return {"engine": ids[0]}

    asked = [Asked(TICKETS, "a", '{"a": 1}', TICKETS, [5, 6]), Asked(QUESTIONS, "b", "entity", QUESTIONS, [7])]
    words = {(5, 6): '{"a":1}', (7,): "entity"}
    judge = Judge(asked, range(90, 99), Far(), lambda ids: words[tuple(ids)])  # type: ignore[arg-type]
    found = judge.judged({0: Reply('{"a":1}', [5, 6]), 1: Reply("human", [91])})
    assert (found[TICKETS]["same"], found[TICKETS]["right"], found[TICKETS]["different"]) == (1, 1, [])
    assert (found[QUESTIONS]["same"], found[QUESTIONS]["right"], found[QUESTIONS]["ptune_right"]) == (0, 0, 1)
    assert found[QUESTIONS]["different"] == [{"row": 1, "engine": 91}]
    assert (found["tokens"], found["virtual_tokens"]) == (3, 1)
    assert not is_right(asked[0], "no JSON")


def test_a_prompt_is_asked_for_in_three_ways():
    asked = Asked(TICKETS, "a", "", TICKETS, [])
    assert by_system(asked).body["messages"][0] == {"role": "system", "content": "ptune:tickets"}
    assert by_variable(asked).body["extra_body"] == {"chat_template_kwargs": {"soft_prompt": "tickets"}}
    assert len(by_variable(asked).body["messages"]) == 1
    assert by_text(asked, {TICKETS: {"before": "<", "after": ">"}}).body["prompt"] == "<a>"
    assert len(by_system(Asked(ALONE, "a", "", TICKETS, [])).body["messages"]) == 1


def test_both_servers_tell_token_ids():
    vllm = {"choices": [{"message": {"content": "x"}, "token_ids": [1, 2]}]}
    llama = {"choices": [{"message": {"content": "x"}, "logprobs": {"content": [{"id": 1}, {"id": 2}]}}]}
    assert reply(vllm, {2}) == reply(llama, {2}) == Reply("x", [1])
