"""Deep prompts, trained: PEFT's numbers and gradients, every way the same, and where they start."""

from __future__ import annotations

import warnings
from typing import Any

import peft
import pytest
import torch

from architectures import ARCHITECTURES, WINDOW, build
from prompting import checkpoint_activations, draw, padded, relative_error, supervised, texts
from ptune import CartridgeConfig, PrefixTuningConfig, PromptTuningConfig, PTunedModel, TextTokens
from ptune.batch.token_queries import TokenQueries
from ptune.data.collate import PackingCollator
from ptune.deep_config import PromptConfig
from ptune.errors import ConfigError, ModelError
from ptune.packed.attention import CHOICE
from ptune.prefix.deep_prompts import counts_distances, encode_tokens, key_value_shape, rows_of
from ptune.prompt.build_deep import text_rows

P = 5
NAMED = ("bloom", "gpt2", "llama", "qwen2", "mistral", "gemma3")
WITH_CACHE = [name for name in ARCHITECTURES if name != "mamba"]
LENGTHS = (9, 3, 14, 1, 7)
KINDS = {
    "table": (PrefixTuningConfig, peft.PrefixTuningConfig, {}),
    "projection": (PrefixTuningConfig, peft.PrefixTuningConfig, {"prefix_projection": True, "encoder_hidden_size": 12}),
    "cartridge": (CartridgeConfig, peft.CartridgeConfig, {"num_frozen_tokens": 2}),
}


def pair(name: str, kind: str) -> tuple[PTunedModel, Any]:
    """Ours and PEFT's model, with PEFT's random weights in both."""
    mine_class, theirs_class, values = KINDS[kind]
    with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.manual_seed(0)
        theirs = peft.get_peft_model(
            build(name), theirs_class(task_type="CAUSAL_LM", num_virtual_tokens=P, **values)
        ).eval()
        mine = PTunedModel(build(name), mine_class(num_virtual_tokens=P, **values))
    weights = theirs.prompt_encoder["default"].state_dict()
    if kind == "cartridge":
        weights = {"frozen": weights["frozen_embedding"], "embedding.weight": weights["trainable_embedding"]}
    mine.prompts["default"].load_state_dict(weights, strict=True)
    return mine, theirs


def gradients(module: torch.nn.Module) -> list[torch.Tensor]:
    found = [one.grad for one in module.parameters() if one.requires_grad]
    assert None not in found
    return found


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", NAMED)
def test_pefts_logits_loss_and_gradient(name: str, kind: str) -> None:
    """Two rows of different lengths; grouped heads, and text beyond the sliding window, are among them."""
    mine, theirs = pair(name, kind)
    ids, mask = padded(texts([12, 7]), "right")
    assert ids.shape[1] > WINDOW
    labels = supervised(ids, mask)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        wanted = theirs(input_ids=ids, attention_mask=mask, labels=labels)
    wanted.loss.backward()
    assert mine.get_nb_trainable_parameters()[0] == theirs.get_nb_trainable_parameters()[0]
    for at_once in (True, None):  # padded behind the prefix, and packed
        mine.zero_grad()
        mine.train()
        found = mine(ids, mask, labels=labels, return_logits=at_once)
        found.loss.backward()
        kept = mask.bool()
        assert relative_error(found.logits[kept], wanted.logits[kept]) < 1e-5
        assert float(found.loss.detach()) == pytest.approx(float(wanted.loss.detach()), rel=1e-5)
        for own, other in zip(
            gradients(mine.prompts["default"]), gradients(theirs.prompt_encoder["default"]), strict=True
        ):
            assert relative_error(own, other) < 2e-5


def mixed(name: str, configs: list[PromptConfig], *, dtype: torch.dtype = torch.float32) -> PTunedModel:
    """A model with several prompts that all train, drawn from one seed."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        model = PTunedModel(build(name).to(dtype))
        for number, config in enumerate(configs):
            model.add_prompt(f"p{number}", config)
    model = model.to(dtype)
    model.train_prompts(model.prompt_names)
    return model.train()


THREE = [
    PrefixTuningConfig(num_virtual_tokens=P),
    PromptTuningConfig(num_virtual_tokens=3),
    CartridgeConfig(num_virtual_tokens=7, num_frozen_tokens=1),
]
ROW_NAMES = ["p2", "p1", None, "p0", "p0"]


def step(model: PTunedModel, **batch: Any) -> tuple[torch.Tensor, list[torch.Tensor]]:
    """The loss and every gradient."""
    model.zero_grad()
    loss = model(**batch).loss
    loss.backward()
    return loss.detach(), [grad.clone() for grad in gradients(model.prompts)]


@pytest.mark.parametrize("attention", ["spans", "padded"])
@pytest.mark.parametrize("name", WITH_CACHE)
def test_packed_equals_padded_equals_one_at_a_time(name: str, attention: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows of two deep prompts, of an input prompt and of none, one of a single token."""
    monkeypatch.setenv(CHOICE, attention)
    model, rows = mixed(name, THREE, dtype=torch.float64), texts(LENGTHS)
    packed = PackingCollator()([{"input_ids": row.tolist(), "labels": row.tolist()} for row in rows])
    loss, grads = step(model, **packed, prompt_names=ROW_NAMES)
    ids, mask = padded(rows, "left")
    model.pack_batches = False
    batch = {"input_ids": ids, "attention_mask": mask, "labels": supervised(ids, mask), "prompt_names": ROW_NAMES}
    padded_loss, padded_grads = step(model, **batch)
    # Only the input prompt predicts the first token of its row.
    labels = sum(LENGTHS) - len(LENGTHS) + 1
    model.zero_grad()
    total = torch.zeros((), dtype=torch.float64)
    for row, prompt in zip(rows, ROW_NAMES, strict=True):
        if len(row) > 1 or prompt == "p1":
            alone = model(row[None], labels=row[None], prompt_names=[prompt], num_items_in_batch=labels).loss
            if alone.requires_grad:
                alone.backward()
            total += alone.detach()
    for found, given in ((loss, grads), (padded_loss, padded_grads)):
        assert float(found) == pytest.approx(float(total), rel=1e-6)
        for one, other in zip(given, gradients(model.prompts), strict=True):
            assert relative_error(one, other) < 1e-6


@pytest.mark.parametrize("way", ["spans", "padded"])
def test_a_prompt_whose_rows_are_all_empty_has_no_gradient(way: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(CHOICE, way)
    model = mixed("llama", THREE)
    ids, mask = padded([*texts([4, 6]), torch.empty(0, dtype=torch.long)], "right")
    model(ids, mask, labels=supervised(ids, mask), prompt_names=["p0", "p1", "p2"]).loss.backward()
    grad = model.prompts["p2"].embedding.weight.grad
    assert grad is None or not bool(grad.any())


@pytest.mark.parametrize("name", ["llama", "bloom", "gpt2"])
def test_micro_batches_equal_one_batch(name: str) -> None:
    configs = [PrefixTuningConfig(num_virtual_tokens=P, prefix_projection=True), *THREE[1:]]
    model, rows = mixed(name, configs, dtype=torch.float64), texts((9, 3, 5, 4, 7, 6, 2))
    names = ["p0", "p1", "p2", "p0", "p2", "p1", "p0"]
    features = [{"input_ids": row.tolist(), "labels": row.tolist()} for row in rows]
    _, wanted = step(model, **PackingCollator()(features), prompt_names=names, num_items_in_batch=30)
    model.zero_grad()
    calls: list[int] = []
    model.prompts["p0"].register_forward_hook(lambda *_: calls.append(1))
    for part in (slice(0, 3), slice(3, 7)):
        with model.prefix_scope(last=part.stop == 7):
            batch = PackingCollator()(features[part])
            model(**batch, prompt_names=names[part], num_items_in_batch=30).loss.backward()
    assert len(calls) == 1  # the MLP runs once an optimizer step
    for one, other in zip(gradients(model.prompts), wanted, strict=True):
        assert relative_error(one, other) < 1e-6


@pytest.mark.parametrize("autocast", [False, True])
@pytest.mark.parametrize("name", NAMED)
def test_half_precision_is_near_float32(name: str, autocast: bool) -> None:
    """Of the model, or by autocast; the encoder and its gradient are float32."""
    rows = texts((9, 3, 14, 5, 7))
    packed = PackingCollator()([{"input_ids": row.tolist(), "labels": row.tolist()} for row in rows])
    ids, mask = padded(rows, "right")
    right = {"input_ids": ids, "attention_mask": mask, "labels": supervised(ids, mask)}
    loss, grads = step(mixed(name, THREE[:1]), **packed)
    for batch in (packed, right):
        model = mixed(name, THREE[:1])
        model.pack_batches = batch is packed
        if not autocast:
            model.to(torch.bfloat16)
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            found = model(**batch).loss
        found.backward()
        assert float(found.detach()) == pytest.approx(float(loss), rel=5e-3)
        assert gradients(model.prompts)[0].dtype is torch.float32
        assert relative_error(gradients(model.prompts)[0], grads[0]) < 0.06


@pytest.mark.parametrize("name", ["bloom", "gpt2", "llama", "qwen2"])
def test_answers_in_a_padded_batch_are_those_of_rows_alone(name: str) -> None:
    model = mixed(name, THREE).eval()
    rows = texts(LENGTHS)
    ids, mask = padded(rows, "left")
    options = {"max_new_tokens": 6, "do_sample": False, "eos_token_id": None}
    new = model.generate(ids, attention_mask=mask, prompt_names=ROW_NAMES, **options)[:, ids.shape[1] :]
    for at, (row, prompt) in enumerate(zip(rows, ROW_NAMES, strict=True)):
        one = model.generate(row[None], attention_mask=torch.ones(1, len(row)), prompt_names=[prompt], **options)
        assert torch.equal(new[at], one[0, len(row) :])


@pytest.mark.parametrize("name", ["mistral", "gemma3"])
def test_padding_beyond_a_sliding_window(name: str) -> None:
    """Such rows are answered one length after the other, where other prompts would be concatenated."""
    model = mixed(name, THREE).eval()
    ids, mask = padded(texts([4, 12]), "left")
    names = ["p0", "p2"]
    new = model.generate(ids, attention_mask=mask, prompt_names=names, max_new_tokens=5, eos_token_id=None)[:, 12:]
    for at, (row, prompt) in enumerate(zip(texts([4, 12]), names, strict=True)):
        one = model.generate(row[None], prompt_names=[prompt], max_new_tokens=5, eos_token_id=None)
        assert torch.equal(new[at], one[0, len(row) :])


@pytest.mark.parametrize("packs", [True, False])
def test_scores_of_tokens(packs: bool) -> None:
    """Packed and padded: as the logits have them; the first token is unknown behind keys and values and none."""
    model = mixed("llama", THREE).eval()
    rows, names = texts(LENGTHS), ROW_NAMES
    if not packs:
        model._base_obstacle = "a test"
    asked = [(row, place, 7) for row in range(len(rows)) for place in range(len(rows[row]) + 1)]
    found = model.token_answers([row.tolist() for row in rows], TokenQueries.of(asked), prompt_names=names)
    assert not model.shares_texts
    for (row, place, token), score, best in zip(asked, found.log_probs, found.likeliest, strict=True):
        if place == 0:
            assert bool(score.isnan()) == (names[row] != "p1")
            continue
        with torch.no_grad():
            logits = model(rows[row][None], prompt_names=[names[row]]).logits[0, place - 1]
        assert float(score) == pytest.approx(float(logits.log_softmax(0)[token]), abs=1e-4)
        assert int(best) == int(logits.argmax())
    with torch.no_grad():
        first = next(at for at, one in enumerate(asked) if one[:2] == (1, 0))
        alone = model(rows[1][None], labels=rows[1][None], prompt_names=["p1"]).loss * len(rows[1])
        rest = model(rows[1][None], labels=rows[1][None].masked_fill(torch.arange(3) == 0, -100), prompt_names=["p1"])
    own = model.token_answers([rows[1].tolist()], TokenQueries.of([(0, 0, int(rows[1][0]))]), prompt_names=["p1"])
    assert float(own.log_probs[0]) == pytest.approx(-float(alone - rest.loss * 2), abs=1e-4)
    assert bool(found.likeliest[first] >= 0)


# ---- where they start ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("encoder", [{}, {"prefix_projection": True}, None], ids=["table", "projection", "cartridge"])
@pytest.mark.parametrize("name", WITH_CACHE)
def test_from_a_text_is_the_text(name: str, encoder: dict[str, Any] | None) -> None:
    """Behind the keys and values of tokens the model says what it says behind the tokens."""
    base, head, tail = build(name), draw(1, P, seed=3), draw(1, 9)
    config = (
        CartridgeConfig(num_virtual_tokens=P)
        if encoder is None
        else PrefixTuningConfig(num_virtual_tokens=P, **encoder)
    )
    model = PTunedModel(base)
    model.add_prompt("default", config, start=encode_tokens(base, head[0].tolist()))
    with torch.no_grad():
        wanted = base(torch.cat([head, tail], dim=1)).logits[:, P:]
        assert relative_error(model.eval()(tail).logits, wanted) < 1e-5


@pytest.mark.parametrize("encoder", [{}, {"prefix_projection": True}], ids=["table", "projection"])
def test_from_an_input_prompt_is_that_prompt(encoder: dict[str, Any]) -> None:
    """SPoT: a trained prompt runs through the model once, and goes on as keys and values."""
    model = mixed("qwen2", [PromptTuningConfig(num_virtual_tokens=P)]).eval()
    model.add_prompt("deep", PrefixTuningConfig(num_virtual_tokens=P, **encoder), start=model.encode("p0").detach())
    ids = draw(2, 9)
    with torch.no_grad():
        wanted = model(ids, prompt_names="p0").logits
        assert relative_error(model(ids, prompt_names="deep").logits, wanted) < 1e-5


@pytest.mark.parametrize("name", ["llama", "qwen3", "gpt2", "bloom"])
def test_last_and_even_tokens_of_a_text(name: str) -> None:
    """Last tokens with all of the text before them, at the distances of the whole text."""
    base, ids = build(name), draw(1, 20, seed=5)[0].tolist()
    turns = name in ("llama", "qwen3")
    assert counts_distances(base, ids) == turns
    whole = rows_of(encode_tokens(base, ids))
    last = text_rows(base, ids, P, TextTokens.LAST)
    even = text_rows(base, ids, P, TextTokens.EVEN)
    assert text_rows(base, ids, P, TextTokens.FIRST).equal(rows_of(encode_tokens(base, ids[:P])))
    shape = key_value_shape(base)
    values = [at for layer in range(shape.layers) for at in (2 * layer + 1,)]

    def of_values(rows: torch.Tensor) -> torch.Tensor:
        return rows.view(len(rows), 2 * shape.layers, -1)[:, values]

    # Values have no position; keys have where the model turns them.
    assert relative_error(of_values(last), of_values(whole[-P:])) < 1e-5
    assert relative_error(of_values(even), of_values(whole[[0, 5, 10, 14, 19]])) < 1e-5
    assert (relative_error(last, whole[-P:]) > 1e-2) == turns
    # A text behind them sees them as near as behind the whole: its first layer's keys match.
    if turns:
        first = base.model.layers[0].self_attn
        embedded = base.model.layers[0].input_layernorm(base.get_input_embeddings()(torch.tensor([ids[-P:]])))
        cos, sin = base.model.rotary_emb(embedded, torch.arange(P)[None])
        keys = first.k_proj(embedded).view(P, shape.heads, -1)
        if name == "qwen3":
            keys = first.k_norm(keys)
        half = keys.shape[-1] // 2
        turned = keys * cos[0][:, None] + torch.cat([-keys[..., half:], keys[..., :half]], -1) * sin[0][:, None]
        assert relative_error(last.view(P, 2 * shape.layers, -1)[:, 0], turned.flatten(1)) < 1e-5


def test_random_starts_have_the_deviations_of_the_models_own() -> None:
    base = build("llama", num_hidden_layers=3)
    own = rows_of(encode_tokens(base, draw(1, 64, seed=9)[0].tolist())).view(64, 6, -1).transpose(0, 1).flatten(1)
    for projects in (False, True):
        torch.manual_seed(0)
        model = PTunedModel(base, PrefixTuningConfig(num_virtual_tokens=64, prefix_projection=projects))
        drawn = model.encode().detach().view(64, 6, -1).transpose(0, 1).flatten(1)
        torch.testing.assert_close(drawn.std(1), own.std(1), rtol=0.15, atol=0)
        zero = PTunedModel(build("llama"), PrefixTuningConfig(init_weights="zero", prefix_projection=projects))
        assert not bool(zero.encode().any())


def test_frozen_tokens_stay() -> None:
    model = PTunedModel(build("llama"), CartridgeConfig(num_virtual_tokens=P, init="SAMPLE_VOCAB")).train()
    before, ids = model.encode().detach().clone(), draw(2, 6)
    optimizer = torch.optim.AdamW([one for one in model.parameters() if one.requires_grad], lr=0.1)
    model(ids, labels=ids).loss.backward()
    optimizer.step()
    after = model.encode().detach()
    assert torch.equal(after[0], before[0])
    assert bool((after[1:] != before[1:]).any(dim=1).all())
    assert "default.frozen" in dict(model.prompts.named_buffers())


# ---- what is refused -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"num_layers": 3}, r"num_layers=3, but the model keeps keys and values of 2 layers with 2 heads of 8"),
        ({"token_dim": 48, "num_attention_heads": 2}, "token_dim=48, but"),
        ({"num_attention_heads": 8}, "num_attention_heads=8, but"),
    ],
)
def test_sizes_of_another_model(values: dict[str, int], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        PTunedModel(build("llama"), PrefixTuningConfig(num_virtual_tokens=P, **values))


def test_the_models_own_sizes_are_taken_as_peft_takes_them() -> None:
    config = PrefixTuningConfig(num_virtual_tokens=P, num_layers=2, token_dim=32, num_attention_heads=4)
    made = PTunedModel(build("llama"), config).active_peft_config
    assert (made.token_dim, made.num_attention_heads, made.num_layers) == (16, 2, 2)


def test_models_without_keys_and_values_of_one_shape() -> None:
    with pytest.raises(ModelError, match=r"Mamba.*running state.*embedding"):
        PTunedModel(build("mamba"), PrefixTuningConfig())


def test_activation_checkpointing() -> None:
    model = mixed("llama", THREE[:1])
    checkpoint_activations(model.base)
    ids = draw(2, 6)
    with pytest.raises(ModelError, match="'p0' is keys and values of every layer, and activation checkpointing drops"):
        model(ids, labels=ids)
    model.eval()
    model(ids, labels=ids)


def test_what_needs_virtual_token_embeddings() -> None:
    model = mixed("llama", THREE[:1]).eval()
    with pytest.raises(ModelError, match="at least one token of text"):
        model.generate(max_new_tokens=3)
    with pytest.raises(ConfigError, match="no virtual-token embeddings for another encoder"):
        model.add_prompt("b", PromptTuningConfig(num_virtual_tokens=2), start=encode_tokens(model.base, [3, 4]))
    with pytest.raises(ConfigError, match=r"num_frozen_tokens=2 leaves none of the 2"):
        model.add_prompt("c", CartridgeConfig(num_virtual_tokens=2, num_frozen_tokens=2))
    model.capability = type(model.capability)(**{**vars(model.capability), "prefix": False, "reason": "a test"})
    with pytest.raises(
        ModelError, match=r"'p0' is keys and values of every layer, which cannot be concatenated.*a test"
    ):
        model(draw(1, 4))
    with pytest.raises(ModelError, match="needs a model that goes on from them, and a test"):
        model.add_prompt("d", THREE[0])
