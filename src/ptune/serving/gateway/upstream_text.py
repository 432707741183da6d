"""A prompt and a text as a server of the frozen model takes them: token ids, or embeddings.

Where the served model has the virtual tokens in its vocabulary (`ptune export --to model`) their ids stand among those
of the text. Otherwise the whole text is sent as embeddings, vLLM's `prompt_embeds`: the base64 text of a `(T, D)`
tensor from `torch.save`. The rows of the text come from a memory-mapped table; nothing else of the model is read.

Shapes: `P` virtual tokens of a prompt, `T` positions of prompt and text, `D` token dimension.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from ptune.errors import ModelError
from ptune.saved.as_model.chat import with_prompt
from ptune.serving.engine.requested import Job
from ptune.serving.served_prompt import ServedPrompt


class UpstreamText:
    """What is sent of a job's prompt and text.

    Args:
        table: The frozen model's embedding layer, for prompts that are not in its vocabulary.
        scale: What that layer multiplies its rows with.
    """

    def __init__(self, table: nn.Module | None = None, scale: float = 1.0) -> None:
        self._table, self._scale = table, scale

    def of(self, job: Job) -> dict[str, Any]:
        """The part of a `/v1/completions` request that says what is answered.

        Raises:
            ModelError: It asks for something that embeddings cannot say.
        """
        if job.prompt is None:
            return {"prompt": list(job.ids)}
        if job.prompt.first_id is not None:
            return {"prompt": with_prompt(job.ids, job.prompt.first_id, job.prompt.leading)}
        if job.sampling.repetition_penalty != 1.0:
            raise ModelError(
                "repetition_penalty looks at the tokens of the text, and the upstream gets embeddings.",
                hint="Leave it out, or serve the prompt as vocabulary (ptune export --to model).",
            )
        stored = io.BytesIO()
        torch.save(self._embeddings(job.prompt, job.ids), stored)
        return {"prompt_embeds": base64.b64encode(stored.getvalue()).decode("ascii")}

    @torch.no_grad()
    def _embeddings(self, prompt: ServedPrompt, ids: Sequence[int]) -> torch.Tensor:
        """`(T, D)` in float32."""
        assert isinstance(self._table, nn.Embedding)
        vectors = prompt.encoder.baked().float()
        text = torch.tensor(ids)
        rows = self._table.weight[text.clamp(min=0)].float() * self._scale
        inside = text < 0
        rows[inside] = vectors[-1 - text[inside]]
        return torch.cat([vectors[: prompt.leading], rows])
