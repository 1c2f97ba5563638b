"""The plots of the documents, each drawn from the results alone."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, NullLocator

from benchmarks.curves import CLASSES, DRAWN, FEATURES, LOSSES, ROWS
from benchmarks.goals import GOALS
from benchmarks.lookup import Lookup, Subject
from benchmarks.results import Results
from training.figures.drawing import COLORS, DOTS_PER_INCH, INK, STYLE
from training.files import atomic_path

WIDTH = 7.2
LARGE = (1024, 32000)
_LOOK = {
    "native": (COLORS[0], "o"),
    "inplace": (COLORS[2], "^"),
    "eager": (COLORS[3], "D"),
    "torch": (COLORS[5], "s"),
    "compiled": (COLORS[1], "v"),
    "copy": (INK, ""),
    "products": (INK, ""),
    "chunked": (COLORS[4], "P"),
}
_LIMITS = ("copy", "products")
_OTHER_LOOK = (INK, "x")


def draw_figures(results: Results, folder: Path) -> list[Path]:
    """Draw every plot that the results have numbers for, and return the files."""
    lookup = Lookup(results)
    planned: dict[str, Callable[[Lookup], Figure | None]] = {
        "benchmark-speed": _speed,
        "benchmark-memory": _memory,
    }
    written = []
    with mpl.rc_context(STYLE):
        for name, draw in planned.items():
            figure = draw(lookup)
            if figure is not None:
                written.append(folder / f"{name}.png")
                with atomic_path(written[-1]) as path:
                    figure.savefig(path, format="png", dpi=DOTS_PER_INCH, metadata={"Software": None})
    return written


def _new_figure(height: float) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(WIDTH, height), layout="constrained")
    return figure, figure.add_subplot()


def _speed(lookup: Lookup) -> Figure | None:
    """How many times as fast as torch, of the cases that have a figure to reach."""
    timed = lookup.timed("all")
    subjects = [
        subject
        for subject in dict.fromkeys(goal.subject for goal in GOALS)
        if subject.passes == "forward+backward" and subject in timed
    ]
    if not subjects:
        return None
    figure, axes = _new_figure(1.6 + 0.34 * len(subjects))
    for name in lookup.results.implementations:
        points = [
            (ratio, place)
            for place, subject in enumerate(subjects)
            if name != "torch" and (ratio := lookup.ratio("all", subject, name, "torch")) is not None
        ]
        if points:
            color, marker = _LOOK.get(name, _OTHER_LOOK)
            size = 60 if name == "native" else 34
            axes.scatter(
                *zip(*points, strict=True), s=size, color=color, marker=marker, zorder=3, label=_title(lookup, name)
            )
    axes.axvline(1, color=INK, linewidth=1)
    axes.set_yticks(range(len(subjects)), [subject.title for subject in subjects])
    axes.set_ylim(len(subjects) - 0.5, -0.5)
    axes.set_xscale("log")
    _plain_ticks(axes)
    axes.set_xlabel("times as fast as torch (logarithmic; right of 1 is faster)")
    axes.set_title("Forward and backward, against torch.nn.functional")
    figure.legend(loc="outside lower center", ncols=2)
    return figure


def _plain_ticks(axes: Axes) -> None:
    low, high = axes.get_xlim()
    ticks = [tick for tick in (0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 50) if low <= tick <= high]
    axes.set_xticks(ticks, [f"{tick:g}×" for tick in ticks])
    axes.xaxis.set_minor_locator(NullLocator())


def draw_growth(results: Results, folder: Path) -> list[Path]:
    """Draw how the time of each loss grows, and return the files."""
    lookup = Lookup(results)
    written = []
    with mpl.rc_context(STYLE):
        for loss in LOSSES:
            figure = _growth(lookup, loss)
            if figure is not None:
                written.append(folder / growth_name(loss))
                with atomic_path(written[-1]) as path:
                    figure.savefig(path, format="png", dpi=DOTS_PER_INCH, metadata={"Software": None})
    return written


def growth_name(loss: str) -> str:
    """The file of a loss's picture."""
    return f"growth-{loss}.png"


def _growth(lookup: Lookup, loss: str) -> Figure | None:
    """The time by the number of classes and by the number of rows, with the quartiles as a band."""
    subjects = [subject for subject in lookup.timed("all") if subject.loss == loss]
    by_classes = [subject for subject in subjects if subject.shape[0] == ROWS]
    by_rows = [subject for subject in subjects if subject.shape[-1] == CLASSES]
    if not by_classes and not by_rows:
        return None
    figure = Figure(figsize=(WIDTH, 3.6), layout="constrained")
    left, right = figure.subplots(1, 2, sharey=True)
    columns = "classes" if loss in ("cross_entropy", "cee_loss", "linear_cross_entropy") else "columns"
    for axes, along, some, title in (
        (left, -1, by_classes, f"{columns}, at {ROWS} rows"),
        (right, 0, by_rows, f"rows, at {CLASSES} {columns}"),
    ):
        for name in DRAWN:
            _draw_growth(lookup, axes, sorted(some, key=lambda subject: subject.shape[along]), name, along)
        axes.set_xscale("log")
        axes.set_yscale("log")
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: _short(value)))
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        for axis in (axes.xaxis, axes.yaxis):
            axis.set_minor_locator(NullLocator())
        axes.set_xlabel(title)
    left.set_ylabel("milliseconds a call")
    features = f", {FEATURES} features" if loss == "linear_cross_entropy" else ""
    figure.suptitle(f"{loss}, forward and backward, float32{features}", fontsize="medium")
    handles, labels = (left if by_classes else right).get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=len(labels))
    return figure


def _short(value: float) -> str:
    return f"{value:g}" if value < 1000 else f"{value / 1000:g}k"


def _draw_growth(lookup: Lookup, axes: Axes, subjects: list[Subject], name: str, along: int) -> None:
    timings = [timing for subject in subjects if (timing := lookup.timing("all", subject, name)) is not None]
    if not timings:
        return
    places = [timing.shape[along] for timing in timings]
    color, marker = _LOOK[name]
    medians, low, high = (
        [getattr(timing, edge) * 1e3 for timing in timings] for edge in ("median", "lower_quartile", "upper_quartile")
    )
    line, title = "--" if name in _LIMITS else "-", _title(lookup, name)
    axes.plot(places, medians, color=color, marker=marker, markersize=5, linestyle=line, label=title)
    axes.fill_between(places, low, high, color=color, alpha=0.2, linewidth=0)


def _memory(lookup: Lookup) -> Figure | None:
    """The extra memory of cross_entropy on one large input, forward alone, and with the backward."""
    subjects = [
        subject
        for subject in lookup.weighed()
        if subject.loss == "cross_entropy" and subject.dtype == "float32" and subject.shape == LARGE
    ]
    if not subjects:
        return None
    rows = [
        (_title(lookup, name), subject.passes, peak.units, _LOOK.get(name, _OTHER_LOOK)[0])
        for subject in subjects
        for name in lookup.results.implementations
        if (peak := lookup.memory("all", subject, name)) is not None
    ]
    figure, axes = _new_figure(1.1 + 0.32 * len(rows))
    places = [row + 0.6 * (rows[row][1] != rows[0][1]) for row in range(len(rows))]
    bars = axes.barh(places, [units for _, _, units, _ in rows], color=[color for *_, color in rows], height=0.7)
    axes.bar_label(bars, [f"{units:.2f}" for _, _, units, _ in rows], padding=4)
    axes.set_yticks(places, [f"{title}, {passes}" for title, passes, _, _ in rows])
    axes.invert_yaxis()
    axes.grid(visible=False, axis="y")
    axes.set_xlim(right=max(units for _, _, units, _ in rows) * 1.12 + 0.05)
    axes.set_xlabel("peak extra memory, in tensors of the size of the logits")
    axes.set_title(f"cross_entropy {LARGE[0]}×{LARGE[1]}, float32")
    return figure


def _title(lookup: Lookup, name: str) -> str:
    return lookup.results.title(name).replace("`", "")
