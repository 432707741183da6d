"""A model folder with soft prompts as vocabulary.

Each virtual token is a special token of the tokenizer, and its vector a row of the model's embeddings. Every engine
that runs the model then runs the prompts: from the embeddings on, a virtual token is to a decoder what a word is. The
answer is ptune's own as far as the text has the token ids that ptune gives the model (`chat`), the embedding layer
gives the vectors (one that scales its rows gets them divided by its scale), and no answer holds a virtual token
(`silent_rows`). Rows that a model's table has beyond its tokenizer's vocabulary are taken first.

The model's other tensors are copied from file to file, in pieces (`tensors`). It is loaded in the dtype that it is
stored in, where the CPU reads it from its files as it needs them: for its fingerprint, and to measure and compare.

Shapes: `P` virtual tokens of a prompt, `n` those of all.
"""

from __future__ import annotations

import copy
import json
import re
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from tokenizers import AddedToken
from tqdm import tqdm
from transformers import AutoConfig, PreTrainedModel, PreTrainedTokenizerBase

from ptune.errors import ConfigError, ModelError, shown
from ptune.frozen.parameters import device_of
from ptune.frozen.quantized import is_quantized
from ptune.loading.load import check_tokenizer, load_model, load_tokenizer
from ptune.loading.skeleton import skeleton
from ptune.saved.as_model.chat import SELECTOR, NamedPrompt, add_prompts, expected_ids, token_text
from ptune.saved.as_model.engine_card import PROMPTS, Exported, card, prompt_list
from ptune.saved.as_model.silent_rows import silent_row, unmeasured_row
from ptune.saved.as_model.source import DTYPES, ModelSource
from ptune.saved.as_model.table import check_table, config_with_prompts, is_tied, tensors_with_prompts
from ptune.saved.as_model.tensors import Streamed, write_model
from ptune.saved.as_model.tokenizer_files import write_tokenizer
from ptune.saved.as_model.whole_folder import KIND, check_place, whole_folder
from ptune.saved.export import check_answering, check_embeddings
from ptune.saved.export_mark import marked
from ptune.saved.files import json_bytes, write_flushed
from ptune.saved.format import CARD, read_prompt
from ptune.saved.opened_folder import OpenedFolder
from ptune.saved.prompt_io import load_prompt
from ptune.saved.prompt_template import template_of

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_SIZE = re.compile(r"([0-9]{1,6}(?:\.[0-9]{1,3})?)\s*(KB|MB|GB|TB)?", re.IGNORECASE)
_UNITS = {None: 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12}
_TRIED = "Where is my order?"
_SAME, _SAME_CAST = 1e-3, 0.25
"""The norm of the difference between logits before and after, relative to theirs; and where numbers were cast."""


@dataclass(frozen=True)
class _Loaded:
    """A prompt that belongs to the model."""

    named: NamedPrompt
    vectors: torch.Tensor
    """`(P, D)` float32."""


def export_model(
    prompts: Mapping[str, OpenedFolder],
    output: Path,
    *,
    model: str | None = None,
    template: str | None = None,
    dtype: str | None = None,
    max_shard_size: str = "5GB",
    device: str | None = None,
    measure: bool = True,
    force: bool = False,
    overwrite: bool = False,
) -> Exported:
    """Write a model folder in which each prompt is a run of special tokens.

    Args:
        prompts: Name of each prompt in the folder → its own folder.
        output: The folder; there may be none yet, or an empty one.
        model: The frozen model; by default the one that the first prompt was trained on.
        template: Of all prompts; by default the one that each was trained with.
        dtype: float32, bfloat16 or float16; by default as the model is stored.
        max_shard_size: The most that a file of weights holds, as `5GB`.
        device: Where the model runs to be measured; the CPU by default, which reads it from its files.
        measure: False does not run the model: the virtual tokens' output rows are the mean of all, and logits are not
            compared.
        force: Accept a model or a tokenizer that a prompt was not made for.
        overwrite: Replace an earlier export.

    Raises:
        PromptError: A prompt is damaged, or made for another model or tokenizer.
        ModelError: The model cannot be loaded, or a row of its table cannot be a virtual token.
        ConfigError: A name, a template or a size that cannot be used.
        OutputError: The folder holds something else, or cannot be written.
    """
    if not prompts:
        raise ConfigError("there is no prompt to export.", hint="Name a prompt folder.")
    check_names(list(prompts))
    shard_bytes = _bytes(max_shard_size)
    check_place(output, overwrite=overwrite)
    for opened in prompts.values():
        prompt = read_prompt(opened)
        check_answering(prompt, "model")
        check_embeddings(prompt, "model")  # what cannot be is told before anything large is read
    first = next(iter(prompts.values()))
    name, revision = model or first.base_name(), None if model else first.base_revision()
    source = ModelSource.of(name, revision, None if dtype is None else DTYPES[dtype])
    base = load_model(name, dtype=source.loaded_as, device=device or "cpu", revision=revision)
    if dtype is not None and is_quantized(base):
        raise ConfigError(
            f"--dtype {dtype}: the weights of {name} are quantized, and are copied as they are.", hint="Leave it out."
        )
    check_table(base)
    own = load_tokenizer(name, revision=revision)
    tokenizer = copy.deepcopy(own)
    check_tokenizer(base, own)
    loaded = [_loaded(base, own, key, opened, template=template, force=force) for key, opened in prompts.items()]
    first_ids = _add_tokens(tokenizer, loaded)
    add_prompts(tokenizer, [one.named for one in loaded], first_ids)
    tokens, start = sum(one.named.tokens for one in loaded), first_ids[loaded[0].named.name]
    vectors = [one.vectors for one in loaded]
    silent = silent_row(base, own, vectors, tokens) if measure else unmeasured_row(base)
    tensors = tensors_with_prompts(source, base, torch.cat(vectors), start, silent)
    config = config_with_prompts(source, base, start + tokens)
    exported = Exported(
        output=output,
        model=name,
        prompts=tuple(one.named for one in loaded),
        first_ids=first_ids,
        silent=silent,
        vocabulary=config["vocab_size"],
        was_tied=is_tied(base),
    )
    generation = _generation_config(source, base, range(start, start + tokens))
    own_files = _own_files(exported, tokenizer, config, generation)
    with whole_folder(output) as partial:
        _write(partial, own_files, tensors, tokenizer, source, shard_bytes=shard_bytes)
        _check_written(partial, base)
        if measure:
            _check_logits(partial, base, own, loaded[0], start, dtype=source.dtype)
    return exported


def check_names(names: Sequence[str]) -> None:
    """Raise `ConfigError` unless each can be part of a token, and none comes twice."""
    for name in names:
        if not _NAME.fullmatch(name):
            raise ConfigError(
                f"the prompt's name {shown(name)} cannot be part of a token.",
                hint="Give one with --name: letters, digits, - _ and ., at most 64, a letter or digit first.",
            )
        if names.count(name) > 1:
            raise ConfigError(f"two prompts are named {name!r}.", hint="Give each its own --name, in their order.")


def _bytes(size: str) -> int:
    found = _SIZE.fullmatch(size.strip())
    number = int(float(found[1]) * _UNITS[found[2].upper() if found[2] else None]) if found else 0
    if number < 1:
        raise ConfigError(f"max_shard_size={size!r} is no size.", hint="Write it as 5GB or 500MB.")
    return number


def _loaded(
    base: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    name: str,
    opened: OpenedFolder,
    *,
    template: str | None,
    force: bool,
) -> _Loaded:
    """A prompt, checked against the model and its tokenizer."""
    opened.check_tokenizer(tokenizer, force=force)
    encoder, config = load_prompt(base, opened, trainable=False, force=force)
    named = NamedPrompt(name, config.num_virtual_tokens, template_of(opened, tokenizer, config, template))
    return _Loaded(named, encoder.baked().detach().float().cpu())


def _add_tokens(tokenizer: PreTrainedTokenizerBase, loaded: Sequence[_Loaded]) -> dict[str, int]:
    """Give the tokenizer the prompts' tokens; name → id of its first."""
    texts = {one.named.name: [token_text(one.named.name, at) for at in range(one.named.tokens)] for one in loaded}
    words = [word for own in texts.values() for word in own]
    known = tokenizer.get_vocab()
    taken = [word for word in known if word.startswith(f"<|{SELECTOR}")]
    if taken:
        raise ModelError(
            f"{tokenizer.name_or_path} has soft prompts among its tokens already ({shown(taken[0])}).",
            hint="Export all prompts together, from the model that they were trained on.",
        )
    tokenizer.add_tokens([AddedToken(word, special=True, normalized=False) for word in words], special_tokens=True)
    vocabulary = tokenizer.get_vocab()
    ids = [vocabulary[word] for word in words]
    if ids != list(range(ids[0], ids[0] + len(words))) or set(ids) & set(known.values()):
        raise ModelError(
            f"the tokenizer of {tokenizer.name_or_path} gives new tokens ids that do not follow its own.",
            hint="Answer with ptune: ptune generate, ptune chat.",
        )
    return {name: ids[words.index(own[0])] for name, own in texts.items()}


def _own_files(
    exported: Exported, tokenizer: PreTrainedTokenizerBase, config: dict[str, Any], generation: dict[str, Any]
) -> dict[str, bytes]:
    """The files that say what the model is and how it is asked."""
    return {
        "config.json": json_bytes(config),
        "generation_config.json": json_bytes(generation),
        PROMPTS: json_bytes(prompt_list(exported, tokenizer)),
        CARD: marked(card(exported, tokenizer).encode(), KIND),
    }


def _generation_config(source: ModelSource, base: PreTrainedModel, tokens: range) -> dict[str, Any]:
    """The model's settings for generation, with the virtual tokens among those that are not to be written."""
    path = source.path("generation_config.json")
    text = Path(path).read_text(encoding="utf-8") if path else str(base.generation_config.to_json_string())
    settings: dict[str, Any] = json.loads(text)
    return {**settings, "suppress_tokens": [*(settings.get("suppress_tokens") or []), *tokens]}


def _write(
    folder: Path,
    own_files: Mapping[str, bytes],
    tensors: Mapping[str, Streamed],
    tokenizer: PreTrainedTokenizerBase,
    source: ModelSource,
    *,
    shard_bytes: int,
) -> None:
    """Every file of the model."""
    write_tokenizer(tokenizer, folder)
    vocabulary = source.path("tokenizer.model")
    if vocabulary is not None and not (folder / "tokenizer.model").exists():
        shutil.copyfile(vocabulary, folder / "tokenizer.model")
    total = sum(tensor.bytes for tensor in tensors.values())
    with tqdm(total=total, desc="writing", unit="B", unit_scale=True, disable=None) as bar:
        write_model(folder, tensors, shard_bytes=shard_bytes, advance=bar.update)
    for name, content in own_files.items():
        write_flushed(folder / name, content)


def _check_written(folder: Path, base: PreTrainedModel) -> None:
    """Raise `ModelError` where the model's class keeps one table for inputs and outputs."""
    if is_tied(skeleton(AutoConfig.from_pretrained(folder))):
        raise ModelError(
            f"{type(base).__name__} ties its input and output embeddings whatever its configuration says, so that "
            "virtual tokens would be answers.",
            hint="Answer with ptune: ptune generate, ptune chat.",
        )


def _check_logits(
    folder: Path,
    base: PreTrainedModel,
    own: PreTrainedTokenizerBase,
    prompt: _Loaded,
    start: int,
    *,
    dtype: torch.dtype | None,
) -> None:
    """Raise `ModelError` unless the written model gives the logits that the prompt gives before the model.

    Args:
        folder: The written model.
        base: The model.
        own: Its tokenizer.
        prompt: The first prompt.
        start: Its first token id.
        dtype: What the numbers were cast to; None: as they were.
    """
    written = load_model(str(folder), dtype=str(dtype or base.dtype).removeprefix("torch."), device="cpu")
    ids = torch.tensor([expected_ids(own, prompt.named, start, _TRIED)])
    layer: Any = base.get_input_embeddings()
    virtual = (ids[0] >= start) & (ids[0] < start + prompt.named.tokens)
    embeds = layer(ids.masked_fill(virtual, 0).to(device_of(base)))
    embeds[0, virtual.to(embeds.device)] = prompt.vectors[ids[0][virtual] - start].to(embeds)
    with torch.inference_mode():
        meant = base(inputs_embeds=embeds).logits[0].float().cpu()
        found = written(input_ids=ids).logits[0, :, : meant.shape[1]].float()
    ordinary = min(start, meant.shape[1])
    error = float((found - meant)[:, :ordinary].norm() / meant[:, :ordinary].norm())
    if not error <= (_SAME if dtype is None else _SAME_CAST):
        raise ModelError(
            f"the written model's logits differ from {base.name_or_path}'s behind the prompt by {error:.1e} of "
            "their norm.",
            hint="Answer with ptune: ptune generate, ptune chat. Report it with the model's name.",
        )
