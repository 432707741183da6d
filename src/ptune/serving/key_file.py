"""API keys from a file or from the environment. Free of heavy libraries."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from ptune.errors import ConfigError

VARIABLE = "PTUNE_API_KEYS"
UPSTREAM_VARIABLE = "PTUNE_UPSTREAM_KEY"
LEAST_LENGTH = 16
_MOST_BYTES = 2**20


def read_keys(path: Path | None, environment: Mapping[str, str]) -> tuple[str, ...]:
    """The keys that a file holds, one a line, and those that the environment names, with commas between them.

    Empty lines and those that begin with `#` are left out.

    Raises:
        ConfigError: The file cannot be read or holds no key, or a key is too short or no plain word.
    """
    found = [(key.strip(), VARIABLE) for key in environment.get(VARIABLE, "").split(",") if key.strip()]
    if path is not None:
        found += [(key, f"{path}, key {number}") for number, key in enumerate(_keys_in(path), start=1)]
    for key, place in found:
        # The key itself is not shown.
        if len(key) < LEAST_LENGTH or not key.isascii() or not key.isprintable() or " " in key:
            raise ConfigError(
                f"{place}: an API key of {len(key)} characters, or with others than letters, digits and signs.",
                hint=f"Use {LEAST_LENGTH} characters of ASCII or more, such as `openssl rand -hex 32`.",
            )
    return tuple(dict.fromkeys(key for key, _ in found))


def read_upstream_key(path: Path | None, environment: Mapping[str, str]) -> str | None:
    """The key that a gateway shows to its upstreams, from a file or the environment; None where neither says one.

    Raises:
        ConfigError: The file cannot be read, or holds none or several; or the key is no plain word.
    """
    key = environment.get(UPSTREAM_VARIABLE, "").strip() or None
    if path is not None:
        keys = _keys_in(path)
        if len(keys) > 1:
            raise ConfigError(f"{path} holds {len(keys)} keys.", hint="All upstreams are asked with one.")
        key = keys[0]
    if key is not None and not (key.isascii() and key.isprintable()):
        raise ConfigError("the upstreams' API key has characters that no header can hold.", hint="Use ASCII.")
    return key


def _keys_in(path: Path) -> list[str]:
    try:
        with path.open("rb") as file:
            content = file.read(_MOST_BYTES + 1)
        lines = content.decode().splitlines()
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "it is not UTF-8"
        raise ConfigError(f"cannot read the API keys in {path}: {reason}.", hint="Write one key a line.") from error
    if len(content) > _MOST_BYTES:
        raise ConfigError(f"{path} is larger than 1 MiB.", hint="Write one key a line.")
    keys = [line.strip() for line in lines if line.strip() and not line.lstrip().startswith("#")]
    if not keys:
        raise ConfigError(f"{path} holds no API key.", hint="Write one key a line, such as `openssl rand -hex 32`.")
    return keys
