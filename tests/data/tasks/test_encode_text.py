"""Texts, pairs and texts to write as tokens, beside what the tokenizer itself gives."""

from __future__ import annotations

from typing import Any

import pytest

from ptune.choices import CLASSIFY, QA, SEQ2SEQ, TAG
from ptune.data.tasks.encode import encode_task
from ptune.data.tasks.task_example import TaskExample
from ptune.data.tasks.task_templates import task_template
from ptune.errors import ConfigError, DataError, ModelError

LABELS = ("neg", "pos")
TEXTS = ["it was great .", "the lamp is broken and nobody answers the phone", "Peter wrote from Brussels"]


def examples(*, pairs: bool = False) -> list[TaskExample]:
    return [
        TaskExample(
            text=text, second=TEXTS[at - 1] if pairs and at != 1 else None, label=LABELS[at % 2], source=f"f:{at}"
        )
        for at, text in enumerate(TEXTS)
    ]


def columns(made: Any) -> list[dict[str, Any]]:
    return made.dataset.to_list()


@pytest.mark.parametrize("pairs", [False, True])
@pytest.mark.parametrize("max_length", [64, 6])
def test_as_the_tokenizer_has_it(tokenizer: Any, pairs: bool, max_length: int):
    rows = examples(pairs=pairs)
    made = encode_task(rows, tokenizer, CLASSIFY, labels=LABELS, max_length=max_length)
    cut = 0
    for row, one in zip(columns(made), rows, strict=True):
        # Words of two texts are not glued together where no special token stands between them.
        second = f"\n{one.second}" if one.second and tokenizer.cls_token is tokenizer.pad_token is None else one.second
        whole = tokenizer(one.text, second)
        expected = tokenizer(one.text, second, truncation="longest_first", max_length=max_length)
        assert {name: value for name, value in row.items() if name != "labels"} == dict(expected)
        assert LABELS[row["labels"]] == one.label
        cut += len(whole["input_ids"]) > max_length
    assert made.report.truncated == cut
    assert (cut > 0) == (max_length == 6)
    assert (made.report.rows, made.report.rows_read, made.rows) == (3, 3, (0, 1, 2))
    assert made.report.tokens == sum(len(row["input_ids"]) for row in columns(made))
    assert made.report.longest == max(len(row["input_ids"]) for row in columns(made))
    assert made.labels == LABELS


def test_token_types_where_the_tokenizer_makes_them(bert: Any, roberta: Any):
    made = encode_task(examples(pairs=True), bert, CLASSIFY, labels=LABELS)
    assert {1} < {one for row in columns(made) for one in row["token_type_ids"]}
    assert "token_type_ids" not in encode_task(examples(), roberta, CLASSIFY, labels=LABELS).dataset.column_names


def test_many_rows(bert: Any):
    rows = [TaskExample(text=f"it was great {'! ' * (at % 7)}", label=LABELS[at % 3 == 0]) for at in range(2005)]
    made = encode_task(rows, bert, CLASSIFY, labels=LABELS)
    assert made.rows == tuple(range(2005))
    for at in (0, 999, 1000, 2004):
        assert made.dataset[at]["input_ids"] == bert(rows[at].text)["input_ids"]
        assert LABELS[made.dataset[at]["labels"]] == rows[at].label


def test_without_labels(bert: Any):
    made = encode_task([TaskExample(text="it")], bert, CLASSIFY)
    assert made.dataset.column_names == ["input_ids", "token_type_ids", "attention_mask"]


def test_rows_without_a_token_are_dropped_and_told(gpt2: Any, bert: Any):
    rows = [TaskExample(text="", label="pos", source="f:1"), *examples()]
    for tokenizer in (gpt2, bert):
        made = encode_task(rows, tokenizer, CLASSIFY, labels=LABELS)
        assert made.rows == (1, 2, 3)
        assert (made.report.without_tokens, made.report.dropped) == (1, ["f:1"])
        assert "dropped 1 rows whose text has no token (f:1)" in made.report.lines()
        assert made.report.lines()[0].startswith("tokenized 3 rows: ")
        with pytest.raises(DataError, match=r"no row of 1 has a token \(first row: f:1\). Check the texts"):
            encode_task(rows[:1], tokenizer, CLASSIFY, labels=LABELS)


def test_a_template_writes_the_text(bert: Any, gpt2: Any):
    rows = examples(pairs=True)[:1]
    made = encode_task(rows, bert, CLASSIFY, labels=LABELS, template="{prompt:3}Is {text} like {text2} ?")
    (row,) = columns(made)
    assert row["input_ids"] == bert(f"Is {rows[0].text} like {rows[0].second} ?")["input_ids"]
    assert row["token_type_ids"] == [0] * len(row["input_ids"])
    assert [str(block) for block in made.template.blocks] == ["{prompt:3}"]
    made = encode_task(rows, gpt2, CLASSIFY, labels=LABELS, template="{text}{prompt:2:a} like{prompt:1}{text2}")
    pieces = [gpt2(text)["input_ids"] for text in (rows[0].text, " like", rows[0].second)]
    assert columns(made)[0]["input_ids"] == [*pieces[0], -1, -2, *pieces[1], -3, *pieces[2]]


def test_what_a_template_does_not_fit_is_cut_from_the_longer_text(bert: Any):
    one = TaskExample(text="it was great great great great", second="it was great great", label="pos", source="f:1")
    template = "about {text}{prompt:2} and {text2} ."
    whole = columns(encode_task([one], bert, CLASSIFY, labels=LABELS, template=template))[0]["input_ids"]
    made = encode_task([one], bert, CLASSIFY, labels=LABELS, template=template, max_length=len(whole) - 2 - 4)
    shorter = TaskExample(text="it was great", second="it was great", label="pos")
    assert columns(made) == columns(encode_task([shorter], bert, CLASSIFY, labels=LABELS, template=template))
    assert made.report.truncated == 1
    assert len(columns(made)[0]["input_ids"]) == made.report.max_length + 2  # the virtual tokens are not counted
    with pytest.raises(ConfigError, match=r"f:1: no token of the text fits into max_length 4: .* alone has \d+. Raise"):
        encode_task([one], bert, CLASSIFY, labels=LABELS, template=template, max_length=4)


@pytest.mark.parametrize(
    ("template", "complaint"),
    [
        ("{txt}", r"unknown placeholder in the template '{txt}' \(task classify\): '{txt}'. Did you mean '{text}'\?"),
        ("{text} {mask}", r"unknown placeholder .*: '{mask}'"),
        ("{prompt:3}", "has no place for the text. Put {text} in it"),
        ("{text}{text}", r"has {text} 2 times"),
        ("{text}{prompt:x}", "which is no place for virtual tokens"),
        ("{text}", r"f:0: there is a text \('Peter .*'\), but the template '{text}' has no {text2}. Put {text2} in"),
    ],
)
def test_templates_that_cannot_be_used(bert: Any, template: str, complaint: str):
    with pytest.raises(ConfigError, match=complaint):
        encode_task(examples(pairs=True), bert, CLASSIFY, labels=LABELS, template=template)


def test_a_template_is_stored_with_its_number():
    made = task_template("{text}{prompt} {{text}}", CLASSIFY, virtual_tokens=4)
    assert made.text == "{text}{prompt:4} {{text}}"
    assert task_template(made.text, CLASSIFY) == made
    assert made.fingerprint != task_template("{text}{prompt:5} {{text}}", CLASSIFY).fingerprint
    with pytest.raises(ConfigError, match=r"the task tag takes no template \('{text}'\)"):
        task_template("{text}", TAG)


def test_texts_to_write(t5: Any, roberta: Any, gpt2: Any):
    rows = [TaskExample(text="the lamp", second="is broken", target="it was great"), TaskExample(text="a", target="b")]
    for tokenizer in (t5, roberta):
        made = columns(encode_task(rows, tokenizer, SEQ2SEQ))
        assert [row["input_ids"] for row in made] == [
            tokenizer(text)["input_ids"] for text in ("the lamp\nis broken", "a")
        ]
        assert [row["labels"] for row in made] == [tokenizer(text_target=one.target)["input_ids"] for one in rows]
        assert all(row["labels"][-1] == tokenizer.eos_token_id for row in made)
    made = columns(encode_task(rows, gpt2, SEQ2SEQ))  # which does not put an end token behind a text itself
    assert [row["labels"] for row in made] == [[*gpt2(one.target)["input_ids"], gpt2.eos_token_id] for one in rows]
    made = columns(encode_task(rows[:1], t5, SEQ2SEQ, template="{prompt:2}translate {text} : {text2}"))
    assert made[0]["input_ids"] == t5("translate the lamp : is broken")["input_ids"]


def test_long_texts_to_write_lose_their_end(t5: Any):
    rows = [TaskExample(text="a", target="it was great great great"), TaskExample(text="it " * 50, target="b")]
    made = encode_task(rows, t5, SEQ2SEQ, target_length=5, max_length=20)
    assert columns(made)[0]["labels"] == t5(rows[0].target)["input_ids"][:5]
    assert columns(made)[1]["input_ids"] == t5(rows[1].text, truncation=True, max_length=20)["input_ids"]
    assert (made.report.targets_cut, made.report.truncated) == (1, 1)
    assert "cut 1 texts to write at target_length 5; their end token is not learned" in made.report.lines()
    assert "labels" not in encode_task([TaskExample(text="a")], t5, SEQ2SEQ).dataset.column_names


def test_bad_arguments(bert: Any, gpt2: Any):
    rows = examples()
    with pytest.raises(DataError, match="there are no examples to tokenize"):
        encode_task([], bert, CLASSIFY, labels=LABELS)
    with pytest.raises(ConfigError, match="the task classify needs the labels"):
        encode_task(rows, bert, CLASSIFY)
    with pytest.raises(DataError, match=r"f:0: the label 'neg' is not among .* Known: positive, negatve"):
        encode_task(rows, bert, CLASSIFY, labels=("positive", "negatve"))
    with pytest.raises(DataError, match=r"1 of 4 rows do not say what is right \(first: f:9\). Leave them out"):
        encode_task([*rows, TaskExample(text="a", source="f:9")], bert, CLASSIFY, labels=LABELS)
    with pytest.raises(ConfigError, match="max_length must be at least 1, not 0"):
        encode_task(rows, bert, CLASSIFY, labels=LABELS, max_length=0)
    with pytest.raises(ConfigError, match="max_length 2 has no room for text beside 2 special tokens"):
        encode_task(rows, bert, CLASSIFY, labels=LABELS, max_length=2)
    with pytest.raises(ConfigError, match="target_length must be at least 1, not -1"):
        encode_task(rows, bert, CLASSIFY, labels=LABELS, target_length=-1)
    with pytest.raises(
        ConfigError, match=r"the task classify takes no verbalizer. Leave it out, or take the task fill"
    ):
        encode_task(rows, bert, CLASSIFY, labels=LABELS, verbalizer={"neg": "bad"})
    with pytest.raises(ConfigError, match="the task qa takes no template"):
        encode_task([TaskExample(impossible=True)], bert, QA, template="{text}")
    with pytest.raises(ConfigError, match="unknown task 'lm'"):
        encode_task(rows, bert, "lm")
    with pytest.raises(ModelError, match="no end-of-sequence token"):
        encode_task([TaskExample(text="a", target="b")], bert, SEQ2SEQ)
