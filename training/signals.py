"""Signals that end a run, as exceptions, so that what was found is kept."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import NoReturn

# SIGHUP is missing on Windows.
_ENDING = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)]


class StoppedBySignal(KeyboardInterrupt):
    """The run is to stop. Like Ctrl-C, nothing that catches errors catches it by mistake."""

    def __init__(self, number: int) -> None:
        super().__init__()
        self.number = number

    @property
    def status(self) -> int:
        """The exit status that a shell gives a program ended by this signal."""
        return 128 + self.number


@contextmanager
def raising_signals() -> Iterator[None]:
    """Raise StoppedBySignal in the main thread when Ctrl-C, SIGTERM or SIGHUP arrives.

    Only the first: what is done because of it is not to be lost to a second. A signal that was ignored before, as
    SIGHUP is under nohup, stays ignored.
    """

    def stop(number: int, frame: FrameType | None) -> NoReturn:
        for ending in earlier:
            signal.signal(ending, signal.SIG_IGN)
        raise StoppedBySignal(number)

    earlier = {number: handler for number in _ENDING if (handler := signal.getsignal(number)) != signal.SIG_IGN}
    for number in earlier:
        signal.signal(number, stop)
    try:
        yield
    finally:
        for number, handler in earlier.items():
            signal.signal(number, handler)
