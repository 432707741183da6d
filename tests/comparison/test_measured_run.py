"""What a measured job asks of Trainer."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path

import pytest
import torch

from ptune.comparison import measured_run
from ptune.comparison.job import Job


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
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device", lambda _: nullcontext())
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda *, including_emulation: native)
    monkeypatch.setattr(measured_run, "TrainingArguments", dict)
    recipe = {"model": "m", "data": "d", "output": str(tmp_path), "dtype": dtype}
    job = Job(method="full", seed=0, folder=str(tmp_path), recipe=recipe, arguments={"use_cpu": use_cpu})
    found = measured_run.training_arguments(job, job.train_recipe())
    assert found["bf16"] is wanted  # type: ignore[index]
