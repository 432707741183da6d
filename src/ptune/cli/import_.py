"""`ptune import PEFT_DIR`: a PEFT adapter becomes a prompt folder."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ptune.cli.flags import Parser
from ptune.cli.session_flags import is_for_texts
from ptune.errors import ConfigError, PromptError, printable, shown

if TYPE_CHECKING:
    from ptune.deep_config import PromptConfig
    from ptune.saved.format import SavedPrompt
    from ptune.saved.opened_folder import OpenedFolder
    from ptune.training.output import OutputFolder

_MORE = """\
PEFT keeps the baked virtual tokens alone, whatever encoder made them: the prompt's encoder is `embedding`, that of
prefix tuning and of a Cartridge `prefix`, and training goes on from them. Nor does it say which template the texts
had: ptune takes `tutorial` unless --template names another. Adapters for other tasks come with their heads, and have
the text as it is. PEFT does not name a classifier's labels: they are LABEL_0, LABEL_1, … unless --labels names them."""


def build_parser() -> Parser:
    """The command's flags."""
    parser = Parser(
        "import",
        "Make a prompt folder of a PEFT adapter: prompt tuning, P-tuning, prefix tuning or a Cartridge, for any task. "
        "Its model is not loaded unless named.",
        usage="PEFT_DIR --output DIR [flags]",
        more=_MORE,
    )
    parser.add_argument("folder", metavar="PEFT_DIR", help="the adapter's folder, or its hub id (user/adapter)")
    parser.add_argument("--prompt-revision", metavar="REV", help="branch, tag or commit of the adapter on the hub")
    parser.add_argument("--output", required=True, type=Path, metavar="DIR", help="the prompt folder")
    parser.add_argument("--model", help="load this frozen model, check that the prompt fits, note its fingerprint")
    parser.add_argument("--revision", help="revision of the model on the hub")
    parser.add_argument("--trust-remote-code", action="store_true", help="run model code that comes from the hub")
    parser.add_argument("--template", help="template that the prompt was trained with; needs --model")
    parser.add_argument("--labels", metavar="A,B", help="labels of a classifier, in the order of its head's outputs")
    parser.add_argument("--overwrite", action="store_true", help="replace an earlier prompt in the folder")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    return parser


def run(argv: Sequence[str]) -> int:
    """Run the command; returns the exit code."""
    args = build_parser().parse(argv)
    if args.template is not None and args.model is None:
        raise ConfigError("--template needs --model, whose tokenizer reads it.", hint="Name the frozen model.")
    from ptune.cli.quiet import json_line, quiet_libraries

    quiet_libraries()
    from ptune.saved.format import read_prompt, write_prompt
    from ptune.saved.hub import prompt_folder
    from ptune.saved.opened_folder import open_folder
    from ptune.training.output import OutputFolder

    opened = open_folder(prompt_folder(args.folder, revision=args.prompt_revision))
    saved = read_prompt(opened)
    if opened.by_ptune:
        raise PromptError(
            f"{args.folder} is a prompt folder of ptune's already.", hint="Use it as it is, or copy the folder."
        )
    origin, labels = _origin(opened.path), _labels(args, opened)
    with OutputFolder(args.output, overwrite=args.overwrite) as output:
        if args.model is None:
            prompt = _alone(saved, origin, _noted(opened, labels))
            output.claim()
            write_prompt(args.output, prompt)
        elif is_for_texts(opened):
            _write_checked(args, opened, saved.config, origin, output)
        else:
            _write_task(args, opened, {"imported_from": origin, **_noted(opened, labels)}, output)
    facts = {
        "output": str(args.output),
        "virtual_tokens": saved.vectors.shape[0],
        "token_dim": saved.vectors.shape[1],
        "base_model": args.model or saved.config.base_model_name_or_path,
        "checked": args.model is not None,
        "template": args.template,
        "encoder": _kind(saved),
        "imported_from": origin,
        **({} if is_for_texts(opened) else {"task_type": opened.task.value, **_noted(opened, labels)}),
        **({"head_parameters": sum(one.numel() for one in saved.head.values())} if saved.head else {}),
    }
    if args.json:
        print(json_line(facts))
    else:
        _show(facts)
    return 0


def _origin(folder: Path) -> dict[str, str]:
    """What the adapter says of its making."""
    from ptune.saved.files import read_json
    from ptune.saved.peft import ADAPTER_CONFIG

    adapter = read_json(folder, ADAPTER_CONFIG)
    names = ("peft_type", "encoder_reparameterization_type", "peft_version")
    return {name: str(adapter[name]) for name in names if adapter.get(name) is not None}


def _labels(args: argparse.Namespace, opened: OpenedFolder) -> list[str] | None:
    """The labels of a classifier's head, named as transformers names them where nobody does; None without any.

    Raises:
        ConfigError: Others than the head has, or for a prompt without.
    """
    count = opened.labels()
    if args.labels is None:
        return [f"LABEL_{number}" for number in range(count)] if isinstance(count, int) else None
    given = [one.strip() for one in args.labels.split(",")]
    if not isinstance(count, int):
        raise ConfigError(
            f"--labels is for classifiers, and {args.folder} is an adapter for {opened.task.value}.",
            hint="Leave it out.",
        )
    if len(given) != count or len(set(given)) != count or not all(given):
        raise ConfigError(
            f"--labels names {shown(given)}, and the adapter's head has {count} outputs.",
            hint="Name each once, in the order of the outputs, as A,B.",
        )
    return given


def _noted(opened: OpenedFolder, labels: list[str] | None) -> dict[str, Any]:
    """What `ptune.json` says of the task; nothing for a prompt that answers texts."""
    from ptune.data.tasks.task_kinds import TASK_TYPES

    task = next((name for name, kind in TASK_TYPES.items() if kind is opened.task), None)
    return {name: value for name, value in (("task", task), ("labels", labels)) if value is not None}


def _alone(saved: SavedPrompt, origin: dict[str, str], noted: dict[str, Any]) -> SavedPrompt:
    """The prompt as ptune keeps one, without a look at its model."""
    from ptune import __version__
    from ptune.saved.format import SavedPrompt
    from ptune.saved.prompt_io import plain_config, plain_tensors

    config = plain_config(saved)
    tensors = plain_tensors(config, saved.vectors)
    details = {
        "base_model": config.base_model_name_or_path,
        "encoder": _kind(saved),
        "trainable_parameters": sum(one.numel() for one in (tensors["embedding.weight"], *saved.head.values())),
        "versions": {"ptune": __version__},
        "imported_from": origin,
        **noted,
    }
    return SavedPrompt(config=config, vectors=saved.vectors, encoder=tensors, head=saved.head, details=details)


def _kind(saved: SavedPrompt) -> str:
    """The encoder of a prompt that is given as what an encoder gave."""
    return "prefix" if saved.is_deep else "embedding"


def _write_checked(
    args: argparse.Namespace, opened: OpenedFolder, config: PromptConfig, origin: dict[str, str], output: OutputFolder
) -> None:
    """Write the prompt with its model: the sizes are compared, the fingerprint is noted."""
    from ptune.data.blocks import check_template
    from ptune.data.template import get_template
    from ptune.frozen.fingerprint import tokenizer_fingerprint
    from ptune.loading.load import load_model, load_tokenizer
    from ptune.saved.prompt_io import load_prompt, save_prompt

    options: dict[str, Any] = {"trust_remote_code": args.trust_remote_code, "revision": args.revision}
    noted: dict[str, Any] = {"imported_from": origin}
    if args.template is not None:
        tokenizer = load_tokenizer(args.model, **options)
        template = get_template(args.template, tokenizer, virtual_tokens=config.num_virtual_tokens)
        check_template(template, config, "the adapter")
        noted |= {"template": template.text, "template_fingerprint": template.fingerprint}
        noted["tokenizer_fingerprint"] = tokenizer_fingerprint(tokenizer)
    base = load_model(args.model, device="cpu", **options)
    encoder, config = load_prompt(base, opened, trainable=True, force=False)
    output.claim()
    save_prompt(
        base, encoder, replace(config, base_model_name_or_path=args.model, revision=args.revision), args.output, noted
    )


def _write_task(args: argparse.Namespace, opened: OpenedFolder, noted: dict[str, Any], output: OutputFolder) -> None:
    """Write a prompt for a task with its model: prompt and head are compared, the fingerprint is noted."""
    from ptune.data.blocks import check_template
    from ptune.data.tasks.task_templates import task_template
    from ptune.frozen.fingerprint import tokenizer_fingerprint
    from ptune.loading.load import load_model, load_tokenizer
    from ptune.model.task_model import PTunedTaskModel

    options: dict[str, Any] = {"trust_remote_code": args.trust_remote_code, "revision": args.revision}
    base = load_model(args.model, device="cpu", task=opened.task, labels=noted.get("labels"), **options)
    model = PTunedTaskModel(base, task=opened.task)
    name = model.load_prompt(opened)
    config = replace(model.prompt_configs[name], base_model_name_or_path=args.model, revision=args.revision)
    model.prompt_configs[name] = config
    if args.template is not None:
        template = task_template(args.template, noted.get("task", opened.task.value), config.num_virtual_tokens)
        check_template(template, config, "the adapter")
        noted = {**noted, "template": template.text, "template_fingerprint": template.fingerprint}
        noted["tokenizer_fingerprint"] = tokenizer_fingerprint(load_tokenizer(args.model, **options))
    output.claim()
    model.save_pretrained(args.output, **noted)


def _show(facts: dict[str, Any]) -> None:
    """What was done, for people."""
    origin = facts["imported_from"]
    kind = " ".join(origin[name] for name in ("peft_type", "encoder_reparameterization_type") if name in origin)
    size = f"{facts['virtual_tokens']} virtual tokens × {facts['token_dim']}"
    print(f"{kind}: {size}: {facts['output']}")
    print(f"PEFT keeps the baked virtual tokens alone: the prompt's encoder is `{facts['encoder']}`.")
    checked = "its sizes fit, its fingerprint is noted" if facts["checked"] else "not loaded; --model M checks it"
    print(f"frozen model: {printable(facts['base_model'] or 'unknown')} ({checked})")
    if "head_parameters" in facts:
        labels = f", labels {', '.join(map(printable, facts['labels']))}" if "labels" in facts else ""
        print(f"for {facts['task_type']}: a head of {facts['head_parameters']:,} numbers{labels}")
    if facts["template"] is None:
        otherwise = "takes `tutorial`" if "task_type" not in facts else "writes the text as it is"
        print(f"template: PEFT does not say; ptune {otherwise} unless --template names another")
