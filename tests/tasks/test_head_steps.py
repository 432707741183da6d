"""The steps of a classifier's head: their rate and their coordinates, against the same written out."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from ptune import PromptTuningConfig
from ptune.config import TaskType
from ptune.model.task_model import PTunedTaskModel
from ptune.training.head_steps import HeadSteps
from tasks.wide_models import LABELS, build, pad_of, padded, tokens

ROWS = [{"input_ids": tokens(3 + at % 5, seed=at).tolist()} for at in range(20)]
ADAM = {"lr": 0.05, "betas": (0.7, 0.98)}


def model_of(name: str, task: TaskType) -> PTunedTaskModel:
    """A model with a prompt."""
    return PTunedTaskModel(build(name, task), PromptTuningConfig(num_virtual_tokens=4)).eval()


def batches(name: str) -> Any:
    """Makes batches that are padded on the right."""

    def collate(rows: list[Any]) -> dict[str, torch.Tensor]:
        ids, mask = padded([torch.tensor(row["input_ids"]) for row in rows], "right", pad_of(name))
        return {"input_ids": ids, "attention_mask": mask}

    return collate


def read_alone(model: PTunedTaskModel, layer: nn.Module, task: TaskType) -> torch.Tensor:
    """What a layer of the head reads of each row by itself."""
    read: list[torch.Tensor] = []

    def note(_: nn.Module, given: tuple[torch.Tensor, ...]) -> None:
        states = given[0]
        read.append(states if states.dim() == 2 else states[0, -1:] if task is TaskType.SEQ_CLS else states[0])

    handle = layer.register_forward_pre_hook(note)
    with torch.no_grad():
        for row in ROWS:
            model(torch.tensor([row["input_ids"]]))
    handle.remove()
    return torch.cat(read)


@pytest.mark.parametrize(
    ("name", "task", "layer"),
    [
        ("llama", TaskType.SEQ_CLS, "score"),
        ("bert", TaskType.SEQ_CLS, "classifier"),
        ("roberta", TaskType.SEQ_CLS, "classifier.dense"),
        ("gpt2", TaskType.TOKEN_CLS, "classifier"),
        ("bert", TaskType.QUESTION_ANS, "qa_outputs"),
    ],
)
def test_measured_on_the_rows(name: str, task: TaskType, layer: str) -> None:
    """The mean of what counts, in padded batches as row by row; at the rate, a step moves a logit by about 1."""
    model = model_of(name, task)
    steps = HeadSteps.measured(model, ROWS, batches(name))
    assert steps is not None
    head = model.prompts["default"].head
    last = [key for key, one in head.named_modules() if isinstance(one, nn.Linear)][-1]
    for key in (layer, last):
        read = read_alone(model, head.get_submodule(key), task)
        mean = read.mean(dim=0)
        direction, share = steps.common[key]
        torch.testing.assert_close(direction, mean / mean.norm(), rtol=1e-3, atol=1e-4)
        wanted = float((read - mean).norm(dim=1).mean() / mean.norm())
        assert share == pytest.approx(min(wanted, 1.0), rel=1e-3)
    scaled = read @ (torch.eye(len(direction)) - (1 - share) * torch.outer(direction, direction))
    assert steps.rate == pytest.approx(float(1 / scaled.abs().sum(dim=1).mean()), rel=0.06)  # to two digits
    assert not model.training


@pytest.mark.parametrize("momentum", [False, True])
def test_a_step_is_adams_in_other_coordinates(momentum: bool) -> None:
    """The weight is W = U T, and Adam trains U."""
    torch.manual_seed(0)
    width, share = 6, 0.2
    direction = nn.functional.normalize(torch.randn(width, dtype=torch.float64), dim=0)
    change = torch.eye(width, dtype=torch.float64) - (1 - share) * torch.outer(direction, direction)
    layer = nn.Linear(width, LABELS).double()
    texts, labels = torch.randn(9, width, dtype=torch.float64) + 4 * direction, torch.arange(9) % LABELS
    own = (layer.weight.detach() @ change.inverse()).requires_grad_()
    bias = layer.bias.detach().clone().requires_grad_()
    make: Any = torch.optim.Adam if momentum else torch.optim.SGD
    options = ADAM if momentum else {"lr": ADAM["lr"]}
    reference = make([own, bias], **options)
    other = nn.Parameter(torch.ones(2, dtype=torch.float64))
    optimizer = make([other, *layer.parameters()], **{**options, "lr": 1.0})
    HeadSteps(rate=0.05, common={"score": (direction, share)}).begin(optimizer, nn.ModuleDict({"score": layer}))
    assert [group["lr"] for group in optimizer.param_groups] == [1.0, 0.05]
    for _ in range(5):
        for one, logits in ((reference, texts @ (own @ change).T + bias), (optimizer, layer(texts))):
            one.zero_grad()
            nn.functional.cross_entropy(logits, labels).backward()
            one.step()
        torch.testing.assert_close(layer.weight.detach(), (own @ change).detach(), rtol=1e-9, atol=1e-12)
        torch.testing.assert_close(layer.bias, bias, rtol=1e-9, atol=1e-12)
    assert torch.equal(other, torch.ones_like(other))


def test_no_head_and_nothing_in_common() -> None:
    """Models without a head have no such steps; where all rows are alike, all of what is read counts."""
    assert HeadSteps.measured(model_of("bert", TaskType.FEATURE_EXTRACTION), ROWS, batches("bert")) is None
    model = model_of("bert", TaskType.SEQ_CLS)
    steps = HeadSteps.measured(model, ROWS[:1] * 8, batches("bert"), rate=0.125)
    assert steps is not None
    assert steps.rate == 0.125
    assert 0 < steps.common["classifier"][1] <= 1
