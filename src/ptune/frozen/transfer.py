"""From the host to a device, without the host waiting for all that the device still has to do.

It would wait for a copy from memory that is not pinned.
"""

from __future__ import annotations

import torch


def pins(device: torch.device) -> bool:
    """Whether memory of the host can be pinned for a device, and there is something to gain by it."""
    return device.type not in ("cpu", "mps", "meta")


def sent(values: torch.Tensor, device: torch.device) -> torch.Tensor:
    """A tensor on a device; it may be there already."""
    if pins(device) and values.device.type == "cpu":
        values = values.pin_memory()
    return values.to(device, non_blocking=pins(device))
