"""Whole compressions: the rows are what the bare model says with the text in front, and the prompt learns them."""

from __future__ import annotations

import itertools
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerFast

from architectures import EOS
from ptune import Answerer, PTunedModel, compress
from ptune.compression import self_study
from ptune.compression.compress import CompressResult
from ptune.compression.compress_report import COMPRESSED, NOTHING
from ptune.compression.compress_report import TEXT as WHOLE_TEXT
from ptune.compression.compress_settings import CompressSettings
from ptune.compression.study_task import cut_for
from ptune.data.template import get_template
from ptune.data.text_ids import ids_of
from ptune.errors import ConfigError, DataError, ModelError, OutputError
from small_runs import SHORT, TEXT, made, model_folder, run, text_file
from text_of_things import things


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def asked_with(text: str, question: str) -> str:
    return f"{text}\n\nHuman: {question}\n\nAssistant: "


class Bare:
    """The bare model by transformers alone, one text at a time."""

    def __init__(self, folder: Path) -> None:
        self.model = AutoModelForCausalLM.from_pretrained(folder).eval()
        self.tokenizer = AutoTokenizer.from_pretrained(folder)

    def ids(self, text: str) -> list[int]:
        return ids_of([text], self.tokenizer)[0]

    @torch.no_grad()
    def logits(self, ids: Sequence[int]) -> torch.Tensor:
        return self.model(torch.tensor([list(ids)])).logits[0]

    def answer(self, text: str, tokens: int) -> str:
        ids = self.ids(text)
        start = len(ids)
        while len(ids) < start + tokens and (len(ids) == start or ids[-1] != EOS):
            ids.append(int(self.logits(ids)[-1].argmax()))
        return str(self.tokenizer.decode(ids[start:], skip_special_tokens=True))


@pytest.fixture(scope="session")
def bare(model_dir: Path) -> Bare:
    return Bare(model_dir)


# ---- what a run leaves ----


def test_the_folder(whole: CompressResult, text: Path):
    folder = whole.trained.folder
    there = {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}
    assert {
        "adapter_config.json", "adapter_model.safetensors", "encoder.safetensors", "ptune.json", "README.md",
        "metrics.jsonl", "loss.png", "compress.yaml", "compression.json", "compression.md",
        "study/study.json", "study/questions.jsonl", "study/rows.jsonl", "study/teacher-00000.safetensors",
    } <= there  # fmt: skip
    details = json.loads((folder / "ptune.json").read_text())
    studied = len(ids_of([TEXT], whole.trained.tokenizer)[0])
    assert details["compression"] == {"text": text.name, "tokens": studied, "windows": 1}
    assert details["template"] == "tutorial"
    assert whole.report is not None
    assert json.loads((folder / "compression.json").read_text()) == whole.report.to_dict()
    assert whole.to_dict()["report"] == whole.report.to_dict()
    table = (folder / "compression.md").read_text()
    assert all(name in table for name in (NOTHING, WHOLE_TEXT, COMPRESSED))
    assert all(" ".join(one["question"].replace("`", "'").split()) in table for one in whole.report.samples)


def test_the_prompt_answers_from_its_folder(whole: CompressResult):
    folder = whole.trained.folder
    loaded = PTunedModel.from_pretrained(folder).eval()
    mine = whole.trained.model.get_prompt_embedding_to_save()
    torch.testing.assert_close(loaded.get_prompt_embedding_to_save(), mine)
    assert whole.report is not None
    opened = Answerer.open(folder)
    for sample in whole.report.samples:
        found = opened.answer(sample["question"], max_new_tokens=SHORT["answer_tokens"])
        assert found.strip() == sample[COMPRESSED].strip()
        without = opened.answer(sample["question"], max_new_tokens=SHORT["answer_tokens"], with_prompt=False)
        assert without.strip() == sample[NOTHING].strip()


def test_rows_are_what_the_bare_model_answers_with_the_text_in_front(whole: CompressResult, bare: Bare):
    rows = lines(whole.trained.folder / "study" / "rows.jsonl")
    questions = lines(whole.trained.folder / "study" / "questions.jsonl")
    assert len(questions) == SHORT["questions"]
    assert [row["instruction"] for row in rows] == list(dict.fromkeys(one["instruction"] for one in questions))
    for row in rows:
        assert row["output"] == bare.answer(asked_with(TEXT, row["instruction"]), SHORT["answer_tokens"])
        assert set(row) == {"instruction", "input", "output"}


def test_soft_labels_are_the_bare_models(whole: CompressResult, bare: Bare):
    kept = load_file(whole.trained.folder / "study" / "teacher-00000.safetensors")
    rows = [row for row in lines(whole.trained.folder / "study" / "rows.jsonl") if row["output"]]
    wanted = []
    for row in rows:
        question, answer = bare.ids(asked_with(TEXT, row["instruction"])), [*bare.ids(row["output"]), EOS]
        log_probs = bare.logits([*question, *answer]).log_softmax(1)[len(question) - 1 : -1]
        wanted.append(log_probs)
    assert kept["counts"].tolist() == [len(one) for one in wanted]
    best = torch.cat(wanted).topk(SHORT["top_k"])
    torch.testing.assert_close(kept["log_probs"], best.values, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(torch.cat(wanted).gather(1, kept["ids"].long()), best.values, atol=1e-4, rtol=1e-4)


def test_the_report(whole: CompressResult, bare: Bare):
    report = whole.report
    assert report is not None
    assert [one.name for one in report.columns] == [NOTHING, WHOLE_TEXT, COMPRESSED]
    assert (report.questions, report.windows) == (3, 1)
    teacher, nothing, mine = report[WHOLE_TEXT], report[NOTHING], report[COMPRESSED]
    assert teacher.divergence < 1e-5
    assert teacher.token_agreement == teacher.answer_agreement == 1
    in_front = len(bare.ids(asked_with(TEXT, "?"))) - len(bare.ids("Human: ?\n\nAssistant: "))
    assert [one.tokens for one in report.columns] == [0, in_front, SHORT["num_virtual_tokens"]]
    base = bare.model.config
    each = 2 * base.num_hidden_layers * base.num_key_value_heads * base.head_dim * 4
    assert [one.bytes for one in report.columns] == [0, in_front * each, SHORT["num_virtual_tokens"] * each]
    held_out = whole.trained.held_out
    assert held_out is not None
    assert {one["question"] for one in report.samples} == {row.question for row in held_out}
    # The rows of the report are the held-out ones, whose divergence the run measured too.
    assert whole.trained.before is not None
    assert whole.trained.after is not None
    assert nothing.divergence == pytest.approx(whole.trained.before.loss, rel=1e-4)
    assert mine.divergence == pytest.approx(whole.trained.after.loss, rel=1e-4)
    same = count = 0
    for sample in report.samples:
        assert sample[WHOLE_TEXT] == bare.answer(asked_with(TEXT, sample["question"]), SHORT["answer_tokens"])
        asked = f"Human: {sample['question']}\n\nAssistant: "
        assert sample[NOTHING] == bare.answer(asked, SHORT["answer_tokens"])
        answer = [*bare.ids(sample[WHOLE_TEXT]), EOS]
        with_text, without = (
            bare.logits([*bare.ids(question), *answer])[-len(answer) - 1 : -1].argmax(1)
            for question in (asked_with(TEXT, sample["question"]), asked)
        )
        same += int((with_text == without).sum())
        count += len(answer)
    assert report.answer_tokens == count
    assert nothing.token_agreement == pytest.approx(same / count)
    assert all(one.timing.first_token > 0 and one.timing.tokens_per_second > 0 for one in report.columns)
    assert all(one.loss is None and one.scores == {} for one in report.columns)


def test_a_prompt_as_long_as_the_text_is_the_text(model_dir: Path, text: Path, tmp_path: Path, whole: CompressResult):
    """It starts at the text's keys and values, and what does not train answers as the text does."""
    assert whole.report is not None
    tokens = whole.report[WHOLE_TEXT].tokens
    values = {"study": str(whole.trained.folder), "num_virtual_tokens": tokens, "start": "first"}
    result = run(text, model_dir, tmp_path / "out", learning_rate=0.0, max_steps=1, **values)
    assert result.report is not None
    mine = result.report[COMPRESSED]
    assert mine.divergence < 1e-4
    assert mine.token_agreement == mine.answer_agreement == 1
    assert result.report[NOTHING].divergence > 0.1


def test_it_learns_its_rows(model_dir: Path, text: Path, tmp_path: Path, whole: CompressResult):
    """All training rows in one batch: the first loss is that of the start, and the last one of what was learned."""
    values = {"study": str(whole.trained.folder), "num_virtual_tokens": 32, "report_rows": 0, "logging_steps": 1}
    run(text, model_dir, tmp_path / "out", max_steps=40, per_device_train_batch_size=9, **values)
    losses = [line["loss"] for line in lines(tmp_path / "out" / "metrics.jsonl") if "loss" in line]
    assert len(losses) == 40
    assert losses[-1] < 0.6 * losses[0]


@pytest.mark.parametrize("questions", [2, 3, 4])
def test_few_questions(questions: int, model_dir: Path, text: Path, tmp_path: Path):
    values = {"questions": questions, "kinds": ["summary", "structure", "passage"], "max_steps": 1}
    result = run(text, model_dir, tmp_path / "out", **values)
    assert result.trained.held_out is not None
    assert (len(result.trained.examples), len(result.trained.held_out)) == (questions - 1, 1)


# ---- other ways to run ----


@pytest.mark.parametrize(
    ("encoder", "start"),
    [
        *((encoder, "even") for encoder in ("prefix-mlp", "embedding", "mlp")),
        *(pytest.param(encoder, "random", marks=pytest.mark.slow) for encoder in ("prefix-mlp", "embedding", "lstm")),
    ],
)
def test_encoders(encoder: str, start: str, model_dir: Path, text: Path, tmp_path: Path, whole: CompressResult):
    values = {"study": str(whole.trained.folder), "encoder": encoder, "start": start, "max_steps": 2}
    result = run(text, model_dir, tmp_path / "out", **values)
    assert result.report is not None
    assert result.report[WHOLE_TEXT].divergence < 1e-5
    assert 0 < result.report[COMPRESSED].divergence < 10
    loaded = PTunedModel.from_pretrained(tmp_path / "out")
    torch.testing.assert_close(
        loaded.get_prompt_embedding_to_save(), result.trained.model.get_prompt_embedding_to_save()
    )


@pytest.mark.parametrize("start", ["first", "last", "even"])
def test_vectors_start_at_the_texts_own(start: str, model_dir: Path, text: Path, tmp_path: Path, bare: Bare):
    values = {"questions": 4, "kinds": ["passage"], "encoder": "embedding", "start": start, "report_rows": 0}
    result = run(text, model_dir, tmp_path / "out", max_steps=1, learning_rate=0.0, **values)
    assert result.report is None
    assert not (tmp_path / "out" / "compression.json").exists()
    pairs = zip(bare.ids(asked_with(TEXT, "a")), bare.ids(asked_with(TEXT, "b")), strict=False)
    ids = [one for one, other in itertools.takewhile(lambda pair: pair[0] == pair[1], pairs)]
    assert TEXT in bare.tokenizer.decode(ids)
    chosen = {"first": ids[:8], "last": ids[-8:], "even": [ids[round(at * (len(ids) - 1) / 7)] for at in range(8)]}
    wanted = bare.model.get_input_embeddings()(torch.tensor(chosen[start])).detach()
    torch.testing.assert_close(result.trained.model.get_prompt_embedding_to_save(), wanted)


@pytest.mark.parametrize("architecture", ["mamba", "gpt2", pytest.param("gemma3", marks=pytest.mark.slow)])
def test_other_models(architecture: str, tmp_path: Path, tiny_tokenizer: PreTrainedTokenizerFast, text: Path):
    values = {"tie_word_embeddings": False} if architecture == "mamba" else {"max_position_embeddings": 512}
    folder = model_folder(tmp_path / "model", tiny_tokenizer, architecture, **values)
    settings = {"questions": 6, "kinds": ["summary", "passage"], "max_steps": 2}
    if architecture == "mamba":
        with pytest.raises(ModelError, match="keys and values"):
            run(text, folder, tmp_path / "deep", **settings)
        assert not (tmp_path / "deep").exists()  # nothing was asked in vain
        settings["encoder"] = "embedding"
    result = run(text, folder, tmp_path / "out", **settings)
    assert result.report is not None
    assert result.report[WHOLE_TEXT].divergence < 1e-4
    assert result.report[WHOLE_TEXT].token_agreement == 1
    assert (result.report[COMPRESSED].bytes == 0) == (architecture == "mamba")
    model = Bare(folder)
    for row in lines(tmp_path / "out" / "study" / "rows.jsonl"):
        assert row["output"] == model.answer(asked_with(TEXT, row["instruction"]), SHORT["answer_tokens"])


def test_a_text_longer_than_the_context(tmp_path: Path, tiny_tokenizer: PreTrainedTokenizerFast):
    folder = model_folder(tmp_path / "model", tiny_tokenizer, max_position_embeddings=256)
    path = text_file(tmp_path, things(6))
    values = {"kinds": ["summary", "passage"], "questions": 30, "excerpt_tokens": 40, "max_length": 100}
    result = run(path, folder, tmp_path / "out", max_steps=2, report_rows=5, **values)
    model = Bare(folder)
    rows = lines(tmp_path / "out" / "study" / "rows.jsonl")
    details = json.loads((tmp_path / "out" / "ptune.json").read_text())["compression"]
    assert result.report is not None
    assert details["windows"] == result.report.windows > 1
    assert details["tokens"] == len(model.ids(things(6))) > 256
    assert {row["window"] for row in rows} == set(range(details["windows"]))
    assert [row["window"] for row in rows] == sorted(row["window"] for row in rows)
    assert result.report[WHOLE_TEXT].divergence < 1e-4
    assert result.report[WHOLE_TEXT].token_agreement == result.report[WHOLE_TEXT].answer_agreement == 1
    # Each was answered with a part of the text in front that holds what it names.
    settings = CompressSettings(text=str(path), excerpt_tokens=40, answer_tokens=SHORT["answer_tokens"])
    prompted = PTunedModel(model.model, self_check=False)
    answerer = Answerer(prompted, model.tokenizer, get_template("tutorial", model.tokenizer))
    cut = cut_for(things(6), answerer, settings, None, [])
    assert len(cut.windows) == details["windows"]
    for row in rows:
        window = cut.windows[row["window"]]
        assert row["instruction"].split('"')[1] in window
        assert row["output"] == model.answer(asked_with(window, row["instruction"]), SHORT["answer_tokens"])


@pytest.mark.slow
def test_right_answers_behind_a_text_longer_than_the_context(tmp_path: Path, tiny_tokenizer: PreTrainedTokenizerFast):
    """A long question and a long right answer have room behind each part of the text."""
    folder = model_folder(tmp_path / "model", tiny_tokenizer, max_position_embeddings=256)
    path = text_file(tmp_path, things(6))
    data = tmp_path / "right.json"
    rows = [
        {"instruction": "Where is the lamp, " * 8 + "?", "output": "In the yard."},
        {"instruction": "Where is the lamp?", "output": "In the yard, " * 14},
    ]
    data.write_text(json.dumps(rows))
    settings = {name: value for name, value in SHORT.items() if name != "eval_rows"}
    values = {"kinds": ["passage"], "questions": 8, "excerpt_tokens": 40, "max_length": 100, "max_steps": 1}
    result = compress(
        path, model=str(folder), output=str(tmp_path / "out"), **{**settings, **values, "eval_data": str(data)}
    )
    assert result.report is not None
    assert result.report.windows > 2
    assert result.report[WHOLE_TEXT].divergence < 1e-4
    # Another cut of the text is another study.
    with pytest.raises(OutputError, match="another study: other windows"):
        run(path, folder, tmp_path / "other", study=str(tmp_path / "out"), **values)


def test_questions_of_ones_own(model_dir: Path, text: Path, tmp_path: Path, bare: Bare):
    data = tmp_path / "questions.jsonl"
    asked = [
        {"instruction": "Where is the kettle?"},
        {"instruction": "What does it cost?", "input": "the lamp", "output": "an answer that is not read"},
        {"instruction": "Who moved it?", "output": ""},
        {"instruction": "Where is the lamp?"},
        {"instruction": "One too many?"},
    ]
    data.write_text("".join(json.dumps(row) + "\n" for row in asked))
    result = run(text, model_dir, tmp_path / "out", data=str(data), questions=4, max_steps=2)
    assert not (tmp_path / "out" / "study" / "questions.jsonl").exists()
    rows = lines(tmp_path / "out" / "study" / "rows.jsonl")
    assert [(row["instruction"], row["input"]) for row in rows] == [
        (row["instruction"], row.get("input", "")) for row in asked[:4]
    ]
    for row in rows:
        question = "\n".join(one for one in (row["instruction"], row["input"]) if one)
        assert row["output"] == bare.answer(asked_with(TEXT, question), SHORT["answer_tokens"])
    assert result.trained.held_out is not None
    assert len(result.trained.held_out) == 1


def test_conversations_are_no_questions(model_dir: Path, text: Path, tmp_path: Path):
    data = tmp_path / "talk.jsonl"
    turns = [("user", "Where?"), ("assistant", "Here."), ("user", "And the lamp?"), ("assistant", "There.")]
    data.write_text(json.dumps({"messages": [{"role": who, "content": what} for who, what in turns]}) + "\n")
    with pytest.raises(DataError, match=r"talk\.jsonl:1 is no single question") as caught:
        run(text, model_dir, tmp_path / "out", data=str(data))
    assert "a question each" in (caught.value.hint or "")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("ends", [pytest.param(True, marks=pytest.mark.slow), False])
def test_a_template_of_ones_own(ends: bool, model_dir: Path, text: Path, tmp_path: Path, bare: Bare):
    """Also one whose answers have no end."""
    template = "Q: {instruction} {input}\nA: {output}" + ("{eos_token}" if ends else "")
    values = {"template": template, "questions": 4, "kinds": ["passage", "summary"]}
    result = run(text, model_dir, tmp_path / "out", max_steps=1, **values)
    assert result.report is not None
    assert result.report[WHOLE_TEXT].divergence < 1e-5
    for row in lines(tmp_path / "out" / "study" / "rows.jsonl"):
        assert row["output"] == bare.answer(f"{TEXT}\n\nQ: {row['instruction']} \nA: ", SHORT["answer_tokens"])


def test_right_answers_are_compared_with(
    model_dir: Path, text: Path, tmp_path: Path, whole: CompressResult, bare: Bare
):
    rows = lines(whole.trained.folder / "study" / "rows.jsonl")
    right = [
        {"instruction": rows[3]["instruction"], "output": rows[3]["output"]},
        {"instruction": rows[4]["instruction"], "output": "nothing of the kind"},
    ]
    data = tmp_path / "right.json"
    data.write_text(json.dumps(right))
    values = {"study": str(whole.trained.folder), "eval_data": str(data), "max_steps": 1}
    settings = {name: value for name, value in SHORT.items() if name != "eval_rows"}
    result = compress(text, model=str(model_dir), output=str(tmp_path / "out"), **{**settings, **values})
    report = result.report
    assert report is not None
    assert report.questions == 2
    assert [one["expected"] for one in report.samples] == [one["output"] for one in right]
    assert report[WHOLE_TEXT].scores["exact_match"] == pytest.approx(0.5)
    assert report[NOTHING].scores["exact_match"] == 0
    assert set(report[NOTHING].scores) == {"exact_match", "f1"}
    total = count = 0.0
    for row in right:
        question, answer = bare.ids(asked_with(TEXT, row["instruction"])), [*bare.ids(row["output"]), EOS]
        log_probs = bare.logits([*question, *answer]).log_softmax(1)[len(question) - 1 : -1]
        total -= float(log_probs.gather(1, torch.tensor(answer)[:, None]).sum())
        count += len(answer)
    assert report[WHOLE_TEXT].loss == pytest.approx(total / count, rel=1e-4)
    assert "loss of the right answer" in (tmp_path / "out" / "compression.md").read_text()


# ---- a study that is there ----


def refuse(*_args: Any, **_options: Any) -> Any:
    raise AssertionError("the model is asked again")


def test_the_study_of_another_compression(
    model_dir: Path, text: Path, tmp_path: Path, whole: CompressResult, monkeypatch: pytest.MonkeyPatch
):
    before = made(whole.trained.folder)
    monkeypatch.setattr(self_study, "generate_answers", refuse)
    monkeypatch.setattr(self_study, "labels_of_rows", refuse)
    for named in (whole.trained.folder, whole.trained.folder / "study"):
        out = tmp_path / named.name
        result = run(text, model_dir, out, study=str(named), num_virtual_tokens=4, max_steps=2)
        assert made(whole.trained.folder) == before
        assert not (out / "study").exists()
        assert result.trained.model.active_peft_config.num_virtual_tokens == 4
    # It goes on, and begins anew, as any other.
    again = run(text, model_dir, out, study=str(named), num_virtual_tokens=4, max_steps=2, resume=True)
    assert again.trained.steps == 2
    with pytest.raises(OutputError, match="holds a compression already"):
        run(text, model_dir, out, study=str(named), num_virtual_tokens=4, max_steps=2)
    run(text, model_dir, out, study=str(named), num_virtual_tokens=3, max_steps=2, overwrite=True)
    assert made(whole.trained.folder) == before


def test_a_study_of_something_else(model_dir: Path, text: Path, tmp_path: Path, whole: CompressResult):
    before = made(whole.trained.folder)
    with pytest.raises(OutputError, match="another study: other text") as caught:
        run(text_file(tmp_path, TEXT + "More."), model_dir, tmp_path / "out", study=str(whole.trained.folder), top_k=4)
    assert "--study" in (caught.value.hint or "")
    assert made(whole.trained.folder) == before


def test_a_folder_without_a_study_is_left_alone(model_dir: Path, text: Path, tmp_path: Path):
    mine = tmp_path / "mine"
    mine.mkdir()
    (mine / "rows.jsonl").write_text("of somebody else\n")
    for named in (mine, tmp_path / "missing"):
        with pytest.raises(ConfigError, match="no finished study in") as caught:
            run(text, model_dir, tmp_path / "out", study=str(named))
        assert str(named) in str(caught.value)
    assert {path.name: path.read_text() for path in mine.iterdir()} == {"rows.jsonl": "of somebody else\n"}
    assert not (tmp_path / "out").exists()


# ---- the output folder ----


def test_a_folder_that_is_not_empty(model_dir: Path, text: Path, tmp_path: Path):
    (tmp_path / "notes.txt").write_text("mine")
    for values in ({}, {"overwrite": True}, {"resume": True}):
        with pytest.raises(OutputError, match="is not empty, and no compression's"):
            run(text, model_dir, tmp_path, **values)
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]


def test_begun_anew(model_dir: Path, text: Path, tmp_path: Path, whole: CompressResult):
    out = tmp_path / "out"
    values = {"questions": 6, "kinds": ["passage", "summary"], "max_steps": 2}
    run(text, model_dir, out, **values)
    (out / "notes.txt").write_text("mine")
    with pytest.raises(OutputError, match="holds a compression already") as caught:
        run(text, model_dir, out, **values)
    assert "--resume" in (caught.value.hint or "")
    assert "--overwrite" in (caught.value.hint or "")
    with pytest.raises(OutputError, match="another study: other number of questions"):
        run(text, model_dir, out, **{**values, "questions": 4}, resume=True)
    run(text, model_dir, out, overwrite=True)
    assert made(out) == made(whole.trained.folder)
    assert (out / "notes.txt").read_text() == "mine"
    assert sorted(path.name for path in out.glob("checkpoint-*")) == [
        path.name for path in whole.trained.folder.glob("checkpoint-*")
    ]


def test_what_cannot_be_studied(model_dir: Path, text: Path, tmp_path: Path):
    with pytest.raises(DataError, match="the text is empty"):
        run(text_file(tmp_path, " \n"), model_dir, tmp_path / "out")
    with pytest.raises(DataError, match=r"missing\.txt"):
        run(tmp_path / "missing.txt", model_dir, tmp_path / "out")
    with pytest.raises(ConfigError, match="room for 0 tokens of the text"):
        run(text_file(tmp_path, things(20)), model_dir, tmp_path / "out", answer_tokens=500)
    with pytest.raises(ConfigError, match="places for virtual tokens"):
        run(text, model_dir, tmp_path / "out", template="{prompt:4}{instruction}{output}")
    with pytest.raises(ConfigError, match="Did you mean 'questions'"):
        run(text, model_dir, tmp_path / "out", question=4)
    with pytest.raises(ConfigError) as caught:
        run(text, model_dir, tmp_path / "out", kinds=["qestion"], temperature=0.0, top_k=0, start="middle", questions=1)
    for said in (
        "Did you mean 'question'",
        "temperature must be above 0",
        "top_k must be",
        "'middle'",
        "questions must",
    ):
        assert said in str(caught.value)
    assert not (tmp_path / "out").exists()
