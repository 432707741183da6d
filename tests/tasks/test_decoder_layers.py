"""Decoders under a classifier: the last token of a text, whatever padding is called, and every way through."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from ptune import PrefixTuningConfig, PromptTuningConfig
from ptune.config import TaskType
from ptune.deep_config import PromptConfig
from ptune.errors import ModelError
from ptune.model import running
from ptune.model.task_model import PTunedTaskModel
from ptune.packed.attention import CHOICE
from tasks.wide_models import (
    BOS,
    DECODERS,
    EOS,
    READING,
    behind_tokens,
    build,
    close,
    head_on,
    labelled,
    padded,
    put_tokens,
    same_gradients,
    texts,
    tokens,
)

PROMPT = tokens(4, seed=7)
CONFIGS: dict[str, PromptConfig] = {
    "vectors": PromptTuningConfig(num_virtual_tokens=4),
    "keys": PrefixTuningConfig(num_virtual_tokens=4),
}


@torch.no_grad()
def last_token(name: str, row: torch.Tensor, **overrides: Any) -> torch.Tensor:
    """`(labels,)`: a classifier on the last token of a text behind real ones, by hand."""
    bare: Any = build(name, TaskType.SEQ_CLS, **overrides)
    states = bare.base_model(torch.cat([PROMPT, row])[None]).last_hidden_state
    return head_on(name, bare, TaskType.SEQ_CLS, states)[0]


@pytest.mark.parametrize("side", ["right", "left"])
@pytest.mark.parametrize("pad", [EOS, None, BOS])
@pytest.mark.parametrize("name", DECODERS)
def test_the_last_token_by_the_mask(name: str, pad: int | None, side: str) -> None:
    """The padding token may be the one that ends texts, and stands inside them; or the model knows of none."""
    model = behind_tokens(name, TaskType.SEQ_CLS, PROMPT, pad_token_id=pad)
    rows = [*texts([6, 4]), torch.tensor([EOS, 9, EOS]), torch.tensor([8, EOS]), torch.tensor([EOS])]
    ids, mask = padded(rows, side, EOS)
    with torch.no_grad():
        logits = model(ids, mask).logits
        for at, row in enumerate(rows):
            assert close(logits[at], last_token(name, row, pad_token_id=pad)), at
        # Without a mask a text ends where the model's class lets it end: before its last padding tokens.
        whole = torch.tensor([9, 8, EOS])
        ended = whole[:2] if pad == EOS else whole
        assert close(model(whole[None]).logits[0], last_token(name, ended, pad_token_id=pad))
        if pad is not None:
            ids, mask = padded(texts(), side, pad)
            assert torch.equal(model(ids).logits, model(ids, mask).logits)
    assert model.base.config.pad_token_id == pad


@pytest.fixture
def ways(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Which ways batches took."""
    taken: list[str] = []
    choose = running.choose_path

    def noting(*args: Any, **kwargs: Any) -> Any:
        path = choose(*args, **kwargs)
        taken.append(path.way.name)
        return path

    monkeypatch.setattr(running, "choose_path", noting)
    return taken


def step(model: PTunedTaskModel, given: dict[str, Any]) -> tuple[Any, dict[str, torch.Tensor]]:
    """The output, and every gradient."""
    model.zero_grad()
    output = model(**given)
    loss = output.get("loss")
    (output.last_hidden_state.square().sum() if loss is None else loss).backward()
    return output, {key: value.grad.clone() for key, value in model.prompts.named_parameters()}


@pytest.mark.parametrize("kind", CONFIGS)
@pytest.mark.parametrize(
    ("task", "attention"), [*((task, "spans") for task in READING), (TaskType.TOKEN_CLS, "padded")]
)
@pytest.mark.parametrize("name", DECODERS)
def test_packed_equals_padded_equals_concatenated(
    name: str, task: TaskType, kind: str, attention: str, ways: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Output, loss and gradients; and the packed way is the one that is taken."""
    monkeypatch.setenv(CHOICE, attention)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        model = PTunedTaskModel(build(name, task).double(), CONFIGS[kind])
    model.prompts.double()
    given = labelled(name, task, "left")
    (layers,) = model._layers
    assert layers.packs
    ways.clear()
    packed = step(model, given)
    layers.pack_batches = False
    unpacked = step(model, given)
    assert ways == ["PACKED", "PREFIX"]
    others = [unpacked]
    if kind == "vectors":
        embeds = model.base.get_input_embeddings()(given["input_ids"])
        others.append(
            step(model, {**{key: value for key, value in given.items() if key != "input_ids"}, "inputs_embeds": embeds})
        )
        layers.capability = layers.capability.__class__(**{**vars(layers.capability), "prefix": False})
        others.append(step(model, given))
        assert ways[-1] == "CONCATENATION"
    chosen = given["attention_mask"].bool()
    for output, grads in others:
        for key in ("logits", "start_logits", "end_logits", "last_hidden_state", "loss"):
            if packed[0].get(key) is not None:
                places = ... if key == "loss" or task is TaskType.SEQ_CLS else chosen
                assert close(output[key][places], packed[0][key][places], 1e-5), key
        assert same_gradients(grads, packed[1], 1e-5)


def test_prompts_of_different_kinds_in_a_packed_batch(ways: list[str]) -> None:
    model = behind_tokens("llama", TaskType.SEQ_CLS, PROMPT)
    put_tokens(model, "short", PROMPT[:2])
    model.add_prompt("deep", PrefixTuningConfig(num_virtual_tokens=3))
    rows, names = texts(), ["deep", "default", None, "short", "default"]
    ids, mask = padded(rows, "left")
    ways.clear()
    with torch.no_grad():
        logits = model(ids, mask, prompt_names=names).logits
        assert ways == ["PACKED"]
        for at, row in enumerate(rows):
            assert close(logits[at], model(row[None], prompt_names=[names[at]]).logits[0]), at
        assert close(logits[1], last_token("llama", rows[1]))


def test_the_layers_are_the_models_own() -> None:
    """Around them stands a causal model that adds nothing to what is trained, saved or counted."""
    for name in DECODERS:
        base = build(name, TaskType.SEQ_CLS)
        parameters = sum(one.numel() for one in base.parameters())
        model = PTunedTaskModel(base, CONFIGS["vectors"])
        shell = model.prompt_base
        assert shell is model._layers[0].base
        assert shell.base_model is base.base_model
        assert type(shell).__name__.endswith(("ForCausalLM", "LMHeadModel"))
        head = sum(one.numel() for one in model.prompts["default"].head.parameters())
        assert model.get_nb_trainable_parameters() == (4 * 32 + head, parameters + 4 * 32 + head)
        assert set(model.state_dict()) == {f"prompts.{key}" for key in model.prompts.state_dict()}
        assert base.config.architectures is None or "CausalLM" not in str(base.config.architectures)


def test_what_a_decoder_does_not_give() -> None:
    model = behind_tokens("llama", TaskType.FEATURE_EXTRACTION, PROMPT)
    for asked in ("output_hidden_states", "output_attentions"):
        with pytest.raises(
            ModelError, match=f"{asked} is not to be had behind a prompt of a decoder for FEATURE_EX"
        ) as caught:
            model(texts()[0][None], **{asked: True})
        assert "Leave it out" in str(caught.value.hint)
        assert model(texts()[0][None], **{asked: False}).last_hidden_state.shape == (1, 7, 32)
