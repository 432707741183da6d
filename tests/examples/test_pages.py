"""Every command and every Python block of the READMEs and the guides runs, on a small model and small data.

`docs/scripts.md` has a test of its own. What needs the hub is named here (`ON_THE_HUB`), and its flags are looked for.
"""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path
from typing import Any

import peft
import pytest
from datasets import Dataset
from transformers import AutoModelForCausalLM, TrainingArguments

from commands import run
from ptune import PackingCollator, PromptEncoderConfig, PTunedModel, PTuneTrainer

ROOT = Path(__file__).resolve().parents[2]
PAGES = [
    "README.md",
    "README.zh.md",
    *(f"docs/{name}.md" for name in ("index", "training", "tune", "compress", "data", "saving", "compare")),
]
MODELS = ("Qwen/Qwen2.5-0.5B", "bigscience/bloom-1b1", "builtin:smollm2-135m", "MODEL")
DATA, ARROW = ("my_data.json", "test.json", "old.json", "new.jsonl"), "alpaca_en"
ON_THE_HUB = "user/prompt"
SHORTER = {
    "train": ("--max-steps", "2", "--overwrite", "--report-to", "none"),
    "compare": ("--max-steps", "2", "--overwrite", "--num-virtual-tokens", "3", "--methods", "mlp"),
    "compress": (
        *("--max-steps", "2", "--overwrite", "--num-virtual-tokens", "3", "--report-rows", "2", "--answer-tokens", "4"),
        *("--data", "new.jsonl", "--questions", "8", "--excerpt-tokens", "16"),
    ),
    "import": ("--overwrite",),
    "tune": ("--max-steps", "2", "--overwrite", "--num-virtual-tokens", "3", "--trials", "2"),
    "plan": ("--max-length", "96"),  # the small model has room for 128 tokens
}
BLOCK = re.compile(r"^```(console|python)\n(.*?)^```", flags=re.MULTILINE | re.DOTALL)


@pytest.fixture
def workplace(tiny_model_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """A folder with the files that the pages name; gives the names that their Python blocks take for granted."""
    monkeypatch.chdir(tmp_path)
    for name in DATA:
        rows = [{"instruction": f"Say {i} of {name}.", "input": "", "output": f"It is {i}."} for i in range(80)]
        text = "\n".join(map(json.dumps, rows)) if name.endswith("l") else json.dumps(rows)
        Path(name).write_text(text, encoding="utf-8")
    Path("manual.txt").write_text("The gate opens at six. The key is blue. Nobody knows why.", encoding="utf-8")
    Dataset.from_list(rows).save_to_disk(ARROW)
    base = AutoModelForCausalLM.from_pretrained(tiny_model_dir)
    theirs = peft.PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=3)
    peft.get_peft_model(AutoModelForCausalLM.from_pretrained(tiny_model_dir), theirs).save_pretrained("their-adapter")
    args = TrainingArguments("run", max_steps=2, save_steps=1, report_to="none", use_cpu=True)
    ids = [{"input_ids": [5, 6, 7], "labels": [-100, 6, 7]}] * 4
    prompted = PTunedModel(base, PromptEncoderConfig(num_virtual_tokens=3, encoder_hidden_size=8))
    trainer = PTuneTrainer(model=prompted, args=args, train_dataset=ids, data_collator=PackingCollator())
    return {"model": AutoModelForCausalLM.from_pretrained(tiny_model_dir), "trainer": trainer, "args": args}


@pytest.mark.parametrize("page", PAGES)
def test_what_stands_on_the_page_runs(page: str, workplace: dict[str, Any], tiny_model_dir: Path) -> None:
    blocks = BLOCK.findall((ROOT / page).read_text(encoding="utf-8"))
    assert blocks
    for kind, text in blocks:
        if kind == "console":
            for line in text.splitlines():
                _run_line(line, tiny_model_dir)
        elif ON_THE_HUB not in text:
            small = text.replace("100}", "2, 'use_cpu': True, 'report_to': 'none'}").replace(
                'output="', 'output="other-'
            )
            exec(compile(_with_small_model(small, tiny_model_dir), page, "exec"), workplace)


def _run_line(line: str, model: Path) -> None:
    words = shlex.split(line, comments=True)
    if words[0] == "make":
        assert re.search(rf"^{words[1]}:", (ROOT / "Makefile").read_text(encoding="utf-8"), flags=re.MULTILINE)
        return
    assert words.pop(0) == "ptune"
    if ON_THE_HUB in words:
        known = run(words[0], "--help").out
        assert all(word in known for word in words if word.startswith("--"))
        return
    words = [_with_small_model(word, model) if word in MODELS else word for word in words]
    if words[:2] == ["tune", "--resume"] and "--trials" in words:
        words[words.index("--trials") + 1] = "3"
    done = run(*words, *(SHORTER.get(words[0], ()) if "--resume" not in words else ()), stdin="Hello\n/quit\n")
    assert done.code == 0, done.err


def _with_small_model(text: str, model: Path) -> str:
    for name in MODELS:
        text = text.replace(name, str(model))
    return text
