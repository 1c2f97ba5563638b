"""Which implementation of the operators runs, and why."""

from __future__ import annotations

import os
from typing import NamedTuple

VARIABLE = "TORCHLOSSES_BACKEND"
CHOICES = ("auto", "native", "eager")


class Backend(NamedTuple):
    """The implementation that runs, and the reason for it."""

    name: str
    reason: str


def choose() -> Backend:
    """Follow the environment variable TORCHLOSSES_BACKEND: 'auto' (default), 'native' or 'eager'.

    Raises:
        ValueError: The variable has another value.
        ImportError: 'native' is asked for, and this installation has no compiled operators.
    """
    wanted = os.environ.get(VARIABLE, "auto")
    if wanted not in CHOICES:
        raise ValueError(f"{VARIABLE}={wanted!r} is not a backend: expected one of {', '.join(CHOICES)}.")
    if wanted == "eager":
        return Backend("eager", f"{VARIABLE}=eager asks for it")
    if wanted == "native":
        raise ImportError(
            f"{VARIABLE}=native asks for compiled operators, which this installation does not have: "
            f"set {VARIABLE} to auto or eager."
        )
    return Backend("eager", "this installation has no compiled operators")
