"""Rows come to the batch's memory and go; what each holds is compared with rows kept one by one."""

from __future__ import annotations

import random

import pytest
import torch

from ptune.serving.engine.batch_cache import LEAST_ROOM, BatchCache, NewRow

HEADS, DIM, LAYERS = 2, 3, 2


def drawn(*shape: int) -> torch.Tensor:
    return torch.rand(*shape) + 0.5


def held(cache: BatchCache, row: int) -> list[torch.Tensor]:
    """Keys and values of a row in each layer."""
    length = cache.lengths[row]
    return [
        memory[row, :, cache.end - length : cache.end] for layer in cache.as_cache().layers for memory in layer.memory
    ]


def test_rows_hold_what_they_held_alone() -> None:
    """Hundreds of joins, steps and leaves at random."""
    torch.manual_seed(0)
    draw, cache, wanted = random.Random(0), BatchCache(), []
    for _ in range(600):
        what = draw.choice(["join", "step", "step", "step", "step", "leave"])
        if what == "join" and len(wanted) < 9:
            count, width = draw.randrange(1, 4), draw.randrange(4, 50)
            filled = [(drawn(count, HEADS, width, DIM), drawn(count, HEADS, width, DIM + 1)) for _ in range(LAYERS)]
            rows = []
            for row in range(count):
                cut = sorted(draw.sample(range(width + 1), 3))
                spans = ((cut[0], cut[1]), (cut[2], width)) if cut[2] < width else ((cut[0], cut[1]),)
                rows += [NewRow(row, spans)] * draw.choice([1, 1, 2])
            cache.join(filled, rows)
            for one in rows:
                parts = [part[one.row] for layer in filled for part in layer]
                wanted.append([torch.cat([part[:, a:b] for a, b in one.spans], dim=1) for part in parts])
        elif what == "step" and wanted:
            mask = cache.mask(torch.device("cpu"))
            length = max(cache.lengths)
            if mask is not None:
                assert mask.sum(dim=1).tolist() == [one + 1 for one in cache.lengths]
                assert bool((mask.diff(dim=1) >= 0).all())
            given = cache.as_cache()
            assert given.get_seq_length() == length
            for at, layer in enumerate(given.layers):
                keys, values = drawn(len(wanted), HEADS, 1, DIM), drawn(len(wanted), HEADS, 1, DIM + 1)
                all_keys, all_values = layer.update(keys, values)
                assert all_keys.shape == (len(wanted), HEADS, length + 1, DIM)
                assert all_values.shape == (len(wanted), HEADS, length + 1, DIM + 1)
                for row, parts in enumerate(wanted):
                    parts[2 * at] = torch.cat([parts[2 * at], keys[row]], dim=1)
                    parts[2 * at + 1] = torch.cat([parts[2 * at + 1], values[row]], dim=1)
            cache.stepped()
        elif what == "leave" and wanted:
            row = draw.randrange(len(wanted))
            cache.leave(row, scrub=draw.random() < 0.3)
            last = wanted.pop()
            if row < len(wanted):
                wanted[row] = last
        assert len(cache.lengths) == len(wanted)
        for row, parts in enumerate(wanted):
            assert all(torch.equal(found, want) for found, want in zip(held(cache, row), parts, strict=True))
    assert not cache.lengths or cache.held_bytes


def test_memory_grows_in_blocks_and_goes_with_the_last_row() -> None:
    cache = BatchCache()
    cache.join([(drawn(1, HEADS, 10, DIM), drawn(1, HEADS, 10, DIM))], [NewRow(0, ((0, 10),))])
    first = cache.as_cache().layers[0].memory[0]
    for _ in range(LEAST_ROOM):
        layer = cache.as_cache().layers[0]
        assert layer.memory[0] is first  # nothing has moved
        layer.update(drawn(1, HEADS, 1, DIM), drawn(1, HEADS, 1, DIM))
        cache.stepped()
    assert cache.as_cache().layers[0].memory[0] is not first
    cache.leave(0)
    assert (cache.held_bytes, cache.lengths, cache.end) == (0, [], 0)


def test_scrubbing_leaves_no_nan_behind() -> None:
    cache = BatchCache()
    broken = drawn(2, HEADS, 6, DIM)
    broken[0] = float("nan")
    cache.join([(broken, broken.clone())], [NewRow(0, ((0, 6),)), NewRow(1, ((3, 6),))])
    cache.leave(0, scrub=True)
    memory = cache.as_cache().layers[0].memory[0]
    assert not bool(memory[0].isnan().any())


@pytest.mark.parametrize("rows", [1, 2, 3, 5, 8])
def test_there_is_memory_for_a_power_of_two_of_rows(rows: int) -> None:
    cache = BatchCache()
    part = drawn(rows, HEADS, 4, DIM)
    cache.join([(part, part)], [NewRow(row, ((0, 4),)) for row in range(rows)])
    assert cache.as_cache().layers[0].memory[0].shape[0] == 1 << (rows - 1).bit_length()
