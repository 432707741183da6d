"""What became of the rows when they were made into tokens."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from ptune.choices import ALL_TURNS
from ptune.errors import printable


@dataclass(frozen=True, kw_only=True)
class TokenizeReport:
    """What became of the rows, and how many tokens they are."""

    rows_read: int
    kept: int
    """Rows to train on. A long text without a question becomes several."""
    truncated: int
    """Answers of kept rows that were cut at `max_length`, or lie behind it."""
    answers_cut_off: int
    """Rows dropped because no token of their answers fits into `max_length`."""
    nothing_learned: int
    """Rows dropped because their messages say that no answer is to be learned."""
    dropped: tuple[str, ...]
    """Places of the first few dropped rows."""
    max_length: int
    tokens: int
    """Tokens of the kept rows, prompts and answers."""
    supervised_tokens: int
    """Answer tokens of the kept rows: the ones learned."""
    longest: int
    """Tokens of the longest kept row."""
    answers: int
    """Answers learned, in whole or in part."""
    earlier_answers: int
    """Answers of kept rows that `all-turns` would learn, and this run does not."""
    rows_with_earlier: int
    """Rows that have such answers."""
    documents: int
    """Texts without a question among the rows read."""
    from_cache: bool = False
    """Whether an earlier run's result was read instead of tokenizing."""

    def lines(self) -> list[str]:
        """The report for people, one fact a line."""
        cached = " (from the cache)" if self.from_cache else ""
        what = "in answers" if not self.documents else "learned"
        answers = f"{self.supervised_tokens:,} of them {what}, longest row {self.longest:,}"
        lines = [f"tokenized {self.kept:,} rows{cached}: {self.tokens:,} tokens, {answers}"]
        if self.documents:
            lines.append(
                f"{self.documents:,} texts without a question: every token is learned, no template is applied, "
                f"long ones are cut into rows of {self.max_length:,} tokens"
            )
        if self.answers > self.kept:
            lines.append(f"learning {self.answers:,} answers of {self.kept:,} rows")
        if self.rows_with_earlier:
            lines.append(
                f"{self.rows_with_earlier:,} rows have earlier answers ({self.earlier_answers:,}) that are not "
                f"learned; --train-on {ALL_TURNS} learns them"
            )
        if self.truncated:
            lines.append(f"truncated {self.truncated:,} answers at max_length {self.max_length:,}")
        if self.nothing_learned:
            lines.append(f"dropped {self.nothing_learned:,} rows whose messages say that nothing is learned")
        if self.answers_cut_off:
            some = ", ".join(self.dropped)
            more = ", …" if self.answers_cut_off > len(self.dropped) else ""
            lines.append(f"dropped {self.answers_cut_off:,} rows whose whole answer was cut off ({some}{more})")
        return [printable(line) for line in lines]

    def to_dict(self) -> dict[str, Any]:
        """The report as plain JSON values."""
        return {**asdict(self), "dropped": list(self.dropped)}
