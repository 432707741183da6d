"""PEFT's guides with a training loop of their own, with one import changed: the same losses, step by step."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from torch.utils.data import DataLoader
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSeq2SeqLM,
    AutoTokenizer,
    get_linear_schedule_with_warmup,
)

import ptune
from small_tasks import save_llama, save_t5

PAIRS = [
    ("the lamp is broken", "bad"),
    ("it was great", "good"),
    ("where is my order ?", "news"),
    ("a soft prompt", "good"),
    ("it was terrible", "bad"),
    ("good news", "good"),
]
START = "is it good or bad ?"


def configured(library: Any, base: Path, task: str) -> Any:
    """Prompt tuning from a text."""
    return library.PromptTuningConfig(
        task_type=library.TaskType(task),
        prompt_tuning_init=library.PromptTuningInit.TEXT,
        num_virtual_tokens=5,
        prompt_tuning_init_text=START,
        tokenizer_name_or_path=str(base),
    )


def batches(tokenizer: Any, task: str) -> list[dict[str, torch.Tensor]]:
    """Padded rows: questions and answers, or both in one."""

    def padded(lines: list[list[int]], fill: int) -> torch.Tensor:
        longest = max(map(len, lines))
        return torch.tensor([line + [fill] * (longest - len(line)) for line in lines])

    def collate(pairs: list[tuple[str, str]]) -> dict[str, torch.Tensor]:
        asked = [tokenizer(question)["input_ids"] for question, _ in pairs]
        told = [tokenizer(f" {answer}")["input_ids"] for _, answer in pairs]
        if task == "CAUSAL_LM":
            told = [[*answer, tokenizer.eos_token_id] for answer in told]
            labels = [[-100] * len(one) + answer for one, answer in zip(asked, told, strict=True)]
            asked = [one + answer for one, answer in zip(asked, told, strict=True)]
        else:
            labels = told
        mask = padded([[1] * len(one) for one in asked], 0)
        ids = padded(asked, int(tokenizer.pad_token_id))
        return {"input_ids": ids, "attention_mask": mask, "labels": padded(labels, -100)}

    return list(DataLoader(PAIRS, batch_size=3, collate_fn=collate))  # type: ignore[arg-type]


def guide(library: Any, base: Path, task: str, folder: Path) -> tuple[list[float], torch.Tensor]:
    """The guide's loop: losses of each step and of what was saved and loaded again, and its answers."""
    loader: Any = AutoModelForCausalLM if task == "CAUSAL_LM" else AutoModelForSeq2SeqLM
    options = {} if task == "CAUSAL_LM" else {"dropout_rate": 0.0}
    tokenizer = AutoTokenizer.from_pretrained(base)
    model = library.get_peft_model(loader.from_pretrained(base, **options), configured(library, base, task))
    data = batches(tokenizer, task)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-2)
    schedule = get_linear_schedule_with_warmup(optimizer, num_warmup_steps=0, num_training_steps=4 * len(data))
    losses = []
    model.train()
    for _ in range(4):
        for batch in data:
            loss = model(**batch).loss
            losses.append(float(loss.detach()))
            loss.backward()
            optimizer.step()
            schedule.step()
            optimizer.zero_grad()
    model.save_pretrained(folder)
    config = library.PeftConfig.from_pretrained(folder)
    again = loader.from_pretrained(config.base_model_name_or_path, **options)
    model = library.PeftModel.from_pretrained(again, folder).eval()
    asked = tokenizer(PAIRS[0][0], return_tensors="pt")
    with torch.no_grad():
        losses += [float(model(**batch).loss) for batch in data]
        written = model.generate(
            input_ids=asked["input_ids"], attention_mask=asked["attention_mask"], max_new_tokens=6, do_sample=False
        )
    return losses, written


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("task", ["SEQ_2_SEQ_LM", "CAUSAL_LM"])
def test_a_guide_with_one_import_changed(task: str, tmp_path: Path) -> None:
    # Wider weights would let rounding grow to a percent in these eight steps.
    base = save_llama(tmp_path / "base") if task == "CAUSAL_LM" else save_t5(tmp_path / "base", wide=1.0)
    wanted, theirs = guide(peft, base, task, tmp_path / "theirs")
    found, mine = guide(ptune, base, task, tmp_path / "mine")
    assert found == pytest.approx(wanted, rel=1e-5)
    assert found[-2] < found[0]
    # PEFT's folder is a prompt here, and the other way round.
    assert torch.equal(mine[:, -6:], theirs[:, -6:])
    loader: Any = AutoModelForCausalLM if task == "CAUSAL_LM" else AutoModelForSeq2SeqLM
    for library, folder in ((ptune, "theirs"), (peft, "mine")):
        model = library.PeftModel.from_pretrained(loader.from_pretrained(base), tmp_path / folder).eval()
        with torch.no_grad():
            loss = float(model(**batches(AutoTokenizer.from_pretrained(base), task)[0]).loss)
        assert loss == pytest.approx(wanted[-2], rel=1e-5)
