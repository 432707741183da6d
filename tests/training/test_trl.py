"""TRL's trainers around a `PTunedModel`: the prompt trains, and the loss is that of each row alone behind it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from torch.nn import functional as F
from transformers import AutoModelForCausalLM

from prompting import relative_error
from ptune import PromptEncoderConfig, PTunedModel, get_peft_model

trl = pytest.importorskip("trl", minversion="1.10")
from trl import DPOConfig, DPOTrainer, SFTConfig, SFTTrainer  # noqa: E402

TEXTS = [{"text": f"{'a b c ' * (number % 4 + 1)}{number}"} for number in range(12)]
ANSWERS = [{"prompt": f"say {number} ", "completion": "yes it is" + "!" * (number % 4)} for number in range(12)]
PAIRS = [
    {"prompt": f"say {number} ", "chosen": "yes it is", "rejected": "no" * (number % 3 + 1)} for number in range(8)
]
SETTINGS: dict[str, Any] = {
    "per_device_train_batch_size": 4,
    "max_steps": 3,
    "learning_rate": 1e-2,
    "logging_steps": 1,
    "report_to": "none",
    "use_cpu": True,
    "disable_tqdm": True,
    "save_strategy": "no",
}


@pytest.fixture
def model(tiny_model_dir: Path) -> PTunedModel:
    torch.manual_seed(0)
    base = AutoModelForCausalLM.from_pretrained(tiny_model_dir)
    return get_peft_model(base, PromptEncoderConfig(num_virtual_tokens=4, encoder_hidden_size=16))


def _rows(batch: dict[str, torch.Tensor]) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Ids and labels of each row, as TRL's batch tells them: by its mask, or by position ids that start again at 0."""
    ids, labels = batch["input_ids"], batch["labels"]
    if "position_ids" not in batch:
        for at, mask in enumerate(batch["attention_mask"].bool()):
            yield ids[at][mask], labels[at][mask]
        return
    starts = (batch["position_ids"][0] == 0).nonzero().squeeze(1).tolist()
    for start, stop in zip(starts, [*starts[1:], ids.shape[1]], strict=True):
        yield ids[0, start:stop], labels[0, start:stop]


@pytest.mark.parametrize(
    ("data", "options"),
    [
        (TEXTS, {}),
        (ANSWERS, {}),
        (ANSWERS, {"completion_only_loss": False}),
        (ANSWERS, {"gradient_checkpointing": False}),
        (TEXTS, {"packing": True, "max_length": 64}),
        (ANSWERS, {"packing": True, "max_length": 64, "gradient_checkpointing": False}),
        (ANSWERS, {"padding_free": True, "max_length": None}),
        (ANSWERS, {"label_smoothing_factor": 0.1}),
    ],
    ids=str,
)
def test_sft(
    data: list[dict[str, str]], options: dict[str, Any], model: PTunedModel, tiny_tokenizer: Any, tmp_path: Path
) -> None:
    run = SFTTrainer(
        model=model,
        args=SFTConfig(output_dir=str(tmp_path), **SETTINGS, **options),
        train_dataset=Dataset.from_list(data),
        processing_class=tiny_tokenizer,
    )
    batch = next(iter(run.get_train_dataloader()))
    before = model.encode().detach().clone()
    smoothing = options.get("label_smoothing_factor", 0.0)
    model.train()
    loss = run.compute_loss(model, dict(batch))
    total, count = torch.zeros(()), 0
    for ids, labels in _rows(batch):
        logits = model(ids[None], return_logits=True).logits[0, :-1]
        known = labels[1:] != -100
        total = total + F.cross_entropy(logits[known], labels[1:][known], reduction="sum", label_smoothing=smoothing)
        count += int(known.sum())
    assert relative_error(loss, total / count) < 1e-5
    weights = [one for one in model.parameters() if one.requires_grad]
    found, wanted = torch.autograd.grad(loss, weights), torch.autograd.grad(total / count, weights)
    assert max(map(relative_error, found, wanted)) < 1e-3
    run.train()
    assert not torch.equal(model.encode(), before)
    run.save_model(str(tmp_path / "final"))
    loaded = PTunedModel.from_pretrained(tmp_path / "final")
    assert relative_error(loaded.encode(), model.encode()) < 1e-6


@pytest.mark.parametrize("options", [{}, {"precompute_ref_log_probs": True}], ids=str)
def test_dpo(options: dict[str, Any], model: PTunedModel, tiny_tokenizer: Any, tmp_path: Path) -> None:
    """Its reference is the frozen model without the prompt."""
    run = DPOTrainer(
        model=model,
        ref_model=model.get_base_model(),
        args=DPOConfig(output_dir=str(tmp_path), **SETTINGS, **options),
        train_dataset=Dataset.from_list(PAIRS),
        processing_class=tiny_tokenizer,
    )
    before, frozen = model.encode().detach().clone(), model.base.get_input_embeddings().weight.clone()
    run.train()
    norms = [entry["grad_norm"] for entry in run.state.log_history if "grad_norm" in entry]
    assert min(norms) > 1e-4
    assert not torch.equal(model.encode(), before)
    assert torch.equal(model.base.get_input_embeddings().weight, frozen)
    losses = [entry["loss"] for entry in run.state.log_history if "loss" in entry]
    assert losses[0] != pytest.approx(0.6931, abs=1e-3), "the prompt is there, and the reference is without it"
