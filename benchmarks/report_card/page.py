"""The report card as Markdown and JSON."""

from __future__ import annotations

import json
import os
import platform
import tempfile
from collections.abc import Sequence
from datetime import date
from pathlib import Path

import numpy as np
import torch
from jinja2 import Environment, FileSystemLoader, StrictUndefined

from benchmarks.report_card.accelerator import Card
from benchmarks.report_card.findings import JUDGEMENTS
from benchmarks.report_card.grading import Grade
from torchlosses.testing import CHECKS

COMMAND = "make report-card"
RAN = ("passed", "failed")


def markdown(grades: Sequence[Grade], made: date, card: Card | None = None) -> str:
    """The page; without a card the column for a GPU is empty, and the page says so."""
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        undefined=StrictUndefined,
        keep_trailing_newline=True,
        autoescape=False,
    )
    return environment.get_template("page.md.jinja").render(
        anchor=_anchor,
        card=card,
        command=COMMAND,
        grades=grades,
        judgements=JUDGEMENTS,
        made=made.isoformat(),
        share=_share,
        topics=_topics(grades),
        versions=", ".join(f"{name} {number}" for name, number in _versions().items()),
    )


def write(grades: Sequence[Grade], folder: Path, made: date, card: Card | None = None) -> None:
    """Write report-card.md and report-card.json, each whole or not at all; without a card the one in there is kept."""
    card = card or _kept(folder / "report-card.json")
    data = {
        "made": made.isoformat(),
        "command": COMMAND,
        "versions": _versions(),
        "judgements": JUDGEMENTS,
        "losses": [grade.to_dict() for grade in grades],
        "gpu": None if card is None else card.to_dict(),
    }
    _write_whole(folder / "report-card.json", json.dumps(data, indent=1, allow_nan=False) + "\n")
    _write_whole(folder / "report-card.md", markdown(grades, made, card))


def _kept(path: Path) -> Card | None:
    found = json.loads(path.read_text(encoding="utf-8")).get("gpu") if path.exists() else None
    return None if found is None else Card.from_dict(found)


def _versions() -> dict[str, str]:
    return {"Python": platform.python_version(), "torch": torch.__version__, "NumPy": np.__version__}


def _topics(grades: Sequence[Grade]) -> list[str]:
    """The subjects of the checks that ran on some loss."""
    ran = {result.check for grade in grades for result in grade.report.results if result.status in RAN}
    return list(dict.fromkeys(check.partition(".")[0] for check in CHECKS if check in ran))


def _share(grade: Grade, topic: str) -> str:
    statuses = [result.status for result in grade.report.results if result.subject == topic]
    ran = sum(status in RAN for status in statuses)
    return f"{statuses.count('passed')}/{ran}" if ran else ""


def _anchor(heading: str) -> str:
    """The anchor that GitHub gives a heading."""
    return "".join(c for c in heading.lower().replace(" ", "-") if c.isalnum() or c in "-_")


def _write_whole(path: Path, text: str) -> None:
    with tempfile.NamedTemporaryFile("w", dir=path.parent, delete=False, encoding="utf-8") as file:
        file.write(text)
    Path(file.name).chmod(0o644)
    os.replace(file.name, path)  # noqa: PTH105
