"""Figures of one task: its errors, its confusions or residuals, and its probabilities."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

import numpy as np
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.ticker import FuncFormatter, MaxNLocator

from training.figures.drawing import (
    INK,
    LINES,
    PAPER,
    Palette,
    degrees,
    error_axis,
    format_error_axis,
    legend_below,
    new_figure,
    percent,
)
from training.measures import Contender, contenders
from training.questions import TaskName
from training.results import Details, ObjectiveRun, ReliabilityBin, Results
from training.statistics import CONFIDENCE, summarize, summarize_shares

_RELIABILITY_BINS = 15


def confusion_contender(results: Results, head: str) -> Contender | None:
    """Whose confusion matrix is shown for a head: the first objective that has one, cross-entropy before others."""
    found = [
        item
        for item in contenders(results, "digit")
        if item.description.head == head and _confusion_counts(item) is not None
    ]
    found.sort(key=lambda item: item.description.name != "cross-entropy")
    return found[0] if found else None


def confusion_counts(contender: Contender) -> np.ndarray:
    """Counts over all finished seeds; rows the true digit."""
    counts = _confusion_counts(contender)
    if counts is None:
        raise ValueError(f"{contender.label} has no confusion matrix; ask confusion_contender for one that has")
    return counts


def residual_counts(contender: Contender) -> tuple[np.ndarray, np.ndarray] | None:
    """Edges, and counts over all finished seeds, of (decoded - true)."""
    total: np.ndarray | None = None
    edges: np.ndarray | None = None
    for details in _details(contender.runs):
        counts = (details.residual_counts or {}).get(contender.decoding)
        if counts is None or details.residual_edges is None:
            continue
        if edges is None or total is None:
            edges, total = np.array(details.residual_edges), np.zeros(len(counts))
        total = total + np.array(counts)
    return None if edges is None or total is None or total.sum() == 0 else (edges, total)


def _details(runs: Iterable[ObjectiveRun]) -> Iterable[Details]:
    return (run.details for run in runs if run.details is not None)


def _confusion_counts(contender: Contender) -> np.ndarray | None:
    matrices = [
        np.array(details.confusion[contender.decoding])
        for details in _details(contender.runs)
        if details.confusion and contender.decoding in details.confusion
    ]
    return np.sum(matrices, axis=0) if matrices else None


def learning_curves(results: Results, task: TaskName, palette: Palette) -> tuple[Figure, str] | None:
    """The error after each epoch, of each seed and on average."""
    measure, to_error, label = error_axis(results, task)
    figure, axes = new_figure(4.3)
    everything: list[float] = []
    told = []
    longest = 1
    for contender in contenders(results, task, every_decoding=True):
        name = contender.description.name
        runs = [run for run in results.runs if run.task == task and run.objective == name and run.epochs]
        series = []
        for run in runs:
            values = [measure.read(epoch.evaluation, contender.decoding) for epoch in run.epochs]
            series.append(
                [
                    (epoch.epoch, to_error(value))
                    for epoch, value in zip(run.epochs, values, strict=True)
                    if value is not None and math.isfinite(value)
                ]
            )
        series = [points for points in series if points]
        if not series:
            continue
        color = palette.color(name)
        line = LINES[contender.description.decodings.index(contender.decoding) % len(LINES)]
        for points in series:
            axes.plot(*zip(*points, strict=True), color=color, linewidth=0.8, alpha=0.45, linestyle=line)
            everything += [value for _, value in points]
            longest = max(longest, points[-1][0])
        # The mean goes only as far as every seed got; beyond that it would jump from one group of seeds to another.
        shared = sorted(set.intersection(*({epoch for epoch, _ in points} for points in series)))
        mean = [np.mean([dict(points)[epoch] for points in series]) for epoch in shared]
        axes.plot(
            shared,
            mean,
            color=color,
            linestyle=line,
            linewidth=2.1 * palette.weight(name),
            marker=palette.marker(name),
            markersize=6.5 * palette.weight(name),
            markeredgecolor=PAPER,
            markeredgewidth=0.8,
            label=contender.label,
        )
        if shared:
            shown = percent(float(f"{mean[-1]:.3g}")) if task == "digit" else degrees(float(mean[-1]))
            told.append(f"{contender.label}: {shown} after epoch {shared[-1]}")
    if not everything:
        return None
    axes.set_title("How many digits are read wrongly?" if task == "digit" else "How far off is the angle?")
    axes.set_xlabel("epoch")
    axes.set_ylabel(label)
    axes.set_xlim(0.85 if longest > 1 else 0.5, longest + (0.15 if longest > 1 else 0.5))
    axes.xaxis.set_major_locator(MaxNLocator(min(longest, 8), integer=True))
    axes.grid(visible=False, axis="x")
    format_error_axis(axes, "y", task, everything)
    legend_below(figure, axes)
    return figure, f"Learning curves of the {task} task, mean over seeds. " + "; ".join(told) + "."


def final_error(results: Results, task: TaskName, palette: Palette) -> tuple[Figure, str] | None:
    """The error after the last epoch, of each seed, with the interval."""
    measure, to_error, label = error_axis(results, task)
    rows = []
    for contender in contenders(results, task, every_decoding=True):
        values = [to_error(value) for value in contender.summary(measure).values if math.isfinite(value)]
        if values or contender.diverged:
            rows.append((contender, values))
    if not any(values for _, values in rows):
        return None
    figure, axes = new_figure(1.15 + 0.56 * len(rows))
    everything: list[float] = []
    told = []
    drawn = []
    for i, (contender, values) in enumerate(rows):
        color = palette.color(contender.description.name)
        summary = summarize_shares(values, results.test_images) if task == "digit" else summarize(values)
        y = len(rows) - 1 - i
        if summary.lower is not None and summary.upper is not None:
            ends = [max(summary.lower, min(values) / 4), summary.upper]
            axes.plot(ends, [y, y], color=color, linewidth=7, alpha=0.28, solid_capstyle="butt")
            everything += ends
        if values:
            axes.plot([summary.mean] * 2, [y - 0.2, y + 0.2], color=color, linewidth=2.2)
        axes.plot(
            values,
            [y] * len(values),
            linestyle="none",
            color=color,
            marker=palette.marker(contender.description.name),
            markersize=5.5,
            markeredgecolor=PAPER,
            markeredgewidth=0.7,
        )
        everything += values
        axes.annotate(
            contender.label,
            (0, y + 0.31),
            xycoords=("axes fraction", "data"),
            xytext=(2, 0),
            textcoords="offset points",
            fontsize=10 if len(contender.label) < 54 else 8.5,
            va="bottom",
        )
        value = measure.format(summary) if values else ""
        if contender.diverged:
            value += f"{' ' if value else ''}✗ diverged in {contender.diverged} of {len(contender.runs)}"
        if values:
            drawn.append((y, summary.mean, value))
        else:
            axes.annotate(value, (0, y), xycoords=("axes fraction", "data"), fontsize=9.5, va="center_baseline")
        told.append(f"{contender.label}: {value}")
    axes.set_ylim(-0.45, len(rows) - 0.25)
    axes.set_yticks([])
    axes.spines["left"].set_visible(False)
    axes.grid(visible=False, axis="y")
    format_error_axis(axes, "x", task, everything)
    to_axes = axes.transData + axes.transAxes.inverted()
    for y, mean, value in drawn:
        # The number stands at the side of its row where there are no marks.
        left = to_axes.transform((mean, y))[0] > 0.5
        axes.annotate(
            value,
            (0 if left else 1, y),
            xycoords=("axes fraction", "data"),
            xytext=(2 if left else -2, 0),
            textcoords="offset points",
            fontsize=9.5,
            ha="left" if left else "right",
            va="center_baseline",
        )
    axes.set_title("Which objective reads fewest wrongly?" if task == "digit" else "Which objective comes closest?")
    intervals = any(len(values) > 1 for _, values in rows)
    axes.set_xlabel(
        f"{label}; one mark a seed" + (f"; line: mean; band: {100 * CONFIDENCE:g} % interval" if intervals else "")
    )
    return figure, f"Final error of the {task} task. " + "; ".join(told) + "."


def confusion(results: Results, head: str, palette: Palette) -> tuple[Figure, str] | None:
    """Which digits are taken for which, by one objective of a head."""
    contender = confusion_contender(results, head)
    if contender is None:
        return None
    counts = confusion_counts(contender)
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    size = len(counts)
    figure, axes = new_figure(4.9)
    color = palette.color(contender.description.name)
    for true in range(size):
        for decoded in range(size):
            share = float(shares[true, decoded])
            if share > 0:
                # Opacity instead of a colour map: it fades into whatever paper is below.
                axes.add_patch(
                    Rectangle((decoded - 0.5, true - 0.5), 1, 1, facecolor=color, alpha=share**0.6, linewidth=0)
                )
            if share >= 0.005:
                axes.text(
                    decoded,
                    true,
                    f"{100 * share:.0f}",
                    ha="center",
                    va="center_baseline",
                    fontsize=8.5,
                    color="#fefefe" if share > 0.45 else INK,
                )
    axes.set_xlim(-0.5, size - 0.5)
    axes.set_ylim(size - 0.5, -0.5)
    axes.set_aspect("equal")
    axes.set_xticks(range(size))
    axes.set_yticks(range(size))
    axes.tick_params(length=0)
    axes.grid(visible=False)
    for spine in axes.spines.values():
        spine.set_visible(False)
    axes.set_title(f"Which digits are taken for which?\n{contender.label}")
    axes.set_xlabel(f"decoded digit ({contender.decoding})")
    axes.set_ylabel("true digit (% of it)")
    right = float(np.trace(counts) / max(counts.sum(), 1))
    return figure, f"Confusion matrix of {contender.label}: {100 * right:.1f} % on the diagonal."


def residuals(results: Results, palette: Palette) -> tuple[Figure, str] | None:
    """How the errors of the angle are spread."""
    figure, axes = new_figure(4.3)
    told = []
    widest = 0.0
    for contender in contenders(results, "angle", every_decoding=True):
        found = residual_counts(contender)
        if found is None:
            continue
        edges, counts = found
        shares = counts / counts.sum()
        name = contender.description.name
        line = LINES[contender.description.decodings.index(contender.decoding) % len(LINES)]
        axes.stairs(shares, edges, color=palette.color(name), linestyle=line, linewidth=1.9, label=contender.label)
        cumulative = np.cumsum(shares)
        low, high = (float(np.interp(q, cumulative, edges[1:])) for q in (0.005, 0.995))
        widest = max(widest, abs(low), abs(high))
        low, high = (float(np.interp(q, cumulative, edges[1:])) for q in (0.05, 0.95))
        told.append(f"{contender.label}: nine of ten images within {low:.0f}° to {high:.0f}°")
    if not told:
        return None
    axes.axvline(0, color=INK, linewidth=0.8)
    axes.set_xlim(-1.15 * widest, 1.15 * widest)
    axes.set_ylim(bottom=0)
    axes.xaxis.set_major_formatter(
        FuncFormatter(lambda value, _: f"{value:+.0f}°".replace("-", "\N{MINUS SIGN}") if value else "0°")
    )
    axes.xaxis.set_major_locator(MaxNLocator(7))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{100 * value:.3g} %"))
    axes.set_title("How are the errors spread?")
    axes.set_xlabel("decoded angle minus true angle")
    axes.set_ylabel("share of test images")
    legend_below(figure, axes)
    return figure, "Histogram of the angle's errors, all seeds together. " + "; ".join(told) + "."


def _pool(bins: Sequence[Sequence[ReliabilityBin]]) -> list[ReliabilityBin]:
    """Bins of several seeds put together, weighted by their images; bins are matched by where their confidence lies."""
    pooled: dict[int, list[ReliabilityBin]] = {}
    for one in bins:
        for item in one:
            if item.count > 0 and math.isfinite(item.confidence) and math.isfinite(item.accuracy):
                pooled.setdefault(math.ceil(item.confidence * _RELIABILITY_BINS), []).append(item)
    result = []
    for _, items in sorted(pooled.items()):
        total = sum(item.count for item in items)
        result.append(
            ReliabilityBin(
                confidence=sum(item.confidence * item.count for item in items) / total,
                accuracy=sum(item.accuracy * item.count for item in items) / total,
                count=total,
            )
        )
    return result


def reliability(results: Results, task: TaskName, palette: Palette) -> tuple[Figure, str] | None:
    """How often a network is right against how sure it is."""
    figure, axes = new_figure(4.7)
    told = []
    for contender in contenders(results, task):
        bins = [details.reliability for details in _details(contender.runs) if details.reliability]
        pooled = _pool(bins) if bins else []
        if not pooled:
            continue
        name = contender.description.name
        color = palette.color(name)
        # One lucky image in an otherwise empty bin would draw the eye more than thousands elsewhere.
        shown = [item for item in pooled if item.count >= min(10, max(other.count for other in pooled))]
        confidence = [item.confidence for item in shown]
        accuracy = [item.accuracy for item in shown]
        largest = max(item.count for item in shown)
        sizes = [(12 + 110 * math.sqrt(item.count / largest)) * palette.weight(name) for item in shown]
        axes.plot(confidence, accuracy, color=color, linewidth=1.6 * palette.weight(name))
        axes.scatter(
            confidence,
            accuracy,
            s=sizes,
            color=color,
            marker=palette.marker(name),
            edgecolors=PAPER,
            linewidths=0.7,
            alpha=0.9,
            zorder=3,
        )
        axes.plot(
            [],
            [],
            color=color,
            marker=palette.marker(name),
            markersize=6,
            linewidth=1.4,
            label=contender.description.title,
        )
        total = sum(item.count for item in pooled)
        gap = sum(item.count * (item.confidence - item.accuracy) for item in pooled) / total
        told.append(f"{contender.description.title}: {_gap_text(gap)}")
    if not told:
        return None
    axes.plot([0, 1], [0, 1], color=INK, linewidth=1, linestyle=(0, (3, 3)), label="right as often as sure")
    axes.set_xlim(0, 1.02)
    axes.set_ylim(0, 1.02)
    axes.set_aspect("equal")
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_formatter(FuncFormatter(lambda value, _: f"{100 * value:.0f} %"))
    noun = "digit" if task == "digit" else "angle bin"
    axes.set_title(f"Is a network right as often as it is sure? ({task})")
    axes.set_xlabel(f"probability of the most probable {noun}")
    axes.set_ylabel("how often it is right")
    legend_below(figure, axes)
    return figure, f"Reliability diagram of the {task} task, all seeds together. " + "; ".join(told) + "."


def _gap_text(gap: float) -> str:
    points = f"{100 * abs(gap):.1f} percentage points"
    return f"on average {points} too {'sure' if gap > 0 else 'unsure'}"
