"""`load_task_examples`: files, folders or hub ids become rows of a task, with a report of what was left out.

Files are found and read as for `ptune.data.load_examples`; CoNLL files too, where words are tagged. The rows of seq2seq
are those of `load_examples` itself, a question and its answer.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from ptune.choices import SEQ2SEQ, TAG
from ptune.data.example import Example
from ptune.data.opened import Reader, ReadOptions
from ptune.data.read_sources import Rules, read_sources, sources_in
from ptune.data.records import load_examples
from ptune.data.tasks.conll import CONLL_SUFFIXES, conll_rows
from ptune.data.tasks.task_example import TaskExample, TaskExamples
from ptune.data.tasks.task_layouts import check_task_columns
from ptune.data.tasks.task_rows import EMPTY, HIDDEN, UNLABELLED, TaskRowReader
from ptune.errors import DataError

_REASONS = {
    UNLABELLED: "have no label",
    HIDDEN: "have the label -1, which stands for none",
    EMPTY: "have no text",
    "duplicates": "repeat rows of the sources before",
}


def load_task_examples(
    source: str | Path | Sequence[str | Path],
    task: str,
    *,
    columns: Mapping[str, str] | None = None,
    split: str = "train",
    limit: int | None = None,
    drop_duplicates: bool = True,
    encoding: str | None = None,
    sheet: str | None = None,
    require_labels: bool = True,
) -> TaskExamples:
    """Read the rows of a task from files, folders or the hub.

    Args:
        source: As for `ptune.data.load_examples`; for `tag` also `.conll`, `.bio` and `.iob` files, and `.txt` files of
            that form.
        task: `classify`, `tag`, `qa`, `seq2seq` or `fill`.
        columns: Which column holds which part of a row; see `ptune.data.tasks.task_layouts.check_task_columns`.
        split: The split to take, where a source has several.
        limit: Stop after this many kept rows of each source.
        drop_duplicates: Drop rows equal to an earlier one in every part. A score on a published test set is of all.
        encoding: Of text files; UTF-8 when None.
        sheet: Of Excel files; the first one when None.
        require_labels: False accepts rows and files that do not say what is right (to predict for).

    Returns:
        The rows, never empty, with `.report`.

    Raises:
        DataError: A source that is missing, empty, or holds a row that cannot be used; names the file and the line or
            row.
        ConfigError: An unknown task, `columns` names a part that it does not have, no source is named, or `limit` is
            below 1.
    """
    mapping = check_task_columns(columns or {}, task)
    sources = sources_in(source, limit)
    if task == SEQ2SEQ:
        examples = load_examples(
            sources,
            columns=mapping,
            split=split,
            limit=limit,
            drop_duplicates=drop_duplicates,
            require_output=require_labels,
            encoding=encoding,
            sheet=sheet,
        )
        return TaskExamples(map(_written, examples), task, examples.report)
    rules = Rules(
        reader=lambda report: TaskRowReader(task, mapping, report, require_labels=require_labels),
        mapping=mapping,
        limit=limit,
        drop_duplicates=drop_duplicates,
        reasons=_REASONS,
        hint="Fill the column of labels, take a split that has them, or map the right column with columns.",
    )
    readers: dict[str, Reader] = dict.fromkeys(CONLL_SUFFIXES, conll_rows) if task == TAG else {}
    options = ReadOptions(split=split, encoding=encoding, sheet=sheet, readers=readers)
    rows, report, names = read_sources(sources, options, rules)
    return TaskExamples(rows, task, report, (*names.get("label", ()), *names.get("tags", ())))


def _written(example: Example) -> TaskExample:
    """A question with its answer as a text to write for another."""
    place = f"{example.source}: " if example.source else ""
    if example.document:
        raise DataError(
            f"{place}the row is a text without another to write for it.",
            hint="Give two columns, such as source and target, or say with columns which column is what.",
        )
    if example.extras:
        raise DataError(
            f"{place}a turn has tool calls or the like, which no plain text holds.",
            hint="Give rows of a text and the text to write for it.",
        )
    earlier = [f"{role}: {content}" for role, content in (*example.history, *example.steps)]
    asked = f"user: {example.instruction}" if earlier else example.instruction
    if example.steps:
        earlier.insert(len(example.history), asked)
        asked = earlier.pop()
    return TaskExample(
        text="\n".join([*([example.system] if example.system else []), *earlier, asked]),
        second=example.input or None,
        target=example.output,
        source=example.source,
    )
