"""What an audit found: a finding, a result a check, and the report of all of them, as text and as JSON types."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from torchlosses.testing.outcomes import SEVERITIES

SCHEMA = 1
STATUSES = ("passed", "failed", "not applicable", "not supported", "too large", "skipped", "measured")
MARKS = {"passed": "ok", "failed": "FAILED"}


@dataclass(frozen=True)
class Finding:
    """One failure: what went wrong, the smallest call found that shows it, the likely cause, and how bad it is."""

    summary: str
    call: str
    got: str
    expected: str
    cause: str
    severity: str

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

    @property
    def outcome(self) -> str:
        """The status in a line, with the severity, the measurements or the reason."""
        mark = MARKS.get(self.status, self.status)
        if self.finding is not None:
            return f"{mark} ({self.finding.severity})"
        if self.measurements:
            return f"{mark}: " + "; ".join(f"{name}: {value:.3g}" for name, value in self.measurements.items())
        short = self.reason if len(self.reason) <= 160 else self.reason[:157] + "..."
        return f"{mark} ({short})" if short else mark

    def to_dict(self) -> dict[str, Any]:
        """The result as JSON types."""
        return {**asdict(self), "subject": self.subject, "measurements": dict(self.measurements)}

    def __str__(self) -> str:
        text = f"{self.check}: {self.status}"
        if self.finding is not None:
            lines = [f"{text}, {self.finding.severity}", self.why, *str(self.finding).splitlines()]
            return "\n  ".join(lines)
        return f"{text} ({self.reason})" if self.reason else text


@dataclass(frozen=True)
class Report:
    """The results of all checks of one loss, in the order of `torchlosses.testing.CHECKS`.

    Printed, it is a table of the checks, then the failures, the notes and the counts.
    """

    loss: str
    kind: str
    reference: str | None
    options: Mapping[str, str]
    versions: Mapping[str, str]
    notes: tuple[str, ...]
    results: tuple[Result, ...]
    device: str = "cpu"
    dtypes: tuple[str, ...] = ()
    computes_in: str = "float64"
    fail_on: tuple[str, ...] = tuple(SEVERITIES)

    @property
    def ok(self) -> bool:
        """Whether no check failed with a severity of `fail_on`, and at least one passed or was measured."""
        return not self.counted_failures and bool(self.counts["passed"] or self.counts["measured"])

    @property
    def failures(self) -> tuple[Result, ...]:
        """The results of the checks that failed."""
        return tuple(result for result in self.results if result.status == "failed")

    @property
    def counted_failures(self) -> tuple[Result, ...]:
        """Those of the failures whose severity is one of `fail_on`."""
        return tuple(r for r in self.failures if r.finding is not None and r.finding.severity in self.fail_on)

    @property
    def counts(self) -> dict[str, int]:
        """How many checks ended in each status; all statuses are there."""
        found = Counter(result.status for result in self.results)
        return {status: found[status] for status in STATUSES}

    @property
    def severities(self) -> dict[str, int]:
        """How many failures there are of each severity; all severities are there."""
        found = Counter(result.finding.severity for result in self.failures if result.finding is not None)
        return {severity: found[severity] for severity in SEVERITIES}

    @property
    def heading(self) -> str:
        """What was audited, in a line."""
        against = f" against {self.reference}" if self.reference else ""
        return f"{self.loss} as {self.kind}{against}"

    @property
    def tolerance(self) -> str:
        """Where it was audited, and which rounding the tolerances follow, in a line."""
        claimed = f", for {', '.join(self.dtypes)}" if self.dtypes else ""
        return f"On {self.device}{claimed}; it computes in {self.computes_in}, and the tolerances follow that."

    @property
    def summary(self) -> str:
        """The counts that are not 0, in a line."""
        failed = ", ".join(f"{number} {severity}" for severity, number in self.severities.items() if number)
        texts = [
            f"{number} {status}" + (f" ({failed})" if status == "failed" else "")
            for status, number in self.counts.items()
            if number
        ]
        uncounted = len(self.failures) - len(self.counted_failures)
        if uncounted:
            texts.append(f"{uncounted} of the failures not counted")
        return ", ".join(texts) or "no check was run"

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
            "device": self.device,
            "dtypes": list(self.dtypes),
            "computes_in": self.computes_in,
            "fail_on": list(self.fail_on),
            "counts": self.counts,
            "severities": self.severities,
            "notes": list(self.notes),
            "results": [result.to_dict() for result in self.results],
        }

    def __str__(self) -> str:
        width = max((len(result.check) for result in self.results), default=0)
        lines = [self.heading, self.tolerance, ""]
        lines += [f"{result.check:<{width}}  {result.outcome}" for result in self.results]
        for result in self.failures:
            lines += ["", str(result)]
        if self.notes:
            lines += ["", "Found while trying the loss out:", *(f"  {note}" for note in self.notes)]
        return "\n".join([*lines, "", self.summary])
