"""What is told of a served prompt: where it comes from, and how its training went. Read once, with the prompt.

The values come from a prompt folder's files, which anybody may have written: each is told only if it is of its kind,
and of a readable length. Paths of the machine are not told.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ptune.config import PeftType
from ptune.deep_config import PromptConfig
from ptune.errors import PromptError, printable
from ptune.saved.loss_history import LossHistory, count_in, loss_in, read_loss_history
from ptune.saved.opened_folder import PTUNE_CONFIG, OpenedFolder
from ptune.saved.peft import ADAPTER_CONFIG

_MOST_TEXT = 200
_NO_HISTORY = "No loss history is saved with this prompt."
_BAD_HISTORY = "The loss history saved with this prompt cannot be read."


@dataclass(frozen=True, kw_only=True)
class PromptFacts:
    """The facts; None where the folder does not say. Losses are nats per answer token."""

    base_model: str | None = None
    encoder: str | None = None
    token_dim: int | None = None
    trainable_parameters: int | None = None
    written: int | None = None
    """When its file was written, in seconds since 1970."""
    written_by: str | None = None
    rows_read: int | None = None
    rows_trained_on: int | None = None
    steps: int | None = None
    train_loss: float | None = None
    held_out_loss_before: float | None = None
    held_out_loss_after: float | None = None
    history: LossHistory = field(default_factory=LossHistory)
    history_note: str | None = _NO_HISTORY
    """Why there is no curve; None where there is one."""


def facts_of(opened: OpenedFolder, config: PromptConfig) -> PromptFacts:
    """The facts of a prompt folder."""
    details = opened.details
    metrics: Mapping[str, Any] = details.get("metrics") or {}
    history, note = _history_of(opened.path)
    encoder = details.get("encoder") or str(PeftType(config.peft_type).value)
    return PromptFacts(
        base_model=told_model_name(config.base_model_name_or_path),
        encoder=_text(encoder),
        token_dim=count_in(config.token_dim),
        trainable_parameters=count_in(details.get("trainable_parameters")),
        written=_written(opened.path / (PTUNE_CONFIG if opened.by_ptune else ADAPTER_CONFIG)),
        written_by="ptune" if opened.by_ptune else "PEFT",
        rows_read=count_in((details.get("data_report") or {}).get("rows_read")),
        rows_trained_on=count_in((details.get("tokens_report") or {}).get("kept")),
        steps=count_in(metrics.get("steps")),
        train_loss=loss_in(metrics.get("train_loss")),
        held_out_loss_before=loss_in(metrics.get("held_out_loss_before")),
        held_out_loss_after=loss_in(metrics.get("held_out_loss_after")),
        history=history,
        history_note=note,
    )


def _history_of(folder: Path) -> tuple[LossHistory, str | None]:
    try:
        history = read_loss_history(folder)
    except PromptError:
        return LossHistory(), _BAD_HISTORY
    return history, None if history.training or history.held_out else _NO_HISTORY


def told_model_name(name: object) -> str | None:
    """What is told of a frozen model's name: a hub id as it is, of a path its last part."""
    if not isinstance(name, str) or not name:
        return None
    return _text(Path(name).name if Path(name).is_absolute() or ".." in Path(name).parts else name)


def _written(path: Path) -> int | None:
    try:
        return int(path.stat().st_mtime)
    except OSError:
        return None


def _text(value: object) -> str | None:
    return printable(value[:_MOST_TEXT]) if isinstance(value, str) and value else None
