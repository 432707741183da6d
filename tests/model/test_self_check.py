"""The self-check: a class that is not what it says is caught when it is wrapped, and what comes out is right."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from architectures import ARCHITECTURES, build
from prompting import draw, padded, relative_error, texts, tokens_as_prompt
from ptune import PromptEncoderConfig, PTunedModel, get_peft_model
from ptune.cli.train import build_parser
from ptune.errors import ModelError
from ptune.training import run_model
from ptune.training import train as training

PROMPT = draw(1, 5, seed=7)[0]


def made(kind: type[LlamaForCausalLM]) -> Any:
    torch.manual_seed(0)
    model = kind(LlamaConfig(**build("llama").config.to_diff_dict()))
    model.load_state_dict(build("llama").state_dict())
    return model.eval().double()


class CountsPadding(LlamaForCausalLM):
    """It has position ids, and counts positions by itself all the same."""

    def forward(
        self,
        input_ids: Any = None,
        attention_mask: Any = None,
        position_ids: Any = None,
        past_key_values: Any = None,
        **kwargs: Any,
    ) -> Any:
        return super().forward(input_ids, attention_mask=attention_mask, past_key_values=past_key_values, **kwargs)


class ForgetsWhatWasBefore(LlamaForCausalLM):
    """It takes a cache, and starts at position 0 behind it."""

    def forward(
        self,
        input_ids: Any = None,
        attention_mask: Any = None,
        position_ids: Any = None,
        past_key_values: Any = None,
        inputs_embeds: Any = None,
        **kwargs: Any,
    ) -> Any:
        text = input_ids if inputs_embeds is None else inputs_embeds
        if past_key_values is not None and past_key_values.get_seq_length():
            position_ids = torch.arange(text.shape[1], device=text.device)[None]
        given = {"position_ids": position_ids, "past_key_values": past_key_values, "inputs_embeds": inputs_embeds}
        return super().forward(input_ids, attention_mask=attention_mask, **given, **kwargs)


class SeesTheTextAhead(LlamaForCausalLM):
    """Something of all tokens goes to each."""

    def forward(self, input_ids: Any = None, inputs_embeds: Any = None, **kwargs: Any) -> Any:
        embeds = self.get_input_embeddings()(input_ids) if inputs_embeds is None else inputs_embeds
        return super().forward(inputs_embeds=embeds + 0.1 * embeds.mean(dim=1, keepdim=True), **kwargs)


class TakesIdsAlone(LlamaForCausalLM):
    """Its embedding layer may be exchanged: then virtual tokens go by ids."""

    def forward(self, input_ids: Any = None, inputs_embeds: Any = None, **kwargs: Any) -> Any:
        if inputs_embeds is not None:
            raise NotImplementedError("ids, please")
        return super().forward(input_ids, **kwargs)


class TakesNoVectors(LlamaForCausalLM):
    """It looks its embeddings up without the layer that has them."""

    def forward(self, input_ids: Any = None, inputs_embeds: Any = None, **kwargs: Any) -> Any:
        if inputs_embeds is not None:
            raise NotImplementedError("ids, please")
        return super().forward(inputs_embeds=self.model.embed_tokens.weight[input_ids], **kwargs)


def wrong_when_packed(monkeypatch: pytest.MonkeyPatch) -> Any:
    """A model whose rotary angles are those of another model, where rows are packed."""
    base = made(LlamaForCausalLM)
    rotary = type(base.model.rotary_emb)
    plain = rotary.forward

    def forward(self: Any, x: torch.Tensor, position_ids: torch.Tensor) -> Any:
        restarts = bool((position_ids[0].diff() < 0).any())
        return plain(self, x, 2 * position_ids if restarts else position_ids)

    monkeypatch.setattr(rotary, "forward", forward)
    return base


def assert_right(model: PTunedModel, bare: Any) -> None:
    """Logits, loss and answers behind a prompt of real tokens are those of the bare model on the whole text."""
    rows = texts((7, 4))
    for side in ("left", "right"):
        ids, mask = padded(rows, side)
        with torch.no_grad():
            found = model.eval()(ids, attention_mask=mask).logits
            answers = model.generate(ids, attention_mask=mask, max_new_tokens=4, do_sample=False, pad_token_id=0)
        for row, (text, own) in enumerate(zip(rows, mask.bool(), strict=True)):
            whole = torch.cat([PROMPT, text])[None]
            with torch.no_grad():
                wanted = bare(whole, use_cache=False).logits[0, len(PROMPT) :]
                answer = bare.generate(whole, max_new_tokens=4, do_sample=False, use_cache=False, pad_token_id=0)
            assert relative_error(found[row][own], wanted) < 1e-6
            assert answers[row, -4:].tolist() == answer[0, -4:].tolist()


def test_a_model_that_is_what_it_says_has_no_notes() -> None:
    for name in ("llama", "gpt2", "gemma3"):
        assert PTunedModel(ARCHITECTURES[name]()).capability.notes == ()


def test_padding_that_is_counted_is_noticed() -> None:
    model = tokens_as_prompt(made(CountsPadding), PROMPT)
    assert not model.capability.left_padding
    (note,) = model.capability.notes
    assert note.startswith("CountsPadding, tried with padding on the left, is ")
    assert note.endswith("% off; rows are answered by length")
    assert_right(model, made(CountsPadding))


def test_a_cache_that_is_not_gone_on_from_is_noticed() -> None:
    model = tokens_as_prompt(made(ForgetsWhatWasBefore), PROMPT)
    assert not model.capability.prefix
    assert "tried with the prompt as keys and values, is" in model.capability.reason
    assert not model.packs
    assert_right(model, made(LlamaForCausalLM))


def test_rows_that_cannot_be_kept_apart_are_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    base = wrong_when_packed(monkeypatch)
    model = tokens_as_prompt(base, PROMPT)
    assert not model.packs
    assert "LlamaForCausalLM, tried with packed rows, is" in str(model.packing_obstacle)
    assert_right(model, base)


@pytest.mark.parametrize("wrap", [PTunedModel, lambda base: get_peft_model(base, PromptEncoderConfig())])
def test_what_cannot_be_right_is_refused(wrap: Any) -> None:
    with pytest.raises(ModelError, match=r"not a causal language model: it sees the text ahead \(.*by \d+\.\d%\)"):
        wrap(made(SeesTheTextAhead))
    with pytest.raises(ModelError, match="TakesNoVectors cannot be run on virtual tokens: ids, please"):
        wrap(made(TakesNoVectors))


def test_a_model_of_ids_alone_goes_by_ids() -> None:
    model = tokens_as_prompt(made(TakesIdsAlone), PROMPT)
    assert model.capability.filler_id is not None
    assert_right(model, made(LlamaForCausalLM))


def test_it_can_be_left_out() -> None:
    model = get_peft_model(made(CountsPadding), PromptEncoderConfig(), self_check=False)
    assert model.capability.left_padding
    assert not model.capability.notes
    PTunedModel(made(SeesTheTextAhead), self_check=False)
    assert build_parser().parse_known_args(["--no-self-check"])[0].self_check is False


def test_it_leaves_no_trace() -> None:
    base = build("llama").train()
    base.model.layers[0].eval()
    modes = [module.training for module in base.modules()]
    weights = {name: weight.clone() for name, weight in base.named_parameters()}
    torch.manual_seed(3)
    before = torch.random.get_rng_state()
    PTunedModel(base)
    assert torch.equal(torch.random.get_rng_state(), before)
    assert [module.training for module in base.modules()] == modes
    assert all(torch.equal(weight, weights[name]) for name, weight in base.named_parameters())
    assert all(weight.grad is None for weight in base.parameters())
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in base.modules())


def test_training_says_what_is_done_in_another_way(
    tiny_model_dir: Any, tmp_path: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    load = run_model.load_base

    def changed(*args: Any, **options: Any) -> Any:
        model = load(*args, **options)
        model.__class__ = CountsPadding
        return model

    monkeypatch.setattr(run_model, "load_base", changed)
    data = tmp_path / "rows.json"
    data.write_text('[{"instruction": "a", "output": "b"}]')
    recipe = training.TrainRecipe(model=str(tiny_model_dir), data=str(data), output=str(tmp_path / "out"))
    training.train(recipe, {"max_steps": 1, "use_cpu": True})
    said = " ".join(capsys.readouterr().err.split())
    assert "CountsPadding, tried with padding on the left, is" in said
    assert "rows are answered by length" in said
