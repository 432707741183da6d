"""What the values of a prompt folder's JSON may be, looked at once when they are read.

A file says anything: a list where a table is wanted, a text of megabytes, a revision that is a path. Those who use the
values later (`ptune inspect`, sessions, the model card) rely on what is checked here. Keys that ptune does not know are
left alone: they are the caller's, and are shown at most.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ptune.errors import PromptError, shown

MAX_DEPTH = 32
"""Lists and tables in one another; what is deeper could not be written or shown again."""
MAX_TEMPLATE = 65_536
"""Characters that a template may have; what stands in it once more for every answer costs memory."""
MAX_LABELS, MAX_LABEL = 100_000, 1000
"""Labels of a classifier, and characters of each."""

_TEXTS = (
    "base_model",
    "base_class",
    "base_fingerprint",
    "base_unquantized_fingerprint",
    "tokenizer_fingerprint",
    "encoder",
    "template",
    "task",
    "attends",
)
_TABLES = (
    "versions",
    "metrics",
    "data_report",
    "tokens_report",
    "recipe",
    "training_arguments",
    "compression",
    "sha256",
)
_REVISION = re.compile(r"\w[\w.+/-]{0,199}", re.ASCII)
_ANEW = "The folder is damaged, or not from ptune; download or copy it again."


def check_details(path: Path, details: Mapping[str, Any]) -> None:
    """Check the values of a `ptune.json`.

    Args:
        path: The file, for errors.
        details: Its content.

    Raises:
        PromptError: A value is of another type than its key's, or cannot be what it stands for.
    """
    if _deeper(details, MAX_DEPTH):
        raise PromptError(f"{path} is nested deeper than {MAX_DEPTH} levels.", hint=_ANEW)
    for name in _TEXTS:
        _check(path, name, details.get(name), str, "text")
    for name in _TABLES:
        _check(path, name, details.get(name), dict, "a table")
    _check(path, "trainable_parameters", details.get("trainable_parameters"), int, "a whole number")
    _check(path, "base_quantized", details.get("base_quantized"), bool, "true or false")
    labels = details.get("labels")
    if labels is not None and not (isinstance(labels, list) and 0 < len(labels) <= MAX_LABELS and _all_texts(labels)):
        raise PromptError(f"{path}: labels is {shown(labels)}, not a list of 1 to {MAX_LABELS} names.", hint=_ANEW)
    template = details.get("template") or ""
    if len(template) > MAX_TEMPLATE:
        raise PromptError(
            f"{path}: template has {len(template):,} characters, more than the {MAX_TEMPLATE:,} that it may have.",
            hint=_ANEW,
        )
    if any("\ud800" <= sign <= "\udfff" for sign in template):
        raise PromptError(f"{path}: template holds half of a surrogate pair, which is no text.", hint=_ANEW)


def check_config(path: Path, config: Any) -> None:
    """Check what a configuration says of the frozen model; the rest is checked where it is used.

    Raises:
        PromptError: It is no table, or names a model or revision that is none.
    """
    if not isinstance(config, dict):
        raise PromptError(f"{path}: config is {shown(config)}, not a table.", hint=_ANEW)
    for name in ("base_model_name_or_path", "revision"):
        _check(path, name, config.get(name), str, "text")
    revision = config.get("revision")
    if revision and (not _REVISION.fullmatch(revision) or ".." in revision):
        raise PromptError(
            f"{path}: revision {shown(revision)} cannot be the name of a branch, tag or commit.", hint=_ANEW
        )


def _all_texts(values: list[Any]) -> bool:
    return all(isinstance(one, str) and len(one) <= MAX_LABEL for one in values) and len(set(values)) == len(values)


def _deeper(value: Any, levels: int) -> bool:
    if not isinstance(value, (dict, list)):
        return False
    if levels == 0:
        return True
    return any(_deeper(one, levels - 1) for one in (value.values() if isinstance(value, dict) else value))


def _check(path: Path, name: str, value: Any, kind: type, words: str) -> None:
    if value is not None and type(value) is not kind:
        raise PromptError(f"{path}: {name} is {shown(value)}, not {words}.", hint=_ANEW)
