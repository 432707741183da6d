"""One job, measured: load, adapt, train, and look at the held-out rows.

ptune's prompts train as `ptune train` trains them (packed rows, the head on answer tokens); the others through
`transformers.Trainer` with padded batches, as their users write it. Rows and their order are the same for all: every
job draws them from the same seed, right before it trains, and a digest of what came is kept.
"""

from __future__ import annotations

import gc
import hashlib
import statistics
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import psutil
import torch
from datasets import Dataset
from torch import nn
from transformers import (
    PreTrainedModel,
    PreTrainedTokenizerBase,
    PrinterCallback,
    Trainer,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
    set_seed,
)
from typing_extensions import override

from ptune.choices import ADAM_BETAS, LM
from ptune.comparison.job import BASE, OK, Job, JobResult
from ptune.comparison.job_batches import job_collator
from ptune.data.blocks import listed_blocks
from ptune.data.collate import PackingCollator, PaddingCollator
from ptune.data.labels import IGNORE_INDEX, supervised
from ptune.data.tasks import task_template
from ptune.data.template import get_template, template_text
from ptune.errors import ConfigError
from ptune.evaluation.held_out_loss import HeldOutLoss, LossSum, held_out_loss
from ptune.frozen.parameters import count_parameters
from ptune.loading.load import load_tokenizer
from ptune.loading.place import chosen_dtype
from ptune.memory.measure import GIB, PeakMemory
from ptune.methods.apply import MethodSettings, apply_method
from ptune.methods.names import METHODS
from ptune.model.prompted import PromptedModel
from ptune.prompt.default_rate import default_learning_rate
from ptune.recipe import TrainRecipe
from ptune.saved.format import ENCODER_WEIGHTS
from ptune.saved.peft import ADAPTER_WEIGHTS
from ptune.training.batches import Collator
from ptune.training.head_steps import HeadSteps
from ptune.training.result import prompt_details
from ptune.training.rows import Rows, check_context
from ptune.training.run_model import TASK_TYPES, loaded, wrapped
from ptune.training.start import add_new_prompt
from ptune.training.train import prepare_rows
from ptune.training.trainer import PTuneTrainer

Tell = Callable[[dict[str, Any]], None]
"""Takes progress: `{"phase": …}` or `{"step": …, "steps": …, "loss": …}`."""


def run_job(job: Job, tell: Tell) -> JobResult:
    """Carry a job out.

    Raises:
        PTuneError: Anything the user can fix.
    """
    recipe = job.train_recipe()
    args = training_arguments(job, recipe)
    tell({"phase": "reading"})
    tokenizer = load_tokenizer(recipe.model, trust_remote_code=recipe.trust_remote_code, revision=recipe.revision)
    _check_template(recipe, tokenizer)
    recipe, rows = prepare_rows(recipe, tokenizer, args, progress=False)
    start_gib = _held_gib(args.device)
    tell({"phase": "loading"})
    model = _load(job, recipe, args, tokenizer, rows)
    trainable, total = count_parameters(model)
    loaded_gib = _held_gib(args.device) - start_gib
    answer: dict[str, Any] = {"method": job.method, "seed": job.seed, "status": OK, "key": job.key()}
    answer |= {"trainable_parameters": trainable, "all_parameters": total, "loaded_gib": loaded_gib}
    if job.method != BASE:
        answer |= _train(job, model, rows, args, tokenizer, tell=tell, start_gib=start_gib)
        if isinstance(model, PromptedModel):
            model.save_pretrained(job.folder, **prompt_details(recipe, args, tokenizer, rows))
        answer |= _sizes(job, model)
    found = _measure(job, model, rows, args, tokenizer=tokenizer, tell=tell)
    if found is not None:
        answer |= {"held_out_loss": found.loss, "held_out_tokens": found.tokens}
    return JobResult(**answer)


def _check_template(recipe: TrainRecipe, tokenizer: PreTrainedTokenizerBase) -> None:
    """Raise `ConfigError` for a template with virtual tokens."""
    text = template_text(recipe.template)
    if recipe.task == LM:
        blocks = get_template(text, tokenizer, virtual_tokens=recipe.virtual_tokens).blocks
    else:
        blocks = task_template(text, recipe.task, recipe.virtual_tokens).blocks if "{" in text else ()
    if blocks:
        raise ConfigError(
            f"the template has {listed_blocks(blocks)}; not every method of a comparison has virtual tokens.",
            hint="Leave them out: num_virtual_tokens says how many stand before the text.",
        )


def training_arguments(job: Job, recipe: TrainRecipe) -> TrainingArguments:
    """Trainer's arguments: ptune's defaults, the user's, and what a measurement needs."""
    defaults = recipe.trainer_defaults()
    if job.method == BASE or METHODS[job.method].encoder is None:
        # Chosen for soft prompts; the weights of a model or of an adapter train with Adam's usual ones.
        defaults = {name: value for name, value in defaults.items() if name not in ADAM_BETAS}
    given = {**defaults, **job.arguments}
    if job.method == "full" and recipe.dtype in ("bfloat16", "auto"):
        # Its weights train in float32; the products run in the dtype that the other methods' frozen model has.
        on_gpu = torch.cuda.is_available() and not given.get("use_cpu")
        given["bf16"] = chosen_dtype(recipe.dtype, torch.device("cuda" if on_gpu else "cpu")) is torch.bfloat16
        # Trainer takes bfloat16 without a GPU only from somebody who says that there is to be none.
        given["use_cpu"] = given.get("use_cpu") or (given["bf16"] and not on_gpu)
    return TrainingArguments(
        **{
            **given,
            "output_dir": job.folder,
            "seed": job.seed,
            "logging_steps": 1,
            "logging_nan_inf_filter": False,
            "train_sampling_strategy": job.arguments.get("train_sampling_strategy", "random"),
            "save_strategy": "no",
            "eval_strategy": "no",
            "report_to": "none",
            "disable_tqdm": True,
            "dataloader_num_workers": 0,
        }
    )


def _load(
    job: Job, recipe: TrainRecipe, args: TrainingArguments, tokenizer: PreTrainedTokenizerBase, rows: Rows
) -> nn.Module:
    """The model as the method makes it, every weight in memory."""
    base = loaded(recipe, args, tokenizer, rows.labels)
    args.learning_rate = job.learning_rate or _own_rate(job.method, base)
    model: nn.Module = base
    if job.method != BASE and METHODS[job.method].is_ptune:
        model = wrapped(base, recipe).train()
        add_new_prompt(model, recipe, args, tokenizer, rows)
    elif job.method != BASE:
        set_seed(job.seed)
        sizes = MethodSettings(
            num_virtual_tokens=recipe.virtual_tokens,
            encoder_hidden_size=recipe.encoder_hidden_size,
            encoder_num_layers=recipe.encoder_num_layers,
            encoder_dropout=recipe.encoder_dropout,
            lora_r=job.lora_r,
            lora_alpha=job.lora_alpha,
        )
        model = apply_method(job.method, base, sizes, task=TASK_TYPES[recipe.task])
    if job.method != BASE:
        model.to(args.device)
    with torch.no_grad():
        for weight in model.parameters():
            weight.sum()  # a weight that is mapped from its file counts as memory only once it was read
    return model


class _Recorded:
    """A collator that remembers the rows it was given."""

    def __init__(self, collate: Collator) -> None:
        self.collate = collate
        self.rows: list[tuple[int, bytes]] = []
        """Of each batch: its text tokens, and a digest of its rows."""

    def __call__(self, rows: list[dict[str, Any]]) -> dict[str, Any]:
        digest = hashlib.sha256()
        for row in rows:
            digest.update(repr(list(row["input_ids"])).encode())
        self.rows.append((sum(len(row["input_ids"]) for row in rows), digest.digest()))
        return dict(self.collate(rows))


class _Clock(TrainerCallback):
    """Notes time and loss of every optimizer step."""

    def __init__(self, tell: Tell) -> None:
        self.tell = tell
        self.marks: list[tuple[float, float]] = []
        self.losses: list[tuple[int, float]] = []

    def _mark(self) -> None:
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        self.marks.append((time.perf_counter(), time.process_time()))

    @override
    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self._mark()

    @override
    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        self._mark()

    @override
    def on_log(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, logs: Any = None, **kwargs: Any
    ) -> None:
        if logs and "loss" in logs:
            self.losses.append((state.global_step, float(logs["loss"])))
            self.tell({"step": state.global_step, "steps": state.max_steps, "loss": float(logs["loss"])})

    def step_times(self) -> list[tuple[float, float]]:
        """(seconds, processor seconds) of every step."""
        pairs = zip(self.marks, self.marks[1:], strict=False)
        return [(after[0] - before[0], after[1] - before[1]) for before, after in pairs]


def _train(
    job: Job,
    model: nn.Module,
    rows: Rows,
    args: TrainingArguments,
    tokenizer: PreTrainedTokenizerBase,
    *,
    tell: Tell,
    start_gib: float,
) -> dict[str, Any]:
    """Train, and what it took."""
    recipe = job.train_recipe()
    virtual = recipe.virtual_tokens if METHODS[job.method].encoder else 0
    base: Any = model.base if isinstance(model, PromptedModel) else model
    context = model.context_length if isinstance(model, PromptedModel) else _context(base)
    check_context(rows, virtual, context, recipe.max_length)
    plain = job_collator(job, model, tokenizer)
    packed = recipe.packing and (isinstance(plain, PackingCollator) or getattr(model, "packs_rows", False))
    collate = _Recorded(plain)
    clock = _Clock(tell)
    given: dict[str, Any] = {"train_dataset": rows.tokens.dataset, "data_collator": collate, "callbacks": [clock]}
    if isinstance(model, PromptedModel):
        steps = HeadSteps.measured(model, rows.tokens.dataset, plain, rate=recipe.head_learning_rate)
        trainer: Trainer = PTuneTrainer(model=model, args=args, head_steps=steps, **given)
    else:
        trainer = Trainer(model=model, args=args, **given)
    trainer.remove_callback(PrinterCallback)
    gc.collect()
    set_seed(job.seed)  # the order of the rows must not depend on what was drawn while the method was set up
    with PeakMemory() as peak:
        outcome = trainer.train()
    model.zero_grad()
    used = collate.rows[: outcome.global_step * args.gradient_accumulation_steps]
    times = clock.step_times()
    steady = times[1:] or times
    tokens = [count for count, _ in used]
    after_first = sum(tokens[args.gradient_accumulation_steps :]) if len(times) > 1 else sum(tokens)
    report = peak.report
    on_cuda = args.device.type == "cuda"
    return {
        "peak_gib": report.cuda_allocated_gib if on_cuda else report.resident_peak_gib - start_gib,
        "reserved_gib": report.cuda_reserved_gib if on_cuda else None,
        "device_gib": report.cuda_device_used_gib if on_cuda else None,
        "steps": int(outcome.global_step),
        "step_seconds": statistics.median(seconds for seconds, _ in steady),
        "step_cpu_seconds": statistics.median(seconds for _, seconds in steady),
        "tokens": sum(tokens),
        "tokens_per_second": after_first / max(sum(seconds for seconds, _ in steady), 1e-9),
        "losses": tuple(clock.losses),
        "rows_digest": hashlib.sha256(b"".join(digest for _, digest in used)).hexdigest()[:16],
        "packed": packed,
        "learning_rate": args.learning_rate,
    }


def _own_rate(method: str, base: PreTrainedModel) -> float:
    """The method's default learning rate; the model alone has none."""
    if method == BASE:
        return 0.0
    chosen = METHODS[method]
    return default_learning_rate(base, chosen.encoder) if chosen.encoder else chosen.learning_rate or 0.0


def _context(model: Any) -> int | None:
    from ptune.frozen.capability import context_length

    return context_length(model)


def _measure(
    job: Job, model: nn.Module, rows: Rows, args: TrainingArguments, *, tokenizer: PreTrainedTokenizerBase, tell: Tell
) -> HeldOutLoss | None:
    """The held-out loss, every label weighing the same; None without held-out rows."""
    if rows.held_out_tokens is None:
        return None
    tell({"phase": "measuring"})
    dataset, size = rows.held_out_tokens.dataset, args.per_device_eval_batch_size
    collate = job_collator(job, model, tokenizer, measuring=True)
    if isinstance(model, PromptedModel):
        return held_out_loss(model, dataset, collate, batch_size=size)
    return plain_held_out_loss(model, dataset, collate, batch_size=size, device=args.device, bf16=args.bf16)


@torch.no_grad()
def plain_held_out_loss(
    model: nn.Module,
    dataset: Dataset,
    collate: Callable[[list[dict[str, Any]]], Mapping[str, Any]],
    *,
    batch_size: int,
    device: torch.device | str = "cpu",
    bf16: bool = False,
) -> HeldOutLoss:
    """The held-out loss of a model that is not ptune's, from the mean loss it gives for each batch.

    The first token of a causal model's row is left out: without a prompt nothing predicts it.
    """
    model.eval()
    summed = LossSum(of_means=True)
    lengths = [len(ids) for ids in dataset["input_ids"]]
    order = sorted(range(len(lengths)), key=lengths.__getitem__)
    for start in range(0, len(order), batch_size):
        batch = collate([dataset[row] for row in order[start:][:batch_size]])
        if isinstance(collate, PaddingCollator):
            batch["labels"][:, 0] = IGNORE_INDEX
        with torch.autocast(torch.device(device).type, dtype=torch.bfloat16, enabled=bf16):
            loss = model(**{name: value.to(device) for name, value in batch.items()}).loss
        summed.add(loss, supervised(batch))
    return summed.mean(device=device)


def _sizes(job: Job, model: Any) -> dict[str, Any]:
    """Bytes on disk. A prompt or an adapter stays there; a whole model is written, measured and removed."""
    import shutil

    folder = Path(job.folder)
    if not isinstance(model, PromptedModel):
        model.save_pretrained(folder)
    sizes = {path.name: path.stat().st_size for path in folder.rglob("*.safetensors")}
    if job.method == "full":
        shutil.rmtree(folder)
    encoder = sizes.get(ENCODER_WEIGHTS, 0) if isinstance(model, PromptedModel) else 0
    kept = sizes[ADAPTER_WEIGHTS] if isinstance(model, PromptedModel) else sum(sizes.values())
    return {"bytes_on_disk": kept, "bytes_to_train_on": encoder}


def _held_gib(device: torch.device) -> float:
    """What tensors hold on CUDA, or the process's resident memory."""
    if device.type == "cuda":
        return torch.cuda.memory_allocated(device) / GIB
    return float(psutil.Process().memory_info().rss) / GIB
