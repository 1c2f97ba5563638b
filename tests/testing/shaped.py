"""Kinds for what the built-in ones leave out: single rows, dimensions behind the classes, and shapes that broadcast.

And a cross-entropy in the shape of language models.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from torchlosses.testing import Case, Kind
from torchlosses.testing.kinds import Draw

# Rows, and what comes behind the classes; more dimensions are a view of fewer, so one form of them is enough.
IMAGES = (((2, 2), False), ((2, 2), True), ((2, 1, 2), False))


def normal(generator: torch.Generator, *shape: int) -> Tensor:
    return torch.randn(shape, generator=generator, dtype=torch.float64)


def class_weight(case: Case, generator: torch.Generator) -> Tensor:
    shape = case.tensors["input"].shape
    return torch.rand(shape[min(1, len(shape) - 1)], generator=generator, dtype=torch.float64) + 0.5


def element_weight(case: Case, generator: torch.Generator) -> Tensor:
    return torch.rand(case.tensors["input"].shape, generator=generator, dtype=torch.float64) + 0.5


def images(behind: tuple[int, ...], soft: bool, probabilities: bool) -> Draw:
    def draw(generator: torch.Generator, rows: int, classes: int) -> dict[str, Tensor]:
        batch, *more = behind
        input = normal(generator, batch, classes, *more)
        target = normal(generator, batch, classes, *more).softmax(1)
        return {"input": input.softmax(1) if probabilities else input, "target": target if soft else target.argmax(1)}

    return draw


def unbatched(soft: bool, probabilities: bool) -> Draw:
    def draw(generator: torch.Generator, rows: int, classes: int) -> dict[str, Tensor]:
        input, target = normal(generator, classes), normal(generator, classes).softmax(0)
        return {"input": input.softmax(0) if probabilities else input, "target": target if soft else target.argmax(0)}

    return draw


def of_images(probabilities: bool) -> Kind:
    forms = {
        f"{'soft' if soft else 'indices'} with {len(behind) - 1} dimensions behind": images(behind, soft, probabilities)
        for behind, soft in IMAGES
    }
    traits = {"unit sum"} if probabilities else {"free"}
    return Kind(
        "images",
        forms,
        differentiable=("input", "target"),
        classes={"input": 1, "target": 1},
        indices=("target",),
        traits=frozenset(traits),
        weight=class_weight,
    )


def of_single_rows(probabilities: bool) -> Kind:
    forms = {name: unbatched(soft, probabilities) for name, soft in (("index", False), ("soft", True))}
    # Ignored, the only row would leave nothing to differentiate: the target is no argument that rows are ignored by.
    return Kind(
        "single rows", forms, differentiable=("input", "target"), rows=(), classes={"input": 0}, weight=class_weight
    )


def pair(input: tuple[int, ...], target: tuple[int, ...]) -> Draw:
    return lambda generator, rows, classes: {"input": normal(generator, *input), "target": normal(generator, *target)}


PAIRS = Kind(
    "pairs of shapes",
    {
        f"{first} against {second}": pair(first, second)
        for first, second in (((), ()), ((5,), (5,)), ((3, 1), (3,)), ((2, 3, 2), (3, 2)))
    },
    differentiable=("input", "target"),
    rows=(),
    traits=frozenset({"free"}),
    weight=element_weight,
)


def next_token(cross_entropy: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """What trainers of language models make of a cross-entropy: position t is judged by label t + 1."""

    def loss(
        input: Tensor,
        target: Tensor,
        weight: Tensor | None = None,
        ignore_index: int = -100,
        reduction: str = "mean",
        label_smoothing: float = 0.0,
    ) -> Tensor:
        return cross_entropy(
            input[:, :-1].flatten(0, 1),
            target[:, 1:].flatten(),
            weight=weight,
            ignore_index=ignore_index,
            reduction=reduction,
            label_smoothing=label_smoothing,
        )

    return loss
