"""Peak memory of a stretch of work, each figure with its meaning: GiB are units of 2^30 bytes.

On CUDA there are three different numbers: what tensors took (allocated), what PyTorch's allocator held (reserved),
and what the driver had given away on the device at the end (all processes, contexts included). On the CPU it is the
process's resident memory: its peak, and how far the peak lies above the start of the stretch.
"""

from __future__ import annotations

import contextlib
import resource
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from types import TracebackType

import torch

GIB = 2**30


@dataclass(frozen=True)
class MemoryReport:
    """Peaks in GiB. CUDA figures are None without a CUDA device."""

    resident_at_start_gib: float
    resident_peak_gib: float
    cuda_allocated_gib: float | None = None
    cuda_reserved_gib: float | None = None
    cuda_device_used_gib: float | None = None

    @property
    def above_start_gib(self) -> float:
        """How far the process's peak lay above its start."""
        return self.resident_peak_gib - self.resident_at_start_gib

    def line(self) -> str:
        """One line for people."""
        if self.cuda_allocated_gib is not None:
            return (
                f"peak memory: {self.cuda_allocated_gib:.2f} GiB allocated, {self.cuda_reserved_gib:.2f} GiB reserved, "
                f"{self.cuda_device_used_gib:.2f} GiB used on the device"
            )
        return f"peak memory: {self.resident_peak_gib:.2f} GiB, {self.above_start_gib:.2f} GiB above the loaded model"

    def to_dict(self) -> dict[str, float | None]:
        """Plain values."""
        return {**asdict(self), "above_start_gib": self.above_start_gib}


class PeakMemory:
    """`with PeakMemory() as peak: …` and then `peak.report`."""

    report: MemoryReport

    def __enter__(self) -> PeakMemory:
        if torch.cuda.is_available():
            torch.cuda.reset_peak_memory_stats()
        self._was_reset = _reset_high_water()
        self._start = _resident()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        peak = max(_high_water() if self._was_reset else _lifetime_peak(), self._start)
        cuda: tuple[float | None, ...] = (None, None, None)
        if torch.cuda.is_available():
            free, total = torch.cuda.mem_get_info()
            cuda = (
                torch.cuda.max_memory_allocated() / GIB,
                torch.cuda.max_memory_reserved() / GIB,
                (total - free) / GIB,
            )
        self.report = MemoryReport(self._start / GIB, peak / GIB, *cuda)


def memory_now() -> dict[str, float]:
    """What a log of training says, in GiB.

    On CUDA: `memory_gib` in tensors, `memory_peak_gib` at most since training began, `memory_reserved_gib` with the
    allocator, `memory_device_gib` given away by the driver, to all processes. On the CPU: `memory_gib`, what is
    resident of the process, and `memory_peak_gib`, at most since training began (on Linux).
    """
    if torch.cuda.is_available():
        free, total = torch.cuda.mem_get_info()
        return {
            "memory_gib": torch.cuda.memory_allocated() / GIB,
            "memory_peak_gib": torch.cuda.max_memory_allocated() / GIB,
            "memory_reserved_gib": torch.cuda.memory_reserved() / GIB,
            "memory_device_gib": (total - free) / GIB,
        }
    now = _resident()
    peak = _high_water() if Path("/proc/self/status").exists() else _lifetime_peak()
    return {"memory_gib": now / GIB, "memory_peak_gib": max(now, peak) / GIB}


def _reset_high_water() -> bool:
    """Ask Linux to reset the peak of this process; False where that cannot be done."""
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")
        return True
    return False


def _resident() -> int:
    """Resident size of this process now, in bytes; its peak where nothing tells."""
    if (found := _status("VmRSS")) is not None:
        return found
    try:
        import psutil
    except ImportError:
        return _lifetime_peak()
    return int(psutil.Process().memory_info().rss)


def _high_water() -> int:
    """Linux's peak resident size since the last reset, in bytes."""
    found = _status("VmHWM")
    return _lifetime_peak() if found is None else found


def _status(name: str) -> int | None:
    """A size that Linux tells of this process, in bytes; None where it does not."""
    with contextlib.suppress(OSError):
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith(f"{name}:"):
                return int(line.split()[1]) * 1024
    return None


def _lifetime_peak() -> int:
    """Peak resident size since the process began, in bytes (Linux counts KiB, macOS bytes)."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
