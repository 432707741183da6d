"""How text runs behind its prompts: forward, hidden states, answers.

A batch goes through the frozen model packed in one sequence, padded behind the prompt's keys and values, or
concatenated with the prompt; `ptune.batch.path` decides. Logits
line up with the labels: `logits[:, t]` predicts token `t + 1`, as in any causal model of transformers; virtual tokens
are not among them.

Shapes: `B` rows, `T` text tokens, `N` tokens of all rows, `P` virtual tokens, `D` token dimension, `V` vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel
from transformers.modeling_outputs import CausalLMOutputWithPast, MoeModelOutputWithPast

from ptune.batch.path import Path, Way, choose_path
from ptune.batch.row_prompts import BASE_MODEL, RowNames, RowPrompts, names_of_rows, no_embeddings
from ptune.batch.text import Text, followed_by, take_flattened
from ptune.deep_config import PromptConfig
from ptune.encoders import PromptEncoder
from ptune.errors import ModelError, PromptError
from ptune.frozen.capability import Capability, context_length, prefix_capability
from ptune.frozen.parameters import device_of, has_weights
from ptune.frozen.parts import embedding_table, layers_of
from ptune.frozen.precision import check_autocast
from ptune.frozen.view import ModelView
from ptune.generation.behind_prompt import generate_behind, generator
from ptune.generation.unconditional import last_token_apart
from ptune.model.holds_prompts import DISABLED
from ptune.model.self_check import self_check as check_ways
from ptune.model.stand_in import StandsIn
from ptune.packed.attention import PACKED
from ptune.packed.fused import replacement
from ptune.packed.obstacle import exchanged_forward, packing_obstacle
from ptune.packed.packed_forward import run_packed, through_the_layers
from ptune.padded.padded_forward import (
    check_forward_arguments,
    concatenated_output,
    prefixed_output,
    run_concatenated,
    run_prefixed,
    text_of,
)
from ptune.prefix.across_calls import PrefixCache
from ptune.prefix.across_micro_batches import SharedPrefix

_OF_THE_HEAD = ("labels", "num_items_in_batch", "logits_to_keep", "output_router_logits", "return_logits")
"""Arguments that the layers have no use for."""


class RunsPrompts(StandsIn):
    """A frozen model behind prompts; `PTunedModel` gives it both."""

    capability: Capability
    context_length: int | None
    pack_batches: bool
    prompts: nn.ModuleDict
    prompt_configs: dict[str, PromptConfig]
    prefixes: PrefixCache
    shared_prefix: SharedPrefix
    _base_obstacle: str | None
    _view: ModelView
    _answering: ModelView

    def _find_ways(self, base: PreTrainedModel, *, self_check: bool) -> None:
        """Find the ways through a frozen model, from its class, and tried on a short text where that is wanted."""
        self.capability = prefix_capability(base)
        self.context_length = context_length(base)
        self._base_obstacle = packing_obstacle(base, self.capability)
        self.pack_batches = True
        """Whether padded training batches are packed on the way where that can be done; False computes the padding."""
        self._view = ModelView(base, replacement, attention=PACKED)
        self._answering = ModelView(base, replacement)
        if self_check and has_weights(base):
            known = self._base_obstacle or exchanged_forward(base)
            self.capability, self._base_obstacle = check_ways(
                base, self.capability, known, answering=self._answering, packed=self._view
            )
        self.shared_prefix = SharedPrefix()
        self.prefixes = PrefixCache()

    def prompt_called(self, name: str | None) -> str:
        """The name given, or the active prompt's."""
        raise NotImplementedError

    def encoder_of(self, name: str) -> PromptEncoder:
        """The encoder of a prompt."""
        raise NotImplementedError

    @property
    def _disabled(self) -> bool:
        """Whether this thread has turned the prompts off."""
        return id(self) in DISABLED.get()

    @property
    def packing_obstacle(self) -> str | None:
        """Why batches cannot be packed; None when they can."""
        return self._base_obstacle or exchanged_forward(self.base)

    @property
    def packs(self) -> bool:
        """Whether batches can be packed; `packing_obstacle` says why not."""
        return self.packing_obstacle is None

    def prefix_scope(self, *, last: bool) -> AbstractContextManager[None]:
        """Around forward and backward of a micro-batch: those of an optimizer step share one run of the prompt.

        Args:
            last: Whether it is the last micro-batch of its step; without it no gradient reaches the prompt encoder.
        """
        return self.shared_prefix.scope(last=last)

    def forward(
        self,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        inputs_embeds: torch.Tensor | None = None,
        *,
        prompt_names: RowNames = None,
        num_items_in_batch: torch.Tensor | int | None = None,
        return_logits: bool | None = None,
        row_lengths: Sequence[int] | None = None,
        position_ids: torch.Tensor | None = None,
        **kwargs: Any,
    ) -> CausalLMOutputWithPast:
        """Loss and logits behind the prompt.

        Args:
            input_ids: `(B, T)` text tokens, and virtual tokens inside the text by their ids (`ptune.data.blocks`).
            attention_mask: `(B, T)`, 0 at padding, which may stand left or right. All ones when None.
            labels: `(B, T)`, -100 where not supervised. A row's first token counts: the last virtual token predicts
                it. Not behind keys and values of every layer, which predict nothing. In eval mode labels of another
                length than the text are its answers, and follow it.
            inputs_embeds: `(B, T, D)` in place of `input_ids`.
            prompt_names: A prompt's name for all rows, or one a row (None: no prompt). The active one by default.
            num_items_in_batch: Supervised labels of the whole optimizer step, by which the summed loss is divided.
            return_logits: False computes the LM head at supervised positions alone and returns no logits. None does
                so too while training with labels, and computes the others when they are read.
            row_lengths: Of a packed batch (see `PackingCollator`): tokens of each row. The text is `(1, N)` then.
            position_ids: `(B, T)`, from 0 to the end of each row; where they start at 0 again, another row begins, as
                in the packed batches of other libraries. Nothing else is taken.
            kwargs: Passed to the frozen model (`output_hidden_states`, …). `adapter_names` is PEFT's `prompt_names`.

        Returns:
            `loss` (with labels), `logits` `(B, T, V)` or `(1, N, V)`, and what the frozen model adds, but no cache.

        Raises:
            ModelError: The text and prompt are longer than the context, a filled cache is passed, or position ids that
                do not begin at 0.
        """
        at_once = return_logits or (return_logits is None and not (self.training and labels is not None))
        lengths = take_flattened(kwargs) if row_lengths is None else row_lengths
        if self._disabled and lengths is None and not self._has_virtual(input_ids):
            if labels is not None:
                kwargs.update(labels=labels, num_items_in_batch=num_items_in_batch)
            if position_ids is not None:
                kwargs.update(position_ids=position_ids)
            bare: CausalLMOutputWithPast = self.base(
                input_ids=input_ids, attention_mask=attention_mask, inputs_embeds=inputs_embeds, **kwargs
            )
            return bare
        check_forward_arguments(kwargs)
        if labels is not None and input_ids is not None and not self.training and _are_answers(labels, input_ids):
            input_ids, attention_mask, labels = followed_by(input_ids, attention_mask, labels)
        form: dict[str, Any] = {"row_lengths": lengths, "position_ids": position_ids, "device": device_of(self.base)}
        text = Text.of(input_ids, inputs_embeds, attention_mask, labels, **form)
        text, prompts = self._prompts_of(text, prompt_names, kwargs)
        chosen = self.path_of(text, prompts, at_once=at_once, kwargs=kwargs)
        if chosen.way is Way.PACKED:
            view = self._view.current()
            return run_packed(view, text, prompts, num_items=num_items_in_batch, return_logits=return_logits)
        wanted: dict[str, Any] = {
            "num_items": num_items_in_batch,
            "return_logits": return_logits is not False,
            "narrow": return_logits is False and self.capability.narrow_head,
            "kwargs": kwargs,
        }
        filler = self.capability.filler_id
        if chosen.way is Way.PREFIX:
            return run_prefixed(self.base, prompts.prefix(self.base), text, filler_id=filler, **wanted)
        return run_concatenated(self.base, prompts.each(), text, filler_id=filler, **wanted)

    def _prompts_of(self, text: Text, names: RowNames, kwargs: dict[str, Any]) -> tuple[Text, RowPrompts]:
        """A batch's rows with the virtual tokens inside them, and their prompts; what cannot be run is refused."""
        if names is None and (given := kwargs.pop("adapter_names", None)) is not None:
            names = _as_prompt_names(given)
        prompts = self._row_prompts([None] * text.rows if self._disabled else names, text.rows)
        if text.ids is not None and None in prompts.names and self._in_text:
            text = text.without_virtual([name is None for name in prompts.names])
        if text.ids is not None and text.device.type == "cpu":  # elsewhere looking would wait for the device
            prompts.check_ids(self.base, text.ids)
            prompts.check_inside(text.ids, text.lengths)
        if prompts.in_text:
            if text.ids is None:
                raise no_embeddings(prompts)
            text = replace(text, inside=prompts.inside)
        prompts.check_length(self.context_length, text.longest)
        if text.labels is not None and self.training and torch.is_grad_enabled():
            self._check_training(prompts)
        return text, prompts

    @property
    def _in_text(self) -> dict[str, int]:
        """The prompts that have virtual tokens inside the text, and how many."""
        return {name: one.tokens_in_text for name, one in self.prompt_configs.items() if one.tokens_in_text}

    def _has_virtual(self, ids: torch.Tensor | None) -> bool:
        """Whether there are virtual tokens inside a text, which the bare model does not know."""
        return ids is not None and bool(self._in_text) and bool((ids < 0).any())

    def _check_training(self, prompts: RowPrompts) -> None:
        """Raise `PromptError` where some of the prompts that rows name train and others, which could, do not."""
        still = [
            name
            for name, encoder in prompts.encoders.items()
            if not any(one.requires_grad for one in encoder.parameters())
        ]
        left_out = [name for name in still if not self.prompt_configs[name].inference_mode]
        if left_out and len(still) < len(prompts.encoders):
            raise PromptError(
                f"rows of the batch name the prompt {left_out[0]!r}, which does not train as others do.",
                hint=f"Call train_prompts({list(prompts.encoders)!r}).",
            )

    def path_of(self, text: Text, prompts: RowPrompts, *, at_once: bool | None, kwargs: dict[str, Any]) -> Path:
        """The way that a batch takes, and why.

        Args:
            text: Its rows.
            prompts: The prompt of each row.
            at_once: Whether all logits are wanted with the result, for which padded rows are as good.
            kwargs: What is passed to the frozen model besides.
        """
        unpacked = None
        if kwargs:
            unpacked = f"{', '.join(kwargs)}: for the frozen model's own forward"
        elif text.ids is None or not text.ids.numel():
            unpacked = "the text is given as embeddings, or is empty"
        elif not text.is_packed and at_once:
            unpacked = "the logits of every position are wanted"
        elif not text.is_packed and not self.pack_batches:
            unpacked = "pack_batches is off"
        elif torch.compiler.is_compiling():
            unpacked = "torch.compile traces padded rows"
        return choose_path(self.base, self.capability, prompts, unpacked=unpacked or self.packing_obstacle)

    def last_hidden_state(
        self,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        inputs_embeds: torch.Tensor | None = None,
        *,
        prompt_names: RowNames = None,
        row_lengths: Sequence[int] | None = None,
        position_ids: torch.Tensor | None = None,
        **kwargs: Any,
    ) -> torch.Tensor:
        """What the LM head is given for every text token, `(B, T, hidden)`; arguments as for `forward`.

        Raises:
            ModelError: The model does not keep its layers apart from its head; or as for `forward`.
        """
        layers = layers_of(self.base)
        if not isinstance(layers, PreTrainedModel):
            raise ModelError(f"{type(self.base).__name__} does not keep its layers apart from its LM head.")
        lengths = take_flattened(kwargs) if row_lengths is None else row_lengths
        kwargs = {name: value for name, value in kwargs.items() if name not in _OF_THE_HEAD}
        check_forward_arguments(kwargs)
        form: dict[str, Any] = {"row_lengths": lengths, "position_ids": position_ids, "device": device_of(self.base)}
        text = Text.of(input_ids, inputs_embeds, attention_mask, **form)
        text, prompts = self._prompts_of(text, prompt_names, kwargs)
        chosen = self.path_of(text, prompts, at_once=False, kwargs=kwargs)
        if chosen.way is Way.PACKED:
            hidden = through_the_layers(self._view.current(), text, prompts).of_the_text
        elif chosen.way is Way.PREFIX:
            output = prefixed_output(layers, prompts.prefix(self.base), text, self.capability.filler_id, kwargs)
            hidden = text.flat(output.last_hidden_state)
        else:
            each = prompts.each()
            output = concatenated_output(layers, each, text, self.capability.filler_id, kwargs)
            hidden = text_of(each, text)(output.last_hidden_state)
        return text.as_it_came(hidden)

    @property
    def base_model(self) -> PromptedLayers:
        """The frozen model's layers with the prompt in front, for libraries that run layers and head by themselves."""
        return PromptedLayers(self)

    def _row_prompts(self, names: RowNames, rows: int) -> RowPrompts:
        """The prompt of each of `rows` rows."""
        check_autocast(self.base, device_of(self.base))
        each = names_of_rows(names, rows, self.prompt_called)
        encoders = {name: self.encoder_of(name) for name in dict.fromkeys(each) if name is not None}
        return RowPrompts(
            names=each,
            encoders=encoders,
            in_text={name: count for name, count in self._in_text.items() if name in encoders},
            dtype=embedding_table(self.base).dtype,
            shared=self.shared_prefix,
            kept=self.prefixes,
            filler_id=self.capability.filler_id,
        )

    @torch.no_grad()
    def generate(
        self,
        input_ids: torch.Tensor | None = None,
        *,
        attention_mask: torch.Tensor | None = None,
        prompt_names: RowNames = None,
        **kwargs: Any,
    ) -> Any:
        """The `generate` of transformers, behind the prompt, with sampling, beams, streamers, processors and the rest.

        Args:
            input_ids: `(B, T)` as for `forward`, padded left or right. Rows padded on the right come back padded on the
                left, so that the new tokens are `output[:, T:]` for every row. Without any text (and without
                `inputs_embeds`) the prompt alone begins the answer; only new tokens come back then.
            attention_mask: `(B, T)`, 0 at padding. Without it padding is told by its token, where that is not EOS too.
            prompt_names: As in `forward`.
            kwargs: As for `GenerationMixin.generate`; length limits and processors count text tokens alone.

        Returns:
            What `generate` returns: text and new tokens. Virtual tokens before the text are not among them; the places
            of those inside it hold padding.

        Raises:
            ModelError: A filled cache is passed, or prompt, text and new tokens exceed the context.
        """
        if input_ids is None:
            input_ids = kwargs.pop("inputs", None)
        if prompt_names is None and (given := kwargs.pop("adapter_names", None)) is not None:
            prompt_names = _as_prompt_names(given)
        text = kwargs.get("inputs_embeds") if input_ids is None else input_ids
        if self._disabled:
            if text is None or (self.capability.left_padding and not self._has_virtual(input_ids)):
                return generator(self.base).generate(input_ids, attention_mask=attention_mask, **kwargs)
            prompt_names = [None] * text.shape[0]
        if text is None:
            rows = 1 if prompt_names is None or isinstance(prompt_names, str) else len(prompt_names)
            prompts, kwargs["inputs_embeds"] = last_token_apart(self._row_prompts(prompt_names, rows))
        else:
            prompts = self._row_prompts(prompt_names, text.shape[0])
            if input_ids is None and prompts.in_text:
                raise no_embeddings(prompts)
        return generate_behind(
            self.base,
            self._answering,
            self.capability,
            self.context_length,
            prompts,
            input_ids=input_ids,
            attention_mask=attention_mask,
            virtual=self._has_virtual(input_ids),
            options=kwargs,
        )


def _are_answers(labels: torch.Tensor, input_ids: torch.Tensor) -> bool:
    return labels.dim() == 2 and labels.shape != input_ids.shape and len(labels) == len(input_ids)


def _as_prompt_names(adapter_names: Sequence[str | None]) -> list[str | None]:
    return [None if name == BASE_MODEL else name for name in adapter_names]


class PromptedLayers:
    """The frozen model's layers with the prompt in front, as a library calls them that runs the head by itself.

    Args:
        model: The model with its prompts.
    """

    def __init__(self, model: RunsPrompts) -> None:
        self._model = model

    @property
    def config(self) -> Any:
        """The frozen model's."""
        return self._model.base.config

    def __call__(self, *args: Any, **kwargs: Any) -> MoeModelOutputWithPast:
        """`last_hidden_state` `(B, T, hidden)`; arguments as for `RunsPrompts.last_hidden_state`."""
        return MoeModelOutputWithPast(last_hidden_state=self._model.last_hidden_state(*args, **kwargs))

    forward = __call__
