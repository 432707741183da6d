"""A frozen model's prompts: added, chosen, trained, saved and loaded by name, whatever the model is for.

What `PTunedModel` and `PTunedTaskModel` have in common. It owns the prompt encoders and nothing else: the frozen model
is held, never changed.

Shapes: `P` virtual tokens, `D` token dimension, `L` layers, `H` key/value heads, `E` head dimension.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import replace
from pathlib import Path
from typing import Any, Self

import torch
from safetensors.torch import save as save_safetensors
from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils import SAFE_WEIGHTS_NAME

from ptune.config import TaskType
from ptune.deep_config import DeepPromptConfig, PromptConfig
from ptune.encoders import PromptEncoder
from ptune.errors import ConfigError, ModelError, PromptError, unknown
from ptune.frozen.capability import Capability
from ptune.frozen.parameters import count_parameters, parameters_line
from ptune.frozen.quantized import let_repack, repacking_layers
from ptune.internals import leave_out_of_ddp
from ptune.model.adapter_names import AdapterNames
from ptune.model.on_hub import PromptOnHub
from ptune.model.stand_in import StandsIn
from ptune.prefix.across_calls import PrefixCache
from ptune.prefix.keys_values import Prefix
from ptune.prompt.build import build_prompt, check_new_name, check_room
from ptune.saved import prompt_io
from ptune.saved.files import write_atomic
from ptune.saved.hub import prompt_folder
from ptune.saved.opened_folder import OpenedFolder, open_folder

DEFAULT_PROMPT = "default"
DISABLED: ContextVar[frozenset[int]] = ContextVar("disabled", default=frozenset())
"""The models whose prompts are turned off, by identity; each thread has its own."""


class HoldsPrompts(PromptOnHub, AdapterNames, StandsIn):
    """A frozen model and its prompts.

    `PromptOnHub` says how they are saved, loaded and shared, `AdapterNames` what they are called in PEFT, and
    `StandsIn` how other libraries see the whole.
    """

    # Read by transformers.Trainer: the loss is summed over labels and divided by `num_items_in_batch`.
    accepts_loss_kwargs = True
    main_input_name = "input_ids"
    # And this: what trains is the prompt, in float32, whatever the frozen model's weights are packed into.
    is_quantized = False

    task = TaskType.CAUSAL_LM
    """What the frozen model is for."""
    capability: Capability
    context_length: int | None
    prefixes: PrefixCache

    def _hold(self, base: PreTrainedModel) -> None:
        """Freeze a model, and begin without prompts."""
        base.requires_grad_(False)
        self.base = base
        # Frozen weights are the same in every process; and quantized ones could not be sent round.
        frozen = (*base.named_parameters(remove_duplicate=False), *base.named_buffers(remove_duplicate=False))
        leave_out_of_ddp(self, [f"base.{name}" for name, _ in frozen])
        self._repacking = repacking_layers(base)
        let_repack(self._repacking, False)  # until it is known that the prompts only answer
        self.prompts = nn.ModuleDict()
        self.prompt_configs: dict[str, PromptConfig] = {}
        self._notes: dict[str, prompt_io.Notes | None] = {}
        self.active_prompt: str | None = None
        # Routers that draw at random in training (Phi-MoE, jitter): the prompt is to learn for the choice it will meet.
        self._drawing = [module for module in base.modules() if any("jitter" in name for name in vars(module))]

    def train(self, mode: bool = True) -> Self:
        """Training or eval mode; the routers of a mixture of experts choose as in eval mode always."""
        super().train(mode)
        for module in self._drawing:
            module.training = False
        return self

    @property
    def prompt_base(self) -> PreTrainedModel:
        """The model that prompts are made for: what reads them, without a head that is trained with them."""
        return self.base

    def _new_head(self, modules_to_save: list[str] | None) -> nn.ModuleDict | None:
        """The head that a new prompt begins with; None where the frozen model's own is used.

        Args:
            modules_to_save: Children of the model that train beside those that do anyway.
        """
        del modules_to_save
        return None

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
        encoder, completed = build_prompt(self.prompt_base, config, tokenizer, start=start, task=self.task)
        head = self._new_head(completed.modules_to_save)
        if head is not None:
            encoder.put_head(head)
            completed = replace(completed, modules_to_save=list(head))
        self._install(name, encoder, completed)
        return encoder

    def _check_kind(self, config: PromptConfig) -> None:
        """Raise `ConfigError` for a prompt for another task, `ModelError` for keys and values that do not go here."""
        if config.task_type not in (None, self.task):
            raise ConfigError(
                f"task_type={TaskType(config.task_type).value}, but the model is wrapped for {self.task.value}.",
                hint="Leave task_type out, or load the model for that task.",
            )
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
        self.encoder_of(name)
        self.active_prompt = name
        self.train_prompts([name])

    def train_prompts(self, names: Sequence[str]) -> None:
        """Let these prompts train, and no others: a batch may then name any of them for its rows (`prompt_names`)."""
        for name in names:
            self.encoder_of(name)
        for name, encoder in self.prompts.items():
            encoder.requires_grad_(name in names and not self.prompt_configs[name].inference_mode)
        let_repack(self._repacking, not any(one.requires_grad for one in self.prompts.parameters()))

    def delete_prompt(self, name: str) -> None:
        """Remove a prompt. The active one cannot be removed while there are others."""
        self.encoder_of(name)
        if name == self.active_prompt and len(self.prompts) > 1:
            raise PromptError(f"{name!r} is the active prompt.", hint="Call set_prompt with another name first.")
        del self.prompts[name]
        del self.prompt_configs[name]
        self._notes.pop(name, None)
        self.prefixes.forget(name)
        if name == self.active_prompt:
            self.active_prompt = None

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

    def encoder_of(self, name: str) -> PromptEncoder:
        """The encoder of a prompt.

        Raises:
            PromptError: There is no prompt of that name.
        """
        if name not in self.prompts:
            raise unknown("prompt", name, self.prompts.keys(), error=PromptError)
        encoder = self.prompts[name]
        assert isinstance(encoder, PromptEncoder)
        return encoder

    def encode(self, name: str | None = None) -> torch.Tensor:
        """The `(P, D)` virtual-token embeddings of a prompt, in float32; with gradients where the encoder has them.

        Of a deep prompt, `(P, 2 L H E)`: keys and values of every layer.
        """
        vectors: torch.Tensor = self.encoder_of(self.prompt_called(name))()
        return vectors

    def prompt_called(self, name: str | None) -> str:
        """The name given, or the active prompt's.

        Raises:
            PromptError: No name is given, and there is no prompt.
        """
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
        name = self.prompt_called(prompt_name)
        encoder, config, notes = self.encoder_of(name), self.prompt_configs[name], self._notes.get(name)
        prompt_io.save_prompt(self.prompt_base, encoder, config, folder, {**self._facts(), **metadata}, notes=notes)

    def _facts(self) -> dict[str, Any]:
        """What a prompt folder notes of the frozen model beside its fingerprint."""
        return {}

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
        encoder, config = prompt_io.load_prompt(
            self.prompt_base, opened, trainable=trainable, force=force, new_head=self._new_head
        )
        asked = opened.path if isinstance(directory, OpenedFolder) else Path(directory)
        try:
            self._check_kind(config)
        except ConfigError as error:
            raise PromptError(f"{opened.path}: {error.message}", hint="Load the model for that task.") from error
        chosen = name or (asked.name if self.prompts else DEFAULT_PROMPT)
        check_new_name(chosen, () if replace else self.prompt_configs)
        self._install(chosen, encoder, config)
        self._notes[chosen] = prompt_io.notes_of(opened, encoder)
        return chosen
