"""The backends of the operators: which one runs, and why.

The declarations of the losses (`torchlosses._declare`) make the operators of the torch.library namespace `torchlosses`,
and register for every device the PyTorch operations that a loss is written in: `eager`. The compiled backend, `native`,
registers itself for the CPU in front of it, and passes on what it does not cover. `BACKEND` says which one runs, and
why; the environment variable TORCHLOSSES_BACKEND chooses, and `use` chooses for a while.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torchlosses.kernels import eager as eager
from torchlosses.kernels.backend import choose

BACKEND, _native = choose()
INSTRUCTION_SET = None if _native is None else _native.instruction_set


def available() -> tuple[str, ...]:
    """The backends that this process can run."""
    return ("eager",) if _native is None else ("native", "eager")


@contextmanager
def use(name: str) -> Iterator[None]:
    """Run another backend for a while, in all threads: for tests and measurements that compare them.

    Raises:
        ValueError: The backend is not available.

    Example:
        >>> from torchlosses import kernels
        >>> with kernels.use("eager"):
        ...     pass
    """
    global BACKEND
    if name not in available():
        raise ValueError(f"{name!r} is not an available backend: expected one of {', '.join(available())}.")
    before = BACKEND
    _switch(name)
    BACKEND = (
        before if name == before.name else before._replace(name=name, reason="torchlosses.kernels.use asks for it")
    )
    try:
        yield
    finally:
        _switch(before.name)
        BACKEND = before


def _switch(name: str) -> None:
    if _native is not None:
        _native.enable(name == "native")
