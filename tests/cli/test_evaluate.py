"""`ptune evaluate` on a trained prompt: tables, the line of JSON, the folder, and `ptune generate`'s own answers."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from commands import run


def test_tables_and_folder(prompt_dir: Path, data_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    ran = run("evaluate", prompt_dir, "--data", data_file, "--limit", 5, "--metrics", "loss", "f1", "--bootstrap", 20)
    assert ran.code == 0, ran.err
    folder = tmp_path / "trained-evaluation"
    assert {path.name for path in folder.iterdir()} == {
        "evaluation.json", "predictions.jsonl", "report.html", "report.md", "scores.png",
    }  # fmt: skip
    for part in (
        "5 questions",
        "frozen model alone",
        "told in words",
        "with the prompt",
        "token F1",
        "tokens of prompt",
    ):
        assert part in ran.out
    assert ran.out.endswith("report: trained-evaluation/report.html\n")
    assert "told in words: 5 of 5 to do" in ran.err
    again = run("evaluate", prompt_dir, "--data", data_file, "--limit", 5, "--metrics", "f1,loss", "--bootstrap", 20)
    assert again.code == 0, again.err
    assert "going on behind the 15 lines of trained-evaluation" in again.err
    assert "told in words: 0 of 5 to do" in again.err
    assert again.out == ran.out


def test_json_and_answers(prompt_dir: Path, data_file: Path, tmp_path: Path):
    words = ("--limit", 3, "--metrics", "exact_match", "--shots", 0, "--max-new-tokens", 4, "--json")
    ran = run("evaluate", prompt_dir, "--data", data_file, "--output", tmp_path / "out", *words)
    assert ran.code == 0, ran.err
    found = json.loads(ran.out)
    assert set(found["metrics"]) == {"exact_match"}
    assert set(found["metrics"]["exact_match"]) == {"alone", "prompt", "less_alone"}
    assert found["costs"]["prompt"]["prompt_tokens"] == 4
    lines = [json.loads(line) for line in (tmp_path / "out" / "predictions.jsonl").read_text().splitlines()]
    for line in lines:
        bare = [] if line["column"] == "prompt" else ["--no-prompt"]
        answer = run("generate", prompt_dir, line["question"], "--max-new-tokens", 4, *bare)
        assert answer.out.strip() == line["answer"]


def test_other_columns_labels_and_unrelated_rows(prompt_dir: Path, data_file: Path, tmp_path: Path):
    table = tmp_path / "rows.csv"
    table.write_text("frage,antwort\n" + "".join(f"wort {at},{'ab'[at % 2]}\n" for at in range(8)))
    ran = run(
        "evaluate", prompt_dir, "--data", table, "--columns", "instruction=frage", "output=antwort", "--labels", "a,b",
        "--unrelated", data_file, "--output", tmp_path / "out", "--bootstrap", 20, "--written-prompt", "Choose a or b.",
    )  # fmt: skip
    assert ran.code == 0, ran.err
    for part in ("labels: a, b", "8 questions", "20 unrelated rows", "the same token as the frozen model"):
        assert part in ran.out + ran.err
    assert "accuracy, by length" in ran.out
    assert "“Choose a or b.”" in (tmp_path / "out" / "report.md").read_text(encoding="utf-8")


def test_a_prompt_for_a_task_is_measured_by_its_task(task_folders: dict[str, Path], tmp_path: Path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "rows.csv").write_text(
        "satz,klasse\n" + "".join(f"it was {at},{'good' * (at % 2) or 'bad'}\n" for at in range(6))
    )
    words = ("--data", "rows.csv", "--columns", "text=satz", "label=klasse", "--bootstrap", 20, "--metrics", "accuracy")
    ran = run("evaluate", task_folders["classify"], *words)
    assert ran.code == 0, ran.err
    assert (tmp_path / "classify-evaluation" / "confusion.png").read_bytes().startswith(b"\x89PNG")
    for part in (
        "6 rows",
        "the commonest label",
        "with the prompt",
        "accuracy",
        "Labels, with the prompt",
        "seconds a row",
    ):
        assert part in ran.out
    assert "macro" not in ran.out
    assert "with the prompt: 6 of 6 to do" in ran.err
    again = run("evaluate", task_folders["classify"], *words, "--json")
    assert "with the prompt: 0 of 6 to do" in again.err
    found = json.loads(again.out)
    assert found["task"] == "classify"
    assert sum(map(sum, found["confusion"])) == 6
    assert found["by_label"]["news"]["rows"] == 0
