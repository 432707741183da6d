"""The prompts that are served, by name: added, replaced and removed while requests run.

A request asks for a prompt once and keeps what it gets; the registry only decides what the next one gets. A folder is
read and checked whole before it takes the place of another. What it was trained with (model, tokenizer) is compared for
each combination once: fingerprints of a large vocabulary take a tenth of a second, and a server may have a thousand
prompts of one model.

Names and folders from outside: a name is a word of letters, digits, `_` and `-`; a folder is one below the root, links
followed.
"""

from __future__ import annotations

import re
import threading
from collections.abc import Mapping
from itertools import count
from pathlib import Path

from transformers import PreTrainedTokenizerBase

from ptune.answering import check_answers_texts
from ptune.errors import PromptError, shown, unknown
from ptune.model.wrapper import PTunedModel
from ptune.prompt.build import check_prompt_name, check_room
from ptune.saved.opened_folder import OpenedFolder, open_folder
from ptune.saved.prompt_io import load_prompt
from ptune.saved.prompt_template import template_of
from ptune.serving.prompt_facts import facts_of
from ptune.serving.served_prompt import ServedPrompt

_FOLDER = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,127}(/[A-Za-z0-9_][A-Za-z0-9._-]{0,127}){0,7}")
_OF_THE_MODEL = ("base_fingerprint", "base_unquantized_fingerprint", "tokenizer_fingerprint")


class PromptRegistry:
    """What `model` in a request can name.

    Args:
        model: The frozen model.
        tokenizer: Its tokenizer.
        base_name: What requests call the frozen model alone.
        force: Accept prompts of another model or tokenizer.
        elsewhere: The model runs elsewhere, and is sent virtual-token embeddings: a gateway's is.
    """

    def __init__(
        self,
        model: PTunedModel,
        tokenizer: PreTrainedTokenizerBase,
        *,
        base_name: str,
        force: bool = False,
        elsewhere: bool = False,
    ) -> None:
        self._model, self._tokenizer, self._force = model, tokenizer, force
        self.base_name, self._elsewhere = base_name, elsewhere
        self._prompts: dict[str, ServedPrompt] = {}
        self._fitting: set[tuple[object, ...]] = set()
        self._numbers = count(1)
        self._lock = threading.Lock()

    @property
    def prompts(self) -> Mapping[str, ServedPrompt]:
        """All prompts by name, as they are now."""
        return self._prompts

    def get(self, name: str) -> ServedPrompt | None:
        """The prompt of a name; None for the frozen model alone.

        Raises:
            PromptError: There is no such prompt.
        """
        found = self._prompts.get(name)
        if found is None and name != self.base_name:
            raise unknown("model", name, [self.base_name, *self._prompts], error=PromptError)
        return found

    def add(self, name: str, folder: Path) -> ServedPrompt:
        """Read a prompt folder and serve it, in place of what had its name.

        Raises:
            PromptError: The name cannot be used; or the folder is missing, damaged, or for another model.
            ConfigError: Its template cannot be used, or it leaves no room for a text.
        """
        self._check_name(name)
        return self.put(self._read(name, open_folder(folder)))

    def put(self, prompt: ServedPrompt) -> ServedPrompt:
        """Serve a prompt that has been read, in place of what had its name.

        Raises:
            PromptError: The name cannot be used.
        """
        self._check_name(prompt.name)
        with self._lock:
            before = self._prompts.get(prompt.name)
            self._prompts = {**self._prompts, prompt.name: prompt}
        self._retire(before)
        return prompt

    def remove(self, name: str) -> ServedPrompt:
        """Serve a prompt no longer.

        Raises:
            PromptError: There is none of that name.
        """
        with self._lock:
            if name not in self._prompts:
                raise unknown("prompt", name, self._prompts, error=PromptError)
            left = dict(self._prompts)
            prompt = left.pop(name)
            self._prompts = left
        self._retire(prompt)
        return prompt

    def _check_name(self, name: str) -> None:
        if check_prompt_name(name) == self.base_name:
            raise PromptError(f"{name!r} is what the frozen model is called here.", hint="Choose another name.")

    def _retire(self, prompt: ServedPrompt | None) -> None:
        if prompt is not None:
            prompt.retired = True
            self._model.prefixes.forget(prompt.key)

    def _read(self, name: str, opened: OpenedFolder) -> ServedPrompt:
        check_answers_texts(opened)
        if self._elsewhere and opened.is_deep:
            raise PromptError(
                f"{opened.path} holds keys and values of every layer, which no server elsewhere is sent.",
                hint="Serve it here, without --upstream.",
            )
        noted = tuple(opened.details.get(one) for one in _OF_THE_MODEL)
        known = self._force or noted in self._fitting
        opened.check_tokenizer(self._tokenizer, force=known)
        encoder, config = load_prompt(self._model.base, opened, trainable=False, force=known)
        check_room(config, self._model.context_length)
        template = template_of(opened, self._tokenizer, config)
        self._fitting.add(noted)
        return ServedPrompt(
            name=name,
            key=f"{name}.{next(self._numbers)}",
            folder=opened.path,
            encoder=encoder.eval(),
            config=config,
            template=template,
            facts=facts_of(opened, config),
        )


def folder_below(root: Path, name: str) -> Path:
    """The folder of a name from outside, below a root.

    Args:
        root: The folder of all prompts.
        name: Words of letters, digits, `.`, `_` and `-` that do not begin with `.` or `-`, with `/` between them.

    Raises:
        PromptError: It is no such name, there is no such folder, or a link leads out of the root.
    """
    if not _FOLDER.fullmatch(name):
        raise PromptError(
            f"{shown(name)} cannot name a folder of prompts.",
            hint="Use letters, digits, '.', '_' and '-', with '/' between folders.",
        )
    top = root.resolve()
    try:
        folder = (top / name).resolve(strict=True)
    except (OSError, RuntimeError):
        folder = None
    if folder is None or not folder.is_dir():
        raise PromptError(
            f"there is no folder {shown(name)} below the root.", hint="Put the prompt folder there first."
        )
    if folder == top or not folder.is_relative_to(top):
        raise PromptError(f"{shown(name)} leads out of the root.", hint="Copy the folder itself there.")
    return top / name
