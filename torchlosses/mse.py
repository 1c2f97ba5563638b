"""Mean squared error.

What it computes, for an input x and a target t of n elements, in the squared unit of the target:

    loss = (1/n) Σ (x - t)²

How the gradient follows. Only the term of x_i depends on x_i, so with e = x - t

    d loss / dx_i = (1/n) d(e_i²)/dx_i = (2/n) e_i        (chain rule: d(e²)/de = 2 e, de/dx = 1)
    d loss / dt_i = -d loss / dx_i                        (de/dt = -1)
    d² loss / dx_i² = 2/n                                 (constant: the loss is a parabola)

'sum' drops the 1/n, 'none' the sum as well. A weight w multiplies each square, and the mean then divides by Σ w. A
sample weight s does the same, and hides what it gives no weight: 0 · nan is 0 there.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor, nn

from torchlosses import _elementwise, _validation
from torchlosses._elementwise import Elementwise, elements, weighted
from torchlosses._module import LossModule, intercepted, overridden


class Options(NamedTuple):
    """What may be chosen."""

    reduction: str = "mean"
    empty: float = math.nan
    dtype: torch.dtype = torch.float32
    gradients: int = 0


class SquaredError(Elementwise):
    """loss = w s (x - t)², gradient by x = 2 w s (x - t)."""

    name = "mse_loss"
    options = Options

    @staticmethod
    def forward(
        input: Tensor, target: Tensor, weight: Tensor | None, sample_weight: Tensor | None, options: Options
    ) -> Tensor:
        """The elements' losses."""
        x, t = elements(input, target, weight, sample_weight)
        return weighted((x - t).square(), weight, sample_weight)

    @staticmethod
    def backward(
        grad_output: Tensor,
        input: Tensor,
        target: Tensor,
        weight: Tensor | None,
        sample_weight: Tensor | None,
        options: Options,
    ) -> Tensor:
        """The gradient by `input`."""
        x, t = elements(input, target, weight, sample_weight)
        return weighted(2 * grad_output * (x - t), weight, sample_weight)


def mse_loss(
    input: Tensor,
    target: Tensor,
    size_average: None = None,
    reduce: None = None,
    reduction: _validation.Reduction = "mean",
    weight: Tensor | None = None,
    *,
    broadcast: _validation.Broadcast = "warn",
    normalizer: Tensor | float | None = None,
    sample_weight: Tensor | None = None,
    empty: _validation.Empty = "nan",
    gradient: _validation.Gradient = "forward",
) -> Tensor:
    r"""Mean squared error between `input` and `target`, in the squared unit of the target.

    .. math:: \text{loss} = \frac{1}{n} \sum_i (x_i - t_i)^2, \qquad
        \frac{\partial\,\text{loss}}{\partial x_i} = \frac{2}{n} (x_i - t_i)

    A drop-in for `torch.nn.functional.mse_loss`.

    Args:
        input: Predictions, of any shape.
        target: True values, of the shape of `input`. Another shape that broadcasts is handled as `broadcast` says.
        size_average: Not supported; here so that positional arguments keep their place. Use `reduction`.
        reduce: Not supported; here so that positional arguments keep their place. Use `reduction`.
        reduction: 'mean' divides the sum by the number of elements n, or by the sum of the weights; 'sum'; or 'none',
            which returns one squared error an element.
        weight: One factor an element, of the shape of `input`.
        broadcast: What to do when the shapes differ but broadcast, such as (N, 1) and (N,), which compares N·N pairs:
            'warn' (as torch does), 'error', or 'allow'.
        normalizer: What 'mean' divides by, a number or a tensor without dimensions.
        sample_weight: One weight a sample, (N) for an input of (N, d1, ...), or finer: of the sizes of the input's
            first dimensions, or 1. It multiplies every square of the sample, and the mean divides by the sum of the
            weights of all elements. An element of weight 0 is as if it were not there.
        empty: What a mean over nothing gives: 'nan' or 'zero'. The gradient is 0.
        gradient: When the gradient by `input` is computed: 'forward', along with a loss that is one number, or
            'backward', which holds no gradient from forward to backward. `cross_entropy` says what each costs.

    Returns:
        A scalar, or with 'none' a tensor of the common shape. float32 and float64 keep their dtype; bfloat16 and
        float16 are computed in float32 and rounded once, and stay float32 under autocast; mixed dtypes are promoted.

    Raises:
        ValueError: `reduction`, `broadcast`, `empty` or `gradient` is none of its values; `weight` has another shape
            than `input`, or `sample_weight` does not fit it; the shapes differ and `broadcast` is 'error';
            `normalizer` without 'mean'.
        RuntimeError: The shapes do not broadcast, or the tensors are on different devices.
        NotImplementedError: Both tensors are integer, or one is complex.
        TypeError: An argument is no tensor, or `size_average` or `reduce` is given.

    Edge cases: an empty mean is nan, or 0 as `empty` says, an empty sum 0. nan and ±inf pass through; inf - inf is
    nan.
    Differentiable to all orders with respect to `input`, `target`, `weight`, `sample_weight` and `normalizer`.

    Example:
        >>> import torch
        >>> from torchlosses import mse_loss
        >>> input = torch.tensor([2.0, 4.0], requires_grad=True)
        >>> loss = mse_loss(input, torch.tensor([1.0, 1.0]))
        >>> loss.item()
        5.0
        >>> loss.backward()
        >>> input.grad
        tensor([1., 3.])

    Source: C. F. Gauss, *Theoria motus corporum coelestium* (1809); K. Saito, *Deep Learning from Scratch*
    (2016), section 4.2.1, there with 1/2 in place of 1/n.
    """
    if intercepted(input, target, weight, sample_weight):
        return overridden(mse_loss, (input, target, weight, sample_weight), locals())
    if size_average is not None or reduce is not None:
        _validation.check_legacy_arguments(size_average, reduce)
    return _elementwise.call(
        SquaredError, input, target, weight=weight, sample_weight=sample_weight,
        reduction=reduction, broadcast=broadcast, normalizer=normalizer, empty=empty, gradient=gradient,
    )  # fmt: skip


class MSELoss(LossModule[Tensor], nn.MSELoss):
    r"""Mean squared error as a module: :func:`torchlosses.mse_loss` with its options kept.

    .. math:: \text{loss} = \frac{1}{n} \sum_i (x_i - t_i)^2

    in the squared unit of the target. A drop-in for `torch.nn.MSELoss`, and a subclass of it.

    Shape:
        input and target of one shape; a scalar comes out, or with 'none' that shape. Dtypes as in `mse_loss`.

    Example:
        >>> import torch
        >>> from torchlosses import MSELoss
        >>> probabilities = torch.tensor([0.1, 0.05, 0.6, 0.0, 0.05, 0.1, 0.0, 0.1, 0.0, 0.0], dtype=torch.float64)
        >>> one_hot = torch.tensor([0.0, 0, 1, 0, 0, 0, 0, 0, 0, 0], dtype=torch.float64)
        >>> round(MSELoss()(probabilities, one_hot).item(), 12)
        0.0195
    """

    __constants__ = ("reduction", "broadcast")
    function = staticmethod(mse_loss)

    def __init__(
        self,
        size_average: None = None,
        reduce: None = None,
        reduction: _validation.Reduction = "mean",
        *,
        broadcast: _validation.Broadcast = "warn",
        empty: _validation.Empty = "nan",
        gradient: _validation.Gradient = "forward",
    ) -> None:
        _validation.check_legacy_arguments(size_average, reduce)
        super().__init__()
        self.keep(reduction=reduction, broadcast=broadcast, empty=empty, gradient=gradient)
