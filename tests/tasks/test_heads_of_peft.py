"""Classifiers' heads between PEFT and ptune, of every encoder: also where PEFT trains a part of the head alone."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import peft
import pytest
import torch

from ptune import PeftModel, PromptTuningConfig, get_peft_model
from ptune.config import TaskType
from ptune.errors import PromptError
from tasks.peft_pairs import run
from tasks.wide_models import ENCODERS, HIDDEN, WITH_HEADS, build, close, tokens

WIDTHS = {"albert": 16, "electra": 16}
IDS = tokens(7)[None]


def logits(model: Any) -> torch.Tensor:
    """Of a text without padding."""
    with torch.no_grad():
        output = run(model.eval(), input_ids=IDS, attention_mask=torch.ones_like(IDS))
    found: torch.Tensor = output["start_logits"] if "start_logits" in output else output["logits"]
    return found[:, -IDS.shape[1] :] if found.dim() == 3 or "start_logits" in output else found


def moved(model: Any) -> Any:
    """The same after a step: no parameter is what it began with."""
    with torch.no_grad(), torch.random.fork_rng(devices=[]):
        torch.manual_seed(4)
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter += 0.2 * torch.randn_like(parameter)
    return model


PAIRS = [(name, task) for name in ENCODERS for task in WITH_HEADS]
# PEFT looks for qa_outputs, and trains nothing of ModernBERT's head for answers.
PAIRS.remove(("modernbert", TaskType.QUESTION_ANS))


@pytest.mark.parametrize(("name", "task"), PAIRS)
def test_from_peft_and_back(name: str, task: TaskType, tmp_path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        sizes = {"token_dim": WIDTHS.get(name, HIDDEN), "num_layers": 2, "num_attention_heads": 4}
        config = peft.PromptTuningConfig(task_type=task.value, num_virtual_tokens=4, **sizes)
        theirs = moved(peft.get_peft_model(build(name, task), config))
        theirs.save_pretrained(tmp_path / "theirs")
    wanted = logits(theirs)
    mine: Any = PeftModel.from_pretrained(build(name, task), tmp_path / "theirs", is_trainable=True)
    assert close(logits(mine), wanted)
    assert mine.active_peft_config.modules_to_save == list(mine.prompts["default"].head)
    mine.save_pretrained(tmp_path / "mine")
    assert close(logits(PeftModel.from_pretrained(build(name, task), tmp_path / "mine")), wanted)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        again = peft.PeftModel.from_pretrained(build(name, task), tmp_path / "mine")
    assert close(logits(again), wanted)


@pytest.mark.parametrize("name", ENCODERS)
def test_a_whole_head_into_peft(name: str, tmp_path: Path) -> None:
    """All that trains here is in the folder, and PEFT puts it where it belongs."""
    model: Any = moved(
        get_peft_model(
            build(name, TaskType.SEQ_CLS), PromptTuningConfig(num_virtual_tokens=4, pool_virtual_tokens=True)
        )
    )
    model.save_pretrained(tmp_path)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        theirs = peft.PeftModel.from_pretrained(build(name, TaskType.SEQ_CLS), tmp_path)
    assert close(logits(theirs), logits(model))


@pytest.mark.parametrize("name", ["bert", "deberta", "modernbert"])
def test_a_folder_without_a_head(name: str, tmp_path: Path) -> None:
    """As an adapter of hidden states has it: nothing stands in for the classifier."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        sizes = {"token_dim": HIDDEN, "num_layers": 2, "num_attention_heads": 4}
        config = peft.PromptTuningConfig(task_type="FEATURE_EXTRACTION", num_virtual_tokens=4, **sizes)
        peft.get_peft_model(build(name, TaskType.FEATURE_EXTRACTION), config).save_pretrained(tmp_path)
    path = tmp_path / "adapter_config.json"
    path.write_text(path.read_text().replace("FEATURE_EXTRACTION", "SEQ_CLS"))
    with pytest.raises(PromptError, match=r"its head does not fit the model's.*has the shape none") as caught:
        PeftModel.from_pretrained(build(name, TaskType.SEQ_CLS), tmp_path)
    assert str(tmp_path) in str(caught.value)
    assert "Load the model for the prompt's task" in str(caught.value)
