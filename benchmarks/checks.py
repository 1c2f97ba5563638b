"""Whether an implementation is right, before its time counts: loss and every gradient against float64."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from benchmarks.cases import Workload
from benchmarks.errors import BenchmarkError
from benchmarks.implementations import Loss
from benchmarks.problems import PROBLEMS
from benchmarks.results import Dtype, Passes

# PyTorch's own error sets these: in bfloat16 it rounds a log-probability of -11 to a 32nd, 3 % of the gradient.
RELATIVE_TOLERANCE: dict[Dtype, float] = {"float64": 1e-10, "float32": 1e-4, "bfloat16": 6e-2, "float16": 2e-2}
# Few enough to stay in the cache.
ELEMENTS_AT_ONCE = 1 << 17


class Answer(NamedTuple):
    """A loss and its gradients by the arguments that require grad; none if only the forward was asked for."""

    loss: Tensor
    gradients: tuple[Tensor, ...]


def answer(loss: Loss, arguments: tuple[Tensor, ...], passes: Passes, *, consumes: bool = False) -> Answer:
    """What a loss function gives."""
    if passes == "forward":
        return Answer(loss(*(argument.detach() for argument in arguments)), ())
    learnt = [argument for argument in arguments if argument.requires_grad]
    given = (arguments[0].clone(), *arguments[1:]) if consumes else arguments
    value = loss(*given)
    value.backward()
    gradients = tuple(argument.grad for argument in learnt if argument.grad is not None)
    for argument in learnt:
        argument.grad = None
    return Answer(value.detach(), gradients)


def truth(case: Workload, arguments: tuple[Tensor, ...]) -> Answer:
    """The builtin formula in float64; kept in float32 at least."""
    wide = tuple(
        argument.detach().double().requires_grad_(argument.requires_grad) if argument.is_floating_point() else argument
        for argument in arguments
    )
    exact = answer(PROBLEMS[case.loss].builtin, wide, "forward+backward")
    kept = torch.promote_types(arguments[0].dtype, torch.float32)
    return Answer(exact.loss, tuple(gradient.to(kept) for gradient in exact.gradients))


def check(name: str, case: Workload, found: Answer, exact: Answer) -> None:
    """Compare with the truth.

    Raises:
        BenchmarkError: They differ by more than the tolerance of the dtype, so that a time would mean nothing.
    """
    expected = (exact.loss, *exact.gradients[: len(found.gradients)])
    for part, (got, wanted) in enumerate(zip((found.loss, *found.gradients), expected, strict=True)):
        if (difference := _difference(case.dtype, PROBLEMS[case.loss].terms(case.shape), got, wanted)) is not None:
            what = "the loss" if part == 0 else f"gradient {part}"
            raise BenchmarkError(f"{name} is wrong on {case}, {what}: {difference}")


def _difference(dtype: Dtype, terms: int, found: Tensor, exact: Tensor) -> str | None:
    relative = RELATIVE_TOLERANCE[dtype]
    limits = torch.finfo(getattr(torch, dtype))
    # An element far below the largest is no better known than the largest's rounding, or than the smallest step.
    absolute = max(float(exact.abs().max()) * limits.eps, limits.smallest_normal * limits.eps) * math.sqrt(terms)
    pieces = (tensor.reshape(-1).split(ELEMENTS_AT_ONCE) for tensor in (found, exact))
    for got, wanted in zip(*pieces, strict=True):
        got = got.to(wanted.dtype)
        # nan compares as False. What went wrong is worked out only for the piece where something did.
        if not ((got - wanted).abs_() <= wanted.abs().mul_(relative).add_(absolute)).all():
            try:
                torch.testing.assert_close(got, wanted, rtol=relative, atol=absolute)
            except AssertionError as error:
                return " ".join(str(error).split())
    return None
