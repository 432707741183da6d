"""glibc's allocator during training on the CPU: what one step frees, the next one takes again.

By default glibc hands large freed blocks back to the kernel, which clears them before the next step gets them again. In
a training step that is some 100 MiB on two cores, and a few percent of its time (`benchmarks/results/floor.json`).
"""

from __future__ import annotations

import contextlib
import ctypes
import platform
from collections.abc import Iterator

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3  # malloc.h: M_TRIM_THRESHOLD, M_MMAP_THRESHOLD
_KEEP_BYTES = 2**31 - 1
_GLIBC_MMAP_BYTES, _GLIBC_TRIM_BYTES = 32 * 2**20, 64 * 2**20
"""Where glibc's own thresholds end up when large blocks have been freed."""


@contextlib.contextmanager
def keep_freed_memory() -> Iterator[None]:
    """Inside the `with`, freed memory stays with the process; afterwards it goes back. Does nothing without glibc."""
    if platform.libc_ver()[0] != "glibc":
        yield
        return
    libc = ctypes.CDLL(None)
    libc.mallopt(_MMAP_THRESHOLD, _KEEP_BYTES)
    libc.mallopt(_TRIM_THRESHOLD, _KEEP_BYTES)
    try:
        yield
    finally:
        libc.mallopt(_MMAP_THRESHOLD, _GLIBC_MMAP_BYTES)
        libc.mallopt(_TRIM_THRESHOLD, _GLIBC_TRIM_BYTES)
        libc.malloc_trim(0)
