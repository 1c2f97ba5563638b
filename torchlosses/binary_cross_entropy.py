r"""Binary cross-entropy on logits.

What it computes, for a logit x, the target's share t of the event and 1 - t of its opposite, in nats:

    p    = σ(x) = 1 / (1 + exp(-x))                       (1 - p = σ(-x))
    loss = -q t log p - (1 - t) log(1 - p)

where q, `pos_weight`, is 1 if it is not given. With softplus(x) = log(1 + exp(x)) = -log σ(-x), that is

    loss = q t softplus(-x) + (1 - t) softplus(x)

How the gradient follows. d softplus(x) / dx = σ(x), so

    d loss / dx = (1 - t) σ(x) - q t σ(-x)                (q = 1: σ(x) - t)

Label smoothing ε puts (1-ε) t + ε/2 in place of t. A weight w and a sample weight s multiply loss and gradient.

How it stays right in the corners. softplus(x) = max(x, 0) + log1p(exp(-|x|)) keeps the digits of both tails: the loss
of target 1 at logit 40 is 4.2e-18, not 0. The gradient is a sum of two terms, of which one is exactly 0 where t is 0
or 1, so that nothing cancels there: at the same place it is -4.2e-18, where σ(x) - t gives 0.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from torchlosses import _validation
from torchlosses._elementwise import Elementwise, of_alike, weighted
from torchlosses._module import LossModule, intercepted, overridden
from torchlosses._rows import compute_dtype, result_dtype, wide_sum


class Options(NamedTuple):
    """What may be chosen."""

    reduction: str = "mean"
    empty: float = math.nan
    dtype: torch.dtype = torch.float32
    gradients: int = 0
    ignore_index: int | None = None
    label_smoothing: float = 0.0


class BinaryCrossEntropy(Elementwise):
    """loss = w s (q t softplus(-x) + (1 - t) softplus(x)), gradient w s ((1 - t) σ(x) - q t σ(-x))."""

    name = "binary_cross_entropy_with_logits"
    tensors = ("input", "target", "weight?", "sample_weight?", "pos_weight?")
    options = Options

    @staticmethod
    def forward(*tensors_and_options: Any) -> Tensor:
        """The elements' losses."""
        x, event, opposite, weight, sample_weight, ignored = _prepared(*tensors_and_options)
        losses = _times(event, -F.logsigmoid(x)) + _times(opposite, -F.logsigmoid(-x))
        losses = weighted(losses, weight, sample_weight)
        return losses if ignored is None else losses.masked_fill(ignored, 0)

    @staticmethod
    def backward(grad_output: Tensor, *tensors_and_options: Any) -> Tensor:
        """The gradient by `input`."""
        x, event, opposite, weight, sample_weight, ignored = _prepared(*tensors_and_options)
        # σ(x) = 1 / (1 + e) and σ(-x) = e / (1 + e) where x >= 0, and the other way round where it is not.
        negative = x < 0
        e = torch.exp(torch.where(negative, x, -x))
        slope = torch.where(negative, opposite * e - event, opposite - event * e) / (1 + e)
        gradient = weighted(grad_output * slope, weight, sample_weight)
        return gradient if ignored is None else gradient.masked_fill(ignored, 0)

    @staticmethod
    def counted(input: Tensor, target: Tensor, *others: Any) -> Tensor | None:
        """Elements that are not ignored."""
        ignore_index = others[-1].ignore_index
        return None if ignore_index is None else target != ignore_index

    @classmethod
    def denominator(cls, input: Tensor, target: Tensor, weight: Any, sample_weight: Any, *others: Any) -> Tensor | None:
        """Σ s over the elements that are not ignored; as in torch, a weight does not enter."""
        if sample_weight is None:
            return None
        counted = cls.counted(input, target, *others)
        return wide_sum(sample_weight if counted is None else sample_weight.masked_fill(counted.logical_not(), 0))


def _prepared(
    input: Tensor,
    target: Tensor,
    weight: Tensor | None,
    sample_weight: Tensor | None,
    pos_weight: Tensor | None,
    options: Options,
) -> tuple[Any, ...]:
    """x, q t, 1 - t, the weights, and which elements are ignored; zeros where nothing is to leave a trace."""
    compute = compute_dtype(input, target, weight, pos_weight)
    x, t = input.to(compute), target.to(compute)
    ignored = None if options.ignore_index is None else target == options.ignore_index
    hidden = None if sample_weight is None else (sample_weight == 0) & (x.isfinite() & t.isfinite()).logical_not()
    if ignored is not None:
        hidden = ignored if hidden is None else hidden | ignored
    if hidden is not None:
        x, t = x.masked_fill(hidden, 0), t.masked_fill(hidden, 0)
    event, opposite = t, 1 - t
    if options.label_smoothing:
        keep, spread = 1 - options.label_smoothing, options.label_smoothing / 2
        event, opposite = keep * event + spread, keep * opposite + spread
    if pos_weight is not None:
        event = pos_weight.to(compute) * event
    return x, event, opposite, weight, sample_weight, ignored


def _times(share: Tensor, cost: Tensor) -> Tensor:
    """What has no share costs nothing, also where the logit is infinite."""
    return share * cost.masked_fill((share == 0) & cost.isinf(), 0)


def binary_cross_entropy_with_logits(
    input: Tensor,
    target: Tensor,
    weight: Tensor | None = None,
    size_average: None = None,
    reduce: None = None,
    reduction: _validation.Reduction = "mean",
    pos_weight: Tensor | None = None,
    *,
    ignore_index: int | None = None,
    label_smoothing: float = 0.0,
    normalizer: Tensor | float | None = None,
    sample_weight: Tensor | None = None,
    empty: _validation.Empty = "nan",
    gradient: _validation.Gradient = "forward",
) -> Tensor:
    r"""Binary cross-entropy between logits and probabilities of an event, in nats.

    .. math:: \text{loss}_i = -w_i \left(q_i\, t_i \log \sigma(x_i) + (1 - t_i) \log \sigma(-x_i)\right), \qquad
        \frac{\partial\,\text{loss}_i}{\partial x_i} = w_i \left((1 - t_i)\, \sigma(x_i) - q_i\, t_i\,
        \sigma(-x_i)\right)

    A drop-in for `torch.nn.functional.binary_cross_entropy_with_logits`.

    Args:
        input: Logits, of any shape.
        target: Probabilities of the event, in [0, 1], of the shape of `input`.
        weight: A factor of each element, of a shape that broadcasts to that of `input`.
        size_average: Not supported; here so that positional arguments keep their place. Use `reduction`.
        reduce: Not supported; here so that positional arguments keep their place. Use `reduction`.
        reduction: 'mean' divides the sum by the number of elements that are not ignored, as torch does, or by the sum
            of their sample weights; 'sum'; or 'none'.
        pos_weight: q, a factor of the event's part of the loss, of a shape that broadcasts to that of `input`.
        ignore_index: Elements with this target leave no trace; None ignores none.
        label_smoothing: ε in [0, 1], the share of the target that is spread evenly over the event and its opposite.
        normalizer: What 'mean' divides by, a number or a tensor without dimensions.
        sample_weight: One weight a sample, (N) for an input of (N, d1, ...), or finer: of the sizes of the input's
            first dimensions, or 1. An element of weight 0 is as if it were not there.
        empty: What a mean over nothing gives: 'nan' or 'zero'. The gradient is 0.
        gradient: When the gradient by `input` is computed, 'forward' or 'backward'; see `cross_entropy`.

    Returns:
        A scalar, or with 'none' a tensor of the shape of `input`. float32 and float64 keep their dtype; bfloat16 and
        float16 are computed in float32 and rounded once, and stay float32 under autocast.

    Raises:
        ValueError: The shapes of `input` and `target` differ; an option is none of its values; `sample_weight` does not
            fit; `normalizer` without 'mean'.
        RuntimeError: `weight` or `pos_weight` does not broadcast; `target` is not floating-point; the tensors are on
            different devices.
        NotImplementedError: `input` is not floating-point.
        TypeError: An argument has the wrong type, or `size_average` or `reduce` is given.

    Edge cases: an empty mean is nan, or 0 as `empty` says, an empty sum 0. A logit of ±inf costs 0 or inf; nan passes
    through.
    Differentiable to all orders with respect to all floating-point tensors.

    Example:
        >>> import torch
        >>> from torchlosses import binary_cross_entropy_with_logits
        >>> logits = torch.tensor([0.0, 40.0], requires_grad=True)
        >>> loss = binary_cross_entropy_with_logits(logits, torch.ones(2), reduction="none")
        >>> loss
        tensor([6.9315e-01, 4.2484e-18], grad_fn=<...>)
        >>> loss.sum().backward()
        >>> logits.grad
        tensor([-5.0000e-01, -4.2484e-18])

    Source: C. M. Bishop, *Pattern Recognition and Machine Learning* (2006), section 4.3.2.
    """
    if intercepted(input, target, weight, pos_weight, sample_weight):
        return overridden(
            binary_cross_entropy_with_logits, (input, target, weight, pos_weight, sample_weight), locals()
        )
    name = "binary_cross_entropy_with_logits"
    reduction = _validation.check_reduction(reduction)
    gradient = _validation.check_gradient_option(gradient)
    if size_average is not None or reduce is not None:
        _validation.check_legacy_arguments(size_average, reduce)
    if ignore_index is not None:
        ignore_index = _validation.check_ignore_index(ignore_index)
    label_smoothing = _validation.check_label_smoothing(label_smoothing)
    along = int(gradient == "forward")
    if weight is pos_weight is sample_weight is normalizer is None and empty == "nan":
        own = (ignore_index, label_smoothing)
        loss = of_alike(BinaryCrossEntropy, input, target, reduction, along, own)
        if loss is not None:
            return loss
    empty = _validation.check_empty(empty)
    normalizer = _validation.check_normalizer(normalizer, reduction)
    _validation.check_tensors(name, input=input, target=target)
    others = {"target": target, "weight": weight, "pos_weight": pos_weight, "sample_weight": sample_weight}
    _validation.check_same_device(name, input, **others)
    _validation.check_binary(name, input, target)
    dtype = torch.promote_types(input.dtype, target.dtype)
    if input.dtype != target.dtype:
        input, target = input.to(dtype), target.to(dtype)
    if weight is not None:
        weight = _validation.check_broadcasting_weight(name, "weight", weight, input.shape)
        dtype = torch.promote_types(dtype, weight.dtype)
    if pos_weight is not None:
        pos_weight = _validation.check_broadcasting_weight(name, "pos_weight", pos_weight, input.shape)
        dtype = torch.promote_types(dtype, pos_weight.dtype)
    if sample_weight is not None:
        sample_weight = _validation.check_leading_sample_weight(name, sample_weight, input.shape)
        sample_weight = sample_weight.to(compute_dtype(input, target, weight, pos_weight)).expand(input.shape)
    options = Options(
        reduction,
        0.0 if empty == "zero" else math.nan,
        result_dtype(None, dtype, input.device),
        along,
        ignore_index,
        label_smoothing,
    )
    return BinaryCrossEntropy.apply(
        input, target, weight, sample_weight, pos_weight, normalizer=normalizer, options=options
    )[0]


class BCEWithLogitsLoss(LossModule[Tensor], nn.BCEWithLogitsLoss):
    r"""Binary cross-entropy on logits as a module: :func:`binary_cross_entropy_with_logits` with its options kept.

    .. math:: \text{loss}_i = -w_i \left(q_i\, t_i \log \sigma(x_i) + (1 - t_i) \log \sigma(-x_i)\right)

    in nats. A drop-in for `torch.nn.BCEWithLogitsLoss`, and a subclass of it.

    Args:
        weight: A factor of each element, of a shape that broadcasts; kept as a buffer.
        size_average: Not supported; here so that positional arguments keep their place. Use `reduction`.
        reduce: Not supported; here so that positional arguments keep their place. Use `reduction`.
        reduction: 'mean', 'sum' or 'none'.
        pos_weight: q, a factor of the event's part of the loss; kept as a buffer.
        ignore_index: Elements with this target are left out; None leaves out none.
        label_smoothing: ε in [0, 1].
        empty: What a mean over nothing gives: 'nan' or 'zero'.
        gradient: When the gradient is computed, 'forward' or 'backward'.

    The call takes `normalizer` and `sample_weight`, as `binary_cross_entropy_with_logits` does.

    Shape:
        input and target of one shape; a scalar comes out, or with 'none' that shape.

    Raises:
        ValueError: An option is none of its values.
        TypeError: `size_average` or `reduce` is given.
        Errors of the call are those of `binary_cross_entropy_with_logits`.

    Edge cases: as for `binary_cross_entropy_with_logits`.

    Example:
        >>> import torch
        >>> from torchlosses import BCEWithLogitsLoss
        >>> round(BCEWithLogitsLoss(pos_weight=torch.tensor(3.0))(torch.zeros(4), torch.ones(4)).item(), 4)
        2.0794

    Source: as for `binary_cross_entropy_with_logits`.
    """

    __constants__ = ("reduction",)
    function = staticmethod(binary_cross_entropy_with_logits)

    def __init__(
        self,
        weight: Tensor | None = None,
        size_average: None = None,
        reduce: None = None,
        reduction: _validation.Reduction = "mean",
        pos_weight: Tensor | None = None,
        *,
        ignore_index: int | None = None,
        label_smoothing: float = 0.0,
        empty: _validation.Empty = "nan",
        gradient: _validation.Gradient = "forward",
    ) -> None:
        _validation.check_legacy_arguments(size_average, reduce)
        super().__init__(weight, pos_weight=pos_weight)
        self.keep(reduction=reduction, label_smoothing=label_smoothing, empty=empty, gradient=gradient)
        self.ignore_index = None if ignore_index is None else _validation.check_ignore_index(ignore_index)
