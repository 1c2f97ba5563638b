"""For each loss: what it is given, and the formula in PyTorch operations that it must agree with in float64."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Generator, Tensor

from benchmarks.cases import Workload

DELTA = 1e-7


@dataclass(frozen=True)
class Problem:
    """A loss to be computed.

    Args:
        draw: the arguments for a shape, dtype and generator; those that require grad are differentiated by.
        builtin: what one would use without this package; in float64 it is the truth.
        unit: how many elements the tensor has that a lean implementation avoids; by default the input's.
        terms: how many products are added up for one number of the answer, beside the classes of a row.
    """

    draw: Callable[[tuple[int, ...], torch.dtype, Generator], tuple[Tensor, ...]]
    builtin: Callable[..., Tensor]
    unit: Callable[[tuple[int, ...]], int] = math.prod
    terms: Callable[[tuple[int, ...]], int] = lambda _: 1

    def arguments(self, case: Workload) -> tuple[Tensor, ...]:
        """The arguments, the same every time."""
        return self.draw(case.shape, getattr(torch, case.dtype), Generator().manual_seed(0))


def textbook_cross_entropy_error(input: Tensor, target: Tensor) -> Tensor:
    """-log(p_y + δ) of class indices y, in the operations that PyTorch has for it."""
    return F.nll_loss(torch.log(input + DELTA), target)


def _logits_and_indices(shape: tuple[int, ...], dtype: torch.dtype, generator: Generator) -> tuple[Tensor, Tensor]:
    logits = torch.randn(shape, generator=generator).to(dtype)
    return logits.requires_grad_(), torch.randint(shape[1], (shape[0], *shape[2:]), generator=generator)


def _probabilities_and_indices(
    shape: tuple[int, ...], dtype: torch.dtype, generator: Generator
) -> tuple[Tensor, Tensor]:
    logits, indices = _logits_and_indices(shape, torch.float32, generator)
    return logits.detach().softmax(1).to(dtype).requires_grad_(), indices


def _predictions_and_values(shape: tuple[int, ...], dtype: torch.dtype, generator: Generator) -> tuple[Tensor, Tensor]:
    predictions = torch.randn(shape, generator=generator).to(dtype).requires_grad_()
    return predictions, torch.randn(shape, generator=generator).to(dtype)


def _features_and_weights(
    shape: tuple[int, ...], dtype: torch.dtype, generator: Generator
) -> tuple[Tensor, Tensor, Tensor]:
    rows, features, classes = shape
    input = torch.randn(rows, features, generator=generator).to(dtype).requires_grad_()
    weight = (torch.randn(classes, features, generator=generator) / math.sqrt(features)).to(dtype).requires_grad_()
    return input, weight, torch.randint(classes, (rows,), generator=generator)


def linear_then_cross_entropy(input: Tensor, linear_weight: Tensor, target: Tensor) -> Tensor:
    """The logits in memory, and then their cross-entropy."""
    return F.cross_entropy(F.linear(input, linear_weight), target)


def _logits_and_labels(shape: tuple[int, ...], dtype: torch.dtype, generator: Generator) -> tuple[Tensor, Tensor]:
    logits = torch.randn(shape, generator=generator).to(dtype).requires_grad_()
    return logits, torch.randint(2, shape, generator=generator).to(dtype)


def _logits_indices_and_direction(
    shape: tuple[int, ...], dtype: torch.dtype, generator: Generator
) -> tuple[Tensor, Tensor, Tensor]:
    logits, indices = _logits_and_indices(shape, dtype, generator)
    return logits, indices, torch.randn(shape, generator=generator).to(dtype)


def gradient_along_a_direction(loss: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """The derivative of a loss along a direction; the gradient of that is a Hessian-vector product."""

    def along(input: Tensor, target: Tensor, direction: Tensor) -> Tensor:
        (gradient,) = torch.autograd.grad(loss(input, target), input, create_graph=True)
        return torch.sum(gradient * direction)

    return along


def log_softmax_and_entropy(input: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """Log-probability of the target and entropy, in the operations that PyTorch has for them."""
    log_p = input.log_softmax(-1)
    return log_p.gather(-1, target.unsqueeze(-1)).squeeze(-1), -(log_p.exp() * log_p).sum(-1)


def policy_loss(values: Callable[..., tuple[Tensor, ...]]) -> Callable[..., Tensor]:
    """What log-probability and entropy are used for: a policy gradient with a bonus for entropy, of advantages of 1."""

    def loss(input: Tensor, target: Tensor) -> Tensor:
        log_probability, entropy, *_ = values(input, target)
        return -(log_probability + 0.1 * entropy).mean()

    return loss


PROBLEMS = {
    "cross_entropy": Problem(_logits_and_indices, F.cross_entropy),
    "cross_entropy_hessian": Problem(
        _logits_indices_and_direction, gradient_along_a_direction(F.cross_entropy), terms=lambda shape: shape[1]
    ),
    "mse_loss": Problem(_predictions_and_values, F.mse_loss),
    "huber_loss": Problem(_predictions_and_values, F.huber_loss),
    "smooth_l1_loss": Problem(_predictions_and_values, F.smooth_l1_loss),
    "binary_cross_entropy_with_logits": Problem(_logits_and_labels, F.binary_cross_entropy_with_logits),
    "log_probs": Problem(_logits_and_indices, policy_loss(log_softmax_and_entropy)),
    "cee_loss": Problem(_probabilities_and_indices, textbook_cross_entropy_error),
    "linear_cross_entropy": Problem(
        _features_and_weights,
        linear_then_cross_entropy,
        unit=lambda shape: shape[0] * shape[2],
        terms=lambda shape: max(shape),
    ),
}
