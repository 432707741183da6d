"""Of virtual tokens inside the text nothing reaches what `generate` shows, counts or gives back."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from transformers import LogitsProcessor, LogitsProcessorList, PreTrainedModel
from transformers.generation import logits_process as processors
from transformers.generation.streamers import BaseStreamer

from architectures import CONTEXT, EOS, PAD, build
from prompting import draw, padded, texts
from ptune.config import PromptTuningConfig
from ptune.errors import ConfigError, ModelError, PromptError
from ptune.model.wrapper import PTunedModel

NAMES = ["llama", "gemma3", "mamba"]
NEW = 10
TOKENS = draw(1, 6, seed=7)[0]
BEFORE = 2


def prompted(name: str) -> tuple[PTunedModel, PreTrainedModel]:
    """A prompt of `TOKENS`, of which two stand before the text."""
    base = build(name, tie_word_embeddings=False)
    model = PTunedModel(base, PromptTuningConfig(num_virtual_tokens=6, tokens_in_text=4))
    with torch.no_grad():
        model.prompts["default"].embedding.weight.copy_(base.get_input_embeddings()(TOKENS))
    return model, base


def whole(text: torch.Tensor) -> torch.Tensor:
    """A text with the four virtual tokens inside it."""
    ids = -1 - torch.arange(BEFORE, len(TOKENS))
    return torch.cat([text[:2], ids[:3], text[2:], ids[3:]])


def hard(row: torch.Tensor) -> torch.Tensor:
    """All of it as tokens."""
    return torch.cat([TOKENS[:BEFORE], torch.where(row < 0, TOKENS[(-1 - row).clamp_min(0)], row)])


@torch.no_grad()
def greedy_by_hand(
    base: PreTrainedModel, text: torch.Tensor, processor: LogitsProcessor, *, leaks: bool = False
) -> list[int]:
    """Greedy decoding over everything as tokens, the processor being shown the text and the answer."""
    read, new = hard(whole(text)), text[:0]
    for _ in range(NEW):
        logits = base(torch.cat([read, new])[None]).logits[:, -1].float()
        scores = processor(torch.cat([read if leaks else text, new])[None], logits)
        new = torch.cat([new, scores.argmax(dim=-1)])
        if int(new[-1]) == EOS:
            break
    return new.tolist()


CASES: dict[str, tuple[dict[str, Any], Callable[[int], LogitsProcessor]]] = {
    "repetition_penalty": ({"repetition_penalty": 3.0}, lambda _: processors.RepetitionPenaltyLogitsProcessor(3.0)),
    "no_repeat_ngram": ({"no_repeat_ngram_size": 1}, lambda _: processors.NoRepeatNGramLogitsProcessor(1)),
    "min_new_tokens": (
        {"min_new_tokens": 8},
        lambda length: processors.MinNewTokensLengthLogitsProcessor(length, 8, torch.tensor([EOS])),
    ),
    "min_length": ({"min_length": 12}, lambda _: processors.MinLengthLogitsProcessor(12, torch.tensor([EOS]))),
}


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("name", NAMES)
def test_processors_as_by_hand_over_the_text_alone(name: str, case: str) -> None:
    model, base = prompted(name)
    options, processor = CASES[case]
    leaked = False
    for seed in range(4):
        text = texts((5,), seed=seed)[0]
        row = whole(text)
        out = model.generate(row[None], max_new_tokens=NEW, do_sample=False, **options)[0]
        assert out[len(row) :].tolist() == greedy_by_hand(base, text, processor(len(text)))
        leaked |= out[len(row) :].tolist() != greedy_by_hand(base, text, processor(len(text)), leaks=True)
    assert leaked or case.startswith("min"), "the case could not tell a leak"


class Recorder(LogitsProcessor):
    def __init__(self) -> None:
        self.seen: list[torch.Tensor] = []

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        self.seen.append(input_ids.clone())
        return scores


class Collector(BaseStreamer):
    def __init__(self) -> None:
        self.pieces: list[list[int]] = []

    def put(self, value: torch.Tensor) -> None:
        self.pieces.append(value.reshape(-1).tolist())

    def end(self) -> None:
        pass


@pytest.mark.parametrize("beams", [1, 3])
@pytest.mark.parametrize("name", NAMES)
def test_a_callers_own_processor_sees_the_text_padded_on_the_left(name: str, beams: int) -> None:
    model, _ = prompted(name)
    plain = texts((6, 4))
    ids, mask = padded([whole(text) for text in plain], "right")
    recorder = Recorder()
    options = {"max_new_tokens": 4, "do_sample": False, "num_beams": beams, "return_dict_in_generate": True}
    out = model.generate(ids, attention_mask=mask, logits_processor=LogitsProcessorList([recorder]), **options)
    text_alone = padded(plain, "left")[0].repeat_interleave(beams, dim=0)
    assert recorder.seen
    for seen in recorder.seen:
        assert torch.equal(seen[:, :6], text_alone)
    come_back = padded([whole(text).clamp_min(PAD) for text in plain], "left")[0]
    assert torch.equal(out.sequences[:, :10], come_back)


@pytest.mark.parametrize("name", NAMES)
def test_a_streamer_gets_the_text_and_then_each_new_token(name: str) -> None:
    model, _ = prompted(name)
    text = texts((5,))[0]
    streamer = Collector()
    row = whole(text)
    out = model.generate(row[None], max_new_tokens=6, do_sample=False, streamer=streamer)[0]
    assert streamer.pieces == [text.tolist(), *[[token] for token in out[len(row) :].tolist()]]


@pytest.mark.parametrize("name", NAMES)
def test_limits_count_text_tokens(name: str) -> None:
    model, _ = prompted(name)
    row = whole(texts((5,))[0])
    options = {"do_sample": False, "eos_token_id": None}
    assert model.generate(row[None], max_length=11, **options).shape == (1, len(row) + 6)
    ids, mask = padded([row, whole(texts((3,))[0])], "left")
    assert model.generate(ids, attention_mask=mask, max_length=11, **options).shape == (2, len(row) + 6)


def test_what_cannot_be_answered_is_refused() -> None:
    model, base = prompted("llama")
    text = texts((5,))[0]
    with pytest.raises(PromptError, match=r"row 0 holds 0 virtual tokens .*'default' there are 4 \(\[2, 3, 4, 5\]\)"):
        model.generate(text[None])
    row = whole(text)
    wrong = torch.where(row == -5, -6, torch.where(row == -6, -5, row))
    with pytest.raises(PromptError, match=r"row 1 holds 4 virtual tokens inside the text \(\[2, 3, 5, 4\]\)"):
        model(torch.stack([row, wrong]))
    with pytest.raises(ModelError, match="holds token -7"):
        model.generate(torch.cat([whole(text), torch.tensor([-7])])[None])
    with pytest.raises(ConfigError, match=r"4 virtual tokens inside the text, whose places token ids alone can tell"):
        model.generate(inputs_embeds=base.get_input_embeddings()(text[None]))
    with pytest.raises(ConfigError, match="Pass input_ids"):
        model(inputs_embeds=base.get_input_embeddings()(text[None]))
    with pytest.raises(ConfigError, match="Pass input_ids"):
        model.generate()
    with pytest.raises(ModelError, match="at least one token of text"):
        model.generate(-1 - torch.arange(BEFORE, len(TOKENS))[None])
    with pytest.raises(ModelError, match=f"2 virtual tokens and {CONTEXT - 1} text tokens exceed"):
        model(whole(texts((CONTEXT - 5,))[0])[None])
    plain = PTunedModel(base, PromptTuningConfig(num_virtual_tokens=6))
    with pytest.raises(ModelError, match="holds token -6"):
        plain.generate(whole(text)[None])
