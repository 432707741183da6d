"""What a frozen model can do: how long its context is, and which ways through it carry a soft prompt.

The prefix path (`ptune.prefix`) hands every row of a batch an already filled key/value cache. That is right for a
decoder whose layers keep plain keys and values, with or without a sliding window. State-space models, models with
layers that compress their cache, and models whose code comes from the hub get the concatenation path instead, which is
always right and slower.

`prefix_capability` reads the configuration and the signature of `forward`; nothing is run. What it says is tried on the
loaded model by `self_check`, which takes away what does not hold.
"""

from __future__ import annotations

import inspect
from dataclasses import dataclass

from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.cache_utils import DynamicCache, DynamicLayer, DynamicSlidingWindowLayer

from ptune.errors import ModelError
from ptune.frozen.cache_argument import cache_argument
from ptune.internals import keeps_state

_LENGTH_NAMES = ("max_position_embeddings", "n_positions", "max_seq_len", "max_sequence_length", "seq_length", "n_ctx")
_WINDOW_NAMES = ("sliding_window", "sliding_window_size", "attention_window_size", "window_size", "keep_window_size")
_ALIBI_MODELS = ("bloom",)
_REMOTE_CODE = "transformers_modules"
_WINDOW_IN_THE_CACHE_ALONE = ("MoshiForCausalLM",)
"""Their cache forgets what lies outside the sliding window, and without one nothing is masked: two models in one. The
sweep of `tests/decoders` found it."""


@dataclass(frozen=True)
class Capability:
    """How an architecture can be given a soft prompt."""

    prefix: bool
    """True when `forward` takes a filled key/value cache; False leaves the concatenation path."""
    sliding_window: int | None
    """The smallest attention window among the layers, in tokens; None when every layer sees the whole text."""
    takes_position_ids: bool
    """True when `forward` has an argument `position_ids`."""
    reason: str
    """Why, in words for the user."""
    left_padding: bool = True
    """True when padding on the left, with a mask and position ids, leaves a row as it is. Otherwise rows of one length
    are answered at a time."""
    cached_decoding: bool = True
    """True when a new token can be read behind a cache of those before it. Otherwise each one reads the whole text."""
    concat_padding: bool = False
    """The same for prompt and text concatenated, which rows of different lengths beyond a sliding window may take."""
    beams_share: bool = True
    """True when rows of the cache can change places, as beams do. Otherwise beams go without a cache."""
    narrow_head: bool = True
    """True when the LM head can be run on some positions alone."""
    filler_id: int | None = None
    """The token id that virtual tokens go by, where the model makes more of ids than their embeddings (Gemma 4's inputs
    of each layer, routing by hash). None where embeddings are all it reads."""
    answer_obstacle: str | None = None
    """Why `generate` cannot answer behind a prompt; None where it can."""
    notes: tuple[str, ...] = ()
    """What is done in another way than with most models, a sentence each."""


def check_causal(model: PreTrainedModel) -> None:
    """Refuse an encoder that was not told to be a decoder: BERT and its kin as they come. Costs no run of the model.

    Raises:
        ModelError: It attends in both directions.
    """
    # BigBird-Pegasus and GIT say the one and mask the text ahead all the same; the self-check tries them.
    if sees_both_ways(model) and _is_encoder(model):
        raise not_causal(model, "attends in both directions")


def sees_both_ways(model: PreTrainedModel) -> bool:
    """Whether every layer of a model says that it attends to the text ahead too."""
    told = {module.is_causal for module in model.modules() if isinstance(getattr(module, "is_causal", None), bool)}
    return told == {False}


def not_causal(model: PreTrainedModel, why: str) -> ModelError:
    """The error for a model that sees the text ahead, with the way out that its configuration offers."""
    hint = "Choose a decoder such as Llama, Qwen, GPT-2 or BLOOM."
    if _is_encoder(model):
        hint = "Load it with is_decoder=True (is_decoder in its config.json), which makes it a decoder."
    return ModelError(f"{type(model).__name__} is not a causal language model: it {why}.", hint=hint)


def _is_encoder(model: PreTrainedModel) -> bool:
    return getattr(model.config.get_text_config(decoder=True), "is_decoder", None) is False


def context_length(model: PreTrainedModel) -> int | None:
    """The most tokens, virtual ones included, that the model's positions reach.

    None where the architecture has no such limit: ALiBi (BLOOM, Falcon with it), relative distances (T5), state-space
    models. A sliding window is no limit. MPT has one in spite of its ALiBi: its bias is built for `max_seq_len`
    positions. RoBERTa and its kin begin to count behind the position of the padding token.
    """
    config = model.config.get_text_config(decoder=True)
    if config.model_type in _ALIBI_MODELS or getattr(config, "alibi", False):
        return None
    if getattr(config, "relative_attention_num_buckets", None) is not None:
        return None
    for name in _LENGTH_NAMES:
        value = getattr(config, name, None)
        if isinstance(value, int) and value > 0:
            return value - positions_before_the_first(model)
    return None


def positions_before_the_first(model: PreTrainedModel) -> int:
    """Rows of a table of positions before that of the first token: RoBERTa's kin leave out that of padding."""
    for name, module in model.named_modules():
        if name.endswith("position_embeddings") and isinstance(module, nn.Embedding) and module.padding_idx is not None:
            return module.padding_idx + 1
    return 0


def prefix_capability(model: PreTrainedModel) -> Capability:
    """Whether `model` takes the prompt as a filled cache, with the reason, as its class declares it."""
    arguments = inspect.signature(model.forward).parameters
    takes_position_ids = "position_ids" in arguments
    config = model.config.get_text_config(decoder=True)
    obstacle = _obstacle(model, takes_cache=cache_argument(model) is not None)
    if obstacle is not None:
        return Capability(
            prefix=False,
            sliding_window=_declared_window(config),
            takes_position_ids=takes_position_ids,
            reason=f"{type(model).__name__} {obstacle}; the prompt is concatenated to the text instead",
            notes=_notes(config),
        )
    layers = _cache_of(model).layers
    windows = [layer.sliding_window for layer in layers if isinstance(layer, DynamicSlidingWindowLayer)]
    return Capability(
        prefix=True,
        sliding_window=min(windows, default=None) if windows else _window_of_another_name(config),
        takes_position_ids=takes_position_ids,
        left_padding=takes_position_ids or config.model_type in _ALIBI_MODELS,
        cached_decoding=type(model).__name__ not in _WINDOW_IN_THE_CACHE_ALONE,
        reason=f"{type(model).__name__} keeps plain keys and values in its {len(layers)} layers",
        notes=_notes(config),
    )


def _notes(config: PreTrainedConfig) -> tuple[str, ...]:
    if not getattr(config, "output_router_logits", False):
        return ()
    return ("output_router_logits is set, but the router is frozen: its load-balancing loss is left out",)


def _cache_of(model: PreTrainedModel) -> DynamicCache:
    """An empty cache with the layers that the model's configuration asks for."""
    return DynamicCache(config=model.config.get_text_config(decoder=True))


def _obstacle(model: PreTrainedModel, *, takes_cache: bool) -> str | None:
    """What keeps the model from the prefix path, as a verb phrase; None when nothing does."""
    config = model.config.get_text_config(decoder=True)
    if keeps_state(model):
        return "keeps a running state rather than keys and values"
    if not takes_cache:
        return "takes no cache of keys and values"
    if type(model).__module__.startswith(_REMOTE_CODE):
        return "runs code from its repository, whose cache may differ"
    if model.config.is_encoder_decoder:
        return "is an encoder-decoder"
    if getattr(config, "attention_chunk_size", None) is not None:
        return "attends within chunks"
    try:
        layers = _cache_of(model).layers
    except (KeyError, AttributeError) as fault:
        return f"has layers of the kind {fault}, whose cache is not known"
    other = sorted(
        {type(item).__name__ for item in layers if type(item) not in (DynamicLayer, DynamicSlidingWindowLayer)}
    )
    return f"has layers with another cache ({', '.join(other)})" if other else None


def _declared_window(config: PreTrainedConfig) -> int | None:
    """The smallest window that the configuration names, for models off the prefix path."""
    found = [getattr(config, name, None) for name in _WINDOW_NAMES]
    return min((value for value in found if isinstance(value, int) and value > 0), default=None)


def _window_of_another_name(config: PreTrainedConfig) -> int | None:
    """A window that the cache knows nothing of: GPT-Neo's, whose layers keep all keys and mask some."""
    return None if hasattr(config, "sliding_window") else _declared_window(config)
