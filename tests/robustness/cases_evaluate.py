"""Bad inputs of `ptune evaluate`, and of the metrics of a training run."""

from __future__ import annotations

import json
from collections.abc import Callable

from robustness.workshop import ROWS, Case, Place, Words

_LABELLED = "".join(json.dumps({"text": f"text {at}", "label": ["a", "b"][at % 2]}) + "\n" for at in range(12))
_GROUP = "evaluate"


def evaluating(content: str = ROWS, name: str = "rows.json", **flags: object) -> Callable[[Place], Words]:
    """An evaluation of the kit's prompt on these rows; a flag's words may be made from the place."""

    def make(at: Place) -> Words:
        given = {name: value(at) if callable(value) else value for name, value in flags.items()}
        values = [value if isinstance(value, list) else [value] for value in given.values()]
        words = [
            word for name, some in zip(given, values, strict=True) for word in (f"--{name.replace('_', '-')}", *some)
        ]
        output = [] if "output" in flags else ["--output", at.at / "new"]
        return ["evaluate", at.kit.prompt, "--data", at.file(name, content), *output, *words]

    return make


def _other_files(at: Place) -> object:
    at.file("mine/report.md", "mine")
    return at.at / "mine"


def _of_another(at: Place) -> object:
    at.file("earlier/evaluation.json", json.dumps({"format": 1, "data": "other"}))
    return at.at / "earlier"


def _training(**flags: object) -> Callable[[Place], Words]:
    return lambda at: at.train(**flags)


EVALUATE = (
    Case(_GROUP, "no data", lambda at: ["evaluate", at.kit.prompt], ("data is missing", "ptune evaluate --help")),
    Case(_GROUP, "an unknown metric", evaluating(metrics="blue"), ("unknown metric 'blue'", "Did you mean 'bleu'?")),
    Case(
        _GROUP,
        "an answer that is no label",
        evaluating(_LABELLED, "rows.jsonl", labels="a,c"),
        ("rows.jsonl:2: the answer 'b' is not among the labels a, c", "--labels"),
    ),
    Case(_GROUP, "one label", evaluating(labels="a"), ("at least two different texts, not a",)),
    Case(
        _GROUP,
        "one label in the data",
        evaluating('[{"text": "x", "label": "a"}, {"text": "y", "label": "a"}]', metrics="accuracy"),
        ("1 different answer, and a choice needs two", "--labels"),
    ),
    Case(_GROUP, "no rows", evaluating("[]"), ("rows.json holds no rows",)),
    Case(
        _GROUP,
        "no references",
        evaluating('[{"instruction": "a", "output": ""}, {"instruction": "b", "output": null}]'),
        ("none of the 2 rows", "have no answer"),
    ),
    Case(
        _GROUP,
        "an empty list of references",
        evaluating('[{"instruction": "a", "output": []}]'),
        ("none of the 1 rows", "have no answer"),
    ),
    Case(
        _GROUP,
        "references in an object",
        evaluating('[{"instruction": "a", "output": ["b", {"c": 1}]}]'),
        ("rows.json", "output", "an object"),
    ),
    Case(
        _GROUP,
        "answers that are no JSON",
        evaluating(metrics="json"),
        ("the expected answer 'b' is no JSON object", "--metrics"),
    ),
    Case(
        _GROUP,
        "texts without questions",
        evaluating('[{"text": "a b"}]', metrics=["loss", "f1"]),
        ("a text without a question, which f1 cannot measure",),
    ),
    Case(
        _GROUP,
        "words before texts without questions",
        evaluating('[{"text": "a b"}]', written_prompt="Say it."),
        ("before which nothing can be told", "written_prompt"),
    ),
    Case(
        _GROUP,
        "a written prompt that fills the context",
        evaluating(written_prompt="say it " * 40),
        ("the model's context has 128", "Shorten written_prompt"),
    ),
    Case(_GROUP, "fewer examples than none", evaluating(shots=-1), ("shots must be a whole number of at least 0",)),
    Case(_GROUP, "examples from nowhere", evaluating(shots_data="none.json"), ("none.json",)),
    Case(
        _GROUP,
        "examples without questions",
        evaluating(shots_data=lambda at: at.file("shots.json", '[{"text": "a"}]')),
        ("shots.json", "no example of a job"),
    ),
    Case(_GROUP, "unrelated rows from nowhere", evaluating(unrelated="none.json"), ("none.json",)),
    Case(_GROUP, "no resamples", evaluating(bootstrap=0), ("bootstrap must be a whole number of at least 1",)),
    Case(_GROUP, "too many resamples", evaluating(bootstrap=10**9), ("bootstrap must be at most 100,000",)),
    Case(_GROUP, "no batch", evaluating(batch_size=0), ("batch_size must be a whole number of at least 1",)),
    Case(
        _GROUP,
        "a question that fills the context",
        evaluating(json.dumps([{"instruction": "x " * 90, "output": "y"}])),
        ("rows.json", "the question alone has", "room for"),
    ),
    Case(_GROUP, "a length that leaves no answer", evaluating(max_length=5), ("the question alone has",)),
    Case(
        _GROUP,
        "an answer longer than the context",
        evaluating(max_new_tokens=128),
        ("of the model's context of 128 tokens for the answer", "max_new_tokens"),
    ),
    Case(_GROUP, "a folder of somebody else's", evaluating(output=_other_files), ("mine", "holds no evaluation")),
    Case(_GROUP, "a folder of another evaluation", evaluating(output=_of_another), ("other data", "--overwrite")),
    Case(_GROUP, "a place where nobody can write", evaluating(output="/proc/new"), ("/proc/new",)),
    Case(
        _GROUP,
        "a prompt that is not there",
        lambda at: ["evaluate", at.at / "none", "--data", at.file("rows.json", ROWS)],
        ("none",),
    ),
    Case(
        _GROUP,
        "an unknown metric of a run",
        _training(eval_metrics="blue", eval_rows=1),
        ("unknown metric in eval_metrics 'blue'", "Did you mean 'bleu'?"),
    ),
    Case(
        _GROUP,
        "metrics of a run without held-out rows",
        _training(eval_metrics="f1"),
        ("eval_metrics needs held-out rows",),
    ),
    Case(
        _GROUP,
        "the best by what is not measured",
        _training(eval_rows=1, metric_for_best_model="f1"),
        ("unknown metric_for_best_model 'f1'", "--eval-metrics f1"),
    ),
)
