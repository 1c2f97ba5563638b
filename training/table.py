"""The table at the end of a run: mean and interval over the seeds."""

from __future__ import annotations

from rich import box
from rich.console import Console
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
from training.statistics import CONFIDENCE, summarize

_ERRORS = {"accuracy": ACCURACY, "MAE": MEAN_ABSOLUTE_ERROR, "RMSE": ROOT_MEAN_SQUARED_ERROR}
_PROBABILITIES = {
    "neg. log-likelihood": NEGATIVE_LOG_LIKELIHOOD,
    "Brier score": BRIER_SCORE,
    "calibration error": CALIBRATION_ERROR,
}
_TITLES = {"digit": "Which digit? (errors in digits)", "angle": "Which angle? (errors in degrees)"}
# In a narrower terminal the numbers go below the objective's name, not beside it.
_WIDE_ENOUGH = 72


def print_table(results: Results, console: Console) -> None:
    """For each task every objective and decoding after the last epoch, and below it the quality of the probabilities.

    Fits a terminal of 80 columns, and with the numbers of an objective below each other one of 40.
    """
    for task in tasks_of(results):
        rows = contenders(results, task, every_decoding=True)
        if not rows:
            continue
        title = _TITLES.get(task, title_of(task))
        if console.width < _WIDE_ENOUGH:
            _print_narrow(title, rows, console)
            continue
        errors = _table(title, [*_ERRORS, "s/epoch"])
        for row in rows:
            seconds = summarize(epoch.seconds for run in row.runs for epoch in run.epochs)
            errors.add_row(_name(row), *_cells(row, _ERRORS), f"{seconds.mean:.2f}")
        console.print(errors)
        probabilities = _table("", list(_PROBABILITIES))
        for row in contenders(results, task):
            if row.runs and row.runs[0].epochs[-1].evaluation.probabilities is not None:
                probabilities.add_row(row.description.name, *_cells(row, _PROBABILITIES))
        if probabilities.rows:
            console.print(probabilities)
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


def _table(title: str, columns: list[str]) -> Table:
    table = Table(title=title or None, title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("objective", min_width=18)
    for column in columns:
        table.add_column(column, justify="right", no_wrap=True)
    return table


def _cells(row: Contender, measures: dict[str, Measure]) -> list[str]:
    return [measure.format(row.summary(measure)) for measure in measures.values()]
