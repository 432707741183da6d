"""How fast this machine is, from a few seconds of trying: products, memory, and the cost of starting an operation.

A step's time is forecast as its floating-point operations over the rate of products of the model's own shapes, the
bytes that other operations move over the bandwidth, and a fixed time for each operation. It is a forecast for the
machine it runs on and for nothing else.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch.nn import functional as F

from ptune.frozen.product import product
from ptune.planning.forecast import Forecast

_SECONDS = 0.1
"""Spent on each of the measurements, at least three tries each."""


@dataclass(frozen=True)
class MachineRates:
    """What was measured."""

    flops_per_second: float
    own_flops_per_second: float
    """With ptune's choice of kernels, as its packed batches have it."""
    bytes_per_second: float
    seconds_per_operation: float

    def step_seconds(self, forecast: Forecast) -> float:
        """Time of an optimizer step."""
        rate = self.own_flops_per_second if forecast.packed else self.flops_per_second
        return (
            forecast.flops / rate
            + forecast.moved_bytes / self.bytes_per_second
            + forecast.operations * self.seconds_per_operation
        )


def calibrate(*, tokens: int, width: int, dtype: torch.dtype, device: str) -> MachineRates:
    """Measure this machine for a model's sizes; takes a second or two.

    Args:
        tokens: Of a batch.
        width: Hidden size of the model.
        dtype: Of its weights.
        device: cpu or cuda.
    """
    tokens, inner = min(tokens, 2048 if device == "cuda" else 256), 2 * width
    data = torch.randn(tokens, width, device=device, dtype=dtype)
    weight = torch.randn(inner, width, device=device, dtype=dtype)
    theirs = _seconds(lambda: F.linear(data, weight), device)
    ours = _seconds(lambda: product(data, weight), device)
    big = torch.randn(tokens, inner, device=device, dtype=dtype)
    into = torch.empty_like(big)
    moved = _seconds(lambda: torch.mul(big, big, out=into), device)
    small = torch.randn(8, device=device)
    start = _seconds(lambda: small + small, device)
    return MachineRates(
        flops_per_second=2 * tokens * width * inner / theirs,
        own_flops_per_second=2 * tokens * width * inner / ours,
        bytes_per_second=3 * big.numel() * big.element_size() / moved,
        seconds_per_operation=start,
    )


def _seconds(work: Callable[[], object], device: str) -> float:
    """Median time of a piece of work."""
    work()
    tries: list[float] = []
    until = time.perf_counter() + _SECONDS
    while len(tries) < 3 or time.perf_counter() < until:
        begin = time.perf_counter()
        work()
        if device == "cuda":
            torch.cuda.synchronize()
        tries.append(time.perf_counter() - begin)
    return statistics.median(tries)
