"""The findings of the report card, loss by loss."""

from __future__ import annotations

from benchmarks.report_card.findings import Finding

FINDINGS: tuple[Finding, ...] = ()
