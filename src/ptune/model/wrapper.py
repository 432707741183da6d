"""`PTunedModel`: a frozen causal language model with one or more soft prompts in front of it.

The wrapper owns the prompt encoders and nothing else: the frozen model is held, never changed. `forward` takes the
prefix path (the prompt runs through the model once a batch, see `prefix`) or the concatenation path (see `concat`),
and returns logits that line up with the labels: `logits[:, t]` predicts token `t + 1`, as in any causal model of
transformers; virtual tokens are not among them.

Shapes: `B` rows, `T` text tokens, `P` virtual tokens, `D` token dimension, `V` vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any, Self

import torch
from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase
from transformers.modeling_outputs import CausalLMOutputWithPast

from ptune.encoders import PromptEncoder
from ptune.errors import ConfigError, ModelError, PromptError, unknown
from ptune.model import persistence
from ptune.model.batch import TextBatch, check_forward_arguments, run_concatenated, run_prefixed
from ptune.model.capability import context_length, prefix_capability
from ptune.model.fused import replacement
from ptune.model.generation import generate_behind, generator
from ptune.model.given_prefix import given_prefix_obstacle
from ptune.model.hub import PromptOnHub, prompt_folder
from ptune.model.packable import packing_obstacle
from ptune.model.packed_forward import PackedText, run_packed
from ptune.model.parameters import count_parameters, parameters_line
from ptune.model.prefix_cache import PrefixCache
from ptune.model.prompts import PromptConfig, build_prompt, check_base, check_new_name, check_room, embedding_table
from ptune.model.rows import RowNames, RowPrompts, names_of_rows, takes_prefix
from ptune.model.self_check import has_weights
from ptune.model.self_check import self_check as check_ways
from ptune.model.shared_prefix import SharedPrefix
from ptune.model.view import ModelView

DEFAULT_PROMPT = "default"


class PTunedModel(PromptOnHub, nn.Module):
    """A frozen model and its soft prompts; `PromptOnHub` says how they are saved, loaded and shared.

    Args:
        base: Any decoder from `AutoModelForCausalLM`. It is frozen in place and otherwise left as it is.
        config: Configuration of the first prompt; None starts without one (see `add_prompt`, `load_prompt`).
        prompt_name: Name of the first prompt.
        tokenizer: Needed for an initial text, unless the configuration names one.
        self_check: Try the ways through the model on a short text, and take no way that gives wrong numbers; see
            `ptune.model.self_check`. False believes what the model's class says.

    Raises:
        ModelError: The model cannot carry a soft prompt.
        ConfigError: The configuration does not fit the model.
    """

    # Read by transformers.Trainer: the loss is summed over labels and divided by `num_items_in_batch`, and the first
    # label of a row counts, since the last virtual token predicts it.
    accepts_loss_kwargs = True
    loss_type = None
    main_input_name = "input_ids"
    # And this: what trains is the prompt, in float32, whatever the frozen model's weights are packed into.
    is_quantized = False

    def __init__(
        self,
        base: PreTrainedModel,
        config: PromptConfig | None = None,
        *,
        prompt_name: str = DEFAULT_PROMPT,
        tokenizer: PreTrainedTokenizerBase | None = None,
        self_check: bool = True,
    ) -> None:
        super().__init__()
        check_base(base)
        base.requires_grad_(False)
        self.base = base
        self.capability = prefix_capability(base)
        self.context_length = context_length(base)
        self._base_obstacle = packing_obstacle(base, self.capability)
        self.pack_batches = True
        """Whether padded training batches are packed on the way where that can be done; False computes the padding."""
        self._view = ModelView(base, replacement)
        self._answering = ModelView(base, replacement, packed=False)
        if self_check and has_weights(base):
            self.capability, self._base_obstacle = check_ways(
                base, self.capability, self._base_obstacle, answering=self._answering, packed=self._view
            )
        self.shared_prefix = SharedPrefix()
        self.prompts = nn.ModuleDict()
        self.prompt_configs: dict[str, PromptConfig] = {}
        self._notes: dict[str, persistence.Notes | None] = {}
        self.prefixes = PrefixCache()
        self.active_prompt: str | None = None
        self._disabled = False
        # Routers that draw at random in training (Phi-MoE, jitter): the prompt is to learn for the choice it will meet.
        self._drawing = [module for module in base.modules() if any("jitter" in name for name in vars(module))]
        if config is not None:
            self.add_prompt(prompt_name, config, tokenizer=tokenizer)

    def train(self, mode: bool = True) -> Self:
        """Training or eval mode; the routers of a mixture of experts choose as in eval mode always."""
        super().train(mode)
        for module in self._drawing:
            module.training = False
        return self

    # ---- prompts -----------------------------------------------------------------------------------------------

    @property
    def prompt_names(self) -> list[str]:
        """Names of the prompts, in the order they were added."""
        return list(self.prompts.keys())

    def add_prompt(
        self, name: str, config: PromptConfig, *, tokenizer: PreTrainedTokenizerBase | None = None
    ) -> PromptEncoder:
        """Add a new, initialised prompt. The first one becomes the active one.

        Raises:
            PromptError: The name is taken or cannot name a prompt.
            ConfigError: The configuration does not fit the model, or the prompt is longer than the context.
        """
        check_new_name(name, self.prompt_configs)
        check_room(config, self.context_length)
        encoder, completed = build_prompt(self.base, config, tokenizer)
        self._install(name, encoder, completed)
        return encoder

    def _install(self, name: str, encoder: PromptEncoder, config: PromptConfig) -> None:
        self.prompts[name] = encoder
        self.prompt_configs[name] = config
        if self.active_prompt is None:
            self.set_prompt(name)
        else:
            encoder.requires_grad_(False)

    def set_prompt(self, name: str) -> None:
        """Make a prompt the active one: used where no name is given, and the one that trains."""
        self._encoder(name)
        self.active_prompt = name
        for other, encoder in self.prompts.items():
            encoder.requires_grad_(other == name and not self.prompt_configs[other].inference_mode)

    def delete_prompt(self, name: str) -> None:
        """Remove a prompt. The active one cannot be removed while there are others."""
        self._encoder(name)
        if name == self.active_prompt and len(self.prompts) > 1:
            raise PromptError(f"{name!r} is the active prompt.", hint="Call set_prompt with another name first.")
        del self.prompts[name]
        del self.prompt_configs[name]
        self._notes.pop(name, None)
        self.prefixes.forget(name)
        if name == self.active_prompt:
            self.active_prompt = None

    def clear_prefixes(self) -> None:
        """Forget the prefixes kept for later calls; `ptune.model.prefix_cache` says when that is needed."""
        self.prefixes.clear()

    @contextmanager
    def disable_prompt(self) -> Iterator[None]:
        """Inside the `with`, the bare frozen model answers."""
        before, self._disabled = self._disabled, True
        try:
            yield
        finally:
            self._disabled = before

    disable_adapter = disable_prompt  # PEFT's name

    def _encoder(self, name: str) -> PromptEncoder:
        if name not in self.prompts:
            raise unknown("prompt", name, self.prompts.keys(), error=PromptError)
        encoder = self.prompts[name]
        assert isinstance(encoder, PromptEncoder)
        return encoder

    def encode(self, name: str | None = None) -> torch.Tensor:
        """The `(P, D)` virtual-token embeddings of a prompt, in float32; with gradients where the encoder has them."""
        vectors: torch.Tensor = self._encoder(self._active(name))()
        return vectors

    def _active(self, name: str | None) -> str:
        chosen = self.active_prompt if name is None else name
        if chosen is None:
            raise PromptError("the model has no prompt.", hint="Call add_prompt or load_prompt.")
        return chosen

    @property
    def packing_obstacle(self) -> str | None:
        """Why batches cannot be packed; None when they can."""
        return given_prefix_obstacle(self.prompts.values()) or self._base_obstacle

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

    # ---- forward -----------------------------------------------------------------------------------------------

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
        **kwargs: Any,
    ) -> CausalLMOutputWithPast:
        """Loss and logits behind the prompt.

        Args:
            input_ids: `(B, T)` text tokens.
            attention_mask: `(B, T)`, 0 at padding, which may stand left or right. All ones when None.
            labels: `(B, T)`, -100 where not supervised. A row's first token counts: the last virtual token predicts it.
            inputs_embeds: `(B, T, D)` in place of `input_ids`.
            prompt_names: A prompt's name for all rows, or one a row (None: no prompt). The active one by default.
            num_items_in_batch: Supervised labels of the whole optimizer step, by which the summed loss is divided.
            return_logits: False computes the LM head at supervised positions alone and returns no logits. None does so
                too while training with labels, and computes the others when they are read.
            row_lengths: Of a packed batch (see `PackingCollator`): tokens of each row. The text is `(1, N)` then.
            kwargs: Passed to the frozen model (`output_hidden_states`, …).

        Returns:
            `loss` (with labels), `logits` `(B, T, V)` or `(1, N, V)`, and what the frozen model adds, but no cache.

        Raises:
            ModelError: The text and prompt are longer than the context, or a filled cache or position ids are passed.
        """
        at_once = return_logits or (return_logits is None and not (self.training and labels is not None))
        if row_lengths is not None:
            packed = PackedText.of_packed(input_ids, labels, row_lengths)
            return self._forward_packed(packed, prompt_names, num_items_in_batch, return_logits)
        if self._disabled:
            if labels is not None:
                kwargs.update(labels=labels, num_items_in_batch=num_items_in_batch)
            bare: CausalLMOutputWithPast = self.base(
                input_ids=input_ids, attention_mask=attention_mask, inputs_embeds=inputs_embeds, **kwargs
            )
            return bare
        check_forward_arguments(kwargs)
        batch = TextBatch.of(input_ids, inputs_embeds, attention_mask, labels)
        packs = self.pack_batches and self.packs and not torch.compiler.is_compiling()
        if packs and input_ids is not None and not (at_once or kwargs):
            packed = PackedText.of_padded(input_ids, labels, None if batch.order is None else attention_mask)
            return self._forward_packed(packed, prompt_names, num_items_in_batch, return_logits)
        prompts = self._row_prompts(prompt_names, batch.rows)
        prompts.check_length(self.context_length, batch.length)
        wanted: dict[str, Any] = {
            "num_items": num_items_in_batch,
            "return_logits": return_logits is not False,
            "narrow": return_logits is False and self.capability.narrow_head,
            "kwargs": kwargs,
        }
        if takes_prefix(self.base, self.capability, prompts):
            return run_prefixed(self.base, prompts.prefix(self.base), batch, **wanted)
        return run_concatenated(self.base, prompts.each(), batch, filler_id=self.capability.filler_id, **wanted)

    def _forward_packed(
        self, text: PackedText, names: RowNames, num_items: torch.Tensor | int | None, return_logits: bool | None
    ) -> CausalLMOutputWithPast:
        if self.packing_obstacle is not None:
            raise ModelError(
                f"a packed batch cannot be computed: {self.packing_obstacle}.", hint="Use PaddingCollator."
            )
        prompts = self._row_prompts([None] * len(text.lengths) if self._disabled else names, len(text.lengths))
        prompts.check_length(self.context_length, max(text.lengths, default=0))
        return run_packed(self._view.current(), text, prompts, num_items=num_items, return_logits=return_logits)

    def _row_prompts(self, names: RowNames, rows: int) -> RowPrompts:
        """The prompt of each of `rows` rows."""
        each = names_of_rows(names, rows, self._active)
        return RowPrompts(
            names=each,
            encoders={name: self._encoder(name) for name in dict.fromkeys(each) if name is not None},
            dtype=embedding_table(self.base).dtype,
            shared=self.shared_prefix,
            kept=self.prefixes,
            filler_id=self.capability.filler_id,
        )

    # ---- generation --------------------------------------------------------------------------------------------

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
            input_ids: `(B, T)` text tokens, padded left or right. Rows padded on the right come back padded on the
                left, so that the new tokens are `output[:, T:]` for every row.
            attention_mask: `(B, T)`, 0 at padding. Without it padding is told by its token, where that is not EOS too.
            prompt_names: As in `forward`.
            kwargs: As for `GenerationMixin.generate`; length limits and processors count text tokens alone.

        Returns:
            What `generate` returns: text and new tokens, no virtual tokens.

        Raises:
            ModelError: A filled cache is passed, or prompt, text and new tokens exceed the context.
        """
        if input_ids is None:
            input_ids = kwargs.pop("inputs", None)
        if self._disabled:
            return generator(self.base).generate(input_ids, attention_mask=attention_mask, **kwargs)
        text = kwargs.get("inputs_embeds") if input_ids is None else input_ids
        if text is None:
            raise ConfigError("generate needs input_ids.", hint="Tokenize at least one token of text.")
        return generate_behind(
            self.base,
            self._answering,
            self.capability,
            self.context_length,
            self._row_prompts(prompt_names, text.shape[0]),
            input_ids=input_ids,
            attention_mask=attention_mask,
            options=kwargs,
        )

    # ---- parameters and state ----------------------------------------------------------------------------------

    def get_nb_trainable_parameters(self) -> tuple[int, int]:
        """`(trainable, all)` parameters, counted as PEFT counts them: the frozen model's and the prompt encoders'."""
        return count_parameters(self)

    def print_trainable_parameters(self) -> None:
        """Print the line that PEFT prints."""
        print(parameters_line(*count_parameters(self)))  # noqa: T201  # what the method is for

    def state_dict(self, *args: Any, destination: Any = None, prefix: str = "", keep_vars: bool = False) -> Any:
        """The prompt encoders' tensors alone, so that any trainer's checkpoint is small."""
        if args:
            raise ConfigError("state_dict takes its arguments by name.")
        return self.prompts.state_dict(destination=destination, prefix=f"{prefix}prompts.", keep_vars=keep_vars)

    def load_state_dict(self, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False) -> Any:
        """Load what `state_dict` gave. The frozen model's own tensors are neither expected nor touched."""
        return persistence.load_state(self.prompts, state_dict, strict=strict, assign=assign)

    def _save_prompt(self, folder: Path, prompt_name: str | None, metadata: Mapping[str, Any]) -> None:
        name = self._active(prompt_name)
        encoder, config, notes = self._encoder(name), self.prompt_configs[name], self._notes.get(name)
        persistence.save_prompt(self.base, encoder, config, folder, metadata, notes=notes)

    def load_prompt(
        self,
        directory: str | Path,
        *,
        name: str | None = None,
        trainable: bool = True,
        force: bool = False,
        tokenizer: PreTrainedTokenizerBase | None = None,
        revision: str | None = None,
        token: str | bool | None = None,
    ) -> str:
        """Read a prompt folder and add it under `name` (by default the folder's name, or `default` for the first).

        Args:
            directory: The folder, or a hub id; this and the rest as for `from_pretrained`.
            name: Its name here.
            trainable: Load the prompt encoder, where the folder has it.
            force: Accept another model or tokenizer.
            tokenizer: The one that is used with it.
            revision: Of the prompt's repository.
            token: For a private prompt.

        Raises:
            PromptError: The prompt is missing or damaged, or made for another model or tokenizer.
        """
        folder = prompt_folder(directory, revision=revision, token=token)
        if tokenizer is not None:
            persistence.check_prompt_tokenizer(folder, tokenizer, force=force)
        encoder, config = persistence.load_prompt(self.base, folder, trainable=trainable, force=force)
        chosen = name or (Path(directory).name if self.prompts else DEFAULT_PROMPT)
        check_new_name(chosen, self.prompt_configs)
        self._install(chosen, encoder, config)
        self._notes[chosen] = persistence.notes_of(folder, encoder)
        return chosen

    @classmethod
    def _with_prompt(cls, base: PreTrainedModel, folder: Path, *, trainable: bool, force: bool) -> Self:
        model = cls(base)
        model.load_prompt(folder, trainable=trainable, force=force)
        return model.train(trainable)

    def __getattr__(self, name: str) -> Any:
        """What the wrapper does not have is the frozen model's: `config`, `device`, `lm_head` and the rest."""
        try:
            return super().__getattr__(name)
        except AttributeError:
            if name == "base":
                raise
            return getattr(self.base, name)
