"""One choice of a request while it is written: its tokens, its text, and when it ends."""

from __future__ import annotations

from collections.abc import Set

import torch
from transformers import PreTrainedTokenizerBase

from ptune.serving.engine.requested import FinishReason, Job, Piece, TokenLogprob
from ptune.serving.engine.sampling import Sampler, log_likelihoods
from ptune.serving.engine.text_stream import TextStream


class RowUnderWay:
    """A row of the batch.

    Args:
        job: What is answered.
        choice: The number of the answer.
        tokenizer: Decodes.
        ends: Tokens that end an answer.
    """

    def __init__(self, job: Job, choice: int, tokenizer: PreTrainedTokenizerBase, ends: Set[int]) -> None:
        self.job, self._choice = job, choice
        self.sampler = Sampler(job.sampling, job.ids, choice)
        self._tokenizer = tokenizer
        self._ends: Set[int] = frozenset() if job.ignore_eos else ends
        self._stream = TextStream(tokenizer, job.stop)
        self._untold: list[TokenLogprob] = []
        self.last_token = -1
        self.new_tokens = 0

    def take(self, token: int, logits: torch.Tensor) -> bool:
        """Go on with a token, chosen from `(V,)` logits; True when the answer is over."""
        self.last_token = token
        self.new_tokens += 1
        self.sampler.note(token)
        reason: FinishReason | None = None
        if token in self._ends:
            reason = "stop"
        else:
            if self.job.logprobs is not None:
                self._untold.append(self._logprob(token, logits, self.job.logprobs))
            self._stream.push(token)
            if self._stream.stopped:
                reason = "stop"
            elif self.new_tokens >= self.job.max_new_tokens:
                reason = "length"
        if reason is not None:
            self._stream.finish()
            reason = "stop" if self._stream.stopped else reason
        self._send(reason)
        return reason is not None

    def _send(self, reason: FinishReason | None) -> None:
        text = self._stream.take(last=reason is not None)
        if not text and reason is None:
            return
        # A token is told with the piece in which its text begins.
        told = [one for one in self._untold if one.offset < self._stream.sent]
        if reason is not None and not self._stream.stopped:
            told = self._untold  # those without any text too
        self._untold = self._untold[len(told) :]
        self.job.emit(Piece(self._choice, text, tuple(told), reason, self.new_tokens if reason else 0))

    def _logprob(self, token: int, logits: torch.Tensor, count: int) -> TokenLogprob:
        own, best = log_likelihoods(logits, token, count)
        top = tuple((one, self._text_of(one), value) for one, value in best)
        return TokenLogprob(token, self._text_of(token), own, top, len(self._stream.text))

    def _text_of(self, token: int) -> str:
        return str(self._tokenizer.decode([token]))
