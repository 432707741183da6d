"""What the bad inputs are made from, how one is run, and what came back.

A case gets a folder of its own and breaks something in it. Then everything in the folder is noted, the command runs in
this process, and everything is noted again: nothing may have changed, come or gone.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import stat
import struct
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from architectures import build
from commands import Ran, run, train_words

ROWS = '[{"instruction": "a", "output": "b"}, {"instruction": "c", "output": "d"}]'
SECRET = "the content of a file that is nobody's business"
_WHOLE = 16 * 2**20
"""Larger files (holes, mostly) are compared by size and time alone."""


@dataclass(frozen=True)
class Kit:
    """A small model with a tokenizer, and a prompt for it. Read only."""

    model: Path
    prompt: Path

    @classmethod
    def make(cls, folder: Path) -> Kit:
        """Build both; the cache that `PTUNE_CACHE` names is used."""
        model, rows = folder / "model", folder / "rows.json"
        build("llama").save_pretrained(model)
        _tokenizer().save_pretrained(model)
        rows.write_text(ROWS, encoding="utf-8")
        prompt = folder / "prompt"
        done = run(*train_words(model, rows, prompt, max_steps=1, num_virtual_tokens=4, encoder="mlp"))
        assert done.code == 0, done.err
        return cls(model, prompt)


def _tokenizer() -> Any:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    special = ["<pad>", "<eos>", "<bos>", "<unk>"]
    signs = [
        pre_tokenizers.ByteLevel(add_prefix_space=False).pre_tokenize_str(chr(code))[0][0] for code in range(32, 127)
    ]
    vocabulary = {piece: number for number, piece in enumerate(dict.fromkeys([*special, *signs, "Ċ"]))}
    core = Tokenizer(models.BPE(vocab=vocabulary, merges=[], unk_token="<unk>"))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(
        tokenizer_object=core, pad_token="<pad>", eos_token="<eos>", bos_token="<bos>", unk_token="<unk>"
    )


@dataclass(frozen=True)
class Place:
    """The folder of one case, and ways to make broken things in it."""

    at: Path
    kit: Kit

    def file(self, name: str, content: str | bytes) -> Path:
        """A file."""
        path = self.at / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content if isinstance(content, bytes) else content.encode("utf-8", "surrogatepass"))
        return path

    def secret(self) -> Path:
        """A file beside the prompt folder that nothing may be read from."""
        return self.file("secret.txt", SECRET)

    def model(self) -> Path:
        """A copy of the model to break."""
        return Path(shutil.copytree(self.kit.model, self.at / "model"))

    def prompt(self, **changes: Any) -> Path:
        """A copy of the prompt; named values of its `ptune.json` replaced."""
        folder = Path(shutil.copytree(self.kit.prompt, self.at / "prompt"))
        self.secret()
        if changes:
            self.edit(folder, lambda details: details.update(changes))
        return folder

    def configured(self, **changes: Any) -> Path:
        """A copy of the prompt; named values of its configuration replaced."""
        folder = self.prompt()
        self.edit(folder, lambda details: details["config"].update(changes))
        return folder

    def edit(self, folder: Path, change: Callable[[dict[str, Any]], object]) -> Path:
        """Change `ptune.json`, its checksums with it: what stands behind them is to be reached."""
        details = json.loads((folder / "ptune.json").read_bytes())
        if isinstance(details.get("sha256"), dict):
            present = [name for name in details["sha256"] if (folder / name).is_file()]
            details["sha256"] = {name: hashlib.sha256((folder / name).read_bytes()).hexdigest() for name in present}
        change(details)
        (folder / "ptune.json").write_bytes(json.dumps(details).encode())
        return folder

    def adapter(self, **changes: Any) -> Path:
        """A folder as PEFT writes it: no `ptune.json`."""
        folder = self.prompt()
        for name in ("ptune.json", "encoder.safetensors", "README.md"):
            (folder / name).unlink()
        config = json.loads((folder / "adapter_config.json").read_bytes()) | changes
        (folder / "adapter_config.json").write_text(json.dumps(config), encoding="utf-8")
        return folder

    def weights(self, change: Callable[[dict[str, Any], bytes], tuple[dict[str, Any], bytes]]) -> Path:
        """A copy of the prompt with header and numbers of its vectors changed, and checksums that fit."""
        folder = self.prompt()
        path = folder / "adapter_model.safetensors"
        content = path.read_bytes()
        length = struct.unpack("<Q", content[:8])[0]
        header, body = change(json.loads(content[8 : 8 + length]), content[8 + length :])
        text = json.dumps(header).encode()
        path.write_bytes(struct.pack("<Q", len(text)) + text + body)
        return self.edit(folder, lambda details: None)

    def train(self, **flags: object) -> list[object]:
        """The words of a run that would be fine but for these flags."""
        data = flags.pop("data", None) or self.file("rows.json", ROWS)
        model = flags.pop("model", self.kit.model)
        output = flags.pop("output", self.at / "new" / "out")
        bare = [f"--{name}" for name, value in flags.items() if value is True]
        given = {name: value for name, value in flags.items() if value is not True}
        return train_words(model, data, output, *bare, **given)  # type: ignore[arg-type]

    def on_data(self, name: str, content: str | bytes, **flags: object) -> list[object]:
        """The words of a run on this data file."""
        return self.train(data=self.file(name, content), **flags)


Words = Sequence[object]
Made = Words | Callable[[], Ran]


@dataclass(frozen=True)
class Case:
    """One bad input.

    Args:
        group: The part of the table.
        name: What is wrong, in a few words.
        make: Breaks something in a place; gives the words of a command line, or a function that runs something and
            says what came back.
        says: What the error's line must hold.
        code: The exit code.
        stdin: What stands on standard input.
        leaves: Patterns of files that may be new or changed afterwards (a run that had begun keeps its log).
        needs: A package of an extra, without which there is nothing to refuse.
    """

    group: str
    name: str
    make: Callable[[Place], Made]
    says: tuple[str, ...]
    code: int = 2
    stdin: str = ""
    leaves: tuple[str, ...] = ()
    needs: str | None = None


@dataclass(frozen=True)
class Result:
    """What came back."""

    case: Case
    ran: Ran
    command: str
    changed: tuple[str, ...] = field(default=())
    """Files that were changed, came or went, against the rules."""

    @property
    def line(self) -> str:
        """The last line of standard error."""
        return (self.ran.err.strip().splitlines() or [""])[-1]

    def faults(self) -> list[str]:
        """What is not as it should be."""
        found = []
        if self.ran.code != self.case.code:
            found.append(f"exit code {self.ran.code}")
        if "Traceback" in self.ran.err:
            found.append("a traceback")
        if self.case.code == 2 and self.ran.err.count("\n") != 1 and not self.case.leaves:
            found.append(f"{self.ran.err.count(chr(10))} lines")
        if self.ran.out and self.case.code == 2:
            found.append("something on standard output")
        if not self.line.isprintable():
            found.append("control characters")
        if len(self.line) > 1500:
            found.append(f"a line of {len(self.line)} characters")
        if SECRET in self.ran.err + self.ran.out:
            found.append("the content of another file")
        found += [f"without {part!r}" for part in self.case.says if part not in self.line]
        found += [f"changed {name}" for name in self.changed]
        return found


def digest(folder: Path) -> dict[str, str]:
    """Everything in a folder: kind, mode, target or content."""
    noted = {}
    for path in sorted(folder.rglob("*")):
        found = path.lstat()
        if stat.S_ISLNK(found.st_mode):
            what = str(path.readlink())
        elif stat.S_ISREG(found.st_mode) and found.st_size <= _WHOLE:
            what = hashlib.sha256(path.read_bytes()).hexdigest()
        elif stat.S_ISREG(found.st_mode):
            what = f"{found.st_size} {found.st_mtime_ns}"
        else:
            what = ""
        noted[str(path.relative_to(folder))] = f"{found.st_mode:o} {what}"
    return noted


def try_case(case: Case, folder: Path, kit: Kit) -> Result:
    """Make one case in a folder of its own, and run it."""
    folder.mkdir(parents=True)
    made = case.make(Place(folder, kit))
    before, whole = digest(folder), digest(kit.model.parent)
    here = Path.cwd()
    os.chdir(folder)
    try:
        ran = made() if callable(made) else run(*made, stdin=case.stdin)
    except Exception:  # noqa: BLE001 (what escapes is shown as such)
        ran = Ran(1, "", traceback.format_exc())
    finally:
        os.chdir(here)
    after = digest(folder)
    names = sorted(name for name in before | after if before.get(name) != after.get(name))
    allowed = [re.compile(pattern) for pattern in case.leaves]
    changed = [name for name in names if not any(pattern.fullmatch(name) for pattern in allowed)]
    if digest(kit.model.parent) != whole:
        changed.append("the model or the prompt")
    command = "a call" if callable(made) else " ".join(["ptune", *map(_word, made)])
    return Result(case, ran, _short(command, folder, kit), tuple(changed))


def shown_line(result: Result, folder: Path, kit: Kit) -> str:
    """The error's line without the names of temporary folders."""
    return _short(result.line, folder, kit)


def _word(word: object) -> str:
    text = str(word)
    return f"'{text}'" if " " in text or not text else text


def _short(text: str, folder: Path, kit: Kit) -> str:
    for path, name in ((folder, ""), (kit.model.parent, "kit/")):
        text = text.replace(f"{path}/", name).replace(str(path), name or ".")
    return text
