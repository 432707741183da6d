"""How a batch runs behind its prompts in a model for a task: forward and answers.

Every row comes out as if it were alone, behind real tokens with the prompt's vectors, whatever its padding: poolers
find the text's own [CLS], decoders' classifiers its last token, labels of tokens and places of answers are those of the
text. What comes out lines up with the text; virtual tokens are not among it.

A decoder takes the ways of `PTunedModel`: rows packed, a prompt that is computed once. An encoder attends both ways, so
its virtual tokens see the text: vectors are concatenated in every row, keys and values of every layer are shared.

Shapes: `B` rows, `C` tokens of the longest row as it came, `T` of the longest row as it is run, `P` virtual tokens, `A`
tokens of an answer, `D` token dimension.
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from typing import Any

import torch
from torch import nn
from transformers.modeling_outputs import BaseModelOutput, MaskedLMOutput
from transformers.utils.generic import ModelOutput

from ptune.batch.row_prompts import BASE_MODEL, RowNames, RowPrompts, names_of_rows, no_embeddings
from ptune.config import TaskType
from ptune.data.labels import IGNORE_INDEX
from ptune.errors import ConfigError, ModelError
from ptune.frozen.given import LayersOutput
from ptune.frozen.parameters import device_of
from ptune.frozen.parts import embedding_table
from ptune.frozen.precision import check_autocast
from ptune.model.decoder_layers import DecoderLayers
from ptune.model.holds_prompts import DISABLED, HoldsPrompts
from ptune.padded.padded_forward import check_forward_arguments
from ptune.prefix.across_calls import PrefixCache
from ptune.prefix.across_micro_batches import SharedPrefix
from ptune.tasks import losses
from ptune.tasks.behind_head import BehindHead
from ptune.tasks.both_ways import behind_keys, concatenated, with_virtual
from ptune.tasks.encoder_decoder import answer_inputs, answering_behind
from ptune.tasks.lined_up import LinedUp, output_lined_up, read_inputs, without_logits
from ptune.tasks.task_parts import reads_text

_OF_ANSWERS = (
    *("logits", "decoder_hidden_states", "decoder_attentions", "cross_attentions"),
    *("encoder_last_hidden_state", "encoder_hidden_states", "encoder_attentions"),
)
"""What comes back of an encoder-decoder's output: all but its cache."""


class RunsTasks(HoldsPrompts):
    """A model for a task behind prompts; `PTunedTaskModel` gives it its parts."""

    _layers: tuple[DecoderLayers, ...]
    """A decoder's ways; empty for others. In a tuple: it shares the model's modules, which count once."""
    shared_prefix: SharedPrefix
    _behind: BehindHead | None
    """The head; None where nothing stands on the part that reads text, or where the model runs as a whole."""

    # ---- forward -----------------------------------------------------------------------------------------------

    @property
    def packing_obstacle(self) -> str | None:
        """Why batches do not come packed; a decoder packs padded ones by itself."""
        return "rows of a model for a task come padded"

    @property
    def packs(self) -> bool:
        """Whether batches may come packed; `packing_obstacle` says why not."""
        return self.packing_obstacle is None

    def prefix_scope(self, *, last: bool) -> AbstractContextManager[None]:
        """Around forward and backward of a micro-batch; as for `PTunedModel`."""
        return self.shared_prefix.scope(last=last)

    def forward(
        self,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        inputs_embeds: torch.Tensor | None = None,
        *,
        token_type_ids: torch.Tensor | None = None,
        start_positions: torch.Tensor | None = None,
        end_positions: torch.Tensor | None = None,
        prompt_names: RowNames = None,
        num_items_in_batch: torch.Tensor | int | None = None,
        return_logits: bool | None = None,
        **kwargs: Any,
    ) -> ModelOutput:
        """Loss and output behind the prompt, as the frozen model's class gives them.

        Args:
            input_ids: `(B, C)` text tokens, with the special tokens that the model wants; virtual tokens inside the
                text by their ids (`ptune.data.blocks`).
            attention_mask: `(B, C)`, 0 at padding, which may stand left or right. All ones when None.
            labels: `(B,)`; `(B, C)` for tokens and masks, `(B, A)` for answers, -100 where there is none.
            inputs_embeds: `(B, C, D)` in place of `input_ids`.
            token_type_ids: `(B, C)`; virtual tokens are of type 0.
            start_positions: `(B,)`, columns of the text as it comes; `end_positions` too.
            end_positions: See there.
            prompt_names: As for `PTunedModel.forward`.
            num_items_in_batch: Labels of the whole optimizer step, by which the summed loss is divided.
            return_logits: False returns none, which saves putting them where their tokens stood.
            kwargs: For the part that reads text, or, of an encoder-decoder, the model.

        Raises:
            ConfigError: Shapes that do not fit, or a row without any token.
            ModelError: Prompt and text are longer than the context.
        """
        given = {"labels": labels, "start_positions": start_positions, "end_positions": end_positions}
        if self._disabled:
            kwargs |= {} if token_type_ids is None else {"token_type_ids": token_type_ids}
            kwargs |= {name: value for name, value in given.items() if value is not None}
            bare: ModelOutput = self.base(
                input_ids=input_ids, attention_mask=attention_mask, inputs_embeds=inputs_embeds, **kwargs
            )
            return bare
        check_forward_arguments(kwargs)
        if kwargs.pop("position_ids", None) is not None:
            raise ModelError(
                "forward takes no position_ids behind a soft prompt of a model for a task.",
                hint="Leave them out; positions count on behind the prompt.",
            )
        if attention_mask is None:
            attention_mask = self._mask_of(input_ids)
        rows = LinedUp.of(input_ids, inputs_embeds, attention_mask, device_of(self.base))
        rows, prompts = self._prompts_of(rows, prompt_names, kwargs)
        if self.task is TaskType.SEQ_2_SEQ_LM:
            answered = self._answered(rows, prompts, labels, num_items_in_batch, kwargs)
            return without_logits(answered) if return_logits is False else answered
        types = None if token_type_ids is None else rows.flat(token_type_ids, "token_type_ids")
        if self._pools_virtual(prompts):
            read = with_virtual(reads_text(self.base), prompts.each(), rows, types, kwargs)
        else:
            read = self._read(rows, prompts, types, kwargs), rows.mask
        if self._behind is None:
            return output_lined_up(rows, read[0])
        if self.task is TaskType.MASKED_LM and labels is not None and return_logits is False:
            return self._gaps_learned(rows, prompts, read[0], labels, num_items_in_batch)
        output = self._behind_head(prompts, *read)
        loss = self._loss(
            rows, output, {name: value for name, value in given.items() if value is not None}, num_items_in_batch
        )
        output = without_logits(output) if return_logits is False else output
        return output_lined_up(rows, output, loss, whole=self.task is TaskType.SEQ_CLS)

    def _mask_of(self, ids: torch.Tensor | None) -> torch.Tensor | None:
        """The mask of a decoder's rows to classify where nobody gave one.

        A row goes from its first token to its last that are not the padding token, as the model's class has it.
        """
        config = self.base.config.get_text_config()
        padding = getattr(config, "pad_token_id", None)
        if ids is None or padding is None or not self._layers or self.task is not TaskType.SEQ_CLS:
            return None
        real = (ids != padding).long()
        mask: torch.Tensor = (real.cumsum(dim=1) > 0) & (real.flip(1).cumsum(dim=1).flip(1) > 0)
        return mask.long()

    def _prompts_of(self, rows: LinedUp, names: RowNames, kwargs: dict[str, Any]) -> tuple[LinedUp, RowPrompts]:
        """The rows with the virtual tokens inside them, and the prompt of each; what cannot be run is refused."""
        given = kwargs.pop("adapter_names", None)
        if names is None and given is not None:
            names = [None if name == BASE_MODEL else name for name in given]
        check_autocast(self.base, device_of(self.base))
        text = rows.text
        each = names_of_rows(names, text.rows, self.prompt_called)
        encoders = {name: self.encoder_of(name) for name in dict.fromkeys(each) if name is not None}
        inside = {name: one.tokens_in_text for name, one in self.prompt_configs.items() if one.tokens_in_text}
        prompts = RowPrompts(
            names=each,
            encoders=encoders,
            in_text={name: count for name, count in inside.items() if name in encoders},
            dtype=embedding_table(self.base).dtype,
            shared=self.shared_prefix,
            kept=PrefixCache(),
        )
        if text.ids is not None:
            prompts.check_ids(self.base, text.ids)
            prompts.check_inside(text.ids, text.lengths)
        if prompts.in_text:
            if text.ids is None:
                raise no_embeddings(prompts)
            rows = replace(rows, text=replace(text, inside=prompts.inside))
        if not self._layers and prompts.deep and len(prompts.deep) < len(prompts.encoders):
            raise ConfigError(
                f"rows behind keys and values cannot stand in one batch with rows behind vectors in a "
                f"{type(self.base).__name__}, which attends both ways.",
                hint="Put them into batches of their own.",
            )
        if not (prompts.deep and self.task is TaskType.SEQ_2_SEQ_LM):
            prompts.check_length(self.context_length, text.longest)
        return rows, prompts

    def _read(
        self, rows: LinedUp, prompts: RowPrompts, token_types: torch.Tensor | None, options: dict[str, Any]
    ) -> Any:
        """What the part that reads text gives, `(B, T, D)` and what it adds."""
        if not self._layers:
            if prompts.deep:
                return behind_keys(reads_text(self.base), prompts.prefix(self.prompt_base), rows, token_types, options)
            return concatenated(reads_text(self.base), prompts.each(), rows, token_types, options)
        asked = [name for name in ("output_hidden_states", "output_attentions") if options.pop(name, None)]
        if asked:
            raise ModelError(
                f"{asked[0]} is not to be had behind a prompt of a decoder for {self.task.value}.",
                hint="Leave it out; last_hidden_state is that of FEATURE_EXTRACTION.",
            )
        text = rows.text
        if token_types is not None and "token_type_ids" in inspect.signature(reads_text(self.base).forward).parameters:
            options["token_type_ids"] = text.padded(token_types)
        ids = None if text.ids is None else text.padded(text.ids)
        (layers,) = self._layers
        hidden = layers.last_hidden_state(
            ids,
            rows.mask,
            None if text.embeds is None else text.padded(text.embeds),
            prompt_names=list(prompts.names),
            **options,
        )
        kind = BaseModelOutput if self._behind is None else LayersOutput
        return kind(last_hidden_state=hidden)

    def _pools_virtual(self, prompts: RowPrompts) -> bool:
        """Whether an encoder's pooler is to see the virtual tokens of rows.

        Raises:
            ConfigError: Of some rows, and of others not.
        """
        if self.task is not TaskType.SEQ_CLS or self._layers or prompts.deep:
            return False
        asked = {self.prompt_configs[name].pool_virtual_tokens for name in prompts.names if name is not None}
        if len(asked) > 1:
            raise ConfigError(
                "rows of a batch name prompts whose virtual tokens a pooler reads, and others.",
                hint="Put them into batches of their own.",
            )
        return True in asked

    def _behind_head(self, prompts: RowPrompts, output: Any, mask: torch.Tensor) -> Any:
        """What the model's class makes of hidden states, by each row's own head."""
        assert self._behind is not None
        run = self._behind
        groups = _by_head(prompts)
        if len(groups) == 1:
            return run(output, mask, groups[0][1])
        made, order = [], list[int]()
        for chosen, head in groups:
            own = {key: value[chosen] for key, value in output.items() if isinstance(value, torch.Tensor)}
            made.append(run(type(output)(**own), mask[chosen], head))
            order += chosen
        keys = [key for key, value in made[0].items() if isinstance(value, torch.Tensor)]
        parts = {key: [one[key] for one in made] for key in keys}
        if any(len({tuple(one.shape[1:]) for one in values}) > 1 for values in parts.values()):
            raise ConfigError(
                "the prompts of a batch's rows have heads with different numbers of labels.",
                hint="Put rows whose prompts have as many labels into a batch.",
            )
        back = torch.tensor(order, device=mask.device).argsort()
        states = {key: output[key] for key in ("hidden_states", "attentions") if output.get(key) is not None}
        return type(made[0])(**{key: torch.cat(values)[back] for key, values in parts.items()}, **states)

    def _gaps_learned(
        self,
        rows: LinedUp,
        prompts: RowPrompts,
        output: Any,
        labels: torch.Tensor,
        count: torch.Tensor | int | None,
    ) -> ModelOutput:
        """The loss of a masked language model; its head reads the places that have labels, and no others."""
        assert self._behind is not None
        moved, states = rows.moved(labels, "labels", IGNORE_INDEX), output["last_hidden_state"]
        gaps, made, wanted = moved != IGNORE_INDEX, [], []
        for chosen, head in _by_head(prompts):
            own_rows = torch.zeros_like(gaps)
            own_rows[chosen] = True
            own = gaps & own_rows
            given = type(output)(last_hidden_state=states[own][None])
            made.append(self._behind(given, rows.mask[own][None], head)["logits"])
            wanted.append(moved[own][None])
        loss = losses.vocabulary_loss(torch.cat(made, dim=1), torch.cat(wanted, dim=1), count)
        kept = {name: output[name] for name in ("hidden_states", "attentions") if output.get(name) is not None}
        return output_lined_up(rows, MaskedLMOutput(**kept), loss)

    def _loss(
        self, rows: LinedUp, output: Any, given: dict[str, torch.Tensor], count: torch.Tensor | int | None
    ) -> torch.Tensor | None:
        """The loss of what the caller gave labels for; places of answers at padding cannot be chosen."""
        assert self._behind is not None
        device, config = rows.mask.device, self._behind.config
        if self.task is TaskType.QUESTION_ANS:
            padding = rows.mask == 0
            for name in ("start_logits", "end_logits"):
                output[name] = output[name].masked_fill(padding, torch.finfo(output[name].dtype).min)
            if "start_positions" not in given or "end_positions" not in given:
                return None
            starts, ends = (rows.column(given[name]) for name in ("start_positions", "end_positions"))
            return losses.span_loss(output["start_logits"], output["end_logits"], starts, ends, count)
        labels = given.get("labels")
        if labels is None:
            return None
        if self.task is TaskType.SEQ_CLS:
            return losses.sequence_loss(output["logits"], labels.to(device), config, count)
        moved = rows.moved(labels, "labels", IGNORE_INDEX)
        if self.task is TaskType.TOKEN_CLS:
            return losses.token_loss(output["logits"], moved, config, count)
        return losses.vocabulary_loss(output["logits"], moved, count)

    # ---- encoder-decoders --------------------------------------------------------------------------------------

    def _answered(
        self,
        rows: LinedUp,
        prompts: RowPrompts,
        labels: torch.Tensor | None,
        count: torch.Tensor | int | None,
        options: dict[str, Any],
    ) -> ModelOutput:
        """Loss and logits of answers.

        Raises:
            ConfigError: There are no answers.
        """
        model: Any = self.base
        inputs: dict[str, Any] = {**self._reading(rows, prompts), **options}
        if prompts.deep:
            inputs |= answer_inputs(self.base, prompts.prefix(self.base), inputs)
        labels = None if labels is None else labels.to(rows.mask.device)
        if not any(inputs.get(name) is not None for name in ("decoder_input_ids", "decoder_inputs_embeds")):
            if labels is None:
                raise ConfigError(
                    "an encoder-decoder's batch has neither labels nor decoder_input_ids.",
                    hint="Give one of them, or call generate.",
                )
            inputs["decoder_input_ids"] = model.prepare_decoder_input_ids_from_labels(labels=labels)
        output: ModelOutput = model(**inputs)
        loss = None if labels is None else losses.vocabulary_loss(output["logits"], labels, count)
        kept = {name: value for name, value in output.items() if name in _OF_ANSWERS}
        return type(output)(loss=loss, **kept)

    def _reading(self, rows: LinedUp, prompts: RowPrompts) -> dict[str, torch.Tensor]:
        """What the encoder is given."""
        vectors: Sequence[torch.Tensor | None] = [None] * rows.text.rows if prompts.deep else prompts.each()
        return read_inputs(self.base, vectors, rows)

    @torch.no_grad()
    def generate(
        self,
        input_ids: torch.Tensor | None = None,
        *,
        attention_mask: torch.Tensor | None = None,
        prompt_names: RowNames = None,
        **kwargs: Any,
    ) -> Any:
        """The `generate` of transformers for an encoder-decoder, behind the prompt; answers come back alone.

        Args:
            input_ids: `(B, C)` as for `forward`.
            attention_mask: `(B, C)`, 0 at padding.
            prompt_names: As for `forward`.
            kwargs: As for `GenerationMixin.generate`.

        Raises:
            ModelError: The model is for another task.
        """
        if self.task is not TaskType.SEQ_2_SEQ_LM:
            raise ModelError(
                f"a model for {self.task.value} writes no answers.",
                hint="Call it, and read its logits; ptune generate says labels, tags or answers.",
            )
        if input_ids is None:
            input_ids = kwargs.pop("inputs", None)
        model: Any = self.base
        if self._disabled:
            return model.generate(input_ids, attention_mask=attention_mask, **kwargs)
        rows = LinedUp.of(input_ids, kwargs.pop("inputs_embeds", None), attention_mask, device_of(self.base))
        rows, prompts = self._prompts_of(rows, prompt_names, kwargs)
        if prompts.deep:
            model = answering_behind(self.base, prompts.prefix(self.base))
        return model.generate(**self._reading(rows, prompts), **kwargs)

    @property
    def _disabled(self) -> bool:
        return id(self) in DISABLED.get()


def _by_head(prompts: RowPrompts) -> list[tuple[list[int], nn.ModuleDict | None]]:
    """The heads of a batch, None standing for the frozen model's, and the rows of each."""
    names = list(dict.fromkeys(prompts.names))
    heads = [None if name is None else prompts.encoders[name].head for name in names]
    if len(names) == 1 or all(head is None for head in heads):
        return [(list(range(len(prompts.names))), heads[0])]
    rows = [[row for row, its in enumerate(prompts.names) if its == name] for name in names]
    return list(zip(rows, heads, strict=True))
