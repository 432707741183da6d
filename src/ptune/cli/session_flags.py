"""What the commands that use a prompt share. Needs no library until a prompt is opened, so that help is quick."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any

from ptune.choices import DTYPE_NAMES, GREEDY, NEW_TOKENS, QUANTIZATION_NAMES
from ptune.cli.flags import Parser, number

if TYPE_CHECKING:
    from ptune.answering import Answerer
    from ptune.saved.opened_folder import OpenedFolder
    from ptune.task_answering import TaskAnswerer


def add_prompt_flags(parser: Parser, *, several: bool = False) -> None:
    """Add what names a prompt. It stays a text: as a path, a hub id could not be told from a folder.

    Args:
        parser: The command's.
        several: Any number of prompts, at least one, as `folders` in place of `folder`.
    """
    about = "the prompt folder, or its hub id (user/prompt)"
    if several:
        parser.add_argument("folders", metavar="DIR", nargs="+", help=about)
    else:
        parser.add_argument("folder", metavar="DIR", help=about)
    parser.add_argument("--prompt-revision", metavar="REV", help="branch, tag or commit of the prompt on the hub")


def add_session_flags(parser: Parser) -> None:
    """Add the flags for opening a prompt folder and for answering."""
    add_prompt_flags(parser)
    shown = parser.add_argument_group("what answers").add_mutually_exclusive_group()
    shown.add_argument("--no-prompt", action="store_true", help="the frozen model alone")
    shown.add_argument("--compare", action="store_true", help="the frozen model's answer too, beside the tuned one")
    answer = parser.add_argument_group("the answer")
    whole, share = number(int, least=1), number(float, least=0, most=1)
    answer.add_argument(
        "--max-new-tokens",
        type=whole,
        metavar="N",
        help=f"longest answer, in tokens (default: {NEW_TOKENS}, or what the context has room for)",
    )
    answer.add_argument(
        "--temperature",
        type=number(float, least=0),
        default=0.0,
        metavar="X",
        help="above 0 samples; 0 takes the likeliest token (default: 0)",
    )
    answer.add_argument("--top-p", type=share, default=1.0, metavar="X", help="sample from this probability mass")
    answer.add_argument("--num-beams", type=whole, default=1, metavar="N", help="beam search")
    answer.add_argument(
        "--repetition-penalty", type=number(float, least=0.01), default=1.0, metavar="X", help="above 1 repeats less"
    )
    answer.add_argument("--seed", type=number(int, least=0), metavar="N", help="makes sampling repeatable")
    answer.add_argument("--system", help="a system message, where the template has a place for one")
    add_model_flags(parser)


def add_model_flags(parser: Parser, *, template: bool = True) -> None:
    """Add the flags for the model, and with `template` for the template, that a prompt is used with."""
    model = parser.add_argument_group("model and template" if template else "model")
    model.add_argument("--model", help="frozen model; by default the one the prompt was trained on")
    if template:
        model.add_argument("--template", help="template; by default the one the prompt was trained with")
    model.add_argument("--dtype", choices=DTYPE_NAMES, default="auto", help="weights of the frozen model")
    model.add_argument("--quantization", choices=QUANTIZATION_NAMES, help="quantize the frozen model")
    model.add_argument("--device", help="cpu, cuda, …; by default CUDA where there is one")
    model.add_argument(
        "--device-map", metavar="MAP", help="spread the model over several devices: auto, balanced or sequential"
    )
    model.add_argument("--attn-implementation", metavar="NAME", help="attention of the model: eager, sdpa, …")
    model.add_argument("--force", action="store_true", help="accept a model or tokenizer the prompt was not made for")
    model.add_argument(
        "--no-self-check", action="store_true", help="do not try the model on a short text before it answers"
    )
    model.add_argument("--trust-remote-code", action="store_true", help="run model code that comes from the hub")


def generation_options(args: argparse.Namespace) -> dict[str, Any]:
    """`generate`'s options from the flags."""
    options: dict[str, Any] = {
        "num_beams": args.num_beams,
        "repetition_penalty": args.repetition_penalty,
    }
    if args.temperature > 0:
        return {**options, "do_sample": True, "temperature": args.temperature, "top_p": args.top_p, "top_k": 0}
    return {**options, **GREEDY}


def start_sampling(args: argparse.Namespace) -> None:
    """Make the sampling that follows repeatable, where a seed is given."""
    from transformers import set_seed

    if args.seed is not None:
        set_seed(args.seed)


def opened_folder(args: argparse.Namespace) -> OpenedFolder:
    """The folder that the flags name, opened; nothing is loaded.

    Raises:
        PromptError: It is missing here and on the hub, or damaged.
    """
    from ptune.saved.hub import prompt_folder
    from ptune.saved.opened_folder import open_folder

    return open_folder(prompt_folder(args.folder, revision=args.prompt_revision))


def is_for_texts(opened: OpenedFolder) -> bool:
    """Whether a prompt is a causal language model's, which answers texts; else it is for another task."""
    from ptune.config import TaskType

    return opened.task is TaskType.CAUSAL_LM


def open_answerer(args: argparse.Namespace, opened: OpenedFolder | None = None) -> Answerer:
    """What the flags name, loaded; errors as for `Answerer.open`."""
    from ptune.answering import Answerer

    return Answerer.open(opened or args.folder, **_open_options(args))


def open_task_answerer(args: argparse.Namespace, opened: OpenedFolder) -> TaskAnswerer:
    """What the flags name, loaded; errors as for `TaskAnswerer.open`."""
    from ptune.task_answering import TaskAnswerer

    return TaskAnswerer.open(opened, **_open_options(args))


def _open_options(args: argparse.Namespace) -> dict[str, Any]:
    return {
        "model": args.model,
        "template": args.template,
        "dtype": args.dtype,
        "quantization": args.quantization,
        "device": args.device,
        "device_map": args.device_map,
        "attn_implementation": args.attn_implementation,
        "revision": args.prompt_revision,
        "force": args.force,
        "self_check": not args.no_self_check,
        "trust_remote_code": args.trust_remote_code,
    }
