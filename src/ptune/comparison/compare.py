"""`compare`: every method with every seed, one process after another, and what came out as tables and pictures.

What a job gave lies in its own file as soon as it is over: interrupted, the same command goes on where it stopped, and
methods or seeds can be added later. A job that runs out of memory, or fails, becomes a row that says so.
"""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from rich.console import Console

from ptune.choices import CHECKPOINTING
from ptune.comparison.job import BASE, FAILED, OK, OUT_OF_MEMORY, Job, JobResult
from ptune.comparison.job_progress import CompareProgress
from ptune.comparison.report import write_reports
from ptune.comparison.settings import CompareSettings
from ptune.comparison.summary import Comparison, summarize
from ptune.errors import ConfigError, ModelError, OutputError
from ptune.methods.names import METHODS, check_checkpointing
from ptune.recipe import TrainRecipe
from ptune.saved.files import make_folder, write_json

SETTINGS_FILE, RESULTS_FILE, RUNS = "settings.json", "results.json", "runs"
NOT_HERE = (
    "eval_strategy",
    "eval_steps",
    "save_strategy",
    "save_steps",
    "load_best_model_at_end",
    "resume_from_checkpoint",
    "report_to",
    "logging_steps",
    "dataloader_num_workers",
    "torch_compile",
)
"""Training arguments that a comparison decides itself."""


def compare(
    recipe: TrainRecipe,
    settings: CompareSettings | None = None,
    arguments: Mapping[str, Any] | None = None,
    console: Console | None = None,
) -> Comparison:
    """Train every method on the same rows, and write tables and pictures to `recipe.output`.

    Args:
        recipe: Model, data and sizes; its `encoder` is each method's own.
        settings: Methods, seeds and rates.
        arguments: `TrainingArguments` by name, the same for all methods (max_steps, per_device_train_batch_size, …).
        console: Where to report; standard error by default.

    Raises:
        ConfigError: Arguments that a comparison decides itself, or that do not go with a method.
        OutputError: The folder holds something else, or the results of another comparison.
        ModelError: The model alone cannot be loaded or measured, so that no method can.
    """
    chosen, given = settings or CompareSettings(), dict(arguments or {})
    check_arguments(recipe, given)
    if given.get(CHECKPOINTING):
        check_checkpointing(chosen.names())
    recipe = replace(recipe, num_virtual_tokens=recipe.virtual_tokens)
    say = console or Console(stderr=True)
    folder = _claim(Path(recipe.output), recipe, given)
    jobs = make_jobs(recipe, chosen, given)
    results = {}
    with CompareProgress(say, total=len(jobs)) as progress:
        for job in jobs:
            kept = _kept(job)
            result = kept or _carry_out(job, progress.tell(job))
            progress.done(job, result, kept=kept is not None)
            if job.method == BASE and not result.ok:
                raise ModelError(f"the model alone cannot be measured: {result.error}", hint="Fix that first.")
            results[job.name] = result
    comparison = summarize(recipe, chosen, given, jobs, results)
    write_json(folder / RESULTS_FILE, comparison.to_dict())
    write_reports(comparison, folder)
    return comparison


def check_arguments(recipe: TrainRecipe, given: Mapping[str, Any]) -> None:
    """Raise `ConfigError` for what does not go with a comparison."""
    faults = [f"{name} is decided by the comparison" for name in NOT_HERE if name in given]
    if "learning_rate" in given:
        faults.append("learning_rate would be one rate for all methods; give learning_rates, as mlp=1e-3")
    if recipe.tokens_per_batch is not None:
        faults.append("tokens_per_batch fits packed rows alone; give per_device_train_batch_size")
    if faults:
        raise ConfigError(f"{'; '.join(faults)}.", hint="See ptune compare --help.")


def make_jobs(recipe: TrainRecipe, settings: CompareSettings, given: Mapping[str, Any]) -> list[Job]:
    """The model alone first, then seed by seed, so that an interrupted comparison is even."""
    first = int(given.get("seed", 42))
    runs = Path(recipe.output) / RUNS
    base = Job(method=BASE, seed=first, folder=str(runs / BASE), recipe=asdict(recipe), arguments=dict(given))
    jobs = [base]
    for seed in range(first, first + settings.seeds):
        for name in settings.names():
            encoder = METHODS[name].encoder
            its = recipe if encoder is None else replace(recipe, encoder=encoder)
            jobs.append(
                Job(
                    method=name,
                    seed=seed,
                    folder=str(runs / f"{name}-seed{seed}"),
                    recipe=asdict(its),
                    arguments={key: value for key, value in given.items() if key != "seed"},
                    learning_rate=settings.learning_rate(name),
                    lora_r=settings.lora_r,
                    lora_alpha=settings.lora_alpha,
                )
            )
    return jobs


def _claim(folder: Path, recipe: TrainRecipe, given: Mapping[str, Any]) -> Path:
    """The folder, made or found to be this comparison's own.

    Raises:
        OutputError: It is somebody else's.
    """
    about = {
        "recipe": {
            key: value for key, value in asdict(recipe).items() if key not in ("output", "overwrite", "encoder")
        },
        "arguments": dict(given),
    }
    mark = folder / SETTINGS_FILE
    if folder.exists() and not folder.is_dir():
        raise OutputError(f"the output {folder} is a file.", hint="Choose another name.")
    if folder.is_dir() and any(folder.iterdir()):
        try:
            before = json.loads(mark.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            raise OutputError(
                f"the output folder {folder} is not empty, and no comparison's.", hint="Choose another one."
            ) from None
        changed = _differences(before, json.loads(json.dumps(about)))
        if changed and not recipe.overwrite:
            raise OutputError(
                f"{folder} holds a comparison with other settings ({', '.join(changed)}).",
                hint="Choose another folder, or pass --overwrite to measure again.",
            )
    make_folder(folder)
    write_json(mark, about)
    return folder


def _differences(before: Any, now: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Names whose values are not those of the comparison that lies there."""
    changed = []
    for part, values in now.items():
        old = before.get(part, {}) if isinstance(before, dict) else {}
        changed += [name for name in {**old, **values} if old.get(name) != values.get(name)]
    return changed


def _kept(job: Job) -> JobResult | None:
    """The result of an earlier run of the same job; one that failed is tried again."""
    try:
        found = JobResult.from_dict(json.loads(job.result_file.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        return None
    return found if found.key == job.key() and found.status in (OK, OUT_OF_MEMORY) else None


@dataclass
class _Ended:
    code: int
    said: str


def _carry_out(job: Job, tell: Callable[[dict[str, Any]], None]) -> JobResult:
    """Run a job in a process of its own."""
    job.result_file.unlink(missing_ok=True)
    ended = _run_process(job, tell)
    if ended.code == 0:
        return JobResult.from_dict(json.loads(job.result_file.read_text(encoding="utf-8")))
    lines = [line for line in ended.said.splitlines() if line.strip()]
    status, error = FAILED, lines[-1].strip() if lines else f"exit code {ended.code}"
    if ended.code == -signal.SIGKILL:
        status, error = OUT_OF_MEMORY, "the process was killed, most likely by the system because memory ran out"
    result = JobResult(method=job.method, seed=job.seed, status=status, key=job.key(), error=error[:300])
    make_folder(job.result_file.parent)
    write_json(job.result_file, result.to_dict())
    if len(lines) > 1:
        job.result_file.with_suffix(".log").write_text(ended.said, encoding="utf-8")
    return result


def _run_process(job: Job, tell: Callable[[dict[str, Any]], None]) -> _Ended:
    """Start the worker, hand it the job, and pass its progress on until it ends."""
    command = [sys.executable, "-m", "ptune.comparison.worker"]
    with tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace") as errors:
        process = subprocess.Popen(  # noqa: S603 (ptune's own module)
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors, text=True, encoding="utf-8"
        )
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            with process.stdin as pipe:
                pipe.write(job.to_json())
            for line in process.stdout:
                if line.startswith("{"):
                    tell(json.loads(line))
            process.wait()
        finally:
            _stop(process)
            process.stdout.close()
        errors.seek(0)
        return _Ended(process.returncode, errors.read())


def _stop(process: subprocess.Popen[str], patience: float = 5.0) -> None:
    """End a process that still runs: first with a word, then without."""
    if process.poll() is not None:
        return
    process.terminate()
    until = time.monotonic() + patience
    while process.poll() is None and time.monotonic() < until:
        time.sleep(0.05)
    if process.poll() is None:
        process.kill()
    process.wait()
