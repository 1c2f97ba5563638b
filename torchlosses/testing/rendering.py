"""A report as text, and as HTML."""

from __future__ import annotations

from torchlosses.testing.report import Report


def text(report: Report) -> str:
    """A table, the failures and the counts."""
    return "\n".join(str(result) for result in report.results)
