"""One answer at a time, by transformers' own `generate`: for models and requests that cannot share a running batch.

Those are models that keep a running state, that answer no padded rows or that read every text anew, and texts that
reach beyond a sliding window. `generate` runs the model; what is chosen, and when an answer ends, is decided as for the
rows of a batch: a logits processor looks at what the model predicts and leaves the chosen token alone.

Shapes: `V` vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from transformers import LogitsProcessor, LogitsProcessorList, StoppingCriteria, StoppingCriteriaList

from ptune.choices import GREEDY
from ptune.frozen.parameters import device_of
from ptune.frozen.view import ModelView
from ptune.generation.behind_prompt import generate_behind
from ptune.model.wrapper import PTunedModel
from ptune.packed.fused import replacement
from ptune.serving.engine.batched_model import prompts_of_rows
from ptune.serving.engine.requested import Job

Take = Callable[[torch.Tensor], tuple[int, bool]]
"""`(1, V)` logits → the token that is chosen, and whether the answer is over."""


class _Chosen(LogitsProcessor):
    def __init__(self, take: Take) -> None:
        self._take = take
        self.over = False

    def __call__(self, _input_ids: torch.LongTensor, scores: torch.FloatTensor) -> torch.FloatTensor:
        token, self.over = self._take(scores)
        chosen = torch.full_like(scores, float("-inf"))
        chosen[0, token] = 0.0
        return chosen  # type: ignore[return-value]  # of the kind that came


class _Over(StoppingCriteria):
    def __init__(self, chosen: _Chosen) -> None:
        self._chosen = chosen

    def __call__(self, input_ids: torch.LongTensor, _scores: torch.FloatTensor, **_kwargs: Any) -> torch.BoolTensor:
        return torch.full((len(input_ids),), self._chosen.over, device=input_ids.device)  # type: ignore[return-value]


class SingleModel:
    """A frozen model that answers one row.

    Args:
        model: The model.
    """

    def __init__(self, model: PTunedModel) -> None:
        self._model = model
        self._view = ModelView(model.base, replacement)

    @torch.no_grad()
    def answer(self, job: Job, take: Take) -> None:
        """Write one choice, each of its tokens by `take`."""
        device = device_of(self._model.base)
        ids = torch.tensor([list(job.ids)], device=device)
        chosen = _Chosen(take)
        options: dict[str, Any] = {
            **GREEDY,
            "max_new_tokens": job.max_new_tokens,
            "repetition_penalty": 1.0,
            "num_beams": 1,
            "pad_token_id": 0,
            "logits_processor": LogitsProcessorList([chosen]),
            "stopping_criteria": StoppingCriteriaList([_Over(chosen)]),
        }
        if job.ignore_eos:
            options["eos_token_id"] = None
        generate_behind(
            self._model.base,
            self._view,
            self._model.capability,
            self._model.context_length,
            prompts_of_rows(self._model, [job.prompt]),
            input_ids=ids,
            attention_mask=torch.ones_like(ids),
            virtual=job.prompt is not None and bool((ids < 0).any()),
            options=options,
        )
