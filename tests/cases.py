"""The one list of cases that drives the tests of the losses."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

import torchlosses

CLASSES = 3
REDUCTIONS = ("none", "mean", "sum")
INPUT_SHAPES = ((CLASSES,), (4, CLASSES), (2, CLASSES, 2), (2, CLASSES, 2, 2))


@dataclass(frozen=True)
class ComparedLoss:
    """A loss with fixed options, and how to draw its tensors; `differentiable` names those that take a gradient."""

    name: str
    ours: Callable[..., Tensor]
    builtin: Callable[..., Tensor] | None
    draw: Callable[[torch.Generator, torch.dtype], dict[str, Tensor]]
    differentiable: tuple[str, ...]
    options: dict[str, Any] = field(default_factory=dict)

    def tensors(self, dtype: torch.dtype = torch.float64, seed: int = 0) -> dict[str, Tensor]:
        return self.draw(torch.Generator().manual_seed(seed), dtype)

    def function(self, fixed: dict[str, Tensor], loss: Callable[..., Tensor] | None = None) -> Callable[..., Tensor]:
        """The loss as a function of its differentiable tensors only."""

        def call(*arguments: Tensor) -> Tensor:
            tensors = {**fixed, **dict(zip(self.differentiable, arguments, strict=True))}
            return (loss or self.ours)(**tensors, **self.options)

        return call

    def leaves(self, tensors: dict[str, Tensor]) -> tuple[Tensor, ...]:
        return tuple(tensors[name].detach().clone().requires_grad_() for name in self.differentiable)


def _rows_shape(shape: tuple[int, ...]) -> tuple[int, ...]:
    return () if len(shape) == 1 else (shape[0], *shape[2:])


def _cross_entropy_cases() -> list[ComparedLoss]:
    cases = []
    for shape, kind, reduction, weighted, smoothing in itertools.product(
        INPUT_SHAPES, ("index", "ignored", "probability"), REDUCTIONS, (False, True), (0.0, 0.2)
    ):
        if kind == "ignored" and len(shape) == 1:
            continue
        # Options and shapes do not interact: every combination on one shape, two on the others.
        if shape != (4, CLASSES) and weighted != bool(smoothing):
            continue

        def draw(
            generator: torch.Generator,
            dtype: torch.dtype,
            shape: tuple[int, ...] = shape,
            kind: str = kind,
            weighted: bool = weighted,
        ) -> dict[str, Tensor]:
            tensors = {"input": torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype)}
            if kind == "probability":
                logits = torch.randn(shape, generator=generator, dtype=torch.float64)
                tensors["target"] = logits.softmax(min(1, len(shape) - 1)).to(dtype)
            else:
                tensors["target"] = torch.randint(CLASSES, _rows_shape(shape), generator=generator)
                if kind == "ignored":
                    tensors["target"].view(-1)[::2] = -100
            if weighted:
                weight = torch.rand(CLASSES, generator=generator, dtype=torch.float64) + 0.5
                tensors["weight"] = weight.to(dtype)
            return tensors

        differentiable = ["input"]
        if kind == "probability":
            differentiable.append("target")
        if weighted:
            differentiable.append("weight")
        options = {"reduction": reduction, "label_smoothing": smoothing}
        name = f"cross_entropy-{kind}-{'x'.join(map(str, shape))}-{reduction}"
        name += ("-weight" if weighted else "") + ("-smoothing" if smoothing else "")
        cases.append(
            ComparedLoss(name, torchlosses.cross_entropy, F.cross_entropy, draw, tuple(differentiable), options)
        )
    return cases


def _sample_weight(shape: tuple[int, ...], generator: torch.Generator, dtype: torch.dtype) -> Tensor:
    """One weight a row, 0 for one of them."""
    weight = torch.rand(shape, generator=generator, dtype=torch.float64) + 0.5
    weight.view(-1)[-1] = 0
    return weight.to(dtype)


EVERYTHING = {"z_loss": 0.1, "logit_softcap": 1.5, "label_smoothing": 0.2}


def _option_cases() -> list[ComparedLoss]:
    """What the namesakes in torch do not have: a few combinations, since options and shapes do not interact."""
    cases = []
    rows, images = (4, CLASSES), (2, CLASSES, 2)
    for kind, shape, names, options in (
        ("index", rows, ("sample_weight",), {}),
        ("ignored", rows, ("weight", "sample_weight"), EVERYTHING),
        ("probability", rows, ("weight", "sample_weight"), EVERYTHING),
        ("ignored", images, ("sample_weight",), {**EVERYTHING, "reduction": "none"}),
        ("probability", images, (), {"z_loss": 0.1, "logit_softcap": 1.5, "reduction": "sum"}),
        ("ignored", rows, ("normalizer",), {"z_loss": 0.1}),
        ("index", (CLASSES,), ("normalizer", "sample_weight"), {"logit_softcap": 1.5, "empty": "zero"}),
        ("index", (2, 2, CLASSES), ("sample_weight",), {"dim": -1}),
    ):

        def draw(
            generator: torch.Generator,
            dtype: torch.dtype,
            kind: str = kind,
            shape: tuple[int, ...] = shape,
            names: tuple[str, ...] = names,
            options: dict[str, Any] = options,
        ) -> dict[str, Tensor]:
            of_rows = shape[:-1] if "dim" in options else _rows_shape(shape)
            tensors = {"input": torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype)}
            if kind == "probability":
                logits = torch.randn(shape, generator=generator, dtype=torch.float64)
                tensors["target"] = logits.softmax(1).to(dtype)
            else:
                tensors["target"] = torch.randint(CLASSES, of_rows, generator=generator)
                if kind == "ignored":
                    tensors["target"].view(-1)[1] = -100
            if "weight" in names:
                tensors["weight"] = (torch.rand(CLASSES, generator=generator, dtype=torch.float64) + 0.5).to(dtype)
            if "sample_weight" in names:
                tensors["sample_weight"] = _sample_weight(of_rows, generator, dtype)
            if "normalizer" in names:
                tensors["normalizer"] = torch.rand((), generator=generator, dtype=torch.float64).to(dtype) + 2
            return tensors

        differentiable = ("input", *(("target",) if kind == "probability" else ()), *names)
        name = "-".join((f"cross_entropy-options-{kind}", "x".join(map(str, shape)), *names, *options))
        cases.append(
            ComparedLoss(name, torchlosses.cross_entropy, None, draw, differentiable, {"reduction": "mean", **options})
        )
    for loss, names, reduction in itertools.product(
        (torchlosses.mse_loss, torchlosses.cee_loss),
        (("sample_weight",), ("sample_weight", "normalizer")),
        ("mean", "none"),
    ):
        if "normalizer" in names and reduction != "mean":
            continue

        def draw_rows(
            generator: torch.Generator, dtype: torch.dtype, names: tuple[str, ...] = names
        ) -> dict[str, Tensor]:
            input, target = (torch.randn(rows, generator=generator, dtype=torch.float64).softmax(1) for _ in range(2))
            tensors = {"input": input.to(dtype), "target": target.to(dtype)}
            tensors["sample_weight"] = _sample_weight(rows[:1], generator, dtype)
            if "normalizer" in names:
                tensors["normalizer"] = torch.tensor(2.5, dtype=dtype)
            return tensors

        name = "-".join((f"{loss.__name__}-options", *names, reduction))
        cases.append(ComparedLoss(name, loss, None, draw_rows, ("input", "target", *names), {"reduction": reduction}))
    return cases


def _cee_cases() -> list[ComparedLoss]:
    cases = []
    for shape, kind, reduction in itertools.product(INPUT_SHAPES, ("index", "probability"), REDUCTIONS):

        def draw(
            generator: torch.Generator, dtype: torch.dtype, shape: tuple[int, ...] = shape, kind: str = kind
        ) -> dict[str, Tensor]:
            along = min(1, len(shape) - 1)
            logits, target_logits = (torch.randn(shape, generator=generator, dtype=torch.float64) for _ in range(2))
            tensors = {"input": logits.softmax(along).to(dtype)}
            if kind == "index":
                tensors["target"] = torch.randint(CLASSES, _rows_shape(shape), generator=generator)
            else:
                tensors["target"] = target_logits.softmax(along).to(dtype)
            return tensors

        differentiable = ("input", "target") if kind == "probability" else ("input",)
        name = f"cee_loss-{kind}-{'x'.join(map(str, shape))}-{reduction}"
        options = {"reduction": reduction}
        cases.append(ComparedLoss(name, torchlosses.cee_loss, None, draw, differentiable, options))
    return cases


def _mse_cases() -> list[ComparedLoss]:
    cases = []
    pairs = (((), ()), ((5,), (5,)), ((3, 2), (3, 2)), ((3, 1), (3,)), ((2, 3, 2), (3, 2)))
    for (input_shape, target_shape), reduction, weighted in itertools.product(pairs, REDUCTIONS, (False, True)):

        def draw(
            generator: torch.Generator,
            dtype: torch.dtype,
            input_shape: tuple[int, ...] = input_shape,
            target_shape: tuple[int, ...] = target_shape,
            weighted: bool = weighted,
        ) -> dict[str, Tensor]:
            tensors = {
                "input": torch.randn(input_shape, generator=generator, dtype=torch.float64).to(dtype),
                "target": torch.randn(target_shape, generator=generator, dtype=torch.float64).to(dtype),
            }
            if weighted:
                weight = torch.rand(input_shape, generator=generator, dtype=torch.float64) + 0.5
                tensors["weight"] = weight.to(dtype)
            return tensors

        same = input_shape == target_shape
        name = f"mse_loss-{'x'.join(map(str, input_shape))}-{'x'.join(map(str, target_shape))}-{reduction}"
        differentiable = ("input", "target", "weight") if weighted else ("input", "target")
        # torch's weighted mean does not broadcast numerator and denominator alike, so it is no oracle there.
        builtin = F.mse_loss if same or not weighted else None
        options = {"reduction": reduction} if same else {"reduction": reduction, "broadcast": "allow"}
        cases.append(
            ComparedLoss(
                name + ("-weight" if weighted else ""), torchlosses.mse_loss, builtin, draw, differentiable, options
            )
        )
    return cases


CASES = [*_mse_cases(), *_cross_entropy_cases(), *_cee_cases(), *_option_cases()]
CASES_WITH_BUILTIN = [case for case in CASES if case.builtin is not None]


def identifier(case: ComparedLoss) -> str:
    return case.name
