"""Which loss was called, for what serves several of them: an assertion on a device names it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

_called: ContextVar[str | None] = ContextVar("called", default=None)


@contextmanager
def calling(name: str) -> Iterator[None]:
    """What runs in this block runs for the loss of that name."""
    token = _called.set(name)
    try:
        yield
    finally:
        _called.reset(token)


def called(otherwise: str) -> str:
    """The name of the loss that something runs for, `otherwise` if it is called itself."""
    return _called.get() or otherwise
