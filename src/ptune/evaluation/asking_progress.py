"""How far an evaluation is, for people: a bar on a terminal, lines elsewhere."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import Progress


@contextmanager
def progress_bar(what: str, total: int, done: int, say: Console) -> Iterator[Callable[[int], None]]:
    """A bar on a terminal, a line elsewhere; gives what is told how many more are done."""
    if not say.is_terminal:
        say_line(say, f"{what}: {total - done:,} of {total:,} to do")
    with Progress(console=say, disable=not say.is_terminal or say.quiet) as bar:
        task = bar.add_task(what, total=total, completed=done)
        yield lambda count: bar.update(task, advance=count)


def say_line(say: Console, line: str) -> None:
    """A line as it is."""
    say.print(line, highlight=False, soft_wrap=True, markup=False)
