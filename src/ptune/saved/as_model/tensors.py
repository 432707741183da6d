"""safetensors files written piece by piece, from pieces of other ones: a model never stands in memory as a whole.

The format is a header of JSON behind its length in 8 bytes, and the tensors' bytes one after another
(https://github.com/huggingface/safetensors). `safetensors` itself writes a file from tensors that are all in memory.

Shapes: `V` rows of a table.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from math import prod
from pathlib import Path

import torch
from safetensors import safe_open

from ptune.loading.weight_files import INDEX, WHOLE

CODES = {torch.float32: "F32", torch.bfloat16: "BF16", torch.float16: "F16"}
"""What a cast takes and gives; everything else (packed weights, masks) is copied as it is."""
_BITS = {"F64": 64, "I64": 64, "U64": 64, "F32": 32, "I32": 32, "U32": 32, "F16": 16, "BF16": 16, "I16": 16, "U16": 16}
_PIECE_BYTES = 64 * 2**20


@dataclass(frozen=True)
class Streamed:
    """A tensor that is written in pieces."""

    code: str
    """Its dtype as safetensors writes it."""
    shape: tuple[int, ...]
    pieces: Callable[[], Iterator[torch.Tensor]]
    """Its numbers in order, of that dtype."""

    @property
    def bytes(self) -> int:
        """Its size in the file."""
        return prod(self.shape) * _BITS.get(self.code, 8) // 8

    def cast(self, dtype: torch.dtype | None) -> Streamed:
        """The same in another dtype, where it is of floating point."""
        if dtype is None or self.code not in CODES.values() or self.code == CODES[dtype]:
            return self
        return replace(self, code=CODES[dtype], pieces=lambda: (piece.to(dtype) for piece in self.pieces()))

    def with_rows(self, first: int, rows: torch.Tensor) -> Streamed:
        """The table with `rows` in place of its own from `first` on, and longer where they need it.

        Args:
            first: At most `V`.
            rows: `(n, …)`, of the table's dtype.
        """
        whole, last = self.shape[0], first + len(rows)

        def pieces() -> Iterator[torch.Tensor]:
            at = 0
            for piece in self.pieces():
                end = at + len(piece)
                if at < first:
                    yield piece[: first - at]
                if at <= first < end or (first == end == whole):
                    yield rows
                if end > last:
                    yield piece[max(last - at, 0) :]
                at = end

        return Streamed(self.code, (max(whole, last), *self.shape[1:]), pieces)


def stored_tensor(path: str, key: str) -> Streamed:
    """A tensor of a safetensors file; its pieces are rows, some MiB of them."""
    with safe_open(path, framework="pt") as file:
        part = file.get_slice(key)
        shape, code = tuple(part.get_shape()), str(part.get_dtype())

    def pieces() -> Iterator[torch.Tensor]:
        with safe_open(path, framework="pt") as file:
            if not shape:
                yield file.get_tensor(key)
                return
            part = file.get_slice(key)
            row = max(1, prod(shape[1:]) * _BITS.get(code, 8) // 8)
            step = max(1, _PIECE_BYTES // row)
            for first in range(0, shape[0], step):
                yield part[first : min(first + step, shape[0])]

    return Streamed(code, shape, pieces)


def write_model(
    folder: Path, tensors: Mapping[str, Streamed], *, shard_bytes: int, advance: Callable[[int], object]
) -> list[str]:
    """Write the weights of a model, in one file or in several with an index, as transformers reads them.

    Args:
        folder: The place.
        tensors: By their names.
        shard_bytes: A file is closed before it grows beyond this.
        advance: Told how many bytes more have been written.

    Returns:
        Names of the files.

    Raises:
        OSError: The disk is full.
    """
    shards: list[dict[str, Streamed]] = [{}]
    room = shard_bytes
    for name, tensor in tensors.items():
        if shards[-1] and tensor.bytes > room:
            shards.append({})
            room = shard_bytes
        shards[-1][name] = tensor
        room -= tensor.bytes
    if len(shards) == 1:
        _write_file(folder / WHOLE, shards[0], advance)
        return [WHOLE]
    files = [f"model-{number:05}-of-{len(shards):05}.safetensors" for number in range(1, len(shards) + 1)]
    for file, shard in zip(files, shards, strict=True):
        _write_file(folder / file, shard, advance)
    index = {
        "metadata": {"total_size": sum(tensor.bytes for tensor in tensors.values())},
        "weight_map": {name: file for file, shard in zip(files, shards, strict=True) for name in shard},
    }
    (folder / INDEX).write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")
    return [*files, INDEX]


def _write_file(path: Path, tensors: Mapping[str, Streamed], advance: Callable[[int], object]) -> None:
    # Wide numbers first: so each tensor begins at a multiple of its numbers' size.
    order: Sequence[str] = sorted(tensors, key=lambda name: (-_BITS.get(tensors[name].code, 8), name))
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    at = 0
    for name in order:
        tensor = tensors[name]
        header[name] = {
            "dtype": tensor.code,
            "shape": tensor.shape,
            "data_offsets": [at, at + tensor.bytes],
        }
        at += tensor.bytes
    encoded = json.dumps(header).encode()
    encoded += b" " * (-len(encoded) % 8)
    with path.open("wb") as file:
        file.write(len(encoded).to_bytes(8, "little") + encoded)
        for name in order:
            written = 0
            for piece in tensors[name].pieces():
                content = piece.contiguous().reshape(-1).view(torch.uint8).numpy()
                file.write(content.data)
                written += content.nbytes
                advance(content.nbytes)
            assert written == tensors[name].bytes, name
        file.flush()
        os.fsync(file.fileno())
