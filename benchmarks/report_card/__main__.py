"""`make report-card`: audit every loss of the list, and write docs/report-card.md and docs/report-card.json.

With `--device cuda` the same checks run on a GPU too, and fill its column; without it, that column stays as it is.
"""

from __future__ import annotations

import argparse
import sys
from datetime import date
from pathlib import Path

from rich.console import Console
from rich.progress import track

from benchmarks.report_card.accelerator import card_of, on_card
from benchmarks.report_card.explanations import FINDINGS
from benchmarks.report_card.grading import Grade, grade
from benchmarks.report_card.page import write
from benchmarks.report_card.subjects import SUBJECTS

DOCS = Path(__file__).parents[2] / "docs"


def main() -> int:
    """Run the command; 1 where a failure is not explained, or an explanation does not hold."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.report_card",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--only", metavar="PART", default="", help="losses whose name holds this; nothing is written")
    parser.add_argument("--output", type=Path, default=DOCS, metavar="FOLDER", help="where to write (docs)")
    parser.add_argument("--jobs", type=int, default=2, metavar="N", help="processes at a time (2)")
    parser.add_argument("--device", metavar="DEVICE", help="a GPU to run the checks on as well, such as cuda")
    parser.add_argument("--draft", action="store_true", help="write although a failure is not explained")
    arguments = parser.parse_args()

    console = Console(stderr=True)
    chosen = [subject for subject in SUBJECTS if arguments.only in subject.name]
    if not chosen:
        parser.error(f"no loss has {arguments.only!r} in its name: {', '.join(s.name for s in SUBJECTS)}")
    running = grade(chosen, FINDINGS, arguments.jobs)
    graded = {g.subject.name: g for g in track(running, "auditing", total=len(chosen), console=console)}
    grades = [graded[subject.name] for subject in chosen]
    card = None
    if arguments.device is not None:
        running = on_card(chosen, arguments.device, arguments.jobs)
        losses = list(track(running, f"auditing on {arguments.device}", total=len(chosen), console=console))
        card = card_of(arguments.device, losses, date.today())
    problems = _report(grades, console)
    if arguments.only or (problems and not arguments.draft):
        console.print("Nothing was written.")
    else:
        write(grades, arguments.output, date.today(), card)
        console.print(f"Wrote report-card.md and report-card.json to {arguments.output}.")
    return 1 if problems else 0


def _report(grades: list[Grade], console: Console) -> bool:
    for one in grades:
        console.print(f"{one.subject.name} {one.version}: {one.report.counts}", highlight=False, soft_wrap=True)
        for check in one.unexplained:
            console.print(f"not explained: {one.report[check]}", markup=False, highlight=False, soft_wrap=True)
        for problem in one.problems:
            console.print(problem, markup=False, highlight=False, soft_wrap=True)
    return any(one.unexplained or one.problems for one in grades)


if __name__ == "__main__":
    sys.exit(main())
