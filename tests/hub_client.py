"""Uploading and downloading prompts as a program does, in a process of its own: where the hub is, is read at import.

`python tests/hub_client.py FOLDER` prints what happened in every scene as one JSON object. It works in FOLDER, which
holds `model`, a folder with the small model and its tokenizer.
"""

from __future__ import annotations

import contextlib
import io
import json
import sys
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from huggingface_hub import constants

from architectures import build
from commands import run
from prompting import encoder_prompt
from ptune.errors import PTuneError, one_line
from ptune.loading.load import load_model
from ptune.model import on_hub
from ptune.model.wrapper import PTunedModel
from ptune.saved.hub import prompt_folder

NAME = "owner/prompt"


def attempt(action: Callable[[], object]) -> str:
    """What an action gave, or the one line of its error."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            return str(action())
        except PTuneError as error:
            return f"{type(error).__name__}: {one_line(error)}"


def pull(name: str | Path = NAME, **options: Any) -> PTunedModel:
    """A prompt from the hub on the small model."""
    return PTunedModel.from_pretrained(name, base=build("llama"), **options)


def same(one: PTunedModel, other: PTunedModel) -> bool:
    """Whether two models have the same virtual tokens and prompt encoder, to the last bit."""
    first, second = one.state_dict(), other.state_dict()
    alike = list(first) == list(second) and all(torch.equal(first[name], second[name]) for name in first)
    with torch.no_grad():
        return alike and torch.equal(one.eval().encode(), other.eval().encode())


@contextlib.contextmanager
def base_loads() -> Iterator[list[tuple[str, Any]]]:
    """Notes which frozen models are asked for, and gives the small one."""
    loads: list[tuple[str, Any]] = []

    def load(name: str, *, revision: str | None = None) -> Any:
        loads.append((name, revision))
        return build("llama")

    with mock.patch.object(on_hub, "load_model", load):
        yield loads


def share() -> dict[str, Any]:
    """A prompt goes up and comes down, in two versions, beside a second one."""
    said: dict[str, Any] = {}
    model = encoder_prompt(build("llama"), base_model_name_or_path="some/base", revision="noted")
    notes = {"template": "Q: {instruction}\nA: {output}", "metrics": {"loss": 1.5}}
    said["url"] = model.push_to_hub(NAME, private=True, commit_message="First words", token="owner", **notes)
    first = said["url"].rsplit("/", 1)[1]
    there = pull(token="owner", trainable=True)
    said["same"] = same(there, model)
    folder = prompt_folder(NAME, token="owner")
    said["links"] = sorted(path.name for path in folder.iterdir() if path.is_symlink())
    said["again"] = there.save_pretrained("again").name
    with torch.no_grad():
        next(there.prompts.parameters()).add_(1)
    there.save_pretrained("trained-on")
    said["second"] = there.push_to_hub(NAME, token="owner")
    said["newest"] = same(pull(token="owner", trainable=True), there)
    said["first"] = same(pull(token="owner", trainable=True, revision=first), model)
    with base_loads() as loads:
        for options in ({}, {"base_revision": "asked"}):
            PTunedModel.from_pretrained(NAME, token="owner", revision=first, **options)
    said["loads"] = loads
    for beside in ("folder/own.py", "folder/checkpoint-2/README.md"):
        Path(beside).parent.mkdir(parents=True, exist_ok=True)
        Path(beside).write_text("not for others")
    said["saved"] = str(model.save_pretrained("folder", push_to_hub=True, repo_id="owner/both", token="owner"))
    said["loaded twice"] = [model.load_prompt("owner/both"), model.load_prompt("owner/both", name="third")]
    said["no token"] = attempt(lambda: model.push_to_hub("owner/other"))
    said["guest"] = attempt(lambda: model.push_to_hub("owner/other", token="guest"))
    said["bad name"] = attempt(lambda: model.push_to_hub("owner/a/b", token="owner"))
    said["no branch"] = attempt(lambda: model.push_to_hub(NAME, token="owner", branch="next"))
    with mock.patch.object(constants, "ENDPOINT", "http://127.0.0.1:9"):
        said["no hub"] = attempt(lambda: model.push_to_hub(NAME, token="owner"))
    answering = PTunedModel(load_model("model"))
    answering.add_prompt("default", encoder_prompt(build("llama")).prompt_configs["default"])
    answering.push_to_hub("owner/answers", token="owner")
    return said


def fetch() -> dict[str, Any]:
    """Prompts that others made, damaged or hidden, and the words for each."""
    said: dict[str, Any] = {}
    said["spiked"] = attempt(lambda: pull("user/spiked").active_prompt)
    said["spiked files"] = sorted(path.name for path in prompt_folder("user/spiked").rglob("*"))
    names = ("user/changed", "user/empty", "user/pickled", "user/gated", "user/none")
    said |= {name: attempt(lambda name=name: pull(name)) for name in names}
    # What is in the cache stays readable, as with every library of the hub's; another cache has nothing.
    hidden: list[str | bool] = [False, "guest", "stolen"]
    said["hidden"] = [attempt(lambda token=token: pull(token=token, cache_dir="nowhere")) for token in hidden]
    said["revision"] = attempt(lambda: pull(token="owner", revision="v9"))
    said["gated owner"] = attempt(lambda: pull("user/gated", token="owner").active_prompt)
    said["path"] = attempt(lambda: pull(Path("user/spiked")))
    said["slash"] = attempt(lambda: pull("user/spiked/"))
    said["plain word"] = attempt(lambda: pull("spiked"))
    encoder_prompt(build("llama"), seed=7).save_pretrained("user/spiked")
    here = pull("user/spiked", trainable=True)
    said["folder wins"] = same(here, encoder_prompt(build("llama"), seed=7))
    said["folder with revision"] = attempt(lambda: pull("user/spiked", revision="main"))
    said["elsewhere"] = attempt(lambda: pull("owner/both", cache_dir="elsewhere").active_prompt)
    said["cached elsewhere"] = Path("elsewhere/models--owner--both/snapshots").is_dir()
    said["only local"] = attempt(lambda: pull("owner/both", cache_dir="elsewhere", local_files_only=True).active_prompt)
    said["nothing local"] = attempt(lambda: pull("owner/both", cache_dir="nowhere", local_files_only=True))
    with mock.patch.object(constants, "ENDPOINT", "http://127.0.0.1:9"):
        said["no hub"] = attempt(lambda: pull("user/never"))
        said["no hub, cached"] = attempt(lambda: pull("owner/both").active_prompt)
    return said


def command() -> dict[str, Any]:
    """The commands that take a prompt, with a hub id."""
    said: dict[str, Any] = {}
    for words in (
        ("inspect", "owner/answers", "--no-nearest"),
        ("inspect", "owner/answers", "--no-nearest", "--json", "--prompt-revision", "main"),
        ("inspect", "owner/answers", "--no-nearest", "--prompt-revision", "v9"),
        ("inspect", "user/none", "--no-nearest"),
        ("generate", "owner/answers", "green", "--max-new-tokens", 3, "--json"),
        ("generate", "owner/answers", "green", "--prompt-revision", "v9"),
    ):
        ran = run(*words)
        said[" ".join(map(str, words))] = [ran.code, ran.out, ran.err]
    chat = run("chat", "owner/answers", "--max-new-tokens", 3, stdin="green\n")
    said["chat"] = [chat.code, chat.out, chat.err]
    return said


def offline() -> dict[str, Any]:
    """With HF_HUB_OFFLINE."""
    with mock.patch.object(constants, "HF_HUB_OFFLINE", True):
        return {
            "cached": attempt(lambda: pull(trainable=True).active_prompt),
            "never": attempt(lambda: pull("user/offline")),
            "revision": attempt(lambda: pull(revision="v9")),
            "push": attempt(lambda: encoder_prompt(build("llama")).push_to_hub("owner/offline", token="owner")),
        }


if __name__ == "__main__":
    torch.set_num_threads(1)
    with contextlib.chdir(sys.argv[1]), contextlib.redirect_stdout(io.StringIO()):
        happened = {scene.__name__: scene() for scene in (share, fetch, command, offline)}
    print(json.dumps(happened))
