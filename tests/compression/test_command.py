"""`ptune compress` as it is typed."""

from __future__ import annotations

import json
import re
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
import yaml

from commands import Ran
from commands import run as ptune
from ptune.compression import compress as compression
from ptune.compression.compress import CompressResult
from ptune.compression.compress_settings import NOT_HERE, OWN_DEFAULTS, CompressSettings
from ptune.recipe import TrainRecipe
from small_runs import SHORT, TEXT, made, text_file


def words(text: Path | None, model: Path, output: Path, *more: object, **values: object) -> list[object]:
    flags = {"model": model, "output": output, **SHORT, **values}
    named = [
        [f"--{name.replace('_', '-')}", *([] if value is True else [value])]
        for name, value in flags.items()
        if value is not None
    ]
    return ["compress", *([] if text is None else [text]), *(word for flag in named for word in flag), *more]


def refused(ran: Ran, *said: str) -> None:
    assert ran.code == 2
    assert ran.out == ""
    assert ran.err.startswith("ptune compress: error: ")
    assert ran.err.count("\n") == 1
    for one in said:
        assert one in ran.err


def test_help_names_every_flag():
    ran = ptune("compress", "--help")
    assert ran.code == 0
    assert "TEXT_FILE --model MODEL --output OUTPUT [flags]" in ran.out
    order = [
        ran.out.index(f"\n{title}") for title in ("model and data:", "self-study:", "prompt:", "report:", "output:")
    ]
    assert len(set(order)) == len(order)
    own = {item.name for item in fields(CompressSettings)}
    train = {item.name for item in fields(TrainRecipe)} - set(NOT_HERE)
    for name in own | train:
        assert re.search(rf"--{name.replace('_', '-')}[ ,\n]", ran.out), name
    for name in set(NOT_HERE) - own:
        assert not re.search(rf"^ *--{name.replace('_', '-')}[ ,\n]", ran.out, re.MULTILINE), name
    assert "--resume OUTPUT" in ran.out
    assert max(map(len, ran.out.splitlines())) <= 140


def test_as_from_python(model_dir: Path, text: Path, tmp_path: Path, whole: CompressResult):
    out = tmp_path / "out"
    ran = ptune(*words(text, model_dir, out, "--json"))
    assert ran.code == 0, ran.err
    result = json.loads(ran.out)
    assert result["output"] == str(out)
    assert whole.report is not None
    untimed = [
        {name: one for name, one in column.items() if name != "timing"} for column in result["report"]["columns"]
    ]
    wanted = whole.report.to_dict()["columns"]
    assert untimed == [{name: one for name, one in column.items() if name != "timing"} for column in wanted]
    assert made(out) == made(whole.trained.folder)
    assert "the text has" in ran.err
    assert "is read whole" in ran.err


def test_settings_are_written_down_and_gone_on_with(
    model_dir: Path, text: Path, tmp_path: Path, whole: CompressResult, monkeypatch: pytest.MonkeyPatch
):
    out = tmp_path / "out"
    make = compression.make_report

    def stop(*_args: Any, **_options: Any) -> Any:
        raise KeyboardInterrupt

    monkeypatch.setattr(compression, "make_report", stop)
    assert ptune(*words(text, model_dir, out, weight_decay=0.0)).code != 0
    noted = yaml.safe_load((out / "compress.yaml").read_text())
    unchanged = {name for name, value in SHORT.items() if OWN_DEFAULTS.get(name) == value}
    assert noted == {
        "text": str(text), "model": str(model_dir), "output": str(out), "weight_decay": 0.0,
        **{name: value for name, value in SHORT.items() if name not in unchanged},
    }  # fmt: skip
    monkeypatch.setattr(compression, "make_report", make)
    ran = ptune("compress", "--resume", out)
    assert ran.code == 0, ran.err
    for name in ("nothing in front", "the whole text", "the compressed prompt", "divergence from the text"):
        assert name in ran.out
    assert made(out) == made(whole.trained.folder)
    assert yaml.safe_load((out / "compress.yaml").read_text()) == noted


def test_a_file_of_flags(model_dir: Path, text: Path, tmp_path: Path):
    file = tmp_path / "flags.yaml"
    out = tmp_path / "out"
    values = {**SHORT, "questions": 4, "kinds": ["passage", "summary"], "max_steps": 1, "report_rows": 0}
    file.write_text(yaml.safe_dump({"text": str(text), "model": str(model_dir), "output": str(out), **values}))
    ran = ptune("compress", "--config", file, "--num-virtual-tokens", 3)
    assert ran.code == 0, ran.err
    assert len((out / "study" / "rows.jsonl").read_text().splitlines()) == 4
    assert json.loads((out / "adapter_config.json").read_text())["num_virtual_tokens"] == 3
    assert ran.out == ""
    file.write_text("text: a.txt\nquestons: 4\n")
    refused(ptune("compress", "--config", file, "--model", model_dir, "--output", out), "questons", "questions")
    file.write_text("text: a.txt\ninit_text: of ptune train\n")
    refused(ptune("compress", "--config", file, "--model", model_dir, "--output", out), "unknown key 'init_text'")


def test_refused(model_dir: Path, text: Path, tmp_path: Path):
    out = tmp_path / "out"
    refused(ptune("compress"), "text file is missing", "ptune compress TEXT_FILE")
    refused(ptune("compress", text), "model", "output", "ptune compress --help")
    refused(ptune(*words(text, model_dir, out, "--questons", 4)), "--questons", "--questions")
    refused(ptune(*words(text, model_dir, out, "--init-text", "x")), "--init-text")
    refused(ptune(*words(text, model_dir, out, "--kinds", "qestion")), "qestion", "question")
    refused(ptune(*words(text, model_dir, out, "--start", "evn")), "evn", "even")
    refused(ptune(*words(text, model_dir, out, questions="many")), "many")
    refused(ptune(*words(text, model_dir, out, questions=1)), "questions must be at least 2, not 1")
    refused(ptune(*words(text, model_dir, out, learning_rate="fast")), "fast")
    refused(ptune(*words(tmp_path / "missing.txt", model_dir, out)), "missing.txt")
    refused(ptune(*words(text_file(tmp_path, ""), model_dir, out)), "the text is empty")
    refused(ptune(*words(text, model_dir, out, num_virtual_tokens=512)), "num_virtual_tokens=512", "context of 512")
    refused(ptune("compress", "--resume", out), f"there is no compression in {out} to resume")
    refused(ptune("compress", "--resume"), "nothing says which compression to resume", "--resume OUTPUT")
    assert not out.exists()


def test_a_binary_file_is_no_text(model_dir: Path, tmp_path: Path):
    path = tmp_path / "text.pdf"
    path.write_bytes(b"%PDF-1.4\x00\xff\xfe\x9d" + bytes(range(256)))
    refused(ptune(*words(path, model_dir, tmp_path / "out")), "text.pdf")


def test_the_text_of_another_file_is_another_study(model_dir: Path, text: Path, tmp_path: Path):
    out = tmp_path / "out"
    values = {"questions": 4, "max_steps": 1, "report_rows": 0}
    assert ptune(*words(text, model_dir, out, "--kinds", "passage", **values)).code == 0
    other = text_file(tmp_path, TEXT + "More.")
    refused(ptune("compress", other, "--resume", "--output", out), "another study: other text", "--overwrite")
