"""The figure that a reader can play with: each loss and its gradient, for a probability or an error of one's choice.

The curves are drawn here; the page's script only moves the mark and works out the numbers at it, by the same formulas.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from training.objectives import HUBER_DELTA

CLASSES = 10
WIDTH, HEIGHT = 320, 150
_POINTS = 161


@dataclass(frozen=True)
class Curve:
    """One loss: its gradient as a path of the drawing, each point a share of the largest on it."""

    objective: str
    title: str
    path: str


@dataclass(frozen=True)
class Panel:
    """One slider: what it moves, from where to where, and the losses it shows."""

    key: str
    title: str
    label: str
    axis: str
    ends: tuple[str, str]
    curves: tuple[Curve, ...]


def cross_entropy_gradient(p: float) -> float:
    """-dL/dx at the right class's logit: 1 - p."""
    return 1 - p


def cee_gradient(p: float) -> float:
    """The same through softmax and log(p + 1e-7)."""
    return p * (1 - p) / (p + 1e-7)


def mse_softmax_gradient(p: float) -> float:
    """Of MSE on softmax probabilities, the rest of the probability spread evenly over the other classes."""
    return 2 / CLASSES * p * (1 - p) ** 2 * (1 + 1 / (CLASSES - 1))


def mse_gradient(error: float) -> float:
    """Of the square of an error, in units of the largest answer."""
    return 2 * error


def huber_gradient(error: float) -> float:
    """Of the Huber loss."""
    return max(-HUBER_DELTA, min(HUBER_DELTA, error))


def panels(angle_limit: float) -> tuple[Panel, Panel]:
    """The two sliders: the probability of the right class, and the error of an angle."""
    probabilities = [index / (_POINTS - 1) for index in range(_POINTS)]
    errors = [2 * p - 1 for p in probabilities]
    return (
        Panel(
            "probability",
            "A category",
            "Probability given to the right digit",
            "gradient at the right digit's logit, share of the largest",
            ("0", "1"),
            (
                Curve("cross-entropy", "cross-entropy", _path(cross_entropy_gradient, probabilities)),
                Curve("cee-softmax", "CEE on probabilities", _path(cee_gradient, probabilities)),
                Curve("mse-softmax", "MSE on probabilities", _path(mse_softmax_gradient, probabilities)),
            ),
        ),
        Panel(
            "angle",
            "A quantity",
            "True angle, where the network answers 0°",
            "size of the gradient at the output, share of the largest",
            (f"−{angle_limit:g}°", f"{angle_limit:g}°"),
            (
                Curve("regression-mse", "MSE", _path(mse_gradient, errors)),
                Curve("regression-huber", "Huber", _path(huber_gradient, errors)),
            ),
        ),
    )


def _path(gradient: Callable[[float], float], places: Sequence[float]) -> str:
    heights = [abs(gradient(place)) for place in places]
    largest = max(heights)
    points = (
        f"{WIDTH * index / (len(places) - 1):.1f} {HEIGHT * (1 - height / largest):.1f}"
        for index, height in enumerate(heights)
        if math.isfinite(height)
    )
    return "M" + "L".join(points)
