"""How fast do prompts of keys and values learn beside the vectors alone, and at which rates?

    python benchmarks/deep_prompts.py [--seeds 2] [--steps 30]

The demo's tickets on SmolLM2-135M in float32, 10 virtual tokens, steps of 4 rows, all else as `ptune train` comes: each
encoder at its default rate, and `prefix` and `prefix-mlp` at others. Held-out loss over the first rows of the demo's
held-out file, and the CPU time of the run.
"""

from __future__ import annotations

import argparse
import io
import json
import shutil
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from harness import RESULTS, heading, write
from ptune.choices import LEARNING_RATES
from ptune.cli.demo import HELD_OUT, TRAIN
from ptune.recipe import TrainRecipe

WHAT = (
    "Held-out loss of prompts of keys and values beside virtual-token embeddings, after a few steps, at several rates."
)
MODEL, HELD_OUT_ROWS = "builtin:smollm2-135m", 24
RATES: dict[str, tuple[float | None, ...]] = {
    "embedding": (None,),
    "residual": (None,),
    "prefix": (0.02, 0.06, 0.15),
    "prefix-mlp": (3e-4, LEARNING_RATES["prefix-mlp"], 3e-3),
}
"""Of each encoder; None is the default for model and encoder."""


def trained(place: Path, encoder: str, rate: float | None, seed: int, steps: int) -> dict[str, object]:
    """One run."""
    from ptune.training.train import train

    held_out = place / "held-out.jsonl"
    held_out.write_text("".join(Path(HELD_OUT).read_text().splitlines(keepends=True)[:HELD_OUT_ROWS]))
    recipe = TrainRecipe(
        model=MODEL, dtype="float32", data=TRAIN, eval_data=str(held_out), output=str(place / "out"), encoder=encoder
    )
    values = {"max_steps": steps, "per_device_train_batch_size": 4, "eval_strategy": "no", "seed": seed}
    given = values if rate is None else {**values, "learning_rate": rate}
    began = time.process_time()
    result = train(recipe, {**given, "use_cpu": True}, Console(file=io.StringIO()))
    assert result.after is not None
    shutil.rmtree(place / "out")
    return {
        "encoder": encoder,
        "learning_rate": rate,
        "seed": seed,
        "trainable_parameters": result.model.get_nb_trainable_parameters()[0],
        "held_out_loss": round(result.after.loss, 4),
        "train_loss": round(result.train_loss, 4),
        "cpu_seconds": round(time.process_time() - began, 1),
    }


def main(argv: Sequence[str] | None = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--output", type=Path, default=RESULTS / "deep_prompts.json")
    args = parser.parse_args(argv)
    runs = []
    with tempfile.TemporaryDirectory() as place:
        for seed in range(1, args.seeds + 1):
            for encoder, rates in RATES.items():
                for rate in rates:
                    runs.append(trained(Path(place), encoder, rate, seed, args.steps))
                    print(runs[-1], flush=True)
    command = f"python benchmarks/deep_prompts.py --seeds {args.seeds} --steps {args.steps}"
    result = {**heading(WHAT, command), "model": MODEL, "steps": args.steps, "rows_a_step": 4, "runs": runs}
    before = json.loads(args.output.read_text(encoding="utf-8")) if args.output.exists() else {}
    write({**before, **result}, args.output)  # the part of `deep_tasks.py` stays


if __name__ == "__main__":
    main()
