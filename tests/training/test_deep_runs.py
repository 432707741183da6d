"""`ptune train` with encoders of keys and values: losses by hand, first tokens, starts, and what is refused."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console
from safetensors.torch import load_file
from torch.nn import functional as F
from transformers import AutoTokenizer, DynamicCache, LlamaForCausalLM

from commands import run as command
from commands import train_words
from prompting import draw, relative_error
from ptune import PTunedModel
from ptune.choices import CHECKPOINTING, DEEP_ENCODERS
from ptune.errors import ConfigError
from ptune.recipe import TrainRecipe
from ptune.training.progress import read_metrics
from ptune.training.train import TrainResult, train


def run(recipe: dict[str, Any], say: io.StringIO | None = None, **values: Any) -> TrainResult:
    made = TrainRecipe(**{"num_virtual_tokens": 4, **recipe})
    settings = {"logging_steps": 1, "use_cpu": True, "max_steps": 3, **values}
    return train(made, settings, Console(file=say or io.StringIO(), width=200))


@pytest.fixture
def task(tiny_model_dir: Path, train_file: Path, tmp_path: Path) -> dict[str, Any]:
    return {"model": str(tiny_model_dir), "data": str(train_file), "output": str(tmp_path / "out")}


def loss_by_hand(model_dir: Path, folder: Path, rows: list[tuple[list[int], list[bool]]]) -> tuple[float, int]:
    """Over the learned tokens of rows, by the model with a cache filled from the folder; the first has no predictor."""
    model = LlamaForCausalLM.from_pretrained(model_dir)
    config = json.loads((folder / "adapter_config.json").read_text())
    stored = load_file(folder / "adapter_model.safetensors")["prompt_embeddings"]
    parts = stored.view(len(stored), config["num_layers"], 2, config["num_attention_heads"], -1)
    total, tokens = 0.0, 0
    for ids, learned in rows:
        cache = DynamicCache()
        for layer in range(config["num_layers"]):
            keys, values = (parts[:, layer, which].transpose(0, 1).unsqueeze(0) for which in (0, 1))
            cache.update(keys, values, layer)
        mask = torch.ones(1, len(stored) + len(ids))
        name = "cache" if "cache" in LlamaForCausalLM.forward.__code__.co_varnames else "past_key_values"
        with torch.no_grad():
            logits = model(torch.tensor([ids]), attention_mask=mask, **{name: cache}).logits[0, :-1]
        targets = torch.tensor(ids[1:]).masked_fill(~torch.tensor(learned[1:]), -100)
        total += float(F.cross_entropy(logits, targets, reduction="sum"))
        tokens += sum(learned[1:])
    return total / tokens, tokens


@pytest.mark.parametrize("packing", [True, False])
@pytest.mark.parametrize("encoder", DEEP_ENCODERS)
def test_held_out_losses_are_right(
    encoder: str, packing: bool, task: dict[str, Any], held_out_file: Path, tiny_model_dir: Path
) -> None:
    result = run({**task, "encoder": encoder, "eval_data": str(held_out_file), "packing": packing})
    tokenizer, rows = AutoTokenizer.from_pretrained(tiny_model_dir), []
    for row in json.loads(held_out_file.read_text()):
        asked = tokenizer(f"Human: {row['instruction']}\n\nAssistant: ")["input_ids"]
        answer = tokenizer(row["output"] + tokenizer.eos_token)["input_ids"]
        rows.append((asked + answer, [False] * len(asked) + [True] * len(answer)))
    loss, tokens = loss_by_hand(tiny_model_dir, result.folder, rows)
    assert result.before is not None
    assert result.after is not None
    assert (result.before.tokens, result.after.tokens) == (tokens, tokens)
    assert result.after.loss == pytest.approx(loss, abs=1e-5)
    assert abs(result.after.loss - result.before.loss) > 1e-2
    evaluated = [entry for entry in read_metrics(result.folder / "metrics.jsonl") if "eval_loss" in entry]
    assert evaluated[-1]["eval_loss"] == pytest.approx(loss, abs=1e-5)


@pytest.mark.parametrize("packing", [True, False])
def test_first_tokens_are_neither_learned_nor_counted(
    packing: bool, task: dict[str, Any], tiny_model_dir: Path, tmp_path: Path
) -> None:
    data, said = tmp_path / "texts.jsonl", io.StringIO()
    texts = ["red green blue", "black", "white red black green"]
    data.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    recipe = {**task, "data": str(data), "eval_data": str(data), "encoder": "prefix", "packing": packing}
    settings = {"learning_rate": 0.0, "max_steps": 1, "per_device_train_batch_size": 2}
    settings |= {"eval_strategy": "steps", "eval_steps": 1, "per_device_eval_batch_size": 1}
    result = run(recipe, said, gradient_accumulation_steps=2, **settings)
    assert "the first token of 3 rows is not learned" in said.getvalue()
    tokenizer = AutoTokenizer.from_pretrained(tiny_model_dir)
    rows = [tokenizer(text + tokenizer.eos_token)["input_ids"] for text in texts]
    loss, tokens = loss_by_hand(tiny_model_dir, result.folder, [(row, [True] * len(row)) for row in rows])
    assert result.after is not None
    assert (result.after.tokens, result.after.loss) == (tokens, pytest.approx(loss, abs=1e-5))
    evaluated = [entry for entry in read_metrics(result.folder / "metrics.jsonl") if "eval_loss" in entry]
    assert evaluated[-1]["eval_loss"] == pytest.approx(loss, abs=1e-5)
    # The step takes all rows: its loss is the mean over the same tokens.
    assert result.train_loss == pytest.approx(loss, abs=1e-5)


def test_starts(task: dict[str, Any], tmp_path: Path) -> None:
    """From a text, from an input prompt, from another deep one, with each encoder."""
    still = {"max_steps": 1, "learning_rate": 0.0}

    def made(name: str, **values: Any) -> PTunedModel:
        result = run({**task, "output": str(tmp_path / name), **values}, **still)
        return PTunedModel.from_pretrained(result.folder, trainable=True).eval()

    ids = draw(1, 9)

    def logits(model: PTunedModel) -> torch.Tensor:
        with torch.no_grad():
            return model(ids).logits

    soft = made("soft", init_text="red green blue black white")
    wanted = logits(soft)
    deep = made("deep", encoder="prefix", init_from=str(tmp_path / "soft"), num_frozen_tokens=1)
    assert relative_error(logits(deep), wanted) < 1e-5
    assert type(deep.active_peft_config).__name__ == "CartridgeConfig"
    for encoder in DEEP_ENCODERS:
        again = made(f"again-{encoder}", encoder=encoder, init_from=str(tmp_path / "deep"))
        assert relative_error(logits(again), wanted) < 1e-4
        same = made(f"text-{encoder}", encoder=encoder, init_text="red green blue black white")
        last = made(
            f"last-{encoder}",
            encoder=encoder,
            init_text="red green blue black white",
            init_text_tokens="last",
            num_virtual_tokens=2,
        )
        assert last.encode().shape[0] == 2
        assert relative_error(logits(same), logits(last)) > 1e-3
        for init in ("random", "vocab", "frequent", "data"):
            made(f"{init}-{encoder}", encoder=encoder, init=init)
    with pytest.raises(ConfigError, match="no virtual-token embeddings for another encoder"):
        made("no", encoder="mlp", init_from=str(tmp_path / "deep"))


def test_from_the_command_line(tiny_model_dir: Path, train_file: Path, tmp_path: Path) -> None:
    """A Cartridge from even tokens of a text, then gone on with by another run, then answering."""
    flags = {"encoder": "prefix", "num_frozen_tokens": 1, "init_text": "red green blue black", "num_virtual_tokens": 3}
    out = tmp_path / "a"
    ran = command(*train_words(tiny_model_dir, train_file, out, init_text_tokens="even", **flags))
    assert ran.code == 0, ran.err
    assert "learning rate 0.0" in ran.err
    config = json.loads((out / "adapter_config.json").read_text())
    assert (config["peft_type"], config["num_frozen_tokens"], config["num_attention_heads"]) == ("CARTRIDGE", 1, 2)
    ran = command(*train_words(tiny_model_dir, train_file, tmp_path / "b", init_from=out))
    assert ran.code == 0, ran.err
    first, second = (load_file(tmp_path / one / "adapter_model.safetensors")["prompt_embeddings"] for one in "ab")
    assert torch.equal(first[0], second[0])
    assert not torch.equal(first[1:], second[1:])
    ran = command("generate", tmp_path / "b", "red", "--max-new-tokens", 3)
    assert ran.code == 0, ran.err


def test_what_is_refused(task: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=f"{CHECKPOINTING} drops the keys and values.*Leave it out"):
        run({**task, "encoder": "prefix"}, **{CHECKPOINTING: True})
    with pytest.raises(ConfigError, match="the template has 2 virtual tokens inside the text, and the encoder prefix"):
        run({**task, "encoder": "prefix", "template": "{instruction}{prompt:2}{output}", "num_virtual_tokens": None})
    assert not Path(task["output"]).exists()
