"""Peak memory of a stretch of work."""

from __future__ import annotations

import sys

import pytest
import torch

from ptune.memory.measure import GIB, MemoryReport, PeakMemory

NO_RESET = not sys.platform.startswith("linux")
MB_200 = 200 * 10**6


@pytest.mark.skipif(NO_RESET, reason="the peak can be reset on Linux alone")
def test_peak_is_that_of_the_stretch():
    with PeakMemory() as peak:
        block = torch.ones(MB_200 // 4)
        del block
    taken = peak.report.above_start_gib * GIB
    assert 0.9 * MB_200 < taken < 1.25 * MB_200
    # The next stretch starts anew: what the first one took is not its.
    with PeakMemory() as later:
        torch.ones(1000)
    assert later.report.above_start_gib * GIB < 0.25 * MB_200


def test_peak_is_never_below_the_start():
    with PeakMemory() as peak:
        pass
    assert peak.report.above_start_gib >= 0
    assert peak.report.resident_at_start_gib > 0


def test_report_is_there_after_an_error():
    peak = PeakMemory()
    with pytest.raises(RuntimeError), peak:
        raise RuntimeError
    assert peak.report.resident_peak_gib > 0


@pytest.mark.skipif(torch.cuda.is_available(), reason="for machines without CUDA")
def test_no_cuda_figures_without_cuda():
    with PeakMemory() as peak:
        pass
    report = peak.report
    assert (report.cuda_allocated_gib, report.cuda_reserved_gib, report.cuda_device_used_gib) == (None, None, None)
    assert "allocated" not in report.line()


def test_lines_and_dictionary():
    cpu = MemoryReport(1.0, 1.5)
    assert cpu.line() == "peak memory: 1.50 GiB, 0.50 GiB above the loaded model"
    assert cpu.to_dict()["above_start_gib"] == 0.5
    gpu = MemoryReport(1.0, 1.5, 2.0, 2.5, 3.0)
    assert gpu.line() == "peak memory: 2.00 GiB allocated, 2.50 GiB reserved, 3.00 GiB used on the device"
    assert gpu.to_dict()["cuda_reserved_gib"] == 2.5


@pytest.mark.gpu
def test_cuda_figures():
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    before = torch.cuda.memory_allocated()
    with PeakMemory() as peak:
        block = torch.ones(MB_200 // 4, device="cuda")
        del block
    report = peak.report
    assert report.cuda_allocated_gib is not None
    assert report.cuda_allocated_gib * GIB - before == pytest.approx(MB_200, rel=0.02)
    assert report.cuda_reserved_gib >= report.cuda_allocated_gib
    assert report.cuda_device_used_gib >= report.cuda_reserved_gib
