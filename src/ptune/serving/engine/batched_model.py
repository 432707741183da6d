"""The frozen model on the rows of a running batch: texts are read behind their prompts, then token after token.

transformers has continuous batching of its own (`transformers.generation.continuous_batching`). It cannot be used here:
a request of it is a list of token ids (`RequestState.initial_tokens`), its paged cache is filled by running those
alone, and what it shares between requests is found by hashing ids. A soft prompt has no ids, and neither vectors nor
keys and values can be handed in.

Texts that join are read together in one padded forward, as `generate` reads a batch of rows with different prompts,
each behind the kept prefix of its prompt. What that leaves in the cache joins `BatchCache`. A step reads one token of
every row in one forward.

Shapes: `K` rows that join, `N` rows, `T` text tokens, `P` longest prompt, `V` vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from transformers.cache_utils import DynamicCache

from ptune.batch.row_prompts import RowPrompts
from ptune.frozen.cache_argument import as_cache
from ptune.frozen.parameters import device_of
from ptune.frozen.parts import embedding_table
from ptune.frozen.view import ModelView
from ptune.generation.inside_text import WholeRows
from ptune.generation.prompted_view import Forward, prefix_forward
from ptune.model.wrapper import PTunedModel
from ptune.packed.fused import replacement
from ptune.padded.concatenation import positions
from ptune.prefix.keys_values import keys_and_values
from ptune.serving.engine.batch_cache import BatchCache, NewRow
from ptune.serving.engine.missing_prefixes import keep_missing_prefixes
from ptune.serving.engine.requested import Job
from ptune.serving.served_prompt import ServedPrompt


def prompts_of_rows(model: PTunedModel, prompts: Sequence[ServedPrompt | None]) -> RowPrompts:
    """The prompt of each row, as the ways through the model take them."""
    different = {one.key: one for one in prompts if one is not None}
    return RowPrompts(
        names=[None if one is None else one.key for one in prompts],
        encoders={key: one.encoder for key, one in different.items()},
        dtype=embedding_table(model.base).dtype,
        shared=model.shared_prefix,
        kept=model.prefixes,
        filler_id=model.capability.filler_id,
        in_text={key: one.inside for key, one in different.items() if one.inside},
    )


_OF_GENERATE = (
    "bad_words_ids",
    "begin_suppress_tokens",
    "exponential_decay_length_penalty",
    "forced_bos_token_id",
    "forced_eos_token_id",
    "min_length",
    "min_new_tokens",
    "no_repeat_ngram_size",
    "sequence_bias",
    "suppress_tokens",
)
"""What a model's `generation_config.json` may ask of every answer, and `generate` alone does."""


def batching_obstacle(model: PTunedModel) -> str | None:
    """Why rows of this model cannot share a running batch; None where they can."""
    own = model.capability
    asked = [name for name in _OF_GENERATE if getattr(model.base.generation_config, name, None)]
    if asked:
        return f"its generation_config.json sets {', '.join(asked)}"
    if not own.prefix:
        return own.reason
    name = type(model.base).__name__
    if not own.left_padding:
        return f"{name} does not answer rows of different lengths together"
    if not own.cached_decoding:
        return f"{name} reads the whole text again for every new token"
    if not own.beams_share:
        return f"rows of the cache of {name} cannot change places"
    return None


class BatchedModel:
    """A frozen model and the keys and values of the rows that it is answering.

    Args:
        model: The model; it is taken as it is now, and may not change.
    """

    def __init__(self, model: PTunedModel) -> None:
        self._model = model
        self._view = ModelView(model.base, replacement).current()
        self._cache = BatchCache()

    @property
    def rows(self) -> int:
        """`N`."""
        return len(self._cache.lengths)

    @property
    def held_bytes(self) -> int:
        """Memory of the keys and values of all rows."""
        return self._cache.held_bytes

    @torch.inference_mode()
    def join(self, jobs: Sequence[Job]) -> torch.Tensor:
        """Read texts behind their prompts; a row for each choice of each of them joins, in order.

        Returns:
            `(K, V)`: what the model predicts behind each text, a row for each choice.
        """
        prompts = prompts_of_rows(self._model, [job.prompt for job in jobs])
        ids, mask = self._padded([job.ids for job in jobs])
        prompts.check_ids(self._model.base, ids)
        forward, width = self._behind(prompts)
        given: dict[str, Any] = {"input_ids": ids, "attention_mask": mask}
        if prompts.in_text and bool((ids < 0).any()):
            real = mask.bool()
            prompts.check_inside(ids[real], real.sum(dim=1).tolist())
            rows = WholeRows.of(ids, mask, self._fill)
            assert prompts.inside is not None
            forward = rows.around(forward, self._view, prompts.inside, self._model.capability.filler_id)
            given = {"input_ids": rows.text_ids, "attention_mask": rows.text_mask}
        if self._model.capability.takes_position_ids:
            given["position_ids"] = positions(given["attention_mask"])
        cache = DynamicCache()
        output = forward(**given, **as_cache(self._view, cache), use_cache=True, logits_to_keep=1)
        total = width + ids.shape[1]
        joining = []
        for at, (job, size) in enumerate(zip(jobs, prompts.sizes(), strict=True)):
            spans = ((width - size, width), (total - len(job.ids), total))
            joining += [NewRow(at, tuple(span for span in spans if span[0] < span[1]))] * job.choices
        self._cache.join(keys_and_values(cache), joining)
        logits: torch.Tensor = output.logits[:, -1]
        return logits.repeat_interleave(torch.tensor([job.choices for job in jobs], device=logits.device), dim=0)

    @torch.inference_mode()
    def step(self, tokens: Sequence[int]) -> torch.Tensor:
        """Read a token of every row; `(N, V)`, what the model predicts behind it."""
        device = device_of(self._model.base)
        lengths = torch.tensor(self._cache.lengths, device=device)
        given: dict[str, Any] = {}
        if self._model.capability.takes_position_ids:
            given["position_ids"] = lengths[:, None]
        cache = self._cache.as_cache()
        mask = self._cache.mask(device)
        output = self._view(
            input_ids=torch.tensor(tokens, device=device)[:, None],
            attention_mask=mask,
            **given,
            **as_cache(self._view, cache),
            use_cache=True,
        )
        self._cache.stepped()
        logits: torch.Tensor = output.logits[:, -1]
        return logits

    @torch.inference_mode()
    def leave(self, row: int, *, scrub: bool = False) -> None:
        """Drop a row; arguments as for `BatchCache.leave`."""
        self._cache.leave(row, scrub=scrub)

    def clear(self) -> None:
        """Drop all rows."""
        self._cache.clear()

    @property
    def _fill(self) -> int:
        return self._model.capability.filler_id or 0

    def _behind(self, prompts: RowPrompts) -> tuple[Forward, int]:
        """A forward behind the prefixes of rows, and how many columns these take."""
        if not prompts.width:
            return self._view, 0
        keep_missing_prefixes(self._model, prompts)
        prefix = prompts.prefix(self._model.base)
        return prefix_forward(self._view, prefix), prefix.width

    def _padded(self, texts: Sequence[Sequence[int]]) -> tuple[torch.Tensor, torch.Tensor]:
        """`(K, T)` ids and mask, padded on the left."""
        longest = max(map(len, texts))
        rows = [[self._fill] * (longest - len(text)) + list(text) for text in texts]
        mask = [[0] * (longest - len(text)) + [1] * len(text) for text in texts]
        device = device_of(self._model.base)
        return torch.tensor(rows, device=device), torch.tensor(mask, device=device)
