"""Small models in folders, with prompts for them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import PreTrainedTokenizerFast

from architectures import build
from ptune import PromptTuningConfig, PTunedModel
from vocabulary_models import CHAT, MODELS, TUTORIAL


@pytest.fixture(scope="session")
def model_of(
    tmp_path_factory: pytest.TempPathFactory, tiny_tokenizer: PreTrainedTokenizerFast
) -> Callable[[str], Path]:
    """Name → a folder with that model, a tokenizer and a chat template. Read only."""
    made: dict[str, Path] = {}

    def folder(name: str) -> Path:
        if name not in made:
            made[name] = tmp_path_factory.mktemp(name)
            model = build(name, **MODELS[name])
            with torch.no_grad():
                model.get_input_embeddings().weight[128:] = 0  # rows that no training met
            model.save_pretrained(made[name])
            tiny_tokenizer.save_pretrained(made[name])
            (made[name] / "chat_template.jinja").write_text(CHAT, encoding="utf-8")
        return made[name]

    return folder


@pytest.fixture(scope="session")
def prompt_of(tmp_path_factory: pytest.TempPathFactory, model_of: Callable[[str], Path]) -> Callable[..., Path]:
    """Model, template, … → a prompt folder; its vectors lie between and beyond those of words. Read only."""
    made: dict[tuple[Any, ...], Path] = {}

    def folder(name: str, template: str = TUTORIAL, *, tokens: int = 6, seed: int = 0) -> Path:
        key = (name, template, tokens, seed)
        if key not in made:
            from ptune import load_model
            from ptune.data.template import template_blocks

            base = load_model(str(model_of(name)), dtype="float32", device="cpu")
            inside = sum(block.count for block in template_blocks(template) if not block.leads)
            prompted = PTunedModel(
                base, PromptTuningConfig(num_virtual_tokens=tokens, tokens_in_text=inside), self_check=False
            )
            draw = torch.Generator().manual_seed(seed)
            words = base.get_input_embeddings()(torch.randint(4, 128, (2, tokens), generator=draw))
            with torch.no_grad():
                prompted.prompts["default"].embedding.weight.copy_(words[0] * 1.5 - words[1] * 0.5)
            made[key] = tmp_path_factory.mktemp("prompts") / f"{name}-{seed}"
            prompted.save_pretrained(made[key], template=template)
        return made[key]

    return folder
