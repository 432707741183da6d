"""Every command and every Python block of `docs/tasks.md` runs, on small models and small data."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path

import pytest

from commands import run
from small_tasks import save_bert, save_t5

ROOT = Path(__file__).resolve().parents[2]
ENCODERS = ("FacebookAI/roberta-base", "google-bert/bert-base-uncased")
READS_AND_WRITES = "google-t5/t5-small"
BLOCK = re.compile(r"^```(console|python)\n(.*?)^```", flags=re.MULTILINE | re.DOTALL)


@pytest.fixture
def workplace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Path]:
    """The files that the page names, and a small model for each that it names."""
    monkeypatch.chdir(tmp_path)
    encoder, writer = save_bert(tmp_path / "encoder", positions=512), save_t5(tmp_path / "writer")
    kinds = (("a good film", "positive"), ("not good", "negative"))
    _lines(
        "reviews.jsonl",
        [{"text": f"{text} {'the ' * at}end", "label": label} for at in range(20) for text, label in kinds],
    )
    _lines("summaries.jsonl", [{"text": f"a film to see {'twice ' * at}", "summary": "see it"} for at in range(1, 9)])
    tagged = "\n\n".join("Ada B-PER\nlives O\nin O\nBern B-LOC" + "\nsaid O" * at for at in range(8))
    Path("names.conll").write_text(tagged + "\n", encoding="utf-8")
    context = "Ada lives in Bern . Bern was great ."
    answer = {"text": ["Bern"], "answer_start": [context.index("Bern")]}
    questions = [
        {"question": f"where does Ada live {'? ' * at}", "context": context, "answers": answer} for at in range(1, 9)
    ]
    Path("squad.json").write_text(json.dumps(questions), encoding="utf-8")
    return {**dict.fromkeys(ENCODERS, encoder), READS_AND_WRITES: writer}


def _lines(name: str, rows: list[dict[str, str]]) -> None:
    Path(name).write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")


def test_what_stands_on_the_page_runs(workplace: dict[str, Path]) -> None:
    blocks = BLOCK.findall((ROOT / "docs/tasks.md").read_text(encoding="utf-8"))
    assert len(blocks) > 3
    for kind, text in blocks:
        for name, folder in workplace.items():
            text = text.replace(name, str(folder))
        if kind == "python":
            short = text.replace('{"max_steps": 100}', '{"max_steps": 2, "use_cpu": True, "report_to": "none"}')
            exec(compile(short, "docs/tasks.md", "exec"), {})
            continue
        for line in text.splitlines():
            words = shlex.split(line)
            assert words.pop(0) == "ptune"
            shorter = ("--max-steps", "2", "--report-to", "none") if words[0] == "train" else ()
            done = run(*words, *shorter)
            assert done.code == 0, done.err
