"""How near does `ptune plan` come to what a run then takes?

    python benchmarks/forecast.py [--models smollm2 bloom gpt2] [--shapes 4x128 8x256 2x512]

Every method trains for a few steps on rows of exactly the forecast length, in a process of its own, as `ptune compare`
runs it; then the forecast is made from the configuration. Compared: peak memory above the process before the model,
and the time of a step. SmolLM2 is real; BLOOM and GPT-2 have random weights, which neither memory nor time depends on.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import transformers
from rich.console import Console
from transformers import BloomConfig, BloomForCausalLM, GPT2Config, GPT2LMHeadModel

from harness import OK, Answer, Benchmark, Case, Settings, command_line, main
from ptune.comparison.job import Job
from ptune.comparison.measured_run import run_job
from ptune.errors import PTuneError
from ptune.loading.load import load_config, load_tokenizer
from ptune.loading.place import DTYPES
from ptune.methods.names import METHODS as ALL_METHODS
from ptune.planning.clock import calibrate
from ptune.planning.forecast import Forecast, Forecaster
from ptune.recipe import TrainRecipe

SMOLLM2 = "builtin:smollm2-135m"
MODELS = {"smollm2": SMOLLM2, "bloom": "random:bloom-123m", "gpt2": "random:gpt2-124m"}
METHODS = ("full", "mlp", "lstm", "lora", "peft-mlp")
SHAPES = ("4x128", "8x256", "2x512")
STEPS = 4
ANSWER_SHARE = 0.6
"""Of a row's tokens; what `Forecaster` takes when it is not told."""


def work(contender: str, settings: Settings) -> Answer:
    """Train with a method, and forecast the same."""
    transformers.logging.set_verbosity_error()
    warnings.simplefilter("ignore")
    torch.set_num_threads(settings["threads"])
    with tempfile.TemporaryDirectory() as folder:
        model = model_folder(settings["model"], Path(folder))
        recipe = TrainRecipe(
            model=model,
            data=str(_rows(model, Path(folder), settings)),
            output=str(Path(folder) / "out"),
            max_length=settings["length"],
            dtype=settings["dtype"],
            encoder=ALL_METHODS[contender].encoder or "mlp",
        )
        arguments = {"max_steps": STEPS, "per_device_train_batch_size": settings["batch"]}
        if settings["device"] == "cpu":
            arguments["use_cpu"] = True
        job = Job(
            method=contender,
            seed=0,
            folder=f"{folder}/run",
            recipe=vars(recipe),
            arguments=arguments,
            learning_rate=1e-4,
        )
        found = run_job(job, lambda _: None)
        forecast = foretold(model, contender, settings)
        rates = calibrate(
            tokens=settings["batch"] * settings["length"],
            width=load_config(model).get_text_config(decoder=True).hidden_size,
            dtype=DTYPES[settings["dtype"]],
            device=settings["device"],
        )
    assert found.peak_gib is not None
    assert found.loaded_gib is not None
    assert found.step_seconds is not None
    seconds = rates.step_seconds(forecast)
    return {
        "peak_gib": found.peak_gib,
        "forecast_gib": forecast.memory.total,
        "error_percent": 100 * (forecast.memory.total / found.peak_gib - 1),
        "step_seconds": found.step_seconds,
        "forecast_step_seconds": seconds,
        "step_error_percent": 100 * (seconds / found.step_seconds - 1),
        "loaded_gib": found.loaded_gib,
        "tokens": found.tokens,
        "forecast": forecast.to_dict(),
        "trainable_parameters": found.trainable_parameters,
    }


def foretold(model: str, method: str, settings: Settings) -> Forecast:
    """What `ptune plan` says."""
    forecaster = Forecaster(load_config(model), dtype=settings["dtype"], device=settings["device"])
    return forecaster.forecast(method, settings["batch"], settings["length"])


def model_folder(name: str, folder: Path) -> str:
    """A model as `ptune` names it; one with random weights is made in `folder`, with SmolLM2's tokenizer."""
    if not name.startswith("random:"):
        return name
    tokenizer = load_tokenizer(SMOLLM2)
    torch.manual_seed(0)
    sizes: dict[str, Any] = {"vocab_size": len(tokenizer), "n_layer": 12, "n_head": 12}
    made: Any
    if "bloom" in name:
        made = BloomForCausalLM(BloomConfig(hidden_size=768, **sizes))
    else:
        made = GPT2LMHeadModel(GPT2Config(n_embd=768, **sizes))
    made.save_pretrained(folder / "model")
    tokenizer.save_pretrained(folder / "model")
    return str(folder / "model")


def _rows(model: str, folder: Path, settings: Settings) -> Path:
    """Rows that are longer than asked, so that they are cut to it: questions of 0.4 of the length, endless answers."""
    tokenizer = load_tokenizer(model)
    template = len(tokenizer.encode("Human: 10 \n\nAssistant: "))
    a_word = len(tokenizer.encode(" word" * 50)) / 50
    asked = int((settings["length"] * (1 - ANSWER_SHARE) - template) / a_word)
    words = " ".join(["word"] * max(asked, 1))
    rows = [{"instruction": f"{at} {words}", "output": " ".join(["word"] * settings["length"])} for at in range(64)]
    path = folder / "rows.json"
    path.write_text(json.dumps(rows), encoding="utf-8")
    return path


BENCHMARK = Benchmark(
    name="forecast",
    what="Peak memory and step time as ptune plan foretells them from the configuration, against a measured run.",
    script=Path(__file__),
    work=work,
    metrics=("peak_gib", "forecast_gib", "error_percent", "step_seconds", "forecast_step_seconds"),
    references=(),
)


def forecast_cases(options: argparse.Namespace) -> list[Case]:
    """One case a model, shape and dtype."""
    cases = []
    for dtype in options.dtypes:
        for name in options.models if dtype == "float32" else options.models[:1]:
            for shape in options.shapes:
                batch, length = map(int, shape.split("x"))
                settings = {
                    "model": MODELS.get(name, name),
                    "batch": batch,
                    "length": length,
                    "dtype": dtype,
                    "device": options.device,
                    "threads": options.threads,
                }
                cases.append(
                    Case(label=f"{name} {shape} {dtype}", settings=settings, contenders=tuple(options.methods))
                )
    return cases


def run(argv: Sequence[str] | None = None) -> None:
    """The command line."""
    parser = command_line(BENCHMARK, rounds=1)
    parser.add_argument("--models", nargs="+", default=list(MODELS), help=f"of {', '.join(MODELS)}, or a folder")
    parser.add_argument("--shapes", nargs="+", default=list(SHAPES), help="rows x tokens")
    parser.add_argument("--dtypes", nargs="+", default=["float32", "bfloat16"], help="the first model alone has others")
    parser.add_argument("--methods", nargs="+", default=list(METHODS), help="as in ptune compare")
    parser.add_argument("--threads", type=int, default=2, help="torch's threads (default 2)")
    main(BENCHMARK, parser, forecast_cases, argv, finish=_conclude)


def _conclude(_options: argparse.Namespace, result: dict[str, Any]) -> None:
    entries = [entry for case in result["cases"] for entry in case["contenders"].values() if entry["status"] == OK]
    errors = sorted(abs(entry["error_percent"]["median"]) for entry in entries)
    if errors:
        Console(stderr=True).print(
            f"{len(errors)} runs: memory off by {errors[len(errors) // 2]:.1f}% (median), {errors[-1]:.1f}% at most",
            highlight=False,
        )


if __name__ == "__main__":
    try:
        run()
    except PTuneError as error:
        raise SystemExit(str(error)) from error
