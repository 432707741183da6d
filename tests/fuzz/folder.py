"""A prompt folder as one string of bytes, so that any fuzzing engine can take it.

The first byte says what is done with the folder: bit 0, checksums are made to fit, so that what stands behind them is
reached; the others, whether it is loaded for training, by force, or inspected. Then each file of `NAMES` in turn: four
bytes of length, little-endian, and the content; `MISSING` for none.
"""

from __future__ import annotations

import hashlib
import json
import struct
from pathlib import Path
from random import Random

from fuzz.mutate import json_text, mutate_bytes, mutate_json, mutate_safetensors

NAMES = ("adapter_config.json", "adapter_model.safetensors", "encoder.safetensors", "ptune.json")
MISSING = 0xFFFFFFFF
FIT_CHECKSUMS, TRAINABLE, FORCED, INSPECTED = 1, 2, 4, 8


def packed(files: dict[str, bytes], flags: int = 0) -> bytes:
    """The folder's files as bytes."""
    parts = [bytes([flags])]
    for name in NAMES:
        content = files.get(name)
        parts.append(struct.pack("<I", MISSING if content is None else len(content)) + (content or b""))
    return b"".join(parts)


def unpacked(data: bytes) -> tuple[dict[str, bytes], int]:
    """Files and flags of any bytes at all."""
    files: dict[str, bytes] = {}
    at = 1
    for name in NAMES:
        if at + 4 > len(data):
            break
        length = struct.unpack_from("<I", data, at)[0]
        at += 4
        if length != MISSING:
            files[name] = data[at : at + length]
            at += len(files[name])
    return files, data[0] if data else 0


def write_folder(folder: Path, data: bytes) -> int:
    """Write the files into an existing folder; those that are missing are removed from it. Returns the flags."""
    files, flags = unpacked(data)
    if flags & FIT_CHECKSUMS and "ptune.json" in files:
        files["ptune.json"] = _fitted(files)
    for name in NAMES:
        if name in files:
            (folder / name).write_bytes(files[name])
        else:
            (folder / name).unlink(missing_ok=True)
    return flags


def _fitted(files: dict[str, bytes]) -> bytes:
    try:
        details = json.loads(files["ptune.json"])
    except (ValueError, RecursionError):
        return files["ptune.json"]
    if not isinstance(details, dict) or not isinstance(details.get("sha256"), dict):
        return files["ptune.json"]
    details["sha256"] = {
        name: hashlib.sha256(files[name]).hexdigest()
        for name in details["sha256"]
        if isinstance(files.get(name), bytes)
    }
    return json_text(details)


def mutate_folder(data: bytes, rng: Random) -> bytes:
    """One file of the folder changed, or gone; or the other kind of checksums."""
    files, flags = unpacked(data)
    if not files or rng.random() < 0.02:
        return mutate_bytes(data, rng)
    for _ in range(rng.choice((1, 1, 1, 2, 4))):
        name = rng.choice(("ptune.json", "ptune.json", *NAMES))
        if name not in files or rng.random() < 0.01:
            files.pop(rng.choice(NAMES), None)
        elif name.endswith(".json"):
            files[name] = mutate_json(files[name], rng)
        else:
            files[name] = mutate_safetensors(files[name], rng)
    return packed(files, flags ^ rng.choice((0, 0, FIT_CHECKSUMS, TRAINABLE, FORCED, INSPECTED)))
