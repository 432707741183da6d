"""What trains and what stays: the frozen model is untouched, and every row has its own prompt and head."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from ptune import PrefixTuningConfig, PromptEncoderConfig, PromptTuningConfig
from ptune.config import TaskType
from ptune.deep_config import PromptConfig
from ptune.errors import ConfigError
from ptune.internals import forward_hooks
from ptune.model.task_model import PTunedTaskModel
from tasks.wide_models import (
    HIDDEN,
    LABELS,
    WITH_HEADS,
    build,
    close,
    inner_of,
    labelled,
    pad_of,
    padded,
    same_gradients,
    texts,
)

CONFIGS: dict[str, PromptConfig] = {
    "vectors": PromptTuningConfig(num_virtual_tokens=4),
    "mlp": PromptEncoderConfig(num_virtual_tokens=3, encoder_hidden_size=8),
    "keys": PrefixTuningConfig(num_virtual_tokens=4),
}
HEADS = {
    ("bert", TaskType.SEQ_CLS): ["classifier"],
    ("roberta", TaskType.TOKEN_CLS): ["classifier"],
    ("modernbert", TaskType.SEQ_CLS): ["head", "classifier"],
    ("distilbert", TaskType.SEQ_CLS): ["pre_classifier", "classifier"],
    ("deberta", TaskType.SEQ_CLS): ["pooler", "classifier"],
    ("bert", TaskType.QUESTION_ANS): ["qa_outputs"],
    ("llama", TaskType.SEQ_CLS): ["score"],
    ("gpt2", TaskType.TOKEN_CLS): ["classifier"],
    ("bloom", TaskType.QUESTION_ANS): ["qa_outputs"],
    ("bert", TaskType.MASKED_LM): [],
    ("bert", TaskType.FEATURE_EXTRACTION): [],
    ("t5", TaskType.SEQ_2_SEQ_LM): [],
}
WITHOUT_CACHE = ("modernbert", "distilbert", "deberta")
SETUPS = [(*one, kind) for one in HEADS for kind in ("mlp", "keys") if kind == "mlp" or one[0] not in WITHOUT_CACHE]
NAMES = ["b", "a", None, "a", "b"]


def several(name: str, task: TaskType, configs: dict[str, PromptConfig]) -> PTunedTaskModel:
    """A model with prompts whose heads differ, all of which train."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(2)
        model = PTunedTaskModel(build(name, task))
        for one, config in configs.items():
            model.add_prompt(one, config)
        for parameter in model.prompts.parameters():
            parameter.data += 0.2 * torch.randn_like(parameter)
    model.train_prompts(model.prompt_names)
    return model.eval()


def outputs_of(output: Any) -> list[torch.Tensor]:
    """What belongs to rows."""
    keys = ("logits", "start_logits", "end_logits", "last_hidden_state")
    return [output[key] for key in keys if output.get(key) is not None]


@pytest.mark.parametrize(("name", "task", "kind"), SETUPS)
def test_the_frozen_model_is_untouched(name: str, task: TaskType, kind: str) -> None:
    """Byte by byte after steps that move prompt and head; and the head of the model is a copy's origin alone."""
    base = build(name, task)
    before = {key: value.clone() for key, value in base.state_dict().items()}
    model = PTunedTaskModel(base, CONFIGS[kind]).train()
    if task is TaskType.FEATURE_EXTRACTION:
        model(**labelled(name, task, "left")).last_hidden_state.square().mean().backward()
    optimizer = torch.optim.Adam([one for one in model.parameters() if one.requires_grad], lr=0.1)
    start = {key: value.clone() for key, value in model.prompts.state_dict().items()}
    for _ in range(3):
        if task is not TaskType.FEATURE_EXTRACTION:
            optimizer.zero_grad()
            model(**labelled(name, task, "left")).loss.backward()
        optimizer.step()
    assert model.base is base
    after = base.state_dict()
    assert after.keys() == before.keys()
    assert all(torch.equal(after[key], value) for key, value in before.items())
    assert all(one.grad is None and not one.requires_grad for one in base.parameters())
    moved = {key for key, value in model.prompts.state_dict().items() if not torch.equal(value, start[key])}
    assert moved == set(start)
    own = model.prompts["default"].head
    assert list(own or ()) == HEADS[name, task] == (model.active_peft_config.modules_to_save or [])
    # What trains is what is saved, and nothing of the model is counted twice.
    trained = {key for key, value in model.named_parameters() if value.requires_grad}
    assert trained == set(model.state_dict())
    sizes = [sum(value.numel() for value in one.values()) for one in (start, before)]
    assert model.get_nb_trainable_parameters()[0] == sizes[0]


@pytest.mark.parametrize("asked", ["configuration", "call"])
@pytest.mark.parametrize("task", [TaskType.SEQ_CLS, TaskType.FEATURE_EXTRACTION])
@pytest.mark.parametrize("name", ["bert", "roberta", "mpnet", "electra"])
@torch.no_grad()
def test_layers_are_hooked_once(name: str, task: TaskType, asked: str) -> None:
    """However often hidden states are asked for; the bare model then gives each of them once."""
    base: Any = build(name, task)
    call = {"output_hidden_states": True} if asked == "call" else {}
    base.config.output_hidden_states = asked == "configuration"
    model, ids, counts = PTunedTaskModel(base, CONFIGS["vectors"]).eval(), texts()[0][None], []
    for _ in range(3):
        model(input_ids=ids, **call)
        counts.append(sum(len(list(forward_hooks(module))) for module in inner_of(base).modules()))
    assert counts[0] == counts[1] == counts[2]
    assert len(base(ids, output_hidden_states=True).hidden_states) == base.config.num_hidden_layers + 1


@torch.no_grad()
def test_a_decoders_configuration_that_asks_for_hidden_states() -> None:
    base: Any = build("llama", TaskType.SEQ_CLS)
    model, ids = PTunedTaskModel(base, CONFIGS["vectors"]).eval(), texts()[0][None]
    wanted = model(input_ids=ids).logits
    base.config.output_hidden_states = True
    for _ in range(3):
        assert torch.equal(model(input_ids=ids).logits, wanted)
    assert len(base(ids).hidden_states) == base.config.num_hidden_layers + 1


def test_a_head_begins_as_the_models_own() -> None:
    model = PTunedTaskModel(build("bert", TaskType.SEQ_CLS), CONFIGS["vectors"])
    for key, value in model.base.classifier.state_dict().items():
        own = model.prompts["default"].head["classifier"].state_dict()[key]
        assert torch.equal(own, value)
        assert own.data_ptr() != value.data_ptr()


@pytest.mark.parametrize(
    ("name", "task", "kind"), [*SETUPS, *(("bart", TaskType.SEQ_2_SEQ_LM, kind) for kind in ("mlp", "keys"))]
)
def test_a_head_in_float32_on_a_model_in_bfloat16(name: str, task: TaskType, kind: str) -> None:
    """Prompt and head stay in float32 where a trainer moves all, under autocast too; and all of it trains."""
    model = several(name, task, {"a": CONFIGS[kind]})
    given = labelled(name, task, "left")
    with torch.no_grad():
        wanted = outputs_of(model(**given))[0]
    model.to(torch.bfloat16)
    assert {one.dtype for one in model.base.parameters()} == {torch.bfloat16}
    assert {one.dtype for one in model.prompts.parameters()} == {torch.float32}
    for autocast in (False, True):
        model.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            output = model(**given)
        found = outputs_of(output)[0]
        loss = output.get("loss")
        (found.float().square().mean() if loss is None else loss).backward()
        assert all(bool(one.grad.isfinite().all()) for one in model.prompts.parameters())
        places = ... if task in (TaskType.SEQ_CLS, TaskType.SEQ_2_SEQ_LM) else given["attention_mask"].bool()
        # T5 does not scale its scores: a bare one rounds as much.
        assert close(found[places].float(), wanted[places], 0.3 if name == "t5" else 0.2)


@pytest.mark.parametrize("task", [*WITH_HEADS, TaskType.FEATURE_EXTRACTION])
@pytest.mark.parametrize(
    ("name", "kinds"),
    [
        ("bert", ("vectors", "mlp")),
        ("bert", ("keys", "keys")),
        ("llama", ("vectors", "keys")),
        ("gpt2", ("mlp", "mlp")),
    ],
)
def test_prompts_with_heads_of_their_own_in_one_batch(name: str, kinds: tuple[str, str], task: TaskType) -> None:
    """Each row is as if by itself, with its prompt and its head, or the bare model; so are loss and gradients."""
    model = several(name, task, dict(zip("ab", (CONFIGS[kind] for kind in kinds), strict=True)))
    given, rows = labelled(name, task, "left"), texts()
    names = NAMES if "keys" not in kinds or name == "llama" else ["b", "a", "a", "a", "b"]
    together = model(**given, prompt_names=names)
    if together.get("loss") is not None:
        together.loss.backward()
    grads = {key: value.grad.clone() for key, value in model.prompts.named_parameters() if value.grad is not None}
    assert grads.keys() == (
        {key for key, _ in model.prompts.named_parameters()} if together.get("loss") is not None else set()
    )
    mask = given["attention_mask"].bool()
    model.zero_grad()
    count = int((given["labels"] != -100).sum()) if "labels" in given else len(rows)
    total = 0.0
    for at, row in enumerate(rows):
        one = {key: value[at : at + 1] for key, value in given.items()}
        alone = model(**one, prompt_names=[names[at]], num_items_in_batch=count)
        # By the row's own name, without padding.
        plain = model(row[None], prompt_names=[names[at]])
        for found, wanted, bare in zip(outputs_of(together), outputs_of(alone), outputs_of(plain), strict=True):
            places = ... if task is TaskType.SEQ_CLS else mask[at]
            assert close(found[at][places], wanted[0][places]), at
            assert close(found[at][places], bare[0]), at
        if alone.get("loss") is not None:
            if names[at] is not None:
                alone.loss.backward()
            total += float(alone.loss.detach())
    if together.get("loss") is not None:
        assert total == pytest.approx(float(together.loss.detach()), rel=1e-5)
        assert same_gradients({key: value.grad for key, value in model.prompts.named_parameters()}, grads)


@pytest.mark.parametrize("task", WITH_HEADS)
def test_hidden_states_of_rows_with_heads_of_their_own(task: TaskType) -> None:
    """They come back where prompts are mixed too, each row's as alone."""
    model = several("bert", task, {"a": CONFIGS["vectors"], "b": CONFIGS["mlp"]})
    ids, mask = padded(texts(), "left", pad_of("bert"))
    with torch.no_grad():
        together = model(ids, mask, prompt_names=NAMES, output_hidden_states=True).hidden_states
        for at, row in enumerate(texts()):
            alone = model(row[None], prompt_names=[NAMES[at]], output_hidden_states=True).hidden_states
            assert len(together) == len(alone)
            for states, own in zip(together, alone, strict=True):
                assert close(states[at][mask[at].bool()], own[0])


def test_gaps_of_rows_with_heads_of_their_own() -> None:
    """Where no logits are asked for, heads read the gaps alone, with the same loss and gradients."""
    task = TaskType.MASKED_LM
    configs = {one: replace(CONFIGS["vectors"], modules_to_save=["cls"]) for one in "ab"}
    model = several("bert", task, configs)
    ids, mask = padded(texts(), "left", pad_of("bert"))
    labels = torch.where((torch.arange(ids.shape[1]) % 3 == 0) & mask.bool(), ids, -100)
    read: list[int] = []
    for encoder in model.prompts.values():
        encoder.head["cls"].register_forward_pre_hook(lambda _, given: read.append(given[0].shape[:-1].numel()))
    found = []
    for return_logits in (False, True):
        model.zero_grad()
        loss = model(ids, mask, labels, prompt_names=["b", "a", None, "a", "b"], return_logits=return_logits).loss
        loss.backward()
        found.append((loss.detach(), {key: one.grad.clone() for key, one in model.prompts.named_parameters()}))
    assert float(found[0][0]) == pytest.approx(float(found[1][0]), rel=1e-5)
    assert same_gradients(found[0][1], found[1][1])
    assert all(bool(one.any()) for one in found[0][1].values())
    own = [int((labels[rows] != -100).sum()) for rows in ([0, 4], [1, 3])]
    assert read == [*own, 2 * ids.shape[1], 2 * ids.shape[1]]


def test_a_row_without_prompt_is_the_bare_models() -> None:
    for name in ("bert", "llama"):
        model = several(name, TaskType.TOKEN_CLS, {"a": CONFIGS["vectors"]})
        ids, mask = padded(texts(), "right", pad_of(name))
        with torch.no_grad():
            for names in ([None] * 5, "__base__"):
                given = {"adapter_names": [names] * 5} if names == "__base__" else {"prompt_names": names}
                found = model(ids, mask, **given).logits
                assert close(found[mask.bool()], model.base(ids, attention_mask=mask).logits[mask.bool()])


def test_heads_with_different_numbers_of_labels() -> None:
    model = several("bert", TaskType.SEQ_CLS, {"a": CONFIGS["vectors"], "b": CONFIGS["vectors"]})
    model.prompts["b"].head["classifier"] = torch.nn.Linear(HIDDEN, LABELS + 2)
    given = labelled("bert", TaskType.SEQ_CLS, "left")
    given.pop("labels")
    with torch.no_grad():
        assert model(**given, prompt_names="b").logits.shape == (5, LABELS + 2)
        with pytest.raises(ConfigError, match="different numbers of labels") as caught:
            model(**given, prompt_names=["a", "b", "a", "a", "b"])
    assert "as many labels" in str(caught.value.hint)


def test_deep_and_vector_prompts_before_an_encoder() -> None:
    model = several("bert", TaskType.SEQ_CLS, {"a": CONFIGS["vectors"], "b": CONFIGS["keys"]})
    given = labelled("bert", TaskType.SEQ_CLS, "left")
    with pytest.raises(
        ConfigError, match="keys and values cannot stand in one batch with rows behind vectors"
    ) as caught:
        model(**given, prompt_names=["a", "b", "a", "a", "b"])
    assert "batches of their own" in str(caught.value.hint)
    for name in "ab":
        assert bool(model(**given, prompt_names=name).loss.isfinite())


def test_some_prompts_pool_virtual_tokens_and_some_do_not() -> None:
    pooling = PromptTuningConfig(num_virtual_tokens=4, pool_virtual_tokens=True)
    model = several("bert", TaskType.SEQ_CLS, {"a": CONFIGS["vectors"], "b": pooling})
    with pytest.raises(ConfigError, match="whose virtual tokens a pooler reads, and others") as caught:
        model(**labelled("bert", TaskType.SEQ_CLS, "left"), prompt_names=["a", "b", "a", "a", "b"])
    assert "batches of their own" in str(caught.value.hint)


@pytest.mark.parametrize("name", ["bert", "llama"])
def test_keys_and_values_of_prompts_of_different_lengths(name: str) -> None:
    configs: dict[str, PromptConfig] = {
        "a": PrefixTuningConfig(num_virtual_tokens=6),
        "b": PrefixTuningConfig(num_virtual_tokens=2),
    }
    model = several(name, TaskType.TOKEN_CLS, configs)
    ids, mask = padded(texts(), "left", pad_of(name))
    names = ["b", "a", "a", "a", "b"]
    with torch.no_grad():
        together = model(ids, mask, prompt_names=names).logits
        for at, row in enumerate(texts()):
            assert close(together[at][mask[at].bool()], model(row[None], prompt_names=names[at]).logits[0]), at


@pytest.mark.parametrize(("name", "task"), [*HEADS, ("llama", TaskType.FEATURE_EXTRACTION)])
def test_disable_adapter_is_the_bare_model(name: str, task: TaskType) -> None:
    """Its output and loss, the head that it came with among them."""
    model, given = several(name, task, {"a": CONFIGS["vectors"]}), labelled(name, task, "left")
    bare = build(name, task)
    with torch.no_grad():
        with model.disable_adapter():
            found = model(**given)
        wanted = bare(**given)
        assert found.keys() == wanted.keys()
        for key, value in wanted.items():
            if isinstance(value, torch.Tensor):
                assert torch.equal(found[key], value), key
        again = model(**given)
        assert not close(outputs_of(again)[0], outputs_of(found)[0])


def test_which_prompt_trains() -> None:
    """The active one, with its head; the others stay."""
    model = several("bert", TaskType.SEQ_CLS, {"a": CONFIGS["vectors"], "b": CONFIGS["mlp"]})
    model.set_adapter("b")
    training = {key for key, value in model.named_parameters() if value.requires_grad}
    assert training == {key for key in model.state_dict() if key.startswith("prompts.b.")}
    assert any(".head." in key for key in training)
    model.delete_adapter("a")
    assert not any(key.startswith("prompts.a.") for key in model.state_dict())


def test_dropout_of_the_head_in_training_alone() -> None:
    base = build("bert", TaskType.SEQ_CLS, classifier_dropout=0.5)
    model = PTunedTaskModel(base, CONFIGS["vectors"])
    given = labelled("bert", TaskType.SEQ_CLS, "left")
    with torch.no_grad():
        model.eval()
        assert torch.equal(model(**given).logits, model(**given).logits)
        model.train()
        assert not torch.equal(model(**given).logits, model(**given).logits)
