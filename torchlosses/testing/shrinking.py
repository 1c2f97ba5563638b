"""From a failing case to a small one that fails in the same way."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from torchlosses.testing.kinds import Case, Kind
from torchlosses.testing.registry import CannotRun, Failure

ATTEMPTS = 80
SECONDS = 3.0


def shrink(attempt: Callable[[Case], Any], case: Case, failure: Failure, kind: Kind) -> tuple[Case, Failure]:
    """The smallest case found that fails with the same summary, and its failure."""
    summary, attempts, start = failure.summary, 0, time.perf_counter()
    progress = True
    while progress:
        progress = False
        for smaller in _smaller(case, kind):
            attempts += 1
            if attempts > ATTEMPTS or time.perf_counter() - start > SECONDS:
                return case, failure
            try:
                attempt(smaller)
            except Failure as other:
                if other.summary == summary:
                    case, failure, progress = smaller, other, True
                    break
            except CannotRun:
                continue
    return case, failure


def _smaller(case: Case, kind: Kind) -> Iterator[Case]:
    for name in case.options:
        yield case.without_option(name)
    if kind.rows:
        rows = kind.size(case)
        if rows > 2:
            yield kind.take_rows(case, torch.arange(rows // 2))
            yield kind.take_rows(case, torch.arange(rows // 2, rows))
        if rows > 1:
            for row in range(min(rows, 8)):
                yield kind.take_rows(case, torch.arange(rows) != row)
    if kind.classes:
        yield from _fewer_classes(case, kind)
    for name in kind.differentiable:
        if name in kind.differentiable[:1] and "free" in kind.traits:
            yield from _simpler(case, name)


def _fewer_classes(case: Case, kind: Kind) -> Iterator[Case]:
    classes = kind.number_of_classes(case)
    used: set[int] = set()
    for name in kind.indices:
        if not case.tensors[name].is_floating_point():
            used |= set(case.tensors[name].flatten().tolist())
    for dropped in range(min(classes, 8)) if classes > 1 else ():
        if dropped not in used and dropped != case.options.get("ignore_index"):
            smaller = kind.take_classes(case, torch.tensor([c for c in range(classes) if c != dropped]))
            yield smaller.with_tensors(**_normalised(smaller, kind))


def _normalised(case: Case, kind: Kind) -> dict[str, Tensor]:
    """Probabilities that lost a class add up to 1 again."""
    distributions = [n for n in kind.indices if case.tensors[n].is_floating_point()]
    if "unit sum" in kind.traits:
        distributions.append(kind.primary)
    return {name: case.tensors[name] / case.tensors[name].sum(1, keepdim=True) for name in distributions}


def _simpler(case: Case, name: str) -> Iterator[Case]:
    tensor = case.tensors[name]
    for rounded in (torch.zeros_like(tensor), tensor.round(), (tensor * 10).round() / 10):
        if not torch.allclose(rounded, tensor, rtol=0, atol=0, equal_nan=True):
            yield case.with_tensors(**{name: rounded})
