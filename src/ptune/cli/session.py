"""A prompt folder opened for answering: model, tokenizer and template together."""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase

from ptune.checkpoint.format import read_details
from ptune.cli.flags import Parser
from ptune.data.template import History, Template, get_template
from ptune.data.tokenize import encode_prompt
from ptune.errors import PromptError
from ptune.model.backbone import check_tokenizer, load_model, load_tokenizer
from ptune.model.fingerprint import tokenizer_fingerprint
from ptune.model.persistence import base_name
from ptune.model.wrapper import PTunedModel


@dataclass(frozen=True)
class Session:
    """Everything needed to answer a text."""

    model: PTunedModel
    tokenizer: PreTrainedTokenizerBase
    template: Template

    def encode(self, instruction: str, input: str = "", history: History = (), system: str | None = None) -> Any:
        """`(1, T)` token ids of a text as the template writes it."""
        import torch

        ids = encode_prompt(self.template.prompt(instruction, input, history, system), self.tokenizer)
        return torch.tensor([ids], device=self.model.base.device)

    def answer(self, ids: Any, *, with_prompt: bool = True, streamer: Any = None, **options: Any) -> str:
        """The model's answer to `(1, T)` token ids; the frozen model's own when `with_prompt` is False."""
        import torch

        output = self.model.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            prompt_names=None if with_prompt else [None],
            pad_token_id=self.tokenizer.pad_token_id,
            streamer=streamer,
            **options,
        )
        return str(self.tokenizer.decode(output[0, ids.shape[1] :], skip_special_tokens=True))


def add_session_flags(parser: Parser) -> None:
    """Flags that `generate` and `chat` share."""
    parser.add_argument("folder", type=Path, metavar="DIR", help="the prompt folder")
    parser.add_argument("--model", default=None, help="frozen model (default: the one the prompt was trained on)")
    parser.add_argument("--template", default=None, help="template (default: the one the prompt was trained with)")
    parser.add_argument("--no-prompt", action="store_true", help="the frozen model alone")
    parser.add_argument("--compare", action="store_true", help="show the frozen model's answer beside the tuned one")
    parser.add_argument("--max-new-tokens", type=int, default=128, metavar="N", help="longest answer")
    parser.add_argument("--temperature", type=float, default=0.0, help="above 0 samples; 0 takes the likeliest token")
    parser.add_argument("--top-p", type=float, default=1.0, help="sample from this probability mass")
    parser.add_argument("--num-beams", type=int, default=1, metavar="N", help="beam search")
    parser.add_argument("--repetition-penalty", type=float, default=1.0, help="above 1 discourages repetition")
    parser.add_argument("--seed", type=int, default=None, metavar="N", help="seed for sampling")
    parser.add_argument("--dtype", default="auto", help="weights of the frozen model")
    parser.add_argument("--device", default=None, help="cpu, cuda, … (default: CUDA where there is one)")
    parser.add_argument("--force", action="store_true", help="accept a model or tokenizer the prompt was not made for")
    parser.add_argument("--trust-remote-code", action="store_true", help="run model code that comes from the hub")


def open_session(args: argparse.Namespace) -> Session:
    """Load what a prompt folder needs.

    Raises:
        PromptError: The folder is missing, damaged, or made for another model or tokenizer.
        ModelError: The model cannot be loaded.
    """
    details = read_details(args.folder)
    name = args.model or base_name(args.folder)
    revision = None if args.model else details["config"].get("revision")
    tokenizer = load_tokenizer(name, trust_remote_code=args.trust_remote_code, revision=revision)
    noted = details.get("tokenizer_fingerprint")
    if noted is not None and noted != tokenizer_fingerprint(tokenizer) and not args.force:
        raise PromptError(
            f"{args.folder} was trained with another tokenizer than that of {name}.",
            hint="Use the model it was trained on, or --force.",
        )
    base = load_model(
        name, dtype=args.dtype, device=args.device, trust_remote_code=args.trust_remote_code, revision=revision
    )
    check_tokenizer(base, tokenizer)
    model = PTunedModel(base)
    model.load_prompt(args.folder, trainable=False, force=args.force)
    template = get_template(args.template or str(details.get("template") or "tutorial"), tokenizer)
    return Session(model.eval(), tokenizer, template)


def generation_options(args: argparse.Namespace) -> dict[str, Any]:
    """`generate`'s options from the flags."""
    options: dict[str, Any] = {
        "max_new_tokens": args.max_new_tokens,
        "num_beams": args.num_beams,
        "repetition_penalty": args.repetition_penalty,
    }
    if args.temperature > 0:
        return {**options, "do_sample": True, "temperature": args.temperature, "top_p": args.top_p, "top_k": 0}
    return {**options, "do_sample": False, "temperature": None, "top_p": None, "top_k": None}
