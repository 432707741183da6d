"""Prompts on the hub: up, down, what is refused, and what is said; against a stand-in on this machine."""

from __future__ import annotations

import copy
import json
import os
import pickle
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from huggingface_hub import ModelCard, ModelHubMixin
from transformers import PreTrainedTokenizerFast

from architectures import build
from hub_stand_in import StandIn, hub_stand_in
from prompting import encoder_prompt
from ptune.errors import ConfigError, PromptError
from ptune.frozen.fingerprint import tokenizer_fingerprint
from ptune.model.wrapper import PTunedModel
from ptune.saved.format import FILES
from ptune.saved.hub import prompt_folder

TESTS = Path(__file__).resolve().parents[1]
NAME = "owner/prompt"
EVIL = dict.fromkeys(("adapter_model.bin", "pytorch_model.bin", "evil.py", "config.json"), b"\x80\x04.")


@pytest.fixture(scope="module")
def hub(tmp_path_factory: pytest.TempPathFactory):
    """The stand-in, with prompts of other people's."""
    folder = encoder_prompt(build("llama"), seed=1).save_pretrained(tmp_path_factory.mktemp("theirs"))
    good = {path.name: path.read_bytes() for path in folder.iterdir()}
    changed = bytearray(good["adapter_model.safetensors"])
    changed[-1] ^= 1
    with hub_stand_in() as running:
        running.add("user/spiked", {**good, **EVIL, "more/README.md": b"x"})
        running.add("user/changed", {**good, "adapter_model.safetensors": bytes(changed)})
        running.add("user/empty", {".gitattributes": b"", "config.json": b"{}"})
        running.add("user/pickled", {"adapter_config.json": good["adapter_config.json"], **EVIL})
        running.add("user/gated", good, gated=True)
        yield running


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory, tiny_model_dir: Path) -> Path:
    folder = tmp_path_factory.mktemp("hub")
    shutil.copytree(tiny_model_dir, folder / "model")
    return folder


@pytest.fixture(scope="module")
def happened(hub: StandIn, place: Path) -> dict[str, Any]:
    """The scenes of `hub_client`, in a process that knows the stand-in as the hub; they take their time once."""
    unset = ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE")
    environment = {
        name: value for name, value in os.environ.items() if name not in unset and not name.lower().endswith("_proxy")
    } | {
        "HF_ENDPOINT": hub.endpoint,
        "HF_HOME": str(place / "hf-home"),
        "HF_HUB_OFFLINE": "0",
        "HF_HUB_DISABLE_XET": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "OMP_NUM_THREADS": "1",
        "PTUNE_CACHE": str(place / "cache"),
        "PYTHONPATH": os.pathsep.join(map(str, (TESTS, TESTS.parent / "src"))),
        # Set by `ptune` itself when it is the first to run.
        "TQDM_DISABLE": "1",
    }
    words = [sys.executable, str(TESTS / "hub_client.py"), str(place)]
    done = subprocess.run(words, env=environment, capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, done.stderr
    scenes: dict[str, Any] = json.loads(done.stdout)
    return scenes


@pytest.fixture(scope="module")
def shared(happened: dict[str, Any]) -> dict[str, Any]:
    """What happened when prompts were shared."""
    return happened["share"]


@pytest.fixture(scope="module")
def fetched(happened: dict[str, Any]) -> dict[str, Any]:
    """What happened when prompts of other people's were fetched."""
    return happened["fetch"]


def assert_line(line: str, *fragments: str, kind: str = "PromptError") -> None:
    assert line.startswith(f"{kind}: "), line
    for fragment in fragments:
        assert fragment in line, line
    assert len(line) < 500, line


def test_up_and_down_again_to_the_last_bit(shared: dict[str, Any], hub: StandIn):
    assert shared["same"]
    repository = hub.repositories[NAME]
    assert repository.private
    assert repository.messages[0] == "First words"
    assert shared["url"].startswith(f"{hub.endpoint}/{NAME}/commit/")
    assert set(repository.files()) == set(FILES)


def test_the_card_is_the_projects_own(shared: dict[str, Any], hub: StandIn):
    first = hub.repositories[NAME].commits[shared["url"].rsplit("/", 1)[1]]
    card = first["README.md"].decode()
    assert "library_name: ptune" in card
    assert "| loss | 1.5 |" in card
    assert "PytorchModelHubMixin" not in card


def test_snapshots_are_links_into_the_cache(shared: dict[str, Any]):
    assert shared["links"] == sorted(FILES)


def test_a_loaded_prompt_keeps_what_its_folder_said(shared: dict[str, Any], place: Path):
    again, trained = (json.loads((place / name / "ptune.json").read_text()) for name in ("again", "trained-on"))
    assert again["template"] == trained["template"] == "Q: {instruction}\nA: {output}"
    # Metrics are of the prompt as it was.
    assert again["metrics"] == {"loss": 1.5}
    assert "metrics" not in trained


def test_revisions_of_prompt_and_base_are_two_things(shared: dict[str, Any]):
    assert shared["url"] != shared["second"]
    assert shared["newest"]
    assert shared["first"]
    assert shared["loads"] == [["some/base", "noted"], ["some/base", "asked"]]


def test_saving_may_upload(shared: dict[str, Any], hub: StandIn):
    assert shared["saved"] == "folder"
    assert set(hub.repositories["owner/both"].files()) == set(FILES)
    details = json.loads(hub.repositories["owner/both"].files()["ptune.json"])
    assert not {"token", "repo_id", "push_to_hub", "private"} & (set(details) | set(details["config"]))
    assert shared["loaded twice"] == ["both", "third"]


def test_uploads_that_are_refused(shared: dict[str, Any], hub: StandIn):
    assert_line(shared["no token"], "owner/other", "401", "hf auth login")
    assert_line(shared["guest"], "owner/other", "403", "may write there")
    assert_line(shared["bad name"], "owner/a/b", "Check the name")
    assert_line(shared["no branch"], NAME, "no branch 'next'", "create_branch")
    assert_line(shared["no hub"], NAME, "Check the name and the connection")
    assert "owner/other" not in hub.repositories


def test_nothing_but_a_prompt_is_downloaded(fetched: dict[str, Any], hub: StandIn):
    assert fetched["spiked"] == "default"
    assert fetched["spiked files"] == sorted(FILES)
    asked = [line for line in hub.asked if " user/spiked/resolve/" in line]
    assert {line.rsplit("/", 1)[1] for line in asked} == set(FILES)
    assert not [line for line in asked if "more/" in line]


def test_prompts_that_are_refused(fetched: dict[str, Any]):
    assert_line(fetched["user/changed"], "adapter_model.safetensors does not match its checksum")
    assert_line(fetched["user/empty"], "'user/empty' holds no prompt", "ptune.json", "adapter_config.json")
    assert_line(fetched["user/pickled"], "adapter_model.safetensors")


def test_prompts_that_are_hidden(fetched: dict[str, Any]):
    nobody, guest, stolen = fetched["hidden"]
    for line, name in ((fetched["user/none"], "user/none"), (nobody, NAME), (guest, NAME)):
        assert_line(line, f"no prompt folder {name!r} here", "on the hub no repository", "hf auth login")
    assert_line(fetched["user/gated"], "'user/gated' is gated", "Ask for access")
    assert fetched["gated owner"] == "default"
    assert_line(stolen, NAME, "401", "hf auth login")
    assert_line(fetched["revision"], NAME, "no revision 'v9'", "--prompt-revision")


def test_a_folder_is_a_folder(fetched: dict[str, Any], hub: StandIn):
    for name in ("path", "slash", "plain word"):
        assert_line(fetched[name], "there is no prompt folder", "spiked")
    assert fetched["folder wins"]
    assert_line(fetched["folder with revision"], "user/spiked is a folder", "'main'", "base_revision")
    assert not [line for line in hub.asked if line.endswith("models/spiked")]


def test_another_cache(fetched: dict[str, Any]):
    assert fetched["elsewhere"] == fetched["only local"] == "default"
    assert fetched["cached elsewhere"]
    assert_line(fetched["nothing local"], "'owner/both'", "hub's cache", "local_files_only")


def test_without_a_connection(fetched: dict[str, Any]):
    assert_line(fetched["no hub"], "'user/never'", "Check the connection")
    assert fetched["no hub, cached"] == "default"


def test_offline(happened: dict[str, Any], hub: StandIn):
    said = happened["offline"]
    assert said["cached"] == "default"
    assert_line(said["never"], "'user/offline'", "hub's cache", "HF_HUB_OFFLINE")
    assert_line(said["revision"], NAME, "'v9'", "HF_HUB_OFFLINE")
    assert_line(said["push"], "owner/offline", "HF_HUB_OFFLINE")
    assert not [line for line in hub.asked if "offline" in line]


def test_commands_take_a_hub_id(happened: dict[str, Any]):
    said = happened["command"]
    code, out, err = said["inspect owner/answers --no-nearest"]
    assert (code, err) == (0, "")
    assert out.startswith("owner/answers\n")
    code, out, err = said["inspect owner/answers --no-nearest --json --prompt-revision main"]
    assert (code, err) == (0, "")
    assert json.loads(out)["virtual_tokens"] == 6
    code, out, err = said["generate owner/answers green --max-new-tokens 3 --json"]
    assert (code, err) == (0, "")
    assert json.loads(out)["tuned"]
    assert said["chat"][0] == 0
    assert said["chat"][1].startswith("tuned> ")
    for words, fragment in (
        ("inspect owner/answers --no-nearest --prompt-revision v9", "no revision 'v9'"),
        ("inspect user/none --no-nearest", "no prompt folder 'user/none'"),
        ("generate owner/answers green --prompt-revision v9", "no revision 'v9'"),
    ):
        code, out, err = said[words]
        assert (code, out, err.count("\n")) == (2, "", 1)
        assert fragment in err


# ---- without the hub ------------------------------------------------------------------------------------------------


def test_the_mixin_leaves_the_model_alone(tmp_path: Path):
    model = encoder_prompt(build("llama"))
    assert isinstance(model, ModelHubMixin)
    assert "_hub_mixin_config" not in vars(model)
    for twin in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert torch.equal(twin.encode(), model.encode())
        assert twin.prompt_names == model.prompt_names
    assert model.config is model.base.config
    folder = model.save_pretrained(tmp_path / "prompt")
    assert {path.name for path in folder.iterdir()} == set(FILES)
    assert model.generate_model_card().text == ModelCard.load(folder / "README.md").text
    assert model.generate_model_card().data.library_name == "ptune"


@pytest.mark.parametrize("name", ["config", "model_card_kwargs", "allow_patterns", "revision"])
def test_arguments_of_the_mixin_are_no_metadata(name: str, tmp_path: Path):
    model = encoder_prompt(build("llama"))
    for action, target in ((model.save_pretrained, str(tmp_path / "p")), (model.push_to_hub, "owner/p")):
        with pytest.raises(ConfigError, match=f"{name}='x' is no metadata. Leave it out"):
            action(target, **{name: "x"})
    assert not (tmp_path / "p").exists()


def test_the_tokenizer_is_compared(tmp_path: Path, tiny_tokenizer: PreTrainedTokenizerFast):
    model = encoder_prompt(build("llama"))
    folder = model.save_pretrained(tmp_path / "prompt", tokenizer_fingerprint=tokenizer_fingerprint(tiny_tokenizer))
    silent = model.save_pretrained(tmp_path / "silent")
    other = copy.deepcopy(tiny_tokenizer)
    other.add_tokens(["more"])
    base = build("llama")
    PTunedModel.from_pretrained(folder, base=base, tokenizer=tiny_tokenizer)
    with pytest.raises(PromptError, match=r"prompt was trained with another tokenizer .*--force \(force=True\)"):
        PTunedModel.from_pretrained(folder, base=base, tokenizer=other)
    PTunedModel.from_pretrained(folder, base=base, tokenizer=other, force=True)
    model.load_prompt(folder, tokenizer=tiny_tokenizer)
    with pytest.raises(PromptError, match="another tokenizer"):
        model.load_prompt(folder, name="second", tokenizer=other)
    assert "second" not in model.prompt_names
    model.load_prompt(folder, name="second", tokenizer=other, force=True)
    model.load_prompt(silent, tokenizer=other)


def test_what_loads_the_model_is_refused_beside_a_model(tmp_path: Path):
    folder = encoder_prompt(build("llama")).save_pretrained(tmp_path / "prompt")
    with pytest.raises(ConfigError, match="base_revision, dtype: for loading the frozen model"):
        PTunedModel.from_pretrained(folder, base=build("llama"), base_revision="v1", dtype="float32")


@pytest.mark.parametrize("name", ["", "~/prompt", "./user/prompt", "../prompt", "a/b/c", "x" * 300, "a\0b", "user/--"])
def test_names_that_are_no_hub_ids(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("ptune.saved.hub.snapshot_download", None)
    assert prompt_folder(name) == Path(name)
