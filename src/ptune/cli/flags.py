"""Flags from dataclass fields, and a parser whose faults are errors of ptune's own.

`--num-virtual-tokens` and `--num_virtual_tokens` are the same flag. A flag that does not exist is refused with the
one that was probably meant.
"""

from __future__ import annotations

import argparse
import re
import typing
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import Field, fields
from typing import Any, NoReturn

from typing_extensions import override

from ptune.cli.names_elsewhere import meant
from ptune.errors import ConfigError
from ptune.field_types import allowed_types, item_type


class HelpFormatter(argparse.ArgumentDefaultsHelpFormatter):
    """Names a default where there is one worth naming, and gives flags room."""

    def __init__(self, prog: str) -> None:
        super().__init__(prog, max_help_position=36)

    def _get_help_string(self, action: argparse.Action) -> str | None:
        if action.default in (None, False, "", argparse.SUPPRESS):
            return action.help
        if isinstance(action.default, tuple):
            return f"{action.help} (default: {','.join(map(str, action.default))})"
        return super()._get_help_string(action)


class Parser(argparse.ArgumentParser):
    """`argparse` that raises `ConfigError` instead of printing usage and exiting.

    Args:
        command: The sub-command.
        description: What it does.
        usage: The command line in short, without `ptune` and the command.
        more: Text after the flags in the help, printed as it is.
    """

    def __init__(self, command: str, description: str, *, usage: str | None = None, more: str = "") -> None:
        super().__init__(
            prog=f"ptune {command}",
            usage=None if usage is None else f"ptune {command} {usage}",
            description=description,
            allow_abbrev=False,
            formatter_class=HelpFormatter,
        )
        self.command = command
        self.more = more

    def format_help(self) -> str:
        """The help page."""
        return super().format_help() + (f"\n{self.more.rstrip()}\n" if self.more else "")

    def error(self, message: str) -> NoReturn:
        """A fault in the command line."""
        raise ConfigError(f"{argparse_message(message)}.", hint=f"See ptune {self.command} --help.")

    def parse(self, argv: Sequence[str]) -> argparse.Namespace:
        """Parse a whole command line; flags may stand before, between and after the other words.

        Raises:
            ConfigError: A flag is unknown (the nearest is named), or a value does not fit.
        """
        found, extra = self.parse_known_intermixed_args(dashed(argv))
        if extra:
            raise unknown_flags(extra, self.flags(), self.command)
        return found

    def flags(self) -> list[str]:
        """All flags, as written with dashes."""
        return flags_of(self)


def flags_of(parser: argparse.ArgumentParser) -> list[str]:
    """All flags of a parser, in the spelling with dashes."""
    known = parser._option_string_actions  # noqa: SLF001 (argparse has no public list)
    return [name for name in known if name.startswith("--") and "_" not in name]


def argparse_message(message: str) -> str:
    """A message of argparse's with each flag in one spelling and no full stop."""
    return re.sub(r"--\w+/(?=--)", "", " ".join(message.split())).rstrip(".")


def dashed(argv: Sequence[str]) -> list[str]:
    """The command line with `--a_b` written `--a-b`; values are left alone."""
    words = []
    for word in argv:
        if word.startswith("--"):
            name, equals, value = word.partition("=")
            word = name.replace("_", "-") + equals + value
        words.append(word)
    return words


def unknown_flags(words: Sequence[str], known: Iterable[str], command: str) -> ConfigError:
    """The error for words that no flag takes; all of them are named, each with the one that was probably meant."""
    flags = [word.split("=", 1)[0] for word in words if word.startswith("-")]
    see = f"See ptune {command} --help."
    if not flags:
        return ConfigError(f"unexpected argument {words[0]!r}.", hint=f"Put a text of several words in quotes. {see}")
    names = [name.removeprefix("--") for name in known]
    guesses = [meant(word.lstrip("-"), names) for word in flags]
    said = "; ".join(
        f"unknown flag {word}" + (f", did you mean --{guess}?" if guess else "")
        for word, guess in zip(flags, guesses, strict=True)
    )
    return ConfigError(said if said.endswith("?") else f"{said}.", hint=see)


def number(kind: type[int] | type[float], *, least: float, most: float | None = None) -> Callable[[str], Any]:
    """A flag's type: a whole number or a number within bounds."""

    def convert(text: str) -> Any:
        try:
            value = kind(text)
        except ValueError:
            what = "a whole number" if kind is int else "a number"
            raise argparse.ArgumentTypeError(f"{text!r} is not {what}") from None
        # Written so that NaN is refused too.
        if not value >= least or (most is not None and not value <= most):
            bound = f"at least {least:g}" if most is None else f"from {least:g} to {most:g}"
            raise argparse.ArgumentTypeError(f"must be {bound}, not {text}")
        return value

    return convert


def add_fields(
    parser: argparse.ArgumentParser,
    kind: type,
    *,
    leave_out: Collection[str] = (),
    said: Mapping[str, str] | None = None,
    groups: dict[str, Any] | None = None,
) -> dict[str, Any]:
    """A flag for each field of a dataclass but those left out, in the groups its metadata name.

    No flag has a default of its own: what is absent was not said.

    Args:
        parser: Takes the flags.
        kind: The dataclass.
        leave_out: Names of fields.
        said: The help of fields that mean something else here, or have another default.
        groups: Those of an earlier call, by title, to go on with.

    Returns:
        The groups.
    """
    hints = typing.get_type_hints(kind)
    groups = {} if groups is None else groups
    for item in fields(kind):
        if item.name in leave_out:
            continue
        title = item.metadata["group"]
        if title not in groups:
            groups[title] = parser.add_argument_group(title)
        _add_field(groups[title], item, hints[item.name], (said or {}).get(item.name, _help(item)))
    return groups


class _IntoTable(argparse.Action):
    """Collects pairs in a table; the flag may come several times."""

    @override
    def __call__(
        self, parser: Any, namespace: argparse.Namespace, values: Any, option_string: str | None = None
    ) -> None:
        setattr(namespace, self.dest, {**getattr(namespace, self.dest, {}), **dict(values)})


def _add_field(group: Any, item: Field[Any], hint: Any, text: str) -> None:
    name = flag(item.name)
    options: dict[str, Any] = {"dest": item.name, "default": argparse.SUPPRESS, "help": text}
    plain = next(part for part in allowed_types(hint) if part is not type(None))
    if plain is bool:
        group.add_argument(name, action=argparse.BooleanOptionalAction, **options)
    elif plain is Mapping:
        group.add_argument(
            name,
            action=_IntoTable,
            nargs="+",
            type=pair,
            metavar=item.metadata.get("metavar", "FIELD=COLUMN"),
            **options,
        )
    else:
        listed = item_type(hint)
        plain = listed or plain
        metavar = item.metadata.get("metavar") or {int: "N", float: "X"}.get(plain, item.name.upper())
        if listed is not None:
            options["nargs"] = "+"
        if item.metadata.get("optional"):
            options |= {"nargs": "?", "const": True}
        group.add_argument(name, type=plain, metavar="|".join(item.metadata.get("choices", ())) or metavar, **options)
        for alias in item.metadata.get("aliases", ()):
            group.add_argument(flag(alias), type=plain, **{**options, "help": argparse.SUPPRESS})


def flag(name: str) -> str:
    """A field's name as a flag."""
    return "--" + name.replace("_", "-")


def _help(item: Field[Any]) -> str:
    text = str(item.metadata["help"]).replace("%", "%%")
    if item.metadata.get("required"):
        return f"{text} (needed)"
    default = " ".join(map(str, item.default)) if isinstance(item.default, tuple) else item.default
    return text if default in (None, False) else f"{text} (default: {default})"


def pair(text: str) -> tuple[str, str]:
    """`name=value` as two words."""
    field, equals, column = text.partition("=")
    if not equals or not field or not column:
        raise argparse.ArgumentTypeError(f"{text!r} is not of the form NAME=VALUE")
    return field, column
