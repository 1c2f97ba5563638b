"""The textbook cross-entropy error on probabilities.

What it computes, for a row of probabilities p over C classes and the target's share t_c of each class, in nats:

    loss = -Σ_c t_c log(p_c + δ)                          (index target y: loss = -log(p_y + δ))

δ = 1e-7 keeps log 0 finite: a class that is given probability 0 costs -log δ = 16.1 nats instead of infinity.

How the gradient follows. d log(z)/dz = 1/z and dz/dp = 1, so

    d loss / dp_c = -t_c / (p_c + δ)
    d loss / dt_c = -log(p_c + δ)
    d² loss / dp_c² = t_c / (p_c + δ)²                    (the Hessian is diagonal)

The gradient reaches p, not the logits: the softmax before it has its own backward, and where p_y is 0 in floating point
that one is 0. `cross_entropy` takes the logits, needs no δ and does not have this dead end.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor, nn

from torchlosses import _validation
from torchlosses._declare import Loss
from torchlosses._module import LossModule, intercepted, overridden
from torchlosses._pytorch import recording
from torchlosses._rows import (
    compute_dtype,
    from_rows,
    indices_to_rows,
    per_class,
    result_dtype,
    row_shape,
    to_rows,
    wide_sum,
)


class Options(NamedTuple):
    """What may be chosen."""

    reduction: str = "mean"
    empty: float = math.nan
    dtype: torch.dtype = torch.float32
    gradients: int = 0
    delta: float = 1e-7
    validate_args: bool = True


class TextbookCrossEntropy(Loss):
    """loss = -s Σ_c t_c log(p_c + δ) for each row, gradient by p = -s t / (p + δ)."""

    name = "cee_loss"
    tensors = ("input", "target", "sample_weight?")
    options = Options

    @staticmethod
    def forward(input: Tensor, target: Tensor, sample_weight: Tensor | None, options: Options) -> Tensor:
        """The rows' losses."""
        p, t = _visible(input, target, sample_weight, options.delta)
        if target.dim() < input.dim():
            losses = -_log_plus_delta(p.gather(1, target.unsqueeze(1)), options.delta).squeeze(1)
        else:
            logarithm = _log_plus_delta(p, options.delta)
            if options.delta == 0:
                # 0 · log 0 = 0
                logarithm = logarithm.masked_fill((t == 0) & logarithm.isinf(), 0)
            losses = -(t * logarithm).sum(1)
        return losses if sample_weight is None else losses * sample_weight.to(losses.dtype)

    @staticmethod
    def backward(
        grad_output: Tensor, input: Tensor, target: Tensor, sample_weight: Tensor | None, options: Options
    ) -> Tensor:
        """The gradient by the probabilities; `grad_output` is one number, or one a row."""
        p, t = _visible(input, target, sample_weight, options.delta)
        g = per_class(grad_output)
        if sample_weight is not None:
            s = sample_weight.to(p.dtype).unsqueeze(1)
            g = g.masked_fill((s == 0) & g.isfinite().logical_not(), 0) * s
        if target.dim() < input.dim():
            i = target.unsqueeze(1)
            at_target = (-g / (p.gather(1, i) + options.delta)).expand(i.shape)
            return torch.zeros_like(p).scatter(1, i, at_target)
        divisor = p + options.delta
        if options.delta == 0:
            divisor = divisor.masked_fill((t == 0) & (p == 0), 1)
        return -g * (t / divisor)

    @staticmethod
    def check(input: Tensor, target: Tensor, sample_weight: Tensor | None, options: Options) -> None:
        """Class indices are in range, and probabilities between 0 and 1."""
        if target.dim() < input.dim() and target.device.type == "cpu":
            _validation.check_indices_in_range(target, input.shape[1], None)
        if options.validate_args:
            counted = None if sample_weight is None else sample_weight != 0
            _validation.check_probabilities(input, counted)
            _validation.check_one_hot(target, input.dim(), counted)

    @staticmethod
    def denominator(input: Tensor, target: Tensor, sample_weight: Tensor | None, options: Options) -> Tensor | None:
        """Σ_n s_n."""
        return None if sample_weight is None else wide_sum(sample_weight)


def _visible(input: Tensor, target: Tensor, sample_weight: Tensor | None, delta: float) -> tuple[Tensor, Tensor]:
    """p, and the target's shares, in the dtype of the computation; ones in rows of weight 0 that have no loss."""
    indices = target.dim() < input.dim()
    compute = compute_dtype(input, None if indices else target)
    p, t = input.to(compute), target if indices else target.to(compute)
    if sample_weight is None:
        return p, t
    tolerance = 4 * torch.finfo(input.dtype).eps
    usable = ((p >= -tolerance) & (p <= 1 + tolerance)).all(1, keepdim=True)
    if delta == 0:
        given = p.gather(1, t.unsqueeze(1)) if indices else p.masked_fill(t == 0, 1)
        usable = usable & (given > 0).all(1, keepdim=True)
    if not indices:
        usable = usable & t.isfinite().all(1, keepdim=True)
    hidden = (sample_weight == 0).unsqueeze(1) & usable.logical_not()
    return p.masked_fill(hidden, 1), t if indices else t.masked_fill(hidden, 0)


def _log_plus_delta(p: Tensor, delta: float) -> Tensor:
    """log(p + δ), right to rounding also next to p = 1, where p + δ would round δ away."""
    low, high = p, p
    if recording():
        # A derivative of the branch that is not taken is no number where p is 0, and 0 · nan would be nan.
        low, high = p.clamp(max=0.5), p.clamp(min=0.5)
    return torch.where(p < 0.5, torch.log(low + delta), torch.log1p((high - 1) + delta))


def cee_loss(
    input: Tensor,
    target: Tensor,
    *,
    delta: float = 1e-7,
    reduction: _validation.Reduction = "mean",
    validate_args: bool = True,
    normalizer: Tensor | float | None = None,
    sample_weight: Tensor | None = None,
    empty: _validation.Empty = "nan",
    gradient: _validation.Gradient = "forward",
) -> Tensor:
    r"""The textbook cross-entropy error between probabilities and a target, in nats.

    .. math:: \text{loss}_n = -\sum_c t_{nc} \log(p_{nc} + \delta), \qquad
        \frac{\partial\,\text{loss}_n}{\partial p_{nc}} = -\frac{t_{nc}}{p_{nc} + \delta}

    For training on logits, `cross_entropy` is the better choice: it needs no δ and stays exact where p is close to 0.

    Args:
        input: Probabilities of shape (C), (N, C) or (N, C, d1, ...).
        target: One-hot or probabilities, of the shape of `input` (one-hot may be integer or bool); or class indices of
            shape (), (N) or (N, d1, ...), of any integer dtype, in [0, C).
        delta: δ, added before the logarithm so that log 0 stays finite.
        reduction: 'mean' divides the sum by the number of samples, or by the sum of their weights; 'sum'; 'none'.
        validate_args: Whether to check that `input` lies in [0, 1], up to rounding. Costs one look at the data, on a
            GPU a wait for it, the only one there: leave it out where a CUDA graph is captured.
        normalizer: What 'mean' divides by, a number or a tensor without dimensions.
        sample_weight: One weight a row, of a shape that broadcasts to the rows'. A row of weight 0 is as if it were not
            there.
        empty: What a mean over nothing gives: 'nan' or 'zero'. The gradient is 0.
        gradient: When the gradient by `input` is computed: 'forward', along with a loss that is one number, or
            'backward', which holds no gradient from forward to backward. `cross_entropy` says what each costs.

    Returns:
        A scalar, or with 'none' one loss a sample: the shape of `input` without the class dimension. float32 and
        float64 keep their dtype; bfloat16 and float16 are computed in float32 and rounded once, and stay float32
        under autocast.

    Raises:
        ValueError: `input` leaves [0, 1] by more than rounding (logits belong to `cross_entropy`), an integer target of
            the input's shape is not one-hot, `delta` is negative or not finite, `reduction`, `empty` or `gradient`
            is none of its values, `normalizer` is given without 'mean', `sample_weight` does not fit, or the batch
            sizes differ.
        RuntimeError: The other sizes do not fit, class indices are no integers, or the devices differ.
        IndexError: A class index is out of bounds (on the CPU; accelerators assert it on the device).
        NotImplementedError: `input` is not floating-point.
        TypeError: An argument has the wrong type.

    Edge cases: an empty mean is nan, or 0 as `empty` says, an empty sum 0. With `delta=0`, 0 · log 0 is 0. nan passes
    through. Differentiable to all orders with respect to `input`, floating-point targets, `sample_weight` and
    `normalizer`.

    Example:
        >>> import torch
        >>> from torchlosses import cee_loss
        >>> probabilities = torch.tensor([0.1, 0.05, 0.6, 0.0, 0.05, 0.1, 0.0, 0.1, 0.0, 0.0], dtype=torch.float64)
        >>> round(cee_loss(probabilities, torch.tensor(2)).item(), 12)
        0.510825457099

    Source: K. Saito, *Deep Learning from Scratch* (2016), section 4.2.2.
    """
    if intercepted(input, target, sample_weight):
        return overridden(cee_loss, (input, target, sample_weight), locals())
    reduction, empty = _validation.check_reduction(reduction), _validation.check_empty(empty)
    gradient = _validation.check_gradient_option(gradient)
    normalizer = _validation.check_normalizer(normalizer, reduction)
    delta = _validation.check_delta(delta)
    _validation.check_tensors("cee_loss", input=input, target=target)
    _validation.check_same_device("cee_loss", input, target=target, sample_weight=sample_weight)
    _validation.check_classification_shapes("cee_loss", input, target)
    _validation.check_floating_input("cee_loss", input)
    _validation.check_cee_target(input, target)
    indices = target.shape != input.shape
    floating = target if target.is_floating_point() else None
    dtype = input.dtype if floating is None else torch.promote_types(input.dtype, floating.dtype)
    if _validation.is_integer(target.dtype):
        target = target.to(torch.int64)
    if sample_weight is not None:
        shape = row_shape(input)
        _validation.check_sample_weight("cee_loss", sample_weight, shape)
        sample_weight = indices_to_rows(sample_weight.to(compute_dtype(input, floating)).expand(shape))
    nothing = 0.0 if empty == "zero" else math.nan
    dtype = result_dtype(None, dtype, input.device)
    options = Options(reduction, nothing, dtype, int(gradient == "forward"), delta, bool(validate_args))
    target_rows = indices_to_rows(target) if indices else to_rows(target)
    loss, _ = TextbookCrossEntropy.apply(
        to_rows(input), target_rows, sample_weight, normalizer=normalizer, options=options
    )
    return from_rows(loss, input) if reduction == "none" else loss


class CEELoss(LossModule[Tensor], nn.Module):
    r"""The textbook cross-entropy error as a module: :func:`torchlosses.cee_loss` with its options kept, in nats.

    .. math:: \text{loss}_n = -\sum_c t_{nc} \log(p_{nc} + \delta)

    Args:
        delta: δ, added before the logarithm so that log 0 stays finite.
        reduction: 'mean' divides the sum by the number of samples; 'sum'; 'none'.
        validate_args: Whether to check that the probabilities lie in [0, 1], up to rounding.
        empty: What a mean over nothing gives: 'nan' or 'zero'.
        gradient: When the gradient is computed, 'forward' or 'backward'.

    The call takes `normalizer` and `sample_weight`, as `cee_loss` does.

    Shape:
        input (C), (N, C) or (N, C, d1, ...); target of that shape, or class indices (), (N) or (N, d1, ...); a scalar
        comes out, or with 'none' one loss a sample. Dtypes as in `cee_loss`.

    Raises:
        ValueError: An option is none of its values.
        TypeError: `delta` is no number.
        Errors of the call are those of `cee_loss`.

    Edge cases: as for `cee_loss`.

    Example:
        >>> import torch
        >>> from torchlosses import CEELoss
        >>> criterion = CEELoss()
        >>> probabilities = torch.tensor([[0.25, 0.75], [0.5, 0.5]])
        >>> round(criterion(probabilities, torch.tensor([1, 0])).item(), 4)
        0.4904

    Source: as for `cee_loss`.
    """

    __constants__ = ("delta", "reduction", "validate_args")
    function = staticmethod(cee_loss)
    shown = ("delta", "reduction", "validate_args")

    def __init__(
        self,
        *,
        delta: float = 1e-7,
        reduction: _validation.Reduction = "mean",
        validate_args: bool = True,
        empty: _validation.Empty = "nan",
        gradient: _validation.Gradient = "forward",
    ) -> None:
        super().__init__()
        self.keep(delta=delta, reduction=reduction, validate_args=validate_args, empty=empty, gradient=gradient)
