"""The pieces of an answer that comes from an upstream, also when a second one has to begin it again.

What is greedy, or has a seed, is written again in the same words: what has been sent on already is left out of it. An
answer that nobody has seen anything of is begun again whatever it is.
"""

from __future__ import annotations

from typing import Any

from ptune.serving.engine.requested import Job, Piece, TokenLogprob
from ptune.serving.gateway.upstream_call import UnavailableError

_UNKNOWN = -1
"""For the id of a token: an upstream tells its text."""
_REASONS = ("stop", "length")


class AnswerLostError(Exception):
    """An answer of which a part has been sent on cannot be completed."""


class RelayedAnswer:
    """All choices of one job.

    Args:
        job: Told the pieces.
    """

    def __init__(self, job: Job) -> None:
        self._job = job
        self._sent = [""] * job.choices
        self._told = [0] * job.choices
        self.begin()

    def begin(self) -> None:
        """An upstream begins.

        Raises:
            AnswerLostError: It would write other words than those that have been sent on.
        """
        sampling = self._job.sampling
        if any(self._sent) and sampling.temperature > 0 and sampling.seed is None:
            raise AnswerLostError("the server that wrote the answer was lost, and another would write another one")
        self._text = [""] * self._job.choices
        self._tokens = [0] * self._job.choices
        self._pieces: list[Piece] = []
        self._finished: set[int] = set()
        self._last: Piece | None = None
        self._new_tokens = 0

    def take(self, chunk: dict[str, Any]) -> None:
        """A chunk of the upstream's.

        Raises:
            UnavailableError: It is none of `/v1/completions`, or says that the answer was given up.
            AnswerLostError: The words differ from those that have been sent on.
        """
        try:
            for choice in chunk.get("choices", ()):
                self._take_choice(int(choice["index"]), choice)
            usage = chunk.get("usage")
            if usage:
                self._new_tokens = int(usage["completion_tokens"])
        except (KeyError, TypeError, ValueError, IndexError, AttributeError) as error:
            raise UnavailableError(f"its stream holds no completion: {type(error).__name__} {error}") from error

    def complete(self) -> int:
        """The stream has ended; returns how many tokens were written.

        Raises:
            UnavailableError: Before the answer was complete.
        """
        if self._last is None:
            raise UnavailableError("its stream ended before the answer was complete")
        last = self._last
        self._emit(Piece(last.choice, last.text, last.tokens, last.finish_reason, self._new_tokens))
        for piece in self._pieces:
            self._job.emit(piece)
        return self._new_tokens

    def _take_choice(self, at: int, choice: dict[str, Any]) -> None:
        reason = choice.get("finish_reason")
        if reason is not None and reason not in _REASONS:
            raise UnavailableError(f"it gave the answer up: {reason}")
        if not 0 <= at < self._job.choices or at in self._finished:
            raise ValueError(f"choice {at}")
        text, sent = str(choice["text"]), self._sent[at]
        self._text[at] += text
        whole = self._text[at]
        if not whole.startswith(sent[: len(whole)]):
            raise AnswerLostError("the server that wrote the answer was lost, and another writes other words")
        new = whole[max(len(sent), len(whole) - len(text)) :]
        tokens = self._new_logprobs(at, choice.get("logprobs"))
        if reason is not None and len(whole) < len(sent):
            raise AnswerLostError("the server that wrote the answer was lost, and another ends it earlier")
        piece = Piece(at, new, tokens, reason)
        if reason is not None:
            self._finished.add(at)
            if len(self._finished) == self._job.choices:
                self._last = piece  # told when it is known how many tokens all of it was
                return
        if new or tokens or reason is not None:
            self._emit(piece)

    def _new_logprobs(self, at: int, found: dict[str, Any] | None) -> tuple[TokenLogprob, ...]:
        """Those that have not been told yet."""
        if self._job.logprobs is None or not found:
            return ()
        tops = found.get("top_logprobs") or [{}] * len(found["tokens"])
        told = []
        values = zip(found["tokens"], found["token_logprobs"], tops, found["text_offset"], strict=True)
        for text, logprob, top, offset in values:
            self._tokens[at] += 1
            if self._tokens[at] > self._told[at]:
                likeliest = sorted((top or {}).items(), key=lambda one: -one[1])[: self._job.logprobs]
                best = tuple((_UNKNOWN, word, float(value)) for word, value in likeliest)
                told.append(TokenLogprob(_UNKNOWN, str(text), float(logprob), best, int(offset)))
        return tuple(told)

    def _emit(self, piece: Piece) -> None:
        if not self._job.streamed:
            self._pieces.append(piece)
            return
        self._sent[piece.choice] += piece.text
        self._told[piece.choice] += len(piece.tokens)
        self._job.emit(piece)
