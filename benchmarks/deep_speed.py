"""How long does an epoch with a prompt of keys and values take, and how much memory, against PEFT's prefix tuning?

    python benchmarks/deep_speed.py [--rounds 3] [--threads 1]

The rows, batches and rules of `training_speed.py`: `prefix` is PEFT's prefix tuning, `prefix-mlp` the same with its
projection, from the same start. Time and memory are those of one run: `trainer.train()`, all of it, and the peak above
the loaded model.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import workload
from contenders import train
from harness import Benchmark, Case, command_line, main

BENCHMARK = Benchmark(
    name="deep_speed",
    what="CPU time and peak memory above the loaded model of one epoch of prefix tuning on the same rows: PEFT with "
    "transformers.Trainer in random order and grouped by length, and ptune with packed batches.",
    script=Path(__file__),
    work=train,
    metrics=("cpu_seconds", "wall_seconds", "peak_gib"),
    references=("peft", "peft-grouped"),
)
CONTENDERS = ("peft", "peft-grouped", "ptune-packed")
PROMPTS = (("prefix", 10), ("prefix-mlp", 10))


def deep_cases(options: argparse.Namespace) -> list[Case]:
    """The encoders and numbers of virtual tokens to compare; one round for all but the first."""
    shared = workload.common_settings(options)
    return [
        Case(
            label=f"{encoder} n={n}",
            settings={**shared, "encoder": encoder, "n": n},
            contenders=CONTENDERS,
            rounds=None if at == 0 else 1,
        )
        for at, (encoder, n) in enumerate(PROMPTS)
    ]


def run(argv: Sequence[str] | None = None) -> None:
    """The command line."""
    parser = command_line(BENCHMARK, rounds=3)
    workload.add_flags(parser)
    parser.set_defaults(threads=1)
    main(BENCHMARK, parser, deep_cases, argv)


if __name__ == "__main__":
    run()
