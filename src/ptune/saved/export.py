"""A saved prompt in the forms that other programs take: a PEFT adapter, plain embeddings, a folder for vLLM.

Only the baked vectors go along; whoever takes them needs no prompt encoder. Everything is written under temporary names
and renamed. What stands in the place is replaced when that was asked for and it is an earlier export, and never else:
an export says in its README, or in its file's metadata, what it is. Each of these programs puts all virtual tokens
before the text; a prompt that has some inside it is refused.

Shapes: `P` virtual tokens, `D` token dimension.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save as save_safetensors

from ptune.config import TaskType
from ptune.errors import ConfigError, OutputError, listed, shown
from ptune.saved.export_mark import WRITER, check_empty, foreign, is_marked, marked
from ptune.saved.files import json_bytes, make_folder, write_atomic, write_set
from ptune.saved.format import CARD, SavedPrompt, adapter_tensors
from ptune.saved.peft import ADAPTER_CONFIG, ADAPTER_WEIGHTS, peft_config, peft_obstacle
from ptune.saved.vllm_files import Question, vllm_files
from ptune.tasks.task_parts import AUTO_CLASSES

EMBEDS_KEY = "prompt_embeds"
PAYLOAD_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
_SUFFIX = ".safetensors"
_MOST_OF_LABELS = 2000
"""Characters of the labels in a card."""
_LEFT_PADDING = (
    "PEFT 0.21 drops the position ids of left-padded batches: generate row by row with it, or use ptune.",
    "",
)


def export_peft(prompt: SavedPrompt, output: Path, *, overwrite: bool = False) -> list[Path]:
    """Write a folder that `PeftModel.from_pretrained` loads; gives back its files.

    Raises:
        ConfigError: PEFT would take the prompt for something else.
        OutputError: The folder holds something else, or cannot be written.
    """
    obstacle = peft_obstacle(prompt.config, both_ways=prompt.both_ways)
    if obstacle is not None:
        raise ConfigError(f"{obstacle}.", hint=_instead_of_peft(prompt))
    config = prompt.config if prompt.is_deep else replace(prompt.config, token_dim=prompt.vectors.shape[1])
    return _write_folder(
        output,
        {
            ADAPTER_CONFIG: json_bytes(peft_config(config, both_ways=prompt.both_ways)),
            ADAPTER_WEIGHTS: save_safetensors(adapter_tensors(prompt), metadata={"format": "pt"}),
            CARD: _peft_card(prompt).encode(),
        },
        kind="peft",
        overwrite=overwrite,
    )


def _instead_of_peft(prompt: SavedPrompt) -> str:
    """The way out where PEFT cannot take a prompt."""
    if prompt.config.tokens_in_text:
        return (
            "Answer with ptune (ptune generate, ptune chat), or train with a template that has {prompt:N} at its start "
            "alone."
        )
    pooled = "; for a classifier that reads as PEFT's, train with --pool-virtual-tokens"
    return f"Answer with ptune (ptune generate){pooled if _task(prompt) is TaskType.SEQ_CLS else ''}."


def export_embeds(prompt: SavedPrompt, output: Path, *, overwrite: bool = False) -> list[Path]:
    """Write one safetensors file: the tensor `prompt_embeds`, `(P, D)` in float32, and what it belongs to as metadata.

    Raises:
        ConfigError: The file's name does not end in `.safetensors`, or some virtual tokens stand inside the text, or
            the prompt is keys and values, or has a head.
        OutputError: Something else stands in its place, or it cannot be written.
    """
    check_embeddings(prompt, "embeds")
    _check_leading(prompt, "embeds")
    if prompt.head:
        modules = dict.fromkeys(name.partition(".")[0] for name in prompt.head)
        raise ConfigError(
            f"the prompt has a head that was trained with it ({listed(modules)}), and a file of embeddings has no "
            "place for one.",
            hint="Export it with --to peft, or answer with ptune (ptune generate, ptune evaluate).",
        )
    if output.suffix != _SUFFIX:
        raise ConfigError(
            f"--to embeds writes one file, and {output.name!r} does not end in {_SUFFIX}.", hint="Name it so."
        )
    if output.exists() or output.is_symlink():
        if not overwrite:
            raise OutputError(f"there is a file {output} already.", hint="Choose another name, or pass --overwrite.")
        if not _is_own_file(output):
            raise foreign(output)
    length, dim = prompt.vectors.shape
    facts = {
        "format": "pt",
        "written_by": WRITER,
        "base_model": prompt.config.base_model_name_or_path,
        "base_fingerprint": prompt.details.get("base_fingerprint"),
        "template": prompt.details.get("template") or None,
        "task_type": None if _task(prompt) is TaskType.CAUSAL_LM else _task(prompt).value,
        "virtual_tokens": length,
        "token_dim": dim,
    }
    metadata = {name: str(value) for name, value in facts.items() if value is not None}
    make_folder(output.parent)
    write_atomic(output, save_safetensors({EMBEDS_KEY: prompt.vectors.contiguous()}, metadata=metadata))
    return [output]


def export_vllm(
    prompt: SavedPrompt, output: Path, question: Question, *, dtype: str = "float32", overwrite: bool = False
) -> list[Path]:
    """Write a folder for a vLLM server: the payload, a request, a template, a program that asks, and a README.

    Args:
        prompt: The prompt.
        output: The folder.
        question: What the example asks, as the prompt's template writes it.
        dtype: Of the payload, a name of `PAYLOAD_DTYPES`; vLLM casts it to the model's own.
        overwrite: Replace an earlier export.

    Raises:
        ConfigError: Some of the virtual tokens stand inside the text, or the prompt is keys and values, or for another
            task than answering texts.
        OutputError: The folder holds something else, or cannot be written.
    """
    check_answering(prompt, "vllm")
    check_embeddings(prompt, "vllm")
    _check_leading(prompt, "vllm")
    buffer = io.BytesIO()
    torch.save(prompt.vectors.to(PAYLOAD_DTYPES[dtype]).clone(), buffer)
    payload = base64.b64encode(buffer.getvalue()).decode("ascii")
    files = vllm_files(payload, question, virtual_tokens=prompt.vectors.shape[0])
    contents = {name: text.encode() for name, text in files.items()}
    return _write_folder(output, contents, kind="vllm", overwrite=overwrite)


def check_answering(prompt: SavedPrompt, form: str) -> None:
    """Raise `ConfigError` for a prompt of no causal language model: what takes this form answers texts."""
    if _task(prompt) is not TaskType.CAUSAL_LM:
        raise ConfigError(
            f"the prompt is for {_task(prompt).value}, and --to {form} is for engines that run causal language models.",
            hint="Export it with --to peft, or answer with ptune (ptune generate, ptune evaluate).",
        )


def _task(prompt: SavedPrompt) -> TaskType:
    return TaskType(prompt.config.task_type or TaskType.CAUSAL_LM)


def check_embeddings(prompt: SavedPrompt, form: str) -> None:
    """Raise `ConfigError` for a deep prompt: what takes virtual-token embeddings has no use for keys and values."""
    if prompt.is_deep:
        raise ConfigError(
            f"the prompt is keys and values of every layer, and --to {form} takes virtual-token embeddings.",
            hint="Export it with --to peft; answer with ptune (ptune generate, ptune serve); or train another encoder.",
        )


def _check_leading(prompt: SavedPrompt, form: str) -> None:
    inside = prompt.config.tokens_in_text
    if inside:
        raise ConfigError(
            f"{inside} of the prompt's {len(prompt.vectors)} virtual tokens stand inside the text, and --to {form} "
            "puts all of them before it.",
            hint="Answer with ptune (ptune generate, ptune chat), or train with a template that has {prompt:N} at its "
            "start alone.",
        )


def _write_folder(output: Path, contents: Mapping[str, bytes], *, kind: str, overwrite: bool) -> list[Path]:
    """Write a set of files with a README among them, which is marked as an export's."""
    if not check_empty(output, overwrite=overwrite):
        there = [name for name in contents if (output / name).exists() or (output / name).is_symlink()]
        if there and not is_marked(output, kind):
            raise foreign(output / there[0])
    write_set(output, {**contents, CARD: marked(contents[CARD], kind)})
    return [output / name for name in contents]


def _is_own_file(path: Path) -> bool:
    """Whether a file is one that `export_embeds` wrote."""
    try:
        with safe_open(path, framework="pt") as stored:
            return (stored.metadata() or {}).get("written_by") == WRITER
    except (SafetensorError, OSError):
        return False


def _peft_card(prompt: SavedPrompt) -> str:
    """The README of a PEFT adapter. What a folder says stands in a code block, on a line each."""
    length, dim = prompt.vectors.shape
    task, labels = _task(prompt), prompt.details.get("labels")
    kind = AUTO_CLASSES[task]
    count = f", num_labels={len(labels)}" if labels else ""
    return "\n".join(
        [
            "---",
            "library_name: peft",
            "tags: [p-tuning, soft-prompt]",
            "---",
            "",
            f"# A soft prompt of {length} virtual tokens of dimension {dim}, as a PEFT adapter",
            "",
            "```text",
            f"frozen model: {shown(prompt.config.base_model_name_or_path)}",
            f"template: {shown(prompt.details.get('template') or None)}",
            *([f"labels: {shown(labels, _MOST_OF_LABELS)}"] if labels else []),
            "```",
            "",
            "```python",
            "from peft import PeftModel",
            f"from transformers import {kind}",
            "",
            f'base_model = {kind}.from_pretrained("the-frozen-model"{count})',
            'model = PeftModel.from_pretrained(base_model, "this-folder")',
            "```",
            "",
            *(_LEFT_PADDING if task is TaskType.CAUSAL_LM else ()),
        ]
    )
