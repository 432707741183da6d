"""Which encoding a text that is no UTF-8 is likely to be in: for an error that names the flag to use, never to read by.

Marks and null bytes say UTF-16 and UTF-32. Single bytes above ASCII between letters are a Western encoding. The
encodings of Chinese, Japanese and Korean are tried, and the share of common characters tells them apart even in a line.
What is left is charset-normalizer's to say.
"""

from __future__ import annotations

import re
from contextlib import suppress

_MARKS = ((b"\xff\xfe\0\0", "utf-32"), (b"\xff\xfe", "utf-16"), (b"\xfe\xff", "utf-16"))
_HIGH = re.compile(rb"[\x80-\xff]+")
_ENOUGH = 0.85
"""Share of a text's characters above ASCII that must be common ones of its language."""
_WESTERN = ("cp1252", "cp1250")
_WORD = 9
"""Bytes: longer stretches without ASCII are no Korean words."""
_CUT = 4
"""Bytes at the end of a sample that may be half of a character."""
_COMMON = {
    "cp949": ("euc_kr", 0xB0, 0xC8),
    "gb18030": ("gb2312", 0xB0, 0xD7),
    "big5": ("big5", 0xA4, 0xC6),
    "cp932": ("shift_jis", 0x88, 0x97),
    "euc_jp": ("euc_jp", 0xB0, 0xCF),
}
"""Encodings → where the common characters of their language lie: a table, and the first bytes there."""
_JAPANESE, _LEAST_KANA = ("cp932", "shift_jis", "euc_jp"), 0.2
_KANA = (("\u3040", "\u30ff"),)
_PUNCTUATION = (("\u2010", "\u2026"), ("\u3000", "\u303f"), ("\uff00", "\uff65"))


def likely_encodings(sample: bytes) -> list[str]:
    """The encodings that a text is likely to be in, the likeliest first; none when nothing fits."""
    marked = next((name for mark, name in _MARKS if sample.startswith(mark)), None)
    if marked is not None:
        return [marked]
    if b"\0" in sample[:4]:
        return [name for name in ("utf-16-le", "utf-16-be") if _is_written(sample[:64].decode(name, "ignore"))][:1]
    runs = _HIGH.findall(sample)
    if not runs:
        return []
    if sum(len(run) == 1 for run in runs) > len(runs) / 2:
        return list(_WESTERN)
    shares = {name: _share(sample, name) for name in _COMMON}
    fits = [name for name, share in shares.items() if share >= _ENOUGH and share == max(shares.values())]
    if fits:
        # Every common syllable of Korean is a common character of Chinese; but Korean has blanks between its words.
        in_words = len(b"".join(runs)) / len(runs) < _WORD
        return sorted(fits, key=lambda name: (name == "cp949") != in_words)
    from charset_normalizer import from_bytes

    found = from_bytes(sample).best()
    if found is None:
        return []
    return list(_WESTERN) if all(sign < "\u0250" for sign in str(found)) else [found.encoding]


def _is_written(text: str) -> bool:
    """Whether a person could have written this."""
    return all(sign.isprintable() or sign.isspace() for sign in text) and any(sign.isascii() for sign in text)


def _share(sample: bytes, encoding: str) -> float:
    """The share of the characters above ASCII that are common ones, in this encoding; 0 where it does not decode."""
    for cut in range(_CUT):
        with suppress(UnicodeDecodeError):
            wide = [sign for sign in sample[: len(sample) - cut].decode(encoding) if not sign.isascii()]
            kana = sum("\u3040" <= sign <= "\u30ff" for sign in wide)
            if not wide or (encoding in _JAPANESE and kana < _LEAST_KANA * len(wide)):
                return 0.0
            return sum(_is_common(sign, *_COMMON[encoding]) for sign in wide) / len(wide)
    return 0.0


def _is_common(sign: str, encoding: str, first: int, last: int) -> bool:
    """Whether a character is punctuation, kana, or begins in that encoding with a byte of its common characters."""
    if any(start <= sign <= end for start, end in (*_PUNCTUATION, *(_KANA if encoding in _JAPANESE else ()))):
        return True
    data = sign.encode(encoding, "ignore")
    return len(data) == 2 and first <= data[0] <= last
