"""PEFT's names: the same arguments and defaults, and what is not supported refused by name."""

from __future__ import annotations

import dataclasses
import inspect
from typing import Any

import peft
import pytest

import ptune
from architectures import build
from ptune.errors import ConfigError

CLASSES = ["PromptEncoderConfig", "PromptTuningConfig"]
DIFFERENT_DEFAULTS = {
    "num_virtual_tokens": 20,  # PEFT has None, and fails later
    "peft_type": None,  # set by both in __post_init__
}
REFUSED: dict[str, Any] = {
    "task_type": "SEQ_CLS",
    "num_transformer_submodules": 2,
    "modules_to_save": ["lm_head"],
    "auto_mapping": {"base_model_class": "X"},
    "peft_type": "LORA",
}


def _plain(value: Any) -> Any:
    return getattr(value, "value", value)


@pytest.mark.parametrize("name", CLASSES)
def test_every_argument_of_peft_is_taken_with_its_default(name: str) -> None:
    theirs, mine = getattr(peft, name), getattr(ptune, name)
    own = {item.name: item for item in dataclasses.fields(mine)}
    for item in dataclasses.fields(theirs):
        assert item.name in own, item.name
        wanted = DIFFERENT_DEFAULTS.get(item.name, _plain(item.default))
        assert _plain(own[item.name].default) == wanted, item.name
    # Each can be given PEFT's own value.
    filled = theirs(num_virtual_tokens=4)
    taken = {item.name: getattr(filled, item.name) for item in dataclasses.fields(theirs)}
    assert mine(**taken).num_virtual_tokens == 4


@pytest.mark.parametrize("argument", REFUSED)
@pytest.mark.parametrize("name", CLASSES)
def test_what_is_not_supported_is_refused_by_name(name: str, argument: str) -> None:
    with pytest.raises(ConfigError, match=argument):
        getattr(ptune, name)(num_virtual_tokens=4, **{argument: REFUSED[argument]})


@pytest.mark.parametrize("name", ["PromptEncoderReparameterizationType", "PromptTuningInit", "TaskType"])
def test_enums_have_pefts_members(name: str) -> None:
    from peft.tuners.p_tuning import PromptEncoderReparameterizationType

    theirs = {**vars(peft), "PromptEncoderReparameterizationType": PromptEncoderReparameterizationType}[name]
    mine = getattr(ptune, name)
    for member in theirs:
        assert mine[member.name].value == member.value
        # PEFT's own member is taken where ours is.
        assert mine(member.value) == member


@pytest.mark.parametrize("kind", ["MLP", "mlp", "LSTM"])
def test_names_of_a_reparameterization_as_text(kind: str) -> None:
    config = ptune.PromptEncoderConfig(num_virtual_tokens=3, encoder_reparameterization_type=kind)
    assert config.encoder_reparameterization_type is ptune.PromptEncoderReparameterizationType[kind.upper()]


def test_all_faults_come_at_once() -> None:
    with pytest.raises(ConfigError) as caught:
        ptune.PromptEncoderConfig(
            num_virtual_tokens=0,
            encoder_reparameterization_type="LSTMM",
            encoder_hidden_size=-1,
            encoder_num_layers=0,
            encoder_dropout=1.0,
            task_type="CAUSAL",
        )
    for part in (
        "num_virtual_tokens must be a whole number of at least 1, not 0",
        "Did you mean 'LSTM'?",
        "encoder_hidden_size",
        "encoder_num_layers",
        "encoder_dropout must be in [0, 1)",
        "Did you mean 'CAUSAL_LM'?",
    ):
        assert part in str(caught.value)


@pytest.mark.parametrize("value", [True, 2.0, "4", -1])
def test_virtual_tokens_are_a_whole_number(value: Any) -> None:
    with pytest.raises(ConfigError, match="num_virtual_tokens"):
        ptune.PromptTuningConfig(num_virtual_tokens=value)


def test_remote_code_of_a_tokenizer_is_refused() -> None:
    with pytest.raises(ConfigError, match="trust_remote_code"):
        ptune.PromptTuningConfig(
            num_virtual_tokens=4,
            prompt_tuning_init="TEXT",
            prompt_tuning_init_text="a",
            tokenizer_name_or_path="x",
            tokenizer_kwargs={"trust_remote_code": True},
        )


def test_get_peft_model_takes_pefts_arguments() -> None:
    theirs, mine = (inspect.signature(module.get_peft_model).parameters for module in (peft, ptune))
    assert list(mine)[: len(theirs)] == list(theirs)
    for name, parameter in theirs.items():
        assert mine[name].default == parameter.default, name


def test_get_peft_model_honours_or_refuses_each() -> None:
    config = ptune.PromptTuningConfig(num_virtual_tokens=4)
    model = ptune.get_peft_model(build("llama"), config, "mine", revision="main", low_cpu_mem_usage=True)
    assert model.prompt_names == ["mine"]
    assert model.prompt_configs["mine"].revision == "main"
    with pytest.raises(ConfigError, match="mixed=True"):
        ptune.get_peft_model(build("llama"), config, mixed=True)
    with pytest.raises(ConfigError, match="autocast_adapter_dtype=False"):
        ptune.get_peft_model(build("llama"), config, autocast_adapter_dtype=False)
    with pytest.raises(ConfigError, match=r"peft_type='LORA' is not a soft prompt"):
        ptune.get_peft_model(build("llama"), peft.LoraConfig())


def test_print_trainable_parameters_is_pefts_line(capsys: pytest.CaptureFixture[str]) -> None:
    sizes = {"num_virtual_tokens": 4, "encoder_hidden_size": 8}
    ptune.get_peft_model(build("gpt2"), ptune.PromptEncoderConfig(**sizes)).print_trainable_parameters()
    mine = capsys.readouterr().out
    peft.get_peft_model(
        build("gpt2"), peft.PromptEncoderConfig(task_type="CAUSAL_LM", **sizes)
    ).print_trainable_parameters()
    assert mine == capsys.readouterr().out
