"""The report card: the conformance kit over a list of losses, as docs/report-card.md and its JSON."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

from torchlosses.testing import Kind, Report, Result, check_loss


@dataclass(frozen=True)
class Entry:
    """A loss of the report card.

    Args:
        name: The heading.
        loss: The function, Module class or Module.
        kind: As for `check_loss`.
        reference: As for `check_loss`.
        distribution: The installed distribution whose version is shown.
        options: As for `check_loss`.
        rename: As for `check_loss`.
        skip: As for `check_loss`, with reasons.
        remarks: For checks that fail, a fair word and the lines that reproduce it, in Markdown.
    """

    name: str
    loss: Any
    kind: str | Kind
    reference: Any = None
    distribution: str = "torch"
    options: Mapping[str, Any] = field(default_factory=dict)
    rename: Mapping[str, str] = field(default_factory=dict)
    skip: Mapping[str, str] = field(default_factory=dict)
    remarks: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Graded:
    """An entry with its report and the version that was audited."""

    entry: Entry
    report: Report
    version: str


def grade(entries: Iterable[Entry]) -> list[Graded]:
    """Audit every entry."""
    return [
        Graded(
            entry,
            check_loss(
                entry.loss,
                kind=entry.kind,
                reference=entry.reference,
                skip=entry.skip,
                options=entry.options,
                rename=entry.rename,
            ),
            version(entry.distribution),
        )
        for entry in entries
    ]


def markdown(graded: Sequence[Graded], command: str = "make report-card") -> str:
    """The report card as Markdown: a table, then each loss's failures with the calls that show them."""
    lines = [
        "# Report card",
        "",
        f"Made by `{command}`; the checks are those of [`torchlosses.testing`](testing.md). A loss may refuse what it",
        "does not support with an error: that counts as not supported, never as failed.",
        "",
        "| loss | version | passed | failed | not supported | not applicable | skipped |",
        "| --- | --- | ---: | ---: | ---: | ---: | ---: |",
    ]
    for item in graded:
        counts = item.report.counts
        name = f"[{item.entry.name}](#{_anchor(item.entry.name)})"
        numbers = (counts[status] for status in ("passed", "failed", "not supported", "not applicable", "skipped"))
        version = f"{item.entry.distribution} {item.version}"
        lines.append(f"| {name} | {version} | " + " | ".join(map(str, numbers)) + " |")
    for item in graded:
        lines += ["", f"## {item.entry.name}", "", *_section(item)]
    return "\n".join(lines) + "\n"


def _section(item: Graded) -> list[str]:
    report = item.report
    reference = f", against `{report.reference}`" if report.reference else ""
    lines = [f"`{report.loss}`, as {report.kind}{reference}."]
    if not report.failures:
        lines.append("No check failed.")
    for result in report.failures:
        lines += ["", *_failure(result, item.entry.remarks.get(result.check))]
    for status in ("not supported", "too large", "skipped"):
        some = [result for result in report.results if result.status == status]
        if some:
            lines += ["", f"{status.capitalize()}:", ""]
            lines += [f"- `{result.check}`: {_escaped(result.reason)}" for result in some]
    return lines


def _failure(result: Result, remark: str | None) -> list[str]:
    finding = result.finding
    assert finding is not None
    lines = [
        f"**`{result.check}`**: {_escaped(finding.summary)}. {result.why}",
        "",
        "```python",
        f"{finding.call}",
        f"# got:      {finding.got}",
        f"# expected: {finding.expected}",
        "```",
        "",
        f"Likely cause: {_escaped(finding.cause)}.",
    ]
    return [*lines, "", remark] if remark else lines


def _escaped(text: str) -> str:
    return text.replace("<", "&lt;")


def _anchor(name: str) -> str:
    return "".join(c for c in name.lower().replace(" ", "-") if c.isalnum() or c in "-_")


def write(graded: Sequence[Graded], folder: Path, command: str = "make report-card") -> None:
    """Write report-card.md and report-card.json, each whole or not at all."""
    data = [
        {"name": g.entry.name, "distribution": g.entry.distribution, "version": g.version, **g.report.to_dict()}
        for g in graded
    ]
    _write_whole(folder / "report-card.md", markdown(graded, command))
    _write_whole(folder / "report-card.json", json.dumps(data, indent=1, allow_nan=False) + "\n")


def _write_whole(path: Path, text: str) -> None:
    with tempfile.NamedTemporaryFile("w", dir=path.parent, delete=False, encoding="utf-8") as file:
        file.write(text)
    Path(file.name).chmod(0o644)
    os.replace(file.name, path)  # noqa: PTH105
