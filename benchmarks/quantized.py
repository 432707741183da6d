"""What does a frozen model in fewer bits cost and save?

    python benchmarks/quantized.py [--rounds 1] [--rows 256]

The same prompt, from the same start, is trained on the same packed batches behind the model in each form. Reported:
the loss on held-out rows of the frozen model alone and behind the trained prompt, the time of the training, and
memory: what the loaded model takes, and the peak above it while training. `8bit` and `4bit` need bitsandbytes, `int8`
torchao: `pip install "ptune[quantized]"`.
"""

from __future__ import annotations

import argparse
import tempfile
import warnings
from collections.abc import Sequence
from pathlib import Path

import transformers

import contenders
import workload
from harness import Answer, Benchmark, Case, Settings, command_line, held_gib, main, measuring
from ptune import PackingCollator, PTunedModel
from ptune.evaluation.held_out_loss import held_out_loss

FORMS = ("float32", "bfloat16", "int8", "8bit", "4bit")
HELD_OUT_ROWS = 64
PACKED = "ptune-packed"


def work(contender: str, settings: Settings) -> Answer:
    """Load the model in the contender's form, train a prompt behind it, and measure the loss before and after."""
    transformers.logging.set_verbosity_error()
    warnings.simplefilter("ignore")
    start_gib = held_gib(settings["device"])
    dtype = contender if contender in ("float32", "bfloat16") else settings["dtype"]
    quantization = None if dtype == contender else contender
    loaded = workload.load({**settings, "dtype": dtype, "quantization": quantization})
    loaded_gib = held_gib(settings["device"])
    model, _ = contenders.prompted(PACKED, loaded, settings)
    assert isinstance(model, PTunedModel)
    held_out = loaded.rows.select(range(HELD_OUT_ROWS))
    rows = loaded.rows.select(range(HELD_OUT_ROWS, len(loaded.rows)))
    alone = held_out_loss(model, held_out, PackingCollator(), batch_size=settings["batch"], with_prompt=False)
    with tempfile.TemporaryDirectory() as folder:
        trainer = contenders.build_trainer(PACKED, model, rows, workload=loaded, settings=settings, folder=folder)
        with measuring(settings["device"], loaded_gib=loaded_gib) as measured:
            outcome = trainer.train()
    prompted = held_out_loss(model, held_out, PackingCollator(), batch_size=settings["batch"], with_prompt=True)
    return contenders.answer(
        measured,
        loaded,
        settings,
        model_gib=loaded_gib - start_gib,
        loss_alone=alone.loss,
        loss_with_prompt=prompted.loss,
        steps=outcome.global_step,
    )


BENCHMARK = Benchmark(
    name="quantized",
    what="A prompt trained behind the frozen model in float32, bfloat16 and fewer bits: held-out loss of the model "
    "alone and behind the prompt, time, and memory (the loaded model, and the peak above it).",
    script=Path(__file__),
    work=work,
    metrics=("loss_alone", "loss_with_prompt", "model_gib", "peak_gib", "cpu_seconds"),
    references=("float32",),
)


def quantized_cases(options: argparse.Namespace) -> list[Case]:
    """One case, all forms."""
    settings = {**workload.common_settings(options), "encoder": "mlp", "n": 10, "rows": options.rows + HELD_OUT_ROWS}
    return [Case(label="mlp n=10", settings=settings, contenders=FORMS)]


def run(argv: Sequence[str] | None = None) -> None:
    """The command line."""
    parser = command_line(BENCHMARK, rounds=1)
    workload.add_flags(parser, rows=192)
    main(BENCHMARK, parser, quantized_cases, argv)


if __name__ == "__main__":
    run()
