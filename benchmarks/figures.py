"""The plots of the documents, each drawn from the results alone."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, NullLocator

from benchmarks.goals import GOALS
from benchmarks.lookup import Lookup, Subject
from benchmarks.results import Results
from training.figures import COLORS, DOTS_PER_INCH, INK, STYLE
from training.files import atomic_path

WIDTH = 7.2
CURVE_ROWS = 1024
CURVE_CLASSES = 1000
LINEAR_CURVE = (256, 512)  # rows, features
_LOOK = {
    "native": (COLORS[0], "o"),
    "inplace": (COLORS[2], "^"),
    "eager": (COLORS[3], "D"),
    "torch": (COLORS[5], "s"),
    "compiled": (COLORS[1], "v"),
    "clone": (INK, ""),
    "products": (INK, ""),
    "chunked": (COLORS[4], "P"),
}
_LIMITS = ("clone", "products")
_OTHER_LOOK = (INK, "x")
_FEWEST_POINTS = 3


def draw_figures(results: Results, folder: Path) -> list[Path]:
    """Draw every plot that the results have numbers for, and return the files."""
    lookup = Lookup(results)
    planned: dict[str, Callable[[Lookup], Figure | None]] = {
        "benchmark-speed": _speed,
        "benchmark-classes": lambda found: _curve(found, "cross_entropy", (CURVE_ROWS, None)),
        "benchmark-rows": lambda found: _curve(found, "cross_entropy", (None, CURVE_CLASSES)),
        "benchmark-linear": lambda found: _curve(found, "linear_cross_entropy", (*LINEAR_CURVE, None)),
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


def _curve(lookup: Lookup, loss: str, shape: tuple[int | None, ...]) -> Figure | None:
    """The time along the one dimension of `shape` that is left open, with the quartiles as a band."""
    along = shape.index(None)
    subjects = sorted(
        (
            subject
            for subject in lookup.timed("all")
            if subject.loss == loss
            and subject.dtype == "float32"
            and subject.passes == "forward+backward"
            and len(subject.shape) == len(shape)
            and all(fixed in (None, extent) for fixed, extent in zip(shape, subject.shape, strict=True))
        ),
        key=lambda subject: subject.shape[along],
    )
    if len(subjects) < _FEWEST_POINTS:
        return None
    figure, axes = _new_figure(4.2)
    for name in ("torch", "chunked", "compiled", "eager", "native", "clone", "products"):
        _draw_curve(lookup, axes, subjects, name, along)
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}".replace(",", " ")))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_minor_locator(NullLocator())
    names = ("rows", "features", "classes") if loss == "linear_cross_entropy" else ("rows", "classes")
    axes.set_xlabel(names[along])
    axes.set_ylabel("milliseconds a call")
    fixed = ", ".join(f"{extent} {name}" for extent, name in zip(shape, names, strict=True) if extent is not None)
    axes.set_title(f"{loss}, forward and backward, {fixed}, float32")
    axes.legend(loc="upper left")
    return figure


def _draw_curve(lookup: Lookup, axes: Axes, subjects: list[Subject], name: str, along: int) -> None:
    timings = [timing for subject in subjects if (timing := lookup.timing("all", subject, name)) is not None]
    if not timings:
        return
    places = [timing.shape[along] for timing in timings]
    color, marker = _LOOK[name]
    line = "--" if name in _LIMITS else "-"
    title = _title(lookup, name)
    medians = [timing.median * 1e3 for timing in timings]
    axes.plot(places, medians, color=color, marker=marker, markersize=6, linestyle=line, label=title)
    low, high = (
        [value * 1e3 for value in (getattr(timing, edge) for timing in timings)]
        for edge in ("lower_quartile", "upper_quartile")
    )
    axes.fill_between(places, low, high, color=color, alpha=0.2, linewidth=0)


def _memory(lookup: Lookup) -> Figure | None:
    """The extra memory of cross_entropy on one large input, forward alone, and with the backward."""
    subjects = [
        subject
        for subject in lookup.weighed()
        if subject.loss == "cross_entropy" and subject.dtype == "float32" and subject.shape == (CURVE_ROWS, 32000)
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
    axes.set_title(f"cross_entropy {CURVE_ROWS}×32000, float32")
    return figure


def _title(lookup: Lookup, name: str) -> str:
    return lookup.results.title(name).replace("`", "")
