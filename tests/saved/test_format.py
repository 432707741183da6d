"""A prompt folder: what is written, read back, and noticed when it is damaged."""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from architectures import build
from prompting import draw, relative_error
from ptune import Answerer, PromptEncoderConfig, PromptTuningConfig, PTunedModel
from ptune.errors import OutputError, PromptError
from ptune.saved import files
from ptune.saved import format as layout
from ptune.saved.format import SavedPrompt, read_prompt, write_prompt
from ptune.saved.opened_folder import open_folder

P, D = 3, 4
FILES = {"adapter_config.json", "adapter_model.safetensors", "encoder.safetensors", "ptune.json", "README.md"}


def _prompt(**details: Any) -> SavedPrompt:
    vectors = torch.arange(P * D, dtype=torch.float32).reshape(P, D)
    config = PromptTuningConfig(num_virtual_tokens=P, token_dim=D, base_model_name_or_path="some/model")
    return SavedPrompt(config=config, vectors=vectors, encoder={"embedding.weight": vectors}, details=details)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_prompt(tmp_path / "prompt", _prompt(template="tutorial"))


@pytest.mark.parametrize(
    "config",
    [
        PromptTuningConfig(num_virtual_tokens=P, token_dim=D),
        PromptTuningConfig(
            num_virtual_tokens=P, token_dim=D, prompt_tuning_init="TEXT", prompt_tuning_init_text="Sort | this\nmail"
        ),
        PromptEncoderConfig(
            num_virtual_tokens=P,
            token_dim=D,
            encoder_reparameterization_type="LSTM",
            encoder_dropout=0.25,
            encoder_num_layers=3,
            encoder_hidden_size=7,
            revision="v1",
        ),
        PromptEncoderConfig(
            num_virtual_tokens=P, token_dim=D, encoder_reparameterization_type="RESIDUAL", init_text="Größe 软"
        ),
    ],
    ids=lambda config: type(config).__name__,
)
def test_round_trip(config: PromptEncoderConfig | PromptTuningConfig, tmp_path: Path) -> None:
    vectors = torch.randn(P, D)
    encoder = {"embedding.weight": torch.randn(P, D), "mlp_head.0.bias": torch.randn(5)}
    details = {"template": "tutorial", "metrics": {"eval_loss": 1.25}, "data": "a|b\nc"}
    target = write_prompt(
        tmp_path / "a" / "b", SavedPrompt(config=config, vectors=vectors, encoder=encoder, details=details)
    )
    assert {path.name for path in target.iterdir()} == FILES
    found = read_prompt(target)
    assert found.config == config
    assert torch.equal(found.vectors, vectors)
    assert found.encoder is not None
    assert all(torch.equal(found.encoder[key], value) for key, value in encoder.items())
    assert {key: found.details[key] for key in details} == details


def test_writing_again_replaces_and_leaves_other_files_alone(folder: Path) -> None:
    (folder / "metrics.jsonl").write_text("{}")
    before = {path.name for path in folder.iterdir()}
    write_prompt(folder, _prompt(template="chat"))
    assert {path.name for path in folder.iterdir()} == before
    assert open_folder(folder).details["template"] == "chat"


def test_a_write_that_fails_leaves_what_was_there(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = {path.name: path.read_bytes() for path in folder.iterdir()}

    def full(*_args: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("ptune.saved.files.os.fsync", full)
    with pytest.raises(OutputError, match=r"cannot write .*adapter_config.json: No space left"):
        write_prompt(folder, _prompt(template="chat"))
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


def test_a_file_in_the_place_of_the_folder(tmp_path: Path) -> None:
    (tmp_path / "taken").write_text("")
    with pytest.raises(OutputError, match="cannot make the folder"):
        write_prompt(tmp_path / "taken", _prompt())


def _truncate(name: str) -> Callable[[Path], None]:
    return lambda folder: (folder / name).write_bytes((folder / name).read_bytes()[:-3]) and None


def _flip(name: str) -> Callable[[Path], None]:
    def flip(folder: Path) -> None:
        content = bytearray((folder / name).read_bytes())
        content[-1] ^= 1
        (folder / name).write_bytes(content)

    return flip


def _edit(**values: Any) -> Callable[[Path], None]:
    def edit(folder: Path) -> None:
        details = json.loads((folder / "ptune.json").read_text())
        (folder / "ptune.json").write_text(json.dumps({**details, **values}))

    return edit


def _weights(**tensors: torch.Tensor) -> Callable[[Path], None]:
    """Other vectors, with no checksum to tell."""

    def replace(folder: Path) -> None:
        save_file(tensors, folder / "adapter_model.safetensors")
        _edit(sha256={})(folder)

    return replace


DAMAGE: dict[str, tuple[Callable[[Path], Any], str]] = {
    "vectors changed": (_flip("adapter_model.safetensors"), r"adapter_model\.safetensors does not match its checksum"),
    "encoder changed": (_flip("encoder.safetensors"), r"encoder\.safetensors does not match its checksum"),
    "vectors cut": (_truncate("adapter_model.safetensors"), r"does not match its checksum.*download or copy it again"),
    "details cut": (_truncate("ptune.json"), r"cannot read .*ptune\.json: JSONDecodeError"),
    "no vectors": (lambda folder: (folder / "adapter_model.safetensors").unlink(), r"cannot read .*adapter_model"),
    "no encoder": (lambda folder: (folder / "encoder.safetensors").unlink(), r"cannot read .*encoder\.safetensors"),
    "not finite": (
        _weights(prompt_embeddings=torch.tensor([[float("nan")] * D] * P)),
        r"'prompt_embeddings' holds values that are not finite",
    ),
    "infinite": (_weights(prompt_embeddings=torch.full((P, D), float("inf"))), "not finite"),
    "other length": (_weights(prompt_embeddings=torch.zeros(P + 1, D)), r"shape \(4, 4\), expected \(3, 4\)"),
    "other tensor": (_weights(other=torch.zeros(P, D)), "no tensor"),
    "newer format": (_edit(format_version=99), r"format version 99; this ptune reads up to 2.*Upgrade"),
    "not an object": (lambda folder: (folder / "ptune.json").write_text("[]"), "holds a list, expected an object"),
    "not text": (lambda folder: (folder / "ptune.json").write_bytes(b"\xff\xfe"), "cannot read"),
    "very deep": (lambda folder: (folder / "ptune.json").write_text("[" * 200_000), "cannot read .*RecursionError"),
    "no known class": (_edit(config_class="os.system"), "its configuration is of no known class"),
    "config is a list": (_edit(config=[1]), r"config is \[1\], not a table"),
    "config of nonsense": (_edit(config={"num_virtual_tokens": "many"}), r"does not fit.*num_virtual_tokens"),
    "checksums are no table": (_edit(sha256=[1]), r"sha256 is \[1\], not a table"),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_damage_is_named(damage: str, folder: Path) -> None:
    harm, message = DAMAGE[damage]
    harm(folder)
    with pytest.raises(PromptError, match=message) as caught:
        read_prompt(folder)
    assert str(folder) in str(caught.value)


def test_a_cut_file_without_a_checksum_is_noticed(folder: Path) -> None:
    _edit(sha256={})(folder)
    _truncate("adapter_model.safetensors")(folder)
    with pytest.raises(PromptError, match="not a whole safetensors file"):
        read_prompt(folder)


def test_sizes_are_looked_at_before_reading(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(layout, "MAX_WEIGHT_BYTES", 10)
    with pytest.raises(PromptError, match=r"^\S*adapter_model\.safetensors has .* bytes, more than the 10 that"):
        read_prompt(folder)
    monkeypatch.setattr(files, "MAX_JSON_BYTES", 10)
    with pytest.raises(PromptError, match=r"^\S*ptune\.json has .* bytes, more than the 10 that"):
        open_folder(folder)


def test_what_is_no_prompt_folder(tmp_path: Path) -> None:
    with pytest.raises(PromptError, match=r"there is no prompt folder .*nowhere"):
        read_prompt(tmp_path / "nowhere")
    with pytest.raises(PromptError, match=r"neither ptune\.json nor adapter_config\.json"):
        read_prompt(tmp_path)
    (tmp_path / "adapter_config.json").write_text('{"peft_type": "LORA"}')
    with pytest.raises(PromptError, match="type 'LORA', not a soft prompt"):
        read_prompt(tmp_path)
    (tmp_path / "adapter_config.json").write_text(
        '{"peft_type": "P_TUNING", "task_type": "SEQ_CLASS", "num_virtual_tokens": 3}'
    )
    with pytest.raises(PromptError, match=f"{tmp_path.name}.*unknown task_type"):
        read_prompt(tmp_path)


def test_the_card_names_what_a_reader_wants(tmp_path: Path) -> None:
    folder = write_prompt(tmp_path / "p", _prompt(encoder="mlp", trainable_parameters=12345, data="a|b\nc"))
    card = (folder / "README.md").read_text(encoding="utf-8")
    for part in ("base_model: 'some/model'", "3 × 4", "| 12,345 |", r"a\|b⏎c", "PTunedModel.from_pretrained"):
        assert part in card


PEFT_CONFIGS = {
    "P_TUNING MLP": lambda: peft.PromptEncoderConfig(task_type="CAUSAL_LM", num_virtual_tokens=5),
    "P_TUNING LSTM": lambda: peft.PromptEncoderConfig(
        task_type="CAUSAL_LM", num_virtual_tokens=5, encoder_reparameterization_type="LSTM", encoder_hidden_size=8
    ),
    "PROMPT_TUNING": lambda: peft.PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=5),
}


@pytest.mark.parametrize("kind", PEFT_CONFIGS)
def test_an_adapter_that_peft_wrote_loads_directly(kind: str, tmp_path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        theirs = peft.get_peft_model(build("llama"), PEFT_CONFIGS[kind]()).eval()
        theirs.save_pretrained(tmp_path / "adapter")
    ids = draw(1, 6)
    with torch.no_grad():
        wanted = theirs(input_ids=ids).logits[:, 5:]
        for trainable in (False, True):
            mine = PTunedModel.from_pretrained(tmp_path / "adapter", base=build("llama"), trainable=trainable)
            assert relative_error(mine(ids).logits, wanted) < 1e-5
            assert mine.get_nb_trainable_parameters()[0] == (5 * 32 if trainable else 0)
    # Written back, PEFT reads it again.
    mine.save_pretrained(tmp_path / "back")
    again = load_file(tmp_path / "back" / "adapter_model.safetensors")["prompt_embeddings"]
    assert torch.equal(again, load_file(tmp_path / "adapter" / "adapter_model.safetensors")["prompt_embeddings"])


def test_a_peft_adapter_started_from_text_needs_no_tokenizer(tmp_path: Path) -> None:
    write_prompt(tmp_path / "p", _prompt())
    (tmp_path / "p" / "ptune.json").unlink()
    adapter = json.loads((tmp_path / "p" / "adapter_config.json").read_text())
    adapter |= {
        "prompt_tuning_init": "TEXT",
        "prompt_tuning_init_text": "Sort this",
        "tokenizer_name_or_path": "no/such",
        "tokenizer_kwargs": {"trust_remote_code": True},
        "auto_mapping": {"base_model_class": "X"},
        "inference_mode": True,
    }
    (tmp_path / "p" / "adapter_config.json").write_text(json.dumps(adapter))
    found = read_prompt(tmp_path / "p")
    assert found.config == PromptTuningConfig(
        num_virtual_tokens=P,
        token_dim=D,
        base_model_name_or_path="some/model",
        task_type="CAUSAL_LM",
        num_transformer_submodules=1,
        num_attention_heads=1,
        num_layers=1,
        tokenizer_name_or_path="no/such",
    )
    assert found.encoder is None


def test_a_folder_of_format_1_loads_as_before() -> None:
    """Written by ptune 0.1.0 before format 2: no checksum of adapter_config.json."""
    folder = Path(__file__).with_name("format_1")
    assert json.loads((folder / "ptune.json").read_text())["format_version"] == 1
    saved = read_prompt(folder)
    assert (saved.details["template"], saved.details["metrics"]) == ("tutorial", {"train_loss": 1.5})
    model = PTunedModel.from_pretrained(folder, base=build("llama"), trainable=True)
    assert relative_error(model.eval().encode(), saved.vectors) < 1e-6
    assert PTunedModel.from_pretrained(folder, base=build("llama")).encode().tolist() == saved.vectors.tolist()


def test_what_a_folder_says_is_read_once(tiny_model_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    base = AutoModelForCausalLM.from_pretrained(tiny_model_dir)
    model = PTunedModel(base, PromptEncoderConfig(num_virtual_tokens=3, encoder_hidden_size=8))
    folder = model.save_pretrained(tmp_path / "p", template="{instruction}: {output}")
    read, seen = files.read_bytes, []

    def counted(where: Path, name: str, **options: Any) -> bytes:
        seen.append(name)
        return read(where, name, **options)

    monkeypatch.setattr(files, "read_bytes", counted)
    tokenizer = AutoTokenizer.from_pretrained(tiny_model_dir)
    for load in (
        lambda: PTunedModel.from_pretrained(folder),
        lambda: PTunedModel.from_pretrained(folder, trainable=True, tokenizer=tokenizer),
        lambda: model.load_prompt(folder, name="second", replace=True, tokenizer=tokenizer),
        lambda: Answerer.open(folder),
    ):
        seen.clear()
        load()
        assert seen.count("ptune.json") == 1
