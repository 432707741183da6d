"""What a prompt folder says reaches a model card, a template or a terminal as text, and nothing else."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import yaml

from ptune.config import PromptTuningConfig
from ptune.data.template import get_template
from ptune.errors import ConfigError, PTuneError, one_line, printable, shown
from ptune.saved.card import model_card
from ptune.saved.format import SavedPrompt, write_prompt

NASTY = "a'\n---\n# <script>alert(1)</script> [x](http://x) ![p](http://p) `c` | d \x1b[2J\ud800"


def _card(**values: object) -> str:
    config = {"num_virtual_tokens": 2, "token_dim": 4, "base_model_name_or_path": NASTY}
    return model_card({"config": config, **values})


def test_a_card_has_one_front_matter_and_no_markup_of_a_value():
    card = _card(data=NASTY, template=NASTY, encoder=NASTY, metrics={NASTY: NASTY, "loss": 1.5, "sure": True})
    front, _, body = card.removeprefix("---\n").partition("\n---\n")
    assert yaml.safe_load(front) == {"library_name": "ptune", "tags": ["p-tuning", "soft-prompt", "peft"]}
    assert card.count("\n---\n") == 1
    rows = [line for line in body.splitlines() if line.startswith("| ")]
    assert len(rows) == 2 + 8
    for row in rows:
        plain = row.replace("\\\\", "").replace("\\<", "").replace("\\[", "").replace("\\`", "").replace("\\|", "")
        assert not set("<[`\x1b\ud800") & set(plain), row
        assert plain.count("|") == 3
    assert "True" in card
    card.encode()


def test_a_hub_id_is_named_in_the_front_matter():
    config = {"num_virtual_tokens": 2, "token_dim": 4, "base_model_name_or_path": "some/model-1.5_b"}
    front = model_card({"config": config}).split("---")[1]
    assert yaml.safe_load(front)["base_model"] == "some/model-1.5_b"


def test_a_prompt_trained_on_a_file_of_a_strange_name_can_be_saved(tmp_path: Path):
    config = PromptTuningConfig(num_virtual_tokens=2, token_dim=4, base_model_name_or_path="/models/\udce9t\udce9")
    vectors = torch.ones(2, 4)
    saved = SavedPrompt(
        config=config, vectors=vectors, encoder={"embedding.weight": vectors}, details={"data": "\udce9"}
    )
    assert "udce9" in (write_prompt(tmp_path / "p", saved) / "README.md").read_text(encoding="utf-8")


class _Tokenizer:
    eos_token = "</s>"


def test_a_folders_template_is_never_a_file(tmp_path: Path):
    path = tmp_path / "secret.txt"
    path.write_text("{instruction} the secret {output}")
    assert get_template(f"@{path}", _Tokenizer()).text == "{instruction} the secret {output}"
    with pytest.raises(ConfigError, match="--template"):
        get_template(f"@{path}", _Tokenizer(), files=False)
    odd = get_template("@{instruction}: {output}", _Tokenizer(), files=False)
    assert odd.prompt("Q").prompt == "@Q: "


@pytest.mark.parametrize(
    ("value", "wanted"),
    [
        ("\x1b[2J", r"'\x1b[2J'"),
        ("\u202egnp", r"'\u202egnp'"),
        ("\ud800", r"'\ud800'"),
        ("é好", "'é好'"),
        (5, "5"),
        (["a"], "['a']"),
        (None, "None"),
    ],
)
def test_values_are_shown_in_short_and_without_controls(value: object, wanted: str):
    assert shown(value) == wanted


def test_a_number_that_python_does_not_write_is_shown_by_its_kind():
    assert shown(10**5000) == "<int>"


def test_large_and_deep_values_are_shown_in_short():
    deep: list[object] = []
    for _ in range(100_000):
        deep = [deep]
    for value in (
        "x" * 10**6,
        "\x1b" * 10**6,
        list(range(10**6)),
        {str(n): n for n in range(10**5)},
        deep,
        b"x" * 10**6,
    ):
        assert len(shown(value)) <= 160, type(value)
        assert shown(value).isprintable()


def test_a_line_keeps_the_way_out_however_long_the_message():
    line = one_line(PTuneError("begins " + "x\x1b\n" * 10**5 + " ends", hint="The way out."))
    assert line.isprintable()
    assert len(line) < 1300
    assert line.startswith("begins x\\x1b x")
    assert line.endswith(" ends The way out.")
    assert printable("tab\there") == "tab\\there"
