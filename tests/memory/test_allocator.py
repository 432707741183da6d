"""Freed memory stays with the process while asked for, and goes back afterwards."""

from __future__ import annotations

import platform
import resource
import subprocess
import sys

import pytest

pytestmark = pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="glibc's allocator is not in use")

# In a process of its own: the allocator's state is the process's.
SCRIPT = """
import resource
import psutil
import torch
from ptune.memory.allocator import keep_freed_memory

MIB = 2**20

def faults():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt

def use():
    blocks = [torch.ones(20 * MIB // 4) for _ in range(10)]
    big = torch.ones(100 * MIB // 4)
    return len(blocks) + len(big)

torch.set_num_threads(1)
use()
before = faults()
use()
loose = faults() - before
with keep_freed_memory():
    use()
    before = faults()
    use()
    kept = faults() - before
    held = psutil.Process().memory_info().rss
left = psutil.Process().memory_info().rss
print(loose, kept, (held - left) // MIB)
"""


def test_a_second_use_finds_the_memory_of_the_first() -> None:
    ran = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True, check=True)
    loose, kept, given_back = map(int, ran.stdout.split())
    pages = 300 * 2**20 // resource.getpagesize()
    assert loose > pages / 4
    assert kept < loose / 2  # a small block in between may keep a large one from its old place
    assert given_back > 200
