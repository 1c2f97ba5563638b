"""The command that makes the documents from results: `python -m benchmarks.report`.

It draws the plots, and puts the tables where a document has a place for them, between a pair of comments such as
`<!-- benchmark: goals -->` and `<!-- end of benchmark -->`.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from benchmarks.errors import BenchmarkError
from benchmarks.run import ARGUMENTS, CURVES, FULL, IMPORT_TIME, NORMALIZER, TRANSFORMERS, USAGE_ERROR

PROGRAM = "python -m benchmarks.report"
ROOT = Path(__file__).parents[1]
DOCUMENTS = ("README.md", "docs/performance.md", "docs/normalizer.md", "docs/language_models.md")
DIFFERS = 1
_PLACE = re.compile(r"(<!-- benchmark: ([\w-]+) -->\n).*?(<!-- end of benchmark -->)", re.DOTALL)


@dataclass(frozen=True)
class Options:
    """Draw the plots and fill the tables of README.md and docs from measured results."""

    results: Annotated[
        Path, tyro.conf.arg(metavar="FILE", help_behavior_hint="(default: benchmarks/results/full.json)")
    ] = FULL
    """What `python -m benchmarks.run` wrote; what the other commands wrote lies beside it."""
    root: Annotated[Path, tyro.conf.arg(metavar="FOLDER", help_behavior_hint="(default: this repository)")] = ROOT
    """The folder that holds README.md and docs."""
    check: bool = False
    """Write nothing; name the documents that differ from the results, and end with 1 if there are any."""


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


def passages(results: Path) -> dict[str, str]:
    """Every table of the documents, by the name of its place.

    Raises:
        BenchmarkError: The results cannot be read.
    """
    from benchmarks import tables
    from benchmarks.results import ImportTimes, TrainingCurves, read_record, read_results
    from benchmarks.transformers_table import Sweep
    from benchmarks.transformers_table import table as models_table

    made = tables.tables(read_results(results))
    beside: dict[str, tuple[Path, Callable[[Path], str]]] = {
        "growth": (CURVES, lambda path: tables.growth(read_results(path))),
        "import": (IMPORT_TIME, lambda path: tables.import_table(read_record(path, ImportTimes))),
        "arguments": (ARGUMENTS, lambda path: tables.arguments_table(read_results(path))),
        "normalizer": (NORMALIZER, lambda path: tables.training_curves_table(read_record(path, TrainingCurves))),
        "model-types": (TRANSFORMERS, lambda path: models_table(read_record(path, Sweep))),
    }
    for name, (path, make) in beside.items():
        found = results.with_name(path.name)
        made[name] = (
            make(found) if found.exists() else f"Not measured yet: there is no `{path.name}` beside the results."
        )
    return made


def filled_documents(options: Options) -> dict[Path, str]:
    """The documents as the results make them.

    Raises:
        BenchmarkError: The results cannot be read, or a document is missing or has no place for them.
    """
    made = passages(options.results)
    filled = {}
    for name in DOCUMENTS:
        path = options.root / name
        try:
            filled[path] = fill(path.read_text(encoding="utf-8"), made, path.name)
        except OSError as error:
            raise BenchmarkError(f"{path} cannot be read ({error.strerror}); --root names the repository") from error
    return filled


def write_documents(options: Options) -> list[Path]:
    """Fill the documents, draw the plots, and return what was written."""
    from benchmarks.figures import draw_figures, draw_growth
    from benchmarks.results import read_results
    from training.files import write_text_atomically

    filled = filled_documents(options)
    for path, text in filled.items():
        write_text_atomically(path, text)
    images = options.root / "docs" / "images"
    drawn = draw_figures(read_results(options.results), images)
    curves = options.results.with_name(CURVES.name)
    if curves.exists():
        drawn += draw_growth(read_results(curves), images)
    return [*filled, *drawn]


def differing_documents(options: Options) -> list[Path]:
    """The documents in which something stands that the results do not say."""
    return [path for path, text in filled_documents(options).items() if path.read_text(encoding="utf-8") != text]


def main(arguments: Sequence[str] | None = None) -> int:
    """Make the documents, say what was written, and return the exit code."""
    arguments = sys.argv[1:] if arguments is None else arguments
    try:
        options = tyro.cli(Options, prog=PROGRAM, args=list(arguments))
        written = differing_documents(options) if options.check else write_documents(options)
    except BenchmarkError as error:
        print(f"error: {error}", file=sys.stderr)
        return USAGE_ERROR
    for path in written:
        print(f"{path} differs from its results: `{PROGRAM}` fills it in" if options.check else path)
    return DIFFERS if options.check and written else 0


if __name__ == "__main__":
    sys.exit(main())
