"""What all figures of the report share: style, colours, axes, and how they are saved.

A figure is as wide as a phone, so that the page shows two beside each other on a screen and one below the other on a
phone without shrinking the letters. One colour and one marker belong to one objective wherever it appears.
"""

from __future__ import annotations

import io
import math
import re
import textwrap
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullLocator

from training.files import atomic_path, write_text_atomically
from training.measures import ACCURACY, ANGLE_ERROR, Measure
from training.questions import TaskName
from training.results import Results

WIDTH = 4.6
INK = "#23272e"
GRID = "#dfe2e6"
PAPER = "#ffffff"
DOTS_PER_INCH = 160

# After Okabe and Ito: told apart with every common colour blindness, dark enough on white, light enough on black.
COLORS = ("#0072b2", "#d55e00", "#009e73", "#dd9500", "#b8609a", "#7a7a7a", "#4f9fd0", "#8c6d31", "#7d6bc4")
_MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*", "h")
LINES: tuple[Any, ...] = ("-", (0, (4, 1.6)), (0, (1, 1.4)), "-.")
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


def new_figure(height: float) -> tuple[Figure, Axes]:
    """A figure of one panel, of the page's width and a height in inches."""
    figure = Figure(figsize=(WIDTH, height), layout="constrained")
    figure.get_layout_engine().set(w_pad=0.06, h_pad=0.06)  # type: ignore[union-attr]
    return figure, figure.add_subplot()


def save(figure: Figure, directory: Path, name: str) -> str:
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


def legend_below(figure: Figure, axes: Axes, columns: int = 1) -> None:
    """A legend below the panel, its labels broken to the figure's width."""
    handles, labels = axes.get_legend_handles_labels()
    if handles:
        labels = [textwrap.fill(label, 53) for label in labels]
        # What a long legend needs is added to the figure, not taken from the panel.
        lines = sum(label.count("\n") + 1 for label in labels)
        figure.set_figheight(figure.get_figheight() + 0.2 * max(0, lines - 5))
        figure.legend(handles, labels, loc="outside lower left", ncols=columns, handlelength=2.4, borderaxespad=0.3)


def error_axis(results: Results, task: TaskName) -> tuple[Measure, Callable[[float], float], str]:
    """The measure, how it becomes an error (smaller is better), and the axis label."""
    if task == "digit":
        return ACCURACY, lambda accuracy: 1 - accuracy, "Wrong digits"
    return ANGLE_ERROR, lambda error: error, "Angle error (RMSE)"


def percent(value: float, _: object = None) -> str:
    """A share as a percentage; the second argument is what an axis passes to its formatter."""
    scaled = 100 * value
    return f"{scaled:.10g} %" if scaled < 1 else f"{scaled:.3g} %"


def degrees(value: float, _: object = None) -> str:
    """An angle; the second argument is what an axis passes to its formatter."""
    return f"{value:.3g}°"


def format_error_axis(axes: Axes, which: str, task: TaskName, values: Sequence[float]) -> None:
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
    axis.set_major_formatter(FuncFormatter(percent if task == "digit" else degrees))
