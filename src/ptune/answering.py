"""A prompt opened for answering: frozen model, prompt, tokenizer and template together.

`ptune generate` and `ptune chat` are this and a terminal.

Shapes: `T` text tokens.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import torch
from transformers import PreTrainedTokenizerBase

from ptune.choices import GREEDY, NEW_TOKENS
from ptune.config import TaskType
from ptune.data.template import History, Template
from ptune.data.tokenize import encode_prompt
from ptune.errors import ModelError, PromptError
from ptune.frozen.parameters import device_of
from ptune.model.wrapper import PTunedModel
from ptune.saved.frozen_of_prompt import frozen_of_prompt
from ptune.saved.hub import prompt_folder
from ptune.saved.opened_folder import OpenedFolder, open_folder
from ptune.saved.prompt_template import template_of


@dataclass(frozen=True)
class Answerer:
    """Answers texts with a trained prompt; `Answerer.open` makes one from a prompt folder."""

    model: PTunedModel
    tokenizer: PreTrainedTokenizerBase
    template: Template

    @classmethod
    def open(
        cls,
        folder: str | Path | OpenedFolder,
        *,
        model: str | None = None,
        template: str | None = None,
        dtype: str = "auto",
        quantization: str | None = None,
        device: str | None = None,
        device_map: str | Mapping[str, str | int] | None = None,
        attn_implementation: str | None = None,
        revision: str | None = None,
        force: bool = False,
        self_check: bool = True,
        trust_remote_code: bool = False,
    ) -> Self:
        """Load what a prompt needs.

        Args:
            folder: The prompt folder, or its hub id, or one that is open already.
            model: The frozen model; by default the one that the prompt was trained on.
            template: By default the one that the prompt was trained with.
            dtype: Of the frozen model's weights, as for `load_model`; so are the next four.
            quantization: `int8`, `8bit` or `4bit`.
            device: `cpu`, `cuda`, …; by default CUDA where there is one.
            device_map: Spreads the model over several devices (`auto`, …), in place of `device`.
            attn_implementation: The attention of transformers' own layers.
            revision: Branch, tag or commit of the prompt on the hub.
            force: Accept a model or a tokenizer that the prompt was not made for.
            self_check: As for `PTunedModel`.
            trust_remote_code: Run model code that comes from the hub.

        Raises:
            PromptError: The folder is missing here and on the hub, damaged, made for another model or tokenizer, or a
                prompt for another task.
            ModelError: The model cannot be loaded.
            ConfigError: The template cannot be used.
        """
        opened = folder if isinstance(folder, OpenedFolder) else open_folder(prompt_folder(folder, revision=revision))
        check_answers_texts(opened)
        base, tokenizer = frozen_of_prompt(
            opened,
            model=model,
            force=force,
            trust_remote_code=trust_remote_code,
            dtype=dtype,
            quantization=quantization,
            device=device,
            device_map=device_map,
            attn_implementation=attn_implementation,
        )
        prompted = PTunedModel(base, self_check=self_check)
        prompted.load_prompt(opened, trainable=False, force=force)
        config = prompted.active_peft_config
        return cls(prompted.eval(), tokenizer, template_of(opened, tokenizer, config, template))

    def answer(
        self,
        text: str,
        input: str = "",  # noqa: A002 (the field name of the data)
        *,
        history: History = (),
        system: str | None = None,
        max_new_tokens: int | None = None,
        with_prompt: bool = True,
        **options: Any,
    ) -> str:
        """The answer to a text, greedy unless `options` say otherwise.

        Args:
            text: The instruction.
            input: Its input, as in Alpaca data.
            history: Earlier turns, `("user", text)` and `("assistant", text)`.
            system: A system message, where the template has a place for one.
            max_new_tokens: The longest answer; by default 128 tokens, or what the model's context has room for.
            with_prompt: False asks the frozen model alone.
            options: For `generate`, such as `do_sample=True`, `temperature` or `streamer`.

        Raises:
            ModelError: Prompt, text and answer exceed the model's context.
            ConfigError: The template has no place for a part of it.
        """
        ids = self.encode(text, input, history, system)
        limit = self.new_tokens(ids, max_new_tokens)
        return self.answer_ids(ids, with_prompt=with_prompt, max_new_tokens=limit, **{**GREEDY, **options})

    def encode(
        self,
        text: str,
        input: str = "",  # noqa: A002 (the field name of the data)
        history: History = (),
        system: str | None = None,
    ) -> torch.Tensor:
        """`(1, T)` token ids of a text, as the template writes it."""
        ids = encode_prompt(self.template.prompt(text, input, history, system), self.tokenizer)
        return torch.tensor([ids], device=device_of(self.model.base))

    def room(self, ids: torch.Tensor) -> int | None:
        """Tokens that prompt and text leave of the model's context, below 0 when they exceed it; None: no limit."""
        limit = self.model.context_length
        width = max(config.leading_tokens for config in self.model.prompt_configs.values())
        return None if limit is None else limit - width - ids.shape[1]

    def new_tokens(self, ids: torch.Tensor, asked: int | None) -> int:
        """How long an answer to `(1, T)` token ids may be: what was asked, or what the model's context has room for.

        Raises:
            ModelError: There is no room for it.
        """
        room = self.room(ids)
        if room is None:
            return asked or NEW_TOKENS
        if room < (asked or 1):
            raise ModelError(
                f"the prompt and the {ids.shape[1]} tokens of the text leave {max(room, 0)} of the model's context of "
                f"{self.model.context_length} tokens for the answer.",
                hint="Shorten the text." if room < 1 else f"Lower --max-new-tokens to {room}, or shorten the text.",
            )
        return asked or min(NEW_TOKENS, room)

    def answer_ids(self, ids: torch.Tensor, *, with_prompt: bool = True, **options: Any) -> str:
        """The answer to `(1, T)` token ids; options as for `generate`."""
        output = self.model.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            prompt_names=None if with_prompt else [None],
            pad_token_id=self.tokenizer.pad_token_id,
            **options,
        )
        return str(self.tokenizer.decode(output[0, ids.shape[1] :], skip_special_tokens=True))


def check_answers_texts(opened: OpenedFolder) -> None:
    """Raise `PromptError` for a prompt for another task than answering texts."""
    if opened.task is not TaskType.CAUSAL_LM:
        raise PromptError(
            f"{opened.path} holds a prompt for {opened.task.value}, and a causal language model's is needed here.",
            hint="ptune generate and ptune evaluate take it; in Python, ptune.TaskAnswerer.open.",
        )
