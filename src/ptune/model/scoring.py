"""How likely texts are behind their prompts, token by token: what losses and likelihoods of labels are made of.

A batch takes the ways that training takes (`ptune.batch.path`), packed where that can be. Nothing here has gradients.

Shapes: `B` rows, `M` questions, `P` virtual tokens, `T` tokens of a text, `D` token dimension.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain

import torch

from ptune.batch.path import Way
from ptune.batch.row_prompts import RowNames, RowPrompts
from ptune.batch.text import Text
from ptune.batch.token_queries import TokenAnswers, TokenQueries
from ptune.encoders.deep import DeepEncoder
from ptune.encoders.embedding import EmbeddingEncoder
from ptune.frozen.parameters import device_of
from ptune.frozen.parts import embedding_table
from ptune.model.running import RunsPrompts
from ptune.packed.packed_answers import packed_answers
from ptune.padded.padded_answers import concatenated_answers, prefixed_answers


class ScoresTokens(RunsPrompts):
    """A frozen model that says how likely tokens are behind its prompts."""

    @property
    def shares_texts(self) -> bool:
        """Whether several rows can stand behind one text that runs through the model once.

        Not where a prompt is keys and values of every layer: the text could not run behind it in one sequence.
        """
        deep = any(isinstance(one, DeepEncoder) for one in self.prompts.values())
        return self.packs and self.capability.filler_id is None and not deep

    @torch.no_grad()
    def token_answers(
        self, rows: Sequence[Sequence[int]], queries: TokenQueries, *, prompt_names: RowNames = None
    ) -> TokenAnswers:
        """How likely tokens are at places of rows.

        Args:
            rows: Token ids of each of the `B` rows, none empty.
            queries: `M` questions about them.
            prompt_names: As for `forward`.

        Raises:
            ModelError: A row and its prompt are longer than the context.
        """
        ids = torch.tensor([list(chain.from_iterable(rows))], device=device_of(self.base))
        text = Text.of(ids, row_lengths=[len(row) for row in rows])
        text, prompts = self._prompts_of(text, prompt_names, {})
        chosen = self.path_of(text, prompts, at_once=False, kwargs={})
        if chosen.way is Way.PACKED:
            return packed_answers(self._view.current(), text, prompts, queries)
        narrow, filler = self.capability.narrow_head, self.capability.filler_id
        if chosen.way is Way.PREFIX:
            prefix = prompts.prefix(self.base)
            return prefixed_answers(self.base, prefix, text, queries, filler_id=filler, narrow=narrow)
        return concatenated_answers(self.base, prompts.each(), text, queries, filler_id=filler, narrow=narrow)

    @torch.no_grad()
    def token_answers_behind(
        self,
        texts: Sequence[Sequence[int]],
        rows: Sequence[tuple[int, Sequence[int]]],
        queries: TokenQueries,
        *,
        prompt_names: Sequence[str | None],
    ) -> TokenAnswers:
        """The same for rows that go on from texts, each of which runs through the model once, whatever their number.

        A text with its soft prompt is what packed rows share a prompt for: the prompt here is both of them together.

        Args:
            texts: Token ids of each text.
            rows: For each of the `B` rows the number of its text, and its token ids, none empty.
            queries: `M` questions about the rows; place 0 is the token behind the text.
            prompt_names: The prompt of each text.

        Raises:
            ModelError: A text and what goes on from it are longer than the context.
        """
        assert self.shares_texts
        device, table = device_of(self.base), embedding_table(self.base)
        ids = torch.tensor([list(chain.from_iterable(row for _, row in rows))], device=device)
        text = Text.of(ids, row_lengths=[len(row) for _, row in rows])
        shared = Text.of(
            torch.tensor([list(chain.from_iterable(texts))], device=device), row_lengths=[len(one) for one in texts]
        )
        shared, before = self._prompts_of(shared, prompt_names, {})
        words = torch.split(shared.embeddings(self.base), list(shared.lengths))
        each = zip(before.each(), words, strict=True)
        whole = [one if first is None else torch.cat([first, one]) for first, one in each]
        prompts = RowPrompts(
            names=[str(number) for number, _ in rows],
            encoders={str(number): EmbeddingEncoder.holding(vectors) for number, vectors in enumerate(whole)},
            dtype=table.dtype,
            shared=self.shared_prefix,
            kept=self.prefixes,
        )
        prompts.check_length(self.context_length, text.longest)
        return packed_answers(self._view.current(), text, prompts, queries)
