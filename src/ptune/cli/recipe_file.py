"""A recipe: the flags of `ptune train`, written down as YAML.

```yaml
model: builtin:smollm2-135m
data: tickets.jsonl
output: tickets-prompt
encoder: residual
learning_rate: 5e-3
```
"""

from __future__ import annotations

import typing
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

from ptune.errors import ConfigError, nearest, one_line
from ptune.recipe import TrainRecipe, allowed_types


def own_names() -> dict[str, str]:
    """Every key that is ptune's own → the field it means."""
    names = {item.name: item.name for item in fields(TrainRecipe)}
    for item in fields(TrainRecipe):
        names |= dict.fromkeys(item.metadata.get("aliases", ()), item.name)
    return names


def read_recipe(path: Path) -> dict[str, Any]:
    """The values of a recipe, keys written with underscores.

    Raises:
        ConfigError: The file is missing, not YAML, or not a table of keys.
    """
    import yaml

    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"cannot read the recipe {path}: {error.strerror}.", hint="Check the path.") from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"the recipe {path} is not UTF-8: {error.reason} at byte {error.start}.") from error
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        place = f"{path}:{mark.line + 1}" if mark else str(path)
        raise ConfigError(f"{place}: the recipe is not YAML: {error.problem or error.context}.") from error
    except (yaml.YAMLError, ValueError) as error:
        raise ConfigError(f"the recipe {path} is not YAML: {one_line(error)}.") from error
    if not isinstance(values, Mapping):
        raise ConfigError(f"the recipe {path} holds no keys.", hint="Write one flag a line: `model: …`.")
    named = {str(key).replace("-", "_"): value for key, value in values.items()}
    if len(named) < len(values):
        raise ConfigError(f"the recipe {path} names a key twice, with dashes and with underscores.", hint="Keep one.")
    return named


def unknown_key(path: Path, key: str, known: list[str]) -> ConfigError:
    """The error for a key that is no flag."""
    guess = nearest(key, known)
    return ConfigError(
        f"unknown key {key!r} in the recipe {path}.",
        hint=(f"Did you mean {guess!r}? " if guess else "") + "The keys are the flags: see ptune train --help.",
    )


def own_values(values: Mapping[str, Any]) -> dict[str, Any]:
    """Those values of a recipe that are ptune's own, under their fields' names.

    YAML 1.1 reads `1e-3` as text, so a text that is a number becomes one where a number is wanted.
    """
    names, hints = own_names(), typing.get_type_hints(TrainRecipe)
    return {names[key]: _as_number(value, hints[names[key]]) for key, value in values.items() if key in names}


def _as_number(value: Any, hint: Any) -> Any:
    if not isinstance(value, str):
        return value
    for kind in (int, float):
        if kind in allowed_types(hint):
            try:
                return kind(value)
            except ValueError:
                return value
    return value
