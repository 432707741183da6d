"""What comes back for every bad input of `tests/robustness`: writes `docs/bad-input.md` and a result file.

python benchmarks/bad_inputs.py                # every case, the table and the result
python benchmarks/bad_inputs.py --print        # every case's line, nothing written
"""

from __future__ import annotations

import argparse
import datetime as dt
import json
import os
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from robustness.workshop import Result

ROOT = Path(__file__).resolve().parents[1]
DOCS, RESULT = ROOT / "docs" / "bad-input.md", ROOT / "benchmarks" / "results" / "bad_inputs.json"
_MOST = 300
"""Characters of a command that are kept."""
_HEAD = """\
# Bad input

What `ptune` says to {count} bad inputs, and that nothing on disk was harmed. Each was made in a folder of its own from
a small random model, a prompt for it and two rows of data; every file there (and the model) was compared before and
after. Made by `benchmarks/bad_inputs.py` from the list that `tests/robustness` tries in every test run; the raw result
is [bad_inputs.json](../benchmarks/results/bad_inputs.json). Paths are shortened.

An error is one line on standard error: what was found, where, and the way out. `--debug` shows the traceback before it.
What a file says is cut and its control characters are written as escapes, so that it cannot speak to the terminal.
The exit code is 2, or 128 and the signal's number. A run that had begun keeps its log and its whole checkpoints.
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Try every case; 1 where one is not as it should be."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--print", action="store_true", help="print each line, write nothing")
    parser.add_argument("--docs", type=Path, default=DOCS)
    parser.add_argument("--result", type=Path, default=RESULT)
    args = parser.parse_args(argv)
    sys.path[:0] = [str(ROOT / "src"), str(ROOT / "tests")]
    # Read by the libraries when they are imported, and so set before.
    os.environ |= {"HF_HUB_OFFLINE": "1", "TQDM_DISABLE": "1", "TRANSFORMERS_VERBOSITY": "error"}
    from ptune.memory.machine import machine, versions
    from robustness.cases import CASES
    from robustness.workshop import Kit, shown_line, try_case

    began = time.monotonic()
    rows, wrong = [], 0
    with tempfile.TemporaryDirectory() as place:
        os.environ["PTUNE_CACHE"] = str(Path(place) / "cache")
        kit = Kit.make(Path(place) / "kit")
        for number, case in enumerate(CASES):
            folder = Path(place) / str(number)
            result = try_case(case, folder, kit)
            row = as_row(result, shown_line(result, folder, kit))
            rows.append(row)
            if args.print:
                print(f"[{row['exit_code']}] {row['group']}: {row['input']}\n    {row['line']}")
            if result.faults():
                wrong += 1
                print(f"WRONG {row['group']}: {row['input']}: {result.faults()}", file=sys.stderr)
    if not args.print:
        args.docs.write_text(table(rows), encoding="utf-8")
        result_file = {
            "machine": machine(),
            "versions": versions(),
            "date": dt.date.today().isoformat(),
            "command": "benchmarks/bad_inputs.py",
            "seconds": round(time.monotonic() - began, 1),
            "cases": rows,
        }
        args.result.write_text(json.dumps(result_file, indent=2, ensure_ascii=True) + "\n", encoding="utf-8")
    print(f"{len(rows)} bad inputs, {wrong} not as they should be, {time.monotonic() - began:.0f} s")
    return int(wrong > 0)


def as_row(result: Result, line: str) -> dict[str, object]:
    """What came back, as plain values."""
    return {
        "group": result.case.group,
        "input": result.case.name,
        "command": result.command if len(result.command) <= _MOST else f"{result.command[:_MOST]}…",
        "line": line.replace("'https://huggingface.co'", "the hub"),
        "exit_code": result.ran.code,
        "changed": list(result.changed),
    }


def table(rows: Sequence[dict[str, object]]) -> str:
    """The document."""
    parts = [_HEAD.format(count=len(rows)).rstrip("\n")]
    for group in dict.fromkeys(row["group"] for row in rows):
        parts.append(f"\n## {str(group).capitalize()}\n\n| input | what came back | exit code | disk unharmed |")
        parts.append("| --- | --- | --- | --- |")
        for row in rows:
            if row["group"] == group:
                unharmed = "no: " + ", ".join(map(str, row["changed"])) if row["changed"] else "yes"  # type: ignore[call-overload]
                parts.append(f"| {_cell(row['input'])} | {_cell(row['line'])} | {row['exit_code']} | {unharmed} |")
    return "\n".join(parts) + "\n"


def _cell(value: object) -> str:
    text = str(value)
    for sign in "\\`*_[]|<>":
        text = text.replace(sign, f"\\{sign}")
    return text


if __name__ == "__main__":
    sys.exit(main())
