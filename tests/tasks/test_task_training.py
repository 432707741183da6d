"""`ptune.train` for every task, on small models: from files to a prompt folder, and on from there."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console
from transformers import AutoModelForCausalLM, AutoModelForMaskedLM

from ptune import PTunedTaskModel, TrainRecipe, load_tokenizer, train
from ptune.errors import ConfigError, PTuneError
from ptune.saved.format import read_prompt
from small_tasks import save_bert, save_llama, save_t5

QUIET = Console(quiet=True)
GIVEN: dict[str, Any] = {"max_steps": 6, "use_cpu": True, "logging_steps": 1, "save_steps": 3, "save_strategy": "steps"}
REVIEWS = [
    {"text": f"a film to see {'twice ' * at} it was {word}", "label": label}
    for at in range(10)
    for word, label in (("great", "good"), ("not great", "bad"))
]
CONTEXT = "Ada lives in Bern . Bern was great ."
ROWS: dict[str, list[dict[str, Any]]] = {
    "classify": REVIEWS,
    "fill": REVIEWS,
    "tag": [{"tokens": ["Ada", "lives", *["in"] * at], "tags": ["B-PER", "O", *["O"] * at]} for at in range(1, 12)],
    "qa": [
        {"question": f"where {'in ' * at}", "context": CONTEXT, "answers": {"text": ["Bern"], "answer_start": [13]}}
        for at in range(1, 12)
    ],
    "seq2seq": [{"text": f"a film {'twice ' * at}", "summary": "see it"} for at in range(1, 12)],
}
SAVE = {"encoder": partial(save_bert, positions=512), "decoder": save_llama, "writer": save_t5}
RUNS = [
    ("classify", "encoder"),
    ("classify", "decoder"),
    ("tag", "encoder"),
    ("tag", "decoder"),
    ("qa", "encoder"),
    ("qa", "decoder"),
    ("seq2seq", "writer"),
    ("fill", "encoder"),
]


def _recipe(at: Path, task: str, model: str, **more: Any) -> TrainRecipe:
    folder, data = at / model, at / f"{task}.json"
    if not folder.exists():
        SAVE[model](folder)
    data.write_text(json.dumps(ROWS[task]), encoding="utf-8")
    sizes = {"num_virtual_tokens": 3, "max_length": 64, "eval_rows": 3, "output": str(at / "out"), **more}
    return TrainRecipe(model=str(folder), data=str(data), task=task, **sizes)


@pytest.mark.parametrize(("task", "model"), RUNS)
def test_from_files_to_a_prompt_folder(task: str, model: str, tmp_path: Path) -> None:
    result = train(_recipe(tmp_path, task, model), GIVEN, QUIET)
    assert isinstance(result.model, PTunedTaskModel)
    assert result.before is not None
    assert result.after is not None
    assert result.after.tokens > 0
    details = json.loads((tmp_path / "out/ptune.json").read_text())
    assert details["task"] == task
    assert details.get("labels") == {"classify": ["bad", "good"], "fill": ["bad", "good"], "tag": ["B-PER", "O"]}.get(
        task
    )
    assert bool(read_prompt(tmp_path / "out").head) == (task in ("classify", "tag", "qa"))
    again: Any = PTunedTaskModel.from_pretrained(tmp_path / "out")
    ids = torch.tensor([[5, 6, 7]])
    more = {"labels": ids} if task == "seq2seq" else {}
    with torch.no_grad():
        found, wanted = (one.eval()(input_ids=ids, **more) for one in (again, result.model))
    name = "start_logits" if task == "qa" else "logits"
    torch.testing.assert_close(found[name], wanted[name], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("model", "encoder"), [("encoder", "mlp"), ("decoder", "prefix")])
def test_a_resumed_run_is_one_that_was_never_cut_off(model: str, encoder: str, tmp_path: Path) -> None:
    whole = train(_recipe(tmp_path, "classify", model, encoder=encoder), GIVEN, QUIET)
    kept = {name: value.clone() for name, value in whole.model.state_dict().items()}
    checkpoint = str(tmp_path / "out/checkpoint-3")
    resumed = train(_recipe(tmp_path, "classify", model, encoder=encoder, resume=checkpoint), GIVEN, QUIET)
    found = resumed.model.state_dict()
    assert found.keys() == kept.keys()
    for name, value in found.items():
        assert torch.equal(value, kept[name]), name
    assert any(".head." in name for name in kept)


def test_a_decoders_head_starts_at_the_labels_words(tmp_path: Path) -> None:
    """What separates the labels is what the frozen model itself would say next."""
    recipe = _recipe(tmp_path, "classify", "decoder", num_virtual_tokens=2)
    given = {**GIVEN, "max_steps": 1, "learning_rate": 1e-12, "save_strategy": "no"}
    model: Any = train(TrainRecipe(**{**vars(recipe), "head_learning_rate": 1e-12}), given, QUIET).model.eval()
    tokenizer = load_tokenizer(str(tmp_path / "decoder"))
    causal = AutoModelForCausalLM.from_pretrained(tmp_path / "decoder").eval()
    ids = tokenizer("a film to see", return_tensors="pt")["input_ids"]
    (bad,), (good,) = (tokenizer(word, add_special_tokens=False)["input_ids"] for word in (" bad", " good"))
    with torch.no_grad():
        found = model(input_ids=ids).logits[0]
        vectors = model.encode()[None]
        embeds = torch.cat([vectors, causal.get_input_embeddings()(ids)], dim=1)
        wanted = causal(inputs_embeds=embeds).logits[0, -1]
    torch.testing.assert_close(found[1] - found[0], wanted[good] - wanted[bad], rtol=1e-4, atol=1e-5)


def test_a_masked_models_checkpoint_has_no_pooler(tmp_path: Path) -> None:
    recipe = _recipe(tmp_path, "classify", "encoder")
    AutoModelForMaskedLM.from_pretrained(tmp_path / "encoder").save_pretrained(tmp_path / "encoder")
    with pytest.raises(PTuneError, match=r"lacks 2 weights.*bert\.pooler.*choose a checkpoint saved with its pooler"):
        train(recipe, GIVEN, QUIET)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"verbalizer": {"good": "great"}}, "verbalizer is for the task fill, not classify"),
        ({"target_length": 9}, "target_length is for the task seq2seq, not classify"),
        ({"tokens_per_batch": 99}, "tokens_per_batch is for the task lm, not classify"),
        ({"train_on": "all-turns"}, "train_on is for the task lm, not classify"),
        ({"task": "classes"}, "unknown task 'classes'.*classify"),
        ({"task": "lm", "head_learning_rate": 0.1}, "head_learning_rate is for the task classify or tag or qa, not lm"),
        ({"task": "tag", "pool_virtual_tokens": True}, "pool_virtual_tokens is for the task classify, not tag"),
    ],
    ids=str,
)
def test_what_does_not_go_with_the_task(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        TrainRecipe(**{"model": "m", "data": "d", "output": "o", "task": "classify", **values})


@pytest.mark.parametrize(
    ("task", "model", "message"),
    [
        ("seq2seq", "encoder", "a model that writes none, such as BERT, is for ptune train --task classify"),
        ("fill", "decoder", "the tokenizer (GPT2Tokenizer) has no mask token, so there is no gap to fill"),
        ("qa", "writer", "reads a text with its decoder too"),
    ],
)
def test_a_model_for_another_task(task: str, model: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(PTuneError) as fault:
        train(_recipe(tmp_path, task, model), GIVEN, QUIET)
    assert message in str(fault.value)
    assert not (tmp_path / "out").exists()
