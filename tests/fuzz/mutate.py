"""Mutations that know what they change: JSON values, safetensors headers, lines of text; and bytes, where nothing fits.

Everything is drawn from one `random.Random`, so that an input is a function of seed and number.
"""

from __future__ import annotations

import gzip
import io
import json
import struct
import zipfile
import zlib
from random import Random
from typing import Any

from workbooks import zipped

SECRET = "../secret.txt"
"""A file beside the folder that is read: a name that must not be followed."""

ODD_VALUES: tuple[Any, ...] = (
    None, True, False, 0, 1, -1, 3, 2**31, 2**63, -(2**63), 10**30, 10**400, 0.5, 1e308, -0.0, 1e-320,
    float("nan"), float("inf"), float("-inf"), "", " ", "x", "\0", "\x1b[2J\x1b]0;x\x07", "\u202e", "\ud800", "a\nb",
    "a" * 5000, SECRET, f"@{SECRET}", "@/etc/hostname", "../../x", "/dev/zero", "{instruction}{output}",
    "@{instruction}{output}", "{input}{output}{nothing}", "chat", "<script>", "![x](http://x)", "' \"", "---\na: b",
    "LSTM", "MLP", "RESIDUAL", "EMBEDDING", "TEXT", "SAMPLE_VOCAB", "PromptTuningConfig", "PREFIX_TUNING", "P_TUNING",
    [], {}, [[]], [1, "a"], {"a": 1}, [{"role": "user", "content": "q"}], {"value": "LSTM"},
)  # fmt: skip
DTYPES = (
    "BOOL", "U8", "I8", "I16", "U16", "I32", "U32", "I64", "U64", "F16", "BF16", "F32", "F64", "F8_E4M3", "F8_E5M2",
    "F8_E8M0", "F4", "F6_E2M3", "C64", "X", "", 5,
)  # fmt: skip
_TOKENS = (
    b"\0", b"\xff", b"\xff\xfe", b"\xef\xbb\xbf", b'"', b"'", b"[", b"{", b"]", b"}", b",", b":", b"\n", b"\r", b"\t",
    b"NaN", b"-Infinity", b"1e999", b"9" * 400, b"[" * 300, b'{"a":' * 200, b"\\ud800", b"\\u0000", b"null", b"&a ",
    b"*a", b"<<: ", b"!!binary ", b"!!int ", b"!!bool x", b"!!timestamp x", b"!!python/object:os.system ", b"? [a] : b",
    b"0x" + b"f" * 400, b"1:2:3", b"2001-99-99", b"---\n", b"data", b"instruction", b"output", b"messages",
)  # fmt: skip


def mutate_bytes(data: bytes, rng: Random) -> bytes:
    """A bit flipped, a piece cut, doubled, or put in."""
    at = rng.randrange(len(data) + 1)
    match rng.randrange(7):
        case 0 if data:
            at %= len(data)
            return data[:at] + bytes([data[at] ^ 1 << rng.randrange(8)]) + data[at + 1 :]
        case 1:
            return data[:at]
        case 2:
            return data[:at] + data[min(len(data), at + rng.randrange(1, 64)) :]
        case 3:
            return data[:at] + data[at : at + rng.randrange(1, 64)] * rng.randrange(1, 5) + data[at:]
        case 4 | 5:
            return data[:at] + rng.choice(_TOKENS) + data[at:]
        case _:
            return data[:at] + rng.randbytes(rng.randrange(1, 16)) + data[at + rng.randrange(16) :]


def mutate_json_value(value: Any, rng: Random) -> Any:
    """One place of a value changed: another value, a key gone or doubled under another name, one more level."""
    places = [(None, None, value), *_places(value)]
    parent, key, child = rng.choice(places)
    if parent is None:
        parent, key, child = places[-1] if len(places) > 1 else (None, None, value)
    if parent is None:
        return rng.choice(ODD_VALUES)
    match rng.randrange(8):
        case 0 | 1 | 2 | 3:
            parent[key] = rng.choice(ODD_VALUES)
        case 4 if isinstance(parent, dict):
            del parent[key]
        case 5:
            for _ in range(rng.choice((1, 5, 400))):
                child = [child]
            parent[key] = child
        case 6 if isinstance(parent, dict):
            parent[str(rng.choice(ODD_VALUES))[:200]] = child
        case _:
            parent[key] = _near(child, rng)
    return value


def _places(value: Any) -> list[tuple[Any, Any, Any]]:
    """Every (parent, key, child) of a nested value."""
    found: list[tuple[Any, Any, Any]] = []
    pending = [value]
    while pending:
        one = pending.pop()
        items = list(one.items()) if isinstance(one, dict) else list(enumerate(one)) if isinstance(one, list) else []
        for key, child in items:
            found.append((one, key, child))
            pending.append(child)
    return found


def _near(value: Any, rng: Random) -> Any:
    if isinstance(value, bool) or value is None:
        return not value
    if isinstance(value, float) or (isinstance(value, int) and abs(value) < 2**64):
        return value + rng.choice((-1, 1, 0.5, 2**32))
    if isinstance(value, str):
        at = rng.randrange(len(value) + 1)
        return value[:at] + str(rng.choice(ODD_VALUES))[:50] + value[at:]
    return [value, value]


def json_text(value: Any) -> bytes:
    """A value as JSON, half surrogates and all."""
    try:
        return json.dumps(value).encode()
    except (ValueError, RecursionError):
        return b"null"


def mutate_json(data: bytes, rng: Random) -> bytes:
    """A JSON text with a value changed; or its bytes."""
    if rng.random() < 0.8:
        try:
            return json_text(mutate_json_value(json.loads(data), rng))
        except (ValueError, RecursionError):
            pass
    return mutate_bytes(data, rng)


def mutate_file(data: bytes, suffix: str, rng: Random) -> bytes:
    """A data file of that kind with a value of its JSON changed, or a part of its archive; or its bytes."""
    if suffix in (".json", ".jsonl"):
        return mutate_json(data, rng)
    if rng.random() < 0.3:
        return mutate_bytes(data, rng)
    try:
        if suffix == ".jsonl.gz":
            return gzip.compress(mutate_json(gzip.decompress(data), rng), mtime=0)
        if suffix == ".json.zst":
            import pyarrow as pa

            with pa.CompressedInputStream(pa.BufferReader(data), "zstd") as stream:
                unpacked = stream.read(2**20)
            return bytes(pa.Codec("zstd").compress(mutate_json(unpacked, rng), asbytes=True))
        if suffix == ".xlsx":
            with zipfile.ZipFile(io.BytesIO(data)) as archive:
                parts = {name: archive.read(name) for name in archive.namelist()}
            name = rng.choice(list(parts))
            return zipped({**parts, name: mutate_bytes(parts[name], rng)})
    except (OSError, EOFError, ValueError, LookupError, NotImplementedError, zlib.error, zipfile.BadZipFile):
        pass
    return mutate_bytes(data, rng)


def mutate_safetensors(data: bytes, rng: Random) -> bytes:
    """A safetensors file with its header's length, a dtype, a shape, an offset, a name or its numbers changed."""
    try:
        length = struct.unpack("<Q", data[:8])[0]
        header, body = json.loads(data[8 : 8 + length]), data[8 + length :]
        names = [name for name in header if name != "__metadata__"]
        name = rng.choice(names)
        entry = header[name]
        match rng.randrange(10):
            case 0:
                return struct.pack("<Q", rng.choice((0, 1, length + 1, 2**31, 2**40, 2**63, 2**64 - 1))) + data[8:]
            case 1:
                entry["dtype"] = rng.choice(DTYPES)
            case 2:
                entry["shape"] = rng.choice(([], [0], [0, 4], [2**40], [2**32, 2**32], [-1], [3.5], "x", [1] * 40))
            case 3:
                entry["shape"] = [*reversed(entry["shape"])]
            case 4:
                entry["data_offsets"] = rng.choice(([0, 0], [0, 2**50], [8, 0], [-1, 4], [0], "x", [0, len(body) + 4]))
            case 5:
                header[str(rng.choice(ODD_VALUES))[:100]] = header.pop(name)
            case 6:
                header |= {
                    f"t{at}": {"dtype": "F32", "shape": [0], "data_offsets": [len(body)] * 2} for at in range(40)
                }
            case 7:
                at = rng.randrange(max(1, len(body) // 4)) * 4
                number = rng.choice((float("nan"), float("inf"), 3e38, -3e38, 1e-45, 0.0))
                body = body[:at] + struct.pack("<f", number) + body[at + 4 :]
            case 8:
                header["__metadata__"] = rng.choice(({"a": "b"}, {"a": 1}, [], "x", None, {"structure": "[" * 500}))
            case _:
                mutate_json_value(header, rng)
        text = json_text(header)
        return struct.pack("<Q", len(text)) + text + body
    except (ValueError, struct.error, LookupError, TypeError, AttributeError, RecursionError):
        return mutate_bytes(data, rng)
