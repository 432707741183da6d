"""The simulated accelerator has flash attention, as CUDA has."""

from __future__ import annotations

import pytest

from ptune.packed import varlen_attention


@pytest.fixture(autouse=True)
def flash(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of the device alone."""
    monkeypatch.setattr(varlen_attention, "has_kernel", lambda device: device.type == "gpux")
