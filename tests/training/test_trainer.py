"""`PTuneTrainer`, and transformers' own `Trainer`, around a `PTunedModel`."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate.data_loader import BatchSamplerShard, SkipBatchSampler
from datasets import Dataset
from safetensors.torch import load_file
from torch.nn import functional as F
from transformers import Trainer, TrainingArguments

from architectures import PAD, build
from ptune import PromptEncoderConfig, PTunedModel, PTuneTrainer
from ptune.choices import CHECKPOINTING
from ptune.data.collate import PackingCollator, PaddingCollator
from ptune.errors import ConfigError
from ptune.evaluation.held_out_loss import held_out_loss

COLLATE = PaddingCollator(pad_token_id=PAD)
PACK = PackingCollator()
Collator = PaddingCollator | PackingCollator
both_collators = pytest.mark.parametrize("collate", [COLLATE, PACK], ids=["padded", "packed"])


def token_rows(count: int, seed: int = 0) -> Dataset:
    """Rows of 4 to 20 tokens, the last 1 to 8 of them supervised."""
    source = random.Random(seed)
    made = []
    for _ in range(count):
        length = source.randint(4, 20)
        ids = [source.randint(3, 120) for _ in range(length)]
        answer = source.randint(1, min(8, length - 1))
        made.append(
            {"input_ids": ids, "attention_mask": [1] * length, "labels": [-100] * (length - answer) + ids[-answer:]}
        )
    return Dataset.from_list(made)


def prompted(encoder: str = "MLP", architecture: str = "llama") -> PTunedModel:
    torch.manual_seed(0)
    config = PromptEncoderConfig(num_virtual_tokens=4, encoder_reparameterization_type=encoder, encoder_hidden_size=16)
    return PTunedModel(build(architecture), config)


def arguments(folder: Path, **values: Any) -> TrainingArguments:
    settings = {
        "output_dir": str(folder),
        "max_steps": 3,
        "learning_rate": 1e-2,
        "logging_steps": 1,
        "report_to": "none",
        "use_cpu": True,
        "disable_tqdm": True,
        "save_strategy": "no",
        "train_sampling_strategy": "sequential",
        "lr_scheduler_type": "constant",
        "prediction_loss_only": True,
        **values,
    }
    return TrainingArguments(**settings)


def trained(
    folder: Path,
    kind: type[Trainer] = PTuneTrainer,
    model: PTunedModel | None = None,
    *,
    collate: Collator = COLLATE,
    options: dict[str, Any] | None = None,
    **values: Any,
) -> tuple[list[float], dict[str, torch.Tensor]]:
    """The logged losses and the prompt encoder after a short run."""
    model = prompted() if model is None else model
    args = arguments(folder, **values)
    trainer = kind(model=model, args=args, train_dataset=token_rows(24), data_collator=collate, **(options or {}))
    trainer.train()
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    return losses, {key: value.detach().clone() for key, value in model.state_dict().items()}


def assert_same(ours: dict[str, torch.Tensor], theirs: dict[str, torch.Tensor], atol: float) -> None:
    assert ours.keys() == theirs.keys()
    for key, value in ours.items():
        torch.testing.assert_close(value, theirs[key], atol=atol, rtol=0)


@both_collators
def test_batch_of_eight_is_eight_batches_of_one(tmp_path: Path, collate: Collator):
    whole, weights = trained(tmp_path / "a", per_device_train_batch_size=8, optim="sgd")
    parts, part_weights = trained(
        tmp_path / "b", collate=collate, per_device_train_batch_size=1, gradient_accumulation_steps=8, optim="sgd"
    )
    assert len(whole) == 3
    assert whole == pytest.approx(parts, abs=1e-5)
    assert_same(weights, part_weights, atol=1e-5)
    assert any((weights[key] - value).abs().max() > 1e-3 for key, value in prompted().state_dict().items())


@pytest.mark.parametrize("encoder", ["MLP", "LSTM", "RESIDUAL", "EMBEDDING"])
def test_packed_is_padded(tmp_path: Path, encoder: str):
    # Plain gradient descent: Adam would blow rounding errors up where a gradient is next to nothing.
    settings: dict[str, Any] = {"per_device_train_batch_size": 4, "gradient_accumulation_steps": 2, "optim": "sgd"}
    settings["learning_rate"] = 0.3
    padded, weights = trained(tmp_path / "a", model=prompted(encoder), kind=Trainer, **settings)
    packed, packed_weights = trained(tmp_path / "b", model=prompted(encoder), collate=PACK, **settings)
    assert packed == pytest.approx(padded, abs=1e-5)
    assert_same(packed_weights, weights, atol=1e-5)


def test_batches_of_a_budget_are_one_big_batch(tmp_path: Path):
    """One optimizer step over all 24 rows, in batches of very different numbers of answer tokens."""
    settings: dict[str, Any] = {"optim": "sgd", "learning_rate": 1.0, "max_grad_norm": 0, "max_steps": 1}
    whole, weights = trained(tmp_path / "a", per_device_train_batch_size=24, **settings)
    parts, part_weights = trained(
        tmp_path / "b",
        collate=PACK,
        options={"tokens_per_batch": 25},
        gradient_accumulation_steps=99,
        train_sampling_strategy="random",
        **settings,
    )
    assert parts == pytest.approx(whole, abs=1e-5)
    assert_same(part_weights, weights, atol=2e-5)


def test_every_row_of_every_epoch_in_batches_of_a_budget(tmp_path: Path):
    seen: list[int] = []

    class Counting(PTuneTrainer):
        def training_step(self, model: Any, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> torch.Tensor:
            seen.append(sum(inputs["row_lengths"]))
            return super().training_step(model, inputs, *args, **kwargs)

    rows = token_rows(24)
    args = arguments(
        tmp_path, max_steps=-1, num_train_epochs=3, train_sampling_strategy="random", per_device_train_batch_size=1
    )
    trainer = Counting(
        model=prompted(), args=args, train_dataset=rows.to_list(), data_collator=PACK, tokens_per_batch=64
    )
    done = trainer.train()
    tokens = sum(len(row["input_ids"]) for row in rows)
    assert trainer.budget_sampler is not None
    assert len(seen) == done.global_step == 3 * len(trainer.budget_sampler)
    assert max(seen) <= 64
    assert trainer.total_tokens() == sum(seen) == 3 * tokens
    assert trainer.get_total_train_batch_size(args) == round(24 / len(trainer.budget_sampler)) > 1


def test_sampler_is_told_the_epoch_whatever_wraps_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """In several processes a resumed run's loader hides the sampler behind two others, and Trainer reaches one."""
    trainer = PTuneTrainer(
        model=prompted(),
        args=arguments(tmp_path, train_sampling_strategy="random"),
        train_dataset=token_rows(24),
        data_collator=PACK,
        tokens_per_batch=64,
    )
    assert trainer.budget_sampler is not None
    shard = BatchSamplerShard(trainer.budget_sampler, num_processes=2, process_index=1)
    hidden = SkipBatchSampler(shard, skip_batches=1)
    seen: list[list[list[int]]] = []
    monkeypatch.setattr(Trainer, "_run_epoch", lambda *_, **kwargs: seen.append(list(kwargs["train_dataloader"])))
    for epoch in (0, 1):
        trainer._run_epoch(model=trainer.model, epoch=epoch, train_dataloader=hidden)
    trainer.budget_sampler.set_epoch(1)
    assert seen[1] == list(shard)[1:] != seen[0]


def test_encoder_runs_once_an_optimizer_step(tmp_path: Path):
    for steps, collate in ((1, PACK), (4, PACK), (4, COLLATE)):
        model, runs = prompted(), []
        model.prompts["default"].register_forward_hook(lambda *_, runs=runs: runs.append(1))
        trained(
            tmp_path,
            model=model,
            collate=collate,
            per_device_train_batch_size=2,
            gradient_accumulation_steps=steps,
            max_steps=3,
        )
        assert len(runs) == 3


@pytest.mark.parametrize(
    ("options", "values", "fragments"),
    [
        ({"tokens_per_batch": 10}, {}, ["tokens_per_batch=10", "at least 20"]),
        ({"tokens_per_batch": 64}, {"train_sampling_strategy": "group_by_length"}, ["group_by_length", "Use random"]),
        ({}, {"include_for_metrics": ["inputs"]}, ["include_for_metrics=inputs", "Use PaddingCollator"]),
    ],
)
def test_what_does_not_go_together(
    tmp_path: Path, options: dict[str, Any], values: dict[str, Any], fragments: list[str]
):
    with pytest.raises(ConfigError) as caught:
        trained(tmp_path, collate=PACK, options=options, **values)
    for fragment in fragments:
        assert fragment in str(caught.value)


def test_budget_needs_a_number_of_rows(tmp_path: Path):
    rows = token_rows(4).to_iterable_dataset()
    with pytest.raises(ConfigError, match="known length, not IterableDataset"):
        PTuneTrainer(
            model=prompted(), args=arguments(tmp_path), train_dataset=rows, data_collator=PACK, tokens_per_batch=64
        )


@pytest.mark.parametrize("architecture", ["llama", "gpt2", "mamba"])
def test_activation_checkpointing_changes_nothing(tmp_path: Path, architecture: str):
    # Plain gradient descent: the weights after a step are the gradient, up to a factor.
    settings = {
        "per_device_train_batch_size": 4,
        "optim": "sgd",
        "learning_rate": 1.0,
        "max_grad_norm": 0,
        "max_steps": 1,
    }
    plain = trained(tmp_path / "a", model=prompted(architecture=architecture), **settings)
    settings |= {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 2, CHECKPOINTING: True}
    less = trained(tmp_path / "b", model=prompted(architecture=architecture), **settings)
    assert plain[0] == pytest.approx(less[0], abs=1e-5)
    assert_same(plain[1], less[1], atol=2e-5)


def test_plain_trainer_gives_the_same(tmp_path: Path):
    ours = trained(tmp_path / "a", per_device_train_batch_size=4, gradient_accumulation_steps=2)
    plain = trained(tmp_path / "b", kind=Trainer, per_device_train_batch_size=4, gradient_accumulation_steps=2)
    assert ours[0] == pytest.approx(plain[0], abs=1e-5)
    assert_same(ours[1], plain[1], atol=1e-5)


@pytest.mark.parametrize("kind", [Trainer, PTuneTrainer])
def test_checkpoint_holds_the_prompt_encoder_alone(tmp_path: Path, kind: type[Trainer]):
    _, weights = trained(tmp_path, kind=kind, save_strategy="steps", save_steps=3)
    ours = kind is PTuneTrainer
    folder, prefix = tmp_path / "checkpoint-3", "prompts.default."
    saved = load_file(folder / "encoder.safetensors")
    assert_same({f"{prefix}{key}": value for key, value in saved.items()}, weights, atol=0)
    # A plain Trainer resumes from this one.
    assert (folder / "model.safetensors").is_file() != ours
    pickles = [path.name for path in folder.iterdir() if path.suffix in (".pt", ".pth", ".bin")]
    assert bool(pickles) != ours
    assert (folder / "ptune.json").is_file()


@both_collators
def test_evaluation_weighs_every_answer_token_the_same(tmp_path: Path, collate: Collator):
    model, rows = prompted(), token_rows(7, seed=5)
    for size in (1, 3, 8):
        args = arguments(tmp_path, per_device_eval_batch_size=size)
        measured = PTuneTrainer(model=model, args=args, eval_dataset=rows, data_collator=collate).evaluate()
        assert measured["eval_loss"] == pytest.approx(loss_by_hand(model, rows), abs=1e-5)
        assert held_out_loss(model, rows, collate, batch_size=size).loss == pytest.approx(
            measured["eval_loss"], abs=1e-5
        )
    # The mean of the batches' means, which Trainer gives, is another number: the test can tell them apart.
    plain = Trainer(
        model=model, args=arguments(tmp_path, per_device_eval_batch_size=3), eval_dataset=rows, data_collator=COLLATE
    )
    assert plain.evaluate()["eval_loss"] != pytest.approx(loss_by_hand(model, rows), abs=1e-3)


def loss_by_hand(model: PTunedModel, rows: Dataset, epsilon: float = 0.0) -> float:
    """Cross-entropy over answer tokens, a row at a time, the vectors put before the embeddings by hand."""
    total, tokens = 0.0, 0
    table = model.base.get_input_embeddings()
    with torch.no_grad():
        vectors = model.eval().encode()
        for row in rows:
            ids, labels = torch.tensor(row["input_ids"]), torch.tensor(row["labels"])
            logits = model.base(inputs_embeds=torch.cat([vectors, table(ids)]).unsqueeze(0)).logits[0]
            ahead = logits[len(vectors) - 1 : -1]
            keep = labels != -100
            total += float(F.cross_entropy(ahead[keep], labels[keep], reduction="sum", label_smoothing=epsilon))
            tokens += int(keep.sum())
    return total / tokens


@both_collators
def test_label_smoothing_looks_one_token_ahead(tmp_path: Path, collate: Collator):
    # Trainer itself shifts logits only for class names it knows, and PTunedModel is none of them.
    rows = token_rows(6, seed=3)
    args = arguments(
        tmp_path, label_smoothing_factor=0.2, per_device_train_batch_size=6, max_steps=1, learning_rate=0.0
    )
    model = prompted()
    trainer = PTuneTrainer(model=model, args=args, train_dataset=rows, data_collator=collate)
    trainer.train()
    assert trainer.state.log_history[0]["loss"] == pytest.approx(loss_by_hand(model, rows, epsilon=0.2), abs=1e-4)


@both_collators
def test_own_loss_function_sees_rows_apart(tmp_path: Path, collate: Collator):
    def shifted(outputs: Any, labels: torch.Tensor, num_items_in_batch: torch.Tensor) -> torch.Tensor:
        ahead, targets = outputs.logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten()
        return F.cross_entropy(ahead, targets, reduction="sum") / num_items_in_batch

    rows, model = token_rows(6, seed=3), prompted()
    args = arguments(
        tmp_path, per_device_train_batch_size=3, gradient_accumulation_steps=2, max_steps=1, learning_rate=0.0
    )
    trainer = PTuneTrainer(model=model, args=args, train_dataset=rows, data_collator=collate, compute_loss_func=shifted)
    trainer.train()
    assert trainer.state.log_history[0]["loss"] == pytest.approx(loss_by_hand(model, rows), abs=1e-4)


@both_collators
def test_metrics_see_logits_that_line_up_with_the_labels(tmp_path: Path, collate: Collator):
    rows, model, seen = token_rows(5, seed=7), prompted(), {}

    def note(prediction: Any) -> dict[str, float]:
        seen["logits"], seen["labels"] = prediction.predictions, prediction.label_ids
        return {"rows": float(len(prediction.label_ids))}

    args = arguments(tmp_path, prediction_loss_only=False, per_device_eval_batch_size=3)
    trainer = PTuneTrainer(model=model, args=args, eval_dataset=rows, data_collator=collate, compute_metrics=note)
    result = trainer.evaluate()
    assert result["eval_rows"] == 5.0
    assert seen["logits"].shape[:2] == seen["labels"].shape == (5, max(len(row["input_ids"]) for row in rows))
    ahead, labels = torch.tensor(seen["logits"])[:, :-1].flatten(0, 1), torch.tensor(seen["labels"])[:, 1:].flatten()
    assert float(F.cross_entropy(ahead, labels)) == pytest.approx(result["eval_loss"], abs=1e-4)


def test_log_tells_speed_and_memory(tmp_path: Path):
    rows = token_rows(24)
    trainer = PTuneTrainer(
        model=prompted(),
        args=arguments(tmp_path, per_device_train_batch_size=8),
        train_dataset=rows,
        data_collator=COLLATE,
    )
    trainer.train()
    entries = [entry for entry in trainer.state.log_history if "loss" in entry]
    assert all(entry["tokens_per_second"] > 0 and entry["memory_gib"] > 0 for entry in entries)
    assert trainer.total_tokens() == trainer.tokens.seen == sum(len(row["input_ids"]) for row in rows)


def test_what_it_would_not_save_it_does_not_train(tmp_path: Path) -> None:
    model = prompted()
    model.add_prompt("second", PromptEncoderConfig(num_virtual_tokens=3))
    model.train_prompts(["default", "second"])
    with pytest.raises(
        ConfigError, match=r"the active prompt alone, 'default'; set to train: default, second\. Call set"
    ):
        trained(tmp_path, model=model)
    model.set_prompt("second")
    assert trained(tmp_path, model=model)[0]
    model.train_prompts([])
    with pytest.raises(ConfigError, match=r"no prompt of the model trains.*trainable=True"):
        trained(tmp_path, model=model)


def test_one_process_uses_one_gpu(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Trainer would put the model into DataParallel, whose replicas run the first card's weights."""
    args = arguments(tmp_path, max_steps=1)
    args._n_gpu = 2
    with caplog.at_level("WARNING", logger="ptune"):
        trainer = PTuneTrainer(model=prompted(), args=args, train_dataset=token_rows(24), data_collator=COLLATE)
    assert trainer.args.n_gpu == 1
    assert "one is used; for all of them: accelerate launch" in caplog.text
    assert trainer.train().global_step == 1


def test_batches_are_not_pinned_on_the_cpu(tmp_path: Path) -> None:
    """On a device they are: `tests/devices/whole_runs.py`."""
    args = arguments(tmp_path)
    args.dataloader_pin_memory = True  # Trainer's own default, for all but use_cpu
    trainer = PTuneTrainer(model=prompted(), args=args, train_dataset=token_rows(24), data_collator=COLLATE)
    assert not trainer.args.dataloader_pin_memory
    assert not trainer.get_train_dataloader().pin_memory
    assert not trainer.accelerator.non_blocking
