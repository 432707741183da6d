"""`ptune export DIR --to peft|embeds|vllm|model`: a prompt in the form that another program takes."""

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

_FORMS = ("peft", "embeds", "vllm", "model")
_FLAGS = {
    "vllm": ("dtype", "model", "template", "text"),
    "model": ("dtype", "model", "template", "name", "max_shard_size", "device", "no_measure", "force"),
}
"""What only some of the forms take."""
_MARK = "\x00"
_MORE = """\
peft     a folder that PeftModel.from_pretrained loads: adapter_config.json, adapter_model.safetensors
embeds   one safetensors file: prompt_embeds, (virtual tokens, dimension) in float32
vllm     a folder for a vLLM server: the payload, a chat request, a chat template, example.py, README.md
model    a whole model with the prompts, any number of them, as special tokens of its vocabulary: for
         transformers, vLLM, llama.cpp and others, with nothing of ptune's installed there"""


def build_parser() -> Parser:
    """The command's flags."""
    parser = Parser(
        "export",
        "Write a prompt in the form that another program takes. Only its virtual tokens go along, not its encoder.",
        usage="DIR… --to peft|embeds|vllm|model --output OUT [flags]",
        more=_MORE,
    )
    add_prompt_flags(parser, several=True)
    parser.add_argument("--to", required=True, choices=_FORMS, help="the form; model takes several prompts")
    parser.add_argument(
        "--output", required=True, type=Path, metavar="OUT", help="the folder; with embeds the file, NAME.safetensors"
    )
    parser.add_argument("--overwrite", action="store_true", help="replace an earlier export")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    both = parser.add_argument_group("for --to vllm and --to model")
    both.add_argument(
        "--dtype",
        choices=("float32", "bfloat16", "float16"),
        help="of the payload, float32 unless bfloat16 is asked for; of the model, by default as it is stored",
    )
    both.add_argument("--template", help="template; by default the one the prompt was trained with")
    both.add_argument("--model", help="frozen model; by default the one the prompt was trained on")
    vllm = parser.add_argument_group("for --to vllm")
    vllm.add_argument("--text", help="what the example asks")
    model = parser.add_argument_group("for --to model")
    model.add_argument(
        "--name",
        action="append",
        help="what a prompt is asked for by; once for each DIR, in their order (default: DIR's)",
    )
    model.add_argument("--max-shard-size", metavar="SIZE", help="the most in one file of weights (default: 5GB)")
    model.add_argument("--device", help="where the model is measured (default: cpu, which reads it from its files)")
    model.add_argument(
        "--no-measure",
        action="store_true",
        default=None,
        help="do not run the model; virtual tokens then have the mean of all output rows",
    )
    model.add_argument(
        "--force", action="store_true", default=None, help="accept a model or tokenizer a prompt was not made for"
    )
    return parser


def run(argv: Sequence[str]) -> int:
    """Run the command; returns the exit code."""
    args = build_parser().parse(argv)
    _check_flags(args)
    from ptune.cli.quiet import json_line
    from ptune.saved.export import check_answering, check_embeddings, export_embeds, export_peft, export_vllm
    from ptune.saved.format import read_prompt
    from ptune.saved.hub import prompt_folder
    from ptune.saved.opened_folder import open_folder

    folders = [open_folder(prompt_folder(one, revision=args.prompt_revision)) for one in args.folders]
    if args.to == "model":
        return _export_model(args, folders)
    opened = folders[0]
    prompt = read_prompt(opened)
    if args.to == "vllm":
        check_answering(prompt, "vllm")
        check_embeddings(prompt, "vllm")
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


def _check_flags(args: argparse.Namespace) -> None:
    """Raise `ConfigError` for what the form does not take."""
    for name in {name: None for names in _FLAGS.values() for name in names}:
        takers = [form for form, names in _FLAGS.items() if name in names]
        if getattr(args, name) is not None and args.to not in takers:
            flag = "--" + name.replace("_", "-")
            forms = " and ".join(f"--to {form}" for form in takers)
            raise ConfigError(f"{flag} is for {forms}, not for --to {args.to}.", hint="Leave it out.")
    if args.to == "vllm" and args.dtype == "float16":
        raise ConfigError("--dtype float16 is for --to model, not for --to vllm.", hint="Take float32 or bfloat16.")
    if args.to != "model" and len(args.folders) > 1:
        raise ConfigError(
            f"--to {args.to} takes one prompt, and there are {len(args.folders)}: {', '.join(args.folders[:3])}.",
            hint="Export them one by one, or together with --to model.",
        )
    if args.name is not None and len(args.name) != len(args.folders):
        raise ConfigError(
            f"--name is given {len(args.name)} times for {len(args.folders)} prompts.",
            hint="Give it once for each, in their order, or leave it out for the folders' own names.",
        )


def _export_model(args: argparse.Namespace, folders: Sequence[OpenedFolder]) -> int:
    """Write a model folder."""
    from ptune.cli.quiet import json_line, quiet_libraries

    quiet_libraries(data=False)
    from ptune.saved.as_model.export_model import check_names, export_model

    names = args.name or [Path(one).resolve().name for one in args.folders]
    check_names(names)
    exported = export_model(
        dict(zip(names, folders, strict=True)),
        args.output,
        model=args.model,
        template=args.template,
        dtype=args.dtype,
        max_shard_size=args.max_shard_size or "5GB",
        device=args.device,
        measure=not args.no_measure,
        force=bool(args.force),
        overwrite=args.overwrite,
    )
    files = sorted(path for path in args.output.rglob("*") if path.is_file())
    size = sum(path.stat().st_size for path in files)
    facts = exported.to_dict()
    if args.json:
        listed = [str(path.relative_to(args.output)) for path in files]
        print(json_line({"to": args.to, "output": str(args.output), "files": listed, "bytes": size, **facts}))
        return 0
    share = facts["largest_share"]
    noted = "not measured" if share is None else f"at most {share:.1e} of the probability where it was measured"
    prompts = "1 prompt" if len(names) == 1 else f"{len(names)} prompts"
    print(f"model: {prompts}, {facts['virtual_tokens']} virtual tokens, {size:,} bytes: {args.output}")
    print(f"virtual tokens as answers: {noted}")
    print(f"ask for a prompt by the system message ptune:{names[0]}; README.md says how, engine by engine")
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
