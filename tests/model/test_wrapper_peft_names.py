"""PEFT's names: the same arguments and defaults, and what is not supported refused by name."""

from __future__ import annotations

import dataclasses
import inspect
import warnings
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from safetensors.torch import load_file

import ptune
from architectures import build
from prompting import draw, prompt_gradient, relative_error
from ptune.errors import ConfigError, ModelError, PromptError

CLASSES = ["PromptEncoderConfig", "PromptTuningConfig"]
DIFFERENT_DEFAULTS = {
    "num_virtual_tokens": 20,  # PEFT has None, and fails later
    "peft_type": None,  # set by both in __post_init__
}
REFUSED: dict[str, Any] = {
    "task_type": "SEQ_CLASS",
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
        getattr(ptune, name)(num_virtual_tokens=4, **{"task_type": "CAUSAL_LM", argument: REFUSED[argument]})


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


# ---- loading -------------------------------------------------------------------------------------------------------


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    base = build("llama")
    base.save_pretrained(tmp_path / "base")
    base.name_or_path = base.config._name_or_path = str(tmp_path / "base")
    torch.manual_seed(0)
    model = ptune.get_peft_model(base, ptune.PromptEncoderConfig(num_virtual_tokens=4))
    model.save_pretrained(tmp_path / "prompt")
    return tmp_path / "prompt"


def _logits(model: torch.nn.Module) -> torch.Tensor:
    with torch.no_grad():
        return model.eval()(input_ids=draw(2, 7)).logits[:, -7:]


def _loading_script(library: Any, folder: Path) -> list[Any]:
    """What people write to load an adapter, under the names of a library."""
    config = library.PeftConfig.from_pretrained(str(folder))
    seen: list[Any] = [config.base_model_name_or_path, config.num_virtual_tokens, str(config.peft_type)]
    model = library.PeftModel.from_pretrained(build("llama"), str(folder))
    seen += [_logits(model), model.active_adapter, list(model.peft_config), model.active_adapters]
    seen += [model.peft_config["default"].num_virtual_tokens, model.active_peft_config.num_virtual_tokens]
    named = library.PeftModel.from_pretrained(build("llama"), model_id=str(folder), adapter_name="mine")
    seen += [_logits(named), named.active_adapter]
    named.load_adapter(str(folder), adapter_name="second")
    named.set_adapter("second")
    seen += [named.active_adapter, _logits(named)]
    with named.disable_adapter():
        seen.append(_logits(named))
    named.set_adapter("mine")
    named.delete_adapter("second")
    seen.append(sorted(named.peft_config))
    seen.append(type(named.get_base_model()).__name__)
    auto = library.AutoPeftModelForCausalLM.from_pretrained(str(folder))
    seen += [_logits(auto), auto.active_adapter]
    return seen


def test_a_loading_script_moves_over_with_one_import_changed(saved: Path) -> None:
    mine, theirs = _loading_script(ptune, saved), _loading_script(peft, saved)
    for at, (own, other) in enumerate(zip(mine, theirs, strict=True)):
        if isinstance(own, torch.Tensor):
            assert relative_error(own, other) < 1e-5, at
        else:
            assert own == other, at


def test_what_is_loaded_to_train_has_its_encoder(saved: Path) -> None:
    """PEFT has the vectors alone: its P-tuning cannot be trained on."""
    model = ptune.PeftModel.from_pretrained(build("llama"), saved, is_trainable=True)
    ids = draw(2, 7)
    model(ids, labels=ids).loss.backward()
    assert all(one.grad is not None for one in model.prompts["default"].parameters())
    kinds = {name.split(".")[0] for name, _ in model.prompt_encoder["default"].named_parameters()}
    assert kinds == {"embedding", "mlp_head"}
    saved_vectors = load_file(saved / "adapter_model.safetensors")["prompt_embeddings"]
    assert torch.equal(model.get_prompt_embedding_to_save("default"), saved_vectors)
    assert torch.equal(model.get_prompt(3)[2], model.encode())


@pytest.mark.parametrize("kind", ["MLP", "LSTM"])
def test_pefts_own_configurations_and_dictionaries_are_taken(kind: str) -> None:
    values = {"num_virtual_tokens": 5, "encoder_reparameterization_type": kind, "encoder_hidden_size": 8}
    theirs = peft.PromptEncoderConfig(task_type="CAUSAL_LM", **values)
    written = {**theirs.to_dict(), "peft_type": "P_TUNING", "task_type": "CAUSAL_LM"}
    counts = {
        model.get_nb_trainable_parameters()
        for model in (
            ptune.get_peft_model(build("llama"), theirs),
            ptune.get_peft_model(build("llama"), written),
            ptune.get_peft_model(build("llama"), ptune.PromptEncoderConfig(**values)),
            peft.get_peft_model(build("llama"), theirs),
        )
    }
    assert len(counts) == 1
    model = ptune.get_peft_model(build("llama"), peft.PromptTuningConfig(num_virtual_tokens=3, task_type="CAUSAL_LM"))
    model.add_adapter("other", theirs)
    assert [one.num_virtual_tokens for one in model.peft_config.values()] == [3, 5]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"peft_type": "P_TUNING", "num_virtual_tokens": 3, "lora_alpha": 8}, "lora_alpha has no meaning"),
        ({"num_virtual_tokens": 3}, "peft_type=None is not a soft prompt"),
        (7, "int is no configuration of a prompt"),
        (peft.LoraConfig(), "'LORA' is not a soft prompt.*P_TUNING, PROMPT_TUNING, PREFIX_TUNING, CARTRIDGE"),
    ],
    ids=str,
)
def test_other_configurations_are_refused(given: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        ptune.get_peft_model(build("llama"), given)


def test_deeper_mlps_are_said_to_be_so() -> None:
    config = {"num_virtual_tokens": 3, "encoder_hidden_size": 8}
    with pytest.warns(UserWarning, match=r"encoder_num_layers=5.*PEFT.*builds 2"):
        deep = ptune.get_peft_model(build("llama"), ptune.PromptEncoderConfig(**config, encoder_num_layers=5))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        plain = ptune.get_peft_model(build("llama"), ptune.PromptEncoderConfig(**config))
        ptune.get_peft_model(
            build("llama"), ptune.PromptEncoderConfig(encoder_reparameterization_type="LSTM", encoder_num_layers=3)
        )
    assert deep.get_nb_trainable_parameters()[0] - plain.get_nb_trainable_parameters()[0] == 3 * (8 * 8 + 8)


def test_the_base_first_and_nothing_else(saved: Path) -> None:
    with pytest.raises(ConfigError, match="the loaded model first"):
        ptune.PeftModel.from_pretrained(str(saved), build("llama"))
    with pytest.raises(ConfigError, match="leads out of the folder"):
        ptune.PeftModel.from_pretrained(build("llama"), str(saved), subfolder="../base")
    with pytest.raises(PromptError, match="no prompt folder"):
        ptune.PeftModel.from_pretrained(build("llama"), str(saved), subfolder="other")


def test_adapter_names_are_pefts_prompt_names() -> None:
    model = ptune.get_peft_model(build("llama"), ptune.PromptTuningConfig(num_virtual_tokens=4)).eval()
    model.add_prompt("other", ptune.PromptTuningConfig(num_virtual_tokens=3))
    ids = draw(3, 7)
    with torch.no_grad():
        found = model(ids, adapter_names=["other", "__base__", "default"]).logits
        assert torch.equal(found, model(ids, prompt_names=["other", None, "default"]).logits)
    answers = [{"adapter_names": ["other", "__base__", "default"]}, {"prompt_names": ["other", None, "default"]}]
    assert torch.equal(*(model.generate(ids, max_new_tokens=3, do_sample=False, **each) for each in answers))


# ---- in front of PEFT's own ----------------------------------------------------------------------------------------


def test_a_prompt_in_front_of_injected_layers() -> None:
    """LoRA's weights are frozen with the model, and stay in it."""
    torch.manual_seed(0)
    lora = peft.get_peft_model(build("llama"), peft.LoraConfig(task_type="CAUSAL_LM", init_lora_weights=False))
    ids = draw(2, 7)
    with torch.no_grad():
        alone = lora.eval()(ids).logits
    model = ptune.get_peft_model(lora, ptune.PromptEncoderConfig(num_virtual_tokens=4))
    with torch.no_grad(), model.disable_prompt():
        assert torch.equal(model.eval()(ids).logits, alone)
    assert {name.split(".")[0] for name, one in model.named_parameters() if one.requires_grad} == {"prompts"}
    model.pack_batches = False
    loss, gradient = prompt_gradient(model, input_ids=ids, labels=ids)
    model.pack_batches = True
    packed_loss, packed = prompt_gradient(model, input_ids=ids, labels=ids)
    assert model.packs
    assert relative_error(packed_loss, loss) < 1e-5
    assert relative_error(packed, gradient) < 1e-4


def test_a_prompt_in_front_of_a_prompt_is_refused() -> None:
    theirs = peft.get_peft_model(build("llama"), peft.PromptTuningConfig(num_virtual_tokens=3, task_type="CAUSAL_LM"))
    mine = ptune.get_peft_model(build("llama"), ptune.PromptTuningConfig(num_virtual_tokens=3))
    for model, message in ((theirs, "a prompt of PEFT's"), (mine, "has soft prompts already")):
        with pytest.raises(ModelError, match=message):
            ptune.PTunedModel(model)
