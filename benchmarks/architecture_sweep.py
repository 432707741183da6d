"""What ptune makes of every class behind `AutoModelForCausalLM`: writes `docs/architectures.md` and a result file.

python benchmarks/architecture_sweep.py                     # every model type, about three minutes
python benchmarks/architecture_sweep.py --print mixtral     # what is found for these types, nothing written

The checks are those of `tests/decoders/sweep.py`. What an earlier version made of the same models stands beside it; it
is carried over from the result file that is there, or read with `--before` from another one.
"""

from __future__ import annotations

import argparse
import datetime as dt
import json
import os
import sys
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from decoders.sweep import Check, Finding

ROOT = Path(__file__).resolve().parents[1]
DOCS, RESULT = ROOT / "docs" / "architectures.md", ROOT / "benchmarks" / "results" / "architecture_sweep.json"
_WORST = ("error", "wrong", "refused")
_WORDS = {"error": "traceback", "wrong": "wrong numbers", "refused": "refused", "right": "right", "": "not tried"}
_HEAD = """\
# Architectures

What ptune makes of every model type that `AutoModelForCausalLM` of transformers {transformers} knows. Of each, a small
random model is made from its own configuration class. What ptune says with it is held against what the bare model says
to the same prompt and text, one row at a time, without padding and without a cache: logits, loss and the gradient by
the prompt, greedy answers and beam search, rows padded on the left and on the right, and rows with different prompts in
one batch, on every way through the model that ptune takes. A model type is **right** when all of that agrees, and
**refused** when ptune says in one line, before anything runs, that it does not take the model.

| | of {count} model types | before |
| --- | --: | --: |
| right | {right} | {before_right} |
| refused in one line | {refused} | {before_refused} |
| wrong numbers | {wrong} | {before_wrong} |
| another library's traceback | {error} | {before_error} |
| no small model can be made | {impossible} | {before_impossible} |

*Before* is ptune as of {before_commit}. Whatever is not in the table, from the hub or from a later transformers, is
tried when it is loaded: [the self-check](concepts.md#the-self-check).

Made by `benchmarks/architecture_sweep.py` in {seconds:.0f} seconds ({processor}). The raw result, with the error of
each check, is [architecture_sweep.json](../benchmarks/results/architecture_sweep.json). The same checks are
`pytest tests/decoders` (`-m slow` for all of them).

The ways:

- **packed**: training rows stand one after another without padding, and the prompt's keys and values before each.
- **prefix**: rows are padded; the prompt's keys and values are computed once for all rows.
- **concatenation**: the prompt's vectors stand before each row's embeddings, as PEFT does it.

A model type is trained in the first of these that it has and answers with the prefix, or by concatenation where that is
its only way. *Error* is the largest relative error of any check, in float64 unless a remark says otherwise; routers,
norms and scans that compute in float32 whatever the dtype leave 1e-8 to 1e-5.
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Try every type; 1 where one is wrong or ends in a traceback."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("types", nargs="*", metavar="TYPE", help="model types; by default all that can be made")
    parser.add_argument("--print", action="store_true", help="print what is found, write nothing")
    parser.add_argument("--before", type=Path, help="a result file whose outcomes stand beside the new ones")
    parser.add_argument("--docs", type=Path, default=DOCS)
    parser.add_argument("--result", type=Path, default=RESULT)
    args = parser.parse_args(argv)
    if args.types and not args.print:
        parser.error("some TYPEs alone make no table: add --print")
    sys.path[:0] = [str(ROOT / "src"), str(ROOT / "tests")]
    os.environ |= {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_VERBOSITY": "error"}
    from decoders.small import IMPOSSIBLE, MODEL_TYPES
    from decoders.sweep import sweep
    from ptune.memory.machine import machine, versions

    began = time.monotonic()
    rows = []
    for model_type in args.types or [name for name in MODEL_TYPES if name not in IMPOSSIBLE]:
        rows.append(as_row(sweep(model_type)))
        print(_line(rows[-1]), flush=True)
    seconds = time.monotonic() - began
    if not args.print:
        result = {
            "machine": machine(),
            "versions": versions(),
            "date": dt.date.today().isoformat(),
            "command": "benchmarks/architecture_sweep.py",
            "seconds": round(seconds, 1),
            "models": rows,
            "impossible": IMPOSSIBLE,
            "before": _before(args.before, args.result),
        }
        args.result.write_text(_as_json(result), encoding="utf-8")
        args.docs.write_text(document(result), encoding="utf-8")
    counts = Counter(row["outcome"] for row in rows)
    print(f"{dict(counts)} of {len(rows)}, {seconds:.0f} s")
    return int(counts["wrong"] + counts["error"] > 0)


def _as_json(result: Mapping[str, Any]) -> str:
    """A line a model."""
    models = ",\n".join(f"  {json.dumps(row)}" for row in result["models"])
    return (
        json.dumps({**result, "models": []}, indent=1).replace('"models": []', f'"models": [\n{models}\n ]', 1) + "\n"
    )


def as_row(found: Finding) -> dict[str, Any]:
    """What was found, as plain values: a check's relative error, or what was wrong with it."""
    from decoders.small import FLOAT32_ALONE

    why = FLOAT32_ALONE.get(found.model_type, "transformers' own code does not compute it in float64")
    return {
        "type": found.model_type,
        "class": found.name,
        "dtype": found.dtype,
        **({"why_float32": why} if found.dtype == "float32" else {}),
        "outcome": found.outcome,
        "paths": list(found.paths),
        "notes": list(found.notes),
        "checks": {f"{check.path}: {check.what}": _found(check) for check in found.checks},
    }


def _found(check: Check) -> Any:
    if check.outcome != "right":
        return {"outcome": check.outcome, "detail": check.detail}
    return "right" if check.difference is None else float(f"{check.difference:.2g}")


def outcome_of(checks: Mapping[str, Any]) -> str:
    """The worst outcome among checks as `as_row` writes them."""
    found = {check["outcome"] for check in checks.values() if isinstance(check, dict)}
    return next((worst for worst in _WORST if worst in found), "right")


def _before(file: Path | None, result: Path) -> dict[str, Any]:
    if file is not None:
        earlier = json.loads(file.read_text(encoding="utf-8"))
        return {"commit": earlier["commit"], "models": {row["type"]: row["outcome"] for row in earlier["models"]}}
    return dict(json.loads(result.read_text(encoding="utf-8"))["before"]) if result.exists() else {}


def _line(row: Mapping[str, Any]) -> str:
    faults = [
        f"    {check['path']}, {check['what']}: {check['detail']}" for check in row["checks"] if "detail" in check
    ]
    return "\n".join([f"{row['type']}: {row['outcome']} ({', '.join(row['paths'])})", *faults])


def document(result: Mapping[str, Any]) -> str:
    """`docs/architectures.md` of a result."""
    now = Counter(row["outcome"] for row in result["models"])
    earlier = result["before"]["models"]
    before = Counter(earlier.get(row["type"], "") for row in result["models"])
    head = _HEAD.format(
        transformers=result["versions"]["transformers"],
        count=len(result["models"]) + len(result["impossible"]),
        **{name: now[name] for name in ("right", "refused", "wrong", "error")},
        **{f"before_{name}": before[name] for name in ("right", "refused", "wrong", "error")},
        impossible=len(result["impossible"]),
        before_impossible=len(result["impossible"]) + before[""],
        before_commit=result["before"]["commit"],
        seconds=result["seconds"],
        processor=result["machine"]["cpu"],
    )
    remarks: dict[str, int] = {}
    lines = [
        "| model type | class | ways | outcome | error | before | remark |",
        "| --- | --- | --- | --- | --: | --- | --- |",
    ]
    for row in sorted(result["models"], key=lambda row: str(row["type"])):
        numbers = [remarks.setdefault(text, len(remarks) + 1) for text in remarks_on(row)]
        errors = [check for check in row["checks"].values() if isinstance(check, float)]
        cells = (
            row["type"],
            row["class"],
            ", ".join(way for way in ("packed", "prefix", "concatenation") if way in row["paths"]),
            _WORDS[row["outcome"]],
            f"{max(errors):.0e}" if errors else "",
            _WORDS[earlier.get(row["type"], "")],
            ", ".join(f"[{number}](#remarks)" for number in numbers),
        )
        lines.append("| " + " | ".join(cells) + " |")
    listed = [f"{number}. {text}" for text, number in remarks.items()]
    without = [f"- `{name}`: {why}." for name, why in result["impossible"].items()]
    return "\n".join(
        [
            *(head, *lines),
            *("", "## Remarks", "", *listed),
            *("", "## No small model can be made", "", *without, ""),
        ]
    )


def remarks_on(row: Mapping[str, Any]) -> list[str]:
    """What is said of a model type under the table, a sentence each."""
    said = [note.replace(row["class"], "The model") for note in row["notes"]]
    if row["dtype"] == "float32":
        said.append(f"Tried in float32: {row['why_float32']}")
    refused = dict.fromkeys(check["detail"] for check in row["checks"].values() if isinstance(check, dict))
    return [f"{text.rstrip('.')}." for text in (*said, *refused)]


if __name__ == "__main__":
    sys.exit(main())
