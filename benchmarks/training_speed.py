"""How long does one epoch of P-tuning take, against PEFT as its users write it?

    python benchmarks/training_speed.py [--rounds 5] [--device cuda]

On a CPU: SmolLM2-135M, 64 rows in batches of 8, an MLP with 10, 50 and 100 virtual tokens and an LSTM with 10. On a
GPU: a BLOOM of the tutorial's size with random weights, batches of 1 accumulated over 8 as in the tutorial, in float32
and in bfloat16. Timed is `trainer.train()`, all of it.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import workload
from contenders import CONTENDERS, train
from harness import ROOT, Benchmark, Case, command_line, main
from plots import plot_speed

BENCHMARK = Benchmark(
    name="training_speed",
    what="CPU time and wall time of one epoch of P-tuning on the same rows: PEFT with transformers.Trainer in random "
    "order and grouped by length, ptune with padded batches grouped by length, and ptune with packed batches.",
    script=Path(__file__),
    work=train,
    metrics=("cpu_seconds", "wall_seconds", "peak_gib"),
    references=("peft", "peft-grouped"),
)


def training_cases(options: argparse.Namespace, *, fewer: int | None = None) -> list[Case]:
    """The encoders and numbers of virtual tokens to compare.

    Args:
        options: Flags of `workload.add_flags`.
        fewer: Rounds at most for all cases but the first.
    """
    shared = workload.common_settings(options)
    cuda = options.device == "cuda"
    prompts = [("mlp", 10), ("lstm", 10)] if cuda else [("mlp", 10), ("mlp", 50), ("mlp", 100), ("lstm", 10)]
    kinds = ("float32", "bfloat16") if cuda else ("float32",)
    cases = [
        Case(
            label=f"{encoder} n={n}" + (f" {dtype}" if len(kinds) > 1 else ""),
            settings={**shared, "encoder": encoder, "n": n, "dtype": dtype},
            contenders=CONTENDERS,
        )
        for dtype in kinds
        for encoder, n in prompts
    ]
    return [cases[0], *(replace(case, rounds=fewer) for case in cases[1:])]


def run(argv: Sequence[str] | None = None) -> None:
    """The command line."""
    parser = command_line(BENCHMARK, rounds=5)
    workload.add_flags(parser)
    parser.add_argument("--plot", type=Path, help="the PNG to draw (default docs/images/speed.png; none for a GPU)")
    main(BENCHMARK, parser, lambda options: training_cases(options, fewer=3), argv, finish=_draw)


def _draw(options: argparse.Namespace, result: dict[str, Any]) -> None:
    if options.plot or options.device == "cpu":
        plot_speed(result, options.plot or ROOT / "docs/images/speed.png")


if __name__ == "__main__":
    run()
