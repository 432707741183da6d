"""What a compression trains: rows with the teacher's soft labels, on a prompt that starts at the text.

Shapes: `P` virtual tokens, `D` token dimension.
"""

from __future__ import annotations

from functools import cached_property
from typing import Any

import torch
from datasets import Dataset

from ptune.answering import Answerer
from ptune.choices import DEEP_ENCODERS
from ptune.compression.compress_settings import CompressSettings
from ptune.compression.excerpts import StudiedText
from ptune.compression.reading import reading
from ptune.compression.self_study import Study, label
from ptune.compression.study_files import ROWS, LinesFile
from ptune.data.example import Example
from ptune.data.labels import IGNORE_INDEX
from ptune.data.soft_labels import TEACHER_IDS, TEACHER_LOG_PROBS, SoftLabels
from ptune.data.tokenize import encode_rows
from ptune.deep_config import TextTokens
from ptune.errors import DataError
from ptune.frozen.parameters import device_of
from ptune.frozen.parts import embedding_table
from ptune.prefix.deep_prompts import key_value_shape, prefix_of
from ptune.prefix.keys_values import Prefix
from ptune.prompt.build_deep import text_rows
from ptune.recipe import TrainRecipe


class TaughtRows:
    """The rows of a study with their soft labels.

    Args:
        study: Made them.
        max_length: At which training cuts them.
    """

    def __init__(self, study: Study, max_length: int) -> None:
        self._study, self._max_length = study, max_length

    def labelled(self, dataset: Dataset) -> Dataset:
        """Tokenized rows with the columns of `ptune.data.soft_labels`."""
        columns: dict[str, list[Any]] = {TEACHER_IDS: [], TEACHER_LOG_PROBS: []}
        for row in dataset:
            own = self._labels.get(tuple(row["input_ids"]))
            if own is None:
                raise DataError(
                    f"{self._study.folder / ROWS} holds a row that is not a question with an answer.",
                    hint="Each line needs instruction and output, as the study wrote them.",
                )
            learned = sum(label != IGNORE_INDEX for label in row["labels"])  # a long row is cut at its end
            columns[TEACHER_IDS].append(own.ids[:learned].flatten().tolist())
            columns[TEACHER_LOG_PROBS].append(own.log_probs[:learned].flatten().tolist())
        for name, values in columns.items():
            dataset = dataset.add_column(name, values)
        return dataset

    @cached_property
    def _labels(self) -> dict[tuple[int, ...], SoftLabels]:
        """The soft labels of every row, by its token ids."""
        answerer = self._study.answerer
        examples, windows, keys = [], [], []
        for line in LinesFile(self._study.folder / ROWS).lines:
            question, more, said = (str(line.get(name) or "") for name in ("instruction", "input", "output"))
            one = Example(instruction=question, input=more, output=said)
            rows = encode_rows(one, answerer.template, answerer.tokenizer, self._max_length) if one.answered else []
            if rows:
                examples.append(one)
                windows.append(int(line.get("window") or 0))
                keys.append(tuple(rows[0].input_ids))
        return dict(zip(keys, label(self._study, examples, windows), strict=True))


def start_at_text(
    answerer: Answerer, text: StudiedText, settings: CompressSettings, recipe: TrainRecipe
) -> torch.Tensor | Prefix | None:
    """Tokens of the text, as the model has them in front of a question: their keys and values, or their embeddings."""
    if settings.start == "random":
        return None
    base, count = answerer.model.base, recipe.virtual_tokens
    two = [Example(instruction="a"), Example(instruction="b")]
    with reading(answerer, text.windows[0], two) as read:
        ids = list(read.shared)
    if recipe.encoder in DEEP_ENCODERS:
        rows = text_rows(base, ids, count, TextTokens[settings.start.upper()])
        shape = key_value_shape(base)
        return prefix_of(rows, layers=shape.layers, heads=shape.heads, vocab_size=1)
    chosen = {
        "first": ids[:count],
        "last": ids[-count:],
        "even": [ids[at] for at in torch.linspace(0, len(ids) - 1, count).round().long().tolist()],
    }[settings.start]
    return embedding_table(base)[torch.tensor(chosen, device=device_of(base))].float().cpu()
