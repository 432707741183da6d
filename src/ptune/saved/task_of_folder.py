"""What a prompt folder says of its task: its name, labels, template, words, and how long its rows are.

A folder that PEFT wrote, or that was imported without more, says `task_type` alone; the task follows from it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from ptune.choices import CLASSIFY, FILL, TAG
from ptune.config import TaskType
from ptune.data.tasks.task_kinds import TASK_TYPES
from ptune.errors import PromptError, listed, shown
from ptune.saved.opened_folder import PTUNE_CONFIG, OpenedFolder

MAX_LENGTH, TARGET_LENGTH = 512, 128
"""Where a folder does not say."""
_ANEW = "The folder is damaged, or not from ptune; download or copy it again."


@dataclass(frozen=True, kw_only=True)
class TaskNotes:
    """What a folder notes of its task."""

    task: str
    labels: tuple[str, ...] = ()
    """Empty for tasks without, and where the folder does not name them."""
    template: str | None = None
    """None writes the text as it is."""
    verbalizer: Mapping[str, str] | None = None
    max_length: int = MAX_LENGTH
    target_length: int = TARGET_LENGTH


def task_notes(opened: OpenedFolder) -> TaskNotes:
    """What a folder notes of its task.

    Raises:
        PromptError: The prompt is for none of the tasks, or the notes do not fit one another.
    """
    details = opened.details
    task = _task(opened)
    labels = opened.labels()
    if task == FILL and not isinstance(labels, tuple):
        raise PromptError(
            f"{opened.path} does not say between which labels it fills a gap.",
            hint=f"Note labels, and where they are no words of the vocabulary a verbalizer, in {PTUNE_CONFIG}.",
        )
    recipe = details.get("recipe") or {}
    lengths = {"max_length": MAX_LENGTH, "target_length": TARGET_LENGTH}
    for name in lengths:
        value = recipe.get(name)
        if value is None:
            continue
        if type(value) is not int or value < 1:
            raise PromptError(
                f"{opened.path / PTUNE_CONFIG}: {name} is {shown(value)}, not a whole number of at least 1.", hint=_ANEW
            )
        lengths[name] = value
    return TaskNotes(
        task=task,
        labels=labels if isinstance(labels, tuple) and task in (CLASSIFY, TAG, FILL) else (),
        template=details.get("template") or None,
        verbalizer=_verbalizer(opened) if task == FILL else None,
        **lengths,
    )


def _task(opened: OpenedFolder) -> str:
    """The name of the task, by which `task_type` it has."""
    named = next((name for name, kind in TASK_TYPES.items() if kind is opened.task), None)
    if named is None:
        alone = opened.task is TaskType.FEATURE_EXTRACTION
        raise PromptError(
            f"{opened.path} holds a prompt for {opened.task.value}, "
            + ("which gives hidden states and no answers." if alone else "a causal language model."),
            hint="In Python, PTunedTaskModel.from_pretrained." if alone else "Open it with Answerer.open.",
        )
    noted = opened.details.get("task")
    if noted not in (None, "", named):
        place = opened.path / PTUNE_CONFIG
        raise PromptError(
            f"{place}: task is {shown(noted)}, but task_type {opened.task.value} is that of {named}.",
            hint=_ANEW,
        )
    return named


def _verbalizer(opened: OpenedFolder) -> Mapping[str, str] | None:
    given = opened.details.get("verbalizer")
    if not given:
        return None
    bad = [label for label, word in given.items() if not isinstance(word, str)] if isinstance(given, dict) else [given]
    if bad:
        raise PromptError(
            f"{opened.path / PTUNE_CONFIG}: verbalizer is {shown(given)}, not a table of a word for each label "
            f"({listed(map(shown, bad[:1]))}).",
            hint=_ANEW,
        )
    return dict(given)
