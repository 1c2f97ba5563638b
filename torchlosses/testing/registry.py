"""The list of checks, and what a check may say: it returns (passed), fails, or cannot run."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torchlosses.testing.audit import Audit
    from torchlosses.testing.kinds import Case


class Failure(Exception):  # noqa: N818
    """The loss does not do what the check asks."""

    def __init__(self, summary: str, got: object, expected: object, cause: str, call: str | None = None) -> None:
        super().__init__(summary)
        self.summary, self.got, self.expected, self.cause, self.call = summary, str(got), str(expected), cause, call


class CannotRun(Exception):  # noqa: N818
    """The check says nothing about the loss, and why."""

    status = "not applicable"


class NotApplicable(CannotRun):
    """The loss or its kind lacks what the check is about."""


class NotSupported(CannotRun):
    """The loss refuses what the check is about with an error."""

    status = "not supported"


class TooLarge(CannotRun):
    """The check would need more memory or time than there is."""

    status = "too large"


@dataclass(frozen=True)
class Check:
    """One question put to a loss.

    Args:
        name: subject.question.
        why: One sentence on why the answer matters.
        cases: The inputs that the question is asked on; raises `NotApplicable` where there are none.
        function: Called with the audit and one case; returns measurements or None where the loss passes.
    """

    name: str
    why: str
    cases: Callable[[Audit], Iterable[Case]]
    function: Callable[[Audit, Case], Mapping[str, float] | None]


CHECKS: dict[str, Check] = {}


def check(name: str, cases: Callable[[Audit], Iterable[Case]]) -> Callable[[Any], Any]:
    """Put a function into the list of checks; its docstring says why the answer matters."""

    def register(function: Any) -> Any:
        if name in CHECKS:
            raise ValueError(f"there is a check {name!r} already")
        why = " ".join((function.__doc__ or "").split())
        CHECKS[name] = Check(name, why, cases, function)
        return function

    return register
