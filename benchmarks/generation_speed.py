"""How long does a prompted model take to answer, against the same model without a prompt, and against PEFT?

    python benchmarks/generation_speed.py [--rounds 5] [--device cuda]

An MLP prompt of 10, 50 and 100 virtual tokens, and texts of 60 tokens. `first_token` is one new token for one text, the
median of some calls; `decode` is 64 new tokens for a batch of 8, greedy, with no end token, all of `generate`. Every
contender has answered once before: what ptune keeps from its first answer (`ptune.prefix.across_calls`) is there, as
in a chat or a server. `base` is the frozen model's own `generate` with no prompt at all.
"""

from __future__ import annotations

import argparse
import statistics
import warnings
from collections.abc import Sequence
from itertools import chain
from pathlib import Path
from typing import Any

import torch
import transformers

import workload
from contenders import prompted
from harness import Answer, Benchmark, Case, Measured, Settings, command_line, main, measuring

CONTENDERS = ("base", "peft", "ptune")
TIMES = ("cpu_seconds", "wall_seconds")
LENGTHS = {"batch": 8, "text_tokens": 60, "new_tokens": 64, "repeats": 5}


def answer(contender: str, settings: Settings) -> Answer:
    """Load, answer once, and measure."""
    transformers.logging.set_verbosity_error()
    warnings.simplefilter("ignore")
    loaded = workload.load(settings)
    model: Any = loaded.base if contender == "base" else prompted(contender, loaded, settings)[0]
    model.eval()
    texts = cut(loaded.rows["input_ids"], settings["batch"], settings["text_tokens"]).to(settings["device"])

    def generate(rows: int, new_tokens: int) -> torch.Tensor:
        text = texts[:rows]
        options = {"max_new_tokens": new_tokens, "do_sample": False, "eos_token_id": None, "pad_token_id": 0}
        found: torch.Tensor = model.generate(input_ids=text, attention_mask=torch.ones_like(text), **options)
        return found[:, -new_tokens:]

    def measure(rows: int, new_tokens: int) -> Measured:
        with measuring(settings["device"]) as measured:
            generate(rows, new_tokens)
        return measured

    generate(len(texts), 2)
    generate(1, 1)
    first = [measure(1, 1) for _ in range(settings["repeats"])]
    decode = measure(len(texts), settings["new_tokens"])
    return {
        **{f"first_token_{name}": statistics.median(one[name] for one in first) for name in TIMES},
        **{f"decode_{name}": decode[name] for name in TIMES},
        "decode_tokens_per_second": len(texts) * settings["new_tokens"] / decode["wall_seconds"],
        "first_tokens": generate(len(texts), 1).flatten().tolist(),
        "gpu": torch.cuda.get_device_name() if settings["device"] == "cuda" else None,
    }


BENCHMARK = Benchmark(
    name="generation_speed",
    what="CPU time and wall time of an answer behind a soft prompt, in ptune and in PEFT, and of the frozen model's "
    "own answer with no prompt: one new token for one text of 60 tokens, and 64 new tokens for a batch of 8.",
    script=Path(__file__),
    work=answer,
    metrics=tuple(f"{part}_{name}" for part in ("first_token", "decode") for name in TIMES),
    references=("base", "peft"),
)


def cut(rows: Sequence[Sequence[int]], batch: int, length: int) -> torch.Tensor:
    """`(batch, length)` tokens of running text."""
    return torch.tensor(list(chain.from_iterable(rows))[: batch * length]).view(batch, length)


def generation_cases(options: argparse.Namespace) -> list[Case]:
    """One case for each number of virtual tokens."""
    shared = {**workload.common_settings(options), **LENGTHS, "encoder": "mlp"}
    return [Case(label=f"mlp n={n}", settings={**shared, "n": n}, contenders=CONTENDERS) for n in (10, 50, 100)]


def run(argv: Sequence[str] | None = None) -> None:
    """The command line."""
    parser = command_line(BENCHMARK, rounds=5)
    workload.add_flags(parser)
    main(BENCHMARK, parser, generation_cases, argv)


if __name__ == "__main__":
    run()
