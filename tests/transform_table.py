"""The table of docs/transforms.md, from the grid of tests/test_transforms.py: `python -m tests.transform_table`."""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path

from tests.test_transforms import WAYS
from tests.transform_cases import PROBLEMS

PAGE = Path(__file__).resolve().parent.parent / "docs" / "transforms.md"
_PLACE = re.compile(r"(<!-- transforms: table -->\n).*?(<!-- end of transforms -->)", re.DOTALL)


def table() -> str:
    """By way and loss, how many cases are compared with the formula on each backend."""
    cases: Counter[str] = Counter()
    for problem in PROBLEMS:
        cases[problem.name.partition("-")[0]] += len(problem.reductions)
    head = ["way", *(f"`{loss}`" for loss in cases)]
    rows = [[way, *map(str, cases.values())] for way in WAYS]
    rule = ["---", *["---:"] * len(cases)]
    return "\n".join(f"| {' | '.join(row)} |" for row in (head, rule, *rows))


def filled(text: str) -> str:
    """The page with the table in its place."""
    result, count = _PLACE.subn(lambda place: f"{place[1]}{table()}\n{place[2]}", text)
    assert count == 1
    return result


if __name__ == "__main__":
    PAGE.write_text(filled(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
