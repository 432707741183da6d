"""Packed attention against plain softmax over each row alone, forward and backward."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

from ptune.errors import ModelError
from ptune.packed.attention import CHOICE, attend, packed_attention
from ptune.packed.layout import PackedRows
from ptune.packed.padded_attention import padded_attention

HEADS, KEY_HEADS, WIDTH = 4, 2, 8
SINKS = torch.tensor([-1.0, 0.5, 2.0, 0.0], dtype=torch.float64)
SLOPES = torch.tensor([0.5, 0.25, 0.125, 0.0625], dtype=torch.float64)
LAYOUTS = {
    "one prompt": PackedRows.of([5, 1, 7], [3], [0, 0, 0], inside=True),
    "two prompts and none": PackedRows.of([5, 2, 7, 4], [3, 6], [1, None, 0, 0], inside=True),
    "no prompt": PackedRows.of([5, 2], [], [None, None], inside=True),
    "prompt there already": PackedRows.of([5, 2], [3], [0, 0], inside=False),
}


def _layer(**config: Any) -> nn.Module:
    layer = nn.Identity()
    layer.config = SimpleNamespace(**config)  # type: ignore[assignment]
    return layer


def _tensors(rows: PackedRows, dtype: torch.dtype = torch.float64) -> list[torch.Tensor]:
    made = torch.Generator().manual_seed(0)
    keys = rows.length + rows.key_offset
    shapes = ((HEADS, rows.length), (KEY_HEADS, keys), (KEY_HEADS, keys))
    return [torch.randn(1, *shape, WIDTH, generator=made, dtype=dtype).requires_grad_() for shape in shapes]


def _by_hand(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    rows: PackedRows,
    window: int | None,
    slopes: torch.Tensor | None,
    sinks: torch.Tensor | None,
) -> torch.Tensor:
    """Softmax over what each single token may see, and over a sink that has no value."""
    outputs = []
    for span in rows.spans:
        own = rows.key_offset + span.start
        for step in range(span.length):
            seen = [*range(span.prefix_start, span.prefix_start + span.prefix_length), *range(own, own + step + 1)]
            places = torch.arange(len(seen))
            if window is not None:
                seen, places = seen[-window:], places[-window:]
            keys = key[0][:, seen].repeat_interleave(HEADS // KEY_HEADS, dim=0)
            values = value[0][:, seen].repeat_interleave(HEADS // KEY_HEADS, dim=0)
            scores = (keys @ query[0][:, span.start + step].unsqueeze(-1)).squeeze(-1) * 0.3
            if slopes is not None:
                scores = scores + slopes.to(scores)[:, None] * places
            if sinks is not None:
                scores = torch.cat([scores, sinks[:, None]], dim=1)
            outputs.append(scores.softmax(dim=-1)[:, : len(seen)].unsqueeze(1) @ values)
    return torch.cat(outputs, dim=1).transpose(0, 1).unsqueeze(0)


@pytest.mark.parametrize("way", ["spans", "gathered"])
@pytest.mark.parametrize("sinks", [None, SINKS], ids=["", "sinks"])
@pytest.mark.parametrize("slopes", [None, SLOPES], ids=["plain", "alibi"])
@pytest.mark.parametrize("window", [None, 4])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_output_and_gradients(
    layout: str, window: int | None, slopes: torch.Tensor | None, sinks: torch.Tensor | None, way: str
) -> None:
    rows = LAYOUTS[layout]
    _assert_as_by_hand(rows, _tensors(rows), _tensors(rows), way, window=window, slopes=slopes, sinks=sinks)


@pytest.mark.parametrize("way", ["spans", "gathered"])
@pytest.mark.parametrize("width", [WIDTH // 2, WIDTH * 2])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_values_of_another_width_than_the_keys(layout: str, width: int, way: str) -> None:
    """As latent attention has them."""
    rows = LAYOUTS[layout]
    query, key, value = (one.detach() for one in _tensors(rows))
    value = value.repeat(1, 1, 1, 2)[..., :width]
    found, wanted = ([one.clone().requires_grad_() for one in (query, key, value)] for _ in range(2))
    _assert_as_by_hand(rows, found, wanted, way, window=None, slopes=None, sinks=SINKS)


def _assert_as_by_hand(
    rows: PackedRows, found: list[torch.Tensor], wanted: list[torch.Tensor], way: str, **options: Any
) -> None:
    if way == "spans":
        output = attend(*found, rows, scaling=0.3, **options)
    else:
        output = padded_attention(*found, rows, scale=0.3, dropout=0.0, **options)
    hand = _by_hand(*wanted, rows, **options)
    assert output.shape == (1, rows.length, HEADS, found[2].shape[-1])
    torch.testing.assert_close(output, hand, rtol=1e-12, atol=1e-12)
    weights = torch.randn(hand.shape, dtype=hand.dtype, generator=torch.Generator().manual_seed(1))
    (output * weights).sum().backward()
    (hand * weights).sum().backward()
    for mine, theirs in zip(found, wanted, strict=True):
        torch.testing.assert_close(mine.grad, theirs.grad, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("way", ["spans", "padded"])
def test_bfloat16_gathers_the_prompts_gradient_in_float32(way: str, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = PackedRows.of([1] * 400, [1], [0] * 400, inside=False)
    query, key, value = (tensor.detach().requires_grad_() for tensor in _tensors(rows, torch.bfloat16))
    exact = [tensor.detach().double().requires_grad_() for tensor in (query, key, value)]
    attend(*exact, rows, window=2).sum().backward()
    monkeypatch.setenv(CHOICE, way)
    attend(query, key, value, rows, window=2).float().sum().backward()
    assert (value.grad[:, :, 0].double() - exact[2].grad[:, :, 0]).abs().max() < 0.01 * exact[2].grad[
        :, :, 0
    ].abs().max()


def test_dropout_takes_the_other_way_and_keeps_the_mean() -> None:
    rows = LAYOUTS["one prompt"]
    query, key, value = _tensors(rows)
    torch.manual_seed(0)
    plain = attend(query, key, value, rows)
    mean = torch.stack([attend(query, key, value, rows, dropout=0.2) for _ in range(400)]).mean(dim=0)
    assert not torch.equal(mean, plain)
    assert (mean - plain).abs().max() < 0.3


@pytest.mark.parametrize(
    ("given", "word"),
    [
        ({"softcap": 30.0}, "softcap"),
        ({"packed_rows": None}, "packed"),
        ({"attention_mask": torch.zeros(1, 1, 4, 4)}, "a mask of its own"),
        ({"module": _layer(sliding_window=8, max_position_embeddings=64)}, "sliding window by mask alone"),
    ],
)
def test_what_it_cannot_do_is_refused(given: dict[str, Any], word: str) -> None:
    rows = LAYOUTS["one prompt"]
    query, key, value = _tensors(rows)
    plain = {"module": nn.Identity(), "attention_mask": torch.ones(1, 1, 1, 1), "packed_rows": rows}
    packed_attention(query=query, key=key, value=value, **plain)
    with pytest.raises(ModelError, match=word):
        packed_attention(query=query, key=key, value=value, **{**plain, **given})


def test_a_window_of_the_whole_context_is_none() -> None:
    rows = LAYOUTS["one prompt"]
    layer = _layer(sliding_window=64, max_position_embeddings=64)
    packed_attention(layer, *_tensors(rows), torch.ones(1, 1, 1, 1), packed_rows=rows)
