"""Where a prompt starts: exactly at the vectors of a text, or at the scale of the model's embeddings."""

from __future__ import annotations

import pytest
import torch
from transformers import PreTrainedTokenizerFast

from architectures import ARCHITECTURES, HIDDEN, VOCABULARY, build
from ptune import PromptEncoderConfig, PromptTuningConfig, get_peft_model
from ptune.errors import ConfigError

TEXT = "Where is my order?"


def _config(kind: str, *, tokens: int = 9, init: str = "RANDOM", text: str | None = None, width: int = 160) -> object:
    if kind == "tuning":
        return PromptTuningConfig(num_virtual_tokens=tokens, prompt_tuning_init=init, prompt_tuning_init_text=text)
    return PromptEncoderConfig(
        num_virtual_tokens=tokens,
        encoder_reparameterization_type=kind,
        encoder_hidden_size=width,
        init=init,
        init_text=text,
    )


@pytest.mark.parametrize("kind", ["EMBEDDING", "RESIDUAL", "MLP", "LSTM", "tuning"])
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_text_gives_exactly_its_vectors(name: str, kind: str, tiny_tokenizer: PreTrainedTokenizerFast) -> None:
    base = ARCHITECTURES[name]()
    ids = tiny_tokenizer(TEXT, add_special_tokens=False)["input_ids"]
    for tokens in (3, len(ids), 2 * len(ids) + 1):  # cut, whole, repeated
        model = get_peft_model(base, _config(kind, tokens=tokens, init="TEXT", text=TEXT), tokenizer=tiny_tokenizer)
        wanted = base.get_input_embeddings()(torch.tensor((ids * 3)[:tokens]))
        if kind in ("MLP", "LSTM"):
            torch.testing.assert_close(model.encode(), wanted, rtol=0, atol=1e-4 * float(wanted.detach().std()))
        else:
            assert torch.equal(model.encode(), wanted)


def test_gemma_vectors_carry_the_models_own_scale(tiny_tokenizer: PreTrainedTokenizerFast) -> None:
    base = build("gemma3")
    model = get_peft_model(base, _config("EMBEDDING", init="TEXT", text=TEXT), tokenizer=tiny_tokenizer)
    ids = torch.tensor(tiny_tokenizer(TEXT)["input_ids"][:9])
    torch.testing.assert_close(model.encode(), base.get_input_embeddings().weight[ids] * HIDDEN**0.5)


@pytest.mark.parametrize("kind", ["EMBEDDING", "RESIDUAL", "tuning"])
def test_sampled_vocabulary_gives_different_ordinary_tokens(kind: str, tiny_tokenizer: PreTrainedTokenizerFast) -> None:
    base = build("llama")
    model = get_peft_model(base, _config(kind, tokens=120, init="SAMPLE_VOCAB"), tokenizer=tiny_tokenizer)
    table = base.get_input_embeddings().weight
    same = (model.encode()[:, None] == table[None]).all(dim=-1)
    chosen = same.float().argmax(dim=1).tolist()
    assert bool(same.any(dim=1).all())
    assert len(set(chosen)) == 120
    assert not set(chosen) & set(tiny_tokenizer.all_special_ids)


@pytest.mark.parametrize("kind", ["MLP", "LSTM", "EMBEDDING", "RESIDUAL", "tuning"])
@pytest.mark.parametrize("name", ["bloom", "gemma3"])
def test_the_scale_is_that_of_the_models_embeddings(
    name: str, kind: str, tiny_tokenizer: PreTrainedTokenizerFast
) -> None:
    base = ARCHITECTURES[name]()
    wanted = float(base.get_input_embeddings()(torch.arange(VOCABULARY)).std())
    for init, text in (("RANDOM", None), ("TEXT", TEXT), ("SAMPLE_VOCAB", None)):
        model = get_peft_model(base, _config(kind, tokens=40, init=init, text=text), tokenizer=tiny_tokenizer)
        assert abs(float(model.encode().std()) / wanted - 1) < 0.2, init


@pytest.mark.parametrize("kind", ["MLP", "LSTM", "EMBEDDING", "RESIDUAL"])
def test_before_training_the_loss_is_that_of_the_text_in_front(
    kind: str, tiny_tokenizer: PreTrainedTokenizerFast
) -> None:
    base = build("llama")
    front = torch.tensor([tiny_tokenizer(TEXT, add_special_tokens=False)["input_ids"]])
    ids = torch.arange(5, 25).reshape(2, 10)
    labels = torch.cat([torch.full((2, front.shape[1]), -100), ids], dim=1)
    wanted = base(torch.cat([front.expand(2, -1), ids], dim=1), labels=labels).loss
    config = _config(kind, tokens=front.shape[1], init="TEXT", text=TEXT)
    model = get_peft_model(base, config, tokenizer=tiny_tokenizer).eval()
    assert abs(float(model(ids, labels=ids).loss) / float(wanted) - 1) < 1e-5


@pytest.mark.parametrize("kind", ["MLP", "LSTM", "EMBEDDING", "RESIDUAL"])
def test_a_prompt_starts_at_given_vectors(kind: str) -> None:
    model = get_peft_model(build("llama"), _config("EMBEDDING"))
    for given in (4, 9, 12):  # repeated, as they are, cut
        vectors = torch.randn(given, HIDDEN)
        name = f"from-{given}"
        model.add_prompt(name, _config(kind), start=vectors)
        torch.testing.assert_close(model.encode(name), vectors.repeat(3, 1)[:9], rtol=0, atol=1e-4)


@pytest.mark.parametrize("kind", ["MLP", "LSTM"])
def test_too_narrow_for_given_vectors(kind: str) -> None:
    model = get_peft_model(build("llama"), _config("EMBEDDING"))
    with pytest.raises(ConfigError, match=r"last layer reads (8|16) numbers.*20 given vectors") as caught:
        model.add_prompt("narrow", _config(kind, tokens=20, width=8), start=torch.randn(20, HIDDEN))
    assert "encoder_hidden_size" in str(caught.value)
    assert model.prompt_names == ["default"]


def test_the_seed_decides() -> None:
    vectors = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        vectors.append(get_peft_model(build("llama"), _config("LSTM")).encode())
    assert torch.equal(vectors[0], vectors[1])
    assert not torch.equal(vectors[0], vectors[2])


def test_what_cannot_be_a_start_is_refused(tiny_tokenizer: PreTrainedTokenizerFast) -> None:
    base = build("llama")
    with pytest.raises(ConfigError, match="needed with TEXT"):
        _config("MLP", init="TEXT")
    with pytest.raises(ConfigError, match="not TEXT"):
        _config("MLP", init="SAMPLE_VOCAB", text=TEXT)
    with pytest.raises(ConfigError, match="needs a tokenizer"):
        get_peft_model(base, _config("MLP", init="TEXT", text=TEXT))
    with pytest.raises(ConfigError, match=r"127.*124 ordinary tokens"):
        get_peft_model(base, _config("MLP", tokens=127, init="SAMPLE_VOCAB"), tokenizer=tiny_tokenizer)
