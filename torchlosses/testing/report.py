"""What an audit found: a finding, a result a check, and the report of all of them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

SCHEMA = 1
STATUSES = ("passed", "failed", "not applicable", "not supported", "too large", "skipped", "measured")


@dataclass(frozen=True)
class Finding:
    """One failure: what went wrong, the smallest call found that shows it, and the likely cause."""

    summary: str
    call: str
    got: str
    expected: str
    cause: str

    def __str__(self) -> str:
        lines = [self.summary, f"  call:     {self.call}", f"  got:      {self.got}", f"  expected: {self.expected}"]
        return "\n".join([*lines, f"  likely cause: {self.cause}"])


@dataclass(frozen=True)
class Result:
    """The outcome of one check; `cases` counts the inputs that it passed or failed on."""

    check: str
    why: str
    status: str
    reason: str = ""
    cases: int = 0
    seconds: float = 0.0
    finding: Finding | None = None
    measurements: Mapping[str, float] = field(default_factory=dict)

    @property
    def subject(self) -> str:
        """The file of the check: values, derivatives, gradients, ..."""
        return self.check.partition(".")[0]

    def to_dict(self) -> dict[str, Any]:
        """The result as JSON types."""
        return {**asdict(self), "subject": self.subject, "measurements": dict(self.measurements)}

    def __str__(self) -> str:
        text = f"{self.check}: {self.status}"
        if self.finding is not None:
            return f"{text}\n  {self.why}\n" + "\n".join("  " + line for line in str(self.finding).splitlines())
        return f"{text} ({self.reason})" if self.reason else text


@dataclass(frozen=True)
class Report:
    """The results of all checks of one loss, in the order of `torchlosses.testing.CHECKS`."""

    loss: str
    kind: str
    reference: str | None
    options: Mapping[str, str]
    versions: Mapping[str, str]
    notes: tuple[str, ...]
    results: tuple[Result, ...]

    @property
    def ok(self) -> bool:
        """Whether no check failed, and at least one passed."""
        return not self.failures and self.counts["passed"] > 0

    @property
    def failures(self) -> tuple[Result, ...]:
        """The results of the checks that failed."""
        return tuple(result for result in self.results if result.status == "failed")

    @property
    def counts(self) -> dict[str, int]:
        """How many checks ended in each status; all statuses are there."""
        found = Counter(result.status for result in self.results)
        return {status: found[status] for status in STATUSES}

    def __getitem__(self, check: str) -> Result:
        for result in self.results:
            if result.check == check:
                return result
        raise KeyError(f"{check!r} is not a check of this report")

    def to_dict(self) -> dict[str, Any]:
        """The report as JSON types."""
        return {
            "schema": SCHEMA,
            "loss": self.loss,
            "kind": self.kind,
            "reference": self.reference,
            "options": dict(self.options),
            "versions": dict(self.versions),
            "counts": self.counts,
            "notes": list(self.notes),
            "results": [result.to_dict() for result in self.results],
        }

    def __str__(self) -> str:
        from torchlosses.testing.rendering import text

        return text(self)
