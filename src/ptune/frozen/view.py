"""A view of the frozen model: the same weights, other code.

Packed rows need another attention, and fused parts in place of single steps. The frozen model itself stays untouched:
every module is copied shallowly (a copy shares parameters and buffers with its original), classes are exchanged on the
copies, and the copies' configuration names ptune's attention. What changes on the model later (training mode, device,
dtype, activation checkpointing) is taken over before each use.
"""

from __future__ import annotations

import copy
import threading
from collections.abc import Callable
from functools import partial
from typing import Any

from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel

from ptune.frozen.shards import shallow_copy
from ptune.internals import children_of, set_attention

Replace = Callable[[type[nn.Module]], type[nn.Module]]


class ModelView:
    """Keeps a view of a model up to date.

    Args:
        base: The frozen model.
        replace: Gives the class that stands in for a class.
        attention: Name of the attention function that the view's configuration asks for; the model's own when None.
    """

    def __init__(self, base: PreTrainedModel, replace: Replace, *, attention: str | None = None) -> None:
        self._base = base
        self._replace = replace
        self._attention = attention
        self._view: nn.Module | None = None
        self._lock = threading.Lock()

    def __reduce__(self) -> Any:
        # A copy of the wrapper has a copy of the model: the view is built again from that one.
        return partial(ModelView, attention=self._attention), (self._base, self._replace)

    def _build(self) -> None:
        self._configs: dict[int, PreTrainedConfig] = {}
        self._copies: dict[int, nn.Module] = {}
        self._pairs: list[tuple[nn.Module, nn.Module, tuple[nn.Module | None, ...], dict[str, Any]]] = []
        self._view = self._copy(self._base)

    def _copy(self, module: nn.Module) -> nn.Module:
        if id(module) in self._copies:
            return self._copies[id(module)]
        twin = shallow_copy(module, self._replace)
        self._copies[id(module)] = twin
        children = {name: None if child is None else self._copy(child) for name, child in children_of(module).items()}
        own: dict[str, Any] = {"_modules": children}
        config = module.__dict__.get("config")
        if self._attention is not None and isinstance(config, PreTrainedConfig):
            own["config"] = self._config(config, self._attention)
        self._pairs.append((module, twin, tuple(children_of(module).values()), own))
        return twin

    def _config(self, config: PreTrainedConfig, attention: str) -> PreTrainedConfig:
        """The copy's configuration, one for each of the model's."""
        if id(config) not in self._configs:
            twin = copy.copy(config)
            set_attention(twin, attention)
            self._configs[id(config)] = twin
        return self._configs[id(config)]

    def current(self) -> PreTrainedModel:
        """The view, as the model is now."""
        with self._lock:
            if self._view is None or any(
                tuple(children_of(module).values()) != children for module, _, children, _ in self._pairs
            ):
                self._build()
            for module, twin, _, own in self._pairs:
                # One update, so that another thread never sees half of it.
                twin.__dict__.update({**module.__dict__, **own})
            view = self._view
            # Bound to the model: it would run the model's parts, not the view's.
            view.__dict__.pop("forward", None)
            assert isinstance(view, PreTrainedModel)
            return view
