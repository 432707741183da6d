"""What tests of soft prompts share: prompts made of real tokens, padded batches, and errors."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from transformers import PreTrainedModel

from architectures import BOS, PAD, VOCABULARY
from ptune.config import PromptEncoderConfig, PromptTuningConfig
from ptune.frozen.cache_argument import cache_argument
from ptune.model.wrapper import PTunedModel

FIRST_ORDINARY = BOS + 1
"""The smallest token that is neither padding nor end nor beginning."""


_FLOAT32_INSIDE = ("bloom", "llama", "qwen2", "qwen3", "mistral", "gemma3", "mamba")
"""These compute a norm, a softmax or a scan in float32 whatever the dtype of the model."""


def tolerance(name: str, dtype: torch.dtype) -> float:
    """The largest relative error that rounding explains for an architecture."""
    if dtype is torch.float64 and name not in _FLOAT32_INSIDE:
        return 1e-10
    return 1e-6 if dtype is torch.float64 else 1e-5


def draw(rows: int, length: int, *, seed: int = 0) -> torch.Tensor:
    """`(rows, length)` ordinary tokens."""
    return torch.randint(FIRST_ORDINARY, VOCABULARY, (rows, length), generator=torch.Generator().manual_seed(seed))


def texts(lengths: Sequence[int], *, seed: int = 0) -> list[torch.Tensor]:
    """One row of ordinary tokens for each length."""
    return [draw(1, length, seed=seed + 100 * at)[0] for at, length in enumerate(lengths)]


def padded(rows: Sequence[torch.Tensor], side: str, *, fill: int = PAD) -> tuple[torch.Tensor, torch.Tensor]:
    """The rows in one `(B, T)` tensor, and its mask."""
    width = max(len(row) for row in rows)
    ids = torch.full((len(rows), width), fill)
    mask = torch.zeros(len(rows), width, dtype=torch.long)
    for at, row in enumerate(rows):
        place = slice(width - len(row), width) if side == "left" else slice(0, len(row))
        ids[at, place], mask[at, place] = row, 1
    return ids, mask


def supervised(ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Labels on every real token, the first one of each row included."""
    return ids.masked_fill(mask == 0, -100)


def add_tokens_as_prompt(model: PTunedModel, name: str, tokens: torch.Tensor) -> None:
    """Add a prompt whose vectors are the embeddings of `tokens`, as the model itself embeds them."""
    model.add_prompt(name, PromptTuningConfig(num_virtual_tokens=len(tokens)))
    with torch.no_grad():
        vectors = model.base.get_input_embeddings()(tokens)
        model.prompts[name].embedding.weight.copy_(vectors)


def tokens_as_prompt(base: PreTrainedModel, tokens: torch.Tensor) -> PTunedModel:
    """A model whose soft prompt is the embeddings of `tokens`, in the model's own dtype."""
    model = PTunedModel(base)
    add_tokens_as_prompt(model, "default", tokens)
    return model.to(base.dtype)


def encoder_prompt(base: PreTrainedModel, kind: str = "MLP", *, seed: int = 0, **values: object) -> PTunedModel:
    """A model behind a random prompt encoder, drawn from `seed`."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        config = PromptEncoderConfig(**{"num_virtual_tokens": 6, "encoder_reparameterization_type": kind, **values})
        return PTunedModel(base, config).to(base.dtype)


def relative_error(found: torch.Tensor, wanted: torch.Tensor) -> float:
    """The norm of the difference over the norm of what is wanted."""
    found, wanted = found.detach().double(), wanted.detach().double()
    return float((found - wanted).norm() / wanted.norm().clamp_min(1e-30))


def prompt_gradient(model: PTunedModel, **inputs: object) -> tuple[torch.Tensor, torch.Tensor]:
    """The loss of a batch, and its gradient by the `(P, D)` prompt vectors."""
    kept: list[torch.Tensor] = []

    def keep(_module: object, _args: object, output: torch.Tensor) -> None:
        output.retain_grad()
        kept.append(output)

    model.zero_grad()
    handle = model.prompts[model.active_prompt].register_forward_hook(keep)
    loss = model(**inputs).loss
    handle.remove()
    loss.backward()
    grad = kept[0].grad if kept[0].grad_fn is not None else model.prompts[model.active_prompt].embedding.weight.grad
    assert grad is not None
    return loss.detach(), grad.clone()


def checkpoint_activations(model: PreTrainedModel) -> None:
    """Compute activations again in the backward; called gradient checkpointing before transformers 5.23."""
    getattr(model, "activation_checkpointing_enable", getattr(model, "gradient_checkpointing_enable", None))()


def pefts_greedy(theirs: PreTrainedModel, ids: torch.Tensor, *, tokens: int, end: int | None = None) -> torch.Tensor:
    """`(1, T + tokens)`: the text and PEFT's answer to it, which the token `end` may end.

    By its `generate`, where PEFT knows the version of transformers. PEFT 0.21 hands on `past_key_values`, which is
    called `cache` since transformers 5.24: its prompt is lost then, and its forward is asked for one token at a time.
    """
    if cache_argument(theirs.get_base_model()) != "cache":
        options = {"max_new_tokens": tokens, "do_sample": False, "eos_token_id": end, "pad_token_id": 0}
        return theirs.generate(input_ids=ids, attention_mask=torch.ones_like(ids), **options)
    for _ in range(tokens):
        ids = torch.cat([ids, theirs(input_ids=ids).logits[:, -1:].argmax(-1)], dim=1)
        if ids[0, -1] == end:
            break
    return ids
