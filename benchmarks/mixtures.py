"""How long does an epoch of P-tuning take on mixtures of experts and with latent attention, packed against padded?

    python benchmarks/mixtures.py [--rounds 3] [--device cuda]

Two models with random weights, 12 layers of width 576 and 16 experts of which each token takes 4: a Qwen3-MoE, and a
DeepSeek-V3, whose latent attention has keys and values of different widths. Otherwise as `training_speed.py`, with an
MLP and 10 virtual tokens.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import workload
from contenders import CONTENDERS, train
from harness import Benchmark, Case, command_line, main

BENCHMARK = Benchmark(
    name="mixtures",
    what="CPU time, wall time and peak memory of one epoch of P-tuning on mixtures of experts with random weights, the "
    "same rows for all: PEFT with transformers.Trainer in random order and grouped by length, ptune with padded "
    "batches grouped by length, and ptune with packed batches.",
    script=Path(__file__),
    work=train,
    metrics=("cpu_seconds", "wall_seconds", "peak_gib"),
    references=("peft", "peft-grouped", "ptune-padded"),
)


def mixture_cases(options: argparse.Namespace) -> list[Case]:
    """One a model."""
    shared = workload.common_settings(options) | {"encoder": "mlp", "n": 10}
    models = (options.model,) if options.model else (workload.MOE, workload.LATENT)
    return [
        Case(label=model.removeprefix("random:"), settings={**shared, "model": model}, contenders=CONTENDERS)
        for model in models
    ]


def run(argv: Sequence[str] | None = None) -> None:
    """The command line."""
    parser = command_line(BENCHMARK, rounds=3)
    workload.add_flags(parser)
    main(BENCHMARK, parser, mixture_cases, argv)


if __name__ == "__main__":
    run()
