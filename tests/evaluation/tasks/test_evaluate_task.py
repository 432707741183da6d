"""A whole evaluation of a prompt for each task: figures, files, going on, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from ptune import evaluate
from ptune.choices import CLASSIFY, FILL, QA, SEQ2SEQ, TAG
from ptune.data.tasks.task_kinds import DATA_TASKS
from ptune.data.tasks.task_records import load_task_examples
from ptune.errors import ConfigError, DataError, OutputError
from ptune.evaluation.tasks.task_metric_names import TASK_METRICS
from ptune.task_answering import TaskAnswerer
from small_tasks import LABELS, TEXTS

CONTEXT = "Peter Blackburn wrote from Brussels on 22 August 1996 . "
ROWS: dict[str, list[dict[str, Any]]] = {
    CLASSIFY: [{"text": text, "label": LABELS[CLASSIFY][at % 3]} for at, text in enumerate(TEXTS)],
    FILL: [{"text": text, "label": LABELS[FILL][at % 2]} for at, text in enumerate(TEXTS)],
    TAG: [
        {"tokens": text.split(), "tags": [LABELS[TAG][at % 5] for at, _ in enumerate(text.split())]} for text in TEXTS
    ],
    QA: [
        {"question": "who", "context": CONTEXT * 8, "answers": {"text": ["Peter"], "answer_start": [0]}},
        {"question": "when", "context": CONTEXT, "answers": {"text": ["22 August"], "answer_start": [39]}},
        {"question": "why", "context": CONTEXT, "answers": {"text": [], "answer_start": []}},
    ],
    SEQ2SEQ: [{"source": text, "target": TEXTS[at - 1]} for at, text in enumerate(TEXTS)],
}
COLUMNS = {CLASSIFY: "commonest", TAG: "commonest", QA: "no_answer", FILL: "alone", SEQ2SEQ: "alone"}


@pytest.fixture
def data(tmp_path: Path) -> dict[str, str]:
    made = {}
    for task, rows in ROWS.items():
        path = tmp_path / f"{task}.jsonl"
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        made[task] = str(path)
    return made


@pytest.mark.parametrize("task", DATA_TASKS)
def test_figures_and_files(task_folders: dict[str, Path], data: dict[str, str], tmp_path: Path, task: str):
    out = tmp_path / "out"
    found = evaluate(task_folders[task], data=data[task], output=str(out), bootstrap=20, batch_size=2)
    assert found.columns == (COLUMNS[task], "prompt")
    assert [one.metric.name for one in found.metrics][: len(TASK_METRICS[task])] == list(TASK_METRICS[task])
    answerer = TaskAnswerer.open(task_folders[task])
    examples = load_task_examples(data[task], task)
    threshold = 0.0 if task == QA else None
    alone = answerer.predictions(examples, losses=True, null_threshold=threshold)
    lines = [json.loads(line) for line in (out / "predictions.jsonl").read_text().splitlines()]
    own = [line for line in lines if line["column"] == "prompt"]
    for line, one in zip(own, alone, strict=True):
        assert line["loss"] == pytest.approx(one.loss, rel=1e-4)
        assert line.get("label", "") == one.label
        assert tuple(line.get("tags", ())) == one.tags
    loss = sum(one.loss for one in alone) / sum(one.losses for one in alone)
    assert found.score("loss") == pytest.approx(loss, rel=1e-4)
    text, page = (out / "report.md").read_text(), (out / "report.html").read_text()
    for part in ("with the prompt", "How it was measured", found.metrics[-1].metric.title):
        assert part in text
        assert part in page
    labelled = task in (CLASSIFY, TAG, FILL)
    assert (out / "confusion.png").exists() is labelled
    assert ("Labels, with the prompt" in text) is labelled
    assert ("its head is trained with the prompt" in text) is (COLUMNS[task] != "alone")
    plain = json.loads(json.dumps(found.to_dict()))
    assert plain["task"] == task
    assert ("confusion" in plain) is labelled


@pytest.mark.parametrize("task", [CLASSIFY, QA, SEQ2SEQ])
def test_going_on_asks_only_the_rest(
    task_folders: dict[str, Path], data: dict[str, str], tmp_path: Path, task: str, monkeypatch: pytest.MonkeyPatch
):
    out, answerer = tmp_path / "out", TaskAnswerer.open(task_folders[task])
    options: dict[str, Any] = {"data": data[task], "output": str(out), "bootstrap": 20}
    whole = evaluate(answerer, **options)
    lines = (out / "predictions.jsonl").read_text().splitlines()
    (out / "predictions.jsonl").write_text("\n".join(lines[:2]) + "\n" + lines[2][:9])
    asked: list[int] = []
    real = TaskAnswerer.predictions

    def counted(self: TaskAnswerer, examples: Any, **more: Any) -> Any:
        asked.append(len(examples))
        return real(self, examples, **more)

    monkeypatch.setattr(TaskAnswerer, "predictions", counted)
    again = evaluate(answerer, **options)
    assert sum(asked) == len(lines) - 2
    for one, other in zip(again.metrics, whole.metrics, strict=True):
        assert one.scores["prompt"].to_dict() == pytest.approx(other.scores["prompt"].to_dict(), rel=1e-5)
    with pytest.raises(OutputError, match="other max length"):
        evaluate(answerer, **options, max_length=40)


def test_several_texts_for_one_are_references(task_folders: dict[str, Path], tmp_path: Path):
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps({"source": "it was", "target": one}) + "\n" for one in ("great", "good", "bad")))
    found = evaluate(task_folders[SEQ2SEQ], data=str(path), metrics=["loss", "rouge1"], bootstrap=5)
    assert len(found.items) == 1
    assert found.items[0].references == ("great", "good", "bad")
    answerer = TaskAnswerer.open(task_folders[SEQ2SEQ])
    alone = answerer.predictions(load_task_examples(path, SEQ2SEQ), losses=True, answers=False)
    assert found.outcomes["prompt"][0].loss == pytest.approx(sum(one.loss for one in alone), rel=1e-5)
    assert {one.text for one in alone} == {""}


@pytest.mark.parametrize(
    ("task", "settings", "parts"),
    [
        (CLASSIFY, {"labels": "a,b"}, ("labels has no use for a prompt for the task classify", "Leave --labels out")),
        (QA, {"written_prompt": "Answer."}, ("written_prompt has no use", "nothing is told in words")),
        (TAG, {"shots": 2}, ("shots has no use", "Leave --shots out")),
        (FILL, {"unrelated": "rows.json"}, ("unrelated has no use", "nothing but its task")),
        (CLASSIFY, {"max_new_tokens": 3}, ("max_new_tokens has no use", "writes no text")),
        (SEQ2SEQ, {"null_threshold": 1.0}, ("null_threshold has no use", "marks no answers")),
        (TAG, {"metrics": "bleu"}, ("the metric bleu is none of the task tag", "entity_f1")),
        (CLASSIFY, {"max_length": 500}, ("max_length 500 and the prompt exceed", "Take at most 61")),
    ],
)
def test_settings_of_other_prompts_are_refused(
    task_folders: dict[str, Path], data: dict[str, str], task: str, settings: dict[str, Any], parts: tuple[str, ...]
):
    with pytest.raises(ConfigError) as caught:
        evaluate(task_folders[task], data=data[task], **settings)
    for part in parts:
        assert part in str(caught.value)


def test_rows_with_labels_that_the_prompt_does_not_know_are_refused(task_folders: dict[str, Path], tmp_path: Path):
    path = tmp_path / "rows.jsonl"
    path.write_text('{"text": "it was", "label": "goood"}\n')
    with pytest.raises(DataError, match=r"rows.jsonl:1: the label 'goood' is not among.*Did you mean 'good'"):
        evaluate(task_folders[CLASSIFY], data=str(path))
