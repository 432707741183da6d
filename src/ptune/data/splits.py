"""Names of splits, as files, folders and JSON keys have them."""

from __future__ import annotations

import re

_WORDS = {
    "train": ("train", "training", "trainset"),
    "validation": ("validation", "valid", "val", "dev", "devset", "eval"),
    "test": ("test", "testing", "testset"),
}


def split_called(name: str) -> str | None:
    """The split of that very name, whichever of its words is used; None when it is no known one."""
    return next((split for split, words in _WORDS.items() if name.strip().lower() in words), None)


def is_split(name: str, wanted: str) -> bool:
    """Whether a name is the wanted split, or another word for it."""
    return name == wanted or (split_called(name) or name) == (split_called(wanted) or wanted)


def split_in(name: str) -> str | None:
    """The split a file name speaks of, if any: `train-00000-of-00002.parquet`, `dev32.jsonl`, `my_test.csv`."""
    words = re.findall(r"[a-z]+", name.lower())
    return next((split for split, names in _WORDS.items() if any(word in names for word in words)), None)
