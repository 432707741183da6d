"""A prompt for a task and its head in a folder: saved, loaded, read by PEFT and from PEFT, damaged."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import PreTrainedModel

from ptune import (
    AutoPeftModelForSequenceClassification,
    PeftModel,
    PrefixTuningConfig,
    PromptEncoderConfig,
    PromptTuningConfig,
    PTunedModel,
    PTunedTaskModel,
    get_peft_model,
)
from ptune.config import TaskType
from ptune.errors import ConfigError, PromptError
from ptune.saved.export import export_peft
from ptune.saved.format import read_prompt
from tasks.wide_models import LABELS, build, close, padded, texts

VIRTUAL = 4
ADAPTER = "adapter_model.safetensors"
KINDS: dict[str, Any] = {
    "vectors": PromptTuningConfig(num_virtual_tokens=VIRTUAL),
    "pooled": PromptTuningConfig(num_virtual_tokens=VIRTUAL, pool_virtual_tokens=True),
    "lstm": PromptEncoderConfig(num_virtual_tokens=VIRTUAL, encoder_reparameterization_type="LSTM"),
    "deep": PrefixTuningConfig(num_virtual_tokens=VIRTUAL),
}
MODELS = {
    "SEQ_CLS": "bert",
    "SEQ_CLS of a decoder": "llama",
    "TOKEN_CLS": "roberta",
    "QUESTION_ANS": "bert",
    "MASKED_LM": "bert",
    "FEATURE_EXTRACTION": "bert",
    "SEQ_2_SEQ_LM": "bart",
}


def _base(task: str) -> PreTrainedModel:
    # PEFT's keys and values are for as many layers as the encoder has.
    layers = {"encoder_layers": 3} if MODELS[task] == "bart" else {}
    return build(MODELS[task], TaskType(task.partition(" ")[0]), **layers)


@torch.no_grad()
def _output(model: Any, *, unpadded: bool = False) -> torch.Tensor:
    rows = texts([3] * 4) if unpadded else texts()
    ids, mask = padded(rows, "right", model.config.pad_token_id or 0)
    more = {"labels": ids} if model.config.is_encoder_decoder else {}
    output = model(input_ids=ids, attention_mask=mask, **more)
    name = next(name for name in ("logits", "start_logits", "last_hidden_state") if output.get(name) is not None)
    found: torch.Tensor = output[name]
    if found.dim() > 1 and found.shape[1] in (ids.shape[1], ids.shape[1] + VIRTUAL) and not more:
        found = found[:, -ids.shape[1] :][mask.bool()]  # PEFT's are longer by the virtual tokens
    return found


def _trained(base: PreTrainedModel, config: Any) -> Any:
    """A prompt whose numbers are not those it began with."""
    model = get_peft_model(base, config).eval()
    draw = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for parameter in model.prompts.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=draw) * 0.1)
    return model


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("task", MODELS)
def test_what_is_saved_comes_back(task: str, kind: str, tmp_path: Path) -> None:
    base = _base(task)
    model = _trained(base, KINDS[kind])
    wanted = _output(model)
    model.save_pretrained(tmp_path)
    for trainable in (True, False):
        again = PeftModel.from_pretrained(base, tmp_path, is_trainable=trainable)
        assert type(again) is type(model)
        assert any(one.requires_grad for one in again.parameters()) == trainable
        assert close(_output(again.eval()), wanted)
    state = model.state_dict()
    fresh = get_peft_model(base, KINDS[kind]).eval()
    fresh.load_state_dict(state)
    assert torch.equal(_output(fresh), wanted)


REFUSED = {
    ("SEQ_CLS", "vectors"): "reads the first virtual token",
    ("SEQ_CLS", "lstm"): "reads the first virtual token",
    ("MASKED_LM", "vectors"): "no prompts for masked language models",
    ("MASKED_LM", "pooled"): "no prompts for masked language models",
    ("MASKED_LM", "lstm"): "no prompts for masked language models",
    ("MASKED_LM", "deep"): "no prompts for masked language models",
    ("SEQ_2_SEQ_LM", "deep"): "hands layer i of a decoder the keys and values that are meant for layer 2i",
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("task", MODELS)
def test_peft_reads_a_folder_as_it_is_meant_or_not_at_all(task: str, kind: str, tmp_path: Path) -> None:
    base = _base(task)
    model = _trained(base, KINDS[kind])
    model.save_pretrained(tmp_path / "own")
    reason = REFUSED.get((task, kind))
    if reason is not None:
        with pytest.raises(KeyError):
            peft.PeftModel.from_pretrained(copy.deepcopy(base), tmp_path / "own")
        with pytest.raises(ConfigError, match=reason):
            export_peft(read_prompt(tmp_path / "own"), tmp_path / "exported")
        return
    export_peft(read_prompt(tmp_path / "own"), tmp_path / "exported")
    # Behind vectors a decoder's classifier is right in PEFT without padding alone.
    unpadded = task == "SEQ_CLS of a decoder" and kind != "deep"
    for folder in ("own", "exported"):
        theirs = peft.PeftModel.from_pretrained(copy.deepcopy(base), tmp_path / folder).eval()
        wanted = _output(model, unpadded=unpadded)
        assert close(_output(theirs, unpadded=unpadded), wanted)


@pytest.mark.parametrize(
    ("task", "config"),
    [
        *(
            (task, kind)
            for task in MODELS
            if task != "MASKED_LM"
            for kind in (peft.PromptEncoderConfig, peft.PrefixTuningConfig)
        ),
        # `test_heads_of_peft` has them of classifiers.
        *((task, peft.PromptTuningConfig) for task in ("SEQ_CLS of a decoder", "FEATURE_EXTRACTION", "SEQ_2_SEQ_LM")),
    ],
)
def test_pefts_prompts_give_what_they_give_there(task: str, config: Any, tmp_path: Path) -> None:
    base = _base(task)
    sizes = {} if config is peft.PromptTuningConfig else {"encoder_hidden_size": 32}
    theirs = peft.get_peft_model(
        copy.deepcopy(base), config(task_type=task.partition(" ")[0], num_virtual_tokens=VIRTUAL, **sizes)
    ).eval()
    theirs.save_pretrained(tmp_path)
    unpadded = task == "SEQ_CLS of a decoder" and config is not peft.PrefixTuningConfig
    model = PeftModel.from_pretrained(base, tmp_path).eval()
    wanted = _output(theirs, unpadded=unpadded)
    assert close(_output(model, unpadded=unpadded), wanted)
    model.save_pretrained(tmp_path / "again")
    again = PeftModel.from_pretrained(base, tmp_path / "again").eval()
    assert close(_output(again), _output(model))


def test_model_and_prompt_from_their_folders(tmp_path: Path) -> None:
    """Labels come from `ptune.json`, or from the head that PEFT saved."""
    base = build("bert", TaskType.SEQ_CLS)
    base.config.id2label = {0: "bad", 1: "fair", 2: "good"}
    base.config.label2id = {"bad": 0, "fair": 1, "good": 2}
    base.save_pretrained(tmp_path / "model")
    base = type(base).from_pretrained(tmp_path / "model").eval()
    model = _trained(base, KINDS["pooled"])
    model.save_pretrained(tmp_path / "own")
    assert json.loads((tmp_path / "own/ptune.json").read_text())["labels"] == ["bad", "fair", "good"]
    loaded: Any = AutoPeftModelForSequenceClassification.from_pretrained(tmp_path / "own").eval()
    assert loaded.base.config.id2label == base.config.id2label
    assert close(_output(loaded), _output(model))
    export_peft(read_prompt(tmp_path / "own"), tmp_path / "theirs")
    # A model on disk without a head, and with another number of labels in its configuration.
    build("bert", TaskType.SEQ_CLS, num_labels=2).save_pretrained(tmp_path / "model")
    kept = {name: value.contiguous() for name, value in base.state_dict().items() if "classifier" not in name}
    save_file(kept, tmp_path / "model/model.safetensors", {"format": "pt"})
    loaded = AutoPeftModelForSequenceClassification.from_pretrained(tmp_path / "theirs").eval()
    assert loaded.base.config.num_labels == LABELS
    assert close(_output(loaded), _output(model))


def test_a_folder_for_another_task_is_refused(tmp_path: Path) -> None:
    _trained(build("bert", TaskType.SEQ_CLS), KINDS["vectors"]).save_pretrained(tmp_path)
    with pytest.raises(PromptError, match=r"holds a prompt for SEQ_CLS\. Load it with PTunedTaskModel"):
        PTunedModel.from_pretrained(tmp_path)
    with pytest.raises(PromptError, match="task_type=SEQ_CLS, but the model is wrapped for TOKEN_CLS"):
        PTunedTaskModel(build("bert", TaskType.TOKEN_CLS)).load_prompt(tmp_path, force=True)


def test_a_head_that_does_not_fit(tmp_path: Path) -> None:
    base = build("bert", TaskType.SEQ_CLS)
    _trained(base, KINDS["vectors"]).save_pretrained(tmp_path)
    with pytest.raises(PromptError, match=r"head does not fit.*'classifier.bias' has the shape \(3,\), and \(2,\)"):
        PTunedTaskModel(build("bert", TaskType.SEQ_CLS, num_labels=2)).load_prompt(tmp_path, force=True)
    whole = load_file(tmp_path / ADAPTER)
    details = json.loads((tmp_path / "ptune.json").read_text())
    del details["sha256"][ADAPTER]
    (tmp_path / "ptune.json").write_text(json.dumps(details))
    for change, message in (
        ({name: value for name, value in whole.items() if "bias" not in name}, r"'classifier.bias' has the shape none"),
        ({**whole, "base_model.classifier.bias": torch.full((3,), torch.nan)}, "not finite"),
        ({**whole, "other.weight": torch.zeros(1)}, "holds 'other.weight' beside prompt_embeddings"),
    ):
        save_file(change, tmp_path / ADAPTER)
        with pytest.raises(PromptError, match=message):
            PTunedTaskModel(base).load_prompt(tmp_path)
    save_file(whole, tmp_path / ADAPTER)
    (tmp_path / "ptune.json").write_text(json.dumps({**details, "labels": ["a", "a", "b"]}))
    with pytest.raises(PromptError, match=r"labels is \['a', 'a', 'b'\], not a list of 1 to 100000 names"):
        PTunedTaskModel(base).load_prompt(tmp_path)
