"""What does a training step cost as the prompt and the batch grow?

    python benchmarks/scaling.py [--rounds 3]

Two sweeps, each point one optimizer step after a warm-up step: virtual tokens from 1 to 400 before the same 8 rows,
and 1k to 16k tokens of text in one batch behind 10 virtual tokens. PEFT pads its rows and computes logits at every
position, so it takes part only up to 4k tokens a batch. Draws `docs/images/cost_against_size.png`.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import workload
from contenders import train
from harness import ROOT, Benchmark, Case, command_line, main
from plots import plot_scaling

VIRTUAL_TOKENS = (1, 25, 50, 100, 200, 400)
BATCH_TOKENS = (1024, 2048, 4096, 8192, 16384)
PEFT_TOKENS = 4096

BENCHMARK = Benchmark(
    name="scaling",
    what="Time and peak memory of one training step against the number of virtual tokens (the same 8 rows), and "
    "against the tokens of text in a batch (10 virtual tokens): ptune with packed batches, and PEFT.",
    script=Path(__file__),
    work=train,
    metrics=("cpu_seconds", "wall_seconds", "peak_gib"),
    references=("peft",),
)


def scaling_cases(options: argparse.Namespace) -> list[Case]:
    """One case a point of the two sweeps."""
    shared = {**workload.common_settings(options), "batch": None, "accumulation": 1, "encoder": "mlp"}
    both = ("peft", "ptune-packed")
    prompts = [
        Case(label=f"n={n}", settings={**shared, "sweep": "n", "rows": options.rows, "n": n}, contenders=both)
        for n in options.virtual_tokens
    ]
    batches = [
        Case(
            label=f"{tokens} tokens",
            settings={**shared, "sweep": "tokens", "rows": None, "tokens": tokens, "n": 10},
            contenders=both if tokens <= PEFT_TOKENS else both[1:],
        )
        for tokens in options.batch_tokens
    ]
    return prompts + batches


def run(argv: Sequence[str] | None = None) -> None:
    """The command line."""
    parser = command_line(BENCHMARK, rounds=3)
    workload.add_flags(parser, rows=8)
    parser.add_argument(
        "--virtual-tokens", type=int, nargs="*", default=VIRTUAL_TOKENS, help="points of the first sweep"
    )
    parser.add_argument("--batch-tokens", type=int, nargs="*", default=BATCH_TOKENS, help="points of the second")
    parser.add_argument("--plot", type=Path, default=ROOT / "docs/images/cost_against_size.png", help="the PNG to draw")
    main(BENCHMARK, parser, scaling_cases, argv, finish=_draw)


def _draw(options: argparse.Namespace, result: dict[str, Any]) -> None:
    plot_scaling(result, options.plot)


if __name__ == "__main__":
    run()
