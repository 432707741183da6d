"""The contenders of the training benchmarks: PEFT as its users write it; ptune with padded batches and packed ones.

All four train the same rows for one epoch from the same start of the prompt encoder, with the same optimizer, through
`transformers.Trainer`. `peft` and `ptune-packed` take the rows in the same random order, so that their losses agree;
`peft-grouped` and `ptune-padded` pad, and put rows of similar length together as `Trainer` offers it.
"""

from __future__ import annotations

import gc
import tempfile
import warnings
from typing import Any

import torch
import transformers
from datasets import Dataset
from torch import nn
from transformers import DataCollatorForSeq2Seq, Trainer, TrainingArguments

import ptune
from harness import Answer, Measured, Settings, held_gib, measuring
from ptune import PackingCollator, PaddingCollator, PTunedModel, PTuneTrainer
from ptune.encoders import DEEP_ENCODERS, build_deep_encoder, build_encoder
from ptune.prefix.deep_prompts import key_value_shape
from workload import Workload, load

CONTENDERS = ("peft", "peft-grouped", "ptune-padded", "ptune-packed")
GROUPED = ("peft-grouped", "ptune-padded")


def train(contender: str, settings: Settings) -> Answer:
    """Load, warm up, and measure one epoch."""
    transformers.logging.set_verbosity_error()
    warnings.simplefilter("ignore")
    workload = load(settings)
    model, encoder = prompted(contender, workload, settings)
    loaded_gib = held_gib(settings["device"])
    with tempfile.TemporaryDirectory() as folder:
        shared: dict[str, Any] = {"workload": workload, "settings": settings, "folder": folder}
        if len(workload.warm_up):
            build_trainer(contender, model, workload.warm_up, **shared).train()
            start_equal(encoder, workload, settings)
        trainer = build_trainer(contender, model, workload.rows, **shared)
        gc.collect()
        transformers.set_seed(settings["seed"])
        with measuring(settings["device"], loaded_gib=loaded_gib) as measured:
            outcome = trainer.train()
    return answer(measured, workload, settings, steps=outcome.global_step, train_loss=outcome.training_loss)


def answer(measured: Measured, workload: Workload, settings: Settings, **more: Any) -> Answer:
    """The measured values with what was worked on."""
    return {
        **measured,
        **more,
        "rows": len(workload.rows),
        "tokens": sum(map(len, workload.rows["input_ids"])),
        "gpu": torch.cuda.get_device_name() if settings["device"] == "cuda" else None,
    }


def prompted(contender: str, workload: Workload, settings: Settings) -> tuple[nn.Module, nn.Module]:
    """The model with its prompt, as either library makes it, and its prompt encoder."""
    kind = settings["encoder"]
    given: dict[str, Any] = {"task_type": "CAUSAL_LM", "num_virtual_tokens": settings["n"]}
    name = "PrefixTuningConfig" if kind in DEEP_ENCODERS else "PromptEncoderConfig"
    if kind in DEEP_ENCODERS:
        given |= {"prefix_projection": kind == "prefix-mlp"}
    else:
        given |= {"encoder_reparameterization_type": kind.upper()}
    if contender.startswith("peft"):
        import peft

        model: Any = peft.get_peft_model(workload.base, getattr(peft, name)(**given))
        encoder = model.prompt_encoder["default"]
    else:
        model = PTunedModel(workload.base, getattr(ptune, name)(**given))
        model.pack_batches = contender == "ptune-packed"
        encoder = model.prompts["default"]
    start_equal(encoder, workload, settings)
    return model, encoder


def start_equal(encoder: nn.Module, workload: Workload, settings: Settings) -> None:
    """Give a prompt encoder the values that the seed makes: the libraries' encoders have the same parameters."""
    torch.manual_seed(settings["seed"])
    kind, count = settings["encoder"], settings["n"]
    if kind in DEEP_ENCODERS:
        shape = key_value_shape(workload.base)
        sizes = {"token_dim": shape.token_dim, "layers": shape.layers, "heads": shape.heads}
        start: nn.Module = build_deep_encoder(kind, num_virtual_tokens=count, **sizes)
    else:
        width = workload.base.get_input_embeddings().weight.shape[1]
        start = build_encoder(kind, num_virtual_tokens=count, token_dim=width)
    encoder.load_state_dict(start.state_dict())


def build_trainer(
    contender: str, model: nn.Module, rows: Dataset, *, workload: Workload, settings: Settings, folder: str
) -> Trainer:
    """A trainer of one epoch over `rows`, built as the contender's users build it."""
    args = TrainingArguments(
        output_dir=folder,
        num_train_epochs=1,
        per_device_train_batch_size=settings["batch"] or len(rows),
        gradient_accumulation_steps=settings["accumulation"],
        train_sampling_strategy="group_by_length" if contender in GROUPED else "random",
        learning_rate=1e-3,
        logging_steps=10,
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        dataloader_pin_memory=False,
        use_cpu=settings["device"] == "cpu",
        seed=settings["seed"],
    )
    given: dict[str, Any] = {"model": model, "args": args, "train_dataset": rows}
    if contender.startswith("peft"):
        return Trainer(**given, data_collator=DataCollatorForSeq2Seq(tokenizer=workload.tokenizer, padding=True))
    packed = contender == "ptune-packed"
    return PTuneTrainer(
        **given,
        data_collator=PackingCollator() if packed else PaddingCollator(pad_token_id=workload.tokenizer.pad_token_id),
    )
