"""`ptune export DIR --to peft|embeds|vllm`: a prompt in the form that another program takes."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ptune.cli.flags import Parser
from ptune.cli.session_flags import add_prompt_flags
from ptune.errors import ConfigError

if TYPE_CHECKING:
    from ptune.data.template import Segments, Template
    from ptune.saved.format import SavedPrompt
    from ptune.saved.opened_folder import OpenedFolder
    from ptune.saved.vllm_files import Question

_FORMS = ("peft", "embeds", "vllm")
_VLLM_ONLY = ("dtype", "model", "template", "text")
_MARK = "\x00"
_MORE = """\
peft     a folder that PeftModel.from_pretrained loads: adapter_config.json, adapter_model.safetensors
embeds   one safetensors file: prompt_embeds, (virtual tokens, dimension) in float32
vllm     a folder for a vLLM server: the payload, a chat request, a chat template, example.py, README.md"""


def build_parser() -> Parser:
    """The command's flags."""
    parser = Parser(
        "export",
        "Write a prompt in the form that another program takes. Only its virtual tokens go along, not its encoder.",
        usage="DIR --to peft|embeds|vllm --output OUT [flags]",
        more=_MORE,
    )
    add_prompt_flags(parser)
    parser.add_argument("--to", required=True, choices=_FORMS, help="the form")
    parser.add_argument(
        "--output", required=True, type=Path, metavar="OUT", help="the folder; with embeds the file, NAME.safetensors"
    )
    parser.add_argument("--overwrite", action="store_true", help="replace an earlier export")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    vllm = parser.add_argument_group("for --to vllm")
    vllm.add_argument("--dtype", choices=("float32", "bfloat16"), help="of the payload (default: float32)")
    vllm.add_argument("--text", help="what the example asks")
    vllm.add_argument("--template", help="template; by default the one the prompt was trained with")
    vllm.add_argument("--model", help="frozen model; by default the one the prompt was trained on")
    return parser


def run(argv: Sequence[str]) -> int:
    """Run the command; returns the exit code."""
    args = build_parser().parse(argv)
    if args.to != "vllm":
        for name in _VLLM_ONLY:
            if getattr(args, name) is not None:
                raise ConfigError(f"--{name} is for --to vllm, not for --to {args.to}.", hint="Leave it out.")
    from ptune.cli.quiet import json_line
    from ptune.saved.export import export_embeds, export_peft, export_vllm
    from ptune.saved.format import read_prompt
    from ptune.saved.hub import prompt_folder
    from ptune.saved.opened_folder import open_folder

    opened = open_folder(prompt_folder(args.folder, revision=args.prompt_revision))
    prompt = read_prompt(opened)
    if args.to == "vllm":
        question = _question(args, opened, prompt)
        files = export_vllm(prompt, args.output, question, dtype=args.dtype or "float32", overwrite=args.overwrite)
    else:
        write = export_peft if args.to == "peft" else export_embeds
        files = write(prompt, args.output, overwrite=args.overwrite)
    facts = describe(args, prompt, files)
    if args.json:
        print(json_line(facts))
    else:
        size = f"{facts['virtual_tokens']} virtual tokens × {facts['token_dim']}"
        print(f"{args.to}: {size}, {facts['bytes']:,} bytes: {args.output}")
    return 0


def describe(args: argparse.Namespace, prompt: SavedPrompt, files: Sequence[Path]) -> dict[str, Any]:
    """What was written, as plain values."""
    length, dim = prompt.vectors.shape
    return {
        "to": args.to,
        "output": str(args.output),
        "files": [path.name for path in files],
        "bytes": sum(path.stat().st_size for path in files),
        "virtual_tokens": length,
        "token_dim": dim,
        "base_model": prompt.config.base_model_name_or_path,
    }


def _question(args: argparse.Namespace, opened: OpenedFolder, prompt: SavedPrompt) -> Question:
    """What the example asks, as the prompt's template writes it. Of the model only the tokenizer is loaded."""
    from ptune.cli.quiet import quiet_libraries

    quiet_libraries()
    from ptune.data.blocks import check_template
    from ptune.data.template import get_template
    from ptune.data.text_ids import leading_special_ids
    from ptune.loading.load import load_tokenizer
    from ptune.saved.vllm_files import Question

    model = args.model or opened.base_name()
    tokenizer = load_tokenizer(model, revision=None if args.model else prompt.config.revision)
    named = args.template or prompt.details.get("template") or "tutorial"
    template = get_template(named, tokenizer, files=bool(args.template))
    check_template(template, prompt.config, f"the prompt in {opened.path}")
    segments = _marked(template)
    before, after = segments.prompt.split(_MARK)
    leading = leading_special_ids(tokenizer) if segments.add_special_tokens else []
    return Question(
        model=model,
        template=template.text,
        text=args.text or "Where is my order?",
        before=str(tokenizer.decode(leading)) + before,
        after=after,
    )


def _marked(template: Template) -> Segments:
    """The prompt of a text that nobody writes, whose place can be found in it.

    Raises:
        ConfigError: The template writes it more than once, or changed.
    """
    asks_input = "{input}" in template.text and "{instruction}" not in template.text
    segments = template.prompt("" if asks_input else _MARK, _MARK if asks_input else "")
    if segments.prompt.count(_MARK) != 1:
        raise ConfigError(
            f"the template {template.name!r} writes the text {segments.prompt.count(_MARK)} times, so an example "
            "cannot put one in its place.",
            hint="Give another one with --template.",
        )
    return segments
