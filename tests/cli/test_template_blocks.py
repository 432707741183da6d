"""A template with virtual tokens among its words, from `ptune train` to an answer; and where it cannot be expressed."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from safetensors.torch import load_file
from torch.nn import functional as F
from transformers import AutoTokenizer, LlamaForCausalLM

from commands import Ran, run, train_words
from ptune import Answerer, PTunedModel, embed_text
from ptune.errors import ConfigError, PromptError

TEMPLATE = "{prompt:3}{instruction}{prompt:2:ask} It was {output}."
NEW = 6


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, tiny_model_dir: Path, data_file: Path, ptune_cache: Path) -> Path:
    """A prompt trained with `TEMPLATE`. Read only."""
    made = tmp_path_factory.mktemp("prompts") / "inside"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PTUNE_CACHE", str(ptune_cache))
        words = train_words(tiny_model_dir, data_file, made, template=TEMPLATE, eval_rows=4, learning_rate=0.05)
        done = run(*words, "--json")
    assert done.code == 0, done.err
    return made


def by_hand(model_dir: Path, folder: Path) -> tuple[Any, Any, Any]:
    """The model, its tokenizer, and the embeddings of a question as the template writes it."""
    tokenizer, model = AutoTokenizer.from_pretrained(model_dir), LlamaForCausalLM.from_pretrained(model_dir)
    vectors = load_file(folder / "adapter_model.safetensors")["prompt_embeddings"]
    table = model.get_input_embeddings().weight

    def question(text: str) -> torch.Tensor:
        given, words = (table[tokenizer(part)["input_ids"]] for part in (text, " It was "))
        return torch.cat([vectors[:3], given, vectors[3:], words])

    return tokenizer, model, question


@torch.no_grad()
def answer_by_hand(model_dir: Path, folder: Path, text: str) -> str:
    """Greedy tokens, one forward pass each over embeddings put together by hand."""
    tokenizer, model, question = by_hand(model_dir, folder)
    embeds, new = question(text), []
    while len(new) < NEW and (not new or new[-1] != tokenizer.eos_token_id):
        new.append(int(model(inputs_embeds=embeds[None]).logits[0, -1].argmax()))
        embeds = torch.cat([embeds, model.get_input_embeddings().weight[new[-1:]]])
    return str(tokenizer.decode(new, skip_special_tokens=True))


def refused(ran: Ran, *fragments: str) -> None:
    assert (ran.code, ran.out) == (2, ""), ran.err
    assert ran.err.count("\n") == 1, ran.err
    for fragment in fragments:
        assert fragment in ran.err, ran.err


def test_what_is_stored(folder: Path) -> None:
    details = json.loads((folder / "ptune.json").read_text())
    assert details["template"] == TEMPLATE
    assert (details["config"]["num_virtual_tokens"], details["config"]["tokens_in_text"]) == (5, 2)
    assert details["recipe"]["num_virtual_tokens"] == 5
    assert "PEFT cannot" in (folder / "README.md").read_text()


def test_the_held_out_loss_is_that_of_the_row_by_hand(folder: Path, tiny_model_dir: Path, data_file: Path) -> None:
    tokenizer, model, question = by_hand(tiny_model_dir, folder)
    rows = json.loads(data_file.read_text())
    again = folder.parent / "again"
    ran = run(
        *train_words(tiny_model_dir, data_file, again, template=TEMPLATE, eval_data=data_file, init_from=folder),
        *("--max-steps", 1, "--learning-rate", 1e-30, "--json"),
    )
    assert ran.code == 0, ran.err
    total, count = 0.0, 0
    for row in rows:
        answer = torch.tensor(tokenizer(f"{row['output']}.{tokenizer.eos_token}")["input_ids"])
        embeds = torch.cat([question(row["instruction"]), model.get_input_embeddings()(answer)])
        with torch.no_grad():
            logits = model(inputs_embeds=embeds[None]).logits[0, -len(answer) - 1 : -1]
        total, count = total + float(F.cross_entropy(logits, answer, reduction="sum")), count + len(answer)
    assert json.loads(ran.out)["held_out_loss_after"] == pytest.approx(total / count, rel=1e-5)


def test_answers(folder: Path, tiny_model_dir: Path) -> None:
    wanted = answer_by_hand(tiny_model_dir, folder, "green red")
    ran = run("generate", folder, "green red", "--max-new-tokens", NEW)
    assert (ran.code, ran.out, ran.err) == (0, f"{wanted}\n", "")
    ran = run("chat", folder, "--max-new-tokens", NEW, stdin="green red\n")
    assert wanted in ran.out
    answerer = Answerer.open(folder, device="cpu")
    assert answerer.answer("green red", max_new_tokens=NEW) == wanted
    assert answerer.room(answerer.encode("green red")) == 128 - 5 - len(
        answerer.tokenizer("green red")["input_ids"] + answerer.tokenizer(" It was ")["input_ids"]
    )
    ran = run("generate", folder, "green red", "--max-new-tokens", NEW, "--no-prompt")
    plain = answerer.tokenizer("green red")["input_ids"] + answerer.tokenizer(" It was ")["input_ids"]
    out = LlamaForCausalLM.from_pretrained(tiny_model_dir).generate(
        torch.tensor([plain]), max_new_tokens=NEW, do_sample=False
    )
    assert ran.out == answerer.tokenizer.decode(out[0, len(plain) :], skip_special_tokens=True) + "\n"


def test_inspect_shows_the_template_and_where_each_virtual_token_stands(folder: Path) -> None:
    ran = run("inspect", folder, "--no-nearest")
    assert TEMPLATE in ran.out
    assert ran.out.count("{prompt:2:ask}") == 3
    facts = json.loads(run("inspect", folder, "--no-nearest", "--json").out)
    assert (facts["template"], facts["virtual_tokens"], facts["tokens_in_text"]) == (TEMPLATE, 5, 2)
    assert facts["places"] == [*["{prompt:3}"] * 3, *["{prompt:2:ask}"] * 2]


def test_saved_and_loaded_it_stays_what_it_is(folder: Path, tmp_path: Path) -> None:
    for trainable in (True, False):
        loaded = PTunedModel.from_pretrained(folder, device="cpu", trainable=trainable).eval()
        again = loaded.save_pretrained(tmp_path / str(trainable))
        assert json.loads((again / "ptune.json").read_text())["template"] == TEMPLATE
        ids = torch.tensor([[10, 11, -4, -5, 12]])
        other = PTunedModel.from_pretrained(again, base=loaded.base).eval()
        assert torch.equal(other(ids).logits, loaded(ids).logits)
    with pytest.raises(KeyError, match="P_TUNING_IN_TEXT"):
        peft.PeftModel.from_pretrained(loaded.base, folder)
    shutil.copytree(folder, tmp_path / "cut")
    (tmp_path / "cut" / "ptune.json").unlink()
    with pytest.raises(PromptError, match=r"virtual tokens inside the text, and no ptune\.json that says how"):
        PTunedModel.from_pretrained(tmp_path / "cut", base=loaded.base)


@pytest.mark.parametrize("form", ["peft", "embeds", "vllm"])
def test_exports_are_refused(form: str, folder: Path, tmp_path: Path) -> None:
    output = tmp_path / ("out.safetensors" if form == "embeds" else "out")
    ran = run("export", folder, "--to", form, "--output", output)
    refused(ran, "2 of the prompt's 5 virtual tokens stand inside the text", "puts all of them before it")
    assert not output.exists()


def test_a_template_that_leads_alone_is_a_plain_prompt(tiny_model_dir: Path, data_file: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    ran = run(*train_words(tiny_model_dir, data_file, out, template="{prompt}{instruction}: {output}"))
    assert ran.code == 0, ran.err
    details = json.loads((out / "ptune.json").read_text())
    assert details["template"] == "{prompt:10}{instruction}: {output}"
    assert (details["config"]["num_virtual_tokens"], details["config"]["tokens_in_text"]) == (10, 0)
    plain = tmp_path / "plain"
    assert run(*train_words(tiny_model_dir, data_file, plain, template="{instruction}: {output}")).code == 0
    for name in ("encoder.safetensors", "adapter_model.safetensors", "adapter_config.json"):
        assert (out / name).read_bytes() == (plain / name).read_bytes()
    assert run("export", out, "--to", "vllm", "--output", tmp_path / "vllm").code == 0
    assert (
        embed_text(str(tiny_model_dir), details["template"], "x").shape
        == embed_text(str(tiny_model_dir), "{instruction}: {output}", "x").shape
    )


def test_a_template_that_does_not_fit_the_prompt(folder: Path, prompt_dir: Path, tiny_model_dir: Path) -> None:
    ran = run("generate", folder, "x", "--template", "{instruction} {output}")
    refused(ran, "has no {prompt:N}, and the prompt in", "5 virtual tokens, 2 of them inside the text")
    ran = run("generate", prompt_dir, "x", "--template", TEMPLATE)
    refused(ran, "{prompt:3}, {prompt:2:ask}", "4 virtual tokens, 0 of them inside the text")
    assert run("generate", prompt_dir, "x", "--template", "{prompt}{instruction} {output}").code == 0
    with pytest.raises(ConfigError, match="inside the text"):
        embed_text(str(tiny_model_dir), TEMPLATE, "x")


def test_a_start_from_it_takes_the_places_of_the_new_template(
    folder: Path, tiny_model_dir: Path, data_file: Path, tmp_path: Path
) -> None:
    for number, (template, inside, more) in enumerate(
        [
            ("{prompt:5}{instruction} {output}", 0, {}),
            ("{prompt:4}{instruction}{prompt:1} {output}", 1, {}),
            (TEMPLATE, 2, {"encoder": "residual"}),
        ]
    ):
        out = tmp_path / str(number)
        ran = run(*train_words(tiny_model_dir, data_file, out, template=template, init_from=folder, **more))
        assert ran.code == 0, ran.err
        assert json.loads((out / "ptune.json").read_text())["config"]["tokens_in_text"] == inside
    ran = run(*train_words(tiny_model_dir, data_file, tmp_path / "x", template=TEMPLATE, num_virtual_tokens=4))
    refused(ran, "num_virtual_tokens=4, but the template has 5: {prompt:3}, {prompt:2:ask}.")


def test_a_comparison_has_methods_without_virtual_tokens(tiny_model_dir: Path, data_file: Path, tmp_path: Path) -> None:
    words = ("--methods", "mlp", "--template", TEMPLATE, "--max-steps", 1)
    ran = run("compare", "--model", tiny_model_dir, "--data", data_file, "--output", tmp_path / "out", *words)
    assert ran.code == 2
    assert "not every method of a comparison has virtual tokens" in ran.err
