"""Virtual tokens inside the text ≡ the tokens whose embeddings they are, for loss, gradient, logits and answers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch.nn import functional as F
from transformers import LlamaForCausalLM, PreTrainedModel

from architectures import EOS, PAD, build
from decoders.small import small_decoder
from prompting import draw, padded, prompt_gradient, relative_error, texts, tolerance
from ptune.config import PromptTuningConfig
from ptune.data.collate import PackingCollator
from ptune.data.labels import IGNORE_INDEX
from ptune.model.wrapper import PTunedModel

NAMES = ["llama", "gpt2", "bloom", "gemma3", "mamba"]
TOKENS = draw(1, 7, seed=7)[0]
"""What the virtual tokens are embeddings of."""
OTHERS = draw(1, 3, seed=8)[0]
"""The same of a second prompt."""
BEFORE = [4, 0]
"""Virtual tokens before the text; the others stand inside it."""
LENGTHS = (9, 4, 14, 6)  # with the virtual tokens well beyond the window of 8
NEW = 6


def prompted(base: PreTrainedModel, before: int, *, also: bool = False) -> PTunedModel:
    """A model behind a prompt of `TOKENS`; where asked for, with a second one, whose last token stands inside."""
    model = PTunedModel(base)
    prompts = {"default": (TOKENS, before), **({"other": (OTHERS, 2)} if also else {})}
    for name, (tokens, leading) in prompts.items():
        model.add_prompt(name, PromptTuningConfig(num_virtual_tokens=len(tokens), tokens_in_text=len(tokens) - leading))
        with torch.no_grad():
            model.prompts[name].embedding.weight.copy_(base.get_input_embeddings()(tokens))
    return model.to(base.dtype)


def with_virtual(text: torch.Tensor, numbers: Sequence[int]) -> torch.Tensor:
    """A text with virtual tokens of these numbers inside it: one behind the first token, the others before the last."""
    ids = -1 - torch.tensor(numbers, dtype=torch.long)
    return torch.cat([text[:1], ids[:1], text[1:-1], ids[1:], text[-1:]])


def as_text(row: torch.Tensor, before: int, tokens: torch.Tensor = TOKENS) -> torch.Tensor:
    """Everything as tokens of the vocabulary, what stands before the text too."""
    return torch.cat([tokens[:before], torch.where(row < 0, tokens[(-1 - row).clamp(0, len(tokens) - 1)], row)])


def rows_of(before: int) -> list[torch.Tensor]:
    return [with_virtual(text, range(before, len(TOKENS))) for text in texts(LENGTHS)]


def labels_of(row: torch.Tensor) -> torch.Tensor:
    """Labels on every token of the text that something predicts."""
    labels = row.masked_fill(row < 0, IGNORE_INDEX)
    labels[0] = IGNORE_INDEX
    return labels


def batch_of(rows: Sequence[torch.Tensor], side: str) -> dict[str, Any]:
    """The rows packed, or padded on a side."""
    if side == "packed":
        return PackingCollator()([{"input_ids": row.tolist(), "labels": labels_of(row).tolist()} for row in rows])
    ids, mask = padded(rows, side)
    labels = padded([labels_of(row) for row in rows], side, fill=IGNORE_INDEX)[0]
    return {"input_ids": ids, "attention_mask": mask, "labels": labels}


def hard_sum(
    base: PreTrainedModel, rows: Sequence[torch.Tensor], before: int, tokens: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """The summed loss of the bare model, each row alone, and its gradient by the embeddings of `TOKENS`."""
    layer = base.get_input_embeddings()
    vectors = layer(tokens).detach().requires_grad_()
    total = torch.zeros((), dtype=base.dtype)
    for row in rows:
        number = torch.where(row < 0, -1 - row, -1)
        embeds = torch.stack([vectors[k] if k >= 0 else layer(row[at]) for at, k in enumerate(number.tolist())])
        logits = base(inputs_embeds=torch.cat([vectors[:before], embeds])[None], use_cache=False).logits[0]
        total = total + F.cross_entropy(logits[before:][:-1], labels_of(row)[1:], reduction="sum")
    total.backward()
    assert vectors.grad is not None
    return total.detach(), vectors.grad


def assert_on_way(model: PTunedModel, way: str, before: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Set the model to a way through it, and let every other one fail."""
    taken = {"packed": "run_packed", "prefix": "run_prefixed", "concatenation": "run_concatenated"}
    model.pack_batches = way == "packed"
    if way == "concatenation":
        model.capability = replace(model.capability, prefix=False)
    if way == "prefix" and not before:
        taken["prefix"] = "run_concatenated"  # there is nothing to run first
    for name in set(taken.values()) - {taken[way]}:
        monkeypatch.setattr(f"ptune.model.running.{name}", lambda *_a, **_k: pytest.fail("another way was taken"))


WAYS = [
    *(("packed", side) for side in ("packed", "left", "right")),
    *((way, side) for way in ("prefix", "concatenation") for side in ("left", "right")),
]


@pytest.mark.parametrize("before", BEFORE)
@pytest.mark.parametrize(("way", "side"), WAYS)
@pytest.mark.parametrize("name", NAMES)
def test_loss_and_gradient(name: str, way: str, side: str, before: int, monkeypatch: pytest.MonkeyPatch) -> None:
    if name == "mamba" and way != "concatenation":
        pytest.skip("Mamba has the one way")
    base = build(name).double()
    model = prompted(base, before)
    assert_on_way(model, way, before, monkeypatch)
    rows = rows_of(before)
    loss, gradient = prompt_gradient(model, **batch_of(rows, side), num_items_in_batch=1, return_logits=False)
    wanted_loss, wanted = hard_sum(base, rows, before, TOKENS)
    print(f"{name}: loss {relative_error(loss, wanted_loss):.1e}, gradient {relative_error(gradient, wanted):.1e}")
    assert relative_error(loss, wanted_loss) < tolerance(name, torch.float64)
    assert relative_error(gradient, wanted) < tolerance(name, torch.float64)


@pytest.mark.parametrize("way", ["packed", "prefix", "concatenation"])
@pytest.mark.parametrize("name", NAMES)
def test_mixed_prompts(name: str, way: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Prompts with several virtual tokens inside the text, with one, and none in one batch: logits and loss."""
    if name == "mamba" and way != "concatenation":
        pytest.skip("Mamba has the one way")
    base = build(name)
    model = prompted(base, 4, also=True)
    assert_on_way(model, way, 4, monkeypatch)
    names = ["default", "other", None, "default", None]
    kinds = {"default": (TOKENS, 4), "other": (OTHERS, 2), None: (TOKENS[:0], 0)}
    found = texts((9, 4, 14, 6, 5))
    rows = [
        with_virtual(text, range(kinds[one][1], len(kinds[one][0]))) for one, text in zip(names, found, strict=True)
    ]
    rows[4] = with_virtual(found[4], range(4, len(TOKENS)))  # without its prompt these are left out
    side = "packed" if way == "packed" else "left"
    batch = batch_of(rows, side)
    with torch.no_grad():
        output = model(**batch, prompt_names=names, num_items_in_batch=1, return_logits=True)
    logits = output.logits[0].split([len(row) for row in rows]) if side == "packed" else None
    total = torch.zeros(())
    for at, (one, row, text) in enumerate(zip(names, rows, found, strict=True)):
        tokens, before = kinds[one]
        hard = as_text(row, before, tokens) if one is not None else text
        with torch.no_grad():
            wanted = base(hard[None]).logits[0, before:]
        mine = logits[at] if logits is not None else output.logits[at][batch["attention_mask"][at].bool()]
        if one is None:
            assert not mine[row < 0].any()
            mine = mine[row >= 0]
        assert relative_error(mine, wanted) < 2e-5
        labels = labels_of(row if one is not None else text)
        total = total + F.cross_entropy(wanted[:-1], labels[1:], reduction="sum")
    assert relative_error(output.loss, total) < 1e-5


def hard_answer(base: PreTrainedModel, hard: torch.Tensor, **options: Any) -> torch.Tensor:
    out = base.generate(
        hard[None], attention_mask=torch.ones_like(hard)[None], max_new_tokens=NEW, do_sample=False, **options
    )
    return out[:, len(hard) :]


GENERATION: dict[str, dict[str, Any]] = {
    "greedy": {},
    "without a cache": {"use_cache": False},
    "beams": {"num_beams": 3, "num_return_sequences": 2, "early_stopping": True},
}


@pytest.mark.parametrize("kind", ["prefix", "concatenation", "by length"])
@pytest.mark.parametrize("way", GENERATION)
@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("name", NAMES)
def test_answers(name: str, side: str, way: str, kind: str) -> None:
    """Two prompts and none in one batch; each row is answered as its tokens alone, and no virtual token comes back."""
    base, options = build(name, tie_word_embeddings=False), GENERATION[way]
    model = prompted(base, 4, also=True)
    able = model.capability
    model.capability = replace(able, prefix=able.prefix and kind != "concatenation", left_padding=kind != "by length")
    names = ["default", "other", None, "default"]
    found = texts((9, 4, 12, 5))
    rows = [
        with_virtual(text, {"default": range(4, 7), "other": [2], None: range(4, 7)}[one])
        for one, text in zip(names, found, strict=True)
    ]
    hard = [
        as_text(rows[0], 4),
        as_text(rows[1], 2, OTHERS),
        found[2],
        as_text(rows[3], 4),
    ]
    ids, mask = padded(rows, side)
    out = model.generate(ids, attention_mask=mask, prompt_names=names, max_new_tokens=NEW, do_sample=False, **options)
    returned = options.get("num_return_sequences", 1)
    assert out.min() >= 0
    for at, tokens in enumerate(hard):
        mine = out[at * returned : (at + 1) * returned, ids.shape[1] :]
        wanted = hard_answer(base, tokens, **options)
        assert torch.equal(mine[:, : wanted.shape[1]], wanted), f"row {at}: {mine.tolist()}, not {wanted.tolist()}"
        assert set(mine[:, wanted.shape[1] :].unique().tolist()) <= {PAD, EOS}


@pytest.mark.parametrize("name", NAMES)
def test_answers_where_nothing_stands_before_the_text(name: str) -> None:
    base = build(name, tie_word_embeddings=False)
    model = prompted(base, 0)
    rows = rows_of(0)
    for some in (rows, rows[:1]):
        ids, mask = padded(some, "left")
        out = model.generate(ids, attention_mask=mask, max_new_tokens=NEW, do_sample=False)
        assert torch.equal(out[0, : ids.shape[1]], ids[0].clamp_min(PAD))
        for at, row in enumerate(some):
            wanted = hard_answer(base, as_text(row, 0))[0]
            assert torch.equal(out[at, ids.shape[1] :][: len(wanted)], wanted)


@pytest.mark.parametrize("name", ["llama", "mamba"])
def test_without_the_prompt_the_frozen_model_reads_the_text_alone(name: str) -> None:
    base = build(name, tie_word_embeddings=False)
    model = prompted(base, 4)
    rows, plain = rows_of(4), texts(LENGTHS)
    ids, mask = padded(rows, "left")
    names = [None] * len(rows)
    with torch.no_grad():
        loss = model(**batch_of(rows, "left"), prompt_names=names, num_items_in_batch=1).loss
        with model.disable_prompt():
            disabled = model(**batch_of(rows, "right"), num_items_in_batch=1).loss
        wanted = sum(F.cross_entropy(base(text[None]).logits[0, :-1], text[1:], reduction="sum") for text in plain)
    assert relative_error(loss, wanted) < 1e-5
    assert relative_error(disabled, wanted) < 1e-5
    with model.disable_prompt():
        outs = [model.generate(ids, attention_mask=mask, max_new_tokens=NEW, do_sample=False)]
    outs.append(model.generate(ids, attention_mask=mask, max_new_tokens=NEW, do_sample=False, prompt_names=names))
    for out in outs:
        for at, text in enumerate(plain):
            answer = hard_answer(base, text)[0]
            assert torch.equal(out[at, ids.shape[1] :][: len(answer)], answer)


def with_vectors(base: PreTrainedModel, hard: torch.Tensor, virtual: torch.Tensor, filler: int) -> torch.Tensor:
    """`(T, V)`: one row alone; virtual tokens go by a filler's id, and the embedding layer gives their vectors."""
    vectors = base.get_input_embeddings()(hard)
    handle = base.get_input_embeddings().register_forward_hook(
        lambda _module, _args, out: torch.where(virtual[:, None], vectors, out[0])[None]
    )
    with torch.no_grad():
        logits = base(input_ids=hard.masked_fill(virtual, filler)[None], use_cache=False).logits[0]
    handle.remove()
    return logits


@pytest.mark.parametrize("before", BEFORE)
def test_a_model_that_makes_more_of_ids(before: int) -> None:
    """Gemma 4 has inputs of each layer by token id: there a virtual token goes by the filler."""
    base = small_decoder("gemma4_text")
    model = prompted(base, before)
    filler = model.capability.filler_id
    assert filler is not None
    rows = rows_of(before)
    wanted = []
    for row in rows:
        virtual = torch.cat([torch.ones(before, dtype=torch.bool), row < 0])
        wanted.append(with_vectors(base, as_text(row, before), virtual, filler))
        assert relative_error(wanted[-1], base(as_text(row, before)[None]).logits[0].detach()) > 1e-3, "ids matter"
    ids, mask = padded(rows, "right")
    with torch.no_grad():
        logits = model(ids, attention_mask=mask).logits
        answer = model.generate(ids, attention_mask=mask, max_new_tokens=1, do_sample=False)
    for at, right in enumerate(wanted):
        assert relative_error(logits[at][mask[at].bool()], right[before:]) < 1e-5
        assert int(answer[at, -1]) == int(right[-1].argmax())


class MakesMoreOfIds(LlamaForCausalLM):
    """Takes ids alone, and adds something of each to the logits behind it."""

    more: torch.Tensor

    def forward(self, input_ids: Any = None, inputs_embeds: Any = None, **kwargs: Any) -> Any:
        if inputs_embeds is not None:
            raise ValueError("ids, please")
        output = super().forward(input_ids, **kwargs)
        output.logits = output.logits + self.more[input_ids][:, -output.logits.shape[1] :]
        return output


@pytest.mark.parametrize("way", ["prefix", "concatenation"])
def test_ids_beside_embeddings_on_every_way(way: str, monkeypatch: pytest.MonkeyPatch) -> None:
    plain = build("llama", tie_word_embeddings=False)
    base = MakesMoreOfIds(plain.config).eval()
    base.load_state_dict(plain.state_dict())
    base.more = torch.randn(128, 128, generator=torch.Generator().manual_seed(1))
    model = prompted(base, 4)
    filler = model.capability.filler_id
    assert filler is not None
    assert model.capability.prefix
    assert_on_way(model, way, 4, monkeypatch)
    rows = rows_of(4)
    ids, mask = padded(rows, "left")
    with torch.no_grad():
        logits = model(ids, attention_mask=mask).logits
    out = model.generate(ids, attention_mask=mask, max_new_tokens=3, do_sample=False, eos_token_id=None)
    for at, row in enumerate(rows):
        read = row
        for step in range(4):
            with torch.no_grad():
                right = plain(as_text(read, 4)[None]).logits[0, 4:] + base.more[read.masked_fill(read < 0, filler)]
            if not step:
                assert relative_error(logits[at][mask[at].bool()], right) < 1e-5
            read = torch.cat([read, right[-1:].argmax(dim=-1)])
        assert torch.equal(out[at, ids.shape[1] :], read[len(row) :][:3])
