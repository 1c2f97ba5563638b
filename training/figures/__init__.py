"""The figures of the report: each one panel, drawn once, saved as PNG and as SVG."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import matplotlib as mpl
from matplotlib.figure import Figure

from training.comparisons import Ranking
from training.figures import answer, experiments, tasks
from training.figures.drawing import STYLE, Drawing, Palette, save
from training.results import Results


def draw_figures(results: Results, rankings: Mapping[str, Ranking | None], directory: Path) -> dict[str, Drawing]:
    """Draw every figure the results have numbers for into `directory`; the keys are the figures' names."""
    palette = Palette.of(results)
    planned: list[tuple[str, Callable[[], tuple[Figure, str] | None]]] = [
        ("answer", lambda: answer.heads_by_losses(rankings, palette)),
        ("learning-curves-digit", lambda: tasks.learning_curves(results, "digit", palette)),
        ("learning-curves-angle", lambda: tasks.learning_curves(results, "angle", palette)),
        ("final-error-digit", lambda: tasks.final_error(results, "digit", palette)),
        ("final-error-angle", lambda: tasks.final_error(results, "angle", palette)),
        ("confusion-regression", lambda: tasks.confusion(results, "regression", palette)),
        ("confusion-classification", lambda: tasks.confusion(results, "classification", palette)),
        ("angle-residuals", lambda: tasks.residuals(results, palette)),
        ("reliability-digit", lambda: tasks.reliability(results, "digit", palette)),
        ("reliability-angle", lambda: tasks.reliability(results, "angle", palette)),
        ("gradient-by-probability", lambda: experiments.gradient(results, palette, logarithmic=False)),
        ("gradient-by-probability-logarithmic", lambda: experiments.gradient(results, palette, logarithmic=True)),
        ("recovery-accuracy", lambda: experiments.recovery(results, palette)),
        ("sensitivity-digit", lambda: experiments.sensitivity(results, "digit", palette)),
        ("sensitivity-angle", lambda: experiments.sensitivity(results, "angle", palette)),
        ("label-noise", lambda: experiments.conditions(results, "label-noise", palette)),
        ("few-images", lambda: experiments.conditions(results, "few-images", palette)),
        ("calibration", lambda: experiments.calibration(results, palette)),
    ]
    drawings = {}
    with mpl.rc_context(STYLE):
        for name, draw in planned:
            drawn = draw()
            if drawn is not None:
                figure, description = drawn
                drawings[name] = Drawing(name, description, save(figure, directory, name))
    return drawings
