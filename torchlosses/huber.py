r"""The Huber loss and the smooth L1 loss: squared near the target, absolute far from it.

What they compute, for an input x and a target t with e = x - t, in the squared unit of the target (Huber) or in its
unit (smooth L1):

    huber(e)     = e² / 2                 where |e| <= δ,     δ (|e| - δ / 2)     elsewhere
    smooth_l1(e) = e² / (2 β)             where |e| < β,      |e| - β / 2         elsewhere

averaged, summed or kept. One is the other's multiple where β = δ: huber = δ smooth_l1. Both pieces have the same value
and the same slope where they meet, so that the loss has a gradient everywhere.

How the gradient follows. de/dx = 1, and the derivative of each piece is e, bounded where the loss is straight:

    d huber / dx     = e where |e| <= δ,     δ sign(e) elsewhere,     that is, e clamped to [-δ, δ]
    d smooth_l1 / dx = the same over β, with β for δ: e / β clamped to [-1, 1]; with β = 0 it is sign(e)

An outlier pulls with δ and no more, where it pulls with 2 e in the mean squared error.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor, nn

from torchlosses import _elementwise, _validation
from torchlosses._elementwise import Elementwise, elements, weighted
from torchlosses._module import LossModule, intercepted, overridden


class HuberOptions(NamedTuple):
    """What may be chosen."""

    reduction: str = "mean"
    empty: float = math.nan
    dtype: torch.dtype = torch.float32
    gradients: int = 0
    delta: float = 1.0


class Huber(Elementwise):
    """loss = w s huber(x - t), gradient w s (x - t) clamped to [-δ, δ]."""

    name = "huber_loss"
    options = HuberOptions
    weight_in_mean = False

    @staticmethod
    def forward(
        input: Tensor, target: Tensor, weight: Tensor | None, sample_weight: Tensor | None, options: HuberOptions
    ) -> Tensor:
        """The elements' losses."""
        x, t = elements(input, target, weight, sample_weight)
        e = x - t
        # What lies within [-δ, δ] counts squared, what is beyond it counts δ: no branch whose square could overflow.
        within = e.clamp(-options.delta, options.delta)
        return weighted(within * (e - within / 2), weight, sample_weight)

    @staticmethod
    def backward(
        grad_output: Tensor,
        input: Tensor,
        target: Tensor,
        weight: Tensor | None,
        sample_weight: Tensor | None,
        options: HuberOptions,
    ) -> Tensor:
        """The gradient by `input`."""
        x, t = elements(input, target, weight, sample_weight)
        return weighted(grad_output * (x - t).clamp(-options.delta, options.delta), weight, sample_weight)


class SmoothL1Options(NamedTuple):
    """What may be chosen."""

    reduction: str = "mean"
    empty: float = math.nan
    dtype: torch.dtype = torch.float32
    gradients: int = 0
    beta: float = 1.0


class SmoothL1(Elementwise):
    """loss = w s smooth_l1(x - t), gradient w s (x - t) / β clamped to [-1, 1]."""

    name = "smooth_l1_loss"
    options = SmoothL1Options

    @staticmethod
    def forward(
        input: Tensor, target: Tensor, weight: Tensor | None, sample_weight: Tensor | None, options: SmoothL1Options
    ) -> Tensor:
        """The elements' losses."""
        x, t = elements(input, target, weight, sample_weight)
        e, beta = x - t, options.beta
        # Divided by β first: beyond it the quotient is 1, and nothing is rounded.
        losses = e * _sign(e) if beta == 0 else (e / beta).clamp(-1, 1) * (e - e.clamp(-beta, beta) / 2)
        return weighted(losses, weight, sample_weight)

    @staticmethod
    def backward(
        grad_output: Tensor,
        input: Tensor,
        target: Tensor,
        weight: Tensor | None,
        sample_weight: Tensor | None,
        options: SmoothL1Options,
    ) -> Tensor:
        """The gradient by `input`."""
        x, t = elements(input, target, weight, sample_weight)
        e, beta = x - t, options.beta
        slope = _sign(e) if beta == 0 else (e / beta).clamp(-1, 1)
        return weighted(grad_output * slope, weight, sample_weight)


def _sign(e: Tensor) -> Tensor:
    # That of nan is nan; torch.sign, and the derivative of torch.abs, say 0.
    return torch.where(e.isnan(), e, e.sign())


def huber_loss(
    input: Tensor,
    target: Tensor,
    reduction: _validation.Reduction = "mean",
    delta: float = 1.0,
    weight: Tensor | None = None,
    *,
    broadcast: _validation.Broadcast = "warn",
    normalizer: Tensor | float | None = None,
    sample_weight: Tensor | None = None,
    empty: _validation.Empty = "nan",
    gradient: _validation.Gradient = "forward",
) -> Tensor:
    r"""Huber loss between `input` and `target`, in the squared unit of the target.

    .. math:: \text{loss}_i = \begin{cases} \frac{1}{2} e_i^2 & |e_i| \le \delta \\
        \delta \left(|e_i| - \frac{1}{2} \delta\right) & \text{otherwise} \end{cases}, \qquad e_i = x_i - t_i

    A drop-in for `torch.nn.functional.huber_loss`.

    Args:
        input: Predictions, of any shape.
        target: True values, of the shape of `input`. Another shape that broadcasts is handled as `broadcast` says.
        reduction: 'mean' divides the sum by the number of elements, whatever their `weight` (as torch does), or by the
            sum of the sample weights; 'sum'; or 'none'.
        delta: δ > 0, where the loss turns from squared to straight.
        weight: One factor an element, of the shape of `input`.
        broadcast: What to do when the shapes differ but broadcast: 'warn' (as torch does), 'error', or 'allow'.
        normalizer: What 'mean' divides by, a number or a tensor without dimensions.
        sample_weight: One weight a sample, as in `mse_loss`.
        empty: What a mean over nothing gives: 'nan' or 'zero'. The gradient is 0.
        gradient: When the gradient by `input` is computed, 'forward' or 'backward'; see `cross_entropy`.

    Returns:
        A scalar, or with 'none' a tensor of the common shape. Dtypes as in `mse_loss`.

    Raises:
        ValueError: `delta` is not positive and finite (a RuntimeError too), or another option is none of its values;
            `weight` has another shape than `input`; the shapes differ and `broadcast` is 'error'.
        RuntimeError: The shapes do not broadcast, or the tensors are on different devices.
        NotImplementedError: Both tensors are integer, or one is complex.
        TypeError: An argument has the wrong type.

    Edge cases: an empty mean is nan, or 0 as `empty` says, an empty sum 0. nan passes through, ±inf gives inf.
    Differentiable with respect to `input`, `target`, `weight`, `sample_weight` and `normalizer`.

    Example:
        >>> import torch
        >>> from torchlosses import huber_loss
        >>> input = torch.tensor([0.5, 3.0], requires_grad=True)
        >>> loss = huber_loss(input, torch.zeros(2))
        >>> loss.item()
        1.3125
        >>> loss.backward()
        >>> input.grad
        tensor([0.2500, 0.5000])

    Source: P. J. Huber, *Robust Estimation of a Location Parameter* (1964).
    """
    if intercepted(input, target, weight, sample_weight):
        return overridden(huber_loss, (input, target, weight, sample_weight), locals())
    return _elementwise.call(
        Huber, input, target, _validation.check_huber_delta(delta), weight=weight, sample_weight=sample_weight,
        reduction=reduction, broadcast=broadcast, normalizer=normalizer, empty=empty, gradient=gradient,
    )  # fmt: skip


def smooth_l1_loss(
    input: Tensor,
    target: Tensor,
    size_average: None = None,
    reduce: None = None,
    reduction: _validation.Reduction = "mean",
    beta: float = 1.0,
    *,
    broadcast: _validation.Broadcast = "warn",
    normalizer: Tensor | float | None = None,
    sample_weight: Tensor | None = None,
    empty: _validation.Empty = "nan",
    gradient: _validation.Gradient = "forward",
) -> Tensor:
    r"""Smooth L1 loss between `input` and `target`, in the unit of the target.

    .. math:: \text{loss}_i = \begin{cases} \frac{1}{2 \beta} e_i^2 & |e_i| < \beta \\
        |e_i| - \frac{1}{2} \beta & \text{otherwise} \end{cases}, \qquad e_i = x_i - t_i

    A drop-in for `torch.nn.functional.smooth_l1_loss`.

    Args:
        input: Predictions, of any shape.
        target: True values, of the shape of `input`. Another shape that broadcasts is handled as `broadcast` says.
        size_average: Not supported; here so that positional arguments keep their place. Use `reduction`.
        reduce: Not supported; here so that positional arguments keep their place. Use `reduction`.
        reduction: 'mean' divides the sum by the number of elements, or by the sum of the sample weights; 'sum'; or
            'none'.
        beta: β >= 0, where the loss turns from squared to straight; with 0 it is the absolute error.
        broadcast: What to do when the shapes differ but broadcast: 'warn' (as torch does), 'error', or 'allow'.
        normalizer: What 'mean' divides by, a number or a tensor without dimensions.
        sample_weight: One weight a sample, as in `mse_loss`.
        empty: What a mean over nothing gives: 'nan' or 'zero'. The gradient is 0.
        gradient: When the gradient by `input` is computed, 'forward' or 'backward'; see `cross_entropy`.

    Returns:
        A scalar, or with 'none' a tensor of the common shape. Dtypes as in `mse_loss`.

    Raises:
        ValueError: `beta` is negative or not finite (a RuntimeError too), or another option is none of its values;
            the shapes differ and `broadcast` is 'error'.
        RuntimeError: The shapes do not broadcast, or the tensors are on different devices.
        NotImplementedError: Both tensors are integer, or one is complex.
        TypeError: An argument has the wrong type, or `size_average` or `reduce` is given.

    Edge cases: as for `huber_loss`. With `beta=0` the gradient at e = 0 is 0.

    Example:
        >>> import torch
        >>> from torchlosses import smooth_l1_loss
        >>> smooth_l1_loss(torch.tensor([0.5, 3.0]), torch.zeros(2)).item()
        1.3125

    Source: R. Girshick, *Fast R-CNN* (2015), section 2.3.
    """
    if intercepted(input, target, sample_weight):
        return overridden(smooth_l1_loss, (input, target, sample_weight), locals())
    if size_average is not None or reduce is not None:
        _validation.check_legacy_arguments(size_average, reduce)
    return _elementwise.call(
        SmoothL1, input, target, _validation.check_beta(beta), weight=None, sample_weight=sample_weight,
        reduction=reduction, broadcast=broadcast, normalizer=normalizer, empty=empty, gradient=gradient,
    )  # fmt: skip


class HuberLoss(LossModule[Tensor], nn.HuberLoss):
    r"""The Huber loss as a module: :func:`torchlosses.huber_loss` with its options kept.

    .. math:: \text{loss}_i = \begin{cases} \frac{1}{2} e_i^2 & |e_i| \le \delta \\
        \delta \left(|e_i| - \frac{1}{2} \delta\right) & \text{otherwise} \end{cases}

    in the squared unit of the target. A drop-in for `torch.nn.HuberLoss`, and a subclass of it.

    Shape:
        input and target of one shape; a scalar comes out, or with 'none' that shape. Dtypes as in `mse_loss`.

    Example:
        >>> import torch
        >>> from torchlosses import HuberLoss
        >>> HuberLoss(delta=0.5)(torch.tensor([2.0]), torch.tensor([0.0])).item()
        0.875
    """

    __constants__ = ("reduction", "delta")
    function = staticmethod(huber_loss)
    shown = ("reduction", "delta")

    def __init__(
        self,
        reduction: _validation.Reduction = "mean",
        delta: float = 1.0,
        *,
        broadcast: _validation.Broadcast = "warn",
        empty: _validation.Empty = "nan",
        gradient: _validation.Gradient = "forward",
    ) -> None:
        super().__init__()
        self.keep(reduction=reduction, broadcast=broadcast, empty=empty, gradient=gradient)
        self.delta = _validation.check_huber_delta(delta)


class SmoothL1Loss(LossModule[Tensor], nn.SmoothL1Loss):
    r"""The smooth L1 loss as a module: :func:`torchlosses.smooth_l1_loss` with its options kept.

    .. math:: \text{loss}_i = \begin{cases} \frac{1}{2 \beta} e_i^2 & |e_i| < \beta \\
        |e_i| - \frac{1}{2} \beta & \text{otherwise} \end{cases}

    in the unit of the target. A drop-in for `torch.nn.SmoothL1Loss`, and a subclass of it.

    Shape:
        input and target of one shape; a scalar comes out, or with 'none' that shape. Dtypes as in `mse_loss`.

    Example:
        >>> import torch
        >>> from torchlosses import SmoothL1Loss
        >>> SmoothL1Loss(beta=2.0)(torch.tensor([1.0]), torch.tensor([0.0])).item()
        0.25
    """

    __constants__ = ("reduction", "beta")
    function = staticmethod(smooth_l1_loss)
    shown = ("reduction", "beta")

    def __init__(
        self,
        size_average: None = None,
        reduce: None = None,
        reduction: _validation.Reduction = "mean",
        beta: float = 1.0,
        *,
        broadcast: _validation.Broadcast = "warn",
        empty: _validation.Empty = "nan",
        gradient: _validation.Gradient = "forward",
    ) -> None:
        _validation.check_legacy_arguments(size_average, reduce)
        super().__init__()
        self.keep(reduction=reduction, beta=beta, broadcast=broadcast, empty=empty, gradient=gradient)
