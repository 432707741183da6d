"""Whether a class of transformers is still the one that a fused part stands in for.

A fused part computes what a class of transformers computes. A later version may change that class; ptune would then
answer with the old mathematics. So the code of each class was noted when it was read, and a class with other code is
run as it is. The note is a digest of the syntax tree: comments and layout may change.
"""

from __future__ import annotations

import ast
import hashlib
import inspect
import logging
import sys
import textwrap
from collections.abc import Sequence
from typing import Any

import transformers

KNOWN: dict[str, tuple[str, ...]] = {
    "llama.LlamaRMSNorm": ("6c643ec62f12b9cf",),
    "llama.LlamaMLP": ("01ec69f6ab5b2800",),
    "llama.LlamaAttention": ("f2e6b77cc0f91a4e", "e6705e2a8882b035"),
    "llama.apply_rotary_pos_emb": ("b9833c77382624e4",),
    "llama.rotate_half": ("e3672a39802de532",),
    "mistral.MistralRMSNorm": ("104730982115360e",),
    "mistral.MistralMLP": ("2af7d52a8e0a7c6b",),
    "mistral.MistralAttention": ("c8d4d343e756c0ad", "978ac1f43d199617"),
    "mistral.apply_rotary_pos_emb": ("b9833c77382624e4",),
    "mistral.rotate_half": ("e3672a39802de532",),
    "qwen2.Qwen2RMSNorm": ("b17ab416111245ef",),
    "qwen2.Qwen2MLP": ("8617d9a4c8ef2412",),
    "qwen2.Qwen2Attention": ("a2796872e021e514", "095c43bc003e5289"),
    "qwen2.apply_rotary_pos_emb": ("b9833c77382624e4",),
    "qwen2.rotate_half": ("e3672a39802de532",),
    "qwen3.Qwen3RMSNorm": ("d9cab0c2ec9da780",),
    "qwen3.Qwen3MLP": ("7be5d284f722a21c",),
    "qwen3.Qwen3Attention": ("1ad412873601cb64", "c2b8da550b89d4a9"),
    "qwen3.apply_rotary_pos_emb": ("b9833c77382624e4",),
    "qwen3.rotate_half": ("e3672a39802de532",),
    "bloom.BloomModel": (
        "a3f293e6b784437c",
        "19616a6cb9234641",
        "7e6fb4fe0ca442a4",
    ),
    "bloom.BloomAttention": ("02f42fd6b6dc8190",),
    "bloom.BloomBlock": ("869e9b0ccb14aff4",),
    "bloom.BloomGelu": ("2d05e445b42c75e6",),
    "bloom.GeLUFunction": ("b7beeb1ffb130dd4",),
    "bloom.bloom_gelu_forward": ("2348ec1f522fede5",),
    "bloom.bloom_gelu_back": ("29f746ac21a07ffc",),
    "transformers.NewGELUActivation": ("f26c5d4dd129ce2b",),
    "bloom.build_alibi_tensor": (
        "27e2892048d7b8e1",
        "0b8270bf68fba430",
    ),
}
"""`family.Name` → digests of its code in transformers 5.18 to 5.24. A new one goes in once its code has been read.

The family is the module's folder: `bloom` for `transformers.models.bloom.modeling_bloom`.
"""
_log = logging.getLogger("ptune")


def all_known(module: str, names: Sequence[str]) -> bool:
    """Whether the code of classes and functions is code that was read; what is not is logged.

    Args:
        module: Where they are, as `transformers.models.llama.modeling_llama`; it has been imported.
        names: Their names.
    """
    there = sys.modules[module]
    family = module.split(".")[-2]
    changed = [name for name in names if digest(getattr(there, name, None)) not in KNOWN.get(f"{family}.{name}", ())]
    if changed:
        _log.warning(
            "%s of transformers %s is not the code that ptune's fused form was made for: %s runs unfused",
            ", ".join(changed),
            transformers.__version__,
            family,
        )
    return not changed


def digest(part: Any) -> str:
    """A digest of a class's or a function's code; empty where the code is not there."""
    try:
        return digest_of(inspect.getsource(part))
    except (OSError, TypeError):
        return ""


def digest_of(source: str) -> str:
    """A digest of code: of its syntax tree, without documentation and annotations."""
    tree = ast.parse(textwrap.dedent(source))
    for node in ast.walk(tree):
        if isinstance(node, (ast.ClassDef, ast.FunctionDef)) and ast.get_docstring(node) is not None:
            del node.body[0]
        if isinstance(node, ast.arg):
            node.annotation = None
        if isinstance(node, ast.FunctionDef):
            node.returns = None
    return hashlib.sha256(ast.dump(tree).encode()).hexdigest()[:16]
