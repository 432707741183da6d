"""A short compression on a small random model, and what must be the same of two of them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from architectures import build
from ptune import compress
from ptune.compression.compress import CompressResult
from text_of_things import things

TEXT = things(3)
SHORT: dict[str, Any] = {
    "questions": 12, "excerpt_tokens": 64, "answer_tokens": 8, "top_k": 8, "study_batch_size": 5, "max_length": 128,
    "num_virtual_tokens": 8, "eval_rows": 3, "num_train_epochs": 2, "per_device_train_batch_size": 4, "use_cpu": True,
    "report_rows": 3,
}  # fmt: skip


def model_folder(folder: Path, tokenizer: Any, architecture: str = "llama", **values: Any) -> Path:
    build(architecture, **values).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def text_file(folder: Path, text: str = TEXT) -> Path:
    path = folder / "text.txt"
    path.write_text(text, encoding="utf-8")
    return path


def run(text: Path, model: Path, output: Path, **values: Any) -> CompressResult:
    return compress(text, model=str(model), output=str(output), **{**SHORT, **values})


def made(folder: Path) -> dict[str, bytes]:
    """What is the same of a run that was cut off and of one that was left alone."""
    names = ["encoder.safetensors", *(f"study/{path.name}" for path in (folder / "study").iterdir())]
    return {name: (folder / name).read_bytes() for name in sorted(names)}
