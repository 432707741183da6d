"""`ptune import`: adapters as PEFT saves them become prompt folders; the model is loaded where it is named."""

from __future__ import annotations

import json
import pickle
import shutil
import warnings
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from architectures import build
from commands import Ran, run
from prompting import draw, pefts_greedy, relative_error
from ptune import PTunedModel
from ptune.frozen.fingerprint import fingerprint

P = 4


def refused(ran: Ran, *fragments: str) -> None:
    assert ran.code == 2, ran.err
    assert ran.err.startswith("ptune import: error: ")
    assert ran.err.count("\n") == 1, ran.err
    assert ran.out == ""
    for fragment in fragments:
        assert fragment in ran.err, ran.err


def imported(*words: object) -> dict[str, Any]:
    ran = run("import", *words, "--json")
    assert (ran.code, ran.err) == (0, "")
    found: dict[str, Any] = json.loads(ran.out)
    return found


def settings(model: Path) -> dict[str, Any]:
    """The ways in which PEFT makes a prompt of virtual tokens."""
    p_tuning, common = peft.PromptEncoderConfig, {"task_type": "CAUSAL_LM", "num_virtual_tokens": P}
    return {
        "mlp": p_tuning(**common, encoder_hidden_size=16),
        "lstm": p_tuning(**common, encoder_reparameterization_type="LSTM", encoder_num_layers=2, encoder_dropout=0.3),
        "dropout, inference mode": p_tuning(**common, encoder_dropout=0.5, inference_mode=True),
        "random": peft.PromptTuningConfig(**common),
        "text": peft.PromptTuningConfig(
            **common,
            prompt_tuning_init="TEXT",
            prompt_tuning_init_text="Where is my order?",
            tokenizer_name_or_path=str(model),
        ),
        "vocabulary": peft.PromptTuningConfig(**common, prompt_tuning_init="SAMPLE_VOCAB"),
    }


def trained(model: Path, config: Any) -> Any:
    """PEFT's model after a step of training."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        theirs = peft.get_peft_model(AutoModelForCausalLM.from_pretrained(model), config)
    trainable = [one for one in theirs.parameters() if one.requires_grad]
    if trainable:
        ids = draw(2, 6)
        theirs(input_ids=ids, labels=ids).loss.backward()
        torch.optim.SGD(trainable, lr=0.1).step()
    return theirs.eval()


@pytest.fixture(scope="module")
def adapter(tiny_model_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("adapters") / "mlp"
    trained(tiny_model_dir, settings(tiny_model_dir)["mlp"]).save_pretrained(folder)
    return folder


@pytest.mark.parametrize("kind", settings(Path("none")))
def test_every_setting_of_pefts(kind: str, tiny_model_dir: Path, tmp_path: Path):
    theirs = trained(tiny_model_dir, settings(tiny_model_dir)[kind])
    theirs.save_pretrained(tmp_path / "adapter")
    found = imported(tmp_path / "adapter", "--output", tmp_path / "prompt")
    assert (found["virtual_tokens"], found["token_dim"], found["encoder"]) == (P, 32, "embedding")
    assert (found["base_model"], found["checked"]) == (str(tiny_model_dir), False)
    stored = load_file(tmp_path / "adapter" / "adapter_model.safetensors")["prompt_embeddings"]
    for name in ("adapter_model", "encoder"):
        assert torch.equal(next(iter(load_file(tmp_path / "prompt" / f"{name}.safetensors").values())), stored)
    ids = draw(1, 6)
    with torch.no_grad():
        wanted = theirs(input_ids=ids).logits[:, P:]
        for folder in ("adapter", "prompt"):
            for trainable in (False, True):
                mine = PTunedModel.from_pretrained(tmp_path / folder, trainable=trainable).eval()
                assert relative_error(mine(ids).logits, wanted) < 1e-5
                assert mine.get_nb_trainable_parameters()[0] == (P * 32 if trainable else 0)


class Bomb:
    """A pickle that would be noticed."""

    def __reduce__(self) -> tuple[Any, ...]:
        return (pytest.fail, ("a pickle was opened",))


def test_a_checkpoint_of_a_trainer(adapter: Path, tmp_path: Path):
    """What lies beside the adapter is left alone; the pickles among it are never opened."""
    folder = Path(shutil.copytree(adapter, tmp_path / "checkpoint-3"))
    for name in ("optimizer.pt", "scheduler.pt", "training_args.bin", "rng_state.pth", "adapter_model.bin"):
        (folder / name).write_bytes(pickle.dumps(Bomb()))
    (folder / "trainer_state.json").write_text("{}")
    imported(folder, "--output", tmp_path / "prompt")
    ran = run("generate", folder, "Hello", "--max-new-tokens", 3)
    assert (ran.code, ran.err) == (0, "")
    assert run("generate", tmp_path / "prompt", "Hello", "--max-new-tokens", 3).out == ran.out
    (folder / "adapter_model.safetensors").unlink()
    refused(run("import", folder, "--output", tmp_path / "no"), "adapter_model.bin is a pickle", "safetensors")
    assert not (tmp_path / "no").exists()


@pytest.mark.parametrize("kind", ["PrefixTuningConfig", "CartridgeConfig"])
def test_keys_and_values(kind: str, tiny_model_dir: Path, tmp_path: Path):
    """Of every layer: the adapter answers as it is, and so does the prompt folder that is made of it."""
    base = AutoModelForCausalLM.from_pretrained(tiny_model_dir)
    theirs = peft.get_peft_model(base, getattr(peft, kind)(task_type="CAUSAL_LM", num_virtual_tokens=P))
    torch.manual_seed(0)
    for weight in theirs.prompt_encoder.parameters():
        torch.nn.init.normal_(weight, std=3.0)  # wide enough to change the answer, whatever was drawn before
    theirs.save_pretrained(tmp_path / "adapter")
    words = ("x", "--max-new-tokens", 8, "--compare", "--json")
    answers = json.loads(run("generate", tmp_path / "adapter", *words).out)
    tokenizer = AutoTokenizer.from_pretrained(tiny_model_dir)
    ids = tokenizer("Human: x\n\nAssistant: ", return_tensors="pt")["input_ids"]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        output = pefts_greedy(theirs.eval(), ids, tokens=8, end=tokenizer.eos_token_id)
    assert answers["tuned"] == tokenizer.decode(output[0, ids.shape[1] :], skip_special_tokens=True)
    assert answers["tuned"] != answers["base"]
    frozen = 1 if kind == "CartridgeConfig" else 0
    for checked in ([], ["--model", tiny_model_dir]):
        folder = tmp_path / f"prompt{len(checked)}"
        found = imported(tmp_path / "adapter", "--output", folder, *checked)
        assert (found["encoder"], found["virtual_tokens"], found["token_dim"]) == ("prefix", P, 64)
        assert json.loads(run("generate", folder, *words).out)["tuned"] == answers["tuned"]
        trained = PTunedModel.from_pretrained(folder, base=base, trainable=True)
        assert trained.get_nb_trainable_parameters()[0] == (P - frozen) * 64
        found = json.loads(run("inspect", folder, "--json").out)
        assert (found["encoder"], found["nearest"]) == ("prefix", None)
        assert found["keys_and_values"] == "2 layers, 2 heads of 8"
        assert "no token of the vocabulary is near" in found["nearest_missing"]


def test_what_a_person_reads(adapter: Path, tiny_model_dir: Path, tmp_path: Path):
    ran = run("import", adapter, "--output", tmp_path / "prompt")
    assert (ran.code, ran.err) == (0, "")
    assert ran.out.splitlines() == [
        f"P_TUNING MLP: 4 virtual tokens × 32: {tmp_path / 'prompt'}",
        "PEFT keeps the baked virtual tokens alone: the prompt's encoder is `embedding`.",
        f"frozen model: {tiny_model_dir} (not loaded; --model M checks it)",
        "template: PEFT does not say; ptune takes `tutorial` unless --template names another",
    ]
    card = (tmp_path / "prompt" / "README.md").read_text()
    assert "4 × 32" in card
    found = json.loads(run("inspect", tmp_path / "prompt", "--no-nearest", "--json").out)
    assert (found["encoder"], found["written_by"]) == ("embedding", "ptune")


def test_with_its_model(adapter: Path, tiny_model_dir: Path, tmp_path: Path):
    template = "Q: {instruction}\nA: {output}"
    words = ["--output", tmp_path / "prompt", "--model", tiny_model_dir, "--template", template]
    found = imported(adapter, *words)
    assert (found["checked"], found["template"]) == (True, template)
    details = json.loads((tmp_path / "prompt" / "ptune.json").read_text())
    assert details["base_fingerprint"] == fingerprint(AutoModelForCausalLM.from_pretrained(tiny_model_dir))
    assert details["template"] == template
    assert details["imported_from"]["peft_type"] == "P_TUNING"
    # The fingerprint holds it to its model.
    build("llama", seed=1).save_pretrained(other := Path(shutil.copytree(tiny_model_dir, tmp_path / "other")))
    ran = run("generate", tmp_path / "prompt", "x", "--model", other)
    assert ran.code == 2
    assert "made for another model" in ran.err
    ran = run("import", adapter, "--output", tmp_path / "prompt", "--model", tiny_model_dir, "--overwrite")
    assert "its sizes fit, its fingerprint is noted" in ran.out


def test_training_goes_on_from_it(adapter: Path, data_file: Path, tiny_model_dir: Path, tmp_path: Path):
    imported(adapter, "--output", tmp_path / "prompt", "--model", tiny_model_dir)
    model = PTunedModel.from_pretrained(tmp_path / "prompt", trainable=True)
    before, ids = model.encode().detach().clone(), draw(2, 6)
    model(ids, labels=ids).loss.backward()
    torch.optim.SGD([one for one in model.parameters() if one.requires_grad], lr=0.1).step()
    assert not torch.equal(model.encode(), before)


def test_another_models_size(adapter: Path, tiny_model_dir: Path, tmp_path: Path):
    wide = Path(shutil.copytree(tiny_model_dir, tmp_path / "wide"))
    build("llama", hidden_size=64).save_pretrained(wide)
    refused(run("import", adapter, "--output", tmp_path / "out", "--model", wide), "size 32", "have 64")
    refused(run("import", adapter, "--output", tmp_path / "out", "--model", tmp_path / "none"), "none")
    assert not (tmp_path / "out").exists()


def test_the_output(adapter: Path, prompt_dir: Path, tmp_path: Path):
    out = ["--output", tmp_path / "out"]
    imported(adapter, *out)
    refused(run("import", adapter, *out), "is not empty", "--overwrite")
    imported(adapter, *out, "--overwrite")
    own = Path(shutil.copytree(adapter, tmp_path / "own"))
    refused(run("import", own, "--output", own, "--overwrite"), "is not ptune's")
    refused(run("import", prompt_dir, "--output", tmp_path / "x"), "is a prompt folder of ptune's already")
    (tmp_path / "file").write_text("")
    refused(run("import", adapter, "--output", tmp_path / "file"), "is a file")
    assert not (tmp_path / "x").exists()


def _with(adapter: Path, target: Path, **values: Any) -> Path:
    folder = Path(shutil.copytree(adapter, target))
    path = folder / "adapter_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))
    return folder


@pytest.mark.parametrize(
    ("values", "fragments"),
    [
        ({"peft_type": "LORA"}, ("'LORA'", "changes the model", "merge_and_unload", "--model")),
        ({"peft_type": "LOHA"}, ("'LOHA'", "changes the model")),
        ({"peft_type": "MULTITASK_PROMPT_TUNING"}, ("'MULTITASK_PROMPT_TUNING'", "several tasks", "ptune train")),
        ({"peft_type": "CPT"}, ("'CPT'", "ptune train")),
        ({"peft_type": None}, ("None", "not a soft prompt")),
        ({"peft_type": ["P_TUNING"]}, ("P_TUNING", "not a soft prompt")),
        ({"peft_type": "PREFIX_TUNING", "num_layers": 2}, ("shape (4, 32), expected (4, 128)",)),
        ({"peft_type": "CARTRIDGE", "num_frozen_tokens": 9}, ("from 0 to num_virtual_tokens=4, not 9",)),
        ({"task_type": "SEQ_CLASS"}, ("unknown task_type 'SEQ_CLASS'",)),
        ({"num_transformer_submodules": 2}, ("num_transformer_submodules=2 is not supported",)),
        ({"modules_to_save": ["lm_head"]}, ("modules_to_save=['lm_head'] is not supported",)),
        ({"num_virtual_tokens": 5}, ("shape (4, 32), expected (5, 32)",)),
        ({"token_dim": 31}, ("shape (4, 32), expected (4, 31)",)),
    ],
    ids=str,
)
def test_adapters_that_are_no_soft_prompt(
    values: dict[str, Any], fragments: tuple[str, ...], adapter: Path, tmp_path: Path
):
    folder = _with(adapter, tmp_path / "adapter", **values)
    refused(run("import", folder, "--output", tmp_path / "out"), str(folder), *fragments)
    assert not (tmp_path / "out").exists()


def test_an_adapter_with_resized_embeddings(tiny_model_dir: Path, tmp_path: Path):
    """PEFT saves the embeddings with it; without them the prompt would stand before another model."""
    base = AutoModelForCausalLM.from_pretrained(tiny_model_dir)
    base.resize_token_embeddings(130)
    theirs = peft.get_peft_model(base, peft.PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=P))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        theirs.save_pretrained(tmp_path / "adapter", save_embedding_layers=True)
    refused(
        run("import", tmp_path / "adapter", "--output", tmp_path / "out"),
        "beside prompt_embeddings",
        "which was changed",
    )


def test_wrong_words(adapter: Path, tmp_path: Path):
    out = ["--output", tmp_path / "out"]
    refused(run("import", *out), "PEFT_DIR")
    refused(run("import", adapter), "--output")
    refused(run("import", tmp_path / "none", *out), "no prompt folder", "none")
    refused(run("import", "nobody/adapter", *out), "no prompt folder 'nobody/adapter' here", "hub")
    refused(run("import", adapter, *out, "--prompt-revision", "v1"), "is a folder, and has no revision 'v1'")
    refused(run("import", tmp_path, *out), "not a prompt folder")
    refused(run("import", adapter, *out, "--template", "chat"), "--template needs --model")
    refused(run("import", adapter, *out, "--modle", "x"), "did you mean --model?")
    shutil.copytree(adapter, tmp_path / "many" / "german")
    refused(run("import", tmp_path / "many", *out), "not a prompt folder", "Name the folder 'german' in it.")
    damaged = Path(shutil.copytree(adapter, tmp_path / "damaged"))
    (damaged / "adapter_model.safetensors").write_bytes(b"x" * 20)
    refused(run("import", damaged, *out), "not a whole safetensors file")
    (damaged / "adapter_config.json").write_text("{")
    refused(run("import", damaged, *out), "cannot read", "adapter_config.json")
    assert not (tmp_path / "out").exists()
