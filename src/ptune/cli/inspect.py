"""`ptune inspect DIR`: what a prompt folder holds, without loading its model."""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ptune.cli.flags import Parser, number
from ptune.cli.session_flags import add_prompt_flags
from ptune.config import PeftType
from ptune.errors import ModelError, PromptError, PTuneError, printable, shown

if TYPE_CHECKING:
    import torch

    from ptune.evaluation.prompt_geometry import Geometry, Nearest
    from ptune.saved.format import SavedPrompt
    from ptune.saved.opened_folder import OpenedFolder

_MORE = """\
The nearest tokens of the vocabulary need the base model's input embeddings, and nothing else of it: they are read by
themselves from its safetensors file. Nothing is downloaded for that unless the model is named with --model.

Cosines are from -1 to 1. The effective rank says how many directions the virtual tokens fill (Roy & Vetterli, 2007)."""

_MOST = 500
"""Characters of a value that are shown."""


def build_parser() -> Parser:
    """The command's flags."""
    parser = Parser(
        "inspect",
        "What a prompt folder holds: how it was made, and where its virtual tokens lie. Its model is not loaded.",
        more=_MORE,
    )
    add_prompt_flags(parser)
    parser.add_argument("--model", metavar="MODEL", help="the base model, where it is not the one the folder names")
    parser.add_argument("--revision", help="revision of the model on the hub")
    parser.add_argument("--trust-remote-code", action="store_true", help="run model code that comes from the hub")
    parser.add_argument(
        "--nearest", type=number(int, least=0), default=5, metavar="N", help="nearest tokens to show (default 5)"
    )
    parser.add_argument("--no-nearest", action="store_true", help="do not look at the base model at all")
    parser.add_argument("--metric", choices=("cosine", "l2"), default="cosine", help="nearest by angle or by distance")
    parser.add_argument("--plot", type=Path, metavar="FILE.png", help="draw lengths, nearest tokens and likeness")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    return parser


@dataclass(frozen=True)
class _Vocabulary:
    """What the base model's vocabulary says of a prompt."""

    nearest: Nearest
    texts: list[list[str]]
    """`P` lists of the nearest tokens, readable."""
    model: str


def run(argv: Sequence[str]) -> int:
    """Run the command; returns the exit code."""
    args = build_parser().parse(argv)
    from ptune.cli.quiet import json_line
    from ptune.evaluation.prompt_geometry import geometry
    from ptune.saved.format import read_prompt
    from ptune.saved.hub import prompt_folder
    from ptune.saved.opened_folder import open_folder

    opened = open_folder(prompt_folder(args.folder, revision=args.prompt_revision))
    saved = read_prompt(opened)
    shape, facts = geometry(saved.vectors), describe(opened, saved)
    places = _places(saved)
    vocabulary, missing = _look_up(args, opened, saved)
    if args.plot is not None:
        _draw(args, shape, vocabulary)
    if args.json:
        print(json_line({**_as_dict(args, facts, shape, vocabulary, missing), "places": places}))
    else:
        _show(args, facts, shape, vocabulary, missing=missing, places=places)
    return 0


def _places(saved: SavedPrompt) -> list[str] | None:
    """The block of the template that each virtual token stands in; None where it has no blocks for them."""
    from ptune.data.blocks import tokens_of
    from ptune.data.template import template_blocks

    try:
        blocks = template_blocks(saved.details.get("template") or "")
    except PTuneError:
        return None
    if tokens_of(blocks) != saved.vectors.shape[0]:
        return None
    return [str(block) for block in blocks for _ in block.ids]


def describe(opened: OpenedFolder, saved: SavedPrompt) -> dict[str, Any]:
    """The facts of a prompt folder, as plain values. Losses are nats per answer token."""
    from ptune.saved.format import ENCODER_WEIGHTS
    from ptune.saved.peft import ADAPTER_WEIGHTS

    folder, details = opened.path, saved.details
    recipe: Mapping[str, Any] = details.get("recipe") or {}
    norms = saved.vectors.norm(dim=1)
    files = [folder / name for name in (ADAPTER_WEIGHTS, ENCODER_WEIGHTS)]
    sizes = {path.name: path.stat().st_size for path in files if path.is_file()}
    facts = {
        "base_model": saved.config.base_model_name_or_path,
        "base_fingerprint": details.get("base_fingerprint"),
        **_of_task(opened, saved),
        "encoder": details.get("encoder", str(PeftType(saved.config.peft_type).value)),
        "virtual_tokens": saved.vectors.shape[0],
        "tokens_in_text": saved.config.tokens_in_text or None,
        "token_dim": saved.vectors.shape[1],
        "keys_and_values": _keys_and_values(saved),
        "trainable_parameters": details.get("trainable_parameters"),
        "template": details.get("template") or None,
        "trained_on": details.get("data"),
        "rows": (details.get("tokens_report") or {}).get("kept"),
        "max_length": recipe.get("max_length"),
    }
    measured = details.get("metrics") or {}
    return {
        **facts,
        # The folder names them, and may not name one of the others.
        **{name: value for name, value in measured.items() if name not in facts},
        "vector_norms": {"min": float(norms.min()), "mean": float(norms.mean()), "max": float(norms.max())},
        "bytes": sizes,
        "versions": details.get("versions"),
        "written_by": "ptune" if "format_version" in details else "PEFT",
    }


def _of_task(opened: OpenedFolder, saved: SavedPrompt) -> dict[str, Any]:
    """What a prompt for another task is for, and what trains beside it; nothing for one that answers texts."""
    from ptune.config import TaskType
    from ptune.data.tasks.task_kinds import TASK_TYPES

    if opened.task is TaskType.CAUSAL_LM:
        return {}
    labels = opened.labels()
    heads: dict[str, int] = {}
    for name, tensor in saved.head.items():
        module = name.partition(".")[0]
        heads[module] = heads.get(module, 0) + tensor.numel()
    return {
        "task": next((name for name, kind in TASK_TYPES.items() if kind is opened.task), None),
        "task_type": opened.task.value,
        "base_class": saved.details.get("base_class"),
        "labels": list(labels) if isinstance(labels, tuple) else None,
        "label_count": len(labels) if isinstance(labels, tuple) else labels,
        "verbalizer": saved.details.get("verbalizer") or None,
        "head": heads or None,
    }


def _keys_and_values(saved: SavedPrompt) -> str | None:
    """What a virtual token of a deep prompt is made of; None for others."""
    config = saved.config
    if not saved.is_deep or not config.num_attention_heads or not config.token_dim:
        return None
    size = config.token_dim // config.num_attention_heads
    return f"{config.num_layers} layers, {config.num_attention_heads} heads of {size}"


def _look_up(
    args: argparse.Namespace, opened: OpenedFolder, saved: SavedPrompt
) -> tuple[_Vocabulary | None, str | None]:
    """The vocabulary around the prompt, or why it cannot be shown.

    Raises:
        PTuneError: The model was named with `--model`, and cannot be used.
    """
    if args.no_nearest or args.nearest == 0:
        return None, None
    if saved.is_deep:
        return None, "the prompt is keys and values of every layer, which no token of the vocabulary is near to"
    if not args.model and not saved.config.base_model_name_or_path:
        return None, "the folder does not name its base model; name it with --model"
    try:
        return _vocabulary(args, saved.vectors, args.model or opened.base_name(), opened), None
    except PTuneError as error:
        if args.model:
            raise
        return None, f"{error.message.rstrip('.')}; name the base model with --model"


def _vocabulary(args: argparse.Namespace, vectors: torch.Tensor, model: str, opened: OpenedFolder) -> _Vocabulary:
    from ptune.cli.quiet import quiet_libraries

    quiet_libraries(data=False)
    from ptune.evaluation.prompt_geometry import nearest_tokens
    from ptune.loading.embedding_table import load_embedding_table
    from ptune.loading.load import load_tokenizer

    options = {"trust_remote_code": args.trust_remote_code, "revision": args.revision}
    options["local_files_only"] = not args.model
    tokenizer = load_tokenizer(model, **options)
    table = load_embedding_table(model, task=opened.task, **options)
    if table.dim != vectors.shape[1]:
        raise ModelError(
            f"the embeddings of {model} have {table.dim} numbers, and the virtual tokens {vectors.shape[1]}.",
            hint="Name the model that the prompt was trained on.",
        )
    found = nearest_tokens(vectors, table.pieces(), args.nearest, args.metric)
    texts = [[_readable(tokenizer, token) for token in row] for row in found.ids.tolist()]
    return _Vocabulary(found, texts, model)


def _readable(tokenizer: Any, token: int) -> str:
    """A token's text in quotes, blanks and controls visible; its bare name where it is part of a character."""
    text: str = tokenizer.decode([token])
    if not text or "\ufffd" in text:
        text = str(tokenizer.convert_ids_to_tokens(token))
    return json.dumps(text, ensure_ascii=False)


def _as_dict(
    args: argparse.Namespace,
    facts: Mapping[str, Any],
    shape: Geometry,
    vocabulary: _Vocabulary | None,
    missing: str | None,
) -> dict[str, Any]:
    """Every figure, as plain values."""
    pair = shape.closest_pair
    figures = {
        **facts,
        "norms": shape.norms.tolist(),
        "similarity": shape.similarity.tolist(),
        "closest_pair": None if pair is None else {"tokens": pair[:2], "cosine": pair[2]},
        "effective_rank": shape.effective_rank,
        "nearest": None,
        "nearest_missing": missing,
    }
    if vocabulary is not None:
        found = vocabulary.nearest
        figures["vocabulary"] = {"model": vocabulary.model, "norms": _spread(found.norms)}
        figures["nearest"] = [
            [
                {"id": token, "text": json.loads(text), args.metric: score}
                for token, text, score in zip(ids, texts, scores, strict=True)
            ]
            for ids, texts, scores in zip(found.ids.tolist(), vocabulary.texts, found.scores.tolist(), strict=True)
        ]
    return figures


def _spread(norms: torch.Tensor) -> dict[str, float]:
    """The 5th, 50th and 95th percentile."""
    from ptune.evaluation.prompt_geometry import percentiles

    return dict(zip(("p5", "p50", "p95"), percentiles(norms), strict=True))


def _draw(args: argparse.Namespace, shape: Geometry, vocabulary: _Vocabulary | None) -> None:
    from ptune.evaluation.prompt_picture import plot_prompt

    if args.plot.suffix.lower() != ".png":
        raise PromptError(f"--plot writes PNG files, not {args.plot.name!r}.", hint="Name a file that ends in .png.")
    name, rank = Path(args.folder).absolute().name, shape.effective_rank
    plot_prompt(
        args.plot,
        shape,
        title=f"{name}: {len(shape.norms)} virtual tokens, effective rank {rank:.1f}",
        nearest=None if vocabulary is None else [row[0] for row in vocabulary.texts],
        vocabulary_norms=None if vocabulary is None else vocabulary.nearest.norms,
    )


def _show(
    args: argparse.Namespace,
    facts: Mapping[str, Any],
    shape: Geometry,
    vocabulary: _Vocabulary | None,
    *,
    missing: str | None,
    places: list[str] | None,
) -> None:
    """The facts and the virtual tokens, for people."""
    from rich.table import Table
    from rich.text import Text

    from ptune.cli.quiet import output

    console = output(width=160)
    console.print(printable(args.folder), style="bold", highlight=False, markup=False, soft_wrap=True)
    table = Table(show_header=False)
    for name, value in facts.items():
        if value is not None:
            table.add_row(Text(_short(name.replace("_", " "))), Text(_short(_shown(value))))
    console.print(table)
    lines = [f"effective rank {shape.effective_rank:.1f} of {min(facts['virtual_tokens'], facts['token_dim'])}"]
    if pair := shape.closest_pair:
        between = shape.between
        lines.append(
            f"cosine between virtual tokens {float(between.min()):.2f} to {float(between.max()):.2f}, "
            f"mean {float(between.mean()):.2f}; the closest are {pair[0]} and {pair[1]}"
        )
    if vocabulary is not None:
        norms = _spread(vocabulary.nearest.norms)
        lines.append(
            f"norms of the vocabulary {norms['p5']:.2f} to {norms['p95']:.2f} (5% to 95%), median {norms['p50']:.2f}"
        )
    for line in lines:
        console.print(line, highlight=False, soft_wrap=True)
    console.print(_tokens(args, shape, vocabulary, places))
    if missing is not None:
        console.print(f"nearest tokens: {_short(missing)}", highlight=False, markup=False, soft_wrap=True)
    if args.plot is not None:
        console.print(f"plot: {printable(str(args.plot))}", highlight=False, markup=False, soft_wrap=True)


def _tokens(args: argparse.Namespace, shape: Geometry, vocabulary: _Vocabulary | None, places: list[str] | None) -> Any:
    """A row for every virtual token: its place in the template, its length and what is near to it."""
    from rich.table import Table
    from rich.text import Text

    table = Table()
    table.add_column("virtual token", justify="right")
    if places is not None:
        table.add_column("place")
    table.add_column("norm", justify="right")
    if vocabulary is not None:
        table.add_column(f"nearest in the vocabulary ({'cosine' if args.metric == 'cosine' else 'distance'})")
    for at, norm in enumerate(shape.norms.tolist()):
        row = [str(at), *([] if places is None else [places[at]]), f"{norm:.3f}"]
        if vocabulary is not None:
            scores = vocabulary.nearest.scores[at].tolist()
            row.append(
                "  ".join(
                    f"{_short(text, 60)} {score:.2f}" for text, score in zip(vocabulary.texts[at], scores, strict=True)
                )
            )
        table.add_row(*map(Text, row))
    return table


def _shown(value: Any) -> str:
    if isinstance(value, dict):
        return "  ".join(f"{name} {_shown(item)}" for name, item in value.items())
    if isinstance(value, float):
        return f"{value:.4f}"
    if isinstance(value, int) and not isinstance(value, bool):
        return f"{value:,}"
    return value if isinstance(value, str) else shown(value, _MOST)


def _short(text: str, most: int = _MOST) -> str:
    """A text of a folder's or a vocabulary's on one line, without what a terminal would obey."""
    return printable(text if len(text) <= most else f"{text[: most - 1]}…")
