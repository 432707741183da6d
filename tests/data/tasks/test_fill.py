"""Gaps of masked models: the word's token stands in the labels at the gap, which is never cut off."""

from __future__ import annotations

import re
from typing import Any

import pytest

from ptune.choices import CLASSIFY, FILL
from ptune.data.tasks.encode import encode_task
from ptune.data.tasks.task_example import TaskExample
from ptune.errors import ConfigError, DataError, ModelError

LABELS = ("0", "1")
WORDS = {"0": "terrible", "1": "great"}
TEMPLATE = "{prompt:3}{text}{prompt:2} It was {mask} ."


def example(text: str = "the lamp", second: str | None = None, label: str = "1") -> TaskExample:
    return TaskExample(text=text, second=second, label=label, source="f:1")


def encode(tokenizer: Any, *examples: TaskExample, **options: Any) -> Any:
    return encode_task(
        examples or [example()],
        tokenizer,
        FILL,
        **{"labels": LABELS, "verbalizer": WORDS, "template": TEMPLATE} | options,
    )


@pytest.mark.parametrize("name", ["bert", "roberta"])
@pytest.mark.parametrize(
    "template",
    [
        "{text} it was {mask} .",
        "it was {mask} : {text}",
        "{mask} . {text}",
        "{text} {mask}",
        "{prompt:2}it was {mask} , {text}",
        "{text}{prompt:2} it was {mask} !",
        "{prompt:1}{text}{prompt:2}{mask}{prompt:1}",
    ],
)
def test_a_filled_gap_is_the_text_with_the_word(request: pytest.FixtureRequest, name: str, template: str):
    """Independent of the gap: a row with its word put in is, piece by piece, what the tokenizer makes of that text."""
    tokenizer = request.getfixturevalue(name)
    words = {"0": "it", "1": "the"}  # one token with a blank before it and without
    for label, word in words.items():
        made = encode(tokenizer, example(label=label), template=template, verbalizer=words)
        (row,) = made.dataset.to_list()
        (column,) = [at for at, one in enumerate(row["labels"]) if one != -100]
        assert row["input_ids"][column] == tokenizer.mask_token_id
        filled = [*row["input_ids"]]
        filled[column] = row["labels"][column]
        text = re.sub(r"^{prompt:\d}", "", template).replace("{text}", "the lamp").replace("{mask}", word)
        ids = [tokenizer(piece, add_special_tokens=False)["input_ids"] for piece in re.split(r"{prompt:\d}", text)]
        assert [one for one in filled if one >= 0][1:-1] == [one for piece in ids for one in piece]
        virtual = [one for one in filled if one < 0]
        lead = int(template[8]) if template.startswith("{prompt") else 0
        assert virtual == [-1 - lead - at for at in range(len(virtual))]
        assert made.verbalizer_ids[LABELS.index(label)] == row["labels"][column]


def test_the_ids_of_the_words_are_in_the_order_of_the_labels(bert: Any, roberta: Any):
    assert encode(bert).verbalizer_ids == tuple(bert.convert_tokens_to_ids(["terrible", "great"]))
    assert encode(roberta).verbalizer_ids == tuple(roberta.convert_tokens_to_ids(["Ġterrible", "Ġgreat"]))
    made = encode(bert, example(label="good"), labels=("good", "bad"), verbalizer=None)
    assert made.verbalizer_ids == tuple(bert.convert_tokens_to_ids(["good", "bad"]))


def test_virtual_tokens_special_tokens_and_types(bert: Any):
    made = encode(bert)
    (row,) = made.dataset.to_list()
    ids = row["input_ids"]
    assert ids[0] == bert.cls_token_id
    assert ids[-1] == bert.sep_token_id
    assert [one for one in ids if one < 0] == [-4, -5]  # the first three stand before the row
    assert bert.decode([one for one in ids if one >= 0]) == "[CLS] the lamp it was [MASK]. [SEP]"
    assert row["attention_mask"] == [1] * len(ids)
    assert row["token_type_ids"] == [0] * len(ids)
    assert [(block.count, block.leads) for block in made.template.blocks] == [(3, True), (2, False)]


@pytest.mark.parametrize("name", ["bert", "roberta"])
@pytest.mark.parametrize(
    "template", ["{text} it was {mask} .", "it was {mask} : {text} {text2}", "{text}{prompt:2}{text2} {mask}"]
)
def test_the_gap_is_never_cut_off(request: pytest.FixtureRequest, name: str, template: str):
    tokenizer = request.getfixturevalue(name)
    second = "great news " * 20 if "text2" in template else None
    for max_length in range(12, 40):
        made = encode(tokenizer, example("the lamp is broken " * 20, second), template=template, max_length=max_length)
        (row,) = made.dataset.to_list()
        inside = 2 * ("prompt" in template)
        assert len(row["input_ids"]) == max_length + inside
        assert row["input_ids"].count(tokenizer.mask_token_id) == 1
        assert row["labels"][row["input_ids"].index(tokenizer.mask_token_id)] == made.verbalizer_ids[1]
        assert made.report.truncated == 1
    assert encode(tokenizer).report.truncated == 0


def test_mask_tokens_of_the_text_are_text(bert: Any, roberta: Any):
    for tokenizer in (bert, roberta):
        mask = tokenizer.mask_token
        (row,) = encode(tokenizer, example(f"{mask} the {mask}"), template="{text} it was {mask} .").dataset.to_list()
        at = [column for column, one in enumerate(row["input_ids"]) if one == tokenizer.mask_token_id]
        assert len(at) == 3
        assert [column for column, one in enumerate(row["labels"]) if one != -100] == at[2:]


def test_templates_where_none_is_given(bert: Any):
    def text(*rows: TaskExample) -> list[str]:
        made = encode(bert, *rows, template=None)
        return [bert.decode(row["input_ids"], skip_special_tokens=False) for row in made.dataset.to_list()]

    assert text(example()) == ["[CLS] the lamp [MASK]. [SEP]"]
    assert text(example(second="it was")) == ["[CLS] the lamp [MASK]. it was [SEP]"]


def test_without_labels_and_without_text(bert: Any):
    made = encode(bert, TaskExample(text="the lamp"))
    assert "labels" not in made.dataset.column_names
    assert len(made.verbalizer_ids) == 2
    made = encode(bert, TaskExample(text="\u200b", label="1", source="f:3"), example())
    assert (made.rows, made.report.dropped) == ((1,), ["f:3"])


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        (
            {"0": "terrible", "1": "greatly"},
            r"verbalizer: 'greatly' is not one token of the model's vocabulary in the gap: great, ##.*--verbalizer",
        ),
        ({"0": "terrible", "1": "日"}, r"verbalizer: '日' is not in the model's vocabulary \(\[UNK\]\)"),
        ({"0": "great", "1": "Great"}, r"'great' of the label '0' and 'Great' of '1' are one token \('great'\)"),
        ({"0": "great"}, r"verbalizer: there is no word for '1'. Write 1=<word>"),
        ({**WORDS, "2": "good"}, r"unknown label in verbalizer '2'. .*Known: 0, 1"),
        ({**WORDS, "1": " "}, r"verbalizer: the word of '1' is ' '"),
    ],
)
def test_words_that_cannot_be_used(bert: Any, words: dict[str, str], complaint: str):
    with pytest.raises(ConfigError, match=complaint):
        encode(bert, verbalizer=words)


def test_a_word_is_one_token_only_behind_its_blank(roberta: Any):
    assert len(roberta("terrible", add_special_tokens=False)["input_ids"]) > 1
    with pytest.raises(ConfigError, match=r"'terrible' is not one token .*: .*, .*mind the blank before {mask}"):
        encode(roberta, template="{text}{mask}")
    assert encode(roberta, template="{text} {mask}").verbalizer_ids


def test_bad_templates_and_tokenizers(bert: Any, t5: Any, gpt2: Any):
    with pytest.raises(ConfigError, match=r"has no gap to fill. Put {mask} in it once"):
        encode(bert, template="{text}")
    with pytest.raises(ConfigError, match=r"has {mask} 2 times"):
        encode(bert, template="{text}{mask}{mask}")
    with pytest.raises(ConfigError, match=r"no token of the text fits into max_length 6: .* alone has 6. Raise"):
        encode(bert, max_length=6)
    for tokenizer in (t5, gpt2):
        with pytest.raises(ModelError, match=rf"\({type(tokenizer).__name__}\) has no mask token.* BERT .* {CLASSIFY}"):
            encode(tokenizer)
    with pytest.raises(DataError, match="f:1: the label '2' is not among"):
        encode(bert, example(label="2"))
    with pytest.raises(ConfigError, match="the task fill needs the labels"):
        encode(bert, labels=(), verbalizer=None)


def test_tokenizers_that_cannot_tell_characters_cut_parts(monkeypatch: pytest.MonkeyPatch, bert: Any):
    """The way without offsets gives the same rows."""
    rows = [example("the lamp is broken " * 4, "it was great"), example("it was", "the lamp")]
    template = "{text}{prompt:2} it was {mask} . {text2}"
    expected = encode(bert, *rows, template=template, max_length=16).dataset.to_list()
    monkeypatch.setattr(type(bert), "is_fast", property(lambda self: False))
    assert encode(bert, *rows, template=template, max_length=16).dataset.to_list() == expected
