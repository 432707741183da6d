"""A folder of prompt folders, watched: what appears in it is served, what changes is read again, what goes is dropped.

Looked at every second or two by `stat`: a save of ptune's is a rename, and a folder's state is told by the names,
sizes, times and numbers of its few files. What cannot be read (a copy that is not complete yet, a damaged file, a
prompt of another model) is told once in the log, leaves what was served before as it is, and is tried again when it
changes.

Prompts that were posted under a name of their own are looked after in the same way. One that was deleted over the API
stays away until its folder changes.
"""

from __future__ import annotations

import logging
import os
import threading
from dataclasses import dataclass
from pathlib import Path

from ptune.errors import PTuneError, one_line
from ptune.saved.files import SAVED
from ptune.saved.format import FILES
from ptune.serving.prompt_registry import PromptRegistry, folder_below
from ptune.serving.served_prompt import ServedPrompt

_log = logging.getLogger("ptune.serve")
State = tuple[tuple[str, int, int, int], ...]
"""Name, inode, size and time of each file of a prompt folder that is there."""


@dataclass
class _Watched:
    folder: Path
    state: State | None
    """As it was when it was last read, well or not; None: not read yet."""
    posted: bool = False


class PromptWatch:
    """Keeps a registry as a root folder is.

    Args:
        registry: What is kept up to date.
        root: Every folder in it whose name can name a prompt is one.
        seconds: Between two looks.
    """

    def __init__(self, registry: PromptRegistry, root: Path, *, seconds: float = 2.0) -> None:
        self._registry, self.root, self._seconds = registry, root.resolve(), seconds
        self._watched: dict[str, _Watched] = {}
        self._away: dict[str, State] = {}
        """Folders whose prompt was deleted over the API, as they were then."""
        self._lock = threading.Lock()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="ptune-prompts", daemon=True)

    def start(self) -> None:
        """Go on looking."""
        self._thread.start()

    def stop(self) -> None:
        """Look no more."""
        self._stop.set()
        self._thread.join(5)

    def post(self, name: str, folder: str) -> ServedPrompt:
        """Serve a folder below the root under a name; errors as for `folder_below` and `PromptRegistry.add`."""
        with self._lock:
            place = folder_below(self.root, folder)
            state = _state(place)
            prompt = self._registry.add(name, place)
            self._watched[name] = _Watched(place, state, posted=True)
            self._away.pop(name, None)
            return prompt

    def delete(self, name: str) -> ServedPrompt:
        """Serve a prompt no longer; the folder stays. Errors as for `PromptRegistry.remove`."""
        with self._lock:
            prompt = self._registry.remove(name)
            watched = self._watched.pop(name, None)
            if watched is not None and not (watched.posted and watched.folder != self.root / name):
                self._away[name] = _state(watched.folder)
            return prompt

    def look(self) -> None:
        """Bring the registry up to date."""
        with self._lock:
            states = self._there()
            for name, state in states.items():
                if name not in self._watched and self._away.get(name) != state:
                    self._away.pop(name, None)
                    self._watched[name] = _Watched(self.root / name, None)
            for name, one in list(self._watched.items()):
                seen = states.get(name) if one.folder == self.root / name else None
                self._look_at(name, one, _state(one.folder) if seen is None else seen)

    def _run(self) -> None:
        while not self._stop.wait(self._seconds):
            try:
                self.look()
            except OSError as error:
                _log.error("cannot look at the root folder", extra={"reason": one_line(error)})
            except Exception:  # noqa: BLE001  # a defect in reading one folder: the others are looked after
                _log.exception("a prompt folder could not be looked at")

    def _there(self) -> dict[str, State]:
        """The prompt folders in the root, by name."""
        with os.scandir(self.root) as entries:
            names = sorted(entry.name for entry in entries if entry.is_dir() and not entry.name.startswith("."))
        states = {name: _state(self.root / name) for name in names}
        return {name: state for name, state in states.items() if state}

    def _look_at(self, name: str, one: _Watched, state: State) -> None:
        if state == one.state:
            return
        one.state = state
        if not state:
            del self._watched[name]
            if name in self._registry.prompts:
                self._registry.remove(name)
                _log.info("prompt removed", extra={"prompt": name})
            return
        known = name in self._registry.prompts
        try:
            self._registry.add(name, folder_below(self.root, one.folder.relative_to(self.root).as_posix()))
        except (PTuneError, OSError) as error:
            kept = "the one before goes on" if known else "it is not served"
            _log.error(f"prompt folder cannot be used; {kept}", extra={"prompt": name, "reason": one_line(error)})
        else:
            _log.info("prompt replaced" if known else "prompt added", extra={"prompt": name})


def _state(folder: Path) -> State:
    found = []
    for place in (folder / SAVED, folder):
        for name in FILES if place == folder or place.is_dir() else ():
            try:
                at = os.stat(f"{place}/{name}")  # noqa: PTH116  # thousands of them, every other second
            except OSError:
                continue
            found.append((f"{place.name}/{name}", at.st_ino, at.st_size, at.st_mtime_ns))
    return tuple(found)
