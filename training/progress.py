"""What a run shows while it works: bars with the time left on a terminal, a line per epoch elsewhere."""

from __future__ import annotations

import threading
import time
from contextlib import suppress
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeRemainingColumn


class Display:
    """Shows progress on `console`: a bar for the whole run, and below it one for each thread that works.

    Args:
        console: where to show it.
        quiet: show nothing, as all processes but the first do.
    """

    def __init__(self, console: Console, *, quiet: bool = False) -> None:
        self.console = console
        self.quiet = quiet
        self._bars = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=20),
            TextColumn("{task.percentage:>3.0f}%"),
            TextColumn("{task.fields[loss]}"),
            TimeRemainingColumn(),
            TextColumn("left"),
            console=console,
            disable=quiet or not console.is_terminal,
            # The rate differs between the parts of the study, so the estimate looks back over minutes.
            speed_estimate_period=120,
        )
        self._lock = threading.Lock()
        self._whole = self._bars.add_task("everything", total=None, loss="")
        self._parts: dict[int, TaskID] = {}
        self._steps_done = 0
        self._steps_total = 0
        self._begun = time.monotonic()

    def __enter__(self) -> Display:
        self._bars.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        # The terminal may be gone.
        with suppress(OSError):
            self._bars.stop()

    def expect(self, steps: int) -> None:
        """Start the clock, with so many updates ahead."""
        self._begun = time.monotonic()
        self._steps_total = steps
        self._bars.reset(self._whole, total=steps)

    def now(self, what: str, steps: int | None = None) -> None:
        """Say what this thread does from now on, and how many updates it takes."""
        thread = threading.get_ident()
        with self._lock:
            if thread not in self._parts:
                self._parts[thread] = self._bars.add_task(what, total=steps, loss="")
        self._bars.reset(self._parts[thread], description=what, total=steps, loss="")

    def done(self) -> None:
        """This thread is done with what it said it does."""
        with self._lock:
            part = self._parts.pop(threading.get_ident(), None)
        if part is not None:
            self._bars.remove_task(part)

    def advance(self, steps: int, loss: float) -> None:
        """This thread did so many more updates; the last one's loss was this."""
        with self._lock:
            self._steps_done += steps
        self._bars.advance(self._whole, steps)
        part = self._parts.get(threading.get_ident())
        if part is not None:
            self._bars.update(part, advance=steps, loss=f"loss {loss:.4f}")

    def note(self, line: str) -> None:
        """A finished piece of work, with the time left where there is no bar to show it."""
        if self.quiet:
            return
        if not self.console.is_terminal:
            line = f"{line} · {self._time_left()} left"
        with suppress(OSError):
            self.console.print(line, highlight=False, soft_wrap=True)

    def _time_left(self) -> str:
        if not self._steps_done:
            return "-:--"
        elapsed = time.monotonic() - self._begun
        seconds = round(elapsed / self._steps_done * max(self._steps_total - self._steps_done, 0))
        return f"{seconds // 60}:{seconds % 60:02d}"
