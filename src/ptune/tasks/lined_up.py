"""The rows of a batch with every text at the left, and what comes out where the text stood.

Padding may come on either side. A text that begins at the left has its [CLS] token in column 0, where poolers look for
it, and its positions count on behind the prompt; so that is how rows are run. What is given beside the tokens (types,
labels, places of an answer) is moved along, and what comes out of it is moved back.

Shapes: `B` rows, `T` tokens of the longest row, `N` tokens of all rows; `(B, C)` is the form in which the text came.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch.nn.utils.rnn import pad_sequence
from transformers import PreTrainedModel
from transformers.utils.generic import ModelOutput

from ptune.batch.text import Text
from ptune.errors import ConfigError


@dataclass(frozen=True)
class LinedUp:
    """A batch of texts as it came, and as it is run."""

    text: Text
    starts: torch.Tensor | None
    """`(B,)`: the column of each row's first token; None where it is 0 in all of them."""

    @classmethod
    def of(
        cls,
        input_ids: torch.Tensor | None,
        inputs_embeds: torch.Tensor | None,
        attention_mask: torch.Tensor | None,
        device: torch.device,
    ) -> LinedUp:
        """Check what a caller passed; arguments and errors as for `Text.of`.

        Raises:
            ConfigError: A row without any token.
        """
        text = Text.of(input_ids, inputs_embeds, attention_mask, device=device)
        if 0 in text.lengths:
            raise ConfigError(
                f"row {text.lengths.index(0)} of the batch has no tokens.", hint="Leave such rows out of the batch."
            )
        starts = None
        if text.places is not None:
            assert attention_mask is not None
            first = attention_mask.to(torch.int8).argmax(dim=1).to(device)
            starts = first if bool(first.any()) else None
        return cls(text, starts)

    @cached_property
    def mask(self) -> torch.Tensor:
        """`(B, T)`: 1 at text, 0 at the padding behind it."""
        length = torch.tensor(self.text.lengths, device=self.text.device)
        return (torch.arange(self.text.longest, device=self.text.device) < length[:, None]).long()

    def moved(self, values: torch.Tensor, name: str, fill: float) -> torch.Tensor:
        """`(B, T)` of `(B, C)`: what is given for every token, beside it; `fill` at the padding.

        Raises:
            ConfigError: It has another shape than the text.
        """
        return self.text.padded(self.flat(values, name), fill)

    def flat(self, values: torch.Tensor, name: str) -> torch.Tensor:
        """`(N,)` of `(B, C)`; errors as for `moved`."""
        if tuple(values.shape) != self.text.came_as:
            raise ConfigError(f"{name} has shape {tuple(values.shape)}, the text {self.text.came_as}.")
        every = values.to(self.text.device).reshape(-1)
        return every if self.text.places is None else every[self.text.places]

    def back(self, values: torch.Tensor) -> torch.Tensor:
        """`(B, C, …)` of `(B, T, …)`: where the text stood; zeros at padding."""
        return self.text.as_it_came(self.text.flat(values))

    def column(self, places: torch.Tensor) -> torch.Tensor:
        """`(B,)`: columns of the text as it came, as columns of it as it is run; -1 for one that is not of the text."""
        places = places.to(self.text.device).reshape(-1)
        places = places if self.starts is None else places - self.starts
        return places.masked_fill((places < 0) | (places >= self.mask.sum(dim=1)), -1)


def read_inputs(
    model: PreTrainedModel, prompts: Sequence[torch.Tensor | None], rows: LinedUp
) -> dict[str, torch.Tensor]:
    """`inputs_embeds` `(B, P + T, D)` and `attention_mask` for an encoder: each row behind its prompt's vectors."""
    text, lengths = rows.text, list(rows.text.lengths)
    embeds = torch.split(text.embeddings(model), lengths)
    joined = [
        one if prompt is None else torch.cat([prompt.to(one.dtype), one])
        for prompt, one in zip(prompts, embeds, strict=True)
    ]
    whole = torch.tensor([len(one) for one in joined], device=text.device)
    padded = pad_sequence(joined, batch_first=True)
    mask = (torch.arange(padded.shape[1], device=text.device) < whole[:, None]).long()
    return {"inputs_embeds": padded, "attention_mask": mask}


def without_logits(output: ModelOutput) -> ModelOutput:
    """An output without what nobody is going to read."""
    return type(output)(**{name: value for name, value in output.items() if not name.endswith("logits")})


def output_lined_up(
    rows: LinedUp, output: ModelOutput, loss: torch.Tensor | None = None, *, whole: bool = False
) -> ModelOutput:
    """An output with its loss first, and what belongs to tokens where they stood.

    Args:
        rows: The rows.
        output: What came out of them.
        loss: Of the task.
        whole: Whether `logits` belong to rows.
    """
    values = {name: value for name, value in output.items() if name != "loss" and value is not None}
    for name in ("last_hidden_state", "start_logits", "end_logits", *(() if whole else ("logits",))):
        if name in values:
            values[name] = rows.back(values[name])
    for name in {"start_logits", "end_logits"} & set(values):
        # What stands at padding is no answer, wherever the padding stands.
        outside = rows.back(rows.mask) == 0
        values[name] = values[name].masked_fill(outside, torch.finfo(values[name].dtype).min)
    if "hidden_states" in values:
        values["hidden_states"] = tuple(rows.back(one) for one in values["hidden_states"])
    return type(output)(**({} if loss is None else {"loss": loss}), **values)
