"""Prompt folders from an untrusted source."""

from __future__ import annotations

import os
import struct
from pathlib import Path
from typing import Any

from robustness.workshop import Case, Place, Words

_G = "prompt folder"
_WEIGHTS = "adapter_model.safetensors"
_PICKLE = b"cposix\nsystem\n(S'touch stolen'\ntR."
"""A pickle that would make a file."""


def _inspect(folder: Path) -> Words:
    return ["inspect", folder, "--no-nearest"]


def _generate(folder: Path) -> Words:
    return ["generate", folder, "x"]


def _pickle_alone(at: Place) -> Words:
    folder = at.adapter()
    (folder / _WEIGHTS).unlink()
    (folder / "adapter_model.bin").write_bytes(_PICKLE)
    return _generate(folder)


def _pickle_under_a_safe_name(at: Place) -> Words:
    folder = at.prompt()
    (folder / _WEIGHTS).write_bytes(_PICKLE)
    return _generate(at.edit(folder, lambda details: None))


def _cut(at: Place) -> Words:
    folder = at.prompt()
    (folder / _WEIGHTS).write_bytes((folder / _WEIGHTS).read_bytes()[:-100])
    return _inspect(folder)


def _cut_with_fitting_checksum(at: Place) -> Words:
    folder = at.prompt()
    (folder / _WEIGHTS).write_bytes((folder / _WEIGHTS).read_bytes()[:-100])
    return _inspect(at.edit(folder, lambda details: None))


def _flipped(at: Place) -> Words:
    folder = at.prompt()
    content = bytearray((folder / _WEIGHTS).read_bytes())
    content[-10] ^= 4
    (folder / _WEIGHTS).write_bytes(content)
    return _generate(folder)


def _flipped_encoder(at: Place) -> Words:
    folder = at.prompt()
    content = bytearray((folder / "encoder.safetensors").read_bytes())
    content[-10] ^= 4
    (folder / "encoder.safetensors").write_bytes(content)
    return at.train(init_from=folder)


def _header_of_exabytes(at: Place) -> Words:
    folder = at.prompt()
    content = (folder / _WEIGHTS).read_bytes()
    (folder / _WEIGHTS).write_bytes(struct.pack("<Q", 2**62) + content[8:])
    return _inspect(at.edit(folder, lambda details: None))


def _entry(**values: Any) -> Any:
    """A change of the vectors' entry in the header."""

    def change(header: dict[str, Any], body: bytes) -> tuple[dict[str, Any], bytes]:
        header["prompt_embeddings"] |= values
        return header, body

    return change


def _numbers(number: float) -> Any:
    return lambda header, body: (header, struct.pack("<f", number) * (len(body) // 4))


def _many_tensors(header: dict[str, Any], body: bytes) -> tuple[dict[str, Any], bytes]:
    empty = {"dtype": "F32", "shape": [0], "data_offsets": [len(body), len(body)]}
    return header | {f"t{number}": empty for number in range(2000)}, body


def _named(name: str) -> Any:
    return lambda header, body: ({name: header["prompt_embeddings"]}, body)


def _wider(header: dict[str, Any], body: bytes) -> tuple[dict[str, Any], bytes]:
    header["prompt_embeddings"] |= {"shape": [4, 64], "data_offsets": [0, 2 * len(body)]}
    return header, body * 2


def _json(content: str | bytes) -> Any:
    def make(at: Place) -> Words:
        folder = at.prompt()
        (folder / "ptune.json").write_bytes(content if isinstance(content, bytes) else content.encode())
        return _inspect(folder)

    return make


def _linked(target: str, name: str = _WEIGHTS) -> Any:
    def make(at: Place) -> Words:
        folder = at.prompt()
        (folder / name).unlink()
        (folder / name).symlink_to(target)
        return _inspect(folder)

    return make


def _pipe(at: Place) -> Words:
    folder = at.prompt()
    (folder / "ptune.json").unlink()
    os.mkfifo(folder / "ptune.json")
    return _inspect(folder)


def _folder_as_file(at: Place) -> Words:
    folder = at.prompt()
    (folder / _WEIGHTS).unlink()
    (folder / _WEIGHTS).mkdir()
    return _inspect(folder)


def _hole(at: Place) -> Words:
    folder = at.prompt()
    with (folder / _WEIGHTS).open("wb") as file:
        file.truncate(2**40)
    return _inspect(folder)


def _without(name: str) -> Any:
    def make(at: Place) -> Words:
        folder = at.prompt()
        (folder / name).unlink()
        return _inspect(folder)

    return make


PROMPT = (
    Case(_G, "weights that are a pickle", _pickle_alone, ("adapter_model.bin is a pickle", "could run code")),
    Case(_G, "a pickle named .safetensors", _pickle_under_a_safe_name, ("not a whole safetensors file",)),
    Case(_G, "weights cut short", _cut, ("does not match its checksum", "download or copy it again")),
    Case(_G, "weights cut short, checksum made to fit", _cut_with_fitting_checksum, ("not a whole safetensors file",)),
    Case(_G, "one bit of the weights flipped", _flipped, ("does not match its checksum",)),
    Case(_G, "one bit of the encoder flipped", _flipped_encoder, ("encoder.safetensors does not match its checksum",)),
    Case(_G, "a header of 4 EiB", _header_of_exabytes, ("not a whole safetensors file",)),
    Case(
        _G,
        "a tensor of 4 TiB",
        lambda at: _inspect(at.weights(_entry(shape=[2**30, 2**10], data_offsets=[0, 2**42]))),
        ("not a whole safetensors file",),
    ),
    Case(
        _G,
        "a tensor whose size overflows",
        lambda at: _inspect(at.weights(_entry(shape=[2**40, 2**40]))),
        ("not a whole safetensors file",),
    ),
    Case(_G, "a file of 1 TiB", _hole, ("1,099,511,627,776 bytes, more than the",)),
    Case(_G, "2,000 tensors", lambda at: _inspect(at.weights(_many_tensors)), ("2,001 tensors, more than the 1,024",)),
    Case(_G, "weights that are NaN", lambda at: _generate(at.weights(_numbers(float("nan")))), ("not finite",)),
    Case(_G, "weights that are infinite", lambda at: _inspect(at.weights(_numbers(float("inf")))), ("not finite",)),
    Case(_G, "weights of 3e38", lambda at: _inspect(at.weights(_numbers(3e38))), ("so large that the length",)),
    Case(_G, "weights of another shape", lambda at: _inspect(at.weights(_wider)), ("(4, 64), expected (4, 32)",)),
    Case(_G, "weights that are whole numbers", lambda at: _inspect(at.weights(_entry(dtype="I32"))), ("torch.int32",)),
    Case(
        _G,
        "weights in 8 bits",
        lambda at: _inspect(at.weights(_entry(dtype="F8_E4M3", shape=[4, 128]))),
        ("float8_e4m3fn", "Save it again"),
    ),
    Case(
        _G,
        "a dtype that nobody knows",
        lambda at: _inspect(at.weights(_entry(dtype="F1"))),
        ("not a whole safetensors",),
    ),
    Case(
        _G,
        "weights under another name",
        lambda at: _inspect(at.weights(_named("x"))),
        ("prompt_embeddings has no tensor",),
    ),
    Case(
        _G,
        "a name that clears the terminal",
        lambda at: _inspect(
            at.weights(
                lambda header, body: (
                    header | {"\x1b[2J": {"dtype": "F32", "shape": [0], "data_offsets": [len(body)] * 2}},
                    body,
                )
            )
        ),
        ("\\x1b[2J",),
    ),
    Case(_G, "no weights", _without(_WEIGHTS), ("cannot read", "No such file")),
    Case(_G, "ptune.json is empty", _json(""), ("cannot read", "JSONDecodeError")),
    Case(_G, "ptune.json is a list", _json("[]"), ("holds a list, expected an object",)),
    Case(_G, "a JSON bomb: 200,000 lists in one another", _json("[" * 200_000), ("RecursionError",)),
    Case(
        _G, "a number of 100,000 digits", _json('{"format_version": ' + "9" * 100_000 + "}"), ("cannot read", "digits")
    ),
    Case(_G, "ptune.json of 5 MiB", _json(" " * (5 * 2**20)), ("5,242,880 bytes, more than the 4,194,304",)),
    Case(_G, "ptune.json is not text", _json(b"\xff\xfe\xfa"), ("cannot read",)),
    Case(_G, "ptune.json is a pipe", _pipe, ("ptune.json is not a regular file",)),
    Case(_G, "weights that are a folder", _folder_as_file, ("cannot read", "directory")),
    Case(_G, "a link out of the folder", _linked("../secret.txt"), ("link to a place outside its folder",)),
    Case(
        _G,
        "a link to /etc/hostname as ptune.json",
        _linked("/etc/hostname", "ptune.json"),
        ("link to a place outside",),
    ),
    Case(_G, "a link to an endless device", _linked("/dev/zero"), ("link to a place outside its folder",)),
    Case(_G, "a link to itself", _linked(_WEIGHTS), ("cannot read",)),
    Case(
        _G,
        "base model ../../x",
        lambda at: _generate(at.configured(base_model_name_or_path="../../x")),
        ("'../../x', a path that is not followed", "--model"),
    ),
    Case(
        _G,
        "base model that is a list",
        lambda at: _generate(at.configured(base_model_name_or_path=["x"])),
        ("base_model_name_or_path is ['x'], not text",),
    ),
    Case(
        _G,
        "revision ../../x",
        lambda at: _generate(at.configured(revision="../../x")),
        ("revision '../../x' cannot be",),
    ),
    Case(
        _G,
        "template @../secret.txt",
        lambda at: _generate(at.prompt(template="@../secret.txt")),
        ("unknown template in the prompt folder: '@../secret.txt'", "--template"),
    ),
    Case(
        _G,
        "template that is a table",
        lambda at: _generate(at.prompt(template={"{output}": 1})),
        ("template is", "not text"),
    ),
    Case(_G, "template of 100,000 characters", lambda at: _inspect(at.prompt(template="x" * 100_000)), ("65,536",)),
    Case(
        _G,
        "half a character in the template",
        lambda at: _inspect(at.prompt(template="\ud83d{output}")),
        ("surrogate pair",),
    ),
    Case(
        _G,
        "metrics that are a list",
        lambda at: _inspect(at.prompt(metrics=[1, 2])),
        ("metrics is [1, 2], not a table",),
    ),
    Case(
        _G, "checksums that are text", lambda at: _inspect(at.prompt(sha256="none")), ("sha256 is 'none', not a table",)
    ),
    Case(
        _G,
        "a class of another module",
        lambda at: _inspect(at.prompt(config_class="os.system")),
        ("no known class", "os.system"),
    ),
    Case(
        _G, "a format of tomorrow", lambda at: _inspect(at.prompt(format_version=99)), ("version 99", "Upgrade ptune")
    ),
    Case(
        _G,
        "10^30 virtual tokens",
        lambda at: _inspect(at.configured(num_virtual_tokens=10**30)),
        ("expected (1000000000000000000000000000000, 32)",),
    ),
    Case(
        _G, "half a virtual token", lambda at: _inspect(at.configured(num_virtual_tokens=0.5)), ("at least 1, not 0.5",)
    ),
    Case(
        _G,
        "more virtual tokens inside the text than there are",
        lambda at: _inspect(at.configured(tokens_in_text=5)),
        ("tokens_in_text must be from 0 to num_virtual_tokens=4, not 5",),
    ),
    Case(
        _G,
        "a template with 4 x 10^7 virtual tokens",
        lambda at: _generate(at.prompt(template="{prompt:9999}" * 4000 + "{input}{output}")),
        ("{prompt:9999}, …, and the prompt in", "4 virtual tokens, 0 of them inside the text"),
    ),
    Case(
        _G,
        "an encoder 10^30 wide",
        lambda at: at.train(init_from=at.configured(encoder_hidden_size=10**30)),
        ("do not fit its configuration",),
    ),
    Case(
        _G,
        "an encoder of a million layers",
        lambda at: at.train(init_from=at.configured(encoder_num_layers=10**6)),
        ("too few for the 1000000 layers",),
    ),
    Case(
        _G,
        "a start text that is a number",
        lambda at: _inspect(at.configured(init="TEXT", init_text=5)),
        ("init_text must be text, not 5",),
    ),
    Case(
        _G,
        "keys and values of 10^30 layers",
        lambda at: _inspect(at.adapter(peft_type="PREFIX_TUNING", num_layers=10**30)),
        ("prompt_embeddings has shape (4, 32), expected (4, 64000000000000000000000000000000)",),
    ),
    Case(
        _G,
        "keys and values of no layers",
        lambda at: _inspect(at.adapter(peft_type="PREFIX_TUNING", num_layers=0)),
        ("num_layers is 0, not a whole number of at least 1",),
    ),
    Case(
        _G,
        "keys of heads that do not divide them",
        lambda at: _inspect(at.adapter(peft_type="PREFIX_TUNING", num_attention_heads=5)),
        ("token_dim=32 is no multiple of num_attention_heads=5",),
    ),
    Case(
        _G,
        "a Cartridge with more frozen tokens than it has",
        lambda at: _inspect(at.adapter(peft_type="CARTRIDGE", num_frozen_tokens=5)),
        ("num_frozen_tokens must be from 0 to num_virtual_tokens=4, not 5",),
    ),
    Case(
        _G,
        "an adapter that changes the model",
        lambda at: _inspect(at.adapter(peft_type="LORA")),
        ("'LORA', not a soft prompt",),
    ),
    Case(
        _G,
        "an adapter for a task that is none",
        lambda at: _inspect(at.adapter(task_type="SEQ_CLASS")),
        ("unknown task_type 'SEQ_CLASS'", "SEQ_CLS"),
    ),
    Case(_G, "an adapter of no type", lambda at: _inspect(at.adapter(peft_type={"a": 1})), ("not a soft prompt",)),
    Case(
        _G,
        "a hostile adapter imported",
        lambda at: ["import", at.adapter(num_virtual_tokens=-1), "--output", at.at / "new"],
        ("num_virtual_tokens must be a whole number of at least 1, not -1",),
    ),
    Case(_G, "no folder", lambda at: _inspect(at.at / "none"), ("there is no prompt folder", "none")),
    Case(
        _G, "an empty folder", lambda at: _inspect(at.file("empty/sub/x", "").parents[1]), ("neither ptune.json nor",)
    ),
    Case(_G, "a folder whose name moves the cursor", lambda at: _inspect(at.at / "a\x1b[1Ab"), ("\\x1b[1A",)),
)
