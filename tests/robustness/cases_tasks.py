"""Bad inputs of prompts for tasks: data of another task, damaged folders, commands that have no use for them."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

from robustness.workshop import Case, Place, Words
from small_tasks import base_folder, prompt_folder

_GROUP = "tasks"
_ROWS = '{"text": "it was great", "label": "good"}\n{"text": "it was terrible", "label": "bad"}\n'
_QUESTIONS = '{"question": "who", "context": "it was Peter", "answers": {"text": ["Peter"], "answer_start": [7]}}\n'


@cache
def _base(kit: Path, task: str) -> Path:
    """A model for a task beside the kit's own, whose folder is `kit`: one for all cases."""
    return base_folder(kit.parent / ("t5" if task == "seq2seq" else "bert"), task)


def _prompt(at: Place, task: str, **noted: Any) -> Path:
    return prompt_folder(at.at / "prompt", _base(at.kit.model, task), task, **noted)


def _noting(task: str, /, **noted: Any) -> Callable[[Place], Words]:
    """A text for a prompt whose `ptune.json` says something else."""

    def make(at: Place) -> Words:
        folder = _prompt(at, task)
        at.edit(folder, lambda details: details.update(noted))
        return ["generate", folder, "it was great"]

    return make


def _generating(task: str, *words: object, text: str = "it was great") -> Callable[[Place], Words]:
    return lambda at: ["generate", _prompt(at, task), text, *words]


def _evaluating(task: str, rows: str, *words: object) -> Callable[[Place], Words]:
    return lambda at: [
        *("evaluate", _prompt(at, task), "--data", at.file("rows.jsonl", rows), "--output", at.at / "new"), *words
    ]  # fmt: skip


def _cut_head(at: Place) -> Words:
    """A head whose file was cut."""
    folder = _prompt(at, "classify")
    path = folder / "adapter_model.safetensors"
    path.write_bytes(path.read_bytes()[:-8])
    return ["generate", folder, "it was great"]


def _without_head(at: Place) -> Words:
    """A head that somebody took out, checksums and all."""
    from safetensors.torch import load_file, save_file

    folder = _prompt(at, "classify")
    path = folder / "adapter_model.safetensors"
    kept = {name: value for name, value in load_file(path).items() if name == "prompt_embeddings"}
    save_file(kept, path)
    at.edit(folder, lambda _: None)
    return ["generate", folder, "it was great"]


def _of_another_base(at: Place) -> Words:
    return ["generate", _prompt(at, "seq2seq"), "it was great", "--model", _base(at.kit.model, "classify")]


def _for_texts(task: str, command: str, *words: object) -> Callable[[Place], Words]:
    return lambda at: [command, *([] if command == "chat" else ["--prompts"]), _prompt(at, task), *words]


def _exported(task: str, form: str) -> Callable[[Place], Words]:
    return lambda at: ["export", _prompt(at, task), "--to", form, "--output", at.at / "new.safetensors"]


TASKS = tuple(
    Case(_GROUP, name, make, says)
    for name, make, says in (
        (
            "a label that the prompt does not know",
            _evaluating("classify", _ROWS + '{"text": "it was", "label": "goood"}\n'),
            ("rows.jsonl:3: the label 'goood' is not among", "Did you mean 'good'?"),
        ),
        ("an empty set", _evaluating("classify", ""), ("rows.jsonl is empty",)),
        (
            "rows without labels",
            _evaluating("classify", '{"text": "it was great", "label": null}\n'),
            ("none of the 1 rows can be learned: 1 have no label",),
        ),
        (
            "rows of another task",
            _evaluating("tag", _QUESTIONS),
            ("its columns fit no layout of the task tag", "--columns words=<column> tags=<column>"),
        ),
        (
            "an answer that the context does not have",
            _evaluating("qa", _QUESTIONS.replace('["Peter"]', '["Paul"]')),
            ("rows.jsonl:1: the answer 'Paul' does not stand at answer_start 7", "the context has it nowhere"),
        ),
        ("a metric of another task", _evaluating("qa", _QUESTIONS, "--metrics", "accuracy"), ("accuracy is none of",)),
        (
            "labels of one's own",
            _evaluating("classify", _ROWS, "--labels", "a,b"),
            ("labels has no use",),
        ),
        ("shots", _evaluating("classify", _ROWS, "--shots", "4"), ("shots has no use", "Leave --shots out")),
        (
            "a threshold for a classifier",
            _evaluating("classify", _ROWS, "--null-threshold", "1"),
            ("null_threshold has no use for a prompt for the task classify",),
        ),
        (
            "a threshold that is no number",
            _evaluating("qa", _QUESTIONS, "--null-threshold", "nan"),
            ("null_threshold must be a number, not nan",),
        ),
        ("a question without a context", _generating("qa"), ("there is no context", "--input")),
        ("sampling of a label", _generating("classify", "--temperature", 1), ("--temperature has no use",)),
        (
            "a classifier without its prompt",
            _generating("tag", "--no-prompt"),
            ("head is untrained",),
        ),
        ("a template of another task", _generating("tag", "--template", "{text}"), ("the task tag takes no template",)),
        ("an empty text", _generating("classify", text=" "), ("there is no text to answer",)),
        ("a head that was cut", _cut_head, ("adapter_model.safetensors does not match its checksum",)),
        ("a head that is missing", _without_head, ("its head does not fit the model's", "has the shape none")),
        (
            "a model of another kind",
            _of_another_base,
            ("is not a model from sequence to sequence: its type is 'bert'",),
        ),
        (
            "a task that is another's",
            _noting("classify", task="qa"),
            ("task is 'qa', but task_type SEQ_CLS is that of classify",),
        ),
        (
            "labels that are fewer than the head's",
            _noting("classify", labels=["bad", "good"]),
            ("its head does not fit the model's", "num_labels"),
        ),
        ("labels that are no list", _noting("classify", labels="bad"), ("labels is 'bad', not a list",)),
        ("labels that are one twice", _noting("tag", labels=["O"] * 5), ("labels is ['O', 'O'", "not a list of 1 to")),
        ("a gap without labels", _noting("fill", labels=None), ("does not say between which labels it fills a gap",)),
        ("words that are no table", _noting("fill", verbalizer="great"), ("verbalizer is 'great', not a table",)),
        (
            "a word that is no token",
            _noting("fill", verbalizer={"bad": "unbelievable", "good": "great"}),
            ("verbalizer: 'unbelievable' is not in the model's vocabulary",),
        ),
        (
            "a template without its gap",
            _noting("fill", template="{text}"),
            ("the template '{text}' has no gap to fill", "{mask}"),
        ),
        (
            "a length that is no number",
            _noting("classify", recipe={"max_length": [3]}),
            ("max_length is [3], not a whole number of at least 1",),
        ),
        ("a conversation with a classifier", _for_texts("classify", "chat"), ("SEQ_CLS", "ptune generate")),
        ("a classifier that is to be served", _for_texts("tag", "serve"), ("--prompts", "TOKEN_CLS", "ptune generate")),
        ("a classifier for vLLM", _exported("classify", "vllm"), ("the prompt is for SEQ_CLS", "--to peft")),
        ("a head as embeddings", _exported("qa", "embeds"), ("qa_outputs", "no place for one")),
        ("a prompt that PEFT has no kind for", _exported("fill", "peft"), ("PEFT has no prompts for masked",)),
        (
            "a search for a classifier",
            lambda at: [
                *("tune", "--model", _base(at.kit.model, "classify"), "--data", at.file("rows.jsonl", _ROWS)),
                *("--output", at.at / "new", "--task", "classify"),
            ],
            ("a search is for causal language models, not task=classify", "ptune compare --task classify"),
        ),
        (
            "a comparison of classifiers with words for gaps",
            lambda at: [
                *("compare", "--model", _base(at.kit.model, "classify"), "--data", at.file("rows.jsonl", _ROWS)),
                *("--output", at.at / "new", "--task", "classify", "--verbalizer", "good=great"),
            ],
            ("verbalizer is for the task fill, not classify",),
        ),
        (
            "an encoder without a task",
            lambda at: at.train(model=_base(at.kit.model, "classify")),
            ("no end-of-sequence token", "ptune train --task classify"),
        ),
    )
)

TASKS = (
    *TASKS,
    Case(
        _GROUP,
        "a text of which no token is left",
        _generating("classify", text="-"),
        ("no row of 1 has a token (first row: the text)",),
        stdin="\u200b",
    ),
)
