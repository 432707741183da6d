"""A model with prompts in its vocabulary answers, through transformers alone, as ptune does behind them."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from ptune import Answerer, load_model, load_tokenizer
from ptune.errors import ConfigError, ModelError, OutputError, PromptError
from ptune.saved.as_model import export_model as exporting
from ptune.saved.as_model.export_model import export_model
from ptune.saved.opened_folder import open_folder
from vocabulary_models import INSIDE, MODELS, OWN

NEW_TOKENS = 8
WORDS = ("lamp", "Where is it?", " two  blanks", "{x} 'y' \"z\" \\n", "a\nb", "42", "the store", "Human:", "no", "ab")
INPUTS = [f"{one}{other}" for one in WORDS for other in ("", ".", "!", " and", " 7")]


def opened(**folders: Path) -> dict[str, Any]:
    return {name: open_folder(folder) for name, folder in folders.items()}


class Plain:
    """The folder as transformers opens it, and nothing of ptune's."""

    def __init__(self, folder: Path) -> None:
        self.model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
        self.tokenizer = AutoTokenizer.from_pretrained(folder)

    def text(self, messages: Sequence[Mapping[str, str]], **more: Any) -> str:
        return self.tokenizer.apply_chat_template(list(messages), tokenize=False, add_generation_prompt=True, **more)

    def greedy(self, text: str) -> list[int]:
        given = self.tokenizer(text, add_special_tokens=False, return_tensors="pt")
        out = self.model.generate(**given, max_new_tokens=NEW_TOKENS, do_sample=False)
        return out[0, given["input_ids"].shape[1] :].tolist()


def ptunes(answerer: Answerer, text: str, *, with_prompt: bool = True) -> list[int]:
    ids = answerer.encode(text)
    out = answerer.model.generate(
        ids, max_new_tokens=NEW_TOKENS, do_sample=False, prompt_names=None if with_prompt else [None]
    )
    return [one for one in out[0, ids.shape[1] :].tolist() if one >= 0]


def user(text: str) -> dict[str, str]:
    return {"role": "user", "content": text}


@pytest.mark.parametrize("name", MODELS)
def test_answers_are_ptunes_own(
    name: str, model_of: Callable[[str], Path], prompt_of: Callable[..., Path], tmp_path: Path
):
    folders = {
        "a": prompt_of(name),
        "b.own": prompt_of(name, OWN, tokens=3, seed=1),
        "c": prompt_of(name, "chat", seed=2),
    }
    found = export_model(opened(**folders), tmp_path / "out")
    plain = Plain(tmp_path / "out")
    known = len(load_tokenizer(str(model_of(name))))
    assert found.first_ids == {"a": known, "b.own": known + 6, "c": known + 9}
    rows = max(known + 15, MODELS[name].get("vocab_size", 128))
    assert plain.model.get_input_embeddings().weight.shape[0] == plain.model.config.vocab_size == rows
    assert plain.model.get_output_embeddings().weight is not plain.model.get_input_embeddings().weight
    differ = 0
    for key, folder in folders.items():
        answerer = Answerer.open(folder, dtype="float32", device="cpu", self_check=False)
        for text in INPUTS if key == "a" else INPUTS[::5]:
            wanted = ptunes(answerer, text)
            by_variable = plain.text([user(text)], soft_prompt=key)
            assert by_variable == plain.text([{"role": "system", "content": f"ptune:{key}"}, user(text)])
            assert plain.greedy(by_variable) == wanted, (key, text)
            if text in INPUTS[::5]:
                differ += wanted != ptunes(answerer, text, with_prompt=False)
    assert differ > 5, "the prompts change nothing"
    untouched = Plain(model_of(name))
    for text in INPUTS[::5]:
        assert plain.text([user(text)]) == untouched.text([user(text)])
        assert plain.greedy(text) == untouched.greedy(text)
        assert plain.greedy(plain.text([user(text)])) == untouched.greedy(untouched.text([user(text)]))


@pytest.mark.parametrize("name", ["bloom", "llama"])
def test_virtual_tokens_inside_the_text(name: str, prompt_of: Callable[..., Path], tmp_path: Path):
    folder = prompt_of(name, INSIDE)
    export_model(opened(mid=folder), tmp_path / "out")
    plain, answerer = Plain(tmp_path / "out"), Answerer.open(folder, dtype="float32", device="cpu")
    text = plain.text([user("where?")], soft_prompt="mid")
    tokens = [f"<|ptune:mid:{at}|>" for at in range(6)]
    assert text == "".join([*tokens[:2], "Ask where?", *tokens[2:5], " now", tokens[5], ": "])
    for asked in INPUTS[::5]:
        assert plain.greedy(plain.text([user(asked)], soft_prompt="mid")) == ptunes(answerer, asked)


def test_other_engines_have_the_rows_alone(prompt_of: Callable[..., Path], tmp_path: Path):
    """Without transformers' list of suppressed tokens, none of them is likely, and none has another's chance."""
    export_model(opened(a=prompt_of("bloom")), tmp_path / "out")
    plain = Plain(tmp_path / "out")
    ids = plain.tokenizer(plain.text([user("Where is my order?")], soft_prompt="a"), return_tensors="pt")["input_ids"]
    logits = plain.model(ids).logits[0].detach()
    shares = logits.softmax(-1)
    assert float(shares[:, 128:].sum(-1).max()) < 6 / 128
    assert plain.model.generation_config.suppress_tokens == list(range(128, 134))
    # Tied, as the model was, the same tokens take much of it.
    hidden = plain.model(ids, output_hidden_states=True).hidden_states[-1][0].detach()
    tied = (hidden @ plain.model.get_input_embeddings().weight.detach().T).softmax(-1)
    assert float(tied[:, 128:].sum(-1).max()) > 0.1


def test_without_running_the_model_each_row_is_the_mean(prompt_of: Callable[..., Path], tmp_path: Path):
    found = export_model(opened(a=prompt_of("gemma3")), tmp_path / "out", measure=False)
    assert (found.silent.how, found.silent.largest_share) == ("mean", None)
    plain = Plain(tmp_path / "out")
    ids = torch.randint(4, 128, (1, 60), generator=torch.Generator().manual_seed(3))
    assert float(plain.model(ids).logits[0].softmax(-1)[:, 128:].max()) <= 1 / 128


def test_the_rest_of_the_model_is_the_same_bytes(
    model_of: Callable[[str], Path], prompt_of: Callable[..., Path], tmp_path: Path
):
    export_model(opened(a=prompt_of("qwen2")), tmp_path / "out", max_shard_size="20KB")
    index = json.loads((tmp_path / "out" / "model.safetensors.index.json").read_text())
    assert len(set(index["weight_map"].values())) > 3
    before = load_file(model_of("qwen2") / "model.safetensors")
    after = {}
    for name in set(index["weight_map"].values()):
        assert (tmp_path / "out" / name).stat().st_size < 40_000
        after |= load_file(tmp_path / "out" / name)
    assert index["metadata"]["total_size"] == sum(one.nbytes for one in after.values())
    assert set(after) == {*before, "lm_head.weight"}
    table = before.pop("model.embed_tokens.weight")
    for key, tensor in before.items():
        assert torch.equal(after[key], tensor), key
    assert torch.equal(after["model.embed_tokens.weight"][:128], table[:128])
    assert torch.equal(after["lm_head.weight"][:128], table[:128])
    # Five rows that the table had to spare, and one more.
    assert after["model.embed_tokens.weight"].shape == (134, 32)


def test_a_cast_model(prompt_of: Callable[..., Path], tmp_path: Path):
    export_model(opened(a=prompt_of("gemma3")), tmp_path / "out", dtype="bfloat16")
    with safe_open(tmp_path / "out" / "model.safetensors", framework="pt") as stored:
        assert {str(stored.get_tensor(key).dtype) for key in stored.keys()} == {"torch.bfloat16"}  # noqa: SIM118
    assert json.loads((tmp_path / "out" / "config.json").read_text())["dtype"] == "bfloat16"
    # The layer's own output is the prompt's vector, rounded once or twice.
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    vectors = load_file(prompt_of("gemma3") / "adapter_model.safetensors")["prompt_embeddings"]
    given = model.get_input_embeddings()(torch.arange(128, 134)).float()
    assert float((given - vectors).abs().max() / vectors.abs().max()) < 2**-7


def test_stored_in_several_files_and_under_shorter_names(
    model_of: Callable[[str], Path], prompt_of: Callable[..., Path], tmp_path: Path
):
    """As GPT-2's own checkpoint: its tensors' names begin behind `transformer.`."""
    source = tmp_path / "source"
    shutil.copytree(model_of("gpt2"), source)
    tensors = load_file(source / "model.safetensors")
    short = {key.removeprefix("transformer."): tensor for key, tensor in tensors.items()}
    save_file(short, source / "model.safetensors", metadata={"format": "pt"})
    export_model(opened(a=prompt_of("gpt2")), tmp_path / "out", model=str(source))
    plain, answerer = Plain(tmp_path / "out"), Answerer.open(prompt_of("gpt2"), dtype="float32", device="cpu")
    for text in INPUTS[::10]:
        assert plain.greedy(plain.text([user(text)], soft_prompt="a")) == ptunes(answerer, text)


def test_a_hundred_prompts(prompt_of: Callable[..., Path], tmp_path: Path):
    folders = {f"p{at}": prompt_of("llama", seed=at % 7) for at in range(100)}
    found = export_model(opened(**folders), tmp_path / "out")
    plain = Plain(tmp_path / "out")
    assert found.vocabulary == plain.model.config.vocab_size == 128 + 600
    for at in (0, 50, 99):
        answerer = Answerer.open(folders[f"p{at}"], dtype="float32", device="cpu")
        assert plain.greedy(plain.text([user("lamp")], soft_prompt=f"p{at}")) == ptunes(answerer, "lamp")


def test_ptune_takes_it_as_a_model(prompt_of: Callable[..., Path], tmp_path: Path):
    export_model(opened(a=prompt_of("bloom")), tmp_path / "out")
    assert load_model(str(tmp_path / "out"), device="cpu").config.vocab_size == 134
    assert len(load_tokenizer(str(tmp_path / "out"))) == 134
    with pytest.raises(PromptError, match="made for another model"):
        Answerer.open(prompt_of("bloom"), model=str(tmp_path / "out"), device="cpu")
    with pytest.raises(ModelError, match=r"soft prompts among its tokens already.*from the model"):
        export_model(opened(a=prompt_of("bloom")), tmp_path / "more", model=str(tmp_path / "out"), force=True)
    assert not (tmp_path / "more").exists()


def test_the_wrong_model_is_refused(model_of: Callable[[str], Path], prompt_of: Callable[..., Path], tmp_path: Path):
    with pytest.raises(PromptError, match=r"made for another model.*fingerprint"):
        export_model(opened(a=prompt_of("bloom")), tmp_path / "out", model=str(model_of("llama")))
    with pytest.raises(PromptError, match="made for another model"):
        export_model(opened(a=prompt_of("llama"), b=prompt_of("mistral")), tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["", "a b", "a|>", "../x", "-x", "ä", "x" * 65, "a\n", "'+x+'"])
def test_names_that_cannot_be_tokens(name: str, prompt_of: Callable[..., Path], tmp_path: Path):
    with pytest.raises(ConfigError, match="cannot be part of a token"):
        export_model(opened(**{name: prompt_of("bloom")}), tmp_path / "out")


def test_a_template_is_no_program(prompt_of: Callable[..., Path], tmp_path: Path):
    """What a prompt folder says is written, whatever Jinja would make of it."""
    hostile = (
        "'}}{% for x in range(9) %}{{{{x}}}}{# {{instruction}} ' + messages | string + ' \\x41 \\ %} "
        "{instruction}\u2028\x07{output}"
    )
    folder = prompt_of("llama", hostile, seed=5)
    export_model(opened(a=folder), tmp_path / "out")
    plain = Plain(tmp_path / "out")
    asked = Answerer.open(folder, device="cpu").template.prompt("hello").prompt
    assert plain.text([user("hello")], soft_prompt="a").endswith(asked)
    assert "{# {instruction} '" in asked


def test_what_a_prompt_has_no_place_for(prompt_of: Callable[..., Path], tmp_path: Path):
    export_model(opened(own=prompt_of("llama", OWN), two=prompt_of("llama")), tmp_path / "out")
    plain = Plain(tmp_path / "out")
    system, turn = {"role": "system", "content": "Be brief."}, {"role": "assistant", "content": "Yes."}
    for messages, said in (
        ([system, user("x")], "no place for a system message"),
        ([user("x"), turn, user("y")], "without earlier turns"),
    ):
        with pytest.raises(Exception, match=said):
            plain.text(messages, soft_prompt="own")
    with pytest.raises(Exception, match="no soft prompt other"):
        plain.text([user("x")], soft_prompt="other")
    answerer = Answerer.open(prompt_of("llama"), device="cpu")
    meant = answerer.template.prompt("y", history=[("user", "x"), ("assistant", "Yes.")], system="Be brief.").prompt
    assert plain.text([system, user("x"), turn, user("y")], soft_prompt="two").endswith("|>" + meant)
    parts = [{"role": "user", "content": [{"type": "text", "text": "y"}]}]
    assert plain.text(parts, soft_prompt="two") == plain.text([user("y")], soft_prompt="two")


def test_a_model_without_a_chat_template(
    tiny_model_dir: Path, model_of: Callable[[str], Path], prompt_of: Callable[..., Path], tmp_path: Path
):
    shutil.copytree(model_of("llama"), tmp_path / "bare")
    (tmp_path / "bare" / "chat_template.jinja").unlink()
    export_model(opened(a=prompt_of("llama")), tmp_path / "out", model=str(tmp_path / "bare"))
    plain = Plain(tmp_path / "out")
    assert plain.text([user("x")], soft_prompt="a").endswith("|>Human: x\n\nAssistant: ")
    with pytest.raises(Exception, match="no chat template of its own"):
        plain.text([user("x")])


def test_nothing_is_lost(prompt_of: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    out, prompts = tmp_path / "out", opened(a=prompt_of("bloom"))
    export_model(prompts, out)
    with pytest.raises(OutputError, match=r"not empty.*--overwrite"):
        export_model(prompts, out)
    (out / "mine.txt").write_text("mine")
    with pytest.raises(OutputError, match=r"mine\.txt.*would be lost"):
        export_model(prompts, out, overwrite=True)
    (out / "mine.txt").unlink()
    before = sorted((path.name, path.read_bytes()) for path in out.iterdir())

    def full(*args: object, **values: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(exporting, "write_model", full)
        with pytest.raises(OutputError, match="No space left"):
            export_model(prompts, out, overwrite=True)
    assert sorted((path.name, path.read_bytes()) for path in out.iterdir()) == before
    export_model(opened(b=prompt_of("bloom", seed=1)), out, overwrite=True)
    assert "ptune:b:0" in (out / "tokenizer.json").read_text()
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    other = tmp_path / "other"
    other.mkdir()
    (other / "config.json").write_text("{}")
    with pytest.raises(OutputError, match="no export of ptune's"):
        export_model(prompts, other, overwrite=True)


def test_a_layer_that_does_more_than_look_up_is_refused(prompt_of: Callable[..., Path], tmp_path: Path):
    """The written model is compared with the prompt before the model, and goes where they differ."""
    prompts = opened(a=prompt_of("llama"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("ptune.saved.as_model.table.embedding_scale", lambda layer: 3.0)
        with pytest.raises(ModelError, match="logits differ"):
            export_model(prompts, tmp_path / "out")
    assert list(tmp_path.iterdir()) == []
