"""A prompt opened for a task: what it predicts beside transformers' own pipelines behind the same hard prompt."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoTokenizer, pipeline

from ptune import PTunedTaskModel, load_model
from ptune.answering import Answerer
from ptune.choices import CLASSIFY, FILL, QA, SEQ2SEQ, TAG
from ptune.config import PromptTuningConfig, TaskType
from ptune.data.tasks.encode import encode_task
from ptune.data.tasks.span_answers import best_spans
from ptune.data.tasks.task_example import TaskExample
from ptune.data.tasks.task_kinds import DATA_TASKS
from ptune.errors import ConfigError, DataError, PromptError
from ptune.task_answering import TaskAnswerer
from small_tasks import LABELS, TEXTS, WORDS, prompt_folder, prompted

CONTEXT = "Peter Blackburn wrote from Brussels on 22 August 1996 . " * 8
EXAMPLES: dict[str, list[TaskExample]] = {
    CLASSIFY: [TaskExample(text=text, label=LABELS[CLASSIFY][at % 3]) for at, text in enumerate(TEXTS)],
    FILL: [TaskExample(text=text, label=LABELS[FILL][at % 2]) for at, text in enumerate(TEXTS)],
    TAG: [
        TaskExample(words=tuple(text.split()), tags=tuple(LABELS[TAG][at % 5] for at, _ in enumerate(text.split())))
        for text in (*TEXTS, "EU rejects German call to boycott British lamb .")
    ],
    QA: [
        TaskExample(question="who wrote", context=CONTEXT, answers=(("Peter Blackburn", 0),)),
        TaskExample(question="when", context="on 22 August 1996 .", answers=(("22 August", 3),)),
        TaskExample(question="why", context="it was great .", impossible=True),
    ],
    SEQ2SEQ: [TaskExample(text=text, target=TEXTS[at - 1]) for at, text in enumerate(TEXTS)],
}


@pytest.mark.parametrize("task", DATA_TASKS)
def test_order_batches_and_losses_do_not_matter(task_folders: dict[str, Path], task: str):
    answerer = TaskAnswerer.open(task_folders[task])
    examples = EXAMPLES[task]
    seen: list[int] = []
    whole = answerer.predictions(examples, batch_size=3, losses=True, progress=seen.append)
    assert sum(seen) == len(answerer.encode(examples).rows)
    for at, example in enumerate(examples):
        (alone,) = answerer.predictions([example])
        assert (alone.label, alone.tags, alone.text) == (whole[at].label, whole[at].tags, whole[at].text)
        assert alone.losses == 0
        assert alone.probabilities == pytest.approx(whole[at].probabilities, rel=1e-4)
        assert whole[at].losses > 0
    json.dumps([one.to_dict() for one in whole])


@pytest.mark.parametrize("task", [CLASSIFY, TAG, FILL, SEQ2SEQ, QA])
def test_the_loss_is_the_models_own(task_folders: dict[str, Path], task: str):
    answerer = TaskAnswerer.open(task_folders[task])
    encoded = answerer.encode(EXAMPLES[task], learned=True)
    found = answerer.predictions(EXAMPLES[task], losses=True, batch_size=4)
    totals = [0.0] * len(found)
    for row, number in zip(encoded.dataset, encoded.rows, strict=True):
        batch = {name: torch.tensor([value]) for name, value in row.items()}
        count = 1 if task in (CLASSIFY, QA) else int((batch["labels"] != -100).sum())
        with torch.no_grad():
            totals[number] += float(answerer.model(**batch)["loss"]) * count
    assert [one.loss for one in found] == pytest.approx(totals, rel=1e-4)


def hard_prompt(base: Path, task: str) -> tuple[TaskAnswerer, str]:
    """A prompt whose vectors are those of words that stand before the text, and these words."""
    words = "where is my order"
    model = prompted(base, task, PromptTuningConfig(num_virtual_tokens=5, pool_virtual_tokens=task == CLASSIFY))
    tokenizer = AutoTokenizer.from_pretrained(base)
    ids = tokenizer(words)["input_ids"][:-1]
    (encoder,) = model.prompts.values()
    assert len(ids) == 5
    with torch.no_grad():
        encoder.embedding.weight.copy_(model.base.get_input_embeddings().weight[ids])
        for name, head in (encoder.head or {}).items():
            getattr(model.base, name).load_state_dict(head.state_dict())
    return TaskAnswerer(model=model, tokenizer=tokenizer, task=task, labels=LABELS.get(task, ())), words


def test_classes_are_those_of_the_pipeline_behind_the_words(task_bases: dict[str, Path]):
    """The prompt is `[CLS] words`, and the text's own [CLS] stands behind them: as the pipeline reads it, too."""
    answerer, words = hard_prompt(task_bases[CLASSIFY], CLASSIFY)
    classify = pipeline("text-classification", model=answerer.model.base, tokenizer=answerer.tokenizer, top_k=None)
    found = answerer.predictions(EXAMPLES[CLASSIFY])
    for example, one in zip(EXAMPLES[CLASSIFY], found, strict=True):
        said = {each["label"]: each["score"] for each in classify([f"{words} [CLS] {example.text}"])[0]}
        assert one.probabilities == pytest.approx(said, rel=1e-4)
        assert one.label == max(said, key=said.__getitem__)


def test_tags_are_those_of_the_pipeline_behind_the_words(task_bases: dict[str, Path]):
    answerer, words = hard_prompt(task_bases[TAG], TAG)
    tag = pipeline(
        "token-classification", model=answerer.model.base, tokenizer=answerer.tokenizer, aggregation_strategy="none",
        ignore_labels=[],
    )  # fmt: skip
    for example, one in zip(EXAMPLES[TAG], answerer.predictions(EXAMPLES[TAG]), strict=True):
        text = f"{words} [CLS] {' '.join(example.words)}"
        starts = {each["start"]: each["entity"] for each in tag(text)}
        at, wanted = len(f"{words} [CLS] "), []
        for word in example.words:
            wanted.append(starts[at])
            at += len(word) + 1
        assert list(one.tags) == wanted


def test_gaps_are_filled_as_the_pipeline_fills_them(task_bases: dict[str, Path]):
    answerer, words = hard_prompt(task_bases[FILL], FILL)
    answerer = TaskAnswerer(
        model=answerer.model, tokenizer=answerer.tokenizer, task=FILL, labels=LABELS[FILL], verbalizer=WORDS
    )
    fill = pipeline("fill-mask", model=answerer.model.base, tokenizer=answerer.tokenizer, targets=list(WORDS.values()))
    for example, one in zip(EXAMPLES[FILL], answerer.predictions(EXAMPLES[FILL]), strict=True):
        said = {each["token_str"]: each["score"] for each in fill(f"{words} [CLS] {example.text} [MASK].")}
        total = sum(said.values())
        assert one.probabilities == pytest.approx(
            {label: said[word] / total for label, word in WORDS.items()}, rel=1e-4
        )


def test_texts_are_those_of_generate_behind_the_words(task_bases: dict[str, Path]):
    model = prompted(task_bases[SEQ2SEQ], SEQ2SEQ)
    tokenizer = AutoTokenizer.from_pretrained(task_bases[SEQ2SEQ])
    ids = tokenizer("where is my", add_special_tokens=False)["input_ids"][:3]
    with torch.no_grad():
        next(iter(model.prompts.values())).embedding.weight.copy_(model.base.get_input_embeddings().weight[ids])
    answerer = TaskAnswerer(model=model, tokenizer=tokenizer, task=SEQ2SEQ, target_length=6)
    for with_prompt in (True, False):
        found = answerer.predictions(EXAMPLES[SEQ2SEQ], with_prompt=with_prompt, batch_size=2)
        for example, one in zip(EXAMPLES[SEQ2SEQ], found, strict=True):
            own = [*(ids if with_prompt else []), *tokenizer(example.text)["input_ids"]]
            made = model.base.generate(torch.tensor([own]), max_new_tokens=6, do_sample=False)
            assert one.text == tokenizer.decode(made[0], skip_special_tokens=True).strip()


def test_answers_are_the_best_spans_of_all_windows(task_folders: dict[str, Path]):
    answerer = TaskAnswerer.open(task_folders[QA])
    examples = EXAMPLES[QA]
    encoded = encode_task(examples, answerer.tokenizer, QA, max_length=answerer.max_length)
    assert len(encoded.rows) > len(examples)
    with torch.no_grad():
        outputs = [
            answerer.model(
                input_ids=torch.tensor([row["input_ids"]]), token_type_ids=torch.tensor([row["token_type_ids"]])
            )
            for row in encoded.dataset
        ]
    starts, ends = ([one[name][0] for one in outputs] for name in ("start_logits", "end_logits"))
    for threshold in (None, 0.0, -1e9):
        wanted = best_spans(starts, ends, encoded.windows, examples, null_threshold=threshold)
        found = answerer.predictions(examples, null_threshold=threshold, batch_size=3)
        assert [one.text for one in found] == [one.text for one in wanted]
        assert [one.null_score for one in found] == pytest.approx([one.null_score for one in wanted], rel=1e-4)
    assert not any(one.text for one in found)


def test_words_that_are_cut_off_have_no_tag(task_folders: dict[str, Path], tmp_path: Path, task_bases: dict[str, Path]):
    folder = prompt_folder(tmp_path / "short", task_bases[TAG], TAG, recipe={"max_length": 5})
    (one,) = TaskAnswerer.open(folder).predictions([TaskExample(words=("it", "was", "great", "great", "great"))])
    assert one.tags[:3] != ("", "", "")
    assert (one.tags[3:], one.words_cut) == (("", ""), 2)


def test_a_text_that_has_the_mask_token_has_another_gap(task_folders: dict[str, Path]):
    answerer = TaskAnswerer.open(task_folders[FILL])
    (gap,) = answerer.encode([TaskExample(text="it was [MASK] and great")]).mask_columns
    ids = answerer.encode([TaskExample(text="it was [MASK] and great")]).dataset[0]["input_ids"]
    masks = [at for at, one in enumerate(ids) if one == answerer.tokenizer.mask_token_id]
    assert masks[-1] == gap
    assert len(masks) == 2


def test_virtual_tokens_inside_the_text_are_left_out_without_the_prompt(task_bases: dict[str, Path], tmp_path: Path):
    config = PromptTuningConfig(num_virtual_tokens=3, tokens_in_text=2)
    model = prompted(task_bases[FILL], FILL, config)
    noted = {"task": FILL, "labels": list(WORDS), "verbalizer": WORDS}
    folder = model.save_pretrained(tmp_path / "p", template="{prompt:1}{text}{prompt:2} was {mask} .", **noted)
    answerer = TaskAnswerer.open(folder)
    plain = TaskAnswerer(
        model=answerer.model, tokenizer=answerer.tokenizer, task=FILL, labels=answerer.labels, verbalizer=WORDS,
        template=TaskAnswerer.open(
            prompt_folder(tmp_path / "q", task_bases[FILL], FILL, template="{text} was {mask} .")
        ).template,
    )  # fmt: skip
    examples = EXAMPLES[FILL]
    for one, other in zip(
        answerer.predictions(examples, with_prompt=False, losses=True),
        plain.predictions(examples, with_prompt=False, losses=True),
        strict=True,
    ):
        assert one.probabilities == pytest.approx(other.probabilities, rel=1e-4)
        assert one.loss == pytest.approx(other.loss, rel=1e-4)
    with pytest.raises(ConfigError, match="Use the template that the prompt was trained with"):
        TaskAnswerer.open(folder, template="{text} {mask}")


def test_pefts_folders_have_a_task_by_their_type_and_numbered_labels(task_bases: dict[str, Path], tmp_path: Path):
    peft = pytest.importorskip("peft")
    base = load_model(str(task_bases[CLASSIFY]), task=TaskType.SEQ_CLS, labels=3)
    torch.manual_seed(0)
    theirs = peft.get_peft_model(base, peft.PromptTuningConfig(task_type="SEQ_CLS", num_virtual_tokens=3)).eval()
    theirs.save_pretrained(tmp_path / "adapter")
    answerer = TaskAnswerer.open(tmp_path / "adapter", model=str(task_bases[CLASSIFY]))
    assert (answerer.task, answerer.labels) == (CLASSIFY, ("LABEL_0", "LABEL_1", "LABEL_2"))
    for text, one in zip(TEXTS, answerer.predictions([TaskExample(text=text) for text in TEXTS]), strict=True):
        with torch.no_grad():
            wanted = theirs(**answerer.tokenizer(text, return_tensors="pt")).logits[0].softmax(-1)
        assert list(one.probabilities.values()) == pytest.approx(wanted.tolist(), rel=1e-4)


def edited(folder: Path, target: Path, **changes: Any) -> Path:
    """A copy of a folder with other values in its `ptune.json`."""
    target.mkdir()
    for path in folder.iterdir():
        (target / path.name).write_bytes(path.read_bytes())
    details = json.loads((target / "ptune.json").read_text())
    (target / "ptune.json").write_text(json.dumps({**details, **changes}))
    return target


@pytest.mark.parametrize(
    ("task", "changes", "parts"),
    [
        (CLASSIFY, {"task": "tag"}, ("task is 'tag'", "SEQ_CLS is that of classify", "download or copy it again")),
        (FILL, {"labels": None}, ("does not say between which labels", "Note labels")),
        (FILL, {"verbalizer": {"bad": 3}}, ("verbalizer is {'bad': 3}", "a word for each label")),
        (TAG, {"recipe": {"max_length": "many"}}, ("max_length is 'many'", "at least 1")),
        (CLASSIFY, {"labels": ["bad", "good"]}, ("its head does not fit the model's", "num_labels")),
    ],
)
def test_notes_that_do_not_fit_are_refused(
    task_folders: dict[str, Path], tmp_path: Path, task: str, changes: dict[str, Any], parts: tuple[str, ...]
):
    with pytest.raises(PromptError) as caught:
        TaskAnswerer.open(edited(task_folders[task], tmp_path / "copy", **changes))
    for part in parts:
        assert part in str(caught.value)


def test_what_cannot_be_answered_is_refused(task_folders: dict[str, Path], task_bases: dict[str, Path], tmp_path: Path):
    with pytest.raises(PromptError, match=r"SEQ_CLS.*causal language model.*ptune generate and ptune evaluate take it"):
        Answerer.open(task_folders[CLASSIFY])
    base = load_model(str(task_bases[CLASSIFY]), task=TaskType.FEATURE_EXTRACTION)
    model = PTunedTaskModel(base, PromptTuningConfig(num_virtual_tokens=2))
    with pytest.raises(PromptError, match=r"hidden states and no answers.*PTunedTaskModel.from_pretrained"):
        TaskAnswerer.open(model.save_pretrained(tmp_path / "vectors"))
    answerer = TaskAnswerer.open(task_folders[CLASSIFY])
    with pytest.raises(DataError, match=r"row 1: no token is left of it.*Leave it out"):
        answerer.predictions([TaskExample(text="it"), TaskExample(text="")])
    with pytest.raises(ConfigError, match="num_beams has no use"):
        answerer.predictions([TaskExample(text="it")], num_beams=2)
    assert answerer.predictions([]) == []
