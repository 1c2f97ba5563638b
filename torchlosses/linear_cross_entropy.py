r"""Cross-entropy of a linear layer's logits, without the logits.

What it computes, for a row of features x, a linear layer W, b and the cross-entropy of its logits, in nats:

    y    = W x + b                                        (logits, one a class)
    loss = cross_entropy(y, target)

How the gradient follows. With G = d loss / dy, which `torchlosses.cross_entropy` derives (softmax minus target), and
all rows together, x as (rows, features) and y, G as (rows, classes):

    d loss / dx = G W
    d loss / dW = Gᵀ x
    d loss / db = Σ_rows G

How it stays small. A row of G depends on the same row of y only. So a block of rows goes all the way, y_b = x_b Wᵀ,
then G_b written over y_b, then G_b W and G_bᵀ x_b, before the next block takes its place: three matrix products in all,
as many as there must be, and the logits of one block in memory. For that the gradients of the *sum* are computed in the
forward; the backward multiplies them by the incoming gradient, which for a sum is one number.

Where one number is not enough ('none'), or more is asked for than a gradient (a second derivative, forward mode,
torch.func), the logits are computed again, block by block.

The soft cap and the z-loss. With y = c tanh(y' / c), dy/dy' = 1 - (y/c)². The z-loss λ l², l = log Σ_j exp(y_j), adds
2 λ l p to G, since dl/dy = p.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd import Function, forward_ad
from torch.overrides import handle_torch_function, has_torch_function

from torchlosses import _validation
from torchlosses._numerics import compute_dtype
from torchlosses._options import (
    RowStatistics,
    class_indices_denominator,
    mean_of,
    rows_denominator,
)
from torchlosses._row_blocks import BlockFunction, gradient_over_row_blocks, over_row_blocks
from torchlosses._transforms import autocast_enabled, result_dtype
from torchlosses.cross_entropy import cross_entropy
from torchlosses.kernels import is_differentiated, linear
from torchlosses.kernels.targets import without_weight

_FUNCTION = "linear_cross_entropy"
_autograd: Any = torch._C._autograd  # type: ignore[attr-defined]


class _LinearCrossEntropy(Function):
    """Losses one by one or summed; the gradients of the sum are there before they are asked for."""

    @staticmethod
    def forward(  # type: ignore[override]
        ctx: Any,
        input: Tensor,
        linear_weight: Tensor,
        linear_bias: Tensor | None,
        target: Tensor,
        weight: Tensor | None,
        sample_weight: Tensor | None,
        reduction: str,
        wanted: list[bool],
        statistics: bool,
        *options: Any,
    ) -> tuple[Tensor, ...]:
        arguments = (input, linear_weight, linear_bias, target, weight, sample_weight)
        ctx.reduction, ctx.wanted, ctx.options = reduction, wanted, options
        operands = [*wanted[:3], wanted[5]] if reduction == "sum" else [False] * 4
        loss, *gradients, found = linear.forward(*arguments, reduction, *options, operands, statistics)
        ctx.mark_non_differentiable(found)
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(*arguments, *gradients)
        # A hook on saved tensors may keep what it is given; nobody else knows the gradients.
        ctx.consume = not torch.compiler.is_compiling() and not _saved_tensors_have_hooks()
        return loss, found

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor | None, _: None) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        others = (None,) * (3 + len(ctx.options))
        if grad_output is None:
            return (None,) * 6 + others
        *arguments, grad_input, grad_linear_weight, grad_linear_bias, losses = ctx.saved_tensors
        compiling = torch.compiler.is_compiling()
        if torch.is_grad_enabled() and not compiling:
            return *_differentiable_gradients(grad_output, arguments, ctx.wanted, ctx.options), *others
        if ctx.reduction == "none":
            found = linear.backward(grad_output, *arguments, *ctx.options, ctx.wanted)
            return *_wanted(found, arguments, ctx.wanted), *others
        gradients = (grad_input, grad_linear_weight, grad_linear_bias, losses)
        if compiling:
            input, linear_weight, linear_bias, _, _, sample_weight = arguments
            found = linear.scale(grad_output, input, linear_weight, linear_bias, sample_weight, *gradients)
        elif ctx.consume and not _autograd._get_current_graph_task_keep_graph():
            # The graph is freed behind this call, and a second backward raises: the gradients can be handed out.
            found = tuple(gradient.mul_(grad_output) for gradient in gradients)
        else:
            found = tuple(gradient * grad_output for gradient in gradients)
        found = (*found[:3], grad_output, grad_output, found[3])
        return *_wanted(found, arguments, ctx.wanted), *others


def _saved_tensors_have_hooks() -> bool:
    return _autograd._top_saved_tensors_default_hooks(False) is not None


def _wanted(
    gradients: Sequence[Tensor], arguments: Sequence[Tensor | None], wanted: Sequence[bool]
) -> tuple[Tensor | None, ...]:
    """Each gradient in the dtype of its argument, and None for those that were not asked for."""
    return tuple(
        gradient.to(argument.dtype) if want and argument is not None else None
        for gradient, argument, want in zip(gradients, arguments, wanted, strict=True)
    )


def _differentiable_gradients(
    grad_output: Tensor, arguments: Sequence[Tensor | None], wanted: Sequence[bool], options: Sequence[Any]
) -> tuple[Tensor | None, ...]:
    """The gradients by the arguments, from logits that are computed again, so that they can be differentiated."""
    function, present = _block_function(arguments, options, statistics=False)
    given: list[Tensor] = [argument for place in present if (argument := arguments[place]) is not None]
    places = [position for position, place in enumerate(present) if wanted[place]]
    input = given[0]
    grad_losses = grad_output.expand(input.shape[0])
    found = gradient_over_row_blocks(function, options[-1], given, places, [grad_losses])
    gradients: list[Tensor | None] = [None] * len(arguments)
    for position, gradient in zip(places, found, strict=True):
        gradients[present[position]] = gradient
    return tuple(gradients)


def _block_function(
    arguments: Sequence[Tensor | None], options: Sequence[Any], statistics: bool
) -> tuple[BlockFunction, list[int]]:
    """The losses of a block in differentiable steps; and which of the arguments it takes, those of the rows first."""
    ignore_index, label_smoothing, z_loss, logit_softcap, product_dtype, _ = options
    input, linear_weight, _, target, weight, _ = arguments
    assert input is not None
    assert linear_weight is not None
    assert target is not None
    present = [place for place in (0, 3, 5, 1, 2, 4) if arguments[place] is not None]
    indices = target.dim() < input.dim()
    compute = compute_dtype(input, linear_weight, None if indices else target, weight)

    def call(*given: Tensor) -> tuple[Tensor, ...]:
        some: list[Tensor | None] = [None] * 6
        for place, tensor in zip(present, given, strict=True):
            some[place] = tensor
        x, linear_weight, linear_bias, t, w, s = some
        assert x is not None
        assert linear_weight is not None
        assert t is not None
        w, s = (None if tensor is None else tensor.to(compute) for tensor in (w, s))
        if not indices:
            t = t.to(compute)
        # A row without weight leaves no trace: where it is not finite, it is computed as if it held zeros.
        hidden = _without_weight(x, t, w, s, ignore_index, label_smoothing) & x.isfinite().all(1).logical_not()
        x = x.masked_fill(hidden.unsqueeze(1), 0)
        if s is not None:
            s = s.masked_fill(hidden, 0)
        y = F.linear(
            x.to(product_dtype),
            linear_weight.to(product_dtype),
            None if linear_bias is None else linear_bias.to(product_dtype),
        )
        result: Any = cross_entropy(  # type: ignore[call-overload]
            y.to(compute),
            t,
            w,
            ignore_index=ignore_index,
            reduction="none",
            label_smoothing=label_smoothing,
            sample_weight=s,
            z_loss=z_loss,
            logit_softcap=logit_softcap,
            return_stats=statistics,
        )
        if not statistics:
            return (result,)
        losses, found = result
        return losses, *(field.to(compute) for field in found)

    rows = sum(place in (0, 3, 5) for place in present)
    auxiliary = len(RowStatistics._fields) if statistics else 0
    return BlockFunction(call, rows, 1 + auxiliary, auxiliary=auxiliary), present


def _without_weight(
    x: Tensor, t: Tensor, w: Tensor | None, s: Tensor | None, ignore_index: int, label_smoothing: float
) -> Tensor:
    """The rows that count for nothing."""
    found: Tensor | None = None
    if t.dim() < x.dim():
        ignored = t == ignore_index
        found = without_weight(ignored, t.masked_fill(ignored, 0), w, label_smoothing)
    if s is not None:
        found = s == 0 if found is None else found | (s == 0)
    return torch.zeros(x.shape[0], dtype=torch.bool, device=x.device) if found is None else found


class _Operator(Function):
    """The operator, with the derivative of its first output: what an exported program calls."""

    @staticmethod
    def forward(ctx: Any, wanted: list[bool], *arguments: Any) -> tuple[Tensor, ...]:  # type: ignore[override]
        ctx.wanted, ctx.options = wanted, arguments[7:-2]
        loss, *others = linear.forward(*arguments)
        ctx.mark_non_differentiable(*others)
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(*arguments[:6])
        return loss, *others

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor | None, *_: None) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        others = (None,) * (3 + len(ctx.options))
        if grad_output is None:
            return (None,) * 7 + others
        arguments = ctx.saved_tensors
        if torch.is_grad_enabled():
            return None, *_differentiable_gradients(grad_output, arguments, ctx.wanted, ctx.options), *others
        grad_losses = grad_output.expand(arguments[0].shape[0])
        found = linear.backward(grad_losses, *arguments, *ctx.options, ctx.wanted)
        return None, *_wanted(found, arguments, ctx.wanted), *others


def _differentiable_operator(*arguments: Any) -> tuple[Tensor, ...]:
    if is_differentiated(arguments):
        wanted = [argument is not None and argument.requires_grad for argument in arguments[:6]]
        return _Operator.apply(wanted, *arguments)
    with torch._C._AutoDispatchBelowAutograd():
        return linear.forward(*arguments)


linear.register_derivative(_differentiable_operator)


def _losses(
    arguments: tuple[Tensor | None, ...], reduction: str, statistics: bool, options: tuple[Any, ...]
) -> tuple[Tensor, Tensor | None]:
    """Losses of (rows, features), one by one or summed, and (4, rows) of statistics."""
    if not torch.compiler.is_compiling() and (
        torch._C._are_functorch_transforms_active() or forward_ad._current_level >= 0
    ):
        function, present = _block_function(arguments, options, statistics)
        given: list[Tensor] = [argument for place in present if (argument := arguments[place]) is not None]
        losses, *found = over_row_blocks(function, options[-1], *given)
        return losses.sum() if reduction == "sum" else losses, torch.stack(found) if statistics else None
    if torch.compiler.is_exporting():
        # The program may never be trained. If it is, the operator has a derivative of its own.
        loss, *_, found = linear.forward(*arguments, reduction, *options, [False] * 4, statistics)
        return loss, found if statistics else None
    recording = torch.is_grad_enabled()
    wanted = [recording and argument is not None and argument.requires_grad for argument in arguments]
    # Gradients by the shares of the classes are rare enough to be computed when they are asked for.
    inner = "none" if wanted[3] or wanted[4] else reduction
    loss, found = _LinearCrossEntropy.apply(*arguments, inner, wanted, statistics, *options)
    if inner != reduction:
        loss = loss.sum()
    return loss, found if statistics else None


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
    logit_softcap: float | None = None,
    return_stats: bool = False,
    block_rows: int | None = None,
) -> Any:
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
        options: A `torch.nn.LinearCrossEntropyOptions`, of which `batch_chunk_size` is taken as `block_rows`. Its other
            fields choose between what always holds here: sums over blocks in float32 at least, repeated backwards.
        dim: The dimension of `input` that holds the features, where it is not the last: 1 for (N, features, H, W), as
            in a convolution with a kernel of 1. Class probabilities have the classes there, class indices the other
            dimensions in their order; d1, ... stay behind them. The rows are put together first, a copy of `input`.
        normalizer: What 'mean' divides by, a number or a tensor without dimensions.
        sample_weight: One weight a row, of a shape that broadcasts to the rows'. A row of weight 0 is as if it were not
            there.
        empty: What a mean over nothing gives: 'nan' or 'zero'. The gradient is 0.
        z_loss: λ, which draws log Σ exp(y) to 0; 0 leaves it out. Class weights do not multiply it, sample weights do.
        logit_softcap: c of y -> c tanh(y / c), taken before everything else; None leaves it out.
        return_stats: Whether to return the rows' statistics too.
        block_rows: How many rows are worked on at a time. None chooses so that the block's logits take about 42 MiB.

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
    tensors = (input, linear_weight, target, linear_bias, weight, sample_weight)
    if has_torch_function(tensors):
        return handle_torch_function(
            linear_cross_entropy,
            tensors,
            input,
            linear_weight,
            target,
            linear_bias=linear_bias,
            weight=weight,
            reduction=reduction,
            ignore_index=ignore_index,
            label_smoothing=label_smoothing,
            options=options,
            dim=dim,
            normalizer=normalizer,
            sample_weight=sample_weight,
            empty=empty,
            z_loss=z_loss,
            logit_softcap=logit_softcap,
            return_stats=return_stats,
            block_rows=block_rows,
        )
    _validation.check_reduction(reduction)
    ignore_index = _validation.check_ignore_index(-100 if ignore_index is None else ignore_index)
    label_smoothing = _validation.check_label_smoothing(label_smoothing)
    normalizer = _validation.check_normalizer(normalizer, reduction)
    _validation.check_empty(empty)
    z_loss = _validation.check_z_loss(z_loss)
    logit_softcap = _validation.check_logit_softcap(logit_softcap)
    block_rows = _validation.check_block_rows(_block_rows(options, block_rows))
    indices, shape, dim = _check(input, linear_weight, target, linear_bias, weight, sample_weight, ignore_index, dim)
    dtype, product_dtype, compute = _dtypes(input, linear_weight, target, weight, indices)
    if block_rows is None:
        block_rows = linear.default_block_rows(linear_weight.shape[0], product_dtype.itemsize)
    if not indices:
        target = target.movedim(dim, input.dim() - 1)
    input = input.movedim(dim, -1)
    if indices:
        target = target.reshape(shape).to(torch.int64)
    if sample_weight is not None:
        sample_weight = sample_weight.to(compute).expand(shape)
    if weight is not None:
        # Numerator and denominator share one wide weight, so that its gradient is rounded once.
        weight = weight.to(compute)
    inner = "none" if reduction == "none" else "sum"
    settings = (ignore_index, label_smoothing, z_loss, logit_softcap, product_dtype, block_rows)
    results = [
        _losses((*arguments[:4], weight, arguments[4]), inner, return_stats, settings)
        for arguments in _each_place(input, linear_weight, linear_bias, target, sample_weight, indices)
    ]
    loss = torch.stack([loss for loss, _ in results], -1)
    loss = loss.reshape(shape) if reduction == "none" else loss.sum()
    if reduction == "mean":
        if normalizer is None and indices:
            normalizer = class_indices_denominator(target, ignore_index, weight, sample_weight, compute)
        elif normalizer is None:
            # Without classes there is no row either.
            no_row = linear_weight.shape[0] == 0
            normalizer = 0.0 if no_row else rows_denominator(loss.new_empty(shape), sample_weight, compute)
        loss = mean_of(loss, normalizer, empty)
    loss = loss.to(dtype)
    if not return_stats:
        return loss
    found = torch.stack([statistics for _, statistics in results if statistics is not None], -1)
    return loss, _row_statistics(found.reshape(-1, *shape))


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
    _validation.check_tensors(_FUNCTION, input=input, linear_weight=linear_weight, target=target)
    others = {"linear_weight": linear_weight, "target": target, "linear_bias": linear_bias}
    _validation.check_same_device(_FUNCTION, input, **others, weight=weight, sample_weight=sample_weight)
    _validation.check_floating_input(_FUNCTION, input)
    dim = _validation.check_linear(_FUNCTION, input, linear_weight, linear_bias, dim)
    autocast = autocast_enabled(input.device)
    _validation.check_linear_dtypes(_FUNCTION, autocast, input, linear_weight=linear_weight, linear_bias=linear_bias)
    before, behind, (classes, *places) = input.shape[:dim], input.shape[dim + 1 :], linear_weight.shape[:-1]
    rows, probabilities = [*before, *behind, *places], [*before, classes, *behind, *places]
    indices = _validation.check_linear_target(_FUNCTION, target, rows, probabilities, ignore_index)
    if weight is not None:
        _validation.check_weight_of_classes(classes, input.dtype, indices, weight, autocast, _FUNCTION)
    if sample_weight is not None:
        _validation.check_sample_weight(_FUNCTION, sample_weight, torch.Size(rows))
    return indices, torch.Size(rows), dim


def _dtypes(
    input: Tensor, linear_weight: Tensor, target: Tensor, weight: Tensor | None, indices: bool
) -> tuple[torch.dtype, torch.dtype, torch.dtype]:
    """Of the returned loss, of the products, and of everything between."""
    dtype = input.dtype if indices else torch.promote_types(input.dtype, target.dtype)
    if weight is not None:
        dtype = torch.promote_types(dtype, weight.dtype)
    product_dtype = input.dtype
    if autocast_enabled(input.device) and product_dtype != torch.float64:
        product_dtype = torch.get_autocast_dtype(input.device.type)
    compute = compute_dtype(input, linear_weight, None if indices else target, weight)
    return result_dtype(dtype, input.device), product_dtype, compute


def _block_rows(options: Any, block_rows: int | None) -> int | None:
    if options is None or block_rows is not None:
        return block_rows
    if not hasattr(options, "batch_chunk_size"):
        raise TypeError(
            f"options must be a torch.nn.LinearCrossEntropyOptions or None, but got {type(options).__name__}: "
            "use block_rows."
        )
    return options.batch_chunk_size


def _each_place(
    input: Tensor,
    linear_weight: Tensor,
    linear_bias: Tensor | None,
    target: Tensor,
    sample_weight: Tensor | None,
    indices: bool,
) -> list[tuple[Tensor | None, ...]]:
    """The arguments as rows, for each of the places that a linear_weight with more than two dimensions has."""
    features = input.shape[-1]
    count = math.prod(input.shape[:-1])
    rows = input.reshape(count, features)
    if linear_weight.dim() == 2:
        flat = target.reshape(count) if indices else target.reshape(count, linear_weight.shape[0])
        return [
            (rows, linear_weight, linear_bias, flat, None if sample_weight is None else sample_weight.reshape(count))
        ]
    classes = linear_weight.shape[0]
    places = math.prod(linear_weight.shape[1:-1])
    weights = linear_weight.reshape(classes, places, features).unbind(1)
    biases = [None] * places if linear_bias is None else linear_bias.reshape(classes, places).unbind(1)
    targets = target.reshape(count, places) if indices else target.reshape(count, classes, places)
    samples = [None] * places if sample_weight is None else sample_weight.reshape(count, places).unbind(1)
    return [(rows, *others) for others in zip(weights, biases, targets.unbind(-1), samples, strict=True)]


def _row_statistics(found: Tensor) -> RowStatistics:
    log_sum_exp, target_log_probability, correct, entropy = found.detach().unbind()
    return RowStatistics(log_sum_exp, target_log_probability, correct != 0, entropy)


class LinearCrossEntropyLoss(nn.Module):
    r"""A linear layer and the cross-entropy of its logits in one module, in nats: :func:`linear_cross_entropy`.

    .. math:: \text{loss}_n = -\sum_c w_c \left((1-\varepsilon)\, t_{nc} + \frac{\varepsilon}{C}\right)
        \log \frac{\exp y_{nc}}{\sum_j \exp y_{nj}}, \qquad y_n = W x_n + b

    A drop-in for `torch.nn.LinearCrossEntropyLoss`: the same constructor, and the same names in the state dict
    (`linear.weight`, `linear.bias`, `weight`).

    Args:
        in_features: The number of features of a row.
        num_classes: The number of classes.
        out_features: (d1, ...), the places that have a loss each; none by default.
        bias: Whether the linear layer has a bias.
        device: Where the linear layer's parameters are made.
        dtype: Their dtype.
        reduction: 'mean', 'sum' or 'none'.
        weight: One factor a class, of shape (num_classes); kept as a buffer.
        ignore_index: Rows with this class index are left out; None is -100.
        label_smoothing: ε in [0, 1].
        options: A `torch.nn.LinearCrossEntropyOptions`; see :func:`linear_cross_entropy`.
        dim: The dimension of the input that holds the features, and of class probabilities that holds the classes.
        empty: What a mean over nothing gives: 'nan' or 'zero'.
        z_loss: λ of λ (log Σ exp(y))².
        logit_softcap: c of y -> c tanh(y / c).
        return_stats: Whether to return the rows' statistics beside the loss.
        block_rows: How many rows are worked on at a time.

    Shape:
        input (..., in_features), or with the features at `dim`; target class indices (..., d1, ...), or class
        probabilities (..., num_classes, d1, ...), the classes where the features are; a scalar comes out, or with
        'none' one loss a row. Dtypes as in :func:`linear_cross_entropy`.

    Raises:
        ValueError: An option is none of its values.
        RuntimeError: `weight` has the wrong length.
        TypeError: An option has the wrong type.
        Errors of the call are those of `linear_cross_entropy`.

    Edge cases: as for `linear_cross_entropy`.

    Example:
        >>> import torch
        >>> from torchlosses import LinearCrossEntropyLoss
        >>> criterion = LinearCrossEntropyLoss(16, 1000)
        >>> loss = criterion(torch.zeros(2, 5, 16), torch.zeros(2, 5, dtype=torch.int64))
        >>> round(loss.item(), 4)
        6.9078

    Source: as for `linear_cross_entropy`.
    """

    __constants__ = ("ignore_index", "reduction", "label_smoothing", "num_classes", "out_features")

    weight: Tensor | None

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
        logit_softcap: float | None = None,
        return_stats: bool = False,
        block_rows: int | None = None,
    ) -> None:
        super().__init__()
        _validation.check_reduction(reduction)
        _validation.check_empty(empty)
        if weight is not None:
            _validation.check_weight_of_classes(num_classes, weight.dtype, True, weight, False, type(self).__name__)
        self.register_buffer("weight", weight)
        self.num_classes = num_classes
        self.out_features = tuple(out_features)
        self.reduction: _validation.Reduction = reduction
        self.ignore_index = None if ignore_index is None else _validation.check_ignore_index(ignore_index)
        self.label_smoothing = _validation.check_label_smoothing(label_smoothing)
        self.options = options
        self.dim = _validation.check_dim(dim, "features")
        self.empty: _validation.Empty = empty
        self.z_loss = _validation.check_z_loss(z_loss)
        self.logit_softcap = _validation.check_logit_softcap(logit_softcap)
        self.return_stats = return_stats
        self.block_rows = _validation.check_block_rows(_block_rows(options, block_rows))
        self.linear = nn.Linear(
            in_features, math.prod(self.out_features, start=num_classes), bias=bias, device=device, dtype=dtype
        )

    def forward(
        self,
        input: Tensor,
        target: Tensor,
        *,
        normalizer: Tensor | float | None = None,
        sample_weight: Tensor | None = None,
    ) -> Any:
        """The loss of features against class indices or probabilities; see :func:`linear_cross_entropy`."""
        linear_weight, linear_bias = self.linear.weight, self.linear.bias
        if self.out_features:
            shape = (self.num_classes, *self.out_features)
            linear_weight = linear_weight.reshape(*shape, self.linear.in_features)
            linear_bias = None if linear_bias is None else linear_bias.reshape(shape)
        return linear_cross_entropy(
            input,
            linear_weight,
            target,
            linear_bias=linear_bias,
            weight=self.weight,
            reduction=self.reduction,
            ignore_index=self.ignore_index,
            label_smoothing=self.label_smoothing,
            dim=self.dim,
            normalizer=normalizer,
            sample_weight=sample_weight,
            empty=self.empty,
            z_loss=self.z_loss,
            logit_softcap=self.logit_softcap,
            return_stats=self.return_stats,
            block_rows=self.block_rows,
        )

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Also of a module that was pickled before it had `dim`."""
        super().__setstate__({"dim": -1} | state)

    def extra_repr(self) -> str:
        """The options, `weight` only by its shape."""
        weight = "" if self.weight is None else f"weight={tuple(self.weight.shape)}, "
        return (
            f"in_features={self.linear.in_features}, num_classes={self.num_classes}, out_features={self.out_features}, "
            f"bias={self.linear.bias is not None}, {weight}reduction={self.reduction!r}, "
            f"ignore_index={self.ignore_index}, label_smoothing={self.label_smoothing}, dim={self.dim}, "
            f"empty={self.empty!r}, z_loss={self.z_loss}, logit_softcap={self.logit_softcap}, "
            f"return_stats={self.return_stats}, block_rows={self.block_rows}"
        )
