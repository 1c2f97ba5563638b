"""Audit every subject in a process of its own, and hold the findings against what failed."""

from __future__ import annotations

import multiprocessing
import warnings
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any

import torch

from benchmarks.report_card.findings import Finding, NotReproducedError, reproduce
from benchmarks.report_card.subjects import Subject
from torchlosses.testing import Report, check_loss

KEPT = ("check", "status", "reason", "cases", "finding")
SKIPPED = {"cost": "times and memory are measured one at a time, by `make bench`"}


@dataclass(frozen=True)
class Grade:
    """A subject with the version that was audited, its report and what explains its failures."""

    subject: Subject
    version: str
    report: Report
    findings: tuple[Finding, ...]
    problems: tuple[str, ...] = ()

    @property
    def unexplained(self) -> tuple[str, ...]:
        """The checks that failed without a finding."""
        explained = {check for finding in self.findings for check in finding.checks}
        return tuple(result.check for result in self.report.failures if result.check not in explained)

    def causes(self, judgement: str) -> int:
        """How many findings of that judgement there are; one may fail many checks."""
        return sum(finding.judgement == judgement for finding in self.findings)

    def to_dict(self) -> dict[str, Any]:
        """The grade as JSON types, without what differs from run to run."""
        report = self.report.to_dict()
        report["results"] = [{key: result[key] for key in KEPT} for result in report["results"]]
        return {
            "name": self.subject.name,
            "distribution": self.subject.distribution,
            "version": self.version,
            "called": self.subject.called,
            "report": report,
            "findings": [
                {
                    "title": finding.title,
                    "judgement": finding.judgement,
                    "checks": list(finding.checks),
                    "words": finding.words,
                    "lines": finding.lines,
                }
                for finding in self.findings
            ],
        }


def grade(subjects: Sequence[Subject], findings: Sequence[Finding], jobs: int = 1) -> Iterator[Grade]:
    """The grades, in the order in which they are ready."""
    work = [(subject, tuple(f for f in findings if f.subject == subject.name)) for subject in subjects]
    with multiprocessing.get_context("spawn").Pool(jobs, maxtasksperchild=1) as pool:
        yield from pool.imap_unordered(_grade, work)


def _grade(work: tuple[Subject, tuple[Finding, ...]]) -> Grade:
    subject, findings = work
    report = audit(subject)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        problems = [*_not_reproduced(findings), *stale(report, findings)]
    return Grade(subject, version(subject.distribution), report, findings, tuple(problems))


def audit(subject: Subject, device: str = "cpu") -> Report:
    """The report of a subject, on one thread of the CPU or on another device."""
    torch.set_num_threads(1)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return check_loss(
            subject.load(),
            kind=subject.kind,
            reference=subject.reference,
            options=subject.options,
            rename=subject.rename,
            skip=SKIPPED,
            device=device,
        )


def _not_reproduced(findings: Iterable[Finding]) -> Iterator[str]:
    for finding in findings:
        try:
            reproduce(finding)
        except NotReproducedError as error:
            yield str(error)


def stale(report: Report, findings: Iterable[Finding]) -> Iterator[str]:
    """What the findings explain although it does not fail."""
    failed = {result.check for result in report.failures}
    for finding in findings:
        for check in finding.checks:
            if check not in failed:
                yield f"{finding.subject}: {finding.title!r} explains {check}, which does not fail"
