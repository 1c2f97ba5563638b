"""The figures of the report: each one panel, drawn once, saved as PNG and as SVG.

A figure is as wide as a phone, so that the page shows two beside each other on a screen and one below the other on a
phone without shrinking the letters. One colour and one marker belong to one objective wherever it appears.
"""

from __future__ import annotations

import io
import math
import re
import textwrap
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.ticker import FixedLocator, FuncFormatter, LogLocator, MaxNLocator, NullLocator

from training.comparisons import Comparison, Ranking, rank
from training.files import atomic_path, write_text_atomically
from training.measures import (
    ACCURACY,
    ANGLE_ERROR,
    CALIBRATION_ERROR,
    Contender,
    Measure,
    contenders,
    format_share,
    tasks_of,
)
from training.questions import TASKS_OF, Question, TaskName
from training.results import Details, ObjectiveRun, ReliabilityBin, Results
from training.statistics import CONFIDENCE, summarize, summarize_shares

WIDTH = 4.6
INK = "#23272e"
GRID = "#dfe2e6"
PAPER = "#ffffff"
DOTS_PER_INCH = 160

# After Okabe and Ito: told apart with every common colour blindness, dark enough on white, light enough on black.
COLORS = ("#0072b2", "#d55e00", "#009e73", "#dd9500", "#b8609a", "#7a7a7a", "#4f9fd0", "#8c6d31", "#7d6bc4")
_MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*", "h")
_LINES: tuple[Any, ...] = ("-", (0, (4, 1.6)), (0, (1, 1.4)), "-.")
_RELIABILITY_BINS = 15
_MOST_ROWS = 9
_KNOWN_ORDER = (
    *("regression-mse", "cross-entropy", "mse-softmax", "mse-raw", "cee-softmax"),
    *("regression-huber", "label-smoothing", "binary-cross-entropy", "gaussian-histogram"),
)

STYLE: dict[Any, Any] = {
    "font.family": "DejaVu Sans",
    "font.size": 10,
    "axes.titlesize": 11,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.labelsize": 10,
    "xtick.labelsize": 9.5,
    "ytick.labelsize": 9.5,
    "legend.fontsize": 9.5,
    "legend.frameon": False,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": INK,
    "axes.labelcolor": INK,
    "axes.titlecolor": INK,
    "text.color": INK,
    "xtick.color": INK,
    "ytick.color": INK,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": GRID,
    "grid.linewidth": 0.8,
    "axes.linewidth": 0.8,
    "lines.linewidth": 2.0,
    "figure.facecolor": PAPER,
    "axes.facecolor": "none",
    "svg.fonttype": "path",
    "svg.hashsalt": "torchlosses",
    "axes.unicode_minus": True,
}


@dataclass(frozen=True)
class Drawing:
    """A finished figure: its files' name, what it shows in words, and itself for the page."""

    name: str
    description: str
    svg: str


@dataclass
class Palette:
    """Colour and marker of each objective, the same in every figure and table of every report."""

    names: list[str] = field(default_factory=list)

    @classmethod
    def of(cls, results: Results) -> Palette:
        """The well-known objectives first, whether present or not, then others in the order of the results."""
        return cls(list(dict.fromkeys([*_KNOWN_ORDER, *(item.name for item in results.objectives)])))

    def position(self, objective: str) -> int:
        """The objective's place among the colours."""
        if objective not in self.names:
            self.names.append(objective)
        return self.names.index(objective)

    def color(self, objective: str) -> str:
        """The objective's colour."""
        return COLORS[self.position(objective) % len(COLORS)]

    def weight(self, objective: str) -> float:
        """A factor for line width and marker size: later curves are finer, so that one below stays visible."""
        return 1.25 - 0.11 * min(self.position(objective), 5)

    def marker(self, objective: str) -> str:
        """The objective's marker."""
        return _MARKERS[self.position(objective) % len(_MARKERS)]


def draw_figures(results: Results, directory: Path) -> dict[str, Drawing]:
    """Draw every figure the results have numbers for into `directory`; the keys are the figures' names."""
    palette = Palette.of(results)
    rankings = {task: rank(results, task) for task in tasks_of(results)}
    planned: list[tuple[str, Callable[[], tuple[Figure, str] | None]]] = [
        ("answer", lambda: _answer(rankings, palette)),
        ("learning-curves-digit", lambda: _learning_curves(results, "digit", palette)),
        ("learning-curves-angle", lambda: _learning_curves(results, "angle", palette)),
        ("final-error-digit", lambda: _final_error(results, "digit", palette)),
        ("final-error-angle", lambda: _final_error(results, "angle", palette)),
        ("confusion-regression", lambda: _confusion(results, "regression", palette)),
        ("confusion-classification", lambda: _confusion(results, "classification", palette)),
        ("angle-residuals", lambda: _residuals(results, palette)),
        ("reliability-digit", lambda: _reliability(results, "digit", palette)),
        ("reliability-angle", lambda: _reliability(results, "angle", palette)),
        ("gradient-by-probability", lambda: _gradient(results, palette, logarithmic=False)),
        ("gradient-by-probability-logarithmic", lambda: _gradient(results, palette, logarithmic=True)),
        ("recovery-accuracy", lambda: _recovery(results, palette)),
        ("sensitivity-digit", lambda: _sensitivity(results, "digit", palette)),
        ("sensitivity-angle", lambda: _sensitivity(results, "angle", palette)),
        ("label-noise", lambda: _conditions(results, "label-noise", palette)),
        ("few-images", lambda: _conditions(results, "few-images", palette)),
        ("calibration", lambda: _calibration(results, palette)),
    ]
    drawings = {}
    with mpl.rc_context(STYLE):
        for name, draw in planned:
            drawn = draw()
            if drawn is not None:
                figure, description = drawn
                drawings[name] = Drawing(name, description, _save(figure, directory, name))
    return drawings


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


def _new_figure(height: float) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(WIDTH, height), layout="constrained")
    figure.get_layout_engine().set(w_pad=0.06, h_pad=0.06)  # type: ignore[union-attr]
    return figure, figure.add_subplot()


def _save(figure: Figure, directory: Path, name: str) -> str:
    """Write the PNG and the SVG; returns the SVG for the page."""
    # The layout is worked out once and then kept, instead of again for every format.
    figure.draw_without_rendering()
    figure.set_layout_engine(None)
    with atomic_path(directory / f"{name}.png") as path:
        figure.savefig(path, format="png", dpi=DOTS_PER_INCH, metadata={"Software": None})
    stream = io.StringIO()
    figure.savefig(stream, format="svg", metadata={"Date": None, "Creator": None, "Format": None, "Type": None})
    write_text_atomically(directory / f"{name}.svg", stream.getvalue())
    return _for_page(stream.getvalue(), name)


def _for_page(svg: str, name: str) -> str:
    """The SVG as an element of the page: the page's ink and paper, names of its own, the page's width."""
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    svg = re.sub(r'\bid="', f'id="{name}-', svg)
    svg = svg.replace('xlink:href="#', f'href="#{name}-').replace("url(#", f"url(#{name}-")
    svg = svg.replace(INK, "currentColor").replace(GRID, "var(--grid)").replace(PAPER, "var(--paper)")
    svg = re.sub(r'<svg\b([^>]*?) width="[^"]*"', r"<svg\1", svg, count=1)
    svg = re.sub(r'<svg\b([^>]*?) height="[^"]*"', r"<svg\1", svg, count=1)
    return re.sub(r"<svg\b", '<svg aria-hidden="true" focusable="false"', svg, count=1)


def _legend_below(figure: Figure, axes: Axes, columns: int = 1) -> None:
    handles, labels = axes.get_legend_handles_labels()
    if handles:
        labels = [textwrap.fill(label, 53) for label in labels]
        figure.legend(handles, labels, loc="outside lower left", ncols=columns, handlelength=2.4, borderaxespad=0.3)


def _error_axis(results: Results, task: TaskName) -> tuple[Measure, Callable[[float], float], str]:
    """The measure, how it becomes an error (smaller is better), and the axis label."""
    if task == "digit":
        return ACCURACY, lambda accuracy: 1 - accuracy, "Wrong digits"
    return ANGLE_ERROR, lambda error: error, "Angle error (RMSE)"


def _percent(value: float, _: object = None) -> str:
    percent = 100 * value
    return f"{percent:.10g} %" if percent < 1 else f"{percent:.3g} %"


def _degrees(value: float, _: object = None) -> str:
    return f"{value:.3g}°"


def _format_error_axis(axes: Axes, which: str, task: TaskName, values: Sequence[float]) -> None:
    """Logarithmic where the errors span more than a factor of three, otherwise linear."""
    axis = axes.xaxis if which == "x" else axes.yaxis
    values = [value for value in values if value > 0]
    logarithmic = bool(values) and max(values) > 3 * min(values)
    if logarithmic:
        (axes.set_xscale if which == "x" else axes.set_yscale)("log")
        low, high = min(values) / 1.25, max(values) * 1.25
        (axes.set_xlim if which == "x" else axes.set_ylim)(low, high)
        decades = math.log10(high / low)
        axis.set_major_locator(LogLocator(subs=(1, 2, 5) if decades < 2.6 else (1,)))
        axis.set_minor_locator(NullLocator())
    else:
        axis.set_major_locator(MaxNLocator(5))
    axis.set_major_formatter(FuncFormatter(_percent if task == "digit" else _degrees))


def _learning_curves(results: Results, task: TaskName, palette: Palette) -> tuple[Figure, str] | None:
    measure, to_error, label = _error_axis(results, task)
    figure, axes = _new_figure(4.3)
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
        line = _LINES[contender.description.decodings.index(contender.decoding) % len(_LINES)]
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
            shown = _percent(float(f"{mean[-1]:.3g}")) if task == "digit" else _degrees(float(mean[-1]))
            told.append(f"{contender.label}: {shown} after epoch {shared[-1]}")
    if not everything:
        return None
    axes.set_title("How many digits are read wrongly?" if task == "digit" else "How far off is the angle?")
    axes.set_xlabel("epoch")
    axes.set_ylabel(label)
    axes.set_xlim(0.85 if longest > 1 else 0.5, longest + (0.15 if longest > 1 else 0.5))
    axes.xaxis.set_major_locator(MaxNLocator(min(longest, 8), integer=True))
    axes.grid(visible=False, axis="x")
    _format_error_axis(axes, "y", task, everything)
    _legend_below(figure, axes)
    return figure, f"Learning curves of the {task} task, mean over seeds. " + "; ".join(told) + "."


def _final_error(results: Results, task: TaskName, palette: Palette) -> tuple[Figure, str] | None:
    measure, to_error, label = _error_axis(results, task)
    rows = []
    for contender in contenders(results, task, every_decoding=True):
        values = [to_error(value) for value in contender.summary(measure).values if math.isfinite(value)]
        if values or contender.diverged:
            rows.append((contender, values))
    if not any(values for _, values in rows):
        return None
    figure, axes = _new_figure(1.15 + 0.56 * len(rows))
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
    _format_error_axis(axes, "x", task, everything)
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


def _confusion(results: Results, head: str, palette: Palette) -> tuple[Figure, str] | None:
    contender = confusion_contender(results, head)
    if contender is None:
        return None
    counts = confusion_counts(contender)
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    size = len(counts)
    figure, axes = _new_figure(4.9)
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


def _residuals(results: Results, palette: Palette) -> tuple[Figure, str] | None:
    figure, axes = _new_figure(4.3)
    told = []
    widest = 0.0
    for contender in contenders(results, "angle", every_decoding=True):
        found = residual_counts(contender)
        if found is None:
            continue
        edges, counts = found
        shares = counts / counts.sum()
        name = contender.description.name
        line = _LINES[contender.description.decodings.index(contender.decoding) % len(_LINES)]
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
    _legend_below(figure, axes)
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


def _reliability(results: Results, task: TaskName, palette: Palette) -> tuple[Figure, str] | None:
    figure, axes = _new_figure(4.7)
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
    _legend_below(figure, axes)
    return figure, f"Reliability diagram of the {task} task, all seeds together. " + "; ".join(told) + "."


def _gap_text(gap: float) -> str:
    points = f"{100 * abs(gap):.1f} percentage points"
    return f"on average {points} too {'sure' if gap > 0 else 'unsure'}"


def _gradient(results: Results, palette: Palette, *, logarithmic: bool) -> tuple[Figure, str] | None:
    experiment = results.gradient_experiment
    if experiment is None or not any(curve.theory_probability for curve in experiment.curves):
        return None
    figure, axes = _new_figure(4.3)
    told = []
    top = 0.0
    lowest = 1.0
    for curve in experiment.curves:
        color = palette.color(curve.objective)
        largest = max(curve.theory_gradient, default=0.0)
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
    _legend_below(figure, axes)
    return figure, "Size of the loss gradient at the logit of the right class. " + "; ".join(told) + "."


def _power_of_ten(value: float, _: object = None) -> str:
    if 1e-3 <= value < 1e4:
        return f"{value:g}"
    superscript = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")
    return "10" + str(round(math.log10(value))).translate(superscript) if value > 0 else "0"


def _recovery(results: Results, palette: Palette) -> tuple[Figure, str] | None:
    experiment = results.recovery_experiment
    if experiment is None or not any(curve.steps for curve in experiment.curves):
        return None
    figure, axes = _new_figure(4.3)
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
    _legend_below(figure, axes)
    return figure, "Recovery from a confidently wrong start, mean over seeds. " + "; ".join(told) + "."


_ANSWERED: dict[TaskName, str] = {"digit": "points fewer digits read right", "angle": "degrees further off"}


def _answer(rankings: Mapping[str, Ranking | None], palette: Palette) -> tuple[Figure, str] | None:
    """Heads by losses, each with its distance to the best of its task: the picture of the first screen."""
    panels = [(ranking, unit) for task, unit in _ANSWERED.items() if (ranking := rankings.get(task)) and ranking.others]
    if not panels:
        return None
    rows = [len(_shown(ranking)) for ranking, _ in panels]
    figure = Figure(figsize=(WIDTH, 0.55 + sum(0.36 * count + 0.62 for count in rows)), layout="constrained")
    figure.get_layout_engine().set(w_pad=0.06, h_pad=0.06)  # type: ignore[union-attr]
    figure.suptitle("How far is each head and loss behind the best?", x=0.01, ha="left", fontsize=11, fontweight="bold")
    told = []
    grid = figure.subplots(len(panels), 1, squeeze=False, height_ratios=[count + 0.8 for count in rows])[:, 0]
    for axes, (ranking, unit) in zip(grid, panels, strict=True):
        told.append(_distances(axes, ranking, unit, palette))
    return figure, "Distance to the best of each task, with paired 95 % intervals. " + "; ".join(told) + "."


def _distances(axes: Axes, ranking: Ranking, unit: str, palette: Palette) -> str:
    by_key: dict[tuple[str, str], Comparison | None] = {ranking.best.key: None}
    by_key |= {item.first.key: item for item in ranking.others}
    items = _shown(ranking)
    items.sort(key=lambda item: (item.description.head, _distance(by_key[item.key])[0]))
    measure = ranking.others[0].measure
    # A regression head that is far behind would press all others to the edge; it is drawn as an arrow.
    near = [sum(_distance(by_key[item.key])) for item in items if item.description.head == "classification"]
    limit = max(1.35 * max(near, default=1.0), 2 * (measure.margin or 0) * measure.scale)
    told = []
    for y, item in enumerate(reversed(items)):
        comparison = by_key[item.key]
        distance, half_width = _distance(comparison)
        color, name = palette.color(item.description.name), item.description.name
        if distance <= limit:
            ends = [max(distance - half_width, -0.02 * limit), min(distance + half_width, limit)]
            axes.plot(ends, [y, y], color=color, linewidth=6, alpha=0.3, solid_capstyle="butt")
            axes.plot([distance], [y], color=color, marker=palette.marker(name), markersize=6.5, linestyle="none")
        else:
            axes.annotate(
                "",
                (limit, y),
                (0.9 * limit, y),
                arrowprops={"arrowstyle": "-|>", "color": color, "linewidth": 2},
            )
        value = "best" if comparison is None else f"{distance:.2f} ± {half_width:.2f}"
        if comparison is not None and comparison.verdict in ("open", "equal"):
            value += " =" if comparison.verdict == "equal" else " ?"
        head = "regression head" if item.description.head == "regression" else "classes"
        label = f"{head}: {item.short}"
        axes.annotate(
            label,
            (0.04, y + 0.2),
            xycoords=("axes fraction", "data"),
            fontsize=9 if len(label) < 46 else 8,
            va="bottom",
        )
        axes.annotate(value, (1, y + 0.2), xycoords=("axes fraction", "data"), fontsize=9, ha="right", va="bottom")
        told.append(f"{item.label}: {value}")
    axes.axvline(0, color=INK, linewidth=0.8)
    axes.set_xlim(-0.03 * limit, 1.02 * limit)
    axes.set_ylim(-0.4, len(items) - 0.2)
    axes.set_yticks([])
    axes.spines["left"].set_visible(False)
    axes.grid(visible=False, axis="y")
    axes.xaxis.set_major_locator(MaxNLocator(5))
    axes.set_xlabel(unit)
    return f"{unit}: " + ", ".join(told)


def _shown(ranking: Ranking) -> list[Contender]:
    """The best and the others; of many only the usual decodings."""
    items = [ranking.best, *(item.first for item in ranking.others)]
    if len(items) <= _MOST_ROWS:
        return items
    return [item for item in items if item.decoding == item.description.primary_decoding]


def _distance(comparison: Comparison | None) -> tuple[float, float]:
    """How far behind the best, in the unit it is written in, and the half width of the interval."""
    if comparison is None or comparison.by_seed is None:
        return 0.0, 0.0
    sign = -1 if comparison.measure.higher_is_better else 1
    scale = comparison.measure.scale
    return sign * comparison.by_seed.mean * scale, comparison.by_seed.half_width * scale


def _sensitivity(results: Results, task: TaskName, palette: Palette) -> tuple[Figure, str] | None:
    trained = {item.name for item in results.objectives if item.task == task}
    found = [item for item in results.tuning.objectives if item.task == task] if results.tuning else []
    found = [item for item in found if item.objective in trained]
    if not found:
        return None
    figure, axes = _new_figure(4.3)
    _, to_error, label = _error_axis(results, task)
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
    _format_error_axis(axes, "y", task, everything)
    axes.set_title("How much does the learning rate matter?")
    axes.set_xlabel("learning rate; large mark: the best, taken for the study")
    axes.set_ylabel(f"{label}, validation images")
    _legend_below(figure, axes)
    return figure, f"Sensitivity to the learning rate, {task} task. " + "; ".join(told) + "."


_CONDITIONS: dict[Question, tuple[str, str]] = {
    "label-noise": ("Who stands wrong labels?", "training labels that are wrong (%)"),
    "few-images": ("Who learns from few images?", "training images"),
}


def _conditions(results: Results, question: Question, palette: Palette) -> tuple[Figure, str] | None:
    title, axis_label = _CONDITIONS[question]
    series: dict[str, list[tuple[float, Contender]]] = {}
    for task in TASKS_OF[question]:
        for item in contenders(results, task):
            if item.runs and item.summary(ACCURACY).finite:
                series.setdefault(item.description.name, []).append((float(task.rpartition("-")[2]), item))
    if not series:
        return None
    figure, axes = _new_figure(4.3)
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
        errors += means
        told.append(
            f"{points[0][1].description.title}: "
            + ", ".join(f"{_percent(float(f'{m:.3g}'))} at {x:g}" for (x, _), m in zip(summaries, means, strict=True))
        )
    if question == "few-images":
        axes.set_xscale("log")
    _format_error_axis(axes, "y", "digit", errors)
    axes.set_title(title)
    axes.set_xlabel(axis_label)
    axes.set_ylabel("Wrong digits")
    _legend_below(figure, axes)
    return figure, f"{title} Wrong digits after training. " + "; ".join(told) + "."


def _calibration(results: Results, palette: Palette) -> tuple[Figure, str] | None:
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
    figure, axes = _new_figure(1.3 + 0.5 * len(rows))
    told = []
    for y, (item, before, after, chosen) in enumerate(reversed(rows)):
        color, marker = palette.color(item.description.name), palette.marker(item.description.name)
        axes.plot([before, after], [y, y], color=color, linewidth=2, alpha=0.4)
        axes.plot([before], [y], color=color, marker=marker, markersize=7, markerfacecolor=PAPER, linestyle="none")
        axes.plot([after], [y], color=color, marker=marker, markersize=7, linestyle="none")
        axes.annotate(
            f"{item.description.title} (T = {chosen:.2f})", (0, y + 0.2), xycoords=("axes fraction", "data"), fontsize=9
        )
        told.append(
            f"{item.description.title}: {_percent(float(f'{before:.2g}'))} to {_percent(float(f'{after:.2g}'))}"
        )
    axes.set_ylim(-0.5, len(rows) - 0.1)
    axes.set_yticks([])
    axes.set_xlim(left=0)
    axes.xaxis.set_major_locator(MaxNLocator(5))
    axes.xaxis.set_major_formatter(FuncFormatter(_percent))
    axes.set_title("Does one number put the probabilities right?")
    axes.set_xlabel(f"{CALIBRATION_ERROR.name}; hollow: as trained, filled: outputs divided by T")
    return figure, "Calibration error before and after temperature scaling. " + "; ".join(told) + "."
