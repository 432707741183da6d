"""One short text, tried on every way through a frozen model before anything else is run on it.

What `capability` reads off a class may not hold: a class nobody looked at, code from the hub, a changed version of
transformers. A wrong mask, position or cache gives wrong numbers and no error. So the ways that a model is said to take
are run once, on a handful of tokens, and held against the plainest one, prompt and text concatenated in one row without
padding or a cache. A way that differs is not taken. Only a model that sees the text ahead, or that cannot be run on
vectors at all, is refused: for it no way is right.

It costs six runs of the model over a few tokens each, more where a way fails.

Differences are relative, and held against what the prompt itself makes of the logits: of a trained model in float32 a
wrong position moves them by a tenth of that and more, and rounding by a ten-thousandth.

Shapes: `P` virtual tokens, `T` text tokens, `D` token dimension, `V` vocabulary.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F
from transformers import LogitsProcessor, LogitsProcessorList, PreTrainedModel

from ptune.batch.row_prompts import RowPrompts
from ptune.batch.text import Text
from ptune.encoders import build_encoder
from ptune.errors import ModelError, one_line
from ptune.frozen.cache_argument import CACHE_NAMES
from ptune.frozen.capability import Capability, not_causal
from ptune.frozen.eval_mode import in_eval_mode
from ptune.frozen.filler_ids import fed, filler_of
from ptune.frozen.parameters import device_of
from ptune.frozen.parts import output_head
from ptune.frozen.view import ModelView
from ptune.generation.prompted_view import Forward, concat_forward, prefix_forward, prompted_view
from ptune.packed.packed_forward import run_packed
from ptune.padded.concatenation import positions
from ptune.padded.padded_forward import run_prefixed
from ptune.prefix.across_calls import PrefixCache
from ptune.prefix.across_micro_batches import SharedPrefix

VIRTUAL, TEXT, SHORT = 3, 6, 3
"""Virtual tokens, and tokens of the longer and the shorter row."""
_OF_THE_PROMPT, _ROUNDINGS = 0.002, 12
"""How much a way may differ: a share of what the prompt changes, and so many times the dtype's precision (or four times
what a batch of another shape changes)."""
_NAME = "probe"


def self_check(
    base: PreTrainedModel,
    declared: Capability,
    packing_obstacle: str | None,
    *,
    answering: ModelView,
    packed: ModelView,
) -> tuple[Capability, str | None]:
    """What a model is found to do of what it is said to do.

    Args:
        base: The frozen model, with its weights.
        declared: What its class says.
        packing_obstacle: Why batches cannot be packed; None when that is to be tried.
        answering: The view that answers.
        packed: The view that packed batches run through.

    Returns:
        The capability, and why batches cannot be packed.

    Raises:
        ModelError: The model sees the text ahead, or cannot be run on virtual tokens.
    """
    place = device_of(base)
    devices = [place] if place.type == "cuda" else []
    with (
        torch.inference_mode(mode=False),
        torch.no_grad(),
        torch.random.fork_rng(devices=devices),
        in_eval_mode(base),
    ):
        probe = _Probe(base, declared)
        capability = probe.answers(probe.prefixed(), answering)
        if packing_obstacle is None:
            packing_obstacle = probe.packed(capability, packed)
    return capability, packing_obstacle


class _Probe:
    """The text, what is right, and the tries.

    Args:
        base: The frozen model, in eval mode.
        declared: What its class says.
    """

    def __init__(self, base: PreTrainedModel, declared: Capability) -> None:
        self.base, self.name = base, type(base).__name__
        ids = _ordinary_tokens(base, VIRTUAL + TEXT)
        self.text, hard = ids[VIRTUAL:], ids[:VIRTUAL]
        # As far as its third token the short row is the long one; then other text stands where padding would.
        self.short = torch.cat([self.text[:SHORT], hard[: TEXT - SHORT]])
        embeds = base.get_input_embeddings()(hard[None])[0]
        self.soft = (embeds + embeds.roll(1, dims=0)) / 2
        """`(P, D)`: no token of the vocabulary has these vectors."""
        with _seen_by_the_head(base) as shapes:
            plain = self._logits(input_ids=torch.cat([hard, self.text])[None])[0]
        narrow = shapes == [(1, len(plain))]
        self.filler_id, rows, noise = self._concatenated(hard, plain)
        self.right, self.right_short = rows[0], rows[1]
        """`(P + T, V)` of the long row and of the short one."""
        spread = _error(self.right[VIRTUAL:], plain[VIRTUAL:])
        precision = max(torch.finfo(self.right.dtype).eps, torch.finfo(_kind_of(base)).eps)
        self.tolerance = _OF_THE_PROMPT * spread + max(_ROUNDINGS * precision, 4 * noise)
        self._check_causal()
        self.declared = replace(declared, filler_id=self.filler_id, narrow_head=narrow)
        self.prompts = self._prompts()

    # ---- what is right -----------------------------------------------------------------------------------------

    def _concatenated(self, hard: torch.Tensor, plain: torch.Tensor) -> tuple[int | None, torch.Tensor, float]:
        """The filler's id where embeddings alone are not enough, `(4, P + T, V)`, and what rounding makes of them.

        Prompt and both rows; the first tokens as their embeddings, which must give what they give as ids; and another
        prompt, which must not give the same.
        """
        rows = torch.stack([self.text, self.short, self.text, self.text])
        embed = self.base.get_input_embeddings()
        front = torch.stack([self.soft, self.soft, embed(hard[None])[0], -self.soft])
        embeds = torch.cat([front, embed(rows)], dim=1)
        filler = filler_of(self.base)
        faults = []
        for filler_id in (None, filler):
            ids = None
            if filler_id is not None:
                head = torch.full((4, VIRTUAL), filler_id, device=rows.device)
                head[2] = hard
                ids = torch.cat([head, rows], dim=1)
            try:
                model, inputs = fed(self.base, embeds.clone(), ids)
                found = self._logits(model, **inputs)
            except Exception as fault:  # noqa: BLE001  # whatever the model's own code raises
                faults.append(one_line(fault))
                continue
            difference = _error(found[2], plain)
            if torch.equal(found[3], found[0]):
                faults.append("another prompt gives the same logits")
                continue
            if difference <= max(0.05, _ROUNDINGS * torch.finfo(found.dtype).eps):
                return filler_id, found, difference
            faults.append(f"embeddings give logits {difference:.1%} off those of the tokens themselves")
        raise ModelError(
            f"{self.name} cannot be run on virtual tokens: {faults[0][:300].rstrip('.')}.", hint="Choose another model."
        )

    def _logits(self, model: PreTrainedModel | None = None, **inputs: Any) -> torch.Tensor:
        logits: torch.Tensor = (self.base if model is None else model)(**inputs, use_cache=False).logits
        return logits

    def _check_causal(self) -> None:
        seen = VIRTUAL + SHORT
        ahead = _error(self.right_short[:seen], self.right[:seen])
        if ahead > self.tolerance:
            what = f"sees the text ahead (other words behind a token change its logits by {ahead:.1%})"
            raise not_causal(self.base, what)

    def _prompts(self) -> RowPrompts:
        encoder = build_encoder("embedding", num_virtual_tokens=VIRTUAL, token_dim=self.soft.shape[-1])
        encoder.to(self.soft.device, self.soft.dtype).embedding.weight.copy_(self.soft)
        return RowPrompts(
            names=[_NAME] * 2,
            encoders={_NAME: encoder},
            dtype=self.soft.dtype,
            shared=SharedPrefix(),
            kept=PrefixCache(),
            filler_id=self.filler_id,
        )

    # ---- the tries ---------------------------------------------------------------------------------------------

    def prefixed(self) -> Capability:
        """Keys and values against concatenation."""
        if not self.declared.prefix:
            return self.declared

        def run() -> float:
            prefix = self.prompts.prefix(self.base)
            batch = Text.of(torch.stack([self.text, self.short]))
            found = run_prefixed(
                self.base, prefix, batch, num_items=None, return_logits=True, narrow=False, kwargs={}
            ).logits
            assert found is not None
            return max(
                _error(prefix.logits[0], self.right[VIRTUAL - 1]),
                _error(found[0], self.right[VIRTUAL:]),
                _error(found[1], self.right_short[VIRTUAL:]),
            )

        fault = self._fault(run)
        return self.declared if fault is None else self._without_prefix(self.declared, fault)

    def _without_prefix(self, capability: Capability, fault: str) -> Capability:
        reason = f"{self.name}, tried with the prompt as keys and values, {fault}; the prompt is concatenated instead"
        return replace(capability, prefix=False, left_padding=True, reason=reason, notes=(*capability.notes, reason))

    def answers(self, capability: Capability, view: ModelView) -> Capability:
        """A cache, padding on the left, and rows of the cache that change places, each taken away where it fails."""
        concatenated = partial(concat_forward, view.current(), self.prompts.each(), filler_id=self.filler_id)
        if capability.prefix:
            prefixed = partial(prefix_forward, view.current(), self.prompts.prefix(self.base))
            found = self._answers(capability, prefixed)
            if found.answer_obstacle is None:
                if found.sliding_window is None:
                    return found
                fault = self._fault(lambda: self._answered(concatenated(), padded=True))
                return replace(found, concat_padding=fault is None)
            capability = self._without_prefix(capability, "cannot go on from them")
        found = self._answers(capability, concatenated)
        found = replace(found, concat_padding=found.left_padding)
        if found.cached_decoding and self._fault(lambda: self._exchanged(concatenated())) is not None:
            note = f"{self.name} has a cache whose rows cannot change places; beams do without one"
            found = replace(found, beams_share=False, notes=(*found.notes, note))
        return found

    def _answers(self, capability: Capability, make: Callable[[], Forward]) -> Capability:
        kept = capability.cached_decoding

        def fault_of(*, padded: bool, use_cache: bool = kept) -> str | None:
            return self._fault(lambda: self._answered(make(), padded=padded, use_cache=use_cache))

        first = fault_of(padded=True) if capability.left_padding else ""
        if first is None:
            return capability
        notes = capability.notes
        if first:
            notes = (*notes, f"{self.name}, tried with padding on the left, {first}; rows are answered by length")
        fault = fault_of(padded=False)
        if fault is None:
            return replace(capability, left_padding=False, notes=notes)
        notes = (*notes, f"{self.name}, tried with a cache, {fault}; every new token reads the whole text")
        capability = replace(capability, left_padding=False, cached_decoding=False, beams_share=False, notes=notes)
        fault = fault_of(padded=False, use_cache=False)
        return replace(capability, answer_obstacle=fault and f"{self.name}, tried with an answer, {fault}")

    def _answered(self, forward: Forward, *, padded: bool, use_cache: bool = True) -> float:
        """Two tokens by transformers' `generate`, to both rows; the second is the short one. Which tokens is given."""
        ids, ends = self._beginnings()
        mask = torch.ones_like(ids)
        if padded:
            ids[1] = torch.cat([ids.new_full((1,), filler_of(self.base)), self.short[:SHORT]])
            mask[1, 0], ends[1] = 0, VIRTUAL + SHORT
        given = torch.stack([row[end - VIRTUAL :][:2] for row, end in zip((self.text, self.short), ends, strict=True)])
        made: Any = prompted_view(self.base, forward)
        out = made.generate(
            ids,
            attention_mask=mask,
            max_new_tokens=2,
            do_sample=False,
            num_beams=1,
            use_cache=use_cache,
            pad_token_id=filler_of(self.base),
            logits_processor=LogitsProcessorList([_Given(given)]),
            output_logits=True,
            return_dict_in_generate=True,
        )
        return max(
            _error(out.logits[step][row], right[end - 1 + step])
            for step in range(2)
            for row, (right, end) in enumerate(zip((self.right, self.right_short), ends, strict=True))
        )

    def _exchanged(self, forward: Forward) -> float:
        """One more token behind a cache whose rows have changed places."""
        ids, ends = self._beginnings()
        places = self.declared.takes_position_ids
        first = forward(input_ids=ids, use_cache=True, **({"position_ids": positions(ids >= 0)} if places else {}))
        name = next(name for name in CACHE_NAMES if getattr(first, name, None) is not None)
        cache: Any = getattr(first, name)
        cache.reorder_cache(torch.tensor([1, 0], device=ids.device))
        tokens = torch.stack([self.short[ids.shape[1]], self.text[ids.shape[1]]]).unsqueeze(1)
        second = forward(input_ids=tokens, use_cache=True, **{name: cache})
        return max(
            _error(second.logits[0, -1], self.right_short[ends[1]]),
            _error(second.logits[1, -1], self.right[ends[0]]),
        )

    def _beginnings(self) -> tuple[torch.Tensor, list[int]]:
        """Both rows without their last two tokens, and how many positions each has behind the prompt."""
        read = TEXT - 2
        return torch.stack([self.text[:read], self.short[:read]]), [VIRTUAL + read, VIRTUAL + read]

    def packed(self, capability: Capability, view: ModelView) -> str | None:
        """Why batches cannot be packed; None where both rows came out right."""
        if not capability.prefix:
            return capability.reason
        rows: Sequence[torch.Tensor] = [self.text, self.short[:SHORT]]
        ids = torch.cat(list(rows))[None]
        wanted = [self.right, self.right_short[: VIRTUAL + SHORT]]

        def run() -> float:
            text = Text.of(ids, labels=ids, row_lengths=[len(row) for row in rows])
            output = run_packed(view.current(), text, self.prompts, num_items=1, return_logits=None)
            loss, logits = output.loss, output.logits
            assert loss is not None
            assert logits is not None
            right = torch.cat([one[VIRTUAL - 1 : -1] for one in wanted]).to(loss.dtype)
            return max(
                _error(logits[0], torch.cat([one[VIRTUAL:] for one in wanted])),
                _error(loss, F.cross_entropy(right, ids[0], reduction="sum")),
            )

        fault = self._fault(run)
        return None if fault is None else f"{self.name}, tried with packed rows, {fault}"

    def _fault(self, run: Callable[[], float]) -> str | None:
        """What was wrong, as a verb phrase; None where the largest relative error is rounding."""
        try:
            error = run()
        except ModelError as fault:
            return f"says: {fault.message.rstrip('.')}"
        except Exception as fault:  # noqa: BLE001  # whatever the model's own code raises
            said = one_line(fault)[:200].rstrip(". ")
            return f"fails with {type(fault).__name__}" + (f": {said}" if said else "")
        if error <= self.tolerance:
            return None
        return f"is {error:.1%} off" if math.isfinite(error) else "gives NaN"


@contextmanager
def _seen_by_the_head(base: PreTrainedModel) -> Iterator[list[tuple[int, ...]]]:
    """Collects the first two dimensions of what the LM head is given: rows and positions, where it can be narrowed."""
    head = output_head(base)
    shapes: list[tuple[int, ...]] = []
    if head is None:
        yield shapes
        return

    def note(_module: nn.Module, args: tuple[torch.Tensor, ...]) -> None:
        shapes.append(tuple(args[0].shape[:2]))

    handle = head.register_forward_pre_hook(note)
    try:
        yield shapes
    finally:
        handle.remove()


class _Given(LogitsProcessor):
    """Has `generate` choose the tokens of a list `(rows, steps)`, one after another."""

    def __init__(self, tokens: torch.Tensor) -> None:
        self.tokens, self.step = tokens, 0

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        del input_ids
        chosen = torch.full_like(scores, float("-inf")).scatter(1, self.tokens[:, self.step, None], 0)
        self.step += 1
        return chosen


def _ordinary_tokens(base: PreTrainedModel, count: int) -> torch.Tensor:
    """`(count,)` token ids from the middle of the vocabulary that no field of the configuration names."""
    config = base.config.get_text_config(decoder=True)
    named: set[int] = set()
    for one in (config, base.config):
        for key, value in one.to_dict().items():
            if key.endswith(("token_id", "token_index")):
                named.update(item for item in (value if isinstance(value, list) else [value]) if isinstance(item, int))
    size = int(config.vocab_size)
    chosen = [token for token in range(size // 3, size) if token not in named][:: max(1, size // (3 * count))]
    chosen = (chosen or [0])[:count]
    return torch.tensor((chosen * count)[:count], device=device_of(base))


def _kind_of(base: PreTrainedModel) -> torch.dtype:
    """The coarsest kind of number that the model computes with: bfloat16 for a quantized one."""
    kinds = {weight.dtype for weight in base.parameters()}
    floats = [kind for kind in kinds if kind.is_floating_point and kind.itemsize > 1]
    if len(floats) < len(kinds):
        return torch.bfloat16
    return max(floats, key=lambda kind: torch.finfo(kind).eps)


def _error(found: torch.Tensor, wanted: torch.Tensor) -> float:
    """The norm of the difference over the norm of what is wanted; infinite for NaN."""
    found, wanted = found.double(), wanted.double()
    error = float((found - wanted).norm() / wanted.norm().clamp_min(1e-30))
    return float("inf") if math.isnan(error) else error
