"""What prompts for tasks are measured by, by name. No library is needed for it."""

from __future__ import annotations

from ptune.choices import METRIC_GROUPS

ENTITY_METRICS = ("entity_precision", "entity_recall", "entity_f1")
"""Those that no other prompts have."""
_CLASSES = ("loss", "accuracy", "macro_f1")
TASK_METRICS = {
    "classify": _CLASSES,
    "fill": _CLASSES,
    "tag": ("loss", "token_accuracy", *ENTITY_METRICS),
    "qa": ("loss", "exact_match", "f1"),
    "seq2seq": (*METRIC_GROUPS["tokens"], *METRIC_GROUPS["texts"]),
}
"""In the order of the tables."""
