"""The loss of each task: a padded row's is its own, a step's is one sum, and it is transformers' of the same logits."""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any

import pytest
import torch
from torch.nn import functional as F

from ptune import PrefixTuningConfig, PromptTuningConfig
from ptune.config import TaskType
from ptune.deep_config import PromptConfig
from ptune.model.task_model import PTunedTaskModel
from tasks.wide_models import LABELS, build, close, pad_of, padded, same_gradients, texts

LENGTHS = (7, 2, 9, 4, 6, 3, 8, 5)
SIDES = ("right", "left")
CONFIGS: dict[str, PromptConfig] = {
    "vectors": PromptTuningConfig(num_virtual_tokens=4),
    "keys": PrefixTuningConfig(num_virtual_tokens=4),
}
_ENCODING = (TaskType.SEQ_CLS, TaskType.TOKEN_CLS, TaskType.QUESTION_ANS, TaskType.MASKED_LM)
SETUPS = [
    *[("bert", task) for task in _ENCODING],
    *[("llama", task) for task in _ENCODING if task is not TaskType.MASKED_LM],
    ("t5", TaskType.SEQ_2_SEQ_LM),
    ("bart", TaskType.SEQ_2_SEQ_LM),
]


def prompted(name: str, task: TaskType, kind: str = "vectors", **overrides: Any) -> PTunedTaskModel:
    """A model behind a random prompt, in eval mode."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        return PTunedTaskModel(build(name, task, **overrides), CONFIGS[kind]).eval()


def rows_of(task: TaskType) -> list[dict[str, torch.Tensor]]:
    """Rows by themselves, with what they are told; some have several labels, one has none at some tokens."""
    answers = texts([3, 5, 1, 4, 2, 6, 3, 2])
    made = []
    for at, row in enumerate(texts(LENGTHS)):
        one = {"input_ids": row}
        if task is TaskType.SEQ_CLS:
            one["labels"] = torch.tensor(at % LABELS)
        if task is TaskType.TOKEN_CLS:
            one["labels"] = torch.where(torch.arange(len(row)) == 1, -100, row % LABELS)
        if task is TaskType.MASKED_LM:
            one["labels"] = torch.where(torch.arange(len(row)) % 2 == 0, row.flip(0), -100)
        if task is TaskType.QUESTION_ANS:
            one |= {"start_positions": torch.tensor(at % len(row)), "end_positions": torch.tensor(len(row) - 1)}
        if task is TaskType.SEQ_2_SEQ_LM:
            one["labels"] = answers[at]
        made.append(one)
    return made


def batch_of(name: str, task: TaskType, rows: list[dict[str, torch.Tensor]], side: str = "right") -> dict[str, Any]:
    """Rows padded into a batch; places of answers move with the text."""
    ids, mask = padded([one["input_ids"] for one in rows], side, pad_of(name))
    given: dict[str, Any] = {"input_ids": ids, "attention_mask": mask}
    first = mask.argmax(dim=1)
    for key in rows[0].keys() - {"input_ids"}:
        values = [one[key] for one in rows]
        if values[0].dim():
            given[key] = padded(values, "right" if task is TaskType.SEQ_2_SEQ_LM else side, -100)[0]
        else:
            given[key] = torch.stack(values) + (first if key.endswith("positions") else 0)
    return given


def labels_in(task: TaskType, rows: list[dict[str, torch.Tensor]]) -> int:
    """How many labels a loss is a mean of."""
    if task in (TaskType.SEQ_CLS, TaskType.QUESTION_ANS):
        return len(rows)
    return sum(int((one["labels"] != -100).sum()) for one in rows)


def step(model: PTunedTaskModel, **batch: Any) -> tuple[float, dict[str, torch.Tensor]]:
    """The loss and every gradient, added to what is there."""
    loss = model(**batch).loss
    loss.backward()
    return float(loss.detach()), {name: one.grad.clone() for name, one in model.prompts.named_parameters()}


@pytest.mark.parametrize("kind", CONFIGS)
@pytest.mark.parametrize("side", SIDES)
@pytest.mark.parametrize(("name", "task"), SETUPS)
def test_a_batch_of_eight_is_eight_of_one(name: str, task: TaskType, side: str, kind: str) -> None:
    """With the labels of the whole step, as a trainer counts them, and without."""
    model, rows = prompted(name, task, kind), rows_of(task)
    whole = batch_of(name, task, rows, side)
    count = labels_in(task, rows)
    loss, grads = step(model, **whole, num_items_in_batch=count)
    model.zero_grad()
    assert step(model, **whole)[0] == pytest.approx(loss, rel=1e-5)
    model.zero_grad()
    singly = [step(model, **batch_of(name, task, [row]), num_items_in_batch=torch.tensor(count)) for row in rows]
    assert sum(one for one, _ in singly) == pytest.approx(loss, rel=1e-5)
    assert any(bool(value.any()) for value in grads.values())
    assert same_gradients(singly[-1][1], grads)


@pytest.mark.parametrize("kind", CONFIGS)
@pytest.mark.parametrize("name", ["llama", "gpt2", "bert"])
def test_micro_batches_share_what_is_computed_of_the_prompt(name: str, kind: str) -> None:
    """A step's gradients inside `prefix_scope` are those outside it."""
    model, rows, found = prompted(name, TaskType.SEQ_CLS, kind), rows_of(TaskType.SEQ_CLS), []
    halves = [batch_of(name, TaskType.SEQ_CLS, some) for some in (rows[:4], rows[4:])]
    for shared in (True, False):
        model.zero_grad()
        for at, given in enumerate(halves):
            with model.prefix_scope(last=at == 1) if shared else nullcontext():
                _, grads = step(model, **given, num_items_in_batch=len(rows))
        found.append(grads)
    assert all(bool(one.any()) for one in found[0].values())
    assert same_gradients(*found)


@pytest.mark.parametrize("kind", CONFIGS)
@pytest.mark.parametrize(("name", "task"), SETUPS)
def test_a_step_without_logits_is_the_same_step(name: str, task: TaskType, kind: str) -> None:
    """As a trainer asks for it, whose loss is all that it reads; asked for, or not said, logits are there."""
    model = prompted(name, task, kind)
    whole = batch_of(name, task, rows_of(task), "left")
    every, more = model(**whole), model(**whole, return_logits=True)
    alone = model(**whole, return_logits=False)
    named = {"start_logits", "end_logits"} if task is TaskType.QUESTION_ANS else {"logits"}
    assert list(every) == list(more)
    assert named <= set(every)
    assert set(alone) == set(every) - named
    assert all(torch.equal(every[key], more[key]) for key in named)
    assert torch.equal(alone.loss, every.loss)
    gradients = [torch.autograd.grad(one.loss, list(model.prompts.parameters())) for one in (alone, every)]
    assert all(torch.equal(*both) for both in zip(*gradients, strict=True))


@pytest.mark.parametrize("side", SIDES)
@pytest.mark.parametrize("name", ["bert", "llama"])
def test_an_answer_is_looked_for_in_the_text_alone(name: str, side: str) -> None:
    """A padded row's loss is its own, and its logits are the lowest number wherever it has no token."""
    task = TaskType.QUESTION_ANS
    model, rows = prompted(name, task), rows_of(task)
    whole = batch_of(name, task, rows, side)
    with torch.no_grad():
        output = model(**whole)
        losses = [float(model(**batch_of(name, task, [row])).loss) for row in rows]
        for at, row in enumerate(rows):
            # By hand, from the row's own logits.
            mask = whole["attention_mask"][at].bool()
            start, end = output.start_logits[at][mask], output.end_logits[at][mask]
            wanted = (F.cross_entropy(start, row["start_positions"]) + F.cross_entropy(end, row["end_positions"])) / 2
            assert float(wanted) == pytest.approx(losses[at], rel=1e-5)
    assert float(output.loss) == pytest.approx(sum(losses) / len(losses), rel=1e-5)
    places = output.start_logits.argmax(dim=1)
    assert bool(whole["attention_mask"].gather(1, places[:, None]).all())


@pytest.mark.parametrize("kind", CONFIGS)
@pytest.mark.parametrize(("name", "task"), SETUPS)
def test_nothing_to_learn_is_a_loss_of_zero(name: str, task: TaskType, kind: str) -> None:
    """With gradients, for a step of several micro-batches; and no NaN in them."""
    model, rows = prompted(name, task, kind), rows_of(task)
    given = batch_of(name, task, rows)
    for key in given.keys() & {"labels"}:
        given[key] = torch.full_like(given[key], -100)
    for key in given.keys() & {"start_positions", "end_positions"}:
        given[key] = torch.full_like(given[key], 1000)
    for count in (None, 5):
        model.zero_grad()
        loss, grads = step(model, **given, num_items_in_batch=count)
        assert loss == 0
        assert all(torch.equal(one, torch.zeros_like(one)) for one in grads.values())


@pytest.mark.parametrize("side", SIDES)
def test_an_answer_outside_the_text_takes_no_part(side: str) -> None:
    """A place that is cut off, at padding, or -1, as preprocessing writes it where there is no answer."""
    task = TaskType.QUESTION_ANS
    model, rows = prompted("bert", task), rows_of(task)
    whole, kept = (batch_of("bert", task, some, side) for some in (rows[:3], [rows[0], rows[2]]))
    at_padding = whole["attention_mask"][1].argmin()
    with torch.no_grad():
        wanted = float(model(**kept).loss)
        for nowhere in (-1, 1000, int(at_padding)):
            given = {**whole, **{key: whole[key].clone() for key in ("start_positions", "end_positions")}}
            given["start_positions"][1] = given["end_positions"][1] = nowhere
            assert float(model(**given).loss) == pytest.approx(wanted, rel=1e-5)
        # No row has a start: the ends are half of the loss all the same.
        ends = float(model(**{**given, "start_positions": torch.full((3,), -1)}).loss)
        starts = float(model(**{**given, "end_positions": torch.full((3,), -1)}).loss)
    assert starts + ends == pytest.approx(wanted, rel=1e-5)


def test_places_of_answers_may_be_columns() -> None:
    """`(B, 1)`, as transformers takes them too; one of the two alone gives no loss."""
    task = TaskType.QUESTION_ANS
    model = prompted("bert", task)
    given = batch_of("bert", task, rows_of(task), "left")
    with torch.no_grad():
        wanted = float(model(**given).loss)
        columns = {key: value[:, None] if key.endswith("positions") else value for key, value in given.items()}
        assert float(model(**columns).loss) == wanted
        assert model(**{key: value for key, value in given.items() if key != "end_positions"}).get("loss") is None


@pytest.mark.parametrize("name", ["bert", "llama"])
def test_regression(name: str) -> None:
    """One label is a number: the squared error."""
    model, rows = prompted(name, TaskType.SEQ_CLS, num_labels=1), rows_of(TaskType.SEQ_CLS)
    given = batch_of(name, TaskType.SEQ_CLS, rows) | {"labels": torch.linspace(-1, 2, len(rows))}
    output = model(**given)
    assert close(output.loss, F.mse_loss(output.logits[:, 0], given["labels"]))
    loss = float(output.loss.detach())
    total = sum(
        step(model, **{key: value[at : at + 1] for key, value in given.items()}, num_items_in_batch=len(rows))[0]
        for at in range(len(rows))
    )
    assert total == pytest.approx(loss, rel=1e-5)


@pytest.mark.parametrize("name", ["bert", "llama"])
def test_several_labels_at_once(name: str) -> None:
    """Labels of 0 and 1 as floats: a binary cross-entropy each."""
    model = prompted(name, TaskType.SEQ_CLS, problem_type="multi_label_classification")
    rows = rows_of(TaskType.SEQ_CLS)
    labels = (torch.arange(len(rows) * LABELS).view(-1, LABELS) % 2).float()
    given = batch_of(name, TaskType.SEQ_CLS, rows) | {"labels": labels}
    with torch.no_grad():
        output = model(**given)
        assert close(output.loss, F.binary_cross_entropy_with_logits(output.logits, labels))
        halves = [
            model(**{key: value[part] for key, value in given.items()}, num_items_in_batch=labels.numel()).loss
            for part in (slice(0, 3), slice(3, None))
        ]
    assert close(halves[0] + halves[1], output.loss)


@pytest.mark.parametrize(
    ("overrides", "labels", "kind"),
    [
        ({"num_labels": 1}, torch.linspace(-1, 2, 4), "regression"),
        ({}, torch.arange(4) % LABELS, "single_label_classification"),
        ({}, (torch.arange(12).view(4, 3) % 2).float(), "multi_label_classification"),
    ],
)
@pytest.mark.parametrize("name", ["bert", "roberta", "modernbert", "gpt2"])
def test_the_bare_models_loss(name: str, overrides: dict[str, int], labels: torch.Tensor, kind: str) -> None:
    """It settles on a kind by the first labels it sees, as the bare model does, which stays without one."""
    model = prompted(name, TaskType.SEQ_CLS, **overrides)
    ids, mask = padded(texts(LENGTHS[:4]), "right", pad_of(name))
    with torch.no_grad():
        output = model(ids, mask, labels=labels)
        bare: Any = build(name, TaskType.SEQ_CLS, **overrides)
        wanted = bare.loss_function(labels=labels, pooled_logits=output.logits, config=bare.config)
        assert close(output.loss, wanted)
        with model.disable_adapter():
            before = model.base.config.problem_type
            bare_loss = model(ids, mask, labels=labels).loss
        assert close(bare_loss, bare(ids, attention_mask=mask, labels=labels).loss)
    assert before is None
    assert bare.config.problem_type == kind


@pytest.mark.parametrize("side", SIDES)
def test_tokens_and_masks_by_hand(side: str) -> None:
    """Labels are those of their own place: nothing is shifted."""
    for task in (TaskType.TOKEN_CLS, TaskType.MASKED_LM):
        model, rows = prompted("bert", task), rows_of(task)
        given = batch_of("bert", task, rows, side)
        with torch.no_grad():
            output = model(**given)
        places = given["labels"] != -100
        assert close(output.loss, F.cross_entropy(output.logits[places], given["labels"][places]))
