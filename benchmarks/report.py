"""The command that makes the documents from results: `python -m benchmarks.report`.

It draws the plots, and puts the tables where a document has a place for them, between a pair of comments such as
`<!-- benchmark: goals -->` and `<!-- end of benchmark -->`.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from benchmarks.errors import BenchmarkError
from benchmarks.run import FULL, USAGE_ERROR

PROGRAM = "python -m benchmarks.report"
ROOT = Path(__file__).parents[1]
_PLACE = re.compile(r"(<!-- benchmark: ([\w-]+) -->\n).*?(<!-- end of benchmark -->)", re.DOTALL)


@dataclass(frozen=True)
class Options:
    """Draw the plots and fill the tables of README.md and docs/performance.md from measured results."""

    results: Annotated[
        Path, tyro.conf.arg(metavar="FILE", help_behavior_hint="(default: benchmarks/results/full.json)")
    ] = FULL
    """What `python -m benchmarks.run` wrote."""
    root: Annotated[Path, tyro.conf.arg(metavar="FOLDER", help_behavior_hint="(default: this repository)")] = ROOT
    """The folder that holds README.md and docs."""


def fill(text: str, tables: Mapping[str, str], where: str) -> str:
    """The text with each place filled by the table of its name.

    Raises:
        BenchmarkError: There is no table of that name, or no place at all.
    """

    def filled(place: re.Match[str]) -> str:
        begin, name, end = place.groups()
        if name not in tables:
            raise BenchmarkError(f"{where} has a place for {name!r}; there are tables for {', '.join(tables)}")
        return f"{begin}{tables[name]}\n{end}"

    result, count = _PLACE.subn(filled, text)
    if not count:
        raise BenchmarkError(
            f"{where} has no place for a table: <!-- benchmark: NAME --> and <!-- end of benchmark -->"
        )
    return result


def write_documents(options: Options) -> list[Path]:
    """Fill the documents, draw the plots, and return what was written.

    Raises:
        BenchmarkError: The results cannot be read, or a document is missing or has no place for them.
    """
    # Imported only now: --help and wrong options are answered at once.
    from benchmarks.figures import draw_figures
    from benchmarks.results import read_results
    from benchmarks.tables import tables
    from training.files import write_text_atomically

    results = read_results(options.results)
    made = tables(results)
    filled = {}
    for path in (options.root / "README.md", options.root / "docs" / "performance.md"):
        try:
            filled[path] = fill(path.read_text(encoding="utf-8"), made, path.name)
        except OSError as error:
            raise BenchmarkError(f"{path} cannot be read ({error.strerror}); --root names the repository") from error
    for path, text in filled.items():
        write_text_atomically(path, text)
    return [*filled, *draw_figures(results, options.root / "docs" / "images")]


def main(arguments: Sequence[str] | None = None) -> int:
    """Make the documents, say what was written, and return the exit code."""
    arguments = sys.argv[1:] if arguments is None else arguments
    try:
        written = write_documents(tyro.cli(Options, prog=PROGRAM, args=list(arguments)))
    except BenchmarkError as error:
        print(f"error: {error}", file=sys.stderr)
        return USAGE_ERROR
    for path in written:
        print(path)
    return 0


if __name__ == "__main__":
    sys.exit(main())
