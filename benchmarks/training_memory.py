"""How much memory does one epoch of P-tuning take above the loaded model, against PEFT as its users write it?

    python benchmarks/training_memory.py [--rounds 2] [--device cuda]

The cases of `training_speed.py`. Memory varies little from run to run, so two rounds are enough to see that it does.
Resident memory on a CPU, what tensors take on a GPU; counted from the moment when model, data and prompt are loaded.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import workload
from contenders import train
from harness import Benchmark, command_line, main
from training_speed import training_cases

BENCHMARK = Benchmark(
    name="training_memory",
    what="Peak memory above the loaded model during one epoch of P-tuning on the same rows: PEFT with "
    "transformers.Trainer in random order and grouped by length, ptune padded and grouped by length, and ptune packed.",
    script=Path(__file__),
    work=train,
    metrics=("peak_gib",),
    references=("peft", "peft-grouped"),
)


def run(argv: Sequence[str] | None = None) -> None:
    """The command line."""
    parser = command_line(BENCHMARK, rounds=2)
    workload.add_flags(parser)
    main(BENCHMARK, parser, training_cases, argv)


if __name__ == "__main__":
    run()
