"""Does a run that is killed and resumed end as the run that was left alone?

    python benchmarks/resume.py [--times 3] [--only NAME]

Each run is `ptune train` in a process of its own, or, as `plain …`, a script with `transformers.Trainer` around a
`PTunedModel`. It is killed with SIGKILL, at a random moment or as soon as a checkpoint begins to be written, up to four
times, and resumed each time. Compared with the run that nobody disturbed, to the last bit: the encoder's tensors, the
baked vectors, and every logged loss, gradient norm, learning rate and held-out loss. After every kill each folder that
bears a checkpoint's name must be whole, and the newest one must be there.

The small model is a random Llama of two layers behind SmolLM2's tokenizer; `smollm2 …` are SmolLM2-135M itself.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from harness import heading, write
from ptune.errors import PTuneError
from ptune.training.checkpoints import check_whole, checkpoints, last_checkpoint

MODEL = "builtin:smollm2-135m"
DATA = Path(__file__).resolve().parents[1] / "src" / "ptune" / "demo" / "train.jsonl"
SAME = ("loss", "eval_loss", "grad_norm", "learning_rate", "train_loss", "best", "eval_loss_reloaded")
"""Of a log: what must be the same."""
TENSORS = ("encoder.safetensors", "adapter_model.safetensors")
MOST_KILLS = 4
PATIENCE_SECONDS = 900
WHAT = (
    "Runs killed with SIGKILL and resumed, against the same runs left alone: tensors and logs compared to the last bit."
)


@dataclass(frozen=True)
class Setup:
    """One way to train."""

    name: str
    flags: str
    plain: bool = False
    """A script with transformers.Trainer, in place of `ptune train`."""
    real: bool = False
    """SmolLM2, in place of the small model."""


_ROWS = "--limit 60 --max-length 96 --num-virtual-tokens 5 --max-steps 34"
_SMALL, _BUDGET = f"{_ROWS} --per-device-train-batch-size 4", f"{_ROWS} --tokens-per-batch 400"
_REAL = "--limit 24 --max-length 96 --per-device-train-batch-size 4 --max-steps 9 --logging-steps 2 --save-steps 2"
_LSTM = "--encoder lstm --encoder-dropout 0.3"
_TWICE, _THRICE = "--gradient-accumulation-steps 2", "--gradient-accumulation-steps 3"
_MEASURED, _ONE = "--eval-rows 8", "--save-total-limit 1"
_BEST = f"{_MEASURED} --eval-strategy steps --eval-steps 4 --load-best-model-at-end {_ONE}"
_EARLY = f"{_MEASURED} --eval-strategy steps --eval-steps 3 --early-stopping-patience 2 --learning-rate 0.05"
_EPOCHS = f"{_MEASURED} --save-strategy epoch --logging-strategy epoch"
SETUPS = (
    Setup("packed mlp", f"{_SMALL} --logging-steps 1 --save-steps 2"),
    Setup("packed lstm dropout, accumulation 2", f"{_SMALL} {_LSTM} {_TWICE} --logging-steps 3 --save-steps 2"),
    Setup("padded mlp, accumulation 3", f"{_SMALL} --no-packing {_THRICE} --logging-steps 4 --save-steps 3"),
    Setup("padded lstm dropout", f"{_SMALL} {_LSTM} --no-packing --logging-steps 1 --save-steps 1"),
    Setup("token budget, mlp dropout", f"{_BUDGET} --encoder-dropout 0.2 {_TWICE} --logging-steps 2 --save-steps 2"),
    Setup(
        "padded residual, measured each epoch",
        f"{_SMALL} --encoder residual --no-packing {_MEASURED} --logging-steps 5 --save-steps 2",
    ),
    Setup("packed mlp, measured, best kept", f"{_SMALL} {_BEST} --logging-steps 3"),
    Setup("packed lstm dropout, early stopping", f"{_SMALL} {_LSTM} {_EARLY} --logging-steps 1"),
    Setup("packed embedding, by epochs", f"{_SMALL} --encoder embedding {_EPOCHS}"),
    Setup(
        "padded mlp dropout, end within an epoch",
        f"{_SMALL} --encoder-dropout 0.2 --no-packing {_MEASURED} --logging-steps 4 --save-steps 5 {_ONE}",
    ),
    Setup("plain padded lstm dropout, accumulation 2", "--encoder LSTM --collator padded --accumulation 2", plain=True),
    Setup("plain packed mlp", "--encoder MLP --collator packed --accumulation 1", plain=True),
    Setup("smollm2 packed mlp", _REAL, real=True),
    Setup(
        "smollm2 padded lstm dropout, accumulation 2",
        f"{_REAL} {_LSTM} --encoder-hidden-size 64 --no-packing {_TWICE}",
        real=True,
    ),
    Setup("smollm2 packed lstm dropout", f"{_REAL} {_LSTM} --encoder-hidden-size 64", real=True),
)


# ---- what is run -----------------------------------------------------------------------------------------------------


def small_model(folder: Path) -> Path:
    """A random Llama with SmolLM2's tokenizer, in a folder."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    from ptune.loading.load import load_tokenizer

    tokenizer = load_tokenizer(MODEL)
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=256,
        initializer_range=0.1,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def command(setup: Setup, model: str, output: Path, *, resume: bool) -> list[str]:
    """The command line that begins a run, or goes on with it."""
    where = f"--output={output}"
    if setup.plain:
        return [sys.executable, str(Path(__file__)), "plain", f"--model={model}", where, *setup.flags.split()]
    if resume:
        return [sys.executable, "-m", "ptune", "train", "--resume", where]
    given = [f"--model={model}", f"--data={DATA}", "--report-to=none", "--use-cpu"]
    return [sys.executable, "-m", "ptune", "train", *given, where, *setup.flags.split()]


def plain(words: Sequence[str]) -> None:
    """The script of somebody who uses transformers.Trainer; run again, it goes on from the last whole checkpoint."""
    parser = argparse.ArgumentParser()
    for name in ("model", "output", "encoder", "collator", "accumulation"):
        parser.add_argument(f"--{name}")
    args = parser.parse_args(words)
    from transformers import Trainer, TrainingArguments, set_seed

    import ptune
    from ptune.data.template import get_template
    from ptune.data.tokenize import tokenize_examples
    from ptune.loading.load import load_model, load_tokenizer

    tokenizer, base = load_tokenizer(args.model), load_model(args.model, device="cpu")
    template, examples = get_template("tutorial", tokenizer), ptune.load_examples(str(DATA), limit=60)
    parts = tokenize_examples(examples, template, tokenizer, max_length=96).dataset.train_test_split(8, seed=1)
    set_seed(1)
    prompt = {"num_virtual_tokens": 5, "encoder_dropout": 0.3, "encoder_hidden_size": 32}
    model = ptune.get_peft_model(
        base, ptune.PromptEncoderConfig(encoder_reparameterization_type=args.encoder, **prompt)
    )
    padded = ptune.PaddingCollator(pad_token_id=tokenizer.pad_token_id)
    trainer = Trainer(
        model=model,
        args=TrainingArguments(
            args.output, per_device_train_batch_size=4, gradient_accumulation_steps=int(args.accumulation),
            max_steps=24, logging_steps=1, save_steps=2, eval_strategy="steps", eval_steps=2, save_total_limit=2,
            load_best_model_at_end=True, learning_rate=0.02, use_cpu=True, report_to="none", disable_tqdm=True, seed=1,
        ),
        train_dataset=parts["train"],
        eval_dataset=parts["test"],
        data_collator=ptune.PackingCollator() if args.collator == "packed" else padded,
    )  # fmt: skip
    trainer.train(resume_from_checkpoint=ptune.last_checkpoint(args.output))
    history = [entry for entry in trainer.state.log_history if "train_runtime" not in entry]
    last = {"step": 0, "best": trainer.state.best_metric, "eval_loss_reloaded": trainer.evaluate()["eval_loss"]}
    (Path(args.output) / "metrics.jsonl").write_text("".join(json.dumps(one) + "\n" for one in [*history, last]))
    model.save_pretrained(args.output)


def start(words: Sequence[str], log: Path) -> subprocess.Popen[bytes]:
    """Begin a process whose words go to a file."""
    settings = {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
    environment = {"OMP_NUM_THREADS": "1", **os.environ, **settings}
    with log.open("ab") as file:
        return subprocess.Popen(words, stdout=file, stderr=file, env=environment, start_new_session=True)


# ---- killing ---------------------------------------------------------------------------------------------------------


def step_of(checkpoint: Path) -> int:
    """The number in a checkpoint's name."""
    return int(checkpoint.name.rpartition("-")[2])


def steps_done(output: Path) -> int:
    """The last step that a checkpoint or a log speaks of."""
    found = [step_of(path) for path in checkpoints(output)]
    with suppress(OSError, ValueError, IndexError, KeyError):
        found.append(int(json.loads((output / "metrics.jsonl").read_text().splitlines()[-1])["step"]))
    return max(found, default=0)


def being_written(output: Path) -> bool:
    """Whether a checkpoint is being written or removed just now."""
    newest = next(iter(checkpoints(output)), None)  # a plain Trainer writes under the final name
    return any(output.glob(".checkpoint-*")) or (newest is not None and not (newest / "trainer_state.json").exists())


def kill_somewhere(process: subprocess.Popen[bytes], output: Path, source: random.Random) -> dict[str, Any] | None:
    """Kill a run at a moment drawn from `source`; None where it ended first."""
    until, saving = steps_done(output) + source.randint(1, 14), source.random() < 0.6
    pause, deadline = source.random() * (0.004 if saving else 0.05), time.monotonic() + PATIENCE_SECONDS
    while process.poll() is None and time.monotonic() < deadline:
        near = steps_done(output) >= until
        if near and (not saving or being_written(output)):
            break
        time.sleep(0.0002 if near else 0.002)
    time.sleep(pause)
    if process.poll() is not None:
        return None
    before = max(map(step_of, checkpoints(output)), default=0)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    return {"after_step": steps_done(output), "during_a_save": being_written(output), "checkpoint_before": before}


def after_a_kill(output: Path, killed: Mapping[str, Any], *, ours: bool) -> dict[str, Any]:
    """What the killed process left: damaged checkpoints (a plain Trainer leaves them), and whether the last is lost."""
    damaged, whole = 0, [0]
    for path in checkpoints(output):
        try:
            check_whole(path)
            whole.append(step_of(path))
        except PTuneError as error:
            damaged += 1
            if ours:
                print(f"DAMAGED: {error}")
    return {**killed, "damaged": damaged, "lost": ours and max(whole) < killed["checkpoint_before"]}


def disturbed(setup: Setup, model: str, output: Path, source: random.Random) -> dict[str, Any]:
    """A run that is killed and resumed until it is through."""
    kills: list[dict[str, Any]] = []
    resume, log = False, output.with_suffix(".log")
    while True:
        process = start(command(setup, model, output, resume=resume), log)
        killed = kill_somewhere(process, output, source) if len(kills) < MOST_KILLS else None
        if killed is None:
            finish(process, setup, log)
            return {"kills": kills, **outcome(output)}
        kills.append(after_a_kill(output, killed, ours=not setup.plain))
        resume = last_checkpoint(output) is not None
        if not resume:
            shutil.rmtree(output, ignore_errors=True)  # nothing had been saved yet: the run is begun anew


def finish(process: subprocess.Popen[bytes], setup: Setup, log: Path) -> None:
    """Wait for a run; one that fails ends everything."""
    if process.wait():
        raise SystemExit(f"{setup.name}: exit code {process.returncode}\n{log.read_text()[-3000:]}")


def outcome(output: Path) -> dict[str, Any]:
    """What a finished run gave."""
    lines = [json.loads(line) for line in (output / "metrics.jsonl").read_text().splitlines()]
    logged = [{"step": line["step"], **{name: line[name] for name in SAME if name in line}} for line in lines]
    return {**{name: (output / name).read_bytes() for name in TENSORS}, "logged": logged}


def runs(setups: Sequence[Setup], options: argparse.Namespace, work: Path) -> Iterator[dict[str, Any]]:
    """Every disturbed run beside its undisturbed one."""
    small = str(small_model(work / "model"))
    for setup in setups:
        number = SETUPS.index(setup)
        model, folder = MODEL if setup.real else small, work / str(number)
        folder.mkdir()
        finish(start(command(setup, model, folder / "whole", resume=False), folder / "log"), setup, folder / "log")
        wanted = outcome(folder / "whole")
        for attempt in range(1 if setup.real else options.times):
            seed = 1000 * number + attempt + options.seed
            found = disturbed(setup, model, folder / f"cut-{attempt}", random.Random(seed))
            reloaded = wanted["logged"][-1] if setup.plain else {}
            yield {
                "setup": setup.name,
                "seed": seed,
                "kills": found["kills"],
                "same_encoder": found[TENSORS[0]] == wanted[TENSORS[0]],
                "same_vectors": found[TENSORS[1]] == wanted[TENSORS[1]],
                "same_log": found["logged"] == wanted["logged"],
                "logs": len(wanted["logged"]),
                **{name: reloaded[name] for name in ("best", "eval_loss_reloaded") if name in reloaded},
            }


# ---- results ---------------------------------------------------------------------------------------------------------


def same_throughout(one: Mapping[str, Any]) -> bool:
    """Whether a disturbed run ended as the other one."""
    return bool(one["same_encoder"] and one["same_vectors"] and one["same_log"])


def summed_up(results: Sequence[Mapping[str, Any]]) -> dict[str, int]:
    """All runs in a few numbers."""
    ours = [kill for one in results if not one["setup"].startswith("plain") for kill in one["kills"]]
    kills = [kill for one in results for kill in one["kills"]]
    real, trainer = (sum(one["setup"].startswith(word) for one in results) for word in ("smollm2", "plain"))
    damaged = sum(kill["damaged"] for kill in ours)
    return {
        "runs": len(results),
        "of_the_small_model": len(results) - real - trainer,
        "of_smollm2": real,
        "of_plain_trainer": trainer,
        "same_to_the_last_bit": sum(map(same_throughout, results)),
        "kills": len(kills),
        "kills_during_a_save": sum(kill["during_a_save"] for kill in kills),
        "damaged_checkpoints": damaged,
        "lost_checkpoints": sum(kill["lost"] for kill in ours),
        "half_written_by_plain_trainer_and_passed_over": sum(kill["damaged"] for kill in kills) - damaged,
    }


def run(argv: Sequence[str] | None = None) -> None:
    """The command line."""
    words = list(sys.argv[1:] if argv is None else argv)
    if words[:1] == ["plain"]:
        plain(words[1:])
        return
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--times", type=int, default=3, help="disturbed runs of each setup of the small model")
    parser.add_argument("--only", default="", help="setups whose name holds this")
    parser.add_argument("--seed", type=int, default=0, help="draws the moments")
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "results" / "resume.json")
    options = parser.parse_args(words)
    results = []
    with tempfile.TemporaryDirectory() as work:
        for one in runs([setup for setup in SETUPS if options.only in setup.name], options, Path(work)):
            results.append(one)
            saves = sum(kill["during_a_save"] for kill in one["kills"])
            verdict = "same to the last bit" if same_throughout(one) else "DIFFERENT"
            print(f"{verdict}: {one['setup']}, {len(one['kills'])} kills, {saves} of them during a save", flush=True)
    summary = summed_up(results)
    print(json.dumps(summary))
    result = {
        "name": "resume",
        **heading(WHAT, " ".join(["python benchmarks/resume.py", *words])),
        "summary": summary,
        "runs": results,
    }
    write(result, options.output)


if __name__ == "__main__":
    run()
