"""What a result was measured on: the machine, and the versions of the packages."""

from __future__ import annotations

import contextlib
import importlib.metadata
import importlib.util
import os
import platform
from pathlib import Path
from typing import Any

import psutil

from ptune import __version__
from ptune.memory.measure import GIB

PACKAGES = ("torch", "transformers", "peft", "accelerate")
"""What a result depends on; those that are not installed are left out."""


def machine(gpu: str | None = None) -> dict[str, Any]:
    """Cores that this process may use, the processor's name, memory, system, and the GPU (None without one)."""
    return {
        "cores": len(os.sched_getaffinity(0)),
        "cpu": _processor(),
        "memory_gib": round(psutil.virtual_memory().total / GIB, 1),
        "system": f"{platform.system()} {platform.machine()}",
        "gpu": gpu,
    }


def versions() -> dict[str, str]:
    """Python, ptune, and the packages that a measurement stands on."""
    return {
        "python": platform.python_version(),
        "ptune": __version__,
        **{name: importlib.metadata.version(name) for name in PACKAGES if importlib.util.find_spec(name)},
    }


def _processor() -> str:
    """As Linux names it, with the family and model that tell apart what virtual machines name alike."""
    facts: dict[str, str] = {}
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            key, _, value = line.partition(":")
            facts.setdefault(key.strip(), value.strip())
    name = facts.get("model name", platform.machine())
    return f"{name}, family {facts['cpu family']} model {facts['model']}" if "cpu family" in facts else name
