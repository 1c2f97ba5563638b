"""From a failing case to a small one that fails in the same way."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Set
from typing import Any

import torch
from torch import Tensor

from torchlosses.testing.kinds import Case, Kind
from torchlosses.testing.outcomes import CannotRun, Failure

ATTEMPTS = 80
SECONDS = 3.0


def shrink(
    attempt: Callable[[Case], Any], case: Case, failure: Failure, kind: Kind, droppable: Set[str]
) -> tuple[Case, Failure]:
    """The smallest case found that fails with the same summary, and its failure; it may lack `droppable` options."""
    deadline = time.perf_counter() + SECONDS
    progress, attempts = True, 0
    while progress:
        progress = False
        for smaller in _candidates(case, kind, droppable):
            attempts += 1
            if attempts > ATTEMPTS or time.perf_counter() > deadline:
                return case, failure
            found = _failure_of(attempt, smaller)
            if found is not None and found.summary == failure.summary:
                case, failure, progress = smaller, found, True
                break
    return case, failure


def _failure_of(attempt: Callable[[Case], Any], case: Case) -> Failure | None:
    try:
        attempt(case)
    except Failure as failure:
        return failure
    except CannotRun:
        return None
    return None


def _candidates(case: Case, kind: Kind, droppable: Set[str]) -> Iterator[Case]:
    """Smaller cases, as far as the tensors, which a check may have reshaped, are still those of the kind."""
    try:
        yield from _smaller(case, kind, droppable)
    except (IndexError, KeyError, RuntimeError):
        return


def _smaller(case: Case, kind: Kind, droppable: Set[str]) -> Iterator[Case]:
    for name in [name for name in case.options if name in droppable]:
        yield case.without_option(name)
    if kind.rows:
        rows, device = kind.size(case), case.tensors[kind.primary].device
        if rows > 2:
            yield kind.take_rows(case, torch.arange(rows // 2, device=device))
            yield kind.take_rows(case, torch.arange(rows // 2, rows, device=device))
        if rows > 1:
            for row in range(min(rows, 8)):
                yield kind.take_rows(case, torch.arange(rows, device=device) != row)
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
            smaller = kind.take_classes(
                case,
                case.tensors[kind.primary].new_tensor([c for c in range(classes) if c != dropped], dtype=torch.int64),
            )
            smaller = smaller.with_tensors(**_normalised(smaller, kind))
            if not any(t.isnan().any() for n, t in smaller.tensors.items() if not case.tensors[n].isnan().any()):
                yield smaller


def _normalised(case: Case, kind: Kind) -> dict[str, Tensor]:
    """Probabilities that lost a class add up to 1 again."""
    distributions = [n for n in kind.indices if case.tensors[n].is_floating_point()]
    if "unit sum" in kind.traits:
        distributions.append(kind.primary)
    sums = {name: case.tensors[name].sum(kind.classes.get(name, 1), keepdim=True) for name in distributions}
    return {name: case.tensors[name] / total for name, total in sums.items()}


def _simpler(case: Case, name: str) -> Iterator[Case]:
    tensor = case.tensors[name]
    for rounded in (torch.zeros_like(tensor), tensor.round(), (tensor * 10).round() / 10):
        if not torch.allclose(rounded, tensor, rtol=0, atol=0, equal_nan=True):
            yield case.with_tensors(**{name: rounded})
