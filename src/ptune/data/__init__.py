"""From files to batches: records, templates, tokens, padded or packed tensors.

The names below are imported on first use, so that reading a file needs neither torch nor transformers.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ptune.data.batching import TokenBudgetBatchSampler
    from ptune.data.collate import PackingCollator, PaddingCollator
    from ptune.data.data_report import DataReport
    from ptune.data.records import Example, Examples, load_examples
    from ptune.data.segments import Segments
    from ptune.data.template import Template, get_template
    from ptune.data.token_cache import Tokenized
    from ptune.data.token_report import TokenizeReport
    from ptune.data.tokenize import Encoded, encode, encode_prompt, tokenize_examples

_HOMES = {
    "TokenBudgetBatchSampler": "ptune.data.batching",
    "PackingCollator": "ptune.data.collate",
    "PaddingCollator": "ptune.data.collate",
    "DataReport": "ptune.data.data_report",
    "Example": "ptune.data.records",
    "Examples": "ptune.data.records",
    "load_examples": "ptune.data.records",
    "Segments": "ptune.data.segments",
    "Template": "ptune.data.template",
    "get_template": "ptune.data.template",
    "Encoded": "ptune.data.tokenize",
    "TokenizeReport": "ptune.data.token_report",
    "Tokenized": "ptune.data.token_cache",
    "encode": "ptune.data.tokenize",
    "encode_prompt": "ptune.data.tokenize",
    "tokenize_examples": "ptune.data.tokenize",
}

__all__ = [
    "DataReport",
    "Encoded",
    "Example",
    "Examples",
    "PackingCollator",
    "PaddingCollator",
    "Segments",
    "Template",
    "TokenBudgetBatchSampler",
    "TokenizeReport",
    "Tokenized",
    "encode",
    "encode_prompt",
    "get_template",
    "load_examples",
    "tokenize_examples",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return __all__
