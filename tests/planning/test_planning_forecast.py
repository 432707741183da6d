"""The forecast: the tutorial's counts exactly, and figures that add up."""

from __future__ import annotations

from dataclasses import asdict

import pytest
import torch
from transformers import BloomConfig, T5Config

from architectures import CONTEXT, build
from ptune.errors import ConfigError, ModelError
from ptune.methods.apply import MethodSettings, apply_method
from ptune.methods.names import METHODS
from ptune.planning.clock import MachineRates, calibrate
from ptune.planning.forecast import Forecaster, forecast_all

BLOOM_1B4_ZH = BloomConfig(vocab_size=46145, hidden_size=2048, n_layer=24, n_head=16)
SIZES = MethodSettings(num_virtual_tokens=4, lora_r=2)


@pytest.fixture(scope="module")
def small() -> Forecaster:
    return Forecaster(build("llama", num_hidden_layers=4).config, SIZES)


def test_the_tutorials_parameter_table():
    told = Forecaster(BLOOM_1B4_ZH)
    mlp, lstm = (told.forecast(name, 1, 256) for name in ("peft-mlp", "peft-lstm"))
    assert told.base_parameters == 1_303_111_680
    assert (mlp.trainable_parameters, f"{mlp.trainable_percent:.4f}") == (12_609_536, "0.9584")
    assert (lstm.trainable_parameters, f"{lstm.trainable_percent:.4f}") == (193_030_144, "12.9019")
    # What the tutorial calls the model's size is the model with ten virtual tokens of prompt tuning.
    assert told.forecast("prompt-tuning", 1, 256).all_parameters == 1_303_132_160
    for name, count, percent in (("prefix", 983_040, "0.0754"), ("prefix-mlp", 205_641_728, "13.6299")):
        deep = told.forecast(name, 1, 256)
        assert (deep.trainable_parameters, f"{deep.trainable_percent:.4f}") == (count, percent)
    for own, peft in (("mlp", mlp), ("lstm", lstm)):
        assert told.forecast(own, 1, 256).trainable_parameters == peft.trainable_parameters


def test_full_fine_tuning_of_the_tutorials_model_takes_what_four_copies_take():
    told = Forecaster(BLOOM_1B4_ZH).forecast("full", 1, 256)
    copies = 4 * 1_303_111_680 * 4 / 2**30  # weights, gradients and AdamW's two moments
    assert copies < told.memory.total < 1.15 * copies
    assert told.memory.weights + told.memory.optimizer == pytest.approx(3 / 4 * copies, rel=1e-3)


@pytest.mark.parametrize("method", METHODS)
def test_parameters_are_those_of_the_adapted_model(method: str):
    base = build("llama")
    before = sum(weight.numel() for weight in base.parameters())
    model = apply_method(method, base, SIZES)
    trainable = sum(weight.numel() for weight in model.parameters() if weight.requires_grad)
    told = Forecaster(base.config, SIZES).forecast(method, 2, 16)
    assert told.trainable_parameters == trainable
    assert told.base_parameters == before
    assert told.memory.weights == pytest.approx(
        sum(part.numel() * part.element_size() for part in {*model.parameters(), *model.buffers()}) / 2**30, rel=1e-6
    )


def test_the_parts_add_up_and_grow(small: Forecaster):
    found = forecast_all(small, ("full", "mlp", "lora"), (2, 4), (16, 64))
    assert len(found) == 12
    for one in found:
        assert min(asdict(one.memory).values()) >= 0
    by = {(one.method, one.rows, one.length): one for one in found}
    for method in ("full", "mlp", "lora"):
        for length in (16, 64):
            totals = [by[method, rows, length].memory.total for rows in (2, 4)]
            assert totals == sorted(totals)
        assert by[method, 4, 64].memory.total > by[method, 4, 16].memory.total
        assert by[method, 4, 64].flops > 3.5 * by[method, 4, 16].flops


def test_a_prompt_takes_less_than_full_fine_tuning_and_less_than_peft(small: Forecaster):
    full, mlp, peft = (small.forecast(name, 8, 100).memory for name in ("full", "mlp", "peft-mlp"))
    assert mlp.total < peft.total < full.total
    assert mlp.logits < peft.logits


@pytest.mark.parametrize(("method", "factor"), [("mlp", 512 / 48), ("full", 1)])
def test_the_head_takes_more_positions_at_once_on_a_gpu(method: str, factor: float):
    config = build("llama", vocab_size=131072).config
    here, there = (
        Forecaster(config, SIZES, device=device).forecast(method, 16, 64).memory for device in ("cpu", "cuda")
    )
    assert there.logits == pytest.approx(factor * here.logits, rel=0.01)


def test_half_the_bytes_in_bfloat16():
    config = build("llama").config
    wide, narrow = (Forecaster(config, SIZES, dtype=dtype) for dtype in ("float32", "bfloat16"))
    frozen = [told.forecast("prompt-tuning", 4, 32).memory for told in (wide, narrow)]
    assert frozen[1].weights == pytest.approx(frozen[0].weights / 2, rel=0.05)
    assert frozen[1].activations < 0.75 * frozen[0].activations
    # What trains is float32 whatever the frozen model is.
    assert narrow.forecast("full", 4, 32).memory.weights == wide.forecast("full", 4, 32).memory.weights


@pytest.mark.parametrize("method", ["full", "mlp"])
def test_the_largest_batch_is_the_last_that_fits(small: Forecaster, method: str):
    room = small.forecast(method, 37, 64).memory.total
    assert small.largest_batch(method, 64, room) == 37
    assert small.largest_batch(method, 64, room - 1e-9) == 36
    assert small.largest_batch(method, 64, small.forecast(method, 1, 64).memory.total) == 1
    assert small.largest_batch(method, 64, 1e-6) == 0
    assert small.largest_batch(method, 64, 1e9, most=100) == 100


def test_rows_that_do_not_fit_the_context(small: Forecaster):
    with pytest.raises(ConfigError, match=rf"4 virtual tokens and rows of {CONTEXT} tokens exceed .* {CONTEXT} tokens"):
        small.forecast("mlp", 1, CONTEXT)
    assert small.forecast("lora", 1, CONTEXT).rows == 1


@pytest.mark.parametrize("method", ["prefix", "prefix-mlp"])
def test_checkpointing_does_not_go_with_keys_and_values(method: str):
    told = Forecaster(build("llama").config, SIZES, checkpointing=True)
    assert told.forecast("mlp", 1, 16).rows == 1
    with pytest.raises(ConfigError, match=f"drops the keys and values that {method} gives"):
        told.forecast(method, 1, 16)


def test_a_model_that_is_no_decoder():
    with pytest.raises(ModelError, match="no model can be made of this configuration"):
        Forecaster(T5Config())


def test_time_adds_up(small: Forecaster):
    rates = MachineRates(
        flops_per_second=1e8, own_flops_per_second=1e9, bytes_per_second=1e9, seconds_per_operation=1e-6
    )
    one = small.forecast("mlp", 4, 64)
    assert rates.step_seconds(one) == pytest.approx((one.flops + one.moved_bytes) / 1e9 + one.operations / 1e6)
    other = small.forecast("lora", 4, 64)  # not by ptune's kernels
    assert rates.step_seconds(other) == pytest.approx(
        other.flops / 1e8 + other.moved_bytes / 1e9 + other.operations / 1e6
    )
    told = Forecaster(small.config, SIZES, accumulation=4).forecast("mlp", 4, 64)
    assert rates.step_seconds(told) > 3.5 * rates.step_seconds(one)
    assert told.tokens == 4 * one.tokens


def test_this_machine_has_rates():
    rates = calibrate(tokens=64, width=32, dtype=torch.float32, device="cpu")
    assert rates.flops_per_second > 1e8
    assert rates.bytes_per_second > 1e8
    assert 0 < rates.seconds_per_operation < 1e-3
