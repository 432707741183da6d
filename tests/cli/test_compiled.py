"""`ptune train --torch-compile`: padded batches through PyTorch's compiler, the same losses."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from commands import Ran
from ptune.training.progress import read_metrics


@pytest.mark.slow
def test_the_losses_are_those_without_it(train: Callable[..., Ran], tmp_path: Path) -> None:
    losses = []
    for words in ([], ["--torch-compile", "True", "--overwrite"]):
        ran = train("--no-packing", *words, max_steps=3, logging_steps=1, eval_rows=3)
        assert ran.code == 0, ran.err
        logged = read_metrics(tmp_path / "out" / "metrics.jsonl")
        losses.append([entry[name] for entry in logged for name in ("loss", "eval_loss") if name in entry])
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)
    assert len(losses[0]) > 3
