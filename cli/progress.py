"""Progress on the terminal: the current step and its elapsed time."""

from __future__ import annotations

import sys
import time
from collections.abc import Generator
from contextlib import contextmanager

from ..core.progress import WAITING, Progress, quiet
from .text import say


def on_stderr(what: str, share: float | None) -> None:
    """Print a line to standard error. A moving progress bar would take time on the cores that are measured."""
    del share
    say(what, err=True)


def within(name: str, tell: Progress) -> Progress:
    """Progress prefixed with a name, for several jobs one after another."""
    return lambda what, share=None: tell(f"{name}, {what}", share)


@contextmanager
def shown(silent: bool) -> Generator[Progress]:
    """Show a bar with the elapsed time of the current step, and a line for each finished step that took over a second.

    All of it goes to standard error. If that is not a terminal, only the lines are written.
    """
    if silent:
        yield quiet
        return
    from rich.progress import BarColumn, SpinnerColumn, TextColumn, TimeElapsedColumn
    from rich.progress import Progress as Bars

    from .text import Screen

    console = Screen(file=sys.stderr, highlight=False)
    columns = (SpinnerColumn(), TextColumn("{task.description}"), BarColumn(bar_width=24), TimeElapsedColumn())
    with Bars(*columns, console=console, transient=True, disable=not console.is_terminal) as bars:
        task = bars.add_task("starting", total=None)
        current, start = "", time.perf_counter()

        def finish() -> None:
            seconds = time.perf_counter() - start
            if current and seconds >= 1:
                console.print(f"[green]✓[/] {current}  [dim]{seconds:.1f} s[/]")

        def tell(what: str, share: float | None = None) -> None:
            nonlocal current, start
            if what != current:
                finish()
                current, start = what, time.perf_counter()
                bars.reset(task, description=what, total=None)
                if WAITING in what and not console.is_terminal:
                    console.print(what, markup=False)
            if share is not None:
                bars.update(task, total=1.0, completed=share)

        yield tell
        finish()
