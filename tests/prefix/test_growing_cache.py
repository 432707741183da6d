"""A layer with spare room against transformers' own, whatever is done to it."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer

from ptune.prefix.growing_cache import LEAST_ROOM, GrowingLayer
from ptune.prefix.keys_values import Prefix, same_prefix

ROWS, HEADS, HEAD_DIM, PROMPT = 3, 2, 4, 5


def states(positions: int, seed: int, rows: int = ROWS) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    drawn = torch.randn(2, rows, HEADS, positions, HEAD_DIM, generator=generator)
    return drawn[0], drawn[1]


def prefix() -> tuple[torch.Tensor, torch.Tensor]:
    keys, values = states(PROMPT, 99, rows=1)
    return keys.expand(ROWS, -1, -1, -1), values.expand(ROWS, -1, -1, -1)


def pair(longest: int | None = None) -> tuple[GrowingLayer, DynamicLayer]:
    """The same prefix in a layer of ours and in transformers'."""
    theirs = DynamicLayer()
    theirs.update(*prefix())
    return GrowingLayer(*prefix(), longest=longest), theirs


def assert_same(ours: DynamicLayer, theirs: DynamicLayer) -> None:
    assert torch.equal(ours.keys, theirs.keys)
    assert torch.equal(ours.values, theirs.values)
    assert ours.get_seq_length() == theirs.get_seq_length()


def append(layer: DynamicLayer, positions: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    return layer.update(*states(positions, seed, rows=layer.keys.shape[0]))


def test_one_token_after_another() -> None:
    ours, theirs = pair()
    memories = set()
    for seed, positions in enumerate([7, *[1] * 150]):
        mine, wanted = append(ours, positions, seed), append(theirs, positions, seed)
        assert all(torch.equal(*both) for both in zip(mine, wanted, strict=True))
        assert_same(ours, theirs)
        memories.add(ours.keys.data_ptr())
    # 157 positions came in steps of 32 and more: some moves, and nothing like 151.
    assert 2 <= len(memories) <= 5


def test_rows_share_the_prefix_until_text_comes() -> None:
    ours, _ = pair()
    keys, _ = ours.keys, ours.values
    assert keys.stride(0) == 0
    append(ours, 1, 0)
    assert ours.keys.stride(0) > 0
    assert keys.stride(0) == 0


def test_the_prefix_is_not_written_to() -> None:
    keys, values = prefix()
    before = keys.clone(), values.clone()
    layer = GrowingLayer(keys, values)
    for seed in range(40):
        append(layer, 1, seed)
    assert torch.equal(keys, before[0])
    assert torch.equal(values, before[1])


def test_no_more_memory_than_the_longest_text_needs() -> None:
    ours, _ = pair(longest=PROMPT + 9)
    append(ours, 7, 0)
    assert ours.keys.untyped_storage().nbytes() == ROWS * HEADS * (PROMPT + 9) * HEAD_DIM * 4
    without, _ = pair()
    append(without, 7, 0)
    assert without.keys.untyped_storage().nbytes() == ROWS * HEADS * (PROMPT + 7 + LEAST_ROOM) * HEAD_DIM * 4
    # A limit that turns out too small does not break anything.
    beyond, theirs = pair(longest=PROMPT + 2)
    for seed in range(5):
        append(beyond, 1, seed)
        append(theirs, 1, seed)
    assert_same(beyond, theirs)


INDEX = torch.tensor([2, 0, 0])
CHANGES: dict[str, Callable[[DynamicLayer], object]] = {
    "reorder": lambda layer: layer.reorder_cache(INDEX),
    "reorder twice": lambda layer: (layer.reorder_cache(INDEX), layer.reorder_cache(INDEX)),
    "crop": lambda layer: layer.crop(-2),
    "repeat": lambda layer: layer.batch_repeat_interleave(2),
    "select": lambda layer: layer.batch_select_indices(torch.tensor([0, 2])),
    "crop, then reorder": lambda layer: (layer.crop(-1), layer.reorder_cache(INDEX)),
    "reset": lambda layer: (layer.reset(), layer.update(*states(4, 77))),
}


@pytest.mark.parametrize("early", [True, False], ids=["before any text", "after text"])
@pytest.mark.parametrize("change", CHANGES)
def test_what_transformers_does_to_a_layer(change: str, early: bool) -> None:
    layers = pair()
    for layer in layers:
        if not early:
            append(layer, 3, 1)
        CHANGES[change](layer)
        append(layer, 1, 2)
        append(layer, 2, 3)
    assert_same(*layers)


def test_copies_that_go_on_by_themselves_do_not_meet() -> None:
    for copied in (copy.copy, copy.deepcopy):
        ours, theirs = pair()
        append(ours, 3, 1)
        append(theirs, 3, 1)
        other, their_other = copied(ours), copied(theirs)
        for seed in range(4):
            append(ours, 1, seed)
            append(theirs, 1, seed)
            append(other, 1, 10 + seed)
            append(their_other, 1, 10 + seed)
        assert_same(ours, theirs)
        assert_same(other, their_other)


def test_what_was_given_out_stays_as_it_was() -> None:
    ours, _ = pair()
    given, _ = append(ours, 2, 1)
    before = given.clone()
    for seed in range(60):
        append(ours, 1, seed)
    ours.reorder_cache(INDEX)
    assert torch.equal(given, before)


def test_with_gradients_nothing_is_overwritten() -> None:
    ours, theirs = pair()
    append(ours, 2, 1)
    append(theirs, 2, 1)
    leaves = [states(1, seed) for seed in range(3)]
    for keys, values in leaves:
        mine = ours.update(keys.requires_grad_(), values)[0]
        assert torch.equal(mine, theirs.update(keys.detach(), values)[0])
    ours.keys.square().sum().backward()
    for keys, _ in leaves:
        torch.testing.assert_close(keys.grad, 2 * keys.detach())


def test_out_of_inference_mode() -> None:
    ours, theirs = pair()
    with torch.inference_mode():
        append(ours, 2, 1)
        append(theirs, 2, 1)
    with torch.no_grad():
        append(ours, 1, 2)
        append(theirs, 1, 2)
    assert_same(ours, theirs)


def test_a_prefix_fills_layers_that_keep_everything_and_no_others() -> None:
    keys, values = states(PROMPT, 99, rows=1)
    rows = same_prefix(Prefix(layers=((keys, values),), logits=torch.zeros(1, 8)), ROWS)
    cache = rows.fill(DynamicCache(), repeats=2)
    assert type(cache.layers[0]) is GrowingLayer
    assert cache.layers[0].keys.shape == (2 * ROWS, HEADS, PROMPT, HEAD_DIM)
    assert cache.layers[0].keys.stride(0) == 0
    with_layer = DynamicCache()
    with_layer.layers.append(DynamicLayer())
    assert type(rows.fill(with_layer).layers[0]) is GrowingLayer
