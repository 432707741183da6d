"""Models and tokenizers that are missing, damaged, or would run code."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from architectures import build
from robustness.workshop import Case, Place, Words

_G = "model and tokenizer"
_CODE = 'open("ran", "w").close()\n'


def _broken(change: Callable[[Path], object], **flags: object) -> Callable[[Place], Words]:
    """A run on a copy of the model with something changed."""

    def make(at: Place) -> Words:
        folder = at.model()
        change(folder)
        return at.train(model=folder, **flags)

    return make


def _config(**changes: Any) -> Callable[[Path], object]:
    def change(folder: Path) -> None:
        path = folder / "config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | changes))

    return change


def _written(name: str, content: str | bytes) -> Callable[[Path], object]:
    def change(folder: Path) -> None:
        (folder / name).write_bytes(content if isinstance(content, bytes) else content.encode())

    return change


def _cut(folder: Path) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-1000])


def _pickled(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    (folder / "pytorch_model.bin").write_bytes(b"cposix\nsystem\n(S'touch stolen'\ntR.")


def _own_code(folder: Path) -> None:
    _config(model_type="mine", auto_map={"AutoConfig": "mine.Config", "AutoModelForCausalLM": "mine.Model"})(folder)
    (folder / "mine.py").write_text(_CODE)


def _without_tokenizer(folder: Path) -> None:
    for path in folder.glob("tokenizer*"):
        path.unlink()


def _small_embedding(folder: Path) -> None:
    build("llama", vocab_size=60).save_pretrained(folder)


def _chat(text: str) -> Callable[[Path], object]:
    def change(folder: Path) -> None:
        path = folder / "tokenizer_config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | {"chat_template": text}))
        (folder / "chat_template.jinja").unlink(missing_ok=True)

    return change


def _other_weights(at: Place) -> Words:
    folder = at.model()
    build("llama", seed=1).save_pretrained(folder)
    return ["generate", at.kit.prompt, "x", "--model", folder]


def _wider(at: Place) -> Words:
    folder = at.model()
    build("llama", hidden_size=64).save_pretrained(folder)
    return ["generate", at.kit.prompt, "x", "--model", folder, "--force"]


def _other_tokenizer(at: Place) -> Words:
    folder = at.model()
    core = json.loads((folder / "tokenizer.json").read_text())
    vocabulary = core["model"]["vocab"]
    first, second = list(vocabulary)[50:52]
    vocabulary[first], vocabulary[second] = vocabulary[second], vocabulary[first]
    (folder / "tokenizer.json").write_text(json.dumps(core))
    return ["generate", at.kit.prompt, "x", "--model", folder]


def _empty(at: Place) -> Words:
    (at.at / "empty").mkdir()
    return at.train(model=at.at / "empty")


MODEL = (
    Case(_G, "no such folder", lambda at: at.train(model=at.at / "nothing"), ("no model folder", "nothing")),
    Case(_G, "an empty folder", _empty, ("empty",)),
    Case(_G, "a hub id, and no network", lambda at: at.train(model="nobody/such-a-model"), ("nobody/such-a-model",)),
    Case(_G, "config.json is not JSON", _broken(_written("config.json", '{"model_ty')), ("model",)),
    Case(_G, "a model type that nobody knows", _broken(_config(model_type="nonsense")), ("nonsense",)),
    Case(
        _G,
        "an encoder-decoder",
        _broken(_config(model_type="t5", architectures=["T5ForConditionalGeneration"])),
        ("is an encoder-decoder (t5), not a causal language model", "train it with --task seq2seq"),
    ),
    Case(_G, "code of its own", _broken(_own_code), ("model needs code of its own", "--trust-remote-code")),
    Case(
        _G,
        "a size of its layers that does not fit",
        _broken(_config(hidden_size=33)),
        ("hidden size (33) is not a multiple",),
    ),
    Case(_G, "weights cut short", _broken(_cut), ("model",)),
    Case(_G, "weights that are a pickle", _broken(_pickled), ("are a pickle", "not opened")),
    Case(_G, "no tokenizer", _broken(_without_tokenizer), ("holds no tokenizer",)),
    Case(_G, "tokenizer.json is not JSON", _broken(_written("tokenizer.json", "{")), ("tokenizer",)),
    Case(
        _G,
        "tokenizer.json of a kind that nobody knows",
        _broken(_written("tokenizer.json", '{"version": "1.0", "added_tokens": [], "model": {"type": "Nothing"}}')),
        ("cannot load the tokenizer",),
    ),
    Case(_G, "more tokens than the embedding has rows", _broken(_small_embedding), ("60 rows",)),
    Case(_G, "no chat template", _broken(lambda folder: None, template="chat"), ("no chat template", "tutorial")),
    Case(
        _G,
        "a chat template that divides by zero",
        _broken(_chat("{{ 1 / 0 }}"), template="chat"),
        ("refuses the messages", "zero"),
    ),
    Case(
        _G,
        "a chat template that reaches for Python",
        _broken(_chat("{{ ''.__class__.__mro__[1].__subclasses__() }}"), template="chat"),
        ("refuses the messages", "unsafe"),
    ),
    Case(_G, "a chat template that cannot be read", _broken(_chat("{% for %}"), template="chat"), ("chat template",)),
    Case(_G, "a GGUF file of nonsense", lambda at: at.train(model=at.file("m.gguf", b"GGUF nonsense")), ("m.gguf",)),
    Case(_G, "a prompt for other weights", _other_weights, ("made for another model", "--force")),
    Case(_G, "a prompt for another width", _wider, ("size 32", "have 64")),
    Case(_G, "a prompt for another tokenizer", _other_tokenizer, ("another tokenizer", "--force")),
)
