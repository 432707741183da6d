"""Logits processors, streamers and stopping rules see text alone, never a virtual token or a stand-in for one."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from transformers import (
    LogitsProcessor,
    LogitsProcessorList,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    TextIteratorStreamer,
)
from transformers.generation import logits_process as processors
from transformers.generation.stopping_criteria import StoppingCriteria, StoppingCriteriaList
from transformers.generation.streamers import BaseStreamer

from architectures import EOS, build
from prompting import draw, padded, texts, tokens_as_prompt

NAMES = ["llama", "bloom", "gemma3", "mamba"]
NEW = 12
PROMPT = draw(1, 20, seed=7)[0]


def _untied(name: str) -> PreTrainedModel:
    return build(name, tie_word_embeddings=False)


@torch.no_grad()
def greedy_by_hand(
    base: PreTrainedModel, text: torch.Tensor, processor: LogitsProcessor, *, seen_from: int = len(PROMPT)
) -> list[int]:
    """Greedy decoding over the hard prompt and text, the processor being shown the tokens from `seen_from` on."""
    ids = torch.cat([PROMPT, text])[None]
    for _ in range(NEW):
        scores = processor(ids[:, seen_from:], base(input_ids=ids).logits[:, -1].float())
        ids = torch.cat([ids, scores.argmax(dim=-1, keepdim=True)], dim=1)
        if int(ids[0, -1]) == EOS:
            break
    return ids[0, len(PROMPT) + len(text) :].tolist()


# What generate is asked for, and the same processor made by hand for a text of a given length.
CASES: dict[str, tuple[dict[str, Any], Callable[[int], LogitsProcessor]]] = {
    "repetition_penalty": (
        {"repetition_penalty": 3.0},
        lambda _length: processors.RepetitionPenaltyLogitsProcessor(3.0),
    ),
    "no_repeat_ngram": ({"no_repeat_ngram_size": 1}, lambda _length: processors.NoRepeatNGramLogitsProcessor(1)),
    "min_new_tokens": (
        {"min_new_tokens": 9},
        lambda length: processors.MinNewTokensLengthLogitsProcessor(length, 9, torch.tensor([EOS])),
    ),
    "min_length": (
        {"min_length": 15},
        lambda _length: processors.MinLengthLogitsProcessor(15, torch.tensor([EOS])),
    ),
    "bad_words": (
        {"bad_words_ids": [[int(token)] for token in range(40, 90)]},
        lambda _length: processors.NoBadWordsLogitsProcessor(
            [[int(token)] for token in range(40, 90)], torch.tensor([EOS])
        ),
    ),
    "exponential_decay": (
        {"exponential_decay_length_penalty": (3, 1.9)},
        lambda length: processors.ExponentialDecayLengthPenalty((3, 1.9), torch.tensor([EOS]), length),
    ),
}
LEAKS = ("repetition_penalty", "no_repeat_ngram")
"""Processors that give other answers here if they see the virtual tokens."""


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("name", NAMES)
def test_as_by_hand_over_the_text_alone(name: str, case: str) -> None:
    base = _untied(name)
    model = tokens_as_prompt(base, PROMPT)
    options, processor = CASES[case]
    leaked = False
    for seed in range(4):
        text = texts((5,), seed=seed)[0]
        found = model.generate(text[None], max_new_tokens=NEW, do_sample=False, **options)[0, len(text) :].tolist()
        assert found == greedy_by_hand(base, text, processor(len(text)))
        leaked |= found != greedy_by_hand(base, text, processor(len(text)), seen_from=0)
    if case in LEAKS:
        assert leaked, "the case could not tell a leak"


class _Recorder(LogitsProcessor):
    def __init__(self) -> None:
        self.seen: list[torch.Tensor] = []

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        self.seen.append(input_ids.clone())
        return scores


@pytest.mark.parametrize("beams", [1, 3])
@pytest.mark.parametrize("name", NAMES)
def test_a_callers_own_processor_sees_text_and_new_tokens(name: str, beams: int) -> None:
    model = tokens_as_prompt(_untied(name), PROMPT)
    ids, mask = padded(texts((6, 4)), "left")
    recorder = _Recorder()
    out = model.generate(
        ids,
        attention_mask=mask,
        max_new_tokens=5,
        do_sample=False,
        num_beams=beams,
        logits_processor=LogitsProcessorList([recorder]),
    )
    assert [seen.shape for seen in recorder.seen] == [(2 * beams, 6 + step) for step in range(len(recorder.seen))]
    for seen in recorder.seen:
        assert torch.equal(seen[:, :6], ids.repeat_interleave(beams, dim=0))
        if beams == 1:
            assert torch.equal(seen, out[:, : seen.shape[1]])


class _Collector(BaseStreamer):
    def __init__(self) -> None:
        self.pieces: list[list[int]] = []
        self.ended = False

    def put(self, value: torch.Tensor) -> None:
        self.pieces.append(value.reshape(-1).tolist())

    def end(self) -> None:
        self.ended = True


@pytest.mark.parametrize("name", NAMES)
def test_a_streamer_gets_the_text_and_then_each_new_token(name: str) -> None:
    model = tokens_as_prompt(_untied(name), PROMPT)
    text = texts((5,))[0]
    streamer = _Collector()
    out = model.generate(text[None], max_new_tokens=6, do_sample=False, streamer=streamer)[0]
    assert streamer.pieces == [text.tolist(), *[[token] for token in out[5:].tolist()]]
    assert streamer.ended


def test_a_text_streamer_skips_the_text_and_gives_the_answer(tiny_tokenizer: PreTrainedTokenizerFast) -> None:
    model = tokens_as_prompt(_untied("llama"), PROMPT)
    ids = tiny_tokenizer("Where is it?", return_tensors="pt")["input_ids"]
    streamer = TextIteratorStreamer(tiny_tokenizer, skip_prompt=True)
    out = model.generate(ids, max_new_tokens=6, do_sample=False, streamer=streamer)
    assert "".join(streamer) == tiny_tokenizer.decode(out[0, ids.shape[1] :])


class _StopAt(StoppingCriteria):
    def __init__(self, length: int) -> None:
        self.length = length

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor, **kwargs: Any) -> torch.Tensor:
        return torch.full((input_ids.shape[0],), input_ids.shape[1] >= self.length)


@pytest.mark.parametrize("name", NAMES)
def test_limits_count_text_tokens(name: str) -> None:
    model = tokens_as_prompt(_untied(name), PROMPT)
    text = texts((5,))[0][None]
    without_end = {"do_sample": False, "eos_token_id": None}
    assert model.generate(text, max_length=11, **without_end).shape == (1, 11)
    assert model.generate(text, **without_end).shape == (1, 25), "20 new tokens where nothing is said"
    stop = StoppingCriteriaList([_StopAt(8)])
    assert model.generate(text, max_new_tokens=10, stopping_criteria=stop, **without_end).shape == (1, 8)


def test_stop_strings_are_looked_for_in_the_answer(tiny_tokenizer: PreTrainedTokenizerFast) -> None:
    model = tokens_as_prompt(_untied("llama"), PROMPT)
    ids = tiny_tokenizer("Where is it?", return_tensors="pt")["input_ids"]
    options = {"do_sample": False, "max_new_tokens": 8, "eos_token_id": None}
    whole = model.generate(ids, **options)[0]
    stop = tiny_tokenizer.decode(whole[ids.shape[1] + 3])
    before = tiny_tokenizer.decode(whole[ids.shape[1] : ids.shape[1] + 3])
    assert stop not in before
    found = model.generate(ids, stop_strings=[stop], tokenizer=tiny_tokenizer, **options)[0]
    assert torch.equal(found, whole[: ids.shape[1] + 4])
    # A stop string that stands in the soft prompt's tokens ends nothing.
    in_prompt = tiny_tokenizer.decode(PROMPT[-1:])
    if in_prompt not in tiny_tokenizer.decode(whole):
        assert torch.equal(model.generate(ids, stop_strings=[in_prompt], tokenizer=tiny_tokenizer, **options)[0], whole)
