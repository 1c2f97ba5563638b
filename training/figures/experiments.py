"""Figures of the experiments beside the two tasks, and of the harder versions of the digits."""

from __future__ import annotations

import math

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, LogLocator, NullLocator

from training.figures.drawing import (
    INK,
    PAPER,
    Palette,
    error_axis,
    format_error_axis,
    legend_below,
    new_figure,
    percent,
)
from training.measures import ACCURACY, CALIBRATION_ERROR, Contender, contenders, format_share
from training.questions import TASKS_OF, Question, TaskName
from training.results import Results


def gradient(results: Results, palette: Palette, *, logarithmic: bool) -> tuple[Figure, str] | None:
    """The gradient at the right class's logit against its probability, formula and images."""
    experiment = results.gradient_experiment
    if experiment is None or not any(curve.theory_probability for curve in experiment.curves):
        return None
    figure, axes = new_figure(4.3)
    told = []
    top = 0.0
    lowest = 1.0
    for curve in experiment.curves:
        color = palette.color(curve.objective)
        largest = max((*curve.theory_gradient, *curve.theory_gradient_one_rival), default=0.0)
        if largest <= 0:
            continue
        unit = 1.0 if logarithmic else largest
        points = [
            (p, gradient / unit)
            for p, gradient in zip(curve.measured_probability, curve.measured_gradient, strict=True)
            if math.isfinite(p) and math.isfinite(gradient) and (not logarithmic or (p > 0 and gradient > 0))
        ]
        if points:
            axes.scatter(*zip(*points, strict=True), s=12, color=color, alpha=0.5, linewidths=0, zorder=3)
            top = max(top, *(gradient for _, gradient in points))
        line = sorted(zip(curve.theory_probability, curve.theory_gradient, strict=True))
        axes.plot([p for p, _ in line], [value / unit for _, value in line], color=color, label=curve.title)
        rival = sorted(zip(curve.theory_probability, curve.theory_gradient_one_rival, strict=True))
        axes.plot([p for p, _ in rival], [value / unit for _, value in rival], color=color, linestyle="--")
        top = max(top, *(value / unit for _, value in line + rival))
        lowest = min(lowest, max(line[0][0], 1e-12))
        peak = max(line, key=lambda point: point[1])[0]
        told.append(
            f"{curve.title}: largest at a probability of {peak:.2g}, and {format_share(line[0][1] / largest)} of that "
            f"at {line[0][0]:.2g}"
        )
    if not told:
        return None
    if logarithmic:
        axes.set_xscale("log")
        axes.set_yscale("log")
        axes.set_xlim(max(lowest, 1e-7) * 0.8, 1.3)
        axes.set_ylim(max(top * 1e-7, 1e-9), top * 2)
        for axis in (axes.xaxis, axes.yaxis):
            axis.set_major_locator(LogLocator(numticks=7))
            axis.set_minor_locator(NullLocator())
            axis.set_major_formatter(FuncFormatter(_power_of_ten))
        axes.set_title("How small does the gradient become?")
        axes.set_ylabel("gradient at the right class's logit")
    else:
        axes.set_xlim(-0.02, 1.02)
        axes.set_ylim(bottom=0, top=top * 1.05 or None)
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{100 * value:.0f} %"))
        axes.set_title("What is left to learn from, when wrong?")
        axes.set_ylabel("gradient at the right class's logit,\nshare of the largest")
    axes.set_xlabel("probability given to the right class")
    legend_below(figure, axes)
    return figure, "Size of the loss gradient at the logit of the right class. " + "; ".join(told) + "."


def _power_of_ten(value: float, _: object = None) -> str:
    if 1e-3 <= value < 1e4:
        return f"{value:g}"
    superscript = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")
    return "10" + str(round(math.log10(value))).translate(superscript) if value > 0 else "0"


def recovery(results: Results, palette: Palette) -> tuple[Figure, str] | None:
    """Accuracy against updates after a confidently wrong start."""
    experiment = results.recovery_experiment
    if experiment is None or not any(curve.steps for curve in experiment.curves):
        return None
    figure, axes = new_figure(4.3)
    told = []
    for name in dict.fromkeys(curve.objective for curve in experiment.curves):
        curves = [curve for curve in experiment.curves if curve.objective == name and curve.steps]
        if not curves:
            continue
        color = palette.color(name)
        for curve in curves:
            axes.plot(curve.steps, curve.accuracy, color=color, linewidth=0.8, alpha=0.45)
        shared = sorted(set.intersection(*(set(curve.steps) for curve in curves)))
        mean = [np.mean([dict(zip(c.steps, c.accuracy, strict=True))[step] for c in curves]) for step in shared]
        axes.plot(
            shared,
            mean,
            color=color,
            linewidth=2.1 * palette.weight(name),
            marker=palette.marker(name),
            markersize=5.5 * palette.weight(name),
            markeredgecolor=PAPER,
            markeredgewidth=0.7,
            label=curves[0].title,
        )
        if shared:
            told.append(f"{curves[0].title}: {100 * mean[-1]:.0f} % after {shared[-1]} updates")
    axes.axhline(
        experiment.threshold,
        color=INK,
        linewidth=1,
        linestyle=(0, (3, 3)),
        label=f"counts as recovered: {100 * experiment.threshold:.0f} %",
    )
    axes.set_ylim(0, 1.06)
    axes.set_xlim(left=0)
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{100 * value:.0f} %"))
    axes.set_title("Which loss gets away from a mistake?")
    axes.set_xlabel("updates since the push to a wrong answer")
    axes.set_ylabel("digits read right")
    legend_below(figure, axes)
    return figure, "Recovery from a confidently wrong start, mean over seeds. " + "; ".join(told) + "."


def sensitivity(results: Results, task: TaskName, palette: Palette) -> tuple[Figure, str] | None:
    """The error on validation images against the learning rate."""
    trained = {item.name for item in results.objectives if item.task == task}
    found = [item for item in results.tuning.objectives if item.task == task] if results.tuning else []
    found = [item for item in found if item.objective in trained]
    if not found:
        return None
    figure, axes = new_figure(4.3)
    _, to_error, label = error_axis(results, task)
    everything, told = [], []
    titles = {item.name: item.title for item in results.objectives}
    for item in found:
        points = [
            (rate, to_error(float(np.mean(scores))))
            for rate, scores in zip(item.rates, item.scores, strict=True)
            if np.isfinite(scores).all()
        ]
        lost = [rate for rate, scores in zip(item.rates, item.scores, strict=True) if not np.isfinite(scores).all()]
        color, marker = palette.color(item.objective), palette.marker(item.objective)
        axes.plot(
            *zip(*points, strict=True),
            color=color,
            linewidth=1.5,
            marker=marker,
            markersize=4,
            label=titles[item.objective],
        )
        axes.plot(
            [item.best],
            [to_error(item.best_score)],
            color=color,
            marker=marker,
            markersize=10,
            markeredgecolor=INK,
            markeredgewidth=1.2,
            linestyle="none",
        )
        everything += [error for _, error in points]
        diverged = f", diverged at {', '.join(f'{rate:g}' for rate in lost)}" if lost else ""
        told.append(f"{titles[item.objective]}: best at {item.best:g}{diverged}")
    axes.set_xscale("log")
    axes.xaxis.set_major_locator(FixedLocator(sorted({rate for item in found for rate in item.rates})))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    format_error_axis(axes, "y", task, everything)
    axes.set_title("How much does the learning rate matter?")
    axes.set_xlabel("learning rate; large mark: the best, taken for the study")
    axes.set_ylabel(f"{label}, validation images")
    legend_below(figure, axes)
    return figure, f"Sensitivity to the learning rate, {task} task. " + "; ".join(told) + "."


_CONDITIONS: dict[Question, tuple[str, str]] = {
    "label-noise": ("Who stands wrong labels?", "training labels that are wrong (%)"),
    "few-images": ("Who learns from few images?", "training images"),
}


def conditions(results: Results, question: Question, palette: Palette) -> tuple[Figure, str] | None:
    """Wrong digits against the share of wrong labels, or the number of images."""
    title, axis_label = _CONDITIONS[question]
    series: dict[str, list[tuple[float, Contender]]] = {}
    for task in TASKS_OF[question]:
        for item in contenders(results, task):
            if item.runs and item.summary(ACCURACY).finite:
                series.setdefault(item.description.name, []).append((float(task.rpartition("-")[2]), item))
    if not series:
        return None
    figure, axes = new_figure(4.3)
    told, errors = [], []
    for name, points in series.items():
        summaries = [(x, item.summary(ACCURACY)) for x, item in points]
        means = [1 - summary.mean for _, summary in summaries]
        # An interval of a share whose mean is 0 or 1 ends there, but for rounding.
        spread = np.clip(
            [
                [(summary.upper or summary.mean) - summary.mean for _, summary in summaries],
                [summary.mean - (summary.lower or 0.0) for _, summary in summaries],
            ],
            0,
            None,
        )
        axes.errorbar(
            [x for x, _ in summaries],
            means,
            yerr=spread,
            color=palette.color(name),
            marker=palette.marker(name),
            capsize=3,
            label=points[0][1].description.title,
        )
        errors += [*means, *(np.array(means) - spread[0]), *(np.array(means) + spread[1])]
        told.append(
            f"{points[0][1].description.title}: "
            + ", ".join(f"{percent(float(f'{m:.3g}'))} at {x:g}" for (x, _), m in zip(summaries, means, strict=True))
        )
    if question == "few-images":
        axes.set_xscale("log")
    format_error_axis(axes, "y", "digit", errors)
    axes.set_title(title)
    axes.set_xlabel(axis_label)
    axes.set_ylabel("Wrong digits")
    legend_below(figure, axes)
    return figure, f"{title} Wrong digits after training. " + "; ".join(told) + "."


def calibration(results: Results, palette: Palette) -> tuple[Figure, str] | None:
    """The calibration error before and after one temperature was fitted on images kept apart."""
    rows = []
    for item in contenders(results, "calibration"):
        found = [run.temperature for run in item.runs if run.temperature is not None]
        if found:
            before = float(np.mean([one.before.calibration_error for one in found]))
            after = float(np.mean([one.after.calibration_error for one in found]))
            rows.append((item, before, after, float(np.mean([one.temperature for one in found]))))
    if not rows:
        return None
    figure, axes = new_figure(1.3 + 0.5 * len(rows))
    told = []
    for y, (item, before, after, chosen) in enumerate(reversed(rows)):
        color, marker = palette.color(item.description.name), palette.marker(item.description.name)
        axes.plot([before, after], [y, y], color=color, linewidth=2, alpha=0.4)
        axes.plot([before], [y], color=color, marker=marker, markersize=7, markerfacecolor=PAPER, linestyle="none")
        axes.plot([after], [y], color=color, marker=marker, markersize=7, linestyle="none")
        axes.annotate(
            f"{item.short} (T = {chosen:.2f})", (0.01, y + 0.2), xycoords=("axes fraction", "data"), fontsize=9
        )
        numbers = " to ".join(percent(float(f"{error:.2g}")) for error in (before, after))
        axes.annotate(numbers, (1, y + 0.2), xycoords=("axes fraction", "data"), fontsize=9, ha="right")
        told.append(f"{item.description.title}: {numbers}")
    axes.set_ylim(-0.5, len(rows) - 0.1)
    axes.set_yticks([])
    format_error_axis(axes, "x", "digit", [error for _, *errors, _ in rows for error in errors])
    axes.set_title("Does one number put the probabilities right?")
    axes.set_xlabel(f"{CALIBRATION_ERROR.name}; hollow: as trained, filled: outputs divided by T")
    return figure, "Calibration error before and after temperature scaling. " + "; ".join(told) + "."
