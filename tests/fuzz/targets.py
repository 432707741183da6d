"""What is fuzzed: each target takes bytes, and no more than a `PTuneError` may come out of it.

Beyond that: the error's line is short, printable and has a way out of the middle of whatever the file said; nothing is
written, run, unpickled or connected to; and `secret.txt`, which lies beside what is read, is never opened.
"""

from __future__ import annotations

import contextlib
import gzip
import importlib.util
import io
import json
import os
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from random import Random
from typing import Any

from fuzz.folder import FIT_CHECKSUMS, FORCED, INSPECTED, TRAINABLE, mutate_folder, packed, write_folder
from fuzz.mutate import mutate_bytes, mutate_file, mutate_json, mutate_safetensors
from ptune.errors import PTuneError, one_line
from workbooks import workbook

LONGEST_LINE = 2500
SUFFIXES = (
    *(".json", ".jsonl", ".csv", ".tsv", ".parquet", ".arrow"),
    *(".txt", ".jsonl.gz", ".json.zst", ".xlsx"),
)
_FORBIDDEN = ("subprocess.Popen", "os.system", "os.exec", "socket.connect", "socket.getaddrinfo", "pickle.find_class")
_WRITING = ("os.remove", "os.rename", "os.mkdir", "os.rmdir", "shutil.rmtree", "os.symlink", "os.link", "os.truncate")


class Escaped(AssertionError):
    """Something happened that no file may cause."""


@dataclass(frozen=True)
class Target:
    """One kind of input.

    Args:
        read: Bytes and a folder to put them in → nothing; raises `PTuneError` where they are refused.
        mutate: Bytes → bytes that differ a little.
        seeds: Name → whole, valid inputs.
    """

    read: Callable[[bytes, Path], None]
    mutate: Callable[[bytes, Random], bytes]
    seeds: Callable[[], dict[str, bytes]]


class _Watch:
    """An audit hook that notes what no file may cause, while it is on."""

    def __init__(self) -> None:
        self.seen: list[str] = []
        self.on = False
        self.secret = ""
        sys.addaudithook(self)

    def __call__(self, event: str, args: tuple[Any, ...]) -> None:
        if not self.on:
            return
        if event == "open" and isinstance(args[0], str):
            writes = isinstance(args[2], int) and args[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT)
            if os.path.realpath(args[0]) == self.secret or (writes and not args[0].startswith("/dev/")):
                self.seen.append(f"open {args[0]!r}")
        elif event in _FORBIDDEN or event in _WRITING:
            self.seen.append(f"{event} {args!r:.100}")


@cache
def _watch() -> _Watch:
    return _Watch()


@contextlib.contextmanager
def watched(folder: Path) -> Iterator[None]:
    """Raise `Escaped` when what runs inside does what no file may cause."""
    watch = _watch()
    watch.seen.clear()
    watch.secret = os.path.realpath(folder.parent / "secret.txt")
    watch.on = True
    try:
        yield
    finally:
        watch.on = False
    if watch.seen:
        raise Escaped("; ".join(watch.seen[:3]))


def attempt(target: Target, data: bytes, folder: Path) -> tuple[str, str]:
    """Read one input: `read`, or the kind of error and its line. What escapes is a finding."""
    try:
        target.read(data, folder)
    except PTuneError as error:
        line = one_line(error)
        if len(line) > LONGEST_LINE or not line.isprintable():
            raise Escaped(
                f"an error of {len(line)} characters, printable: {line.isprintable()}: {line[:200]!r}"
            ) from error
        return type(error).__name__, line
    return "read", ""


# --- prompt folder -----------------------------------------------------------------------------------------------


@cache
def _model() -> Any:
    from architectures import build

    return build("llama", hidden_size=8, intermediate_size=8, num_hidden_layers=1, vocab_size=16)


class _Tokenizer:
    """What templates ask of a tokenizer."""

    eos_token = "<eos>"
    name_or_path = "none"
    chat_template = None


def read_folder(data: bytes, folder: Path) -> None:
    """A prompt folder through what reads one: sessions and training, or `ptune inspect` and the model card."""
    from ptune.cli.inspect import describe
    from ptune.data.template import get_template
    from ptune.evaluation.prompt_geometry import geometry
    from ptune.saved.card import model_card
    from ptune.saved.format import read_prompt
    from ptune.saved.opened_folder import open_folder
    from ptune.saved.prompt_io import load_prompt

    flags = write_folder(folder, data)
    with watched(folder):
        if not flags & INSPECTED:
            opened = open_folder(folder)
            encoder, _ = load_prompt(_model(), opened, trainable=bool(flags & TRAINABLE), force=bool(flags & FORCED))
            encoder()
            get_template(opened.details.get("template") or "tutorial", _Tokenizer(), files=False)  # type: ignore[arg-type]
            opened.base_name()
            return
        saved = read_prompt(folder)
        model_card({**saved.details, "config": saved.config.to_dict()}).encode()
        shape = geometry(saved.vectors)
        assert bool(shape.norms.isfinite().all())
        json.dumps(describe(open_folder(folder), saved))


@cache
def folder_seeds() -> dict[str, bytes]:
    """Folders that ptune wrote with each encoder, format 1, and PEFT adapters of both kinds."""
    import tempfile

    import torch

    from ptune import PromptEncoderConfig, PTunedModel

    seeds = {}
    with tempfile.TemporaryDirectory() as place, torch.random.fork_rng(devices=[]):
        for kind in ("mlp", "lstm", "residual", "embedding"):
            torch.manual_seed(0)
            config = PromptEncoderConfig(
                num_virtual_tokens=2, encoder_reparameterization_type=kind.upper(), encoder_hidden_size=2,
                encoder_num_layers=1, base_model_name_or_path="some/model", revision="main",
            )  # fmt: skip
            folder = Path(place) / kind
            PTunedModel(_model(), config).save_pretrained(
                folder, template="{instruction}\n{output}", tokenizer_fingerprint="0" * 32, data="rows.json",
                data_report={"kept": 3, "files": ["rows.json"]}, tokens_report={"kept": 3},
                recipe={"max_length": 64, "encoder": kind}, metrics={"train_loss": 1.5, "steps": 2},
            )  # fmt: skip
            files = {path.name: path.read_bytes() for path in folder.iterdir()}
            details = json.loads(files["ptune.json"])
            details["versions"] = {"ptune": "0"}  # the seeds do not change with every release
            files["ptune.json"] = json.dumps(details).encode()
            seeds[kind] = packed(files, FIT_CHECKSUMS)
            if kind in ("mlp", "embedding"):
                seeds[f"peft-{kind}"] = packed(
                    {name: files[name] for name in ("adapter_config.json", "adapter_model.safetensors")}
                )
        details["format_version"] = 1
        files["ptune.json"] = json.dumps(details).encode()
        seeds["format-1"] = packed(files, FIT_CHECKSUMS)
    return seeds


# --- data ---------------------------------------------------------------------------------------------------------


def read_data(data: bytes, folder: Path) -> None:
    """A data file: the first byte picks the kind and whether answers are needed, the rest is the file."""
    from ptune.data.encodings import likely_encodings
    from ptune.data.records import load_examples
    from ptune.data.template import TutorialTemplate

    first = data[0] if data else 0
    path = folder / f"rows{SUFFIXES[first % len(SUFFIXES)]}"
    path.write_bytes(data[1:])
    with watched(folder):
        likely_encodings(data[1:])
        if len(data) % 4 == 3:
            with contextlib.suppress(PTuneError):
                load_examples(path, encoding=("utf-16", "gb18030", "cp1252")[len(data) % 3])
        examples = load_examples(path, require_output=first < 128)
        assert all(line.isprintable() for line in examples.report.lines())
        json.dumps(examples.report.to_dict())
        for example in examples[:50]:
            with contextlib.suppress(PTuneError):
                made = TutorialTemplate("</s>").segments(example, "all-turns")
                "".join(text for pair in made.pairs for text in pair).encode()


@cache
def data_seeds() -> dict[str, bytes]:
    """A small file of every kind and layout."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    rows = [{"instruction": "Name it.", "input": "red", "output": "a colour"}, {"instruction": "And", "output": "so"}]
    chat = [{"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]}]
    called = {"role": "assistant", "content": None, "tool_calls": [{"function": {"name": "f", "arguments": "{}"}}]}
    tools = [
        {"from": "human", "value": [{"type": "text", "text": "q"}]},
        {**called, "train": False},
        {"role": "tool", "content": 5, "tool_call_id": "1"},
        {"from": "gpt", "value": "a", "weight": 1},
        {"from": "human", "value": "more"},
    ]
    squad = {"title": "t", "paragraphs": [{"context": "c", "qas": [{"question": "q", "answers": [{"text": "a"}]}]}]}
    history = [{"prompt": "q", "completion": "a", "history": [["q0", "a0"]], "system": "s"}]
    labelled = pa.table(
        {"text": ["a", "b"], "label": pa.array([0, 1])},
        metadata={
            b"huggingface": json.dumps(
                {"info": {"features": {"label": {"names": ["no", "yes"], "_type": "ClassLabel"}}}}
            ).encode()
        },
    )
    plain = pa.table({"instruction": ["a", "b"], "output": ["c", None]})
    nested = pa.Table.from_pylist(chat)

    def parquet(table: pa.Table) -> bytes:
        out = io.BytesIO()
        pq.write_table(table, out, compression="none")
        return out.getvalue()

    def arrow(table: pa.Table, opened: Any) -> bytes:
        out = io.BytesIO()
        with opened(out, table.schema) as writer:
            writer.write_table(table)
        return out.getvalue()

    csv = b'instruction,output\n"a, b",c\nd,"e\nf"\n'
    contents = {
        "list.json": json.dumps(rows).encode(),
        "wrapped.json": json.dumps({"version": 1, "data": rows}).encode(),
        "chat.jsonl": b"\n".join(json.dumps(row).encode() for row in chat + history[:0]),
        "history.jsonl": json.dumps(history[0]).encode(),
        "label.jsonl": b'\xef\xbb\xbf{"text": "t", "label": 1}\n\n{"text": "u", "label": true}',
        "tools.jsonl": json.dumps({"conversations": tools, "system": "s"}).encode(),
        "squad.json": json.dumps({"data": [squad]}).encode(),
        "splits.json": json.dumps({"train": rows, "test": rows[:1]}, indent=1).encode(),
        "odd.jsonl": json.dumps({"Question ": 5, "answer": True, "context": None}).encode(),
        "semicolons.csv": csv.replace(b",", b";"),
        "book.txt": "A text.\n\nOf two paragraphs, ü.".encode(),
        "packed.jsonl.gz": gzip.compress(b"".join(json.dumps(row).encode() + b"\n" for row in rows), mtime=0),
        "packed.json.zst": bytes(pa.Codec("zstd").compress(json.dumps(rows).encode(), asbytes=True)),
        "a.csv": csv,
        "a.tsv": csv.replace(b",", b"\t"),
        "plain.parquet": parquet(plain),
        "labelled.parquet": parquet(labelled),
        "nested.parquet": parquet(nested),
        "plain.arrow": arrow(plain, pa.ipc.new_stream),
        "labelled.arrow": arrow(labelled, pa.ipc.new_stream),
        "nested-file.arrow": arrow(nested, pa.ipc.new_file),
    }
    if importlib.util.find_spec("openpyxl"):
        contents["sheet.xlsx"] = workbook()
    return {name: bytes([SUFFIXES.index(f".{name.split('.', 1)[1]}")]) + content for name, content in contents.items()}


def mutate_data(data: bytes, rng: Random) -> bytes:
    """JSON by its values, archives by what is in them, the other kinds by their bytes; now and then another kind."""
    kind, content = data[:1] or b"\0", data[1:]
    if rng.random() < 0.03:
        kind = bytes([rng.randrange(256)])
    suffix = SUFFIXES[kind[0] % len(SUFFIXES)]
    for _ in range(rng.choice((1, 1, 2, 4))):
        content = mutate_file(content, suffix, rng)
    return kind + content


# --- recipe -------------------------------------------------------------------------------------------------------


def read_yaml(data: bytes, folder: Path) -> None:
    """A recipe, as `ptune train --config` reads it before it loads anything."""
    from ptune.cli.recipe_file import own_values, read_recipe
    from ptune.data.layouts import check_columns
    from ptune.recipe import TrainRecipe

    path = folder / "recipe.yaml"
    path.write_bytes(data)
    with watched(folder):
        recipe = TrainRecipe(**own_values(read_recipe(path)))
        check_columns(recipe.columns or {})


def recipe_seeds() -> dict[str, bytes]:
    """Recipes with every kind of value."""
    return {
        "full": b"model: some/model\ndata: rows.json\noutput: out\nencoder: lstm\nencoder_dropout: 0.1\n"
        b"max-length: 64\ncolumns: {instruction: q, output: a}\npacking: true\nlimit: null\nlearning_rate: 5e-3\n",
        "several": b"model: m\noutput: o\ndata: [a.json, b.jsonl]\ndata_weights: [2, 5e-1]\ntrain_on: all-turns\n"
        b"encoding: gb18030\nsheet: first\n",
        "quoted": b"# a comment\nmodel: \"some/model\"\ndata: 'rows.json'\noutput: >\n  out\ntemplate: |-\n"
        b"  {instruction}\n  {output}\neval_rows: 0x10\nmax_steps: [1, 2]\n",
    }


# --- training state -----------------------------------------------------------------------------------------------


def read_state(data: bytes, folder: Path) -> None:
    """The state of an optimizer or of a run."""
    from ptune.saved.state import state_of

    with watched(folder):
        state_of(data, str(folder / "training_state.safetensors"))


@cache
def state_seeds() -> dict[str, bytes]:
    """A state with every kind of value."""
    import numpy as np
    import torch

    from ptune.saved.state import state_bytes

    value = {
        "optimizer": {"state": {0: {"step": torch.tensor(3.0), "exp_avg": torch.ones(2, 2)}}, "groups": [{"lr": 1e-3}]},
        "numpy": ("MT19937", np.arange(4, dtype=np.uint32), 1, 0, 0.0),
        "python": (3, (1, 2, 3), None),
    }
    return {"run": state_bytes(value)}


def mutate_state(data: bytes, rng: Random) -> bytes:
    """The structure in the header by its values, else the file as safetensors."""
    if rng.random() < 0.5:
        return mutate_safetensors(data, rng)
    try:
        length = int.from_bytes(data[:8], "little")
        header = json.loads(data[8 : 8 + length])
        structure = header["__metadata__"]["structure"].encode()
        header["__metadata__"]["structure"] = mutate_json(structure, rng).decode("utf-8", "replace")
        text = json.dumps(header).encode()
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError):
        return mutate_bytes(data, rng)
    return len(text).to_bytes(8, "little") + text + data[8 + length :]


TARGETS: dict[str, Target] = {
    "prompt-folder": Target(read_folder, mutate_folder, folder_seeds),
    "data": Target(read_data, mutate_data, data_seeds),
    "recipe": Target(read_yaml, mutate_bytes, recipe_seeds),
    "training-state": Target(read_state, mutate_state, state_seeds),
}
