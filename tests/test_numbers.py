"""Every number in README.md and docs/ comes from the results that its command wrote, or is a definition that is listed.

A number that is a figure (a decimal, two digits or more, or one with a unit) stands in a passage that a command makes
from stored results, in an example that runs, in a formula, in code; or it is in `DEFINITIONS`, with the reason why no
measurement is behind it.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from pathlib import Path

import pytest

pytest.importorskip("tyro", reason="the commands need the extra 'training'")

from benchmarks import report
from tests import transform_table

ROOT = Path(__file__).resolve().parent.parent
PAGES = ("README.md", *sorted(f"docs/{path.name}" for path in (ROOT / "docs").glob("*.md")))
# Made as a whole by `make report-card` and `make bench-gpu`.
MADE = ("docs/report-card.md",)

_UNITS = r"%|×|x\b|ms\b|µs\b|s\b|KiB|MiB|GiB|MB|GB|seconds?|minutes?|hours?|times\b|points?|ulp|°|nats"
_FIGURE = re.compile(
    rf"(?<![\w.^-])(?:\d+[.,]\d[\d.,e+-]*\d|\d+\.\d|\d{{2,}}(?:e-?\d+)?|\d+e-?\d+|[1-9](?=[  ]?(?:{_UNITS})))(?![\w])"
)

SUPPORTED = "the oldest version that is supported; pyproject.toml and CI say the same"
RUN = "a version that `make test-torch` has run with; tests/error_types.json has those of torch"
EXACT = "follows from the formula or the dtype; a test or an example beside it computes it"
SIZE = "a size that the code sets"
DEFINITIONS: dict[str, dict[str, str]] = {
    "README.md": {
        "3.10": SUPPORTED,
        "2.10": SUPPORTED,
        "6.3": "du -sh .venv, as the page says; what pip finds decides",
        "0.0195": "the textbook's own; tests/test_textbook.py",
        "0.1195": "the textbook's own; tests/test_textbook.py",
        "0.510825457099338": "the textbook's own; tests/test_textbook.py",
        "2.302584092994546": "the textbook's own; tests/test_textbook.py",
        "1e-12": "the tolerance in tests/test_textbook.py",
        "3.0": "the name of a licence",
    },
    "docs/binary_cross_entropy.md": {"40": EXACT},
    "docs/decide.md": {
        "17": "exp(-17) is below half of what float32 can add to 1",
        "64": "the shape of a row of the table below it",
        "10": "the shape of a row of the table below it",
        "2.10": SUPPORTED,
        "3.10": SUPPORTED,
    },
    "docs/design.md": {
        "2.10": SUPPORTED,
        "128": "a number of classes",
        "4": "the size of a page of memory",
        "2": SIZE,
    },
    "docs/divergences.md": {
        "2.10": SUPPORTED,
        "2.14.1": "the version that was observed",
        "2.12": "the last of tests/error_types.json with the older type",
        "2.14": "the first of tests/error_types.json with the newer type",
        "2.13": "the version from which LibTorch tells why it refuses a call",
        "2.15": "the version from which LibTorch makes no ValueError of what C++ throws",
        "2.06e-9": EXACT,
        "0.9": "`test_low_precision_is_computed_in_float32` computes torch's error too",
        "4096": "a shape",
        "1000": "a shape",
        "5.0": EXACT,
        "1.667": EXACT,
        "300": EXACT,
        "1e30": EXACT,
        "40": EXACT,
        "4.2e-18": EXACT,
    },
    "docs/huber.md": {"1e30": EXACT},
    "docs/install.md": {
        "12": "a version of a compiler",
        "3.10": SUPPORTED,
        "2.10": SUPPORTED,
        "2.10.0": RUN,
        "2.12.1": RUN,
        "2.15.0": RUN,
        "3.11": RUN,
    },
    "docs/language_models.md": {
        "2.10": SUPPORTED,
        "8192": "sizes, and their product",
        "128": "sizes, and their product",
        "000": "sizes, and their product",
        "4": "sizes, and their product",
    },
    "docs/linear_kl_div.md": {"2015": "a year", "2024": "a year"},
    "docs/linear_cross_entropy.md": {
        "32": "usual sizes of vocabularies",
        "256": "usual sizes of vocabularies",
        "000": "usual sizes of vocabularies",
        "42": SIZE,
        "128": SIZE,
        "1024": SIZE,
    },
    "docs/performance.md": {
        "60": "the aim, not a result",
        "32": "glibc's largest threshold for a mapping",
        "1.00": "what the measurement has to give for a clone",
    },
    "docs/study.md": {
        "10": "δ of the textbook's loss",
        "0.2": "the margin of being equal, fixed before the measurement",
    },
    "docs/testing.md": {"89": EXACT, "11": EXACT, "20,000": SIZE},
}


def prose(text: str) -> str:
    """What is left without the passages that commands make, blocks and pieces of code, formulas, targets of links."""
    text = re.sub(r"<!-- (\w+): [\w-]+ -->\n.*?<!-- end of \1 -->", "", text, flags=re.DOTALL)
    text = re.sub(r"^```(.*?)\n(.*?)^```", _comments_of_commands, text, flags=re.DOTALL | re.MULTILINE)
    text = re.sub(r"\$\$.*?\$\$|\$[^$\n]+\$", "", text, flags=re.DOTALL)
    text = re.sub(r"`[^`\n]*`", "", text)
    return re.sub(r"\]\([^)\n]*\)", "]", text)


def _comments_of_commands(block: re.Match[str]) -> str:
    return re.sub(r"(?m)^[^#\n]*", "", block[2]) if block[1] == "bash" else ""


def figures(text: str) -> list[str]:
    return _FIGURE.findall(prose(text))


@pytest.mark.parametrize("page", [page for page in PAGES if page not in MADE])
def test_a_figure_comes_from_results_or_is_a_definition(page: str) -> None:
    found = figures((ROOT / page).read_text(encoding="utf-8"))
    allowed = DEFINITIONS.get(page, {})
    assert sorted(set(found) - set(allowed)) == [], "figures that no command made, and that are no definitions"
    assert sorted(set(allowed) - set(found)) == [], "definitions that the page does not have any more"


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("it takes 21.0 ms, 6 ms or 6.2× as long", ["21.0", "6", "6.2"]),
        ("five of 12 are 3 points ahead", ["12", "3"]),
        ("`x[10]` and $10^{-7}$ are no figures, [a link](page-10.md) is none, nor are 1 and 0", []),
        ("```bash\nmake bench 20  # about 10 minutes\n```\n", ["10"]),
        ("```python\n>>> 10 + 10\n20\n```\n", []),
        ("<!-- benchmark: summary -->\n21.0 ms\n<!-- end of benchmark -->\nand 1e-5 less", ["1e-5"]),
        ("at 1,000 rows or 2³¹, -20", ["1,000"]),
    ],
)
def test_what_a_figure_is(text: str, found: list[str]) -> None:
    assert figures(text) == found


def test_the_documents_say_what_the_results_say() -> None:
    """`python -m benchmarks.report --check`; those of the study are in tests/training/test_publish.py."""
    differing = report.differing_documents(report.Options())
    assert [path.name for path in differing] == [], "`python -m benchmarks.report` fills them in"


def test_the_report_card_says_what_its_results_say() -> None:
    page = (ROOT / "docs" / "report-card.md").read_text(encoding="utf-8")
    stored = json.loads((ROOT / "docs" / "report-card.json").read_text(encoding="utf-8"))
    for loss in stored["losses"]:
        statuses = Counter(result["status"] for result in loss["report"]["results"])
        counts = " | ".join(
            str(statuses[status] or "") for status in ("passed", "failed", "not supported", "not applicable")
        )
        row = next(line for line in page.splitlines() if line.startswith(f"| [{loss['name']}]("))
        assert f" | {counts} | ".replace("  ", " ") in row.replace("  ", " "), loss["name"]


def test_the_table_of_transforms_is_the_tests_grid() -> None:
    """`python -m tests.transform_table` fills it in."""
    page = transform_table.PAGE.read_text(encoding="utf-8")
    assert transform_table.filled(page) == page


@pytest.mark.parametrize("page", [*PAGES, "CHANGELOG.md", "CONTRIBUTING.md"])
def test_a_test_that_a_page_names_exists(page: str) -> None:
    names = re.findall(r"`(test_\w+)(?:\.py|\*)?`", (ROOT / page).read_text(encoding="utf-8"))
    tests = "\n".join(path.read_text(encoding="utf-8") for path in (ROOT / "tests").rglob("*.py"))
    files = " ".join(path.stem for path in (ROOT / "tests").rglob("*.py"))
    assert [name for name in names if f"def {name}" not in tests and name not in files] == []
