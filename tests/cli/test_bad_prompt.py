"""A prompt that is missing, damaged, or made for another model, and answers that cannot be given."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from architectures import build
from commands import Ran, run


def assert_refused(ran: Ran, command: str, *fragments: str) -> None:
    assert ran.code == 2, ran.err
    assert ran.err.startswith(f"ptune {command}: error: ")
    assert ran.err.count("\n") == 1, ran.err
    assert ran.out == ""
    for fragment in fragments:
        assert fragment in ran.err, ran.err


@pytest.fixture
def other_model(tmp_path: Path, tiny_model_dir: Path) -> Path:
    """The small model's folder with other weights."""
    folder = Path(shutil.copytree(tiny_model_dir, tmp_path / "other"))
    build("llama", seed=1).save_pretrained(folder)
    return folder


@pytest.fixture
def wide_model(tmp_path: Path, tiny_model_dir: Path) -> Path:
    folder = Path(shutil.copytree(tiny_model_dir, tmp_path / "wide"))
    build("llama", hidden_size=64).save_pretrained(folder)
    return folder


@pytest.mark.parametrize("command", ["generate", "chat"])
def test_another_hidden_size(command: str, prompt_dir: Path, wide_model: Path):
    for more in ([], ["--force"]):
        ran = run(command, prompt_dir, "--model", wide_model, *more, stdin="x\n")
        assert_refused(ran, command, "size 32", "have 64")


@pytest.mark.parametrize("command", ["generate", "chat"])
def test_another_fingerprint(command: str, prompt_dir: Path, other_model: Path):
    ran = run(command, prompt_dir, "--model", other_model, stdin="x\n")
    assert_refused(ran, command, "made for another model", "--force")
    forced = run(command, prompt_dir, "--model", other_model, "--force", "--max-new-tokens", 2, stdin="x\n")
    assert forced.code == 0, forced.err


def test_another_tokenizer(prompt_dir: Path, tmp_path: Path, tiny_model_dir: Path):
    folder = Path(shutil.copytree(tiny_model_dir, tmp_path / "retold"))
    core = json.loads((folder / "tokenizer.json").read_text())
    vocabulary = core["model"]["vocab"]
    first, second = list(vocabulary)[50:52]
    vocabulary[first], vocabulary[second] = vocabulary[second], vocabulary[first]
    (folder / "tokenizer.json").write_text(json.dumps(core))
    assert_refused(run("generate", prompt_dir, "x", "--model", folder), "generate", "another tokenizer", "--force")
    assert run("generate", prompt_dir, "x", "--model", folder, "--force", "--max-new-tokens", 2).code == 0


@pytest.mark.parametrize("command", ["generate", "chat", "inspect"])
def test_no_prompt_folder(command: str, tmp_path: Path):
    words = ["x"] if command == "generate" else []
    assert_refused(run(command, tmp_path / "none", *words), command, "no prompt folder", "none")
    assert_refused(run(command, tmp_path, *words), command, "not a prompt folder", "ptune.json")


@pytest.mark.parametrize("content", ['{"format_version": 1}', '{"format_ver', '{"format_version": 99}', "[]"])
@pytest.mark.parametrize("command", ["generate", "inspect"])
def test_damaged_description(command: str, content: str, prompt_dir: Path, tmp_path: Path):
    folder = Path(shutil.copytree(prompt_dir, tmp_path / "damaged"))
    (folder / "ptune.json").write_text(content)
    assert_refused(run(command, folder, *(["x"] if command == "generate" else [])), command, "damaged")


@pytest.mark.parametrize("command", ["generate", "inspect"])
def test_cut_weights(command: str, prompt_dir: Path, tmp_path: Path):
    folder = Path(shutil.copytree(prompt_dir, tmp_path / "cut"))
    weights = folder / "adapter_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-4])
    ran = run(command, folder, *(["x"] if command == "generate" else []))
    assert_refused(ran, command, "adapter_model.safetensors does not match its checksum")


@pytest.mark.parametrize(
    ("flags", "fragment"),
    [
        (["--max-new-tokens", 0], "--max-new-tokens: must be at least 1, not 0"),
        (["--temperature", -1], "--temperature: must be at least 0"),
        (["--temperature", "nan"], "--temperature: must be at least 0"),
        (["--top-p", 2], "--top-p: must be from 0 to 1, not 2"),
        (["--num-beams", "x"], "--num-beams: 'x' is not a whole number"),
        (["--dtype", "float8"], "invalid choice: 'float8'"),
        (["--device", "nowhere"], "unknown device 'nowhere'"),
        (["--template", "nothing"], "unknown template 'nothing'"),
        (["--template", "chat"], "no chat template"),
        (["--no-prompt", "--compare"], "not allowed with"),
        (["--max-new-tokns", 1], "did you mean --max-new-tokens?"),
        (["more", "words"], "unexpected argument 'more'"),
        (["--max-new-tokens", 127], "Lower --max-new-tokens to"),
    ],
)
def test_generate_refuses(flags: list[object], fragment: str, prompt_dir: Path):
    assert_refused(run("generate", prompt_dir, "x", *flags), "generate", fragment)


def test_generate_without_text(prompt_dir: Path):
    assert_refused(run("generate", prompt_dir, stdin=" \n"), "generate", "no text to answer")
    assert_refused(run("generate"), "generate", "DIR")
    assert_refused(run("generate", prompt_dir, "x" * 300), "generate", "leave 0 of the model's context")
