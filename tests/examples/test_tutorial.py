"""The tutorial's script, `ptune` in place of `peft`, on a small random BLOOM: it learns, and saves only prompts."""

from __future__ import annotations

import importlib.util
import json
import random
import re
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import pytest
import torch
from datasets import Dataset
from safetensors.torch import load_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import BloomConfig, BloomForCausalLM, PreTrainedTokenizerFast, set_seed

SCRIPT = Path(__file__).resolve().parents[2] / "examples" / "tutorial.py"
NOTEBOOK = SCRIPT.with_suffix(".ipynb")
HIDDEN = 128
ROWS = 480


class Workplace(NamedTuple):
    """What the tutorial starts from: a model folder and an Arrow folder."""

    model: Path
    data: Path


def make_rows() -> list[dict[str, str]]:
    """Alpaca rows with a pattern a soft prompt can learn: the answer is the same few words, whatever the question."""
    dice = random.Random(0)
    things = ["a tree", "the sea", "our street", "an old clock", "两只猫"]
    return [
        {
            "instruction": f"Say something about {dice.choice(things)}.",
            "input": dice.choice(["", f"Number {dice.randrange(100)}"]),
            "output": "yes yes yes of course",
        }
        for _ in range(ROWS)
    ]


def make_tokenizer(rows: list[dict[str, str]]) -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer that, as BLOOM's, adds no special tokens of its own and pads on the left."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=["<unk>", "<s>", "</s>", "<pad>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator((text for row in rows for text in row.values()), trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        unk_token="<unk>",
        bos_token="<s>",
        eos_token="</s>",
        pad_token="<pad>",
        padding_side="left",
    )


@pytest.fixture(scope="module")
def workplace(tmp_path_factory: pytest.TempPathFactory) -> Workplace:
    folder = tmp_path_factory.mktemp("tutorial")
    rows = make_rows()
    tokenizer = make_tokenizer(rows)
    set_seed(0)
    # A wide initialisation makes the random model's answers depend on the prompt, as a trained model's do.
    config = BloomConfig(
        vocab_size=len(tokenizer), hidden_size=HIDDEN, n_layer=2, n_head=4, initializer_range=0.2, pad_token_id=3
    )
    model = BloomForCausalLM(config)
    model.save_pretrained(folder / "model")
    tokenizer.save_pretrained(folder / "model")
    Dataset.from_list(rows).save_to_disk(folder / "data")
    return Workplace(folder / "model", folder / "data")


@pytest.fixture(scope="module")
def tutorial() -> ModuleType:
    spec = importlib.util.spec_from_file_location("tutorial", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def newest_checkpoint(output: Path) -> Path:
    return max(output.glob("checkpoint-*"), key=lambda folder: int(folder.name.rpartition("-")[2]))


def assert_holds_only_the_prompt(checkpoint: Path, base: dict[str, torch.Tensor], trainable: int) -> None:
    """The checkpoint's tensors are the prompt's: by name, by number, by value and by size on disk."""
    files = {file.name: load_file(file) for file in checkpoint.rglob("*.safetensors")}
    assert set(files) == {"model.safetensors", "encoder.safetensors", "adapter_model.safetensors"}
    assert not list(checkpoint.rglob("pytorch_model*"))
    saved = files["model.safetensors"]
    assert all(name.startswith("prompts.default.") for name in saved), sorted(saved)
    assert sum(tensor.numel() for tensor in saved.values()) == trainable
    assert {name.removeprefix("prompts.default.") for name in saved} == set(files["encoder.safetensors"])
    copies = [
        (ours, theirs)
        for ours, tensor in saved.items()
        for theirs, weight in base.items()
        if tensor.shape == weight.shape and tensor.unique().numel() > 1 and torch.equal(tensor, weight)
    ]
    assert copies == []
    slack = 64 * 1024  # headers
    assert (checkpoint / "model.safetensors").stat().st_size < 4 * trainable + slack
    assert (checkpoint / "optimizer.pt").stat().st_size < 2 * 4 * trainable + slack, (
        "Adam keeps two numbers a parameter"
    )


@pytest.mark.parametrize("encoder", ["mlp", "lstm"])
def test_tutorial(
    workplace: Workplace, tutorial: ModuleType, tmp_path: Path, encoder: str, capsys: pytest.CaptureFixture[str]
):
    base_before = load_file(workplace.model / "model.safetensors")
    output = tmp_path / "p tuning"
    set_seed(0)
    paths = ["--model", str(workplace.model), "--data", str(workplace.data), "--output-dir", str(output)]
    tutorial.main([*paths, "--encoder", encoder, "--use-cpu"])

    checkpoint = newest_checkpoint(output)
    state = json.loads((checkpoint / "trainer_state.json").read_text(encoding="utf-8"))

    assert state["global_step"] == ROWS // 8
    losses = [entry["loss"] for entry in state["log_history"] if "loss" in entry]
    assert len(losses) == ROWS // 8 // 10
    assert losses[-1] < 0.9 * losses[0], losses

    trainable = int(re.search(r"trainable params: ([\d,]+) \|\|", capsys.readouterr().out)[1].replace(",", ""))
    assert_holds_only_the_prompt(checkpoint, base_before, trainable)


def test_the_notebook_runs_and_shows_what_it_showed(
    workplace: Workplace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Cell by cell on the small model; what is committed was made by the real one, from first cell to last."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MPLBACKEND", "agg")
    cells = [one for one in json.loads(NOTEBOOK.read_text(encoding="utf-8"))["cells"] if one["cell_type"] == "code"]
    assert [cell["execution_count"] for cell in cells] == list(range(1, len(cells) + 1))
    names: dict[str, Any] = {}
    for cell in cells:
        text = "".join(cell["source"])
        for pattern, value in (("^MODEL = .*$", f"MODEL = {str(workplace.model)!r}"), ("^STEPS = .*$", "STEPS = 2")):
            text = re.sub(pattern, lambda _, value=value: value, text, flags=re.MULTILINE)
        text = text.replace("disable_tqdm=True,", "disable_tqdm=True, use_cpu=True,")
        exec(compile(text, NOTEBOOK.name, "exec"), names)
    assert names["trainer"].state.global_step == 2
    assert (tmp_path / "my-prompt" / "adapter_model.safetensors").is_file()
    shown = "".join(text for cell in cells for output in cell["outputs"] for text in output.get("text", []))
    wanted = re.findall(r"^answer: +(.+)\nwanted: +(.+)$", shown, flags=re.MULTILINE)
    assert len(wanted) == 4
    assert sum(one == other for one, other in wanted) >= 2
