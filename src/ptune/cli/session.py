"""A prompt folder opened for answering: model, tokenizer and template together."""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from typing import Any

import torch
from transformers import PreTrainedTokenizerBase, set_seed

from ptune.checkpoint.format import read_details
from ptune.cli.session_flags import NEW_TOKENS
from ptune.data.template import History, Template, get_template
from ptune.data.tokenize import encode_prompt
from ptune.errors import ModelError
from ptune.model.backbone import check_tokenizer, load_model, load_tokenizer
from ptune.model.hub import prompt_folder
from ptune.model.parameters import device_of
from ptune.model.persistence import base_name, base_revision, check_prompt_tokenizer
from ptune.model.wrapper import PTunedModel


@dataclass(frozen=True)
class Session:
    """Everything needed to answer a text."""

    model: PTunedModel
    tokenizer: PreTrainedTokenizerBase
    template: Template

    def encode(self, instruction: str, extra: str = "", history: History = (), system: str | None = None) -> Any:
        """`(1, T)` token ids of a text, with its input (`extra`), as the template writes it."""
        ids = encode_prompt(self.template.prompt(instruction, extra, history, system), self.tokenizer)
        return torch.tensor([ids], device=device_of(self.model.base))

    def room(self, ids: torch.Tensor) -> int | None:
        """Tokens that prompt and text leave of the model's context, below 0 when they exceed it; None: no limit."""
        limit = self.model.context_length
        width = max(config.num_virtual_tokens for config in self.model.prompt_configs.values())
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

    def seed(self, seed: int | None) -> None:
        """Make the next answer's sampling repeatable; None leaves it to chance."""
        if seed is not None:
            set_seed(seed)

    def answer(self, ids: Any, *, with_prompt: bool = True, streamer: Any = None, **options: Any) -> str:
        """The model's answer to `(1, T)` token ids; the frozen model's own when `with_prompt` is False."""
        output = self.model.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            prompt_names=None if with_prompt else [None],
            pad_token_id=self.tokenizer.pad_token_id,
            streamer=streamer,
            **options,
        )
        return str(self.tokenizer.decode(output[0, ids.shape[1] :], skip_special_tokens=True))


def open_session(args: argparse.Namespace) -> Session:
    """Load what a prompt folder needs.

    Raises:
        PromptError: The folder is missing here and on the hub, damaged, or made for another model or tokenizer.
        ModelError: The model cannot be loaded.
    """
    folder = prompt_folder(args.folder, revision=args.prompt_revision)
    details = read_details(folder)
    name = args.model or base_name(folder)
    revision = None if args.model else base_revision(folder)
    tokenizer = load_tokenizer(name, trust_remote_code=args.trust_remote_code, revision=revision)
    check_prompt_tokenizer(folder, tokenizer, force=args.force)
    base = load_model(
        name,
        dtype=args.dtype,
        quantization=args.quantization,
        device=args.device,
        trust_remote_code=args.trust_remote_code,
        revision=revision,
    )
    check_tokenizer(base, tokenizer)
    model = PTunedModel(base, self_check=not args.no_self_check)
    model.load_prompt(folder, trainable=False, force=args.force)
    text = args.template or details.get("template") or "tutorial"
    template = get_template(text, tokenizer, files=bool(args.template))
    return Session(model.eval(), tokenizer, template)
