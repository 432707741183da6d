"""The three columns: the same tokens of every answer, and words that run once give what they give as text."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch
from transformers import PreTrainedTokenizerFast

from architectures import build
from prompting import encoder_prompt
from ptune.answering import Answerer
from ptune.data.example import Example
from ptune.data.labels import IGNORE_INDEX
from ptune.data.template import get_template
from ptune.data.tokenize import encode, encode_prompt
from ptune.errors import ConfigError, DataError
from ptune.evaluation.columns import Column, ItemTexts, item_texts
from ptune.evaluation.items import Item, make_items
from ptune.evaluation.measured import outcomes
from ptune.evaluation.outcomes import Needs, Outcome
from ptune.evaluation.told_in_words import Telling, told_in_words

CHAT = (
    "{% for m in messages %}{% if m['role'] == 'system' and refuse %}{{ raise_exception('no system') }}{% endif %}"
    "<{{ m['role'] }}>{{ m['content'] }}</s>{% endfor %}{% if add_generation_prompt %}<assistant>{% endif %}"
)
EXAMPLES = [Example(instruction=f"word {at}", output=f"answer {at % 3}") for at in range(8)]
CUSTOM = "Q: {instruction} A:{output}"


@pytest.fixture
def answerer(tiny_tokenizer: PreTrainedTokenizerFast) -> Answerer:
    model = encoder_prompt(build("llama")).eval()
    return Answerer(model, tiny_tokenizer, get_template("tutorial", tiny_tokenizer))


def whole_text(answerer: Answerer, item: Item, telling: Telling) -> list[int]:
    return encode_prompt(
        dataclasses.replace(telling.segments(item, answerer.template)[0], answer=""), answerer.tokenizer
    )


def in_full(plain: ItemTexts, question: list[int]) -> ItemTexts:
    """An item with another question."""
    asked, before = tuple(question), len(plain.question)
    rows = tuple(
        ((*asked, *ids[before:]), (*[IGNORE_INDEX] * len(asked), *labels[before:])) for ids, labels in plain.rows
    )
    return dataclasses.replace(plain, question=asked, rows=rows)


def everything(answerer: Answerer, column: Column) -> list[Outcome]:
    """What a column makes of all its items, in their order."""
    found: dict[int, Outcome] = {}
    needs = Needs(tokens=True, answers=True, labels=("answer 0", "b"))
    for numbers in column.batches(range(len(column.texts)), 3):
        made = outcomes(answerer.model, answerer.tokenizer, column, numbers, needs, max_new_tokens=5)
        found |= dict(zip(numbers, made, strict=True))
    return [found[number] for number in sorted(found)]


def chatty(tokenizer: PreTrainedTokenizerFast, *, refuse: bool) -> PreTrainedTokenizerFast:
    """The tokenizer with a chat template, which may refuse system messages."""
    made = PreTrainedTokenizerFast(tokenizer_object=tokenizer.backend_tokenizer, eos_token="<eos>", pad_token="<pad>")
    made.chat_template = CHAT.replace("refuse", str(refuse).lower()).replace("</s>", "<eos>")
    return made


def untold(answerer: Answerer, items: list[Item]) -> list[ItemTexts]:
    return [item_texts(item, answerer.template, answerer.tokenizer, None) for item in items]


@pytest.mark.parametrize("template", ["tutorial", "chat", CUSTOM])
def test_words_that_run_once_give_what_they_give_as_text(template: str, answerer: Answerer):
    tokenizer = answerer.tokenizer
    if template == "chat":
        tokenizer = PreTrainedTokenizerFast(
            tokenizer_object=tokenizer.backend_tokenizer, eos_token="<eos>", pad_token="<pad>"
        )
        tokenizer.chat_template = CHAT.replace("refuse", "false").replace("</s>", "<eos>")
    told_by = dataclasses.replace(answerer, tokenizer=tokenizer, template=get_template(template, tokenizer))
    items = make_items(EXAMPLES, group=True)
    telling = Telling.drawn("Say it.", EXAMPLES, 3, seed=1)
    plain = untold(told_by, items)
    before = list(told_by.model.prompts)
    with told_in_words(told_by, items, telling, plain=plain, new_tokens=5) as (column, told):
        assert told == telling
        names = set(column.prompts)
        # Three items are shown themselves: they see another example each, and stand alone.
        assert len(names) == 2
        assert column.prompts.count(None) == 3
        found = everything(told_by, column)
        texts = [whole_text(told_by, item, telling) for item in items]
    assert list(told_by.model.prompts) == before
    for number, item in enumerate(items):
        shown = [example.question for example in telling.shown(item)]
        assert len(shown) == 3
        assert item.example.question not in shown
        text = tokenizer.decode(texts[number])
        assert "Say it." in text
        assert all(question in text for question in shown)
    as_text = Column("text", [in_full(*pair) for pair in zip(plain, texts, strict=True)], [None] * len(items), 0)
    wanted = everything(told_by, as_text)
    for one, other in zip(found, wanted, strict=True):
        assert (one.answer, one.tokens, one.right) == (other.answer, other.tokens, other.right)
        assert one.loss == pytest.approx(other.loss, rel=1e-4)
        assert one.labels == pytest.approx(other.labels, rel=1e-4)


def test_a_model_that_makes_more_of_ids_is_told_in_full(answerer: Answerer):
    answerer.model.capability = dataclasses.replace(answerer.model.capability, filler_id=0)
    items = make_items(EXAMPLES, group=True)
    telling = Telling.drawn("Say it.", EXAMPLES, 2, seed=1)
    with told_in_words(answerer, items, telling, plain=untold(answerer, items), new_tokens=0) as (column, _):
        assert set(column.prompts) == {None}
        assert list(column.texts[4].question) == whole_text(answerer, items[4], telling)


def test_a_chat_template_without_a_system_message_gets_the_words_from_the_user(answerer: Answerer):
    tokenizer = chatty(answerer.tokenizer, refuse=True)
    told_by = dataclasses.replace(answerer, tokenizer=tokenizer, template=get_template("chat", tokenizer))
    items = make_items(EXAMPLES, group=True)
    for shots in (0, 2):
        telling = Telling.drawn("Say it.", EXAMPLES, shots, seed=1)
        with told_in_words(told_by, items, telling, plain=untold(told_by, items), new_tokens=0) as (_, told):
            assert told == dataclasses.replace(telling, as_system=False)
            assert tokenizer.decode(whole_text(told_by, items[0], told)).replace(" ", "").startswith("<user>Sayit.")


def test_fewer_examples_where_the_context_is_short(answerer: Answerer):
    items = make_items(EXAMPLES, group=True)
    plain = untold(answerer, items)
    room = max(one.longest for one in plain)
    long = [Example(instruction=f"x {at} " * 9, output="y") for at in range(4)]
    with told_in_words(answerer, items, Telling.drawn(None, long, 4, 0), plain=plain, new_tokens=0) as (_, told):
        assert 0 < told.shots < 4
    assert answerer.model.context_length is not None
    with (
        pytest.raises(ConfigError, match=f"context has {answerer.model.context_length}") as fault,
        told_in_words(answerer, items, Telling.drawn("long " * 200, long, 4, 0), plain=plain, new_tokens=room),
    ):
        pass
    assert "Shorten written_prompt" in str(fault.value)


def test_telling_draws_nothing_from_the_callers_generator(answerer: Answerer):
    items = make_items(EXAMPLES, group=True)
    torch.manual_seed(3)
    wanted = torch.rand(2)
    torch.manual_seed(3)
    telling = Telling.drawn("a", EXAMPLES, 2, 0)
    with told_in_words(answerer, items, telling, plain=untold(answerer, items), new_tokens=0):
        pass
    assert torch.equal(torch.rand(2), wanted)


def test_items_are_cut_as_training_cuts_them(answerer: Answerer):
    item = Item((Example(instruction="ab", output="cdefgh"), Example(instruction="ab", output="i")))
    whole = item_texts(item, answerer.template, answerer.tokenizer, None)
    room = len(whole.question) + 3
    found = item_texts(item, answerer.template, answerer.tokenizer, room)
    for row, example in zip(found.rows, item.rows, strict=True):
        wanted = encode(answerer.template.segments(example), answerer.tokenizer, room)
        assert wanted is not None
        assert (list(row[0]), list(row[1])) == (wanted.input_ids, wanted.labels)
    assert found.cut == 1
    assert found.question == whole.question
    with pytest.raises(DataError, match="the question alone has"):
        item_texts(item, answerer.template, answerer.tokenizer, len(whole.question))


def test_a_long_text_becomes_rows(answerer: Answerer, tmp_path: Path):
    text = Item((Example(instruction="", output="a b c d e f g", document=True),))
    found = item_texts(text, answerer.template, answerer.tokenizer, 4)
    assert found.question == ()
    assert len(found.rows) > 1
    assert all(len(ids) <= 4 for ids, _ in found.rows)
