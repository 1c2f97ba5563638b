r"""Cross-entropy of a linear layer's logits, without the logits.

What it computes, for a row of features x, a linear layer W, b and the cross-entropy of its logits, in nats:

    y    = W x + b + r B A x                              (logits, one a class; the low-rank term r B A if it is given)
    loss = cross_entropy(y, target)

How the gradient follows. With G = d loss / dy, which `torchlosses.cross_entropy` derives (softmax minus target), and
all rows together, x as (rows, features) and y, G as (rows, classes):

    d loss / dx = G W
    d loss / dW = Gᵀ x
    d loss / db = Σ_rows G

How it stays small. A row of G depends on the same row of y only. So a block of rows goes all the way, y_b = x_b Wᵀ,
then G_b written over y_b, then G_b W and G_bᵀ x_b, before the next block takes its place: three matrix products in all,
as many as there must be, and the logits of one block in memory. For that the gradients of the *sum* are computed in the
forward, for an incoming gradient of 1; the backward multiplies them by the incoming gradient, which for a sum or a mean
is one number.

Where one number is not enough ('none'), or more is asked for than a gradient (a second derivative, forward mode,
torch.func), the logits are computed again, block by block.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, TypeAlias, get_type_hints, overload

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from torchlosses import _validation
from torchlosses._declare import Loss, taken_over
from torchlosses._module import LossModule, Result_co, intercepted, overridden
from torchlosses._options import FOUND, CallOptions, FurtherOptions, RowStatistics, statistics_of
from torchlosses._row_blocks import over_given
from torchlosses._rows import (
    autocast_enabled,
    class_indices_denominator,
    compute_dtype,
    probabilities_denominator,
    result_dtype,
)
from torchlosses.cross_entropy import CrossEntropy
from torchlosses.kernels import linear
from torchlosses.kernels.linear import default_block_rows, product_dtype

if TYPE_CHECKING:
    from typing_extensions import Unpack

_FUNCTION = "linear_cross_entropy"
LowRank: TypeAlias = tuple[Tensor, Tensor, float]

OPERANDS = ("input", "linear_weight", "linear_bias?", "low_rank_a?", "low_rank_b?")
_FURTHER = {
    "product_dtype": torch.dtype,
    "low_rank_scale": float,
    "block_rows": torch.SymInt,
    "drop_ignored": bool,
    "wide_sums": bool,
}
_make_record: Any = NamedTuple


def options_of_product(of_logits: Any) -> Any:
    """The options of a loss of logits, passed on unread, and what the product needs."""
    record = _make_record("Options", [*get_type_hints(of_logits.options).items(), *_FURTHER.items()])
    # What only an accelerator asks; the compiler of torch 2.10 looks for defaults in the second place.
    record.__new__.__defaults__ = (False, False)
    record._field_defaults = dict.fromkeys(record._fields[-2:], False)
    return record


class LinearLoss(Loss, abstract=True):
    """A loss of the logits x Wᵀ + b + r (x Aᵀ) Bᵀ; gradients by x, W, b, A and B.

    Attributes:
        of_logits: The loss, whose tensors behind its first follow the operands of the product.
        problem: How its kernels see the rows.
        split: Whether each process has some of the classes.
        without_trace: Rows that are ignored or have no weight; None where it is known that there are none; (*tensors
            behind the operands, options).
    """

    shared = ("linear_weight", "linear_bias", "low_rank_a", "low_rank_b", "weight")
    derived = 5
    kernels = linear
    scales = True
    of_logits: Any
    without_trace: Callable[..., Tensor | None]
    problem = linear.Problem
    split = False

    @classmethod
    def apply(cls, *tensors: Any, normalizer: Tensor | float | None, options: Any) -> tuple[Tensor, Any]:
        """The loss, and the rows' state; in float16 without the gradients along with it."""
        if linear.is_narrow(options):
            options = options._replace(gradients=0)
        return super().apply(*tensors, normalizer=normalizer, options=options)

    @classmethod
    def forward(cls, *tensors_and_options: Any) -> tuple[Tensor, Tensor]:
        """What the rows have, and the last fields of their state, a block of rows at a time."""
        *tensors, options = tensors_and_options
        inner, compute = cls._inner_of_block(tensors, options)
        fields = cls.state_fields(options)

        def of_block(*tensors: Any) -> tuple[Tensor, ...]:
            operands, others = cls._visible(tensors, options)
            y = _logits(operands, options).to(compute)
            losses, state = cls.of_logits.forward(y, *others, inner)
            return losses, *(state[-fields:].unbind() if fields else ())

        losses, *found = over_given(of_block, tensors, cls._shared_places, options.block_rows, 1 + fields, 0, fields)
        return losses, torch.stack(found) if found else losses.new_empty((0, losses.shape[0]))

    @classmethod
    def backward(cls, grad_output: Tensor, *tensors_and_options: Any) -> tuple[Tensor | None, ...]:
        """The gradients by x, W, b, A and B, a block of rows at a time."""
        *tensors, options = tensors_and_options
        inner, compute = cls._inner_of_block(tensors, cls.of_gradient(options))
        scale, dtype = options.low_rank_scale, options.product_dtype
        wanted = [place for place in range(5) if options.gradients >> place & 1]

        def of_block(g: Tensor, *tensors: Any) -> tuple[Tensor, ...]:
            operands, others = cls._visible(tensors, options)
            x, linear_weight, _, a, b = operands
            y = _logits(operands, options).to(compute)
            by_logits = cls.of_logits.backward(g, y, *others, inner)
            narrow = by_logits.to(dtype)
            found: list[Any] = [None] * 5
            if 0 in wanted:
                found[0] = narrow @ linear_weight
                if a is not None:
                    found[0] = found[0] + scale * ((narrow @ b) @ a)
            if 1 in wanted:
                found[1] = narrow.t() @ x
            if 2 in wanted:
                found[2] = by_logits.sum(0)
            if 3 in wanted:
                found[3] = scale * ((narrow @ b).t() @ x)
            if 4 in wanted and a is not None:
                found[4] = scale * (narrow.t() @ (x @ a.t()))
            return tuple(found[place] for place in wanted)

        grad_rows = grad_output.expand(cls.results(tensors[0]))
        rows = int(0 in wanted)
        shared = {1 + place for place in cls._shared_places}
        found = over_given(of_block, (grad_rows, *tensors), shared, options.block_rows, rows, len(wanted) - rows)
        gradients: list[Tensor | None] = [None] * 5
        for place, gradient in zip(wanted, found, strict=True):
            gradients[place] = cls.summed(gradient, options) if place in (0, 3) else gradient
        return tuple(gradients)

    @classmethod
    def inner(cls, options: Any) -> Any:
        """The options of the loss of the logits."""
        inner = cls.of_logits.options
        return inner(*options[: len(inner._fields)])

    @classmethod
    def _inner_of_block(cls, tensors: Sequence[Any], options: Any) -> tuple[Any, torch.dtype]:
        """The options of the loss of a block's logits, and the dtype it is computed in."""
        compute = compute_dtype(*tensors)
        return cls.inner(options)._replace(reduction="none", dtype=compute, gradients=0), compute

    @staticmethod
    def of_gradient(options: Any) -> Any:
        """The options without what a backward need not find."""
        return options

    @classmethod
    def _visible(cls, tensors: Sequence[Any], options: Any) -> tuple[list[Any], list[Any]]:
        """The operands in the dtype of the product, and the other tensors.

        Operands and sample weights have zeros in rows that leave no trace and are not finite.
        """
        (x, linear_weight, linear_bias, a, b), others = tensors[: cls.derived], tensors[cls.derived :]
        without = cls.without_trace(*others, options)
        if without is not None:
            hidden = without & (x.isfinite().all(1) & cls.is_usual(others, linear_weight.shape[0])).logical_not()
            x, others = x.masked_fill(hidden.unsqueeze(1), 0), cls.hide(hidden, others)
        x, a = cls.entering(x, options), None if a is None else cls.entering(a, options)
        operands = (x, linear_weight, linear_bias, a, b)
        return [None if t is None else t.to(options.product_dtype) for t in operands], list(others)

    @staticmethod
    def is_usual(others: Sequence[Any], classes: int) -> Any:
        """Whether the tensors behind the operands let a row's numbers be finite."""
        return True

    @classmethod
    def hide(cls, hidden: Tensor, others: Sequence[Any]) -> Sequence[Any]:
        """The tensors behind the operands, with zeros in the sample weights of the rows to hide."""
        if cls.tensors[-1] != "sample_weight?" or others[-1] is None:
            return others
        return *others[:-1], others[-1].masked_fill(hidden, 0)

    @staticmethod
    def state_fields(options: Any) -> int:
        """None; that it is said here gives the operators a place for those of a subclass."""
        return 0

    @staticmethod
    def entering(tensor: Tensor, options: Any) -> Tensor:
        """What each process has, for use with what one has: its gradient is a sum over the processes."""
        return tensor

    @staticmethod
    def summed(tensor: Tensor, options: Any) -> Tensor:
        """The sum over the processes that have the classes."""
        return tensor

    @classmethod
    def flops(cls, tensors: Sequence[Any], options: Any) -> int:
        """Of the logits, and of the gradients that are asked for; rows that leave no trace count like the others."""
        (rows, features), (classes, _), _, a, _ = tensors[: cls.derived]
        rank = 0 if a is None else a[0]
        product, reduced, raised = rows * features * classes, rows * features * rank, rows * rank * classes
        by_input, by_weight, _, by_a, by_b = (options.gradients >> place & 1 for place in range(cls.derived))
        found = product + reduced + raised
        found += by_input * (product + raised + reduced) + by_weight * product
        # A and B have what A makes of the features, and B of the gradient.
        return 2 * (found + by_a * (raised + reduced) + by_b * raised)

    @staticmethod
    def check(*tensors_and_options: Any) -> None:
        """Class indices are in range."""
        linear_weight, target, options = (tensors_and_options[place] for place in (1, len(OPERANDS), -1))
        if target.dim() == 1 and target.device.type == "cpu":
            _validation.check_indices_in_range(target, linear_weight.shape[0], options.ignore_index)


Options = options_of_product(CrossEntropy)


class LinearCrossEntropy(LinearLoss):
    """The cross-entropy of x Wᵀ + b + r (x Aᵀ) Bᵀ."""

    name = _FUNCTION
    tensors = (*OPERANDS, "target", "weight?", "sample_weight?")
    options = Options
    of_logits = CrossEntropy
    shows_state, shown = staticmethod(CrossEntropy.shows_state), staticmethod(CrossEntropy.shown)

    @staticmethod
    def of_gradient(options: Any) -> Any:
        """Without the statistics."""
        return options._replace(statistics=False)

    @staticmethod
    def state_fields(options: Any) -> int:
        """The statistics."""
        return FOUND if options.statistics else 0

    @staticmethod
    def counted(*tensors_and_options: Any) -> Tensor | None:
        """Rows that are not ignored. Without classes there is no row that could have probabilities."""
        input, linear_weight, _, _, _, target, _, _, options = tensors_and_options
        if target.dim() == 1:
            return target != options.ignore_index
        return None if linear_weight.shape[0] else torch.zeros(input.shape[:1], dtype=torch.bool, device=input.device)

    @staticmethod
    def denominator(*tensors_and_options: Any) -> Tensor | None:
        """As that of the cross-entropy."""
        input, linear_weight, _, _, _, target, weight, sample_weight, options = tensors_and_options
        if target.dim() > 1:
            return probabilities_denominator(linear_weight.shape[0], sample_weight)
        compute = compute_dtype(input, linear_weight, weight)
        return class_indices_denominator(target, weight, sample_weight, options.ignore_index, compute)

    @staticmethod
    def without_trace(*tensors_and_options: Any) -> Tensor | None:
        """Rows that are ignored or have no weight; None where it is known that there are none."""
        *_, target, weight, sample_weight, options = tensors_and_options
        found: Tensor | None = None if sample_weight is None else sample_weight == 0
        if target.dim() == 1:
            ignored = target == options.ignore_index
            found = ignored if found is None else found | ignored
            if weight is not None and weight.numel() and not options.label_smoothing:
                found = found | (weight[target.masked_fill(ignored, 0)] == 0)
        return found


def _logits(operands: Sequence[Any], options: Any) -> Tensor:
    """x Wᵀ + b + r (x Aᵀ) Bᵀ."""
    x, linear_weight, linear_bias, a, b = operands
    y = F.linear(x, linear_weight, linear_bias)
    return y if a is None else y + options.low_rank_scale * F.linear(F.linear(x, a), b)


class _Options(FurtherOptions, total=False):
    weight: Tensor | None
    reduction: _validation.Reduction
    ignore_index: int | None
    label_smoothing: float
    options: Any
    dim: int
    block_rows: int | None
    drop_ignored: bool
    wide_sums: bool


class _CallOptions(_Options, CallOptions, total=False):
    linear_bias: Tensor | None
    low_rank: LowRank | None


class _ModuleOptions(_Options, total=False):
    out_features: tuple[int, ...]
    bias: bool
    device: Any
    dtype: torch.dtype | None


@overload
def linear_cross_entropy(
    input: Tensor,
    linear_weight: Tensor,
    target: Tensor,
    *,
    linear_bias: Tensor | None = None,
    weight: Tensor | None = None,
    reduction: _validation.Reduction = "mean",
    ignore_index: int | None = -100,
    label_smoothing: float = 0.0,
    options: Any = None,
    dim: int = -1,
    normalizer: Tensor | float | None = None,
    sample_weight: Tensor | None = None,
    empty: _validation.Empty = "nan",
    z_loss: float = 0.0,
    logit_scale: float = 1.0,
    logit_softcap: float | None = None,
    loss_dtype: torch.dtype | None = None,
    low_rank: LowRank | None = None,
    return_stats: Literal[False] = False,
    block_rows: int | None = None,
    gradient: _validation.Gradient = "forward",
    drop_ignored: bool = False,
    wide_sums: bool = False,
) -> Tensor: ...


@overload
def linear_cross_entropy(
    input: Tensor,
    linear_weight: Tensor,
    target: Tensor,
    *,
    return_stats: Literal[True],
    **further: Unpack[_CallOptions],
) -> tuple[Tensor, RowStatistics]: ...


@overload
def linear_cross_entropy(
    input: Tensor,
    linear_weight: Tensor,
    target: Tensor,
    *,
    return_stats: bool,
    **further: Unpack[_CallOptions],
) -> Tensor | tuple[Tensor, RowStatistics]: ...


def linear_cross_entropy(
    input: Tensor,
    linear_weight: Tensor,
    target: Tensor,
    *,
    linear_bias: Tensor | None = None,
    weight: Tensor | None = None,
    reduction: _validation.Reduction = "mean",
    ignore_index: int | None = -100,
    label_smoothing: float = 0.0,
    options: Any = None,
    dim: int = -1,
    normalizer: Tensor | float | None = None,
    sample_weight: Tensor | None = None,
    empty: _validation.Empty = "nan",
    z_loss: float = 0.0,
    logit_scale: float = 1.0,
    logit_softcap: float | None = None,
    loss_dtype: torch.dtype | None = None,
    low_rank: LowRank | None = None,
    return_stats: bool = False,
    block_rows: int | None = None,
    gradient: _validation.Gradient = "forward",
    drop_ignored: bool = False,
    wide_sums: bool = False,
) -> Tensor | tuple[Tensor, RowStatistics]:
    r"""Cross-entropy of a linear layer's logits with class indices or probabilities, in nats, without the logits.

    .. math:: \text{loss}_n = -\sum_c w_c \left((1-\varepsilon)\, t_{nc} + \frac{\varepsilon}{C}\right)
        \log \frac{\exp y_{nc}}{\sum_j \exp y_{nj}} + \lambda \Big(\log \sum_j \exp y_{nj}\Big)^2,
        \qquad y_n = W x_n + b

    The value and the gradients are those of `cross_entropy(linear(input, linear_weight, linear_bias), target)`, but the
    logits y exist for a block of rows at a time. For a sum or a mean the gradients are computed along with the loss, in
    three matrix products for all. Second derivatives, forward mode, `torch.func` and 'none' compute the logits again,
    block by block too.

    Args:
        input: Features of shape (..., features), with any number of dimensions in front; or with the features at `dim`.
        linear_weight: W of shape (classes, features), or (classes, d1, ..., features) for a loss at each of d1·…
            places.
        target: Class indices of the shape of `input` without features, (..., d1, ...), of any integer dtype, in
            [0, classes) or `ignore_index`; or class probabilities of shape (..., classes, d1, ...), the classes where
            the features of `input` are.
        linear_bias: b of shape (classes, d1, ...).
        weight: One factor a class, of shape (classes); with class indices, of the dtype of `input`.
        reduction: 'mean' divides the sum by the weights of the rows' classes and samples (class indices; without
            weights, the number of rows that are not ignored) or by the weights of the samples (class probabilities;
            without them, the number of rows); 'sum'; 'none'.
        ignore_index: Rows with this class index count neither for the loss nor for the mean, and their gradient is
            exactly 0 even where they are nan. None is -100. For class indices only.
        label_smoothing: ε in [0, 1], the share of the target that is spread evenly over all classes.
        options: A `torch.nn.LinearCrossEntropyOptions`, of which `batch_chunk_size` is taken as `block_rows`, and
            `acc_policy="accurate"` or an `acc_dtype` of float32 or more as `wide_sums`. Backwards can always be
            repeated.
        dim: The dimension of `input` that holds the features, where it is not the last: 1 for (N, features, H, W), as
            in a convolution with a kernel of 1. Class probabilities have the classes there, class indices the other
            dimensions in their order; d1, ... stay behind them. The rows are put together first, a copy of `input`.
        normalizer: What 'mean' divides by, a number or a tensor without dimensions.
        sample_weight: One weight a row, of a shape that broadcasts to the rows'. A row of weight 0 is as if it were not
            there.
        empty: What a mean over nothing gives: 'nan' or 'zero'. The gradient is 0.
        z_loss: λ, which draws log Σ exp(y) to 0; 0 leaves it out. Class weights do not multiply it, sample weights do.
        logit_scale: A factor of the logits, taken before everything else, the soft cap too.
        logit_softcap: c of y -> c tanh(y / c), taken before everything else but the scale; None leaves it out.
        loss_dtype: The dtype of the result; float32 keeps the digits of a sum over bfloat16 features.
        low_rank: (A, B, r), of shapes (rank, features) and (classes, rank), and a number: the logits are those of the
            weight W + r B A, which is not made. For a `linear_weight` of two dimensions.
        return_stats: Whether to return the rows' statistics too.
        block_rows: How many rows are worked on at a time. None chooses so that the block's logits take about 42 MiB, on
            an accelerator 2048 to 4096 rows.
        gradient: When the gradients by `input`, `linear_weight`, `linear_bias` and `low_rank` are computed. 'forward'
            computes them along with a loss that is one number, in three products; they take their memory until the
            backward, which multiplies them by the incoming gradient. 'backward' holds nothing and computes the logits
            twice; float16 products always do, as the incoming gradient has the factor that keeps theirs large.
        drop_ignored: On an accelerator, whether rows that leave no trace are dropped before the products, as they are
            on the CPU: where many are ignored that is faster, but it waits for the device once, in the forward and in a
            backward that computes the logits again, to know how many there are.
        wide_sums: On an accelerator, whether the gradients by the layer are summed over the blocks in float32 where
            there are 8 of them or fewer too, as they are on the CPU. It takes their memory again.

    Returns:
        A scalar, or with 'none' one loss a row: the shape of class indices. With `return_stats` a pair of that and a
        `RowStatistics`. float32 and float64 keep their dtype. bfloat16 and float16 products give logits of that dtype;
        what follows is computed in float32 and rounded once. Under autocast the products take its dtype, and the loss
        is float32.

    Raises:
        ValueError: An option is none of its values; the batch sizes differ; `normalizer` without 'mean'.
        RuntimeError: The other sizes or the dtypes do not fit; `ignore_index` >= 0 with class probabilities; the
            tensors are on different devices.
        IndexError: A class index is out of bounds (on the CPU; accelerators assert it on the device), or `dim` is.
        NotImplementedError: `input` is not floating-point.
        TypeError: An argument has the wrong type.

    Edge cases: a mean over no row is what `empty` says, with gradient 0; an empty sum is 0. A row of sample
    weight 0, or whose class index weighs 0 (without smoothing), is as if it were absent, nan and all. Logits of -inf or
    nan are as for `cross_entropy`.
    Differentiable to all orders with respect to every floating-point tensor.

    Example:
        >>> import torch
        >>> from torchlosses import linear_cross_entropy
        >>> features = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
        >>> linear_weight = torch.tensor([[2.0, 0.0], [0.0, 0.0], [0.0, 1.0]], requires_grad=True)
        >>> loss = linear_cross_entropy(features, linear_weight, torch.tensor([0, 2]))
        >>> round(loss.item(), 4)
        0.3955
        >>> loss.backward()
        >>> linear_weight.grad
        tensor([[-0.1065,  0.1060],
                [ 0.0533,  0.1060],
                [ 0.0533, -0.2119]])

    Source: as for `cross_entropy`; the z-loss from A. Chowdhery et al., *PaLM* (2022), section 5; the soft cap from
    Gemma Team, *Gemma 2* (2024), section 2.
    """
    tensors = (input, linear_weight, target, linear_bias, weight, sample_weight, *_validation.pair_of(low_rank))
    if intercepted(*tensors):
        arguments = {name: value for name, value in locals().items() if name != "tensors"}
        return overridden(linear_cross_entropy, tensors, arguments)
    _validation.check_reduction(reduction)
    _validation.check_gradient_option(gradient)
    ignore_index = _validation.check_ignore_index(-100 if ignore_index is None else ignore_index)
    label_smoothing = _validation.check_label_smoothing(label_smoothing)
    normalizer = _validation.check_normalizer(normalizer, reduction)
    _validation.check_empty(empty)
    z_loss = _validation.check_z_loss(z_loss)
    logit_scale = _validation.check_logit_scale(logit_scale)
    logit_softcap = _validation.check_logit_softcap(logit_softcap)
    loss_dtype = _validation.check_loss_dtype(loss_dtype)
    block_rows = _validation.check_block_rows(_block_rows(options, block_rows))
    wide_sums = bool(wide_sums) or _sums_widely(options)
    indices, shape, dim = _check(input, linear_weight, target, linear_bias, weight, sample_weight, ignore_index, dim)
    a, b, low_rank_scale = _validation.check_low_rank(_FUNCTION, input, linear_weight, low_rank, dim)
    dtype = input.dtype if indices else torch.promote_types(input.dtype, target.dtype)
    of_product, compute = product_dtype(input), compute_dtype(input, linear_weight, None if indices else target, weight)
    if weight is not None:
        dtype = torch.promote_types(dtype, weight.dtype)
        # Numerator and denominator share one wide weight, so that its gradient is rounded once.
        weight = weight.to(compute)
    dtype = result_dtype(loss_dtype, dtype, input.device)
    if block_rows is None:
        classes, *places, _ = linear_weight.shape
        rows = math.prod(shape) // max(1, math.prod(places))
        block_rows = default_block_rows(classes, of_product.itemsize, input.device.type, rows)
    if not indices:
        target = target.movedim(dim, input.dim() - 1)
    input = input.movedim(dim, -1)
    if indices:
        target = target.reshape(shape).to(torch.int64)
    if sample_weight is not None:
        sample_weight = sample_weight.to(compute).expand(shape)
    places = each_place(input, linear_weight, linear_bias, target, sample_weight, indices)
    of_places = [(*operands, a, b, t, weight, s) for *operands, t, s in places]
    several = len(places) != 1
    settings = Options(
        reduction, 0.0 if empty == "zero" else math.nan, compute if several else dtype, int(gradient == "forward"),
        ignore_index, label_smoothing, z_loss, logit_scale, logit_softcap, bool(return_stats), False,
        of_product, low_rank_scale, block_rows, bool(drop_ignored), wide_sums,
    )  # fmt: skip
    if several and reduction == "mean" and normalizer is None:
        denominators = [LinearCrossEntropy.denominator(*given, settings) for given in of_places]
        pairs = zip(of_places, denominators, strict=True)
        normalizer = torch.stack([LinearCrossEntropy.divisor((*given, d), settings) for given, d in pairs]).sum()
    results = [LinearCrossEntropy.apply(*given, normalizer=normalizer, options=settings) for given in of_places]
    loss = results[0][0]
    if several:
        loss = torch.stack([loss for loss, _ in results], -1)
        loss = loss if reduction == "none" else loss.sum()
    loss = (loss.reshape(shape) if reduction == "none" else loss).to(dtype)
    if not return_stats:
        return loss
    found = torch.stack([state for _, state in results], -1).reshape(len(RowStatistics._fields), *shape)
    return loss, statistics_of(found.unbind())


def _check(
    input: Tensor,
    linear_weight: Tensor,
    target: Tensor,
    linear_bias: Tensor | None,
    weight: Tensor | None,
    sample_weight: Tensor | None,
    ignore_index: int,
    dim: int,
) -> tuple[bool, torch.Size, int]:
    """Whether target holds class indices, the shape of the rows, and the dimension of the features."""
    others = {"target": target, "weight": weight, "sample_weight": sample_weight}
    dim = _validation.check_product(_FUNCTION, input, linear_weight, linear_bias, dim, **others)
    before, behind, (classes, *places) = input.shape[:dim], input.shape[dim + 1 :], linear_weight.shape[:-1]
    rows, probabilities = [*before, *behind, *places], [*before, classes, *behind, *places]
    indices = _validation.check_linear_target(_FUNCTION, target, rows, probabilities, ignore_index)
    if weight is not None:
        autocast = autocast_enabled(input.device)
        _validation.check_weight_of_classes(classes, input.dtype, indices, weight, autocast, _FUNCTION)
    if sample_weight is not None:
        _validation.check_sample_weight(_FUNCTION, sample_weight, torch.Size(rows))
    return indices, torch.Size(rows), dim


def _block_rows(options: Any, block_rows: int | None) -> int | None:
    if options is None or block_rows is not None:
        return block_rows
    if not hasattr(options, "batch_chunk_size"):
        raise _validation.WrongTypeError(
            f"options must be a torch.nn.LinearCrossEntropyOptions or None, but got {type(options).__name__}: "
            "use block_rows."
        )
    return options.batch_chunk_size


def _sums_widely(options: Any) -> bool:
    wide = torch.float32, torch.float64
    return getattr(options, "acc_policy", "auto") == "accurate" or getattr(options, "acc_dtype", None) in wide


def each_place(
    input: Tensor,
    linear_weight: Tensor,
    linear_bias: Tensor | None,
    target: Tensor,
    sample_weight: Tensor | None,
    indices: bool,
) -> list[tuple[Tensor | None, ...]]:
    """The arguments as rows, for each of the places that a linear_weight with more than two dimensions has."""
    features, classes, dimensions = input.shape[-1], linear_weight.shape[0], input.dim() - 1
    rows = flat_rows(input, dimensions)
    if linear_weight.dim() == 2:
        samples = None if sample_weight is None else flat_rows(sample_weight, dimensions)
        return [(rows, linear_weight, linear_bias, flat_rows(target, dimensions), samples)]
    count, places = rows.shape[0], math.prod(linear_weight.shape[1:-1])
    weights = linear_weight.reshape(classes, places, features).unbind(1)
    biases = [None] * places if linear_bias is None else linear_bias.reshape(classes, places).unbind(1)
    targets = target.reshape(count, places) if indices else target.reshape(count, classes, places)
    samples: Any = [None] * places if sample_weight is None else sample_weight.reshape(count, places).unbind(1)
    return [(rows, *others) for others in zip(weights, biases, targets.unbind(-1), samples, strict=True)]


def flat_rows(tensor: Tensor, dimensions: int) -> Tensor:
    """The first dimensions as one: a view, where there can be one."""
    if (dtensors := taken_over(tensor)) is not None:
        tensor = dtensors.flattenable(tensor, dimensions)
    return tensor.reshape(math.prod(tensor.shape[:dimensions]), *tensor.shape[dimensions:])


class LinearCrossEntropyLoss(LossModule[Result_co], nn.Module):
    r"""A linear layer and the cross-entropy of its logits in one module, in nats: :func:`linear_cross_entropy`.

    .. math:: \text{loss}_n = -\sum_c w_c \left((1-\varepsilon)\, t_{nc} + \frac{\varepsilon}{C}\right)
        \log \frac{\exp y_{nc}}{\sum_j \exp y_{nj}}, \qquad y_n = W x_n + b

    A drop-in for `torch.nn.LinearCrossEntropyLoss`: the same constructor, and the same names in the state dict
    (`linear.weight`, `linear.bias`, `weight`).

    `LinearCrossEntropyLoss.of(linear)` makes one of a linear layer that exists, whose parameters it shares.

    Args:
        in_features: The number of features of a row.
        num_classes: The number of classes.
        out_features: (d1, ...), the places that have a loss each; none by default.
        bias: Whether the linear layer has a bias.
        device: Where the linear layer's parameters are made.
        dtype: Their dtype.
        weight: One factor a class, of shape (num_classes), else a RuntimeError; kept as a buffer.

    Shape:
        input (..., in_features), or with the features at `dim`; target class indices (..., d1, ...), or class
        probabilities (..., num_classes, d1, ...), the classes where the features are; a scalar comes out, or with
        'none' one loss a row. Dtypes as in :func:`linear_cross_entropy`.

    Example:
        >>> import torch
        >>> from torchlosses import LinearCrossEntropyLoss
        >>> criterion = LinearCrossEntropyLoss(16, 1000)
        >>> loss = criterion(torch.zeros(2, 5, 16), torch.zeros(2, 5, dtype=torch.int64))
        >>> round(loss.item(), 4)
        6.9078
    """

    __constants__ = ("ignore_index", "reduction", "label_smoothing", "num_classes", "out_features")
    function = staticmethod(linear_cross_entropy)
    shown = ("reduction", "ignore_index", "label_smoothing")

    weight: Tensor | None

    @overload
    def __init__(
        self: LinearCrossEntropyLoss[Tensor],
        in_features: int,
        num_classes: int,
        *,
        return_stats: Literal[False] = False,
        **further: Unpack[_ModuleOptions],
    ) -> None: ...

    @overload
    def __init__(
        self: LinearCrossEntropyLoss[tuple[Tensor, RowStatistics]],
        in_features: int,
        num_classes: int,
        *,
        return_stats: Literal[True],
        **further: Unpack[_ModuleOptions],
    ) -> None: ...

    @overload
    def __init__(
        self: LinearCrossEntropyLoss[Tensor | tuple[Tensor, RowStatistics]],
        in_features: int,
        num_classes: int,
        *,
        return_stats: bool,
        **further: Unpack[_ModuleOptions],
    ) -> None: ...

    def __init__(
        self,
        in_features: int,
        num_classes: int,
        *,
        out_features: tuple[int, ...] = (),
        bias: bool = False,
        device: Any = None,
        dtype: torch.dtype | None = None,
        reduction: _validation.Reduction = "mean",
        weight: Tensor | None = None,
        ignore_index: int | None = None,
        label_smoothing: float = 0.0,
        options: Any = None,
        dim: int = -1,
        empty: _validation.Empty = "nan",
        z_loss: float = 0.0,
        logit_scale: float = 1.0,
        logit_softcap: float | None = None,
        loss_dtype: torch.dtype | None = None,
        return_stats: bool = False,
        block_rows: int | None = None,
        gradient: _validation.Gradient = "forward",
        drop_ignored: bool = False,
        wide_sums: bool = False,
    ) -> None:
        kept = {name: value for name, value in locals().items() if name in type(self).kept}
        super().__init__()
        if weight is not None:
            _validation.check_weight_of_classes(num_classes, weight.dtype, True, weight, False, type(self).__name__)
        self.register_buffer("weight", weight)
        self.num_classes = num_classes
        self.out_features = tuple(out_features)
        kept["block_rows"] = _validation.check_block_rows(_block_rows(options, block_rows))
        kept["wide_sums"] = bool(wide_sums) or _sums_widely(options)
        if ignore_index is None:
            del kept["ignore_index"]
            self.ignore_index = None
        self.keep(**kept)
        self.linear = nn.Linear(
            in_features, math.prod(self.out_features, start=num_classes), bias=bias, device=device, dtype=dtype
        )

    def tensors(self) -> dict[str, Tensor | None]:
        """With those of the layer, which have a dimension for each one of the places."""
        linear_weight, linear_bias = self.linear.weight, self.linear.bias
        if self.out_features:
            shape = (self.num_classes, *self.out_features)
            linear_weight = linear_weight.reshape(*shape, self.linear.in_features)
            linear_bias = None if linear_bias is None else linear_bias.reshape(shape)
        return {**super().tensors(), "linear_weight": linear_weight, "linear_bias": linear_bias}

    @overload
    @classmethod
    def of(
        cls, linear: nn.Linear, *, return_stats: Literal[False] = False, **options: Any
    ) -> LinearCrossEntropyLoss[Tensor]: ...

    @overload
    @classmethod
    def of(
        cls, linear: nn.Linear, *, return_stats: Literal[True], **options: Any
    ) -> LinearCrossEntropyLoss[tuple[Tensor, RowStatistics]]: ...

    @overload
    @classmethod
    def of(
        cls, linear: nn.Linear, *, return_stats: bool, **options: Any
    ) -> LinearCrossEntropyLoss[Tensor | tuple[Tensor, RowStatistics]]: ...

    @classmethod
    def of(cls, linear: nn.Linear, **options: Any) -> Any:
        """The loss of an existing linear layer, whose weight and bias it shares; `options` as in the constructor."""
        _validation.check_linear_layer(f"{cls.__name__}.of", linear)
        places = math.prod(options.get("out_features", ()))
        if not places or linear.out_features % places:
            raise ValueError(
                f"{cls.__name__}.of: a layer of {linear.out_features} out_features is none for the "
                f"out_features={options['out_features']!r} of a loss, which has all classes at each of {places} places."
            )
        make: Any = cls
        module = make(1, linear.out_features // places, device="meta", **options)
        module.linear = linear
        return module

    def extra_repr(self) -> str:
        """The layer's sizes, and the options that are not what they are by default."""
        linear = self.linear
        sizes = f"in_features={linear.in_features}, num_classes={self.num_classes}, out_features={self.out_features}"
        return f"{sizes}, bias={linear.bias is not None}, {super().extra_repr()}"
