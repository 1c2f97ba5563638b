"""The table at the end of a run: mean and interval over the seeds."""

from __future__ import annotations

from rich import box
from rich.console import Console
from rich.table import Table

from training.conclusions import (
    ACCURACY,
    BRIER_SCORE,
    CALIBRATION_ERROR,
    MEAN_ABSOLUTE_ERROR,
    NEGATIVE_LOG_LIKELIHOOD,
    ROOT_MEAN_SQUARED_ERROR,
    Contender,
    Measure,
    contenders,
)
from training.results import Results, TaskName
from training.statistics import CONFIDENCE, summarize

_ERRORS = {"accuracy": ACCURACY, "MAE": MEAN_ABSOLUTE_ERROR, "RMSE": ROOT_MEAN_SQUARED_ERROR}
_PROBABILITIES = {
    "neg. log-likelihood": NEGATIVE_LOG_LIKELIHOOD,
    "Brier score": BRIER_SCORE,
    "calibration error": CALIBRATION_ERROR,
}
_TITLES: dict[TaskName, str] = {"digit": "Which digit? (errors in digits)", "angle": "Which angle? (errors in degrees)"}


def print_table(results: Results, console: Console) -> None:
    """For each task every objective and decoding after the last epoch, and below it the quality of the probabilities.

    Narrow enough for a terminal of 80 columns.
    """
    for task, title in _TITLES.items():
        rows = contenders(results, task, every_decoding=True)
        if not rows:
            continue
        errors = _table(title, [*_ERRORS, "s/epoch"])
        for row in rows:
            several = len(row.description.decodings) > 1
            label = f"{row.description.name}, {row.decoding}" if several else row.description.name
            seconds = summarize(epoch.seconds for run in row.runs for epoch in run.epochs)
            errors.add_row(label, *_cells(row, _ERRORS), f"{seconds.mean:.2f}")
        console.print(errors)
        probabilities = _table("", list(_PROBABILITIES))
        for row in contenders(results, task):
            if row.runs and row.runs[0].epochs[-1].evaluation.probabilities is not None:
                probabilities.add_row(row.description.name, *_cells(row, _PROBABILITIES))
        if probabilities.rows:
            console.print(probabilities)
    console.print(f"± is the half width of the {CONFIDENCE:.0%} interval over {results.config['seeds']} seed(s)")


def _table(title: str, columns: list[str]) -> Table:
    table = Table(title=title or None, title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("objective")
    for column in columns:
        table.add_column(column, justify="right", no_wrap=True)
    return table


def _cells(row: Contender, measures: dict[str, Measure]) -> list[str]:
    return [measure.format(row.summary(measure)) for measure in measures.values()]
