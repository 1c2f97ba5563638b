"""The page that a run leaves behind: the answer, figures, tables and advice, in one self-contained file."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from statistics import fmean

import numpy as np
from jinja2 import Environment, FileSystemLoader, StrictUndefined, Template
from PIL import Image

from training.comparisons import Comparison, Ranking, compare, planned_comparisons, rank
from training.experiments import recovery_stride
from training.figures import draw_figures
from training.figures.drawing import Palette
from training.figures.tasks import confusion_contender, confusion_counts, residual_counts
from training.files import write_text_atomically
from training.measures import (
    ACCURACY,
    ANGLE_ERROR,
    BRIER_SCORE,
    CALIBRATION_ERROR,
    MEAN_ABSOLUTE_ERROR,
    NEGATIVE_LOG_LIKELIHOOD,
    ROOT_MEAN_SQUARED_ERROR,
    Contender,
    contenders,
    format_p_value,
    format_share,
    format_summary,
    tasks_of,
)
from training.misread import first_answers
from training.objectives import HUBER_DELTA
from training.parity import holds
from training.playground import HEIGHT, WIDTH, panels
from training.questions import TaskName
from training.readings import SOURCE, SOURCE_SENTENCE, advise, read_source
from training.results import Misread, ParityRecord, Results
from training.sentences import (
    Statement,
    answer,
    caveats,
    gradient_statements,
    phrase,
    planned_statements,
    probability_statements,
    ranking_statement,
    recovery_statements,
    tuning_caveat,
)
from training.statistics import summarize
from training.table import title_of

_DATASETS = {"mnist": "MNIST", "fashion-mnist": "Fashion-MNIST", "kmnist": "Kuzushiji-MNIST", "own": "Own images"}
_TEMPLATES = Path(__file__).parent / "templates"
_VERDICTS = {
    "ahead": "✓ ahead",
    "behind": "✗ behind",
    "equal": "= equal",
    "open": "? not decided",
    "none": "not compared",
}


def write_report(results: Results, run_directory: Path) -> Path:
    """Draw the figures into `run_directory/figures` and write `run_directory/report.html`.

    Results of an interrupted run are welcome: the page shows what is there and says what is not.

    Args:
        results: what the run found.
        run_directory: where the report goes; created where it does not exist.

    Returns:
        The path of the page.

    Raises:
        CannotWriteError: a file could not be written.
    """
    path = run_directory / "report.html"
    planned = planned_comparisons(results)
    tasks = tasks_of(results)
    rankings = {task: rank(results, task) for task in tasks}
    drawings = draw_figures(results, rankings, run_directory / "figures")
    page = _template().render(
        results=results,
        answer=answer(planned),
        tuning_caveat=tuning_caveat(results) if results.runs else "",
        source_sentence=SOURCE_SENTENCE,
        source_name=SOURCE,
        source=read_source(results),
        advice=advise(results, planned, rankings),
        alerts=list(_alerts(results)),
        misread=_misread(results),
        figures=drawings,
        captions=_captions(results),
        palette=Palette.of(results),
        panels=panels(results.angle_limit),
        huber_delta=HUBER_DELTA,
        width=WIDTH,
        height=HEIGHT,
        statements={task: _task_statements(planned, rankings, task) for task in tasks},
        probabilities=probability_statements(_likelihoods(results)),
        gradient=gradient_statements(results.gradient_experiment),
        recovery=recovery_statements(results.recovery_experiment),
        comparisons=[_comparison_row(item) for item in planned],
        caveats=list(caveats(results, planned)),
        setting=_setting(results),
        machine=_machine(results),
        tables=[_table(results, task) for task in tasks],
        tasks=tasks,
        extra_tasks=[task for task in tasks if task not in ("digit", "angle")],
        tuning=results.tuning,
        parity=[(record, holds(record)) for record in results.parity],
    )
    write_text_atomically(path, page)
    return path


def _task_statements(
    planned: Sequence[Comparison], rankings: Mapping[str, Ranking | None], task: TaskName
) -> list[Statement]:
    statements = planned_statements(planned, task)
    ranking = rankings[task]
    return statements + ([ranking_statement(ranking, task)] if ranking and ranking.others else [])


def _likelihoods(results: Results) -> list[Comparison]:
    """Every objective with probabilities against cross-entropy, by the likelihood of the right digit."""
    among = [item for item in contenders(results, "digit") if item.summary(NEGATIVE_LOG_LIKELIHOOD).values]
    reference = next((item for item in among if item.description.name == "cross-entropy"), None)
    return [] if reference is None else compare(
        [(NEGATIVE_LOG_LIKELIHOOD, item, reference) for item in among if item.key != reference.key]
    )  # fmt: skip


@dataclass(frozen=True)
class MisreadPicture:
    """A test image for the page, and who read it how; `right` are those that read it rightly."""

    picture: str
    label: int
    index: int
    right: tuple[tuple[str, str], ...]
    wrong: tuple[tuple[str, str, int], ...]


def _misread(results: Results) -> MisreadPicture | None:
    found: Misread | None = results.misread
    if found is None:
        return None
    titles = {item.description.name: phrase(item) for item in contenders(results, "digit")}
    answers = {name: int(answer[found.index]) for name, answer in first_answers(results).items()}
    pixels = Image.fromarray(np.array(found.pixels, dtype=np.uint8)).resize((112, 112), Image.Resampling.NEAREST)
    content = io.BytesIO()
    pixels.save(content, "PNG", optimize=True)
    return MisreadPicture(
        base64.b64encode(content.getvalue()).decode("ascii"),
        found.label,
        found.index,
        tuple((name, titles[name]) for name, answer in answers.items() if answer == found.label),
        tuple((name, titles[name], answer) for name, answer in answers.items() if answer != found.label),
    )


@dataclass(frozen=True)
class ComparisonRow:
    """One planned comparison, ready to print."""

    task: str
    first: str
    objective: str
    second: str
    second_objective: str
    difference: str
    t_test: str
    sign_flip: str
    images: str
    verdict: str
    mark: str
    missing: str


def _comparison_row(item: Comparison) -> ComparisonRow:
    sign = ""
    if item.by_seed is not None:
        sign = "+" if item.by_seed.mean >= 0 else "\N{MINUS SIGN}"
    images = "-"
    if item.by_image is not None:
        scale = item.measure.scale
        low, high = (f"{value * scale:+.2f}" for value in (item.by_image.lower, item.by_image.upper))
        images = f"{item.by_image.test}: p {format_p_value(item.image_p_value)}, {low} to {high}"
    return ComparisonRow(
        task=item.first.description.task,
        first=phrase(item.first),
        objective=item.first.description.name,
        second=phrase(item.second),
        second_objective=item.second.description.name,
        difference=f"{sign}{item.text}",
        t_test="-" if item.by_seed is None else format_p_value(item.seed_p_value),
        sign_flip="-" if item.by_seed is None else format_p_value(item.by_seed.sign_flip_p_value),
        images=images.replace("-", "\N{MINUS SIGN}") if item.by_image is not None else images,
        verdict=item.verdict,
        mark=_VERDICTS[item.verdict],
        missing=item.missing if item.verdict == "open" else "",
    )


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
        if not holds(record):
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
    lost = sorted({f"{run.objective} ({run.task}, seed {run.seed})" for run in finished if run.diverged})
    if lost:
        yield Alert(
            "caution",
            "Some trainings diverged",
            f"{'; '.join(lost)}: outputs that are not finite, or a loss above that of an untrained network. They are "
            "marked where they appear, and nothing is claimed about them.",
        )


def _parity_text(record: ParityRecord) -> str:
    return (
        f"largest difference in loss {record.largest_loss_difference:.2g} (allowed {record.loss_tolerance:.2g}), "
        f"in weights {record.largest_weight_difference:.2g} (allowed {record.weight_tolerance:.2g})."
    )


def _setting(results: Results) -> list[tuple[str, str]]:
    """What was run, as terms and their values."""
    config = results.config
    seeds = sorted({run.seed for run in results.runs})
    dataset = str(config.get("dataset", "images"))
    bins = round(2 * results.angle_limit / results.angle_bin_width)
    setting = [
        (
            "Data",
            f"{_DATASETS.get(dataset, dataset)}: {results.train_images:,} images to train on, "
            f"{results.test_images:,} to test on",
        ),
        (
            "Tasks",
            "digit: which digit is it, a category. angle: by how many degrees was the image turned, a quantity, "
            f"uniform in ±{results.angle_limit:g}°, the same for every seed; as classes, {bins} bins of "
            f"{results.angle_bin_width:g}°",
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
        setting.append(("Epochs", f"{', '.join(epochs)} (not tuned)"))
    if "batch_size" in config:
        setting.append(("Batch size", str(config["batch_size"])))
    if seeds:
        listed = f"{seeds[0]} to {seeds[-1]}" if len(seeds) > 2 else ", ".join(map(str, seeds))
        setting.append(
            (
                "Seeds",
                f"{listed}; of one seed every objective gets the same first weights in the trunk, and the same batches",
            )
        )
    if results.tuning is not None:
        rates = sorted({rate for item in results.tuning.objectives for rate in item.rates})
        grid = ", ".join(f"{rate:g}" for rate in rates)
        setting.append(
            (
                "Learning rates",
                f"Adam; for each objective the best of {grid} on {results.tuning.validation_images:,} validation "
                f"images from {len(results.tuning.seeds)} seeds. Found again by: {results.tuning.command}",
            )
        )
    return setting


def _machine(results: Results) -> list[tuple[str, str]]:
    environment = results.environment
    return [
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

    task: str
    title: str
    columns: tuple[str, ...]
    rows: tuple[Row, ...]
    note: str


_RATE_MARKS = {"tuned": "", "tuned elsewhere": "*", "option": "*", "default": "*"}


def _table(results: Results, task: TaskName) -> Table:
    digit = task != "angle"
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
                    f"{contender.description.learning_rate:g}{_RATE_MARKS[contender.description.rate_source]}",
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
        task,
        {"digit": "Which digit?", "angle": "Which angle?"}.get(task, title_of(task)),
        (
            "Seeds",
            "Learning rate",
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
        'better, " as in the line above. * this learning rate was not tuned for this setting.',
    )


def _captions(results: Results) -> dict[str, str]:
    """What to see in each figure; numbers in a caption are computed like everything else."""
    captions = {
        "answer": "Further left is better. Bands: paired 95 % intervals, of each seed's difference to the best; "
        "= equal within the margin, ? not decided. An arrow points to what lies outside.",
        "learning-curves-digit": "Test images read wrongly after each epoch. Thick: mean over seeds; thin: each seed.",
        "learning-curves-angle": "Error of the angle after each epoch. Thick: mean over seeds; thin: each seed; "
        "dashed: another decoding of the same network.",
        **{
            f"final-error-{task}": "Further left is better. Bands are intervals of each objective by itself; two that "
            "overlap may still be told apart seed by seed, as the comparisons do."
            for task in ("digit", "angle")
        },
        "angle-residuals": "How far the decoded angle is from the true one, all seeds together. Narrow and centred on "
        f"0° is good.{_residual_sentence(contenders(results, 'angle', every_decoding=True))}",
        "reliability-digit": "On the dashed line a network is right as often as it is sure. Below it, it is too sure; "
        "above it, not sure enough. Larger marks stand for more images; bins with fewer than 10 are left out.",
        "reliability-angle": "The same for the bins of the angle.",
        "gradient-by-probability": "Left end: the network is confidently wrong. Points are images, lines the formula: "
        "solid with the rest of the probability spread evenly, dashed with all of it on one wrong class. A line that "
        "falls to zero at the left leaves nothing to learn from where it is needed most.",
        "gradient-by-probability-logarithmic": "The gradients themselves. A sloping line at the left means that the "
        "gradient shrinks together with the probability.",
        **{
            f"sensitivity-{task}": "Each objective trained at each rate and judged on validation images; a missing "
            "mark is a rate at which it diverged."
            for task in ("digit", "angle")
        },
        "label-noise": "Test labels are right; training labels were replaced by another digit. Bars: 95 % intervals.",
        "few-images": "The first so many training images, shown again and again for the same number of updates. "
        "Bars: 95 % intervals.",
        "calibration": "T is fitted on images kept apart from training. Without probabilities of its own, MSE on raw "
        "outputs is given the softmax of its outputs.",
    }
    for head in ("regression", "classification"):
        contender = confusion_contender(results, head)
        if contender:
            captions[f"confusion-{head}"] = _confusion_sentence(contender)
    experiment = results.recovery_experiment
    if experiment:
        every = recovery_stride(results.test_images)
        captions["recovery-accuracy"] = (
            f"Every network was pushed to answer {experiment.wrong_class} with a margin of {experiment.margin:g} and "
            f"then trained; accuracy on {-(-results.test_images // every):,} test images. Thick: "
            "mean over seeds; thin: each seed. A flat line is a network that does not get away from its mistake."
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
