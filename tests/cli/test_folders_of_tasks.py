"""`ptune inspect`, `export` and `import` with prompts for tasks, beside what PEFT makes of the same folders."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
import transformers
from safetensors.torch import load_file

from commands import run
from ptune import PTunedTaskModel
from ptune.choices import CLASSIFY, FILL, QA, SEQ2SEQ, TAG
from ptune.config import PromptTuningConfig
from ptune.data.tasks.task_example import TaskExample
from ptune.data.tasks.task_kinds import DATA_TASKS
from ptune.task_answering import TaskAnswerer
from small_tasks import LABELS, TEXTS, WORDS, prompted

P = 3
BY_PEFT = {CLASSIFY: "SEQ_CLS", TAG: "TOKEN_CLS", QA: "QUESTION_ANS", SEQ2SEQ: "SEQ_2_SEQ_LM"}
CLASSES = {
    CLASSIFY: "AutoModelForSequenceClassification",
    TAG: "AutoModelForTokenClassification",
    QA: "AutoModelForQuestionAnswering",
    SEQ2SEQ: "AutoModelForSeq2SeqLM",
}


def refused(*words: object) -> str:
    ran = run(*words)
    assert (ran.code, ran.out, ran.err.count("\n")) == (2, "", 1), ran.err
    return ran.err


def done(*words: object) -> Any:
    ran = run(*words, "--json")
    assert ran.code == 0, ran.err
    return json.loads(ran.out)


@pytest.mark.parametrize("task", DATA_TASKS)
def test_inspect_says_what_the_prompt_is_for(task_folders: dict[str, Path], task: str):
    found = done("inspect", task_folders[task])
    assert found["task"] == task
    assert found["labels"] == (list(LABELS[task]) if task in LABELS else None)
    assert found["verbalizer"] == (WORDS if task == FILL else None)
    outputs = {CLASSIFY: 3, TAG: 5, QA: 2}
    name = "qa_outputs" if task == QA else "classifier"
    assert found["head"] == ({name: outputs[task] * 33} if task in outputs else None)
    assert found["nearest"] is not None
    assert found["template"] == ("{text} it was {mask} ." if task == FILL else None)
    text = run("inspect", task_folders[task]).out
    assert "base class" in text
    assert f"task                 │ {task} " in text


def test_inspect_of_prompts_that_answer_texts_is_as_it_was(prompt_dir: Path):
    assert {"task", "labels", "head"}.isdisjoint(done("inspect", prompt_dir))


@pytest.mark.parametrize("task", [TAG, QA, SEQ2SEQ, CLASSIFY])
def test_the_exported_card_is_a_program_that_loads_with_peft(
    task_folders: dict[str, Path], task_bases: dict[str, Path], tmp_path: Path, task: str
):
    folder = task_folders[task]
    if task == CLASSIFY:
        config = PromptTuningConfig(num_virtual_tokens=P, pool_virtual_tokens=True)
        folder = prompted(task_bases[task], task, config).save_pretrained(tmp_path / "pooled", task=task)
    done("export", folder, "--to", "peft", "--output", tmp_path / "out")
    card = (tmp_path / "out" / "README.md").read_text()
    assert CLASSES[task] in card
    assert ("labels: " in card) is (task in LABELS)
    program = re.search(r"```python\n(.*?)```", card, re.DOTALL)
    assert program
    code = program[1].replace("the-frozen-model", str(task_bases[task])).replace("this-folder", str(tmp_path / "out"))
    values: dict[str, Any] = {}
    exec(code, values)
    theirs, own = values["model"].eval(), PTunedTaskModel.from_pretrained(folder).eval()
    ids = transformers.AutoTokenizer.from_pretrained(task_bases[task])(TEXTS[0], return_tensors="pt")["input_ids"]
    more = {"labels": ids} if task == SEQ2SEQ else {}
    name = "start_logits" if task == QA else "logits"
    with torch.no_grad():
        their, our = theirs(input_ids=ids, **more)[name], own(input_ids=ids, **more)[name]
    torch.testing.assert_close(their[:, -our.shape[1] :], our, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("task", "form", "parts"),
    [
        (CLASSIFY, "vllm", ("the prompt is for SEQ_CLS", "causal language models", "--to peft")),
        (SEQ2SEQ, "vllm", ("the prompt is for SEQ_2_SEQ_LM",)),
        (TAG, "model", ("the prompt is for TOKEN_CLS", "--to model")),
        (QA, "embeds", ("a head that was trained with it (qa_outputs)", "a file of embeddings has no place")),
        (FILL, "peft", ("PEFT has no prompts for masked language models", "Answer with ptune")),
    ],
)
def test_forms_that_cannot_hold_the_prompt_are_refused(
    task_folders: dict[str, Path], tmp_path: Path, task: str, form: str, parts: tuple[str, ...]
):
    said = refused("export", task_folders[task], "--to", form, "--output", tmp_path / "out.safetensors")
    for part in parts:
        assert part in said
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("task", [SEQ2SEQ, FILL])
def test_a_prompt_without_a_head_is_plain_embeddings(task_folders: dict[str, Path], tmp_path: Path, task: str):
    done("export", task_folders[task], "--to", "embeds", "--output", tmp_path / "out.safetensors")
    vectors = load_file(tmp_path / "out.safetensors")["prompt_embeds"]
    model = PTunedTaskModel.from_pretrained(task_folders[task])
    torch.testing.assert_close(vectors, model.encode().detach())


def adapter(base: Path, task: str, folder: Path) -> tuple[Any, Path]:
    """What PEFT makes and saves for a task."""
    kind = getattr(transformers, CLASSES[task])
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = kind.from_pretrained(base, **({"num_labels": 3} if task in (CLASSIFY, TAG) else {}))
        config = peft.PromptTuningConfig(task_type=BY_PEFT[task], num_virtual_tokens=P)
        theirs = peft.get_peft_model(model, config).eval()
    theirs.save_pretrained(folder)
    return theirs, folder


@pytest.mark.parametrize("named", [False, True])
@pytest.mark.parametrize("task", [CLASSIFY, TAG, QA, SEQ2SEQ])
def test_pefts_adapters_come_with_their_heads(task_bases: dict[str, Path], tmp_path: Path, task: str, named: bool):
    theirs, folder = adapter(task_bases[task], task, tmp_path / "adapter")
    more = ["--model", task_bases[task]] if named else []
    labelled = task in (CLASSIFY, TAG)
    labels = ["--labels", "x,y,z"] if named and labelled else []
    found = done("import", folder, "--output", tmp_path / "prompt", *more, *labels)
    names = ["x", "y", "z"] if named else ["LABEL_0", "LABEL_1", "LABEL_2"]
    assert found.get("labels") == (names if labelled else None)
    assert (found["task"], found["task_type"], found["checked"]) == (task, BY_PEFT[task], named)
    answerer = TaskAnswerer.open(tmp_path / "prompt")
    assert answerer.labels == (tuple(names) if labelled else ())
    ids = answerer.tokenizer(TEXTS[0], return_tensors="pt")["input_ids"]
    given = {"labels": ids} if task == SEQ2SEQ else {}
    name = "start_logits" if task == QA else "logits"
    with torch.no_grad():
        their, our = theirs(input_ids=ids, **given)[name], answerer.model(input_ids=ids, **given)[name]
    torch.testing.assert_close(their[:, -our.shape[1] :], our, rtol=1e-4, atol=1e-4)


def test_pefts_adapter_of_hidden_states(task_bases: dict[str, Path], tmp_path: Path):
    base = transformers.AutoModel.from_pretrained(task_bases[CLASSIFY])
    config = peft.PromptTuningConfig(task_type="FEATURE_EXTRACTION", num_virtual_tokens=P)
    peft.get_peft_model(base, config).save_pretrained(tmp_path / "adapter")
    found = done("import", tmp_path / "adapter", "--output", tmp_path / "prompt")
    assert found["task_type"] == "FEATURE_EXTRACTION"
    assert "task" not in found
    vectors = load_file(tmp_path / "adapter" / "adapter_model.safetensors")["prompt_embeddings"]
    torch.testing.assert_close(PTunedTaskModel.from_pretrained(tmp_path / "prompt").encode(), vectors)
    assert "gives hidden states and no answers" in refused("generate", tmp_path / "prompt", "it was")


def test_a_template_goes_along_with_the_model(task_bases: dict[str, Path], tmp_path: Path):
    _, folder = adapter(task_bases[CLASSIFY], CLASSIFY, tmp_path / "adapter")
    words = ("--model", task_bases[CLASSIFY], "--template", "news : {text}")
    done("import", folder, "--output", tmp_path / "prompt", *words)
    answerer = TaskAnswerer.open(tmp_path / "prompt")
    assert answerer.template is not None
    assert answerer.template.text == "news : {text}"
    plain = TaskAnswerer.open(folder)
    (one,) = answerer.predictions([TaskExample(text="it was")])
    (other,) = plain.predictions([TaskExample(text="news : it was")])
    assert list(one.probabilities.values()) == pytest.approx(list(other.probabilities.values()), rel=1e-5)


def test_labels_that_do_not_fit_are_refused(task_bases: dict[str, Path], tmp_path: Path):
    _, folder = adapter(task_bases[CLASSIFY], CLASSIFY, tmp_path / "adapter")
    out = ("--output", tmp_path / "prompt")
    assert "the adapter's head has 3 outputs" in refused("import", folder, *out, "--labels", "a,b")
    assert "the adapter's head has 3 outputs" in refused("import", folder, *out, "--labels", "a,b,a")
    _, folder = adapter(task_bases[QA], QA, tmp_path / "answers")
    said = refused("import", folder, *out, "--labels", "a,b")
    assert "--labels is for classifiers, and" in said
    assert "QUESTION_ANS. Leave it out" in said
    assert not (tmp_path / "prompt").exists()


def test_a_prompts_own_card_says_what_loads_it(task_folders: dict[str, Path]):
    card = (task_folders[CLASSIFY] / "README.md").read_text()
    assert 'PTunedTaskModel.from_pretrained("this-folder")' in card
    assert "| Task | classify |" in card
    assert "PEFT cannot: PEFT's classifier reads the first virtual token" in card
    assert "ptune chat" not in card
