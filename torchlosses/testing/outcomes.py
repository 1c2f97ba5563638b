"""What a check may say: it returns where the loss passes, fails, or cannot run; and how bad a failure is."""

from __future__ import annotations

WRONG_VALUE, WRONG_GRADIENT, UNSUPPORTED, MANNERS = "wrong value", "wrong gradient", "unsupported", "manners"

SEVERITIES = {
    WRONG_VALUE: "a loss that is wrong, nan or infinite, without an error",
    WRONG_GRADIENT: "a derivative that is wrong or silently absent",
    UNSUPPORTED: "an error where losses are expected to work",
    MANNERS: "right numbers, but bad input is accepted, or tensors and settings of the caller are not left alone",
}


class Failure(Exception):  # noqa: N818
    """The loss does not do what the check asks; without a `severity` it is as bad as the check says."""

    def __init__(
        self,
        summary: str,
        got: object,
        expected: object,
        cause: str,
        call: str | None = None,
        severity: str | None = None,
    ) -> None:
        super().__init__(summary)
        self.summary, self.got, self.expected, self.cause = summary, str(got), str(expected), cause
        self.call, self.severity = call, severity


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
