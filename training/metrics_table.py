"""The metrics of every epoch as a flat table, for spreadsheets and for TensorBoard."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable

from training.results import EpochRecord, ObjectiveRun


def metrics_table(runs: Iterable[ObjectiveRun]) -> str:
    """The metrics as CSV, a row per objective, seed and epoch; cells that do not apply to an objective stay empty."""
    rows = [
        {"task": run.task, "objective": run.objective, "seed": run.seed, "epoch": epoch.epoch, **flat(epoch)}
        for run in runs
        for epoch in run.epochs
    ]
    columns = list(dict.fromkeys(column for row in rows for column in row))
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, restval="", lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def flat(epoch: EpochRecord) -> dict[str, float]:
    """The numbers of one epoch by name; those of a decoding begin with its name."""
    values = {"train_loss": epoch.train_loss, "seconds": epoch.seconds}
    for decoding, decoded in epoch.evaluation.decoded.items():
        prefix = decoding.replace(" ", "_")
        values |= {f"{prefix}_{metric}": value for metric, value in decoded.model_dump().items()}
    if epoch.evaluation.probabilities is not None:
        values |= epoch.evaluation.probabilities.model_dump()
    return values
