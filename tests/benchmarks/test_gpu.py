"""`make bench-gpu` runs from end to end; here on the CPU, with small models."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import gpu


def test_a_rehearsal_without_a_gpu(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "gpu.json"
    words = ["gpu.py", "--device", "cpu", "--size", "tiny", "--rounds", "1", "--output", str(output)]
    monkeypatch.setattr("sys.argv", words)
    gpu.main()
    sections = json.loads(output.read_text(encoding="utf-8"))["sections"]
    assert list(sections) == list(gpu.SECTIONS)
    assert all(isinstance(found, list) and found for found in sections.values())
    assert {row["who"] for row in sections["memory"]} > {"full fine-tuning", "ptune LSTM", "PEFT LSTM"}
    ours = [row for row in sections["correctness"] if row["who"] == "ptune" and row["dtype"] == "torch.float32"]
    assert len(ours) == 6
    assert all(row["gradient_error"] < 1e-5 for row in ours)
    assert all(set(row["times_faster_than"]) == set(gpu.CONTENDERS[1:]) for row in sections["speed"])
    assert "== answering" in capsys.readouterr().out


def test_what_is_wrong_or_fails_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(_self: gpu.Bench) -> None:
        raise RuntimeError("no kernel image")

    for name in gpu.SECTIONS[1:]:
        monkeypatch.setattr(gpu.Bench, name, lambda _self: [])
    monkeypatch.setattr(gpu.Bench, "correctness", fails)
    monkeypatch.setattr("sys.argv", ["gpu.py", "--device", "cpu", "--output", str(tmp_path / "gpu.json")])
    with pytest.raises(SystemExit, match=r"failed: \['correctness'\]"):
        gpu.main()
    assert "no kernel image" in (tmp_path / "gpu.json").read_text(encoding="utf-8")
