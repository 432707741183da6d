"""How far a study is: a bar on a terminal, a line now and then elsewhere, both with the time left."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from ptune.training.progress import clock
from ptune.training.result import show_line

_SECONDS = 15
"""Between two lines."""


@contextmanager
def progress(what: str, total: int, done: int, say: Console) -> Iterator[Callable[[int], None]]:
    """Show how much of something is done; yields what to call with the number that is done more.

    Args:
        what: Is done.
        total: How many there are.
        done: How many were done before.
        say: Where to show it.
    """
    if done >= total:
        yield lambda _: None
        return
    start = last = time.perf_counter()
    now = done
    if not say.is_terminal:
        show_line(f"{what}: {total - done:,} of {total:,} to do", say)
    columns = [TextColumn("{task.description}"), BarColumn(bar_width=16), MofNCompleteColumn(), TimeRemainingColumn()]
    with Progress(*columns, TextColumn("left"), console=say, disable=not say.is_terminal or say.quiet) as bar:
        task = bar.add_task(what, total=total, completed=done)

        def advance(count: int) -> None:
            nonlocal now, last
            now += count
            bar.update(task, completed=now)
            if not say.is_terminal and time.perf_counter() - last > _SECONDS and now < total:
                last = time.perf_counter()
                left = (last - start) / (now - done) * (total - now)
                show_line(f"{what}: {now:,} of {total:,}, {clock(left)} left", say)

        yield advance
