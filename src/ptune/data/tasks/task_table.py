"""Encoded rows of a task collected as an Arrow table, and what goes with them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from ptune.data.tasks.task_token_report import TaskTokenReport
from ptune.errors import DataError

if TYPE_CHECKING:
    import datasets
    import pyarrow as pa

_ROWS_PER_BATCH = 1000
_BYTES = ("attention_mask", "token_type_ids")


@dataclass
class TaskTable:
    """Rows of columns, `input_ids` and `attention_mask` among them; every row has the same ones."""

    report: TaskTokenReport
    numbers: list[int] = field(default_factory=list)
    """The number of the example that each row was made from."""
    _batches: list[pa.RecordBatch] = field(default_factory=list)
    _pending: list[Mapping[str, Any]] = field(default_factory=list)

    def add(self, number: int, columns: Mapping[str, Any]) -> None:
        """A row of the example of that number: lists of token ids and the like, and plain numbers."""
        self.numbers.append(number)
        self._pending.append(columns)
        length = len(columns["input_ids"])
        self.report.rows += 1
        self.report.tokens += length
        self.report.longest = max(self.report.longest, length)
        if len(self._pending) == _ROWS_PER_BATCH:
            self._flush()

    def _flush(self) -> None:
        import pyarrow as pa

        if self._pending:
            columns = {
                name: pa.array([row[name] for row in self._pending], _kind(name, value))
                for name, value in self._pending[0].items()
            }
            self._batches.append(pa.RecordBatch.from_pydict(columns))
            self._pending = []

    def dataset(self) -> datasets.Dataset:
        """The rows as a data set that is stored nowhere.

        Raises:
            DataError: There are none.
        """
        import datasets
        import pyarrow as pa

        self._flush()
        if not self._batches:
            raise DataError(
                f"no row of {self.report.rows_read:,} has a token (first row: {', '.join(self.report.dropped[:1])}).",
                hint="Check the texts, and that the tokenizer is that of the model.",
            )
        return datasets.Dataset(pa.Table.from_batches(self._batches))


def _kind(name: str, value: Any) -> pa.DataType:
    """How a column is stored."""
    import pyarrow as pa

    if not isinstance(value, list):
        return pa.int64()
    return pa.list_(pa.int8() if name in _BYTES else pa.int32())
