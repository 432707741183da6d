"""The metrics of tasks equal scikit-learn's, SQuAD's own way of counting, and a plain count."""

from __future__ import annotations

import random
import re
import string
from collections import Counter

import pytest

from ptune.choices import CLASSIFY, QA, SEQ2SEQ, TAG
from ptune.data.tasks.task_example import TaskExample
from ptune.data.tasks.task_kinds import DATA_TASKS
from ptune.errors import ConfigError
from ptune.evaluation.outcomes import Outcome
from ptune.evaluation.tasks.entity_spans import entities
from ptune.evaluation.tasks.task_items import TaskItem, make_task_items
from ptune.evaluation.tasks.task_metric_names import TASK_METRICS
from ptune.evaluation.tasks.task_metrics import breakdown, metric_names_of, task_metrics
from ptune.evaluation.tasks.task_outcomes import constant

LABELS = ("bad", "good", "news", "never")
TAGS = ("B-LOC", "B-PER", "I-LOC", "I-PER", "O")


def scores(task: str, items: list[TaskItem], outcomes: list[Outcome], labels: tuple[str, ...] = ()) -> dict[str, float]:
    found = task_metrics(task, TASK_METRICS[task], items)
    return {one.name: one.count(items, outcomes, labels).whole for one in found}


def test_names_are_those_of_the_tasks():
    assert tuple(TASK_METRICS) == ("classify", "fill", "tag", "qa", "seq2seq")
    assert set(TASK_METRICS) == set(DATA_TASKS)


def test_classes_are_scored_as_scikit_learn_does():
    sklearn = pytest.importorskip("sklearn.metrics")
    draw = random.Random(1)
    wanted = draw.choices(LABELS[:3], k=90)
    likely = [tuple(draw.uniform(-9, 0) for _ in LABELS) for _ in wanted]
    given = [LABELS[max(range(4), key=one.__getitem__)] for one in likely]
    items = make_task_items([TaskExample(text="a", label=label) for label in wanted], CLASSIFY)
    outcomes = [Outcome(loss=draw.random(), tokens=1, labels=one) for one in likely]
    found = scores(CLASSIFY, items, outcomes, LABELS)
    assert found["accuracy"] == pytest.approx(sklearn.accuracy_score(wanted, given))
    assert found["macro_f1"] == pytest.approx(sklearn.f1_score(wanted, given, average="macro"))
    assert found["loss"] == pytest.approx(sum(one.loss for one in outcomes) / len(outcomes))
    parts = breakdown(CLASSIFY, items, outcomes, LABELS)
    assert parts is not None
    assert (parts.counts == sklearn.confusion_matrix(wanted, given, labels=LABELS)).all()
    precision, recall, f1, support = sklearn.precision_recall_fscore_support(
        wanted, given, labels=LABELS, zero_division=float("nan")
    )
    for column, one in enumerate((precision, recall, f1)):
        assert parts.scores()[:, column] == pytest.approx(one, nan_ok=True)
    assert parts.support == pytest.approx(support)
    assert parts.to_dict()["by_label"]["never"]["recall"] is None


def test_tags_are_counted_word_by_word_and_entity_by_entity():
    draw = random.Random(2)
    items, outcomes, right, words = [], [], 0, 0
    found, there, both = 0, 0, 0
    for _ in range(60):
        tags = draw.choices(TAGS, k=draw.randint(1, 7))
        given = [tag if draw.random() < 0.8 else draw.choice([*TAGS, ""]) for tag in tags]
        items.append(TaskItem(TAG, (TaskExample(words=("w",) * len(tags), tags=tuple(tags)),)))
        outcomes.append(Outcome(tags=tuple(given)))
        right += sum(one == other for one, other in zip(tags, given, strict=True))
        words += len(tags)
        one, other = entities(tags, schemed=True), entities(given, schemed=True)
        there, found, both = there + len(one), found + len(other), both + len(one & other)
    got = scores(TAG, items, outcomes, TAGS)
    assert got["token_accuracy"] == pytest.approx(right / words)
    precision, recall = both / found, both / there
    assert got["entity_precision"] == pytest.approx(precision)
    assert got["entity_recall"] == pytest.approx(recall)
    assert got["entity_f1"] == pytest.approx(2 * precision * recall / (precision + recall))
    parts = breakdown(TAG, items, outcomes, TAGS)
    assert parts is not None
    assert parts.counts.sum() == sum(bool(tag) for one in outcomes for tag in one.tags or ())


def test_words_without_a_right_tag_do_not_count():
    item = TaskItem(TAG, (TaskExample(words=("a", "b", "c"), tags=("B-PER", "", "O")),))
    got = scores(TAG, [item], [Outcome(tags=("B-PER", "I-PER", "O"))], TAGS)
    assert (got["token_accuracy"], got["entity_f1"]) == (1.0, 1.0)
    nothing = scores(TAG, [item], [Outcome(tags=("O", "O", "O"))], TAGS)
    assert (nothing["token_accuracy"], nothing["entity_precision"], nothing["entity_f1"]) == (0.5, 0.0, 0.0)


def squad(answer: str, references: list[str]) -> tuple[float, float]:
    """Exact match and F1 as SQuAD 2's published script counts them."""

    def plain(text: str) -> list[str]:
        bare = "".join(sign for sign in text.lower() if sign not in set(string.punctuation))
        return re.sub(r"\b(a|an|the)\b", " ", bare).split()

    golds = [one for one in references if plain(one)] or [""]
    exact, best = 0.0, 0.0
    for gold in golds:
        wanted, found = plain(gold), plain(answer)
        exact = max(exact, float(wanted == found))
        same = sum((Counter(wanted) & Counter(found)).values())
        if not wanted or not found:
            best = max(best, float(wanted == found))
        elif same:
            precision, recall = same / len(found), same / len(wanted)
            best = max(best, 2 * precision * recall / (precision + recall))
    return exact, best


def test_answers_are_scored_as_squads_script_does():
    draw = random.Random(3)
    words = ("The", "tower", "a", "of", "London,", "in", "1996", "An")
    items, outcomes, wanted = [], [], []
    for at in range(120):
        references = [" ".join(draw.choices(words, k=draw.randint(1, 4))) for _ in range(at % 4)]
        answer = draw.choice([*references, "", "the tower", " ".join(draw.choices(words, k=2))])
        answers = tuple((one, number) for number, one in enumerate(references))
        row = TaskExample(question="q", context="c", answers=answers, impossible=not answers)
        items.append(TaskItem(QA, (row,)))
        outcomes.append(Outcome(answer=answer))
        wanted.append((*squad(answer, references), bool([one for one in references if squad(one, [])[0] == 0])))
    got = scores(QA, items, outcomes)
    for at, name in enumerate(("exact_match", "f1")):
        assert got[name] == pytest.approx(sum(one[at] for one in wanted) / len(wanted))
        for part, inside in (("answerable", True), ("unanswerable", False)):
            own = [one[at] for one in wanted if one[2] is inside]
            assert got[f"{name}_{part}"] == pytest.approx(sum(own) / len(own))
    nothing, best = constant(QA, items, ())
    assert best == ""
    assert scores(QA, items, nothing)["exact_match_unanswerable"] == 1.0


def test_one_answer_to_every_row_is_the_commonest():
    items = make_task_items([TaskExample(text="a", label=label) for label in ("good", "bad", "good")], CLASSIFY)
    outcomes, best = constant(CLASSIFY, items, LABELS)
    assert best == "good"
    assert scores(CLASSIFY, items, outcomes, LABELS)["accuracy"] == pytest.approx(2 / 3)
    tagged = [TaskItem(TAG, (TaskExample(words=("a", "b", "c"), tags=("O", "", "B-PER")),))] * 2
    tagged.append(TaskItem(TAG, (TaskExample(words=("a",), tags=("O",)),)))
    outcomes, best = constant(TAG, tagged, TAGS)
    assert best == "O"
    assert scores(TAG, tagged, outcomes, TAGS)["token_accuracy"] == pytest.approx(3 / 5)


def test_texts_with_one_source_are_references_of_one_item():
    rows = [TaskExample(text="a", target="x"), TaskExample(text="b", target="y"), TaskExample(text="a", target="z")]
    items = make_task_items(rows, SEQ2SEQ)
    assert [item.references for item in items] == [("x", "z"), ("y",)]


def test_metrics_of_other_tasks_are_refused_and_groups_taken_apart():
    assert metric_names_of(SEQ2SEQ, ["rouge", "loss"]) == ("loss", "rouge1", "rouge2", "rougeL")
    assert metric_names_of(CLASSIFY, ["labels"]) == ("accuracy", "macro_f1")
    with pytest.raises(ConfigError, match=r"the metric bleu is none of the task classify. It has loss, accuracy"):
        metric_names_of(CLASSIFY, ["bleu"])
