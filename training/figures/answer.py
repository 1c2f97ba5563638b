"""The picture of the first screen: heads by losses, each with its distance to the best of its task."""

from __future__ import annotations

from collections.abc import Mapping

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from training.comparisons import Comparison, Ranking
from training.figures.drawing import INK, WIDTH, Palette
from training.measures import Contender
from training.questions import HARDEST, TaskName

_MOST_ROWS = 9

_ANSWERED: dict[TaskName, str] = {"digit": "points fewer digits read right", "angle": "degrees further off"}


def heads_by_losses(rankings: Mapping[str, Ranking | None], palette: Palette) -> tuple[Figure, str] | None:
    """Heads by losses, each with its distance to the best of its task: the picture of the first screen."""
    harder = {task: f"points fewer digits read right\n{condition}" for task, condition in HARDEST.items()}
    units = _ANSWERED if _ANSWERED.keys() & rankings.keys() else harder
    panels = [(ranking, unit) for task, unit in units.items() if (ranking := rankings.get(task)) and ranking.others]
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
                "", (limit, y), (0.9 * limit, y), arrowprops={"arrowstyle": "-|>", "color": color, "linewidth": 2}
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
