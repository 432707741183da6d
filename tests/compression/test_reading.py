"""Rows behind a text that was read once answer as rows with the text written in front, by the bare model."""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import random
from collections.abc import Sequence

import numpy as np
import pytest
import torch
from transformers import PreTrainedTokenizerFast

from architectures import ARCHITECTURES, CONTEXT, EOS, PAD, build
from ptune.answering import Answerer
from ptune.compression.reading import READER, Reading, reading, told
from ptune.config import PromptTuningConfig
from ptune.data.collate import PackingCollator, PaddingCollator
from ptune.data.example import Example
from ptune.data.labels import IGNORE_INDEX
from ptune.data.template import get_template
from ptune.errors import ConfigError
from ptune.evaluation.answers import generate_answers
from ptune.evaluation.told_in_words import common_beginning
from ptune.model.taught import soft_labels
from ptune.model.wrapper import PTunedModel

TEXT = "The lamp is broken.\n\nThe kettle left the store today; it costs 40."
ROWS = [
    Example(instruction="Where is it?", output="It left."),
    Example(instruction="What does the kettle cost?", output="40"),
    Example(instruction="Who?", input="the store", output="Nobody answers the phone."),
]
CHAT = (
    "{% for message in messages %}<{{ message['role'] }}>{{ message['content'] }}\n{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)
STRICT = (
    "{% for m in messages %}{% if m['role'] == 'system' %}{{ raise_exception('no system') }}{% endif %}{% endfor %}"
)
TEMPLATES = {
    "tutorial": (None, "tutorial"),
    "chat": (CHAT, "chat"),
    "chat without a place for the system": (STRICT + CHAT, "chat"),
    "of the user's": (None, "Q: {instruction} {input}\nA: {output}{eos_token}"),
}


def answerer_of(
    tokenizer: PreTrainedTokenizerFast, architecture: str = "llama", template: str = "tutorial", **values: object
) -> Answerer:
    chat, name = TEMPLATES[template]
    tokenizer = copy.deepcopy(tokenizer)
    tokenizer.chat_template = chat
    model = PTunedModel(build(architecture, **values)).eval()
    return Answerer(model, tokenizer, get_template(name, tokenizer))


def written(answerer: Answerer, rows: Sequence[Example], template: str) -> list[tuple[str, str]]:
    """Question with the text in front, and answer, as the template is to write them."""
    made = []
    for row in rows:
        asked = f"{row.instruction}\n{row.input}" if row.input else row.instruction
        if template == "tutorial":
            question = f"{TEXT}\n\nHuman: {asked}\n\nAssistant: "
        elif template == "chat":
            question = f"<system>{TEXT}\n<user>{asked}\n<assistant>"
        elif template == "chat without a place for the system":
            question = f"<user>{TEXT}\n\n{asked}\n<assistant>"
        else:
            question = f"{TEXT}\n\nQ: {row.instruction} {row.input}\nA: "
        made.append((question, row.output))
    return made


def bare_answer(answerer: Answerer, question: Sequence[int], tokens: int) -> str:
    """Token by token, by the bare model, without cache or mask."""
    ids = list(question)
    with torch.no_grad():
        for _ in range(tokens):
            ids.append(int(answerer.model.base(torch.tensor([ids])).logits[0, -1].argmax()))
            if ids[-1] == EOS:
                break
    return str(answerer.tokenizer.decode(ids[len(question) :], skip_special_tokens=True))


def answers(answerer: Answerer, read: Reading, tokens: int) -> list[str]:
    questions = [one.question for one in read.texts]
    names = [read.name] * len(questions)
    return generate_answers(answerer.model, answerer.tokenizer, questions, prompt_names=names, max_new_tokens=tokens)


def check_soft_labels(answerer: Answerer, read: Reading, whole: Sequence[tuple[Sequence[int], Sequence[int]]]) -> None:
    """What is likely behind the reading is what the bare model's logits say of whole rows."""
    features = [{"input_ids": one.rows[0][0], "labels": one.rows[0][1]} for one in read.texts]
    collate = PackingCollator() if answerer.model.packs else PaddingCollator(PAD)
    found = soft_labels(answerer.model, collate(features), 5, prompt_names=[read.name] * len(features))
    with torch.no_grad():
        wanted = torch.cat(
            [
                answerer.model.base(torch.tensor([ids]))
                .logits[0]
                .log_softmax(1)[[at - 1 for at, label in enumerate(labels) if label != IGNORE_INDEX]]
                for ids, labels in whole
            ]
        )
    assert len(found.ids) == len(wanted)
    torch.testing.assert_close(found.log_probs, wanted.topk(5).values, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(found.log_probs, wanted.gather(1, found.ids), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("template", TEMPLATES)
def test_the_text_stands_where_it_would_without_ptune(template: str, tiny_tokenizer: PreTrainedTokenizerFast):
    answerer = answerer_of(tiny_tokenizer, template=template)
    for found, (question, answer) in zip(told(answerer, TEXT, ROWS), written(answerer, ROWS, template), strict=True):
        assert answerer.tokenizer.decode(found.question) == question
        ids, labels = found.rows[0]
        assert ids[: len(found.question)] == found.question
        assert set(labels[: len(found.question)]) == {IGNORE_INDEX}
        learned = [label for label in labels if label != IGNORE_INDEX]
        assert answerer.tokenizer.decode(learned, skip_special_tokens=True).strip() == answer


@pytest.mark.parametrize(
    ("architecture", "template"),
    [*((name, "tutorial") for name in ARCHITECTURES), *(("llama", name) for name in TEMPLATES if name != "tutorial")],
)
def test_as_the_bare_model_with_the_text_in_front(
    architecture: str, template: str, tiny_tokenizer: PreTrainedTokenizerFast
):
    context = {} if architecture in ("bloom", "mamba") else {"max_position_embeddings": 256}
    answerer = answerer_of(tiny_tokenizer, architecture, template, **context)
    whole = [one.rows[0] for one in told(answerer, TEXT, ROWS)]
    questions = [one.question for one in told(answerer, TEXT, ROWS)]
    untold = len(answerer.encode(ROWS[0].instruction)[0])
    with reading(answerer, TEXT, ROWS, new_tokens=8) as read:
        assert read.name == READER
        assert list(answerer.model.prompts) == [READER]
        assert read.tokens == len(questions[0]) - untold
        for one, question, row in zip(read.texts, questions, whole, strict=True):
            assert read.shared + one.question == question
            assert read.shared + one.rows[0][0] == row[0]
            assert len(one.question) >= 1
        assert TEXT in answerer.tokenizer.decode(read.shared)
        assert answers(answerer, read, 8) == [bare_answer(answerer, question, 8) for question in questions]
        check_soft_labels(answerer, read, whole)
    if architecture != "mistral":  # its two layers see no further than 16 tokens back
        with reading(answerer, TEXT[::-1], ROWS, new_tokens=8) as read, pytest.raises(AssertionError):
            check_soft_labels(answerer, read, whole)


def test_a_model_that_wants_token_ids_is_given_whole_rows(tiny_tokenizer: PreTrainedTokenizerFast):
    answerer = answerer_of(tiny_tokenizer)
    answerer.model.capability = dataclasses.replace(answerer.model.capability, filler_id=PAD)
    whole = told(answerer, TEXT, ROWS)
    with reading(answerer, TEXT, ROWS) as read:
        assert read.name is None
        assert list(read.texts) == whole
        assert not answerer.model.prompts
        assert TEXT in answerer.tokenizer.decode(read.shared)
        check_soft_labels(answerer, read, [one.rows[0] for one in whole])


def test_one_row(tiny_tokenizer: PreTrainedTokenizerFast):
    answerer = answerer_of(tiny_tokenizer)
    with reading(answerer, TEXT, ROWS[:1]) as read:
        assert len(read.texts[0].question) == 1
        assert answers(answerer, read, 5) == [bare_answer(answerer, told(answerer, TEXT, ROWS)[0].question, 5)]


@pytest.mark.parametrize("architecture", ["llama", "mamba"])
def test_nothing_of_it_stays(architecture: str, tiny_tokenizer: PreTrainedTokenizerFast):
    answerer = answerer_of(tiny_tokenizer, architecture)
    model = answerer.model
    states = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state()

    def unchanged() -> bool:
        now = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state()
        return states[:2] == now[:2] and torch.equal(states[2], now[2])

    with reading(answerer, TEXT, ROWS):
        assert unchanged()
    assert model.active_prompt is None
    assert not model.prompts
    assert not model.training
    model.add_prompt("mine", PromptTuningConfig(num_virtual_tokens=3))
    states = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state()
    parameters = [one.requires_grad for one in model.parameters()]
    mine = model.prompts["mine"].embedding.weight.clone()
    with contextlib.suppress(KeyError), reading(answerer, TEXT, ROWS):
        assert model.active_prompt == "mine"
        assert not any(one.requires_grad for one in model.prompts[READER].parameters())
        raise KeyError
    assert unchanged()
    assert model.active_prompt == "mine"
    assert list(model.prompts) == ["mine"]
    assert [one.requires_grad for one in model.parameters()] == parameters
    assert torch.equal(model.prompts["mine"].embedding.weight, mine)


def test_another_text_after_the_first(tiny_tokenizer: PreTrainedTokenizerFast):
    """Keys and values that were kept for the first are not taken for the second's."""
    answerer = answerer_of(tiny_tokenizer)
    for text in (TEXT, "Nothing is here.", TEXT):
        with reading(answerer, text, ROWS) as read:
            check_soft_labels(answerer, read, [one.rows[0] for one in told(answerer, text, ROWS)])


def test_no_room(tiny_tokenizer: PreTrainedTokenizerFast):
    answerer = answerer_of(tiny_tokenizer)
    longest = max(len(one.question) for one in told(answerer, TEXT, ROWS))
    rows = max(one.longest for one in told(answerer, TEXT, ROWS))
    assert rows < CONTEXT
    with reading(answerer, TEXT, ROWS, new_tokens=CONTEXT - longest):
        pass
    with pytest.raises(ConfigError) as caught, reading(answerer, TEXT, ROWS, new_tokens=CONTEXT - longest + 1):
        pass
    assert f"{CONTEXT + 1} tokens" in str(caught.value)
    assert f"context has {CONTEXT}" in str(caught.value)
    assert "answer_tokens" in (caught.value.hint or "")
    with pytest.raises(ConfigError, match="the model's context"), reading(answerer, TEXT * 3, ROWS):
        pass
    assert not answerer.model.prompts


@pytest.mark.parametrize("seed", range(20))
def test_common_beginning(seed: int):
    source = random.Random(seed)
    same = tuple(source.randrange(9) for _ in range(source.randrange(6)))
    texts = [
        same + tuple(source.randrange(2) for _ in range(source.randint(1, 4))) for _ in range(source.randint(1, 5))
    ]
    shared = common_beginning(texts)
    assert all(text[: len(shared)] == shared for text in texts)
    longer = len(shared) + 1
    assert any(len(text) <= longer for text in texts) or len({text[:longer] for text in texts}) > 1
    assert all(len(text) > len(shared) for text in texts)
