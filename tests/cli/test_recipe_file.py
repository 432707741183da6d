"""A recipe holds the same names as the command line, and the command line wins."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from commands import run


def recipe(folder: Path, text: str | bytes) -> Path:
    path = folder / "recipe.yaml"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


def test_recipe_and_flags_together(tmp_path: Path, tiny_model_dir: Path, data_file: Path):
    text = f"""
        model: {tiny_model_dir}
        data: {data_file}
        encoder: residual
        num-virtual-tokens: 3
        encoder_dropout: 1e-1
        columns: {{instruction: instruction, output: output}}
        max_steps: 9
        learning_rate: 1e-2
    """
    ran = run(
        "train", "--config", recipe(tmp_path, text), "--output", tmp_path / "out",
        "--max_steps", 1, "--num_virtual_tokens=5", "--json",
    )  # fmt: skip
    assert ran.code == 0, ran.err
    assert json.loads(ran.out)["steps"] == 1
    noted = json.loads((tmp_path / "out" / "ptune.json").read_text())
    assert (noted["encoder"], noted["config"]["num_virtual_tokens"]) == ("residual", 5)
    assert noted["recipe"]["encoder_dropout"] == 0.1
    first = json.loads((tmp_path / "out" / "metrics.jsonl").read_text().splitlines()[0])
    assert first["step"] == 1


def test_a_table_of_parts_and_devices_goes_on_in_a_resumed_run(tmp_path: Path, tiny_model_dir: Path, data_file: Path):
    """Its head lies on the disk: such a model is not packed, which shows that the table was used."""
    text = f"""
        model: {tiny_model_dir}
        data: {data_file}
        output: {tmp_path / "out"}
        device_map: {{model: cpu, lm_head: disk}}
        attn_implementation: eager
        max_steps: 2
        save_steps: 1
    """
    ran = run("train", "--config", recipe(tmp_path, text))
    assert ran.code == 0, ran.err
    assert "as for a model spread over devices" in ran.err
    noted = json.loads((tmp_path / "out" / "ptune.json").read_text())["recipe"]
    assert noted["device_map"] == {"model": "cpu", "lm_head": "disk"}
    assert noted["attn_implementation"] == "eager"
    shutil.rmtree(tmp_path / "out" / "checkpoint-2")
    again = run("train", "--resume", tmp_path / "out")
    assert again.code == 0, again.err
    assert "as for a model spread over devices" in again.err


@pytest.mark.parametrize(
    ("text", "fragments"),
    [
        ("model: [1\ndata", ["recipe.yaml:2: the recipe is not YAML"]),
        ("modle: x", ["unknown key 'modle'", "recipe.yaml", "Did you mean 'model'?"]),
        ("model: x\nlerning_rate: 1", ["unknown key 'lerning_rate'", "Did you mean 'learning_rate'?"]),
        ("- model", ["holds no keys"]),
        ("", ["holds no keys"]),
        (b"model: \xff", ["not UTF-8", "byte 7"]),
        ("max-steps: 1\nmax_steps: 2", ["a key twice"]),
        (
            "model: 5\nlimit: many\noverwrite: 'yes'\ncolumns: x",
            ["4 settings", "model must be text, not 5", "limit must be a whole number, not 'many'", "columns must be"],
        ),
        ("model: m\ndata: d\noutput: o\nlearning_rate: fast", ["recipe.yaml: argument --learning-rate", "'fast'"]),
        ("model: m\ndata: d\noutput: o\nmax_steps: [1]", ["recipe.yaml: max_steps cannot be [1]"]),
    ],
)
def test_bad_recipe(tmp_path: Path, text: str | bytes, fragments: list[str]):
    ran = run("train", "--config", recipe(tmp_path, text))
    assert ran.code == 2
    assert ran.err.count("\n") == 1, ran.err
    assert all(fragment in ran.err for fragment in fragments), ran.err


def test_missing_recipe(tmp_path: Path):
    ran = run("train", "--config", tmp_path / "no.yaml")
    assert ran.code == 2
    assert "cannot read the recipe" in ran.err
    assert "no.yaml" in ran.err


RECIPES = Path(__file__).resolve().parents[2] / "recipes"


@pytest.mark.parametrize("path", sorted(RECIPES.glob("*.yaml")), ids=lambda path: path.stem)
def test_the_recipes_of_the_repository_train(path: Path, tmp_path: Path, tiny_model_dir: Path, data_file: Path):
    ran = run(
        "train", "--config", path, "--model", tiny_model_dir, "--data", data_file, "--output", tmp_path / "out",
        "--max-steps", 2, "--max-length", 64, "--json",
    )  # fmt: skip
    assert ran.code == 0, ran.err
    assert json.loads(ran.out)["steps"] == 2
