"""What a gateway is made of: the frozen model's shapes and tokenizer, its prompts, and its servers elsewhere.

Where the model is an exported one (`ptune export --to model`) its prompts are tokens of its vocabulary, and its
configuration and tokenizer are all that is read. Otherwise its weights are mapped into memory, for the embeddings of
texts and to check prompts against.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from transformers import PreTrainedTokenizerBase

from ptune.errors import ModelError
from ptune.frozen.parameters import has_weights
from ptune.loading.embedding_table import embedding_scale
from ptune.loading.load import load_config, load_tokenizer, pretrained_source
from ptune.loading.mapped import mapped_model
from ptune.loading.skeleton import skeleton
from ptune.model.wrapper import PTunedModel
from ptune.saved.as_model.engine_card import PROMPTS
from ptune.serving.engine.engine import Bounds, Watch
from ptune.serving.gateway.upstream_engine import UpstreamEngine
from ptune.serving.gateway.upstream_text import UpstreamText
from ptune.serving.gateway.upstreams import Probe, Upstreams
from ptune.serving.prompt_registry import PromptRegistry
from ptune.serving.serve_settings import ServeSettings

_PROBE = "Order 40312 costs 19.99, isn't it?  Straße 🙂"


def gateway_model(
    name: str, *, trust_remote_code: bool = False, revision: str | None = None
) -> tuple[PTunedModel, PreTrainedTokenizerBase]:
    """The frozen model as far as a gateway needs it, and its tokenizer.

    Arguments and errors as for `mapped_model`.
    """
    tokenizer = load_tokenizer(name, trust_remote_code=trust_remote_code, revision=revision)
    if (Path(pretrained_source(name)) / PROMPTS).is_file():
        base = skeleton(load_config(name, trust_remote_code=trust_remote_code, revision=revision))
    else:
        base = mapped_model(name, trust_remote_code=trust_remote_code, revision=revision)
    return PTunedModel(base, self_check=False).eval(), tokenizer


def make_gateway(
    model: PTunedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: PromptRegistry,
    settings: ServeSettings,
    watch: Watch,
) -> UpstreamEngine:
    """The engine of a gateway.

    Raises:
        ModelError: The model's embeddings do more than look up rows.
    """
    served: Sequence[int | None] = [one.first_id for one in prompts.prompts.values()]
    first = next((one for one in served if one is not None), None)
    shown = "" if first is None else str(tokenizer.convert_ids_to_tokens(first))
    text = shown + _PROBE
    probe = Probe(text, tokenizer(text, add_special_tokens=False)["input_ids"])
    upstreams = Upstreams(settings.upstreams, probe, model=settings.upstream_model, key=settings.upstream_key)
    bounds = Bounds(rows=settings.max_concurrency, waiting=settings.max_waiting)
    return UpstreamEngine(upstreams, _text_of(model), bounds, watch)


def _text_of(model: PTunedModel) -> UpstreamText:
    if not has_weights(model.base):
        return UpstreamText()
    layer = model.base.get_input_embeddings()
    scale = embedding_scale(layer)
    if scale is None:
        raise ModelError(
            f"the embeddings of {model.base.config.model_type} do more than look up rows.",
            hint="Export the prompts as vocabulary (ptune export --to model) and serve that model.",
        )
    return UpstreamText(layer, scale)
