"""`PTunedModel`: a frozen causal language model with one or more soft prompts in front of it.

The wrapper owns the prompt encoders and nothing else: the frozen model is held, never changed.

Shapes: `P` virtual tokens, `D` token dimension.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Self

import torch
from safetensors.torch import save as save_safetensors
from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils import SAFE_WEIGHTS_NAME

from ptune.deep_config import DeepPromptConfig, PromptConfig
from ptune.encoders import DeepEncoder, PromptEncoder
from ptune.errors import ConfigError, ModelError, PromptError, unknown
from ptune.frozen.capability import context_length, prefix_capability
from ptune.frozen.parameters import count_parameters, has_weights, parameters_line
from ptune.frozen.quantized import let_repack, repacking_layers
from ptune.frozen.view import ModelView
from ptune.internals import leave_out_of_ddp
from ptune.model.adapter_names import AdapterNames
from ptune.model.on_hub import PromptOnHub
from ptune.model.running import DISABLED
from ptune.model.scoring import ScoresTokens
from ptune.model.self_check import self_check as check_ways
from ptune.packed.attention import PACKED
from ptune.packed.fused import replacement
from ptune.packed.obstacle import exchanged_forward, packing_obstacle
from ptune.prefix.across_calls import PrefixCache
from ptune.prefix.across_micro_batches import SharedPrefix
from ptune.prefix.keys_values import Prefix
from ptune.prompt.build import build_prompt, check_base, check_new_name, check_room, unwrapped
from ptune.saved import prompt_io
from ptune.saved.files import write_atomic
from ptune.saved.hub import prompt_folder
from ptune.saved.opened_folder import OpenedFolder, open_folder

DEFAULT_PROMPT = "default"


class PTunedModel(PromptOnHub, AdapterNames, ScoresTokens):
    """A frozen model and its soft prompts.

    `RunsPrompts` says how text runs behind them, `ScoresTokens` how likely it is there, `PromptOnHub` how they are
    saved, loaded and shared, `AdapterNames` what they are called in PEFT, and `StandsIn` how other libraries see the
    whole.

    Args:
        base: Any decoder from `AutoModelForCausalLM`, with or without layers that PEFT has injected (LoRA). It is
            frozen in place, those layers too, and otherwise left as it is.
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
        base = unwrapped(base)
        check_base(base)
        base.requires_grad_(False)
        self.base = base
        # Frozen weights are the same in every process; and quantized ones could not be sent round.
        frozen = (*base.named_parameters(remove_duplicate=False), *base.named_buffers(remove_duplicate=False))
        leave_out_of_ddp(self, [f"base.{name}" for name, _ in frozen])
        self._repacking = repacking_layers(base)
        let_repack(self._repacking, False)  # until it is known that the prompts only answer
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
        self.prompts = nn.ModuleDict()
        self.prompt_configs: dict[str, PromptConfig] = {}
        self._notes: dict[str, prompt_io.Notes | None] = {}
        self.prefixes = PrefixCache()
        self.active_prompt: str | None = None
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
        self,
        name: str,
        config: PromptConfig,
        *,
        tokenizer: PreTrainedTokenizerBase | None = None,
        start: torch.Tensor | Prefix | None = None,
    ) -> PromptEncoder:
        """Add a new, initialised prompt. The first one becomes the active one.

        Args:
            name: What to call it.
            config: What to build.
            tokenizer: Needed for an initial text, unless the configuration names one.
            start: Vectors to start from, `(any, D)`, in place of what the configuration says: those of another prompt
                (Vu et al. 2022, SPoT), say. Too many are cut, too few repeated. A deep prompt starts from keys and
                values, or from vectors that are run through the model.

        Raises:
            PromptError: The name is taken or cannot name a prompt.
            ConfigError: The configuration does not fit the model, or the prompt is longer than the context.
            ModelError: A deep prompt, for a model that cannot go on from keys and values of one shape.
        """
        check_new_name(name, self.prompt_configs)
        check_room(config, self.context_length)
        self._check_kind(config)
        encoder, completed = build_prompt(self.base, config, tokenizer, start=start)
        self._install(name, encoder, completed)
        return encoder

    def _check_kind(self, config: PromptConfig) -> None:
        """Raise `ModelError` for keys and values that the model cannot go on from."""
        if isinstance(config, DeepPromptConfig) and not self.capability.prefix:
            reason = self.capability.reason.partition(";")[0]
            raise ModelError(
                f"a prompt of keys and values needs a model that goes on from them, and {reason}.",
                hint="Take an encoder of virtual-token embeddings, such as embedding.",
            )

    def _install(self, name: str, encoder: PromptEncoder, config: PromptConfig) -> None:
        self.prompts[name] = encoder
        self.prompt_configs[name] = config
        self.prefixes.forget(name)
        if self.active_prompt in (None, name):
            self.set_prompt(name)
        else:
            encoder.requires_grad_(False)

    def set_prompt(self, name: str) -> None:
        """Make a prompt the active one: used where no name is given, and the one that trains."""
        self._encoder(name)
        self.active_prompt = name
        self.train_prompts([name])

    def train_prompts(self, names: Sequence[str]) -> None:
        """Let these prompts train, and no others: a batch may then name any of them for its rows (`prompt_names`)."""
        for name in names:
            self._encoder(name)
        for name, encoder in self.prompts.items():
            encoder.requires_grad_(name in names and not self.prompt_configs[name].inference_mode)
        let_repack(self._repacking, not any(one.requires_grad for one in self.prompts.parameters()))

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

    @property
    def predicts_first_tokens(self) -> bool:
        """Whether the active prompt predicts the first token of a text; keys and values of every layer do not."""
        return not isinstance(self._encoder(self._active(None)), DeepEncoder)

    def clear_prefixes(self) -> None:
        """Forget the prefixes kept for later calls; `ptune.prefix.across_calls` says when that is needed."""
        self.prefixes.clear()

    @contextmanager
    def disable_prompt(self) -> Iterator[None]:
        """Inside the `with`, the bare frozen model answers, to the thread that entered it."""
        token = DISABLED.set(DISABLED.get() | {id(self)})
        try:
            yield
        finally:
            DISABLED.reset(token)

    # PEFT's names
    set_adapter = set_prompt
    delete_adapter = delete_prompt
    disable_adapter = disable_prompt

    def _encoder(self, name: str) -> PromptEncoder:
        if name not in self.prompts:
            raise unknown("prompt", name, self.prompts.keys(), error=PromptError)
        encoder = self.prompts[name]
        assert isinstance(encoder, PromptEncoder)
        return encoder

    def encode(self, name: str | None = None) -> torch.Tensor:
        """The `(P, D)` virtual-token embeddings of a prompt, in float32; with gradients where the encoder has them.

        Of a deep prompt, `(P, 2 L H E)`: keys and values of every layer.
        """
        vectors: torch.Tensor = self._encoder(self._active(name))()
        return vectors

    def _active(self, name: str | None) -> str:
        chosen = self.active_prompt if name is None else name
        if chosen is None:
            raise PromptError("the model has no prompt.", hint="Call add_prompt or load_prompt.")
        return chosen

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
        return prompt_io.load_state(self.prompts, state_dict, strict=strict, assign=assign)

    def _save_prompt(self, folder: Path, prompt_name: str | None, metadata: Mapping[str, Any]) -> None:
        name = self._active(prompt_name)
        encoder, config, notes = self._encoder(name), self.prompt_configs[name], self._notes.get(name)
        prompt_io.save_prompt(self.base, encoder, config, folder, metadata, notes=notes)

    def _save_state(self, folder: Path) -> None:
        tensors = {key: value.detach().cpu().contiguous() for key, value in self.state_dict().items()}
        write_atomic(folder / SAFE_WEIGHTS_NAME, save_safetensors(tensors, {"format": "pt"}))

    def load_prompt(  # type: ignore[override]  # with every option named
        self,
        directory: str | Path | OpenedFolder,
        *,
        name: str | None = None,
        replace: bool = False,
        trainable: bool = True,
        force: bool = False,
        tokenizer: PreTrainedTokenizerBase | None = None,
        revision: str | None = None,
        token: str | bool | None = None,
    ) -> str:
        """Read a prompt folder and add it under `name` (by default the folder's name, or `default` for the first).

        Args:
            directory: The folder, or a hub id, or one that is open already; this and the rest as for `from_pretrained`.
            name: Its name here.
            replace: Let a prompt of that name give way.
            trainable: Load the prompt encoder, where the folder has it.
            force: Accept another model or tokenizer.
            tokenizer: The one that is used with it.
            revision: Of the prompt's repository.
            token: For a private prompt.

        Raises:
            PromptError: The prompt is missing or damaged, or made for another model or tokenizer.
        """
        if isinstance(directory, OpenedFolder):
            opened = directory
        else:
            opened = open_folder(prompt_folder(directory, revision=revision, token=token))
        if tokenizer is not None:
            opened.check_tokenizer(tokenizer, force=force)
        encoder, config = prompt_io.load_prompt(self.base, opened, trainable=trainable, force=force)
        asked = opened.path if isinstance(directory, OpenedFolder) else Path(directory)
        self._check_kind(config)
        chosen = name or (asked.name if self.prompts else DEFAULT_PROMPT)
        check_new_name(chosen, () if replace else self.prompt_configs)
        self._install(chosen, encoder, config)
        self._notes[chosen] = prompt_io.notes_of(opened, encoder)
        return chosen

    @classmethod
    def _with_prompt(cls, base: PreTrainedModel, opened: OpenedFolder, *, self_check: bool, **options: Any) -> Self:
        model = cls(base, self_check=self_check)
        model.load_prompt(opened, **options)
        return model.train(options["trainable"])
