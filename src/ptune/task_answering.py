"""A prompt for a task opened for answering: labels, tags, answers in a context, texts, words in a gap.

`ptune generate` and `ptune evaluate` are this and a terminal, or a file.

Shapes: `B` rows.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Self

import torch
from transformers import PreTrainedTokenizerBase

from ptune.choices import CLASSIFY, FILL, GREEDY, QA, SEQ2SEQ, TAG
from ptune.data.blocks import check_template
from ptune.data.tasks.encode import TokenizedTask, encode_task
from ptune.data.tasks.span_answers import best_spans
from ptune.data.tasks.task_collate import TaskCollator
from ptune.data.tasks.task_example import TaskExample
from ptune.data.tasks.task_templates import TaskTemplate, task_template
from ptune.data.tasks.verbalizer import verbalizer_ids
from ptune.errors import ConfigError, DataError
from ptune.frozen.eval_mode import in_eval_mode
from ptune.frozen.parameters import device_of
from ptune.model.task_model import PTunedTaskModel
from ptune.saved.frozen_of_prompt import frozen_of_prompt
from ptune.saved.hub import prompt_folder
from ptune.saved.opened_folder import OpenedFolder, open_folder
from ptune.saved.task_of_folder import MAX_LENGTH, TARGET_LENGTH, TaskNotes, task_notes
from ptune.tasks.prediction import Prediction, of_classes, of_gaps, of_spans, of_words, span_losses, text_losses

Row = dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class TaskAnswerer:
    """Predicts with a trained prompt; `TaskAnswerer.open` makes one from a prompt folder."""

    model: PTunedTaskModel
    tokenizer: PreTrainedTokenizerBase
    task: str
    """`classify`, `tag`, `qa`, `seq2seq` or `fill`."""
    labels: tuple[str, ...] = ()
    """Of classify, tag and fill, in the order of the head's logits."""
    template: TaskTemplate | None = None
    """None writes the text as it is."""
    verbalizer: Mapping[str, str] | None = None
    """fill: label → word; None takes the labels."""
    max_length: int = MAX_LENGTH
    """Tokens of a row at most; what is longer is cut, a long context of qa in windows."""
    target_length: int = TARGET_LENGTH
    """seq2seq: tokens of a text at most."""

    @classmethod
    def open(
        cls,
        folder: str | Path | OpenedFolder,
        *,
        model: str | None = None,
        template: str | None = None,
        dtype: str = "auto",
        quantization: str | None = None,
        device: str | None = None,
        device_map: str | Mapping[str, str | int] | None = None,
        attn_implementation: str | None = None,
        revision: str | None = None,
        force: bool = False,
        self_check: bool = True,
        trust_remote_code: bool = False,
    ) -> Self:
        """Load what a prompt for a task needs.

        Args:
            folder: The prompt folder, or its hub id, or one that is open already.
            model: The frozen model; by default the one that the prompt was trained on.
            template: By default the one that the prompt was trained with.
            dtype: Of the frozen model's weights, as for `load_model`; so are the next four.
            quantization: `int8`, `8bit` or `4bit`.
            device: `cpu`, `cuda`, …; by default CUDA where there is one.
            device_map: Spreads the model over several devices (`auto`, …), in place of `device`.
            attn_implementation: The attention of transformers' own layers.
            revision: Branch, tag or commit of the prompt on the hub.
            force: Accept a model or a tokenizer that the prompt was not made for.
            self_check: As for `PTunedTaskModel`.
            trust_remote_code: Run model code that comes from the hub.

        Raises:
            PromptError: The folder is missing here and on the hub, damaged, made for another model or tokenizer, or a
                prompt for a causal language model or for hidden states alone.
            ModelError: The model cannot be loaded.
            ConfigError: The template or a word of the verbalizer cannot be used.
        """
        opened = folder if isinstance(folder, OpenedFolder) else open_folder(prompt_folder(folder, revision=revision))
        notes = task_notes(opened)
        base, tokenizer = frozen_of_prompt(
            opened,
            model=model,
            force=force,
            trust_remote_code=trust_remote_code,
            dtype=dtype,
            quantization=quantization,
            device=device,
            device_map=device_map,
            attn_implementation=attn_implementation,
        )
        prompted = PTunedTaskModel(base, task=opened.task, self_check=self_check)
        prompted.load_prompt(opened, trainable=False, force=force)
        if template is not None:
            notes = replace(notes, template=template)
        return cls._of(prompted.eval(), tokenizer, notes, f"the prompt in {opened.path}")

    @classmethod
    def _of(cls, model: PTunedTaskModel, tokenizer: PreTrainedTokenizerBase, notes: TaskNotes, prompt: str) -> Self:
        """What a folder notes, checked against the model and its tokenizer."""
        config = model.active_peft_config
        template = None
        if notes.template:
            template = task_template(notes.template, notes.task, config.num_virtual_tokens)
            check_template(template, config, prompt)
        elif config.tokens_in_text:
            raise ConfigError(
                f"{prompt} has {config.tokens_in_text} virtual tokens inside the text, and no template says where.",
                hint="Give the template that it was trained with.",
            )
        labels = notes.labels
        if not labels and notes.task in (CLASSIFY, TAG):
            names: Any = model.base.config.id2label
            labels = tuple(str(names[at]) for at in sorted(names))
        limit = model.context_length
        room = notes.max_length if limit is None else min(notes.max_length, limit - config.num_virtual_tokens)
        made = cls(
            model=model,
            tokenizer=tokenizer,
            task=notes.task,
            labels=labels,
            template=template,
            verbalizer=notes.verbalizer,
            max_length=max(room, 1),
            target_length=notes.target_length,
        )
        if notes.task == FILL and template is not None:
            verbalizer_ids(labels, notes.verbalizer, template, tokenizer)  # said now, not at the first text
        return made

    def encode(self, examples: Sequence[TaskExample], *, learned: bool = False) -> TokenizedTask:
        """The rows as token ids, as training had them.

        Args:
            examples: At least one.
            learned: Take along what the rows say is right.

        Raises:
            DataError: A row has no token.
            ConfigError: The template has no place for a part of a row.
        """
        given = examples if learned else [_unlabelled(one) for one in examples]
        encoded = encode_task(
            given,
            self.tokenizer,
            self.task,
            labels=self.labels,
            max_length=self.max_length,
            target_length=self.target_length,
            template=self.template,
            verbalizer=self.verbalizer if self.task == FILL else None,
        )
        there = set(encoded.rows)
        for number, example in enumerate(examples):
            if number not in there:
                raise DataError(
                    f"{example.source or f'row {number}'}: no token is left of it.",
                    hint="Leave it out, or write it with characters that the model's vocabulary has.",
                )
        return encoded

    def predictions(
        self,
        examples: Sequence[TaskExample],
        *,
        batch_size: int = 8,
        with_prompt: bool = True,
        losses: bool = False,
        answers: bool = True,
        null_threshold: float | None = None,
        progress: Callable[[int], None] | None = None,
        **options: Any,
    ) -> list[Prediction]:
        """What the model says of each row, in their order.

        Args:
            examples: The rows; what they say is right is looked at for `losses` alone.
            batch_size: Rows a batch; of qa, windows.
            with_prompt: False asks the frozen model alone: its own head, where it has one.
            losses: Compute the loss of each row too.
            answers: seq2seq: False writes no texts.
            null_threshold: qa: how far no answer must score above the best span (see `best_spans`); None always
                answers.
            progress: Told after every batch how many rows it had.
            options: seq2seq: for `generate`, such as `do_sample=True` or `num_beams`; greedy without any.

        Raises:
            DataError: A row has no token, or rows do not all say what is right.
            ModelError: Prompt and text exceed the model's context.
            ConfigError: The template has no place for a part of a row, or options for another task than seq2seq.
        """
        if options and self.task != SEQ2SEQ:
            raise ConfigError(f"the task {self.task} generates no text: {next(iter(options))} has no use.")
        if not examples:
            return []
        run = _Run(self, self.encode(examples, learned=losses), with_prompt, options if answers else None)
        with in_eval_mode(self.model):
            for numbers in run.batches(batch_size):
                run.one(numbers)
                if progress is not None:
                    progress(len(numbers))
        if self.task == QA:
            return run.answers(examples, null_threshold)
        return [run.found[at] for at in range(len(examples))]


def _unlabelled(example: TaskExample) -> TaskExample:
    """A row without what it says is right."""
    return replace(example, label=None, tags=(), answers=(), impossible=False, target="")


@dataclass
class _Run:
    """Rows on their way through a model."""

    answerer: TaskAnswerer
    encoded: TokenizedTask
    with_prompt: bool
    options: Mapping[str, Any] | None
    """For `generate`; None writes no texts."""
    found: dict[int, Prediction] = field(default_factory=dict)
    """By the number of the example."""
    spans: dict[int, tuple[torch.Tensor, torch.Tensor]] = field(default_factory=dict)
    """qa: start and end logits of each window."""
    span_losses: dict[int, float] = field(default_factory=dict)
    seconds: dict[int, float] = field(default_factory=dict)
    """qa: of each window."""
    written: dict[tuple[int, ...], str] = field(default_factory=dict)
    """seq2seq: what was written for token ids, where it is the same every time."""

    def __post_init__(self) -> None:
        self.rows = [self._row(number) for number in range(len(self.encoded.rows))]

    def _row(self, number: int) -> Row:
        """A row of the data set; without the prompt, without the virtual tokens inside it too."""
        row: Row = dict(self.encoded.dataset[number])
        ids = row["input_ids"]
        if self.encoded.mask_columns:
            row["gap"] = self.encoded.mask_columns[number]
        if self.with_prompt or all(token >= 0 for token in ids):
            return row
        kept = [at for at, token in enumerate(ids) if token >= 0]
        if "gap" in row:
            row["gap"] = kept.index(row["gap"])
        beside = ("input_ids", "attention_mask", "token_type_ids", *(("labels",) if self.encoded.task == FILL else ()))
        return {name: [value[at] for at in kept] if name in beside else value for name, value in row.items()}

    def batches(self, size: int) -> Iterator[list[int]]:
        """Numbers of rows of similar length, the longest first: what does not fit into memory is seen at once."""
        order = sorted(range(len(self.rows)), key=lambda at: -len(self.rows[at]["input_ids"]))
        for start in range(0, len(order), size):
            yield order[start : start + size]

    @torch.no_grad()
    def one(self, numbers: Sequence[int]) -> None:
        """Run a batch, and note what it says."""
        began = time.perf_counter()
        answerer, rows = self.answerer, [self.rows[at] for at in numbers]
        collate = TaskCollator(int(answerer.tokenizer.pad_token_id or 0), answerer.task)
        device = device_of(answerer.model.base)
        batch = {name: value.to(device) for name, value in collate(rows).items()}
        made = self._read(numbers, batch)
        seconds = (time.perf_counter() - began) / len(numbers)
        for at, prediction in zip(numbers, made, strict=True):
            self.found[self.encoded.rows[at]] = replace(prediction, seconds=seconds)
        self.seconds |= dict.fromkeys(numbers, seconds)

    def _read(self, numbers: Sequence[int], batch: dict[str, torch.Tensor]) -> list[Prediction]:
        answerer = self.answerer
        names: list[str | None] | None = None if self.with_prompt else [None] * len(numbers)
        wanted = batch.get("labels")
        if answerer.task == SEQ2SEQ:
            return self._texts(numbers, batch, names)
        asked = {name: batch[name] for name in ("input_ids", "attention_mask", "token_type_ids") if name in batch}
        output: Any = answerer.model(**asked, prompt_names=names)
        if answerer.task == QA:
            return self._windows(numbers, output, batch)
        if answerer.task == CLASSIFY:
            return of_classes(output["logits"], answerer.labels, wanted)
        if answerer.task == TAG:
            columns = [self.encoded.word_columns[at] for at in numbers]
            return of_words(output["logits"], columns, answerer.labels, wanted)
        words = dict(zip(answerer.labels, self.encoded.verbalizer_ids, strict=True))
        return of_gaps(output["logits"], [self.rows[at]["gap"] for at in numbers], words, wanted)

    def _texts(
        self, numbers: Sequence[int], batch: dict[str, torch.Tensor], names: list[str | None] | None
    ) -> list[Prediction]:
        asked: dict[str, Any] = {name: batch[name] for name in ("input_ids", "attention_mask")}
        found = [Prediction(text=text) for text in self._written(numbers, asked, names)]
        if "labels" not in batch:
            return found
        output = self.answerer.model(**asked, prompt_names=names, labels=batch["labels"])
        losses = text_losses(output["logits"], batch["labels"])
        return [replace(one, **loss) for one, loss in zip(found, losses, strict=True)]

    def _written(
        self, numbers: Sequence[int], asked: Mapping[str, torch.Tensor], names: list[str | None] | None
    ) -> list[str]:
        """The text for each row; rows with the same token ids have one, unless it is drawn."""
        if self.options is None:
            return [""] * len(numbers)
        answerer, keys = self.answerer, [tuple(self.rows[at]["input_ids"]) for at in numbers]
        drawn = bool(self.options.get("do_sample"))
        first = {key: at for at, key in reversed(list(enumerate(keys)))}
        todo = [at for at, key in enumerate(keys) if drawn or (first[key] == at and key not in self.written)]
        texts: list[str] = []
        if todo:
            options = {**GREEDY, "max_new_tokens": answerer.target_length, **self.options}
            given: dict[str, Any] = {name: value[todo] for name, value in asked.items()}
            given["prompt_names"] = names and [names[at] for at in todo]
            made = answerer.model.generate(**given, **options)
            texts = [str(one).strip() for one in answerer.tokenizer.batch_decode(made, skip_special_tokens=True)]
        if drawn:
            return texts
        self.written |= {keys[at]: text for at, text in zip(todo, texts, strict=True)}
        return [self.written[key] for key in keys]

    def _windows(self, numbers: Sequence[int], output: Any, batch: dict[str, torch.Tensor]) -> list[Prediction]:
        both = [output[name].detach().float().cpu() for name in ("start_logits", "end_logits")]
        self.spans |= {at: (both[0][row], both[1][row]) for row, at in enumerate(numbers)}
        if "start_positions" in batch:
            self.span_losses |= dict(zip(numbers, span_losses(output, batch), strict=True))
        return [Prediction()] * len(numbers)

    def answers(self, examples: Sequence[TaskExample], null_threshold: float | None) -> list[Prediction]:
        """qa: the answers, when all windows have been run."""
        windows = self.encoded.windows
        assert windows is not None
        starts, ends = ([self.spans[at][which] for at in range(len(windows))] for which in (0, 1))
        found = best_spans(starts, ends, windows, examples, null_threshold=null_threshold)
        losses: list[list[float]] = [[] for _ in examples]
        seconds = [0.0] * len(examples)
        for at, window in enumerate(windows):
            losses[window.example] += [self.span_losses[at]] if at in self.span_losses else []
            seconds[window.example] += self.seconds[at]
        return [
            replace(of_spans(one, own), seconds=taken) for one, own, taken in zip(found, losses, seconds, strict=True)
        ]
