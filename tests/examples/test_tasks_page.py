"""Every command and every Python block of `docs/tasks.md` runs, on small models and small data."""

from __future__ import annotations

import json
import shlex
from pathlib import Path
from typing import Any

import pytest
import torch
from test_pages import BLOCK
from tokenizers import Tokenizer, models, pre_tokenizers, processors, trainers
from transformers import (
    BertConfig,
    BertForMaskedLM,
    PreTrainedTokenizerFast,
    T5Config,
    T5ForConditionalGeneration,
)

from commands import run

ROOT = Path(__file__).resolve().parents[2]
WORDS = "a film to see twice it was great bad not good the end of play said Ada Bern who lives in where does live"
ENCODERS = ("FacebookAI/roberta-base", "google-bert/bert-base-uncased")
READS_AND_WRITES = "google-t5/t5-small"


def _tokenizer(folder: Path, single: str, special: dict[str, str]) -> PreTrainedTokenizerFast:
    core = Tokenizer(models.WordLevel(unk_token=special["unk_token"]))
    core.pre_tokenizer = pre_tokenizers.Whitespace()
    names = list(dict.fromkeys(special.values()))
    core.train_from_iterator([WORDS, ". ?"], trainers.WordLevelTrainer(special_tokens=names))
    core.post_processor = processors.TemplateProcessing(
        single=single,
        pair=single.replace("$A", f"$A {special['eos_token']} $B") if "$A" in single else single,
        special_tokens=[(name, core.token_to_id(name)) for name in names],
    )
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=core, **special)
    tokenizer.save_pretrained(folder)
    return tokenizer


@pytest.fixture
def workplace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Path]:
    """The files that the page names, and a small model for each that it names."""
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    encoder, writer = tmp_path / "encoder", tmp_path / "writer"
    special = {"pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]"}
    tokenizer = _tokenizer(encoder, "[CLS] $A [SEP]", {**special, "mask_token": "[MASK]", "eos_token": "[SEP]"})
    sizes: dict[str, Any] = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
    BertForMaskedLM(
        BertConfig(vocab_size=len(tokenizer), intermediate_size=32, max_position_embeddings=512, **sizes)
    ).save_pretrained(encoder)
    own = _tokenizer(writer, "$A </s>", {"pad_token": "<pad>", "eos_token": "</s>", "unk_token": "<unk>"})
    T5ForConditionalGeneration(
        T5Config(vocab_size=len(own), d_model=32, d_kv=8, d_ff=32, num_layers=2, num_heads=4, decoder_start_token_id=0)
    ).save_pretrained(writer)
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
