"""What a measured job asks of Trainer."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from ptune.choices import ADAM_BETAS
from ptune.comparison import measured_run
from ptune.comparison.job import Job
from ptune.loading import place


@pytest.mark.parametrize(
    ("dtype", "native", "use_cpu", "wanted"),
    [
        ("auto", True, False, True),
        ("auto", False, False, False),  # a card that emulates bfloat16, several times slower
        ("auto", True, True, False),
        ("bfloat16", False, False, True),
    ],
)
def test_full_fine_tuning_multiplies_in_the_dtype_of_the_frozen_models(
    dtype: str, native: bool, use_cpu: bool, wanted: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.delenv("PTUNE_AUTO_DTYPE")
    monkeypatch.setattr(place, "cpu_multiplies_bfloat16", lambda: False)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device", lambda _: nullcontext())
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda *, including_emulation: native)
    monkeypatch.setattr(measured_run, "TrainingArguments", dict)
    recipe = {"model": "m", "data": "d", "output": str(tmp_path), "dtype": dtype}
    job = Job(method="full", seed=0, folder=str(tmp_path), recipe=recipe, arguments={"use_cpu": use_cpu})
    found = measured_run.training_arguments(job, job.train_recipe())
    assert found["bf16"] is wanted  # type: ignore[index]
    assert found["use_cpu"] is use_cpu  # type: ignore[index]


def test_full_fine_tuning_in_bfloat16_on_a_cpu(tmp_path: Path):
    recipe = {"model": "m", "data": "d", "output": str(tmp_path), "dtype": "bfloat16"}
    job = Job(method="full", seed=0, folder=str(tmp_path), recipe=recipe, arguments={})
    found = measured_run.training_arguments(job, job.train_recipe())
    assert found.bf16
    assert found.device.type == "cpu"


@pytest.mark.parametrize(("method", "betas"), [("lora", (0.9, 0.999)), ("prompt-tuning", tuple(ADAM_BETAS.values()))])
def test_only_soft_prompts_take_the_decay_rates_chosen_for_them(
    method: str, betas: tuple[float, float], tmp_path: Path
):
    recipe = {"model": "m", "data": "d", "output": str(tmp_path)}
    job = Job(method=method, seed=0, folder=str(tmp_path), recipe=recipe)
    found = measured_run.training_arguments(job, job.train_recipe())
    assert (found.adam_beta1, found.adam_beta2) == betas
    asked = replace(job, arguments={"adam_beta1": 0.5})
    assert measured_run.training_arguments(asked, asked.train_recipe()).adam_beta1 == 0.5
