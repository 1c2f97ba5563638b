"""The page that a run leaves behind: figures, tables and what may be concluded, in one self-contained file."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from statistics import fmean

import numpy as np
from jinja2 import Environment, FileSystemLoader, StrictUndefined, Template

from training.conclusions import (
    ACCURACY,
    ANGLE_ERROR,
    BRIER_SCORE,
    CALIBRATION_ERROR,
    MEAN_ABSOLUTE_ERROR,
    NEGATIVE_LOG_LIKELIHOOD,
    ROOT_MEAN_SQUARED_ERROR,
    SOURCE_SENTENCE,
    Contender,
    contenders,
    draw_conclusions,
    format_share,
    format_summary,
    parity_holds,
)
from training.figures import Palette, confusion_contender, confusion_counts, draw_figures, residual_counts
from training.files import write_text_atomically
from training.results import ParityRecord, Results, TaskName
from training.statistics import summarize

_DATASETS = {"mnist": "MNIST", "fashion-mnist": "Fashion-MNIST", "kmnist": "Kuzushiji-MNIST"}
_TEMPLATES = Path(__file__).parent / "templates"


def write_report(results: Results, run_directory: Path) -> Path:
    """Draw the figures into `run_directory/figures` and write `run_directory/report.html`.

    Results of an interrupted run are welcome: the page shows what is there and says what is not.

    Args:
        results: what the run found.
        run_directory: where the report goes; created where it does not exist.

    Returns:
        The path of the page.
    """
    path = run_directory / "report.html"
    drawings = draw_figures(results, run_directory / "figures")
    palette = Palette.of(results)
    page = _template().render(
        results=results,
        conclusions=draw_conclusions(results),
        source_sentence=SOURCE_SENTENCE,
        alerts=list(_alerts(results)),
        figures=drawings,
        captions=_captions(results),
        palette=palette,
        setting=_setting(results),
        tables={task: _table(results, task) for task in ("digit", "angle")},
        parity=[(record, parity_holds(record)) for record in results.parity],
    )
    write_text_atomically(path, page)
    return path


@cache
def _template() -> Template:
    environment = Environment(
        loader=FileSystemLoader(_TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template("report.html.jinja")


@dataclass(frozen=True)
class Alert:
    """Something the reader must know before anything else; `severity` is 'failure' or 'caution'."""

    severity: str
    title: str
    text: str


def _alerts(results: Results) -> Iterable[Alert]:
    for record in results.parity:
        if not parity_holds(record):
            yield Alert(
                "failure",
                f"Parity failed: {record.loss} with {record.optimizer}",
                f"{record.ours} and {record.builtin} went apart over {record.steps} updates: {_parity_text(record)} "
                "Do not trust the other numbers of this run before the cause is found.",
            )
    if not results.parity:
        reason = (
            "This run used the losses of torch.nn themselves."
            if results.config.get("implementation") == "torch"
            else "This run ended before its losses were held against those of torch.nn."
        )
        yield Alert("caution", "Parity not checked", reason)
    finished = [run for run in results.runs if run.complete and run.epochs]
    if not results.complete:
        unfinished = len(results.runs) - len(finished)
        missing = [
            f"{item.title} ({item.task})"
            for item in results.objectives
            if not any(run.task == item.task and run.objective == item.name for run in finished)
        ]
        text = f"Finished trainings: {len(finished)}. Begun but not finished, shown in the learning curves only: "
        text += f"{unfinished}."
        if missing:
            text += f" Without a finished training: {'; '.join(missing)}."
        for name, experiment in (
            ("gradient", results.gradient_experiment),
            ("wrong-start", results.recovery_experiment),
        ):
            if experiment is None:
                text += f" The {name} experiment is missing."
        yield Alert("caution", "This run is not complete", text)
    if finished and len({run.seed for run in finished}) == 1:
        yield Alert("caution", "One seed", "Nothing is said about which objective is ahead: one seed has no spread.")
    if any(
        not summary.finite
        for task in ("digit", "angle")
        for item in contenders(results, task, every_decoding=True)
        if (summary := item.summary(ACCURACY if task == "digit" else ANGLE_ERROR)).values
    ):
        yield Alert("caution", "Not finite", "Some trainings ended in values that are not finite; see the tables.")


def _parity_text(record: ParityRecord) -> str:
    return (
        f"largest difference in loss {record.largest_loss_difference:.2g} (allowed {record.loss_tolerance:.2g}), "
        f"in weights {record.largest_weight_difference:.2g} (allowed {record.weight_tolerance:.2g})."
    )


def _setting(results: Results) -> list[tuple[str, str]]:
    """What was run, as terms and their values."""
    config, environment = results.config, results.environment
    seeds = sorted({run.seed for run in results.runs})
    dataset = str(config.get("dataset", "images"))
    setting = [
        (
            "Data",
            f"{_DATASETS.get(dataset, dataset)}: {results.train_images:,} images to train on, "
            f"{results.test_images:,} to test on",
        ),
        (
            "Tasks",
            f"digit: which digit is it, a category. angle: by how many degrees was the image turned, a quantity, "
            f"uniform in ±{results.angle_limit:g}°; as classes, "
            f"{round(2 * results.angle_limit / results.angle_bin_width)} bins of {results.angle_bin_width:g}°",
        ),
    ]
    if "model" in config:
        counts = sorted({run.parameters for run in results.runs})
        span = "" if not counts else f", {counts[0]:,} parameters" if len(counts) == 1 else (
            f", {counts[0]:,} to {counts[-1]:,} parameters with the head"
        )  # fmt: skip
        setting.append(("Network", f"{str(config['model']).upper()}, the same trunk under every head{span}"))
    epochs = [
        f"{max(len(run.epochs) for run in results.runs if run.task == task)} for the {task}"
        for task in ("digit", "angle")
        if any(run.task == task for run in results.runs)
    ]
    if epochs:
        setting.append(("Epochs", ", ".join(epochs)))
    if "batch_size" in config:
        setting.append(("Batch size", str(config["batch_size"])))
    if seeds:
        shared = (
            "; every objective sees the same initial trunk and the same batches" if len(results.objectives) > 1 else ""
        )
        setting.append(("Seeds", ", ".join(map(str, seeds)) + shared))
    setting += [
        ("Started", results.started),
        ("Took", f"{results.seconds:.0f} seconds"),
        (
            "Machine",
            f"{environment.processor}, {environment.device}, {environment.threads} threads, "
            f"{environment.processes} process{'es' if environment.processes != 1 else ''}, {environment.platform}",
        ),
        (
            "Versions",
            f"torchlosses {environment.torchlosses}, torch {environment.torch}, torchvision {environment.torchvision}, "
            f"torchmetrics {environment.torchmetrics}, NumPy {environment.numpy}, Python {environment.python}",
        ),
    ]
    return setting


@dataclass(frozen=True)
class Row:
    """One line of a table of results: an objective with one decoding, its numbers ready to print."""

    objective: str
    title: str
    decoding: str
    cells: tuple[str, ...]


@dataclass(frozen=True)
class Table:
    """The results of one task."""

    columns: tuple[str, ...]
    rows: tuple[Row, ...]
    note: str


def _table(results: Results, task: TaskName) -> Table:
    digit = task == "digit"
    errors = ROOT_MEAN_SQUARED_ERROR if digit else ANGLE_ERROR
    unit = "" if digit else "°"
    rows = []
    for contender in contenders(results, task, every_decoding=True):
        seconds = summarize(fmean(epoch.seconds for epoch in run.epochs) for run in contender.runs)
        # Probabilities, time and size belong to the network, however its outputs are decoded: once is enough.
        again = contender.decoding != contender.description.decodings[0]
        network = (
            NEGATIVE_LOG_LIKELIHOOD.format(contender.summary(NEGATIVE_LOG_LIKELIHOOD)),
            BRIER_SCORE.format(contender.summary(BRIER_SCORE)),
            CALIBRATION_ERROR.format(contender.summary(CALIBRATION_ERROR)),
            format_summary(seconds, unit="\N{NO-BREAK SPACE}s"),
            f"{contender.runs[0].parameters:,}" if contender.runs else "-",
        )
        rows.append(
            Row(
                contender.description.name,
                contender.description.title,
                contender.decoding,
                (
                    str(len(contender.runs)),
                    ACCURACY.format(contender.summary(ACCURACY)),
                    format_summary(contender.summary(MEAN_ABSOLUTE_ERROR), 1, unit, 2 if unit else 3),
                    errors.format(contender.summary(errors)),
                    *(('"',) * len(network) if again else network),
                ),
            )
        )
    accuracy = (
        "Accuracy is the share of digits named right; errors are in digit units."
        if digit
        else f"Accuracy is the share of angles within {results.angle_bin_width / 2:g}° of the truth; errors are in "
        "degrees."
    )
    return Table(
        (
            "Seeds",
            "Accuracy\N{NO-BREAK SPACE}↑",
            "Mean absolute error\N{NO-BREAK SPACE}↓",
            "Root mean squared error\N{NO-BREAK SPACE}↓",
            "Negative log-likelihood, nats\N{NO-BREAK SPACE}↓",
            "Brier score\N{NO-BREAK SPACE}↓",
            "Calibration error\N{NO-BREAK SPACE}↓",
            "Time per epoch",
            "Parameters",
        ),
        tuple(rows),
        f"{accuracy} Probabilities are judged only where the outputs are probabilities. ↑ more is better, ↓ less is "
        'better, " as in the line above.',
    )


def _captions(results: Results) -> dict[str, str]:
    """What to see in each figure; numbers in a caption are computed like everything else."""
    several_seeds = len({run.seed for run in results.runs if run.complete}) > 1
    captions = {
        "learning-curves-digit": "Test images named wrongly after each epoch. Thick: mean over seeds; thin: each seed.",
        "learning-curves-angle": "Error of the angle after each epoch. Thick: mean over seeds; thin: each seed; "
        "dashed: another decoding of the same network.",
        **{
            f"final-error-{task}": "Further left is better."
            + (" Where two bands overlap, the runs cannot tell the two apart." if several_seeds else "")
            for task in ("digit", "angle")
        },
        "angle-residuals": "How far the decoded angle is from the true one, all seeds together. Narrow and centred on "
        f"0° is good.{_residual_sentence(contenders(results, 'angle', every_decoding=True))}",
        "reliability-digit": "On the dashed line a network is right as often as it is sure. Below it, it is too sure; "
        "above it, not sure enough. Larger marks stand for more images; bins with fewer than 10 are left out.",
        "reliability-angle": "The same for the bins of the angle.",
        "gradient-by-probability": "Left end: the network is confidently wrong. Points are images, lines the formula: "
        "solid where the rest of the probability is spread evenly over the wrong classes, dashed where one wrong class "
        "has all of it. A line that falls to zero at the left leaves nothing to learn from where it is needed most.",
        "gradient-by-probability-logarithmic": "The gradients themselves. A sloping line at the left means that the "
        "gradient shrinks together with the probability.",
    }
    for head in ("regression", "classification"):
        contender = confusion_contender(results, head)
        if contender:
            captions[f"confusion-{head}"] = _confusion_sentence(contender)
    experiment = results.recovery_experiment
    if experiment:
        captions["recovery-accuracy"] = (
            f"Every network was pushed to answer {experiment.wrong_class} with a margin of {experiment.margin:g} and "
            "then trained. Thick: mean over seeds; thin: each seed. A flat line is a network that does not get away "
            "from its mistake."
        )
    return captions


def _confusion_sentence(contender: Contender) -> str:
    counts = confusion_counts(contender)
    distance = np.abs(np.subtract.outer(np.arange(len(counts)), np.arange(len(counts))))
    wrong = int(counts[distance > 0].sum())
    if wrong == 0:
        return "No test image was decoded to a wrong digit."
    true, decoded = divmod(int(np.where(distance > 0, counts, -1).argmax()), len(counts))
    return (
        f"{wrong:,} of {int(counts.sum()):,} decoded wrongly, all seeds together; "
        f"{format_share(counts[distance == 1].sum() / wrong)} of the mistakes are off by one. "
        f"Most frequent: {true} decoded as {decoded}."
    )


def _residual_sentence(among: Sequence[Contender]) -> str:
    told = []
    for contender in among:
        found = residual_counts(contender)
        if found:
            edges, counts = found
            cumulative = np.concatenate([[0.0], np.cumsum(counts)])
            inside = np.interp(15.0, edges, cumulative) - np.interp(-15.0, edges, cumulative)
            told.append(f"{100 * (1 - inside / counts.sum()):.1f}\N{NO-BREAK SPACE}% with {contender.label}")
    return f" More than 15° off: {'; '.join(told)}." if told else ""
