"""Grids of which `make test` runs a part, and `make test-all` the whole."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import pytest


def in_turn(
    first: Sequence[Any],
    others: Mapping[str, tuple[Any, ...]],
    chosen: Callable[..., bool] = lambda *_: True,
    count: int = 1,
) -> list[Any]:
    """Each of `first` with each of `others`; in `make test` each of the others comes with `count` of the first only.

    The first take turns; the other combinations, and those of others that are not `chosen`, are marked `thorough`.
    """
    cases = []
    number = 0
    for name, values in others.items():
        everyday: set[int] = set()
        if chosen(*values):
            everyday = {(number * count + step) % len(first) for step in range(count)}
            number += 1
        for place, one in enumerate(first):
            marks = () if place in everyday else (pytest.mark.thorough,)
            cases.append(pytest.param(one, *values, id=f"{name}-{one}", marks=marks))
    return cases


# Checks of the conformance kit that differentiate twice, for all combinations of options, compile, or run threads.
_SLOW_CHECKS = (
    "derivatives.",
    "transforms.",
    "integration.compile",
    "integration.export",
    "integration.thread_counts",
    "integration.threads",
    "integration.deterministic",
)


def is_slow(check: str) -> bool:
    """Whether it takes most of the time of an audit."""
    return check.startswith(_SLOW_CHECKS)
