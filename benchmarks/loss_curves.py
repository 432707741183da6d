"""Does the loss of P-tuning fall faster than that of prompt tuning, as is often said?

    python benchmarks/loss_curves.py [--seeds 3] [--epochs 2]

Prompt tuning, the MLP and the LSTM on two sets of instructions, each at its own rate. The rate is chosen first, by the
held-out loss of a short run with each of `FACTORS` times the method's default, on rows that the comparison never sees.
Then every method trains from every seed on the same rows in the same order (`ptune.compare` does both). Reported, with
the least and the greatest over the seeds: training loss in the first third and in the last tenth, and held-out loss.
Draws `docs/images/loss_curves.png`. `--work` keeps what was measured, so that an interrupted run goes on.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from harness import OK, RESULTS, ROOT, heading, write
from plots import plot_loss_curves
from ptune import CompareSettings, compare
from ptune.comparison.summary import Comparison
from ptune.data.records import load_examples
from ptune.loading.load import chosen_dtype
from ptune.methods.names import METHODS
from ptune.recipe import TrainRecipe

ENGLISH, CHINESE = "../shared/data/alpaca_en", "../shared/data/alpaca_zh"
NAMES = ("prompt-tuning", "mlp", "lstm")
RATES = {"prompt-tuning": 3e-2, "mlp": 1e-3, "lstm": 1e-3}
FACTORS = (0.3, 1.0, 3.0, 10.0)
"""Of `RATES`, tried before the comparison."""
PARTS = {"loss_first_third": (0.0, 1 / 3), "loss_last_tenth": (0.9, 1.0)}
WHAT = (
    "Training and held-out loss of prompt tuning and P-tuning, each at the rate that did best on other rows, on the "
    "same rows in the same order, over several seeds."
)


def measure(options: argparse.Namespace, say: Console) -> dict[str, Any]:
    """Both data sets: rates, then curves."""
    result: dict[str, Any] = {
        **heading(WHAT, "python benchmarks/loss_curves.py"),
        "settings": {
            name: getattr(options, name)
            for name in ("model", "rows", "held_out", "batch", "epochs", "rate_epochs", "max_length", "n", "seeds")
        }
        | {"dtype": str(chosen_dtype(options.dtype, torch.device("cpu"))).removeprefix("torch.")},
        "status": "not finished",
        "data": [],
    }
    for source in options.data:
        result["data"].append(_one_set(source, options, say))
        write(result, options.output)
    result["status"] = OK
    write(result, options.output)
    return result


def _one_set(source: str, options: argparse.Namespace, say: Console) -> dict[str, Any]:
    """Rates and curves on one set of rows."""
    name = Path(source).stem if Path(source).suffix else Path(source).name
    folder = Path(options.work) / name
    folder.mkdir(parents=True, exist_ok=True)
    compared, tried = _draw(source, options.rows + options.held_out, folder)
    tries = []
    for factor in FACTORS:
        rates = {one: RATES[one] * factor for one in NAMES}
        tries.append(_compare(tried, folder / f"rate-x{factor:g}", rates, options, say, rates_only=True))
    table = {
        one: {f"{RATES[one] * factor:g}": _held_out(found, one) for factor, found in zip(FACTORS, tries, strict=True)}
        for one in NAMES
    }
    chosen = {one: float(min(losses, key=losses.__getitem__)) for one, losses in table.items()}
    found = _compare(compared, folder / "curves", chosen, options, say)
    return {
        "data": name,
        "rates_tried": table,
        "rates": chosen,
        "model_alone": found.base.held_out_loss,
        "same_rows_in_the_same_order": found.same_rows,
        "methods": _summaries(found),
    }


def _draw(source: str, count: int, folder: Path) -> tuple[Path, Path]:
    """Two files of rows that share none: the ones compared on, and the ones the rates are chosen on."""
    examples = load_examples(str(ROOT / source))
    order = random.Random(0).sample(range(len(examples)), 2 * count)
    files = folder / "compared.json", folder / "tried.json"
    for path, part in zip(files, (order[:count], order[count:]), strict=True):
        path.write_text(json.dumps([asdict(examples[index]) for index in part]), encoding="utf-8")
    return files


def _compare(
    data: Path,
    output: Path,
    rates: Mapping[str, float],
    options: argparse.Namespace,
    say: Console,
    *,
    rates_only: bool = False,
) -> Comparison:
    """Train all three at their rates."""
    recipe = TrainRecipe(
        model=options.model,
        data=str(data),
        output=str(output),
        eval_rows=options.held_out,
        max_length=options.max_length,
        num_virtual_tokens=options.n,
        dtype=options.dtype,
    )
    settings = CompareSettings(
        methods=",".join(NAMES), seeds=1 if rates_only else options.seeds, learning_rates=dict(rates)
    )
    epochs = options.rate_epochs if rates_only else options.epochs
    arguments = {"num_train_epochs": epochs, "per_device_train_batch_size": options.batch}
    found = compare(recipe, settings, arguments, say)
    faults = [f"{one.title}: {one.status}" for one in found.methods if one.status != OK]
    if faults:
        raise SystemExit("; ".join(faults))
    return found


def _held_out(found: Comparison, name: str) -> float:
    (one,) = (one for one in found.methods if one.method == name)
    assert one.held_out_loss is not None
    return one.held_out_loss.mean


def _summaries(found: Comparison) -> dict[str, Any]:
    """Of each method the curves, one a seed, and what they come to."""
    summaries = {}
    for name in NAMES:
        runs = sorted((run for run in found.runs if run.method == name), key=lambda run: run.seed)
        curves = [[loss for _, loss in run.losses] for run in runs]
        summaries[name] = {
            "seeds": [run.seed for run in runs],
            "held_out_loss": [run.held_out_loss for run in runs],
            "losses": curves,
            **{part: [_mean(curve, *ends) for curve in curves] for part, ends in PARTS.items()},
        }
    return summaries


def _mean(curve: Sequence[float], begin: float, end: float) -> float:
    """Over a part of the curve, its ends as shares of the whole."""
    first = min(int(begin * len(curve)), len(curve) - 1)
    return statistics.fmean(curve[first : max(round(end * len(curve)), first + 1)])


def table(result: Mapping[str, Any]) -> Table:
    """A row for every method on every set: mean (least to greatest) over the seeds."""
    columns = ("loss_first_third", "loss_last_tenth", "held_out_loss")
    made = Table(header_style="bold")
    for title in ("data", "method", "rate", *columns):
        made.add_column(title, justify="left" if title in ("data", "method") else "right")
    for one in result["data"]:
        made.add_row(one["data"], "the model alone", "", "", "", f"{one['model_alone']:.3f}")
        for name, summary in one["methods"].items():
            cells = [
                f"{statistics.fmean(summary[key]):.3f} ({min(summary[key]):.3f} to {max(summary[key]):.3f})"
                for key in columns
            ]
            made.add_row(one["data"], METHODS[name].title, f"{one['rates'][name]:g}", *cells)
        made.add_section()
    return made


def run(argv: Sequence[str] | None = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=WHAT)
    parser.add_argument("--model", default="builtin:smollm2-135m", help="default %(default)s")
    parser.add_argument("--dtype", default="auto", help="as of `ptune train`, default %(default)s")
    parser.add_argument("--data", nargs="+", default=(ENGLISH, CHINESE), help="files or folders of instructions")
    numbers = {"rows": 300, "held-out": 40, "batch": 4, "epochs": 2, "rate-epochs": 1, "max-length": 256, "n": 10}
    for name, default in {**numbers, "seeds": 3}.items():
        parser.add_argument(f"--{name}", type=int, default=default, help="default %(default)s")
    parser.add_argument("--work", help="keeps what was measured; an interrupted run goes on from there")
    parser.add_argument("--output", type=Path, default=RESULTS / "loss_curves.json", help="the result file")
    parser.add_argument("--plot", type=Path, default=ROOT / "docs/images/loss_curves.png", help="the PNG to draw")
    options = parser.parse_args(argv)
    with tempfile.TemporaryDirectory() as scratch:
        options.work = options.work or scratch
        result = measure(options, Console(stderr=True))
    plot_loss_curves(result, options.plot)
    Console(width=160).print(table(result))


if __name__ == "__main__":
    run()
