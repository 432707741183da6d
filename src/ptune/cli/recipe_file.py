"""A recipe: the flags of `ptune train`, written down as YAML.

```yaml
model: builtin:smollm2-135m
data: tickets.jsonl
output: tickets-prompt
encoder: residual
learning_rate: 5e-3
```

A recipe is plain: no anchors (a few lines of them can stand for more values than there is memory), no key twice, no
binary text.
"""

from __future__ import annotations

import typing
from collections import Counter
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any, cast

from ptune.cli.names_elsewhere import meant
from ptune.errors import ConfigError, listed, one_line, shown
from ptune.field_types import allowed_types, item_type
from ptune.recipe import TrainRecipe

MAX_BYTES = 2**16
_MAX_FLOW_LEVEL = 20
_MAX_BITS = 1024
"""Of a whole number: more than any flag takes, and few enough to be written in digits."""


def own_names(kind: type = TrainRecipe) -> dict[str, str]:
    """Every key that is a field of ptune's own → that field."""
    names = {item.name: item.name for item in fields(kind)}
    for item in fields(kind):
        names |= dict.fromkeys(item.metadata.get("aliases", ()), item.name)
    return names


def read_recipe(path: Path) -> dict[str, Any]:
    """The values of a recipe, keys written with underscores.

    Raises:
        ConfigError: The file is missing, not YAML, or not a table of keys.
    """
    try:
        with path.open("rb") as file:
            content = file.read(MAX_BYTES + 1)
        text = content.decode("utf-8-sig")
    except OSError as error:
        raise ConfigError(f"cannot read the recipe {path}: {error.strerror}.", hint="Check the path.") from error
    except UnicodeDecodeError as error:
        raise ConfigError(
            f"the recipe {path} is not UTF-8: {error.reason} at byte {error.start}.", hint="Save it as UTF-8."
        ) from error
    if len(content) > MAX_BYTES:
        raise ConfigError(
            f"the recipe {path} has more than {MAX_BYTES:,} bytes.", hint="Name the recipe, not the data."
        )
    values = _plain_yaml(text, path)
    if not isinstance(values, Mapping):
        raise ConfigError(f"the recipe {path} holds no keys.", hint="Write one flag a line: `model: …`.")
    named = {str(key).replace("-", "_"): value for key, value in values.items()}
    if len(named) < len(values):
        raise ConfigError(f"the recipe {path} names a key twice, with dashes and with underscores.", hint="Keep one.")
    for key, value in named.items():
        _check_plain(value, f"the recipe {path}: {shown(key)}")
    return named


def _plain_yaml(text: str, path: Path) -> Any:
    """The value of a YAML text that has neither anchors nor repeated keys."""
    import yaml

    class PlainLoader(yaml.SafeLoader):
        def fetch_flow_collection_start(self, token_class: Any) -> None:
            # What PyYAML does for every token takes time in proportion to the lists that are open.
            if self.flow_level >= _MAX_FLOW_LEVEL:
                problem = f"it has more than {_MAX_FLOW_LEVEL} lists or tables in one another"
                raise yaml.MarkedYAMLError(problem=problem, problem_mark=cast(Any, self.get_mark()))
            super().fetch_flow_collection_start(token_class)

        def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
            event = self.peek_event()  # type: ignore[no-untyped-call]
            if isinstance(event, yaml.AliasEvent):
                raise yaml.MarkedYAMLError(problem="it uses an alias (*)", problem_mark=cast(Any, event.start_mark))
            return super().compose_node(parent, index)

        def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
            pairs = len(node.value)
            made: dict[Any, Any] = super().construct_mapping(node, deep=deep)
            if len(made) < pairs:
                times = Counter(str(key.value) for key, _ in node.value)
                twice = listed(name for name, count in times.items() if count > 1)
                raise yaml.MarkedYAMLError(
                    problem=f"it has a key twice ({twice})", problem_mark=cast(Any, node.start_mark)
                )
            return made

    try:
        return yaml.load(text, Loader=PlainLoader)  # noqa: S506 (a SafeLoader)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        place = f"{path}:{mark.line + 1}" if mark else str(path)
        raise ConfigError(
            f"{place}: the recipe is not YAML that can be used: {error.problem or error.context}.",
            hint="Fix that line.",
        ) from error
    except RecursionError as error:
        raise ConfigError(f"the recipe {path} is nested too deeply.", hint="Write one flag a line.") from error
    # PyYAML's own constructors raise what they stumble over: a KeyError for `!!bool x`, an IndexError for `!!int ""`.
    except (yaml.YAMLError, ValueError, LookupError, TypeError, AttributeError, ArithmeticError) as error:
        raise ConfigError(
            f"the recipe {path} is not YAML that can be used: {one_line(error) or type(error).__name__}.",
            hint="Write one flag a line: `model: …`.",
        ) from error


def _check_plain(value: Any, place: str) -> None:
    """Raise `ConfigError` for what no flag can hold."""
    if isinstance(value, Mapping):
        for key, one in value.items():
            _check_plain(key, place)
            _check_plain(one, place)
    elif isinstance(value, (list, tuple, set)):
        for one in value:
            _check_plain(one, place)
    elif isinstance(value, int) and value.bit_length() > _MAX_BITS:
        raise ConfigError(f"{place} is a whole number of {value.bit_length():,} bits.", hint="Write a smaller one.")
    elif isinstance(value, str) and "\0" in value:
        raise ConfigError(f"{place} holds a null character.", hint="Leave it out.")
    elif not (value is None or isinstance(value, (str, int, float))):
        raise ConfigError(f"{place} is {shown(value)}: no text, number, true or false.", hint="Put it in quotes.")


def unknown_key(path: Path, key: str, known: list[str]) -> ConfigError:
    """The error for a key that is no flag."""
    guess = meant(key, known)
    return ConfigError(
        f"unknown key {shown(key)} in the recipe {path}.",
        hint=(f"Did you mean {': '.join(guess.split())!r}? " if guess else "")
        + "The keys are the flags: see ptune train --help.",
    )


def own_values(values: Mapping[str, Any], kind: type = TrainRecipe) -> dict[str, Any]:
    """Those values of a recipe that are ptune's own, under their fields' names.

    YAML 1.1 reads `1e-3` as text, so a text that is a number becomes one where a number is wanted.
    """
    names, hints = own_names(kind), typing.get_type_hints(kind)
    return {names[key]: _as_number(value, hints[names[key]]) for key, value in values.items() if key in names}


def _as_number(value: Any, hint: Any) -> Any:
    if isinstance(value, list):
        return [_as_number(one, item_type(hint)) for one in value]
    if not isinstance(value, str):
        return value
    for kind in (int, float):
        if kind in allowed_types(hint) or kind is item_type(hint):
            try:
                return kind(value)
            except ValueError:
                return value
    return value
