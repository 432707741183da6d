"""`ptune inspect DIR`: what a prompt folder holds, without loading its model."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ptune.cli.flags import Parser


def run(argv: Sequence[str]) -> int:
    """Run the command; returns the exit code."""
    parser = Parser("inspect", "What a prompt folder holds. Its tensors are read and checked; its model is not loaded.")
    parser.add_argument("folder", type=Path, metavar="DIR", help="the prompt folder")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    args = parser.parse(argv)
    facts = describe(args.folder)
    if args.json:
        print(json.dumps(facts, ensure_ascii=False))
        return 0
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(title=str(args.folder), show_header=False, title_justify="left")
    for name, value in facts.items():
        if value is not None:
            table.add_row(name.replace("_", " "), Text(_shown(value)))
    Console().print(table)
    return 0


def describe(folder: Path) -> dict[str, Any]:
    """The facts of a prompt folder, as plain values.

    Raises:
        PromptError: The folder is missing or damaged.
    """
    from ptune.checkpoint.format import ADAPTER_WEIGHTS, ENCODER_WEIGHTS, read_prompt

    saved = read_prompt(folder)
    details = saved.details
    norms = saved.vectors.norm(dim=1)
    files = [folder / name for name in (ADAPTER_WEIGHTS, ENCODER_WEIGHTS)]
    sizes = {path.name: path.stat().st_size for path in files if path.is_file()}
    return {
        "base_model": saved.config.base_model_name_or_path,
        "base_fingerprint": details.get("base_fingerprint"),
        "encoder": details.get("encoder", saved.config.peft_type),
        "virtual_tokens": saved.vectors.shape[0],
        "token_dim": saved.vectors.shape[1],
        "trainable_parameters": details.get("trainable_parameters"),
        "template": details.get("template"),
        "trained_on": details.get("data"),
        "rows": (details.get("tokens_report") or {}).get("kept"),
        **(details.get("metrics") or {}),
        "vector_norms": {"min": float(norms.min()), "mean": float(norms.mean()), "max": float(norms.max())},
        "bytes": sizes,
        "versions": details.get("versions"),
        "written_by": "ptune" if "format_version" in details else "PEFT",
    }


def _shown(value: Any) -> str:
    if isinstance(value, dict):
        return "  ".join(f"{name} {_shown(item)}" for name, item in value.items())
    if isinstance(value, float):
        return f"{value:.4f}"
    return f"{value:,}" if isinstance(value, int) else str(value)
