"""Text from the command line and standard input, and to standard output, whatever the terminal's encoding.

Bytes that are no text in the terminal's encoding reach Python as lone surrogates (PEP 383): from a GBK terminal that is
taken for UTF-8, or when a backspace has deleted half a character. No tokenizer takes them.
"""

from __future__ import annotations

import io
import sys

from ptune.errors import ConfigError, printable

_MOST = 60
"""Characters that are shown of a text that cannot be decoded."""


def keep_undecoded() -> None:
    """Standard input keeps what it cannot decode; standard output writes what it cannot encode as escapes."""
    if isinstance(sys.stdin, io.TextIOWrapper):
        sys.stdin.reconfigure(errors="surrogateescape")
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")


def check_decoded(text: str, place: str) -> str:
    """`text`, if all of it is text.

    Args:
        text: What was read.
        place: Where it stands, for the message.

    Raises:
        ConfigError: Bytes of it could not be decoded.
    """
    if not any("\ud800" <= sign <= "\udfff" for sign in text):
        return text
    encoding = (sys.stdin.encoding if sys.stdin else None) or sys.getfilesystemencoding()
    shown = printable(text.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace"))
    raise ConfigError(
        f"{place} is not {encoding.upper()}: {shown[:_MOST]}.",
        hint="Set terminal and locale to the same encoding, best UTF-8, and type it again.",
    )
