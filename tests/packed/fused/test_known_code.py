"""The fused parts stand in for code that was read: that of the installed transformers, and a change shows."""

from __future__ import annotations

import importlib
import logging
from collections.abc import Iterator

import pytest
from transformers.models.llama import modeling_llama

from architectures import ARCHITECTURES, build
from prompting import encoder_prompt, prompt_gradient, relative_error, texts
from ptune.data.collate import PackingCollator
from ptune.packed.fused import known_code, replacements

ACTIVATIONS = "transformers.activations"


def _batch() -> dict[str, object]:
    rows = [{"input_ids": row.tolist(), "labels": row.tolist()} for row in texts((7, 4))]
    return PackingCollator()(rows)


@pytest.fixture(autouse=True)
def _forget() -> Iterator[None]:
    """What is kept of the code, before a test and after it."""
    kept = (replacements._replacement, replacements._bloom_is_known)
    for one in kept:
        one.cache_clear()
    yield
    for one in kept:
        one.cache_clear()


def test_every_fused_part_is_of_the_installed_code() -> None:
    for label in known_code.KNOWN:
        family, _, name = label.partition(".")
        module = f"transformers.models.{family}.modeling_{family}" if family != "transformers" else ACTIVATIONS
        importlib.import_module(module)
        assert known_code.all_known(module, [name]), label


def test_comments_and_annotations_do_not_count_and_code_does() -> None:
    first = known_code.digest_of('def f(x: int) -> int:\n    "Says."\n    return x + 1  # one')
    assert first == known_code.digest_of("    def f(x):\n        return (x + 1)")
    assert first != known_code.digest_of("def f(x):\n    return x + 2")


def test_a_class_that_has_changed_runs_as_it_is(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setitem(known_code.KNOWN, "llama.LlamaRMSNorm", ())
    with caplog.at_level(logging.WARNING, "ptune"):
        assert replacements.replacement(modeling_llama.LlamaRMSNorm) is modeling_llama.LlamaRMSNorm
    assert "LlamaRMSNorm of transformers" in caplog.text
    model = encoder_prompt(build("llama"))
    assert model.packs
    loss, gradient = prompt_gradient(model, **_batch())
    unfused = encoder_prompt(build("llama"))
    unfused.pack_batches = False
    wanted, wanted_gradient = prompt_gradient(unfused, **_batch())
    assert relative_error(loss, wanted) < 1e-5
    assert relative_error(gradient, wanted_gradient) < 1e-4


def test_a_bloom_that_has_changed_is_padded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(known_code.KNOWN, "bloom.build_alibi_tensor", ())
    model = encoder_prompt(ARCHITECTURES["bloom"]())
    assert not model.packs
    assert "Bloom" in str(model.packing_obstacle)
