"""Tokens become text one by one: whole characters only, and nothing that may turn out to begin a stop string.

A token may be part of a character (byte-level vocabularies), and a word's text may depend on the token before it
(SentencePiece puts spaces in front). So the last two groups of tokens are decoded together, and what comes out is sent
when it does not end in U+FFFD, the sign of a character that is not whole. The pieces of an answer put together are what
the tokenizer makes of all its tokens at once.
"""

from __future__ import annotations

from collections.abc import Sequence

from transformers import PreTrainedTokenizerBase

_REPLACEMENT = "\ufffd"
_MOST_PENDING = 8
"""Tokens that wait for a whole character: UTF-8 takes four at most, so more of them are bytes that are no text."""


class TextStream:
    """The text of one answer as far as it goes.

    Args:
        tokenizer: Decodes; special tokens are left out.
        stop: Strings that end the answer.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, stop: Sequence[str] = ()) -> None:
        self._tokenizer, self._stop = tokenizer, tuple(stop)
        self._ids: list[int] = []
        self._before = self._read = 0
        """Tokens up to `_read` have become text; those from `_before` on are decoded once more with what follows."""
        self._sent = 0
        self.text = ""
        """What the tokens say, as far as characters are whole; cut where a stop string began."""
        self.stopped = False
        """Whether a stop string has ended it."""

    def push(self, token: int) -> None:
        """Go on with a token."""
        self._ids.append(token)
        known, whole = self._decode(self._before, self._read), self._decode(self._before)
        pending = len(self._ids) - self._read
        if len(whole) <= len(known) or (whole.endswith(_REPLACEMENT) and pending < _MOST_PENDING):
            return
        self._append(whole[len(known) :])
        self._before, self._read = self._read, len(self._ids)

    def finish(self) -> None:
        """No token follows: what waited for one becomes text as it is."""
        whole = self._decode(0)
        if not self.stopped and whole.startswith(self.text):
            self._append(whole[len(self.text) :])

    def take(self, *, last: bool = False) -> str:
        """The text that can be sent now and was not yet; with `last` everything that is left."""
        end = len(self.text) - (0 if last or self.stopped else self._held())
        piece, self._sent = self.text[self._sent : end], max(self._sent, end)
        return piece

    @property
    def sent(self) -> int:
        """Characters that have been taken."""
        return self._sent

    def _decode(self, start: int, end: int | None = None) -> str:
        return str(self._tokenizer.decode(self._ids[start:end], skip_special_tokens=True))

    def _append(self, piece: str) -> None:
        start = max(len(self.text) - max(map(len, self._stop), default=1) + 1, self._sent)
        self.text += piece
        found = [at for one in self._stop if (at := self.text.find(one, start)) >= 0]
        if found:
            self.text, self.stopped = self.text[: min(found)], True

    def _held(self) -> int:
        """Characters at the end that may be the beginning of a stop string."""
        return max((_overlap(self.text, one) for one in self._stop), default=0)


def _overlap(text: str, stop: str) -> int:
    """The most characters at the end of a text that a stop string begins with."""
    for length in range(min(len(stop) - 1, len(text)), 0, -1):
        if text.endswith(stop[:length]):
            return length
    return 0
