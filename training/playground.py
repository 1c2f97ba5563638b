"""The figure that a reader can play with: each loss and its gradient, for a probability or an error of one's choice.

The curves are drawn here; the page's script only moves the mark and works out the numbers at it, by the same formulas.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from training.experiments import theoretical_gradient
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


def cee_gradient(probability: np.ndarray) -> np.ndarray:
    """-dL/dx at the right class's logit x, through softmax and -log(p + 1e-7)."""
    return probability * (1 - probability) / (probability + 1e-7)


def huber_gradient(error: np.ndarray) -> np.ndarray:
    """Of the Huber loss of an error, in units of the largest answer."""
    return error.clip(-HUBER_DELTA, HUBER_DELTA)


def panels(angle_limit: float) -> tuple[Panel, Panel]:
    """The two sliders: the probability of the right class, and the error of an angle."""
    p, error = np.linspace(0, 1, _POINTS), np.linspace(-1, 1, _POINTS)
    return (
        Panel(
            "probability",
            "A category",
            "Probability given to the right digit",
            "gradient at the right digit's logit, share of the largest",
            ("0", "1"),
            (
                Curve("cross-entropy", "cross-entropy", _path(theoretical_gradient("cross-entropy", p, CLASSES))),
                Curve("cee-softmax", "CEE on probabilities", _path(cee_gradient(p))),
                Curve("mse-softmax", "MSE on probabilities", _path(theoretical_gradient("mse-softmax", p, CLASSES))),
            ),
        ),
        Panel(
            "angle",
            "A quantity",
            "True angle, where the network answers 0°",
            "size of the gradient at the output, share of the largest",
            (f"−{angle_limit:g}°", f"{angle_limit:g}°"),
            (
                Curve("regression-mse", "MSE", _path(2 * error)),
                Curve("regression-huber", "Huber", _path(huber_gradient(error))),
            ),
        ),
    )


def _path(gradient: np.ndarray) -> str:
    heights = np.abs(gradient) / np.abs(gradient).max()
    across = np.linspace(0, WIDTH, len(heights))
    points = (f"{x:.1f} {HEIGHT * (1 - height):.1f}" for x, height in zip(across, heights, strict=True))
    return "M" + "L".join(points)
