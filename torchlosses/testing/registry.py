"""The list of checks."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from torchlosses.testing.audit import Audit
from torchlosses.testing.kinds import Case
from torchlosses.testing.outcomes import MANNERS, UNSUPPORTED, WRONG_GRADIENT, WRONG_VALUE

SEVERITY_OF_SUBJECT = {
    "values": WRONG_VALUE,
    "derivatives": WRONG_GRADIENT,
    "transforms": WRONG_GRADIENT,
    "gradients": WRONG_GRADIENT,
    "inputs": WRONG_VALUE,
    "laws": WRONG_VALUE,
    "integration": UNSUPPORTED,
    "errors": MANNERS,
    "cost": MANNERS,
}


@dataclass(frozen=True)
class Check:
    """One question put to a loss.

    Args:
        name: subject.question.
        why: One sentence on why the answer matters.
        severity: Of `SEVERITIES`, how bad a failure is, where the failure itself does not say.
        cases: The inputs that the question is asked on; raises `NotApplicable` where there are none.
        function: Called with the audit and one case; returns measurements or None where the loss passes.
    """

    name: str
    why: str
    severity: str
    cases: Callable[[Audit], Iterable[Case]]
    function: Callable[[Audit, Case], Mapping[str, float] | None]


CHECKS: dict[str, Check] = {}


def check(name: str, cases: Callable[[Audit], Iterable[Case]], severity: str | None = None) -> Callable[[Any], Any]:
    """Put a function into the list of checks; its docstring says why the answer matters."""

    def register(function: Any) -> Any:
        if name in CHECKS:
            raise ValueError(f"there is a check {name!r} already")
        why = " ".join((function.__doc__ or "").split())
        CHECKS[name] = Check(name, why, severity or SEVERITY_OF_SUBJECT[name.partition(".")[0]], cases, function)
        return function

    return register
