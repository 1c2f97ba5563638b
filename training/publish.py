"""The command that makes the documents from a finished run: `python -m training.publish`.

It keeps the run's results as docs/study.json, draws the pictures of the documents from them, and puts sentences and
tables where a document has a place for them, between a pair of comments such as `<!-- study: digit -->` and
`<!-- end of study -->`. So every number of the study in the documents comes from the stored results, and
those of the learning rates from training/learning_rates.json.
"""

from __future__ import annotations

import re
import shutil
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from training.comparisons import Comparison, planned_comparisons, rank
from training.config import PROGRAM as COMPARE
from training.config import Config, parse_options
from training.errors import StudyError
from training.files import write_bytes_atomically, write_text_atomically
from training.learning_rates import read_tuning
from training.measures import (
    ACCURACY,
    ANGLE_ERROR,
    NEGATIVE_LOG_LIKELIHOOD,
    contenders,
    format_p_value,
    tasks_of,
)
from training.readings import SOURCE_SENTENCE, advise, read_source
from training.results import Results, read_results
from training.sentences import answer, phrase, recovered_text, tuning_caveat

PROGRAM = "python -m training.publish"
ROOT = Path(__file__).parents[1]
STORED = Path("docs") / "study.json"
DOCUMENTS = (Path("README.md"), Path("docs") / "study.md")
PICTURES = ("answer", "gradient-by-probability", "recovery-accuracy", "sensitivity-digit", "sensitivity-angle")
_PLACE = re.compile(r"(<!-- study: ([\w-]+) -->\n).*?(<!-- end of study -->)", re.DOTALL)


@dataclass(frozen=True)
class Options:
    """Put the results of a finished run into README.md, docs/study.md and docs/images."""

    run: Annotated[
        Path | None, tyro.conf.arg(metavar="RUN", help_behavior_hint="(default: the results stored in docs/study.json)")
    ] = None
    """The folder of the run, whose results are stored from then on."""
    root: Annotated[Path, tyro.conf.arg(metavar="FOLDER", help_behavior_hint="(default: this repository)")] = ROOT
    """The folder that holds README.md and docs."""


def passages(results: Results) -> dict[str, str]:
    """The sentences and tables of the documents, by name."""
    planned = planned_comparisons(results)
    rankings = {task: rank(results, task) for task in tasks_of(results)}
    found = {
        "answer": _answer(planned, results),
        "digit": _digit_table(results),
        "angle": _angle_table(results),
        "comparisons": _comparison_table(planned),
        "source": _source(results),
        "rates": _rates(),
        "advice": "\n".join(
            [
                "| you have | take | because |",
                "| --- | --- | --- |",
                *(f"| {line.situation} | {line.take} | {line.figure} |" for line in advise(results, planned, rankings)),
            ]
        ),
        "setting": _setting(results),
    }
    return {name: text.replace("\N{NO-BREAK SPACE}", " ") for name, text in found.items()}


def _answer(planned: Sequence[Comparison], results: Results) -> str:
    found = answer(planned)
    return f"**{found.sentence.text}** {tuning_caveat(results)}"


def _digit_table(results: Results) -> str:
    experiment = results.recovery_experiment
    lines = [
        "| a category: which digit is it? | accuracy | negative log-likelihood | back from a confident mistake |",
        "| --- | --- | --- | --- |",
    ]
    for item in contenders(results, "digit"):
        likelihood = item.summary(NEGATIVE_LOG_LIKELIHOOD)
        curves = (
            [curve for curve in experiment.curves if curve.objective == item.description.name] if experiment else []
        )
        lines.append(
            f"| {_head_and_loss(item.description.title)} | {ACCURACY.format(item.summary(ACCURACY))} | "
            f"{NEGATIVE_LOG_LIKELIHOOD.format(likelihood) if likelihood.values else 'no probabilities'} | "
            f"{recovered_text(curves) if curves else 'not measured'} |"
        )
    return "\n".join(lines)


def _angle_table(results: Results) -> str:
    lines = ["| a quantity: turned by how many degrees? | root mean squared error |", "| --- | --- |"]
    for item in contenders(results, "angle", every_decoding=True):
        decoding = f", {item.decoding}" if len(item.description.decodings) > 1 else ""
        error = ANGLE_ERROR.format(item.summary(ANGLE_ERROR))
        lines.append(f"| {_head_and_loss(item.description.title)}{decoding} | {error} |")
    return "\n".join(lines)


def _head_and_loss(title: str) -> str:
    return title[0].lower() + title[1:]


def _comparison_table(planned: Sequence[Comparison]) -> str:
    lines = [
        "| task | first | second | first − second | other seeds, p | sign flips, p | other images, p | verdict |",
        "| --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for item in planned:
        seeds, flips, images = "-", "-", "-"
        if item.by_seed is not None:
            seeds, flips = format_p_value(item.seed_p_value), format_p_value(item.by_seed.sign_flip_p_value)
        if item.by_image is not None:
            images = f"{format_p_value(item.image_p_value)} ({item.by_image.test})"
        sign = "−" if item.difference < 0 else "+"
        verdict = item.missing if item.verdict == "open" else item.verdict
        lines.append(
            f"| {item.first.description.task} | {phrase(item.first)} | {phrase(item.second)} | {sign}{item.text} | "
            f"{seeds} | {flips} | {images} | {verdict} |"
        )
    return "\n".join(lines)


def _source(results: Results) -> str:
    reading = read_source(results)
    halves = "\n".join(
        f"- “{half.sentence}”, that is: {half.claim}. **{half.verdict.capitalize()}:** {half.number}."
        for half in reading.halves
    )
    return f"The source says “{SOURCE_SENTENCE}”. **Measured: {reading.verdict}.**\n\n{halves}"


def _rates() -> str:
    tuning = read_tuning()
    if tuning is None:
        return "The learning rates were not tuned."
    rates = sorted({rate for item in tuning.objectives for rate in item.rates})
    lines = [
        "| task | objective | " + " | ".join(f"{rate:g}" for rate in rates) + " |",
        "| --- | --- | " + " | ".join("---" for _ in rates) + " |",
    ]
    for item in tuning.objectives:
        cells = []
        for rate in rates:
            scores = dict(zip(item.rates, item.scores, strict=True)).get(rate, [])
            mean = sum(scores) / len(scores) if scores else float("nan")
            text = "-" if not scores else "diverged" if mean != mean else (
                f"{100 * mean:.2f} %" if item.task == "digit" else f"{mean:.2f}°"
            )  # fmt: skip
            cells.append(f"**{text}**" if rate == item.best else text)
        lines.append(f"| {item.task} | {item.objective} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _setting(results: Results) -> str:
    seeds = results.config["seeds"]
    command = COMPARE if seeds == Config().seeds else f"{COMPARE} --seeds {seeds}"
    environment = results.environment
    images = f"{results.train_images:,} training and {results.test_images:,} test images"
    return (
        f"Measured with `{command}`: {images}, on {environment.processor} with torch "
        f"{environment.torch}. Intervals are for 95 %; those of accuracies are for other seeds and other test images."
    )


def fill(text: str, made: Mapping[str, str], where: str) -> str:
    """The text with each place filled by the passage of its name.

    Raises:
        StudyError: there is no passage of that name, or no place at all.
    """

    def filled(place: re.Match[str]) -> str:
        begin, name, end = place.groups()
        if name not in made:
            raise StudyError(f"{where} has a place for {name!r}; there are passages for {', '.join(made)}")
        return f"{begin}{made[name]}\n{end}"

    result, count = _PLACE.subn(filled, text)
    if not count:
        raise StudyError(f"{where} has no place to fill: <!-- study: NAME --> and <!-- end of study -->")
    return result


def publish(options: Options) -> list[Path]:
    """Fill the documents, draw their pictures, and return what was written.

    Raises:
        StudyError: the results cannot be read or are not complete, or a document has no place for them.
    """
    # Imported only now: --help and wrong options are answered at once.
    from training.figures import draw_figures

    stored = options.root / STORED
    source = stored if options.run is None else options.run / "results.json"
    results = read_results(source)
    if not results.complete:
        raise StudyError(f"{source} is of a run that is not complete")
    made = passages(results)
    filled = {}
    for name in DOCUMENTS:
        path = options.root / name
        try:
            filled[path] = fill(path.read_text(encoding="utf-8"), made, path.name)
        except OSError as error:
            raise StudyError(f"{path} cannot be read ({error.strerror}); --root names the repository") from error
    if source != stored:
        write_bytes_atomically(stored, source.read_bytes())
    for path, text in filled.items():
        write_text_atomically(path, text)
    images = options.root / "docs" / "images"
    with tempfile.TemporaryDirectory() as folder:
        draw_figures(results, {task: rank(results, task) for task in tasks_of(results)}, Path(folder))
        for name in PICTURES:
            if (Path(folder) / f"{name}.png").exists():
                shutil.copyfile(Path(folder) / f"{name}.png", images / f"{name}.png")
    return [stored, *filled, *(images / f"{name}.png" for name in PICTURES)]


def main(arguments: Sequence[str] | None = None) -> int:
    """Make the documents, say what was written, and return the exit status: 0, or 2 where it is not possible."""
    arguments = sys.argv[1:] if arguments is None else arguments
    try:
        written = publish(parse_options(Options, PROGRAM, arguments, Options()))
    except StudyError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    for path in written:
        print(path)
    return 0


if __name__ == "__main__":
    sys.exit(main())
