"""What a run shows while it works: a bar with the time left on a terminal, a line per epoch elsewhere."""

from __future__ import annotations

import time
from types import TracebackType

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    SpinnerColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)


class Display:
    """Shows progress on `console`; a quiet one shows nothing.

    Args:
        console: where to show it.
        quiet: show nothing, as all processes but the first do.
    """

    def __init__(self, console: Console, *, quiet: bool = False) -> None:
        self.console = console
        self.quiet = quiet
        self._bar = Progress(
            SpinnerColumn(),
            TextColumn("{task.description}"),
            BarColumn(bar_width=None),
            MofNCompleteColumn(),
            TextColumn("steps · loss {task.fields[loss]} ·"),
            TimeElapsedColumn(),
            TextColumn("gone,"),
            TimeRemainingColumn(),
            TextColumn("left"),
            console=console,
            disable=quiet or not console.is_terminal,
            expand=True,
            # The rate differs between the parts of the study, so the estimate looks back over minutes.
            speed_estimate_period=120,
        )
        self._task = self._bar.add_task("starting", total=None, loss="-")
        self._steps_done = 0
        self._steps_total = 0
        self._begun = time.monotonic()

    def __enter__(self) -> Display:
        self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._bar.stop()

    def expect(self, steps: int) -> None:
        """Start the clock, with so many updates ahead."""
        self._begun = time.monotonic()
        self._steps_total = steps
        self._bar.reset(self._task, total=steps, loss="-")

    def now(self, what: str) -> None:
        """Say what is running."""
        self._bar.update(self._task, description=what)

    def advance(self, steps: int, loss: float) -> None:
        """So many more updates are done; the last one's loss was this."""
        self._steps_done += steps
        self._bar.update(self._task, advance=steps, loss=f"{loss:.4f}")

    def note(self, line: str) -> None:
        """A finished piece of work, with the time left where there is no bar to show it."""
        if self.quiet:
            return
        if not self.console.is_terminal:
            line = f"{line} · {self._time_left()} left"
        self._bar.console.print(line, highlight=False, soft_wrap=True)

    def _time_left(self) -> str:
        if not self._steps_done:
            return "-:--"
        elapsed = time.monotonic() - self._begun
        seconds = round(elapsed / self._steps_done * max(self._steps_total - self._steps_done, 0))
        return f"{seconds // 60}:{seconds % 60:02d}"
