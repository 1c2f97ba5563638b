"""A report as a table in plain text, and as one HTML page."""

from __future__ import annotations

import html

from torchlosses.testing.report import Report, Result

MARKS = {"passed": "ok", "failed": "FAILED", "measured": "measured"}


def text(report: Report) -> str:
    """A table of the checks, then the failures, the notes and the counts."""
    width = max(len(result.check) for result in report.results) if report.results else 0
    lines = [heading(report), ""]
    lines += [f"{result.check:<{width}}  {_outcome(result)}" for result in report.results]
    for result in report.failures:
        lines += ["", str(result)]
    if report.notes:
        lines += ["", "Found while trying the loss out:", *(f"  {note}" for note in report.notes)]
    return "\n".join([*lines, "", counted(report)])


def heading(report: Report) -> str:
    """What was audited, in a line."""
    against = f" against {report.reference}" if report.reference else ""
    return f"{report.loss} as {report.kind}{against}"


def counted(report: Report) -> str:
    """The counts that are not 0."""
    counts = (f"{number} {status}" for status, number in report.counts.items() if number)
    return ", ".join(counts) or "no check was run"


def _outcome(result: Result) -> str:
    mark = MARKS.get(result.status, result.status)
    if result.measurements:
        numbers = "; ".join(f"{name}: {value:.3g}" for name, value in result.measurements.items())
        return f"{mark}: {numbers}"
    short = result.reason if len(result.reason) <= 160 else result.reason[:157] + "..."
    return f"{mark} ({short})" if short else mark


_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; max-width: 70em; margin: 2em auto; padding: 0 1em; color: #222; }
table { border-collapse: collapse; width: 100%; }
td, th { border-bottom: 1px solid #ddd; padding: .35em .6em; text-align: left; vertical-align: top; }
pre { background: #f5f5f5; padding: .8em; overflow-x: auto; }
.passed { color: #1a7f37; } .failed { color: #b3261e; font-weight: bold; } .other { color: #666; }
"""


def page(report: Report) -> str:
    """The report as one HTML page that needs no other file."""
    rows = "\n".join(_row(result) for result in report.results)
    failures = "\n".join(_failure(result) for result in report.failures)
    notes = "".join(f"<li>{html.escape(note)}</li>" for note in report.notes)
    versions = ", ".join(f"{name} {version}" for name, version in report.versions.items())
    title = html.escape(heading(report))
    return f"""<!DOCTYPE html>
<html lang="en">
<head><meta charset="utf-8"><title>{title}</title><style>{_STYLE}</style></head>
<body>
<h1>{title}</h1>
<p>{html.escape(counted(report))}. {html.escape(versions)}.</p>
{failures}
<h2>All checks</h2>
<table>
<tr><th>check</th><th>outcome</th><th>why it matters</th></tr>
{rows}
</table>
{f"<h2>Found while trying the loss out</h2><ul>{notes}</ul>" if notes else ""}
</body>
</html>
"""


def _row(result: Result) -> str:
    style = result.status if result.status in ("passed", "failed") else "other"
    cells = (html.escape(result.check), html.escape(_outcome(result)), html.escape(result.why))
    return f'<tr><td>{cells[0]}</td><td class="{style}">{cells[1]}</td><td>{cells[2]}</td></tr>'


def _failure(result: Result) -> str:
    name, why, finding = (html.escape(str(part)) for part in (result.check, result.why, result.finding))
    return f"<h2>{name}</h2><p>{why}</p><pre>{finding}</pre>"
