"""A report as one HTML page."""

from __future__ import annotations

import html

from torchlosses.testing.report import Report, Result

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
    title = html.escape(report.heading)
    return f"""<!DOCTYPE html>
<html lang="en">
<head><meta charset="utf-8"><title>{title}</title><style>{_STYLE}</style></head>
<body>
<h1>{title}</h1>
<p>{html.escape(report.summary)}. {html.escape(report.tolerance)} {html.escape(versions)}.</p>
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
    cells = (html.escape(result.check), html.escape(result.outcome), html.escape(result.why))
    return f'<tr><td>{cells[0]}</td><td class="{style}">{cells[1]}</td><td>{cells[2]}</td></tr>'


def _failure(result: Result) -> str:
    name, why, finding = (html.escape(str(part)) for part in (result.check, result.why, result.finding))
    return f"<h2>{name}</h2><p>{why}</p><pre>{finding}</pre>"
