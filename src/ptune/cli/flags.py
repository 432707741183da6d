"""Flags from dataclass fields, and a parser whose faults are errors of ptune's own.

`--num-virtual-tokens` and `--num_virtual_tokens` are the same flag. A flag that does not exist is refused with the nearest one that does.
"""

from __future__ import annotations

import argparse
import types
import typing
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import Field, fields
from pathlib import Path
from typing import Any, NoReturn

from ptune.errors import ConfigError, nearest, unknown


class Parser(argparse.ArgumentParser):
    """`argparse` that raises `ConfigError` instead of printing usage and exiting."""

    def __init__(self, command: str, description: str) -> None:
        super().__init__(
            prog=f"ptune {command}",
            description=description,
            allow_abbrev=False,
            formatter_class=argparse.ArgumentDefaultsHelpFormatter,
        )
        self.command = command

    def error(self, message: str) -> NoReturn:
        """A fault in the command line."""
        raise ConfigError(f"{message}.", hint=f"See ptune {self.command} --help.")

    def parse(self, argv: Sequence[str]) -> argparse.Namespace:
        """Parse a whole command line.

        Raises:
            ConfigError: A flag is unknown (the nearest is named), or a value does not fit.
        """
        found, extra = self.parse_known_args(dashed(argv))
        if extra:
            raise unknown_flag(extra[0], self.flags(), self.command)
        return found

    def flags(self) -> list[str]:
        """All flags, as written with dashes."""
        return [flag for flag in self._option_string_actions if flag.startswith("--")]


def dashed(argv: Sequence[str]) -> list[str]:
    """The command line with `--a_b` written `--a-b`; values are left alone."""
    words = []
    for word in argv:
        if word.startswith("--"):
            flag, equals, value = word.partition("=")
            word = flag.replace("_", "-") + equals + value
        words.append(word)
    return words


def unknown_flag(word: str, known: Iterable[str], command: str) -> ConfigError:
    """The error for a word that no flag takes."""
    flag = word.split("=", 1)[0]
    if not flag.startswith("-"):
        return ConfigError(f"unexpected argument {word!r}.", hint=f"See ptune {command} --help.")
    guess = nearest(flag, known)
    return ConfigError(
        f"unknown flag {flag}.", hint=(f"Did you mean {guess}? " if guess else "") + f"See ptune {command} --help."
    )


def add_fields(parser: argparse.ArgumentParser, kind: type) -> None:
    """A flag for each field of a dataclass, with no default of its own: what is absent was not said."""
    hints = typing.get_type_hints(kind)
    for item in fields(kind):
        _add_field(parser, item, hints[item.name])


def _add_field(parser: argparse.ArgumentParser, item: Field[Any], hint: Any) -> None:
    flag = "--" + item.name.replace("_", "-")
    options: dict[str, Any] = {"dest": item.name, "default": argparse.SUPPRESS, "help": _help(item)}
    plain = _without_none(hint)
    if plain is bool:
        parser.add_argument(flag, action=argparse.BooleanOptionalAction, **options)
    elif item.metadata.get("nargs"):
        parser.add_argument(flag, nargs=item.metadata["nargs"], type=pair, metavar="FIELD=COLUMN", **options)
    else:
        metavar = plain.__name__.upper().replace("STR", "TEXT").replace("INT", "N")
        parser.add_argument(flag, type=plain, metavar="|".join(item.metadata.get("choices", ())) or metavar, **options)


def _help(item: Field[Any]) -> str:
    text = str(item.metadata["help"]).replace("%", "%%")
    if item.metadata.get("required"):
        return f"{text} (needed)"
    return text if item.default in (None, False) else f"{text} (default: {item.default})"


def _without_none(hint: Any) -> Any:
    if isinstance(hint, types.UnionType) or typing.get_origin(hint) is typing.Union:
        return next(part for part in typing.get_args(hint) if part is not type(None))
    return hint


def pair(text: str) -> tuple[str, str]:
    """`field=column` as two words."""
    field, equals, column = text.partition("=")
    if not equals or not field or not column:
        raise argparse.ArgumentTypeError(f"{text!r} is not of the form FIELD=COLUMN")
    return field, column


def read_recipe(path: Path, known: Iterable[str]) -> dict[str, Any]:
    """The values of a YAML recipe, keys with dashes or underscores.

    Raises:
        ConfigError: The file is missing or not a mapping, or has a key that is no flag (the nearest is named).
    """
    import yaml

    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"cannot read the recipe {path}: {error.strerror}.") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"the recipe {path} is not YAML: {' '.join(str(error).split())}.") from error
    if not isinstance(values, Mapping):
        raise ConfigError(f"the recipe {path} holds no keys.", hint="Write one flag a line: `model: …`.")
    named = {str(key).replace("-", "_"): value for key, value in values.items()}
    names = set(known)
    for key in named:
        if key not in names:
            raise unknown(f"key in {path}:", key, names)
    return named
