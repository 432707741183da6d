"""From the host to a device, without the host waiting for it.

A copy from memory that is not pinned waits for everything that the device still has to do.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch


def sent(values: torch.Tensor, device: torch.device) -> torch.Tensor:
    """A tensor of the host's on a device."""
    if device.type == "cuda" and values.device.type == "cpu":
        values = values.pin_memory()
    return values.to(device, non_blocking=True)


def batch_on(batch: Mapping[str, Any], device: torch.device) -> dict[str, Any]:
    """A batch whose tensors are on a device; what else is in it, the rows' lengths say, stays with the host."""
    return {name: sent(value, device) if isinstance(value, torch.Tensor) else value for name, value in batch.items()}
