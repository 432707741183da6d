"""Tables that are written in pieces, with rows in place of their own or behind them."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from ptune.saved.as_model import tensors as streaming
from ptune.saved.as_model.tensors import stored_tensor, write_model

V, D = 10, 3


@pytest.mark.parametrize("piece_rows", [1, 3, 5, 10, 100])
@pytest.mark.parametrize("first", [0, 2, 3, 9, 10])
@pytest.mark.parametrize("count", [1, 4, 8])
def test_rows_in_place(piece_rows: int, first: int, count: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(streaming, "_PIECE_BYTES", piece_rows * D * 4)
    table = torch.arange(V * D, dtype=torch.float32).reshape(V, D)
    save_file({"table": table}, tmp_path / "in.safetensors")
    rows = -torch.ones(count, D)
    changed = stored_tensor(str(tmp_path / "in.safetensors"), "table").with_rows(first, rows)
    written: list[int] = []
    write_model(tmp_path, {"new": changed}, shard_bytes=10**6, advance=written.append)
    wanted = torch.cat([table[:first], rows, table[first + count :]])
    assert torch.equal(load_file(tmp_path / "model.safetensors")["new"], wanted)
    assert sum(written) == wanted.nbytes


def test_every_kind_of_number_is_kept(tmp_path: Path):
    given = {
        "scalar": torch.tensor(1.5),
        "empty": torch.zeros(0, 4),
        "mask": torch.tensor([[True, False]]),
        "bytes": torch.arange(7, dtype=torch.uint8),
        "eight": torch.randn(3, 5).to(torch.float8_e4m3fn),
        "long": torch.arange(5),
        "half": torch.randn(3).half(),
        "brain": torch.randn(2, 2).bfloat16(),
    }
    save_file(given, tmp_path / "in.safetensors")
    found = {name: stored_tensor(str(tmp_path / "in.safetensors"), name) for name in given}
    assert write_model(tmp_path, found, shard_bytes=10**6, advance=lambda _: None) == ["model.safetensors"]
    back = load_file(tmp_path / "model.safetensors")
    assert {name: (one.dtype, one.shape) for name, one in back.items()} == {
        name: (one.dtype, one.shape) for name, one in given.items()
    }
    assert all(
        torch.equal(back[name].view(torch.uint8), one.view(torch.uint8)) for name, one in given.items() if one.dim()
    )
    cast = {name: one.cast(torch.bfloat16) for name, one in found.items()}
    write_model(tmp_path, cast, shard_bytes=10**6, advance=lambda _: None)
    back = load_file(tmp_path / "model.safetensors")
    for name, one in given.items():
        plain = one.dtype in (torch.float32, torch.float16, torch.bfloat16)
        assert back[name].dtype == (torch.bfloat16 if plain else one.dtype), name
    assert torch.equal(back["half"], given["half"].to(torch.bfloat16))
