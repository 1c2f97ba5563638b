"""The table at the end of a run: mean and interval over the seeds."""

from __future__ import annotations

from collections.abc import Iterable

from rich import box
from rich.console import Console
from rich.measure import Measurement
from rich.table import Table

from training.measures import (
    ACCURACY,
    BRIER_SCORE,
    CALIBRATION_ERROR,
    MEAN_ABSOLUTE_ERROR,
    NEGATIVE_LOG_LIKELIHOOD,
    ROOT_MEAN_SQUARED_ERROR,
    Contender,
    Measure,
    contenders,
    tasks_of,
)
from training.questions import TaskName
from training.results import Results
from training.statistics import CONFIDENCE

_ERRORS = {"accuracy": ACCURACY, "MAE": MEAN_ABSOLUTE_ERROR, "RMSE": ROOT_MEAN_SQUARED_ERROR}
_PROBABILITIES = {
    "neg. log-lik.": NEGATIVE_LOG_LIKELIHOOD,
    "Brier score": BRIER_SCORE,
    "calibration error": CALIBRATION_ERROR,
}
_TITLES = {"digit": "Which digit? (errors in digits)", "angle": "Which angle? (errors in degrees)"}


def print_table(results: Results, console: Console) -> None:
    """For each task every objective and decoding after the last epoch, and below it the quality of the probabilities.

    Where the terminal is too narrow for a table, the numbers of an objective go below each other, in 40 columns.
    """
    for task in tasks_of(results):
        rows = contenders(results, task, every_decoding=True)
        if not rows:
            continue
        title = _TITLES.get(task, title_of(task))
        errors, probabilities = _table(title, _ERRORS), _table("", _PROBABILITIES)
        for row in rows:
            errors.add_row(_name(row), *_cells(row, _ERRORS))
        for row in contenders(results, task):
            if row.runs and row.runs[0].epochs[-1].evaluation.probabilities is not None:
                probabilities.add_row(row.description.name, *_cells(row, _PROBABILITIES))
        tables = [table for table in (errors, probabilities) if table.rows]
        if all(_width(table, console) <= console.width for table in tables):
            console.print(*tables)
        else:
            _print_narrow(title, rows, console)
    interval = f"{CONFIDENCE:.0%} interval over {results.config['seeds']} seed(s)"
    console.print(f"± is the half width of the {interval}; in brackets: for other seeds and other images")


def title_of(task: TaskName) -> str:
    """A task in words."""
    if task.startswith("label-noise-"):
        return f"Digits, {task.removeprefix('label-noise-')} % of the training labels wrong"
    if task.startswith("few-images-"):
        return f"Digits, from {int(task.removeprefix('few-images-')):,} training images"
    return "Digits, with images kept apart to calibrate by" if task == "calibration" else task


def _name(row: Contender) -> str:
    return f"{row.description.name}, {row.decoding}" if len(row.description.decodings) > 1 else row.description.name


def _print_narrow(title: str, rows: list[Contender], console: Console) -> None:
    console.print(f"{title}\n", highlight=False)
    for row in rows:
        console.print(_name(row), style="bold", highlight=False)
        for measures in (_ERRORS, _PROBABILITIES):
            for name, measure in measures.items():
                summary = row.summary(measure)
                if summary.values:
                    console.print(f"  {name}: {measure.format(summary)}", highlight=False)
    console.print()


def _table(title: str, columns: Iterable[str]) -> Table:
    table = Table(title=title or None, title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False, collapse_padding=True)
    # The one column whose words may be broken: 'cross-entropy, expected value'.
    table.add_column("objective", max_width=20)
    for column in columns:
        table.add_column(column, justify="right", no_wrap=True)
    return table


def _width(table: Table, console: Console) -> int:
    """How many columns of a terminal the table takes where nothing is cut off."""
    return Measurement.get(console, console.options.update(max_width=1000), table).maximum


def _cells(row: Contender, measures: dict[str, Measure]) -> list[str]:
    return [measure.format(row.summary(measure)) for measure in measures.values()]
