"""Cross-entropy on logits.

What it computes, for a row of logits x over C classes and the target's share a_c of each class, in nats:

    p_c  = exp(x_c) / Σ_j exp(x_j)                        (softmax)
    loss = Σ_c a_c (-log p_c)                             (index target y: a_y = 1, the others 0, so loss = -log p_y)

How the gradient follows. With l = log Σ_j exp(x_j), -log p_c = l - x_c and dl/dx_j = exp(x_j) / Σ exp = p_j, so with
A = Σ_c a_c

    d loss / dx_j = A p_j - a_j                           (index target: p - onehot(y))

A class weight w and label smoothing ε enter through the shares only: a_c = w_c ((1-ε) t_c + ε/C), t the target's
probabilities. The losses of the rows are then averaged, summed, or kept.

What a row's loss may have beside. A sample weight s multiplies it. The z-loss adds λ l², whose gradient is 2 λ l p
since dl/dx = p. The logits may be multiplied by a scale k, and the soft cap puts y = c tanh(k x / c) in place of k x,
before everything else: all of the above holds by y, and the chain rule gives the gradient the factor
dy/dx = k (1 - (y/c)²).

How it stays right in the corners. With m = max x, the sum s = Σ exp(x_j - m) is 1 + rest: the maximum's own term is 1,
and rest is what the other classes add. Then -log p_c = log1p(rest) - (x_c - m): no 1 is added and rounded, so that a
loss of 1e-30 is 1e-30. The gradient's entry for the target is -Σ_{j≠y} p_j, not p_y - 1, for the same reason. m and
rest, two numbers a row, are what the forward keeps for a backward that comes later.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, overload

import torch
from torch import Tensor, nn

from torchlosses import _validation
from torchlosses._declare import Loss
from torchlosses._module import LossModule, Result_co, intercepted, overridden
from torchlosses._options import (
    FOUND,
    CallOptions,
    FurtherOptions,
    RowStatistics,
    row_statistics,
    statistics_of,
    with_z_loss,
)
from torchlosses._pytorch import exponential, replaced
from torchlosses._rows import (
    autocast_enabled,
    class_indices_denominator,
    compute_dtype,
    from_rows,
    indices_to_rows,
    per_class,
    probabilities_denominator,
    result_dtype,
    row_shape,
    scaled_and_capped,
    times_slope,
    to_rows,
    with_classes_second,
)
from torchlosses._shares import Shares

if TYPE_CHECKING:
    from typing_extensions import Unpack


class Options(NamedTuple):
    """What may be chosen; the function's documentation says what each means."""

    reduction: str = "mean"
    empty: float = math.nan
    dtype: torch.dtype = torch.float32
    gradients: int = 0
    ignore_index: int = -100
    label_smoothing: float = 0.0
    z_loss: float = 0.0
    logit_scale: float = 1.0
    logit_softcap: float | None = None
    statistics: bool = False
    inplace_backward: bool = False


class CrossEntropy(Loss):
    """loss = s (Σ_c a_c (-log p_c) + λ l²) for each row; gradient s ((A + 2 λ l) p - a) dy/dx."""

    name = "cross_entropy"
    tensors = ("input", "target", "weight?", "sample_weight?")
    options = Options
    shared = ("weight",)

    @staticmethod
    def forward(
        input: Tensor, target: Tensor, weight: Tensor | None, sample_weight: Tensor | None, options: Options
    ) -> tuple[Tensor, Tensor]:
        """The rows' losses; and their maximum, rest and, where they are asked for, statistics."""
        if not input.shape[1]:
            # Without classes a row costs nothing.
            rows, compute = CrossEntropy.rows(input), compute_dtype(input, weight)
            state = input.new_zeros([CrossEntropy.state_fields(options), *rows], dtype=compute)
            return input.new_zeros(rows, dtype=compute), state
        shares = Shares(input, target, weight, sample_weight, options)
        x = input.to(shares.compute)
        y = scaled_and_capped(x, options)
        maximum = y.detach().amax(1, keepdim=True)
        _, y = shares.hide(x, y, maximum, options)
        if shares.hidden is not None:
            maximum = maximum.masked_fill(shares.hidden, 0)
        shifted = y - maximum
        dot = shares.dot(shifted)
        # One class is left out of the sum and comes back as expm1: where it is the maximum, that is exactly 0, and
        # log1p keeps the small remainder that 1 + remainder would round away. A loss has a small one only where the
        # target is the maximum, an entropy everywhere.
        at_target = shifted.gather(1, shares.target) if shares.indices else None
        i = shares.target if shares.indices and not options.statistics else shifted.argmax(1, keepdim=True)
        at_i = shifted.gather(1, i)
        rest = exponential(replaced(shifted, i, -math.inf)).sum(1, keepdim=True) + torch.expm1(at_i)
        log_sum = torch.log1p(rest)
        losses = shares.losses(log_sum, at_target, dot)
        if options.z_loss:
            log_sum_exp = (maximum + log_sum).masked_fill(shares.total == 0, 0)
            losses = losses + options.z_loss * log_sum_exp.square()
        losses = shares.weighted(losses, shares.total, shares.hidden).squeeze(1)
        state = [maximum, rest.detach()]
        if options.statistics:
            of_rows = maximum.squeeze(1), rest.detach().squeeze(1)
            found = row_statistics(y.detach(), shares.target.squeeze(1) if shares.indices else target, *of_rows)
            without = shares.without_trace(shares.total)
            state += [field.to(losses.dtype).unsqueeze(1).masked_fill(without, 0) for field in found]
        return losses, torch.cat([field.movedim(1, 0) for field in state])

    @staticmethod
    def backward(
        grad_output: Tensor,
        input: Tensor,
        target: Tensor,
        weight: Tensor | None,
        sample_weight: Tensor | None,
        options: Options,
    ) -> Tensor:
        """The gradient by the logits; `grad_output` is one number, or one a row."""
        if not input.shape[1]:
            return torch.zeros_like(input)
        shares = Shares(input, target, weight, sample_weight, options)
        x = input.to(shares.compute)
        x, y = shares.hide(x, scaled_and_capped(x, options), None, options)
        g = shares.incoming(per_class(grad_output), shares.total, shares.hidden)
        p = torch.softmax(y, 1)
        drawn: Tensor | None = None
        if options.z_loss:
            drawn = (2 * options.z_loss * torch.logsumexp(y, 1, keepdim=True)).masked_fill(shares.total == 0, 0)
        return times_slope(shares.gradient(p, drawn, g), x, options)

    @staticmethod
    def state_fields(options: Options) -> int:
        """Maximum and rest, and the statistics."""
        return 2 + FOUND if options.statistics else 2

    @staticmethod
    def shows_state(options: Options) -> bool:
        """For its statistics."""
        return options.statistics

    @staticmethod
    def shown(state: Tensor, tensors: Any, options: Options) -> Tensor:
        """The fields of `RowStatistics`."""
        return with_z_loss(state, tensors[-1], options.z_loss)

    @staticmethod
    def check(input: Tensor, target: Tensor, *others: Any) -> None:
        """Class indices are in range."""
        if target.dim() < input.dim() and target.device.type == "cpu":
            _validation.check_indices_in_range(target, input.shape[1], others[-1].ignore_index)

    @staticmethod
    def counted(input: Tensor, target: Tensor, *others: Any) -> Tensor | None:
        """Rows that are not ignored. Without classes there is no row that could have probabilities."""
        if target.dim() < input.dim():
            return target != others[-1].ignore_index
        return None if input.shape[1] else input.new_zeros(CrossEntropy.rows(input), dtype=torch.bool)

    @staticmethod
    def denominator(
        input: Tensor, target: Tensor, weight: Tensor | None, sample_weight: Tensor | None, options: Options
    ) -> Tensor | None:
        """Σ_n s_n w_{y_n} over the rows that are not ignored; Σ_n s_n for class probabilities."""
        if target.dim() == input.dim():
            return probabilities_denominator(input.shape[1], sample_weight)
        if weight is None and sample_weight is None:
            return None
        return class_indices_denominator(
            target, weight, sample_weight, options.ignore_index, compute_dtype(input, weight)
        )


class _FurtherOptions(FurtherOptions, total=False):
    dim: int
    inplace_backward: bool


class _CallOptions(_FurtherOptions, CallOptions, total=False):
    pass


@overload
def cross_entropy(
    input: Tensor,
    target: Tensor,
    weight: Tensor | None = None,
    size_average: None = None,
    ignore_index: int = -100,
    reduce: None = None,
    reduction: _validation.Reduction = "mean",
    label_smoothing: float = 0.0,
    *,
    dim: int = 1,
    normalizer: Tensor | float | None = None,
    sample_weight: Tensor | None = None,
    empty: _validation.Empty = "nan",
    z_loss: float = 0.0,
    logit_scale: float = 1.0,
    logit_softcap: float | None = None,
    loss_dtype: torch.dtype | None = None,
    return_stats: Literal[False] = False,
    inplace_backward: bool = False,
    gradient: _validation.Gradient = "forward",
) -> Tensor: ...


@overload
def cross_entropy(
    input: Tensor,
    target: Tensor,
    weight: Tensor | None = None,
    size_average: None = None,
    ignore_index: int = -100,
    reduce: None = None,
    reduction: _validation.Reduction = "mean",
    label_smoothing: float = 0.0,
    *,
    return_stats: Literal[True],
    **options: Unpack[_CallOptions],
) -> tuple[Tensor, RowStatistics]: ...


@overload
def cross_entropy(
    input: Tensor,
    target: Tensor,
    weight: Tensor | None = None,
    size_average: None = None,
    ignore_index: int = -100,
    reduce: None = None,
    reduction: _validation.Reduction = "mean",
    label_smoothing: float = 0.0,
    *,
    return_stats: bool,
    **options: Unpack[_CallOptions],
) -> Tensor | tuple[Tensor, RowStatistics]: ...


def cross_entropy(
    input: Tensor,
    target: Tensor,
    weight: Tensor | None = None,
    size_average: None = None,
    ignore_index: int = -100,
    reduce: None = None,
    reduction: _validation.Reduction = "mean",
    label_smoothing: float = 0.0,
    *,
    dim: int = 1,
    normalizer: Tensor | float | None = None,
    sample_weight: Tensor | None = None,
    empty: _validation.Empty = "nan",
    z_loss: float = 0.0,
    logit_scale: float = 1.0,
    logit_softcap: float | None = None,
    loss_dtype: torch.dtype | None = None,
    return_stats: bool = False,
    inplace_backward: bool = False,
    gradient: _validation.Gradient = "forward",
) -> Tensor | tuple[Tensor, RowStatistics]:
    r"""Cross-entropy between logits and class indices or class probabilities, in nats.

    .. math:: \text{loss}_n = -\sum_c w_c \left((1-\varepsilon)\, t_{nc} + \frac{\varepsilon}{C}\right)
        \log \frac{\exp x_{nc}}{\sum_j \exp x_{nj}}

    where t is one-hot for class indices. For a row with index y, no weight and no smoothing, that is
    :math:`-\log p_y`, and its gradient :math:`p - \text{onehot}(y)`. A drop-in for
    `torch.nn.functional.cross_entropy`; the few differences are listed in `docs/divergences.md`.

    Args:
        input: Logits of shape (C), (N, C) or (N, C, d1, ...).
        target: Class indices of shape (), (N) or (N, d1, ...), of any integer dtype, in [0, C) or `ignore_index`;
            or class probabilities, of a floating-point dtype and the shape of `input`.
        weight: One factor a class, of shape (C); with class indices, of the dtype of `input`.
        size_average: Not supported; here so that positional arguments keep their place. Use `reduction`.
        ignore_index: Rows with this class index count neither for the loss nor for the mean, and their gradient is
            exactly 0 even where their logits are nan. For class indices only.
        reduce: Not supported; here so that positional arguments keep their place. Use `reduction`.
        reduction: 'mean' divides the sum by the weights of the rows' classes (class indices; without weights, the
            number of rows that are not ignored) or by the number of rows (class probabilities); 'sum'; 'none'.
        label_smoothing: ε in [0, 1], the share of the target that is spread evenly over all classes.
        inplace_backward: Whether the backward writes the gradient over `input`, which then holds no logits any more:
            training needs no further memory of that size. Only for logits that nothing else needs, as the output of a
            linear layer; whoever reads them in a later backward is stopped by autograd's check for in-place changes.
            Under `torch.compile` the gradient has memory of its own.
        dim: The dimension of the classes, where it is not dimension 1 (or the only one); `target` then has the other
            dimensions in their order, or the shape of `input`. The gradient keeps the layout of `input`; nothing is
            copied.
        normalizer: What 'mean' divides by in place of the above, a number or a tensor without dimensions: the
            micro-batches of a batch then add up to it.
        sample_weight: One weight a row, of a shape that broadcasts to the rows' (that of `input` without the class
            dimension). It multiplies the row's loss and enters the mean's denominator as the class weights do. A row of
            weight 0 is as if it were not there.
        empty: What a mean over nothing gives: 'nan' or 'zero'. The gradient is 0.
        z_loss: λ of λ (log Σ exp(x))², which is added to the loss of each row that is not ignored and keeps the logits
            from drifting. Class weights do not multiply it, sample weights do.
        logit_scale: A factor of the logits, taken before everything else, the soft cap too.
        logit_softcap: c of x -> c tanh(x / c), taken before everything else but the scale; None leaves it out.
        loss_dtype: The dtype of the result; float32 keeps the digits of a sum over bfloat16 logits.
        return_stats: Whether to return the rows' statistics too.
        gradient: When the gradient by `input` is computed. 'forward' computes it along with a loss that is one number,
            for an incoming gradient of 1, and reads the logits from memory once; until the backward it takes the memory
            of the logits. If the incoming gradient is another (the loss was divided; `normalizer` does that without),
            or the graph is kept for a second backward, it is computed again. 'backward' holds nothing and reads the
            logits twice: for many losses before one backward.

    Returns:
        A scalar, or with 'none' one loss a row: the shape of `input` without the class dimension. With `return_stats` a
        pair of that and a `RowStatistics` of the rows' shape, of the logits after scale and soft cap. float32 and
        float64 keep their dtype; bfloat16 and float16 are computed in float32 and rounded once, and stay float32
        under autocast.

    Raises:
        ValueError: `reduction`, `label_smoothing`, `empty`, `z_loss`, `logit_scale`, `logit_softcap` or `gradient` is
            none of its values; `normalizer` without 'mean', or not one number; `sample_weight` does not broadcast to
            the rows; the batch sizes differ.
        RuntimeError: The other sizes do not fit; class indices are no integers or class probabilities no floats;
            `weight` has the wrong length, or with class indices another dtype; `ignore_index` >= 0 with class
            probabilities; the tensors are on different devices. With `inplace_backward`: `input` is a leaf that
            requires grad or a view of one, has elements that share memory, or is given to a transform of `torch.func`
            or to forward-mode AD; a second backward, or one with `create_graph=True`.
        IndexError: A class index is out of bounds (on the CPU; accelerators assert it on the device), or `dim` is.
        NotImplementedError: `input` is not floating-point.
        TypeError: An argument has the wrong type, or `size_average` or `reduce` is given.

    Edge cases: a mean over no row is nan, or 0 as `empty` says, with gradient 0; an empty sum is 0. A logit of -inf is
    a class that is ruled out: loss inf if it is the target, no effect if its share is 0. A logit of +inf or nan gives
    nan. A soft cap makes ±c of ±inf.
    Differentiable to all orders with respect to `input`, class probabilities, `weight`, `sample_weight` and
    `normalizer`; statistics have no derivative.

    Example:
        >>> import torch
        >>> from torchlosses import cross_entropy
        >>> logits = torch.tensor([[2.0, 0.0, 0.0]], requires_grad=True)
        >>> loss = cross_entropy(logits, torch.tensor([0]))
        >>> round(loss.item(), 4)
        0.2395
        >>> loss.backward()
        >>> logits.grad
        tensor([[-0.2130,  0.1065,  0.1065]])

    Source: C. M. Bishop, *Pattern Recognition and Machine Learning* (2006), section 4.3.4; label smoothing from
    C. Szegedy et al., *Rethinking the Inception Architecture for Computer Vision* (2016), section 7; the z-loss from
    A. Chowdhery et al., *PaLM* (2022), section 5; the soft cap from Gemma Team, *Gemma 2* (2024), section 2.
    """
    if intercepted(input, target, weight, sample_weight):
        return overridden(cross_entropy, (input, target, weight, sample_weight), locals())
    # A call of its own for every check would take longer than a small batch.
    if reduction not in _validation.REDUCTIONS:
        _validation.check_reduction(reduction)
    if gradient not in _validation.GRADIENTS:
        _validation.check_gradient_option(gradient)
    if size_average is not None or reduce is not None:
        _validation.check_legacy_arguments(size_average, reduce)
    if type(ignore_index) is not int or ignore_index != -100:
        ignore_index = _validation.check_ignore_index(ignore_index)
    if type(label_smoothing) is not float or label_smoothing != 0.0:
        label_smoothing = _validation.check_label_smoothing(label_smoothing)
    if inplace_backward:
        inplace_backward = _validation.check_inplace_backward(input)
    gradients = int(gradient == "forward" and not inplace_backward)
    if (
        weight is normalizer is sample_weight is logit_softcap is loss_dtype is None
        and empty == "nan"
        and dim == 1
        and z_loss == 0
        and not return_stats
        and logit_scale == 1
        and type(target) is Tensor
        and isinstance(input, Tensor)
        and input.dim() == 2
        and target.dtype is torch.int64
    ):
        # The commonest call: nothing is left to check or to convert.
        own = (ignore_index, label_smoothing)
        if not inplace_backward:
            loss = CrossEntropy.of_few(input, target, reduction, gradients, own)
            if loss is not None:
                return loss
        if (
            input.device == target.device
            and ((dtype := input.dtype) is torch.float32 or dtype is torch.float64)
            and not (input.is_nested or target.is_nested)
            and target.dim() == 1
            and input.size(0) == target.size(0)
        ):
            options = Options(reduction, math.nan, dtype, gradients, *own, inplace_backward=inplace_backward)
            return CrossEntropy.apply(input, target, None, None, normalizer=None, options=options)[0]
    normalizer = _validation.check_normalizer(normalizer, reduction)
    empty = _validation.check_empty(empty)
    z_loss = _validation.check_z_loss(z_loss)
    logit_scale = _validation.check_logit_scale(logit_scale)
    logit_softcap = _validation.check_logit_softcap(logit_softcap)
    loss_dtype = _validation.check_loss_dtype(loss_dtype)
    _validation.check_tensors("cross_entropy", input=input, target=target)
    _validation.check_same_device("cross_entropy", input, target=target, weight=weight, sample_weight=sample_weight)
    if dim != 1:
        classes = _validation.check_dimension("cross_entropy", input, dim)
        input, target = with_classes_second(input, target, classes)
    _validation.check_classification_shapes("cross_entropy", input, target)
    _validation.check_floating_input("cross_entropy", input)
    _validation.check_cross_entropy_target(input, target, ignore_index)
    indices = target.shape != input.shape
    dtype = input.dtype if indices else torch.promote_types(input.dtype, target.dtype)
    if weight is not None:
        _validation.check_class_weight(input, target, weight, autocast_enabled(input.device))
        dtype = torch.promote_types(dtype, weight.dtype)
    wide = compute_dtype(input, None if indices else target, weight)
    # Numerator and denominator share one wide weight, so that its gradient is rounded once.
    weight = None if weight is None else weight.to(wide)
    if sample_weight is not None:
        shape = row_shape(input)
        _validation.check_sample_weight("cross_entropy", sample_weight, shape)
        sample_weight = indices_to_rows(sample_weight.to(wide).expand(shape))
    options = Options(
        reduction,
        0.0 if empty == "zero" else math.nan,
        result_dtype(loss_dtype, dtype, input.device),
        gradients,
        ignore_index,
        label_smoothing,
        z_loss,
        logit_scale,
        logit_softcap,
        bool(return_stats),
        inplace_backward,
    )
    target_rows = indices_to_rows(target.to(torch.int64)) if indices else to_rows(target)
    loss, state = CrossEntropy.apply(
        to_rows(input), target_rows, weight, sample_weight, normalizer=normalizer, options=options
    )
    if reduction == "none":
        loss = from_rows(loss, input)
    if state is None:
        return loss
    return loss, statistics_of(from_rows(field, input) for field in state.unbind())


class CrossEntropyLoss(LossModule[Result_co], nn.CrossEntropyLoss):
    r"""Cross-entropy on logits as a module: :func:`torchlosses.cross_entropy` with its options kept, in nats.

    .. math:: \text{loss}_n = -\sum_c w_c \left((1-\varepsilon)\, t_{nc} + \frac{\varepsilon}{C}\right)
        \log \frac{\exp x_{nc}}{\sum_j \exp x_{nj}}

    A drop-in for `torch.nn.CrossEntropyLoss`, and a subclass of it: libraries ask for that class to know that a model's
    outputs are logits.

    Args:
        weight: One factor a class, of shape (C); kept as a buffer, so that `.to(...)` moves it.
        size_average: Not supported; here so that positional arguments keep their place. Use `reduction`.
        ignore_index: Rows with this class index are left out.
        reduce: Not supported; here so that positional arguments keep their place. Use `reduction`.
        reduction: 'mean', 'sum' or 'none'.
        label_smoothing: ε in [0, 1].
        dim: The dimension of the classes.
        empty: What a mean over nothing gives: 'nan' or 'zero'.
        z_loss: λ of λ (log Σ exp(x))².
        logit_scale: A factor of the logits.
        logit_softcap: c of x -> c tanh(x / c).
        loss_dtype: The dtype of the result.
        return_stats: Whether to return the rows' statistics beside the loss.
        inplace_backward: Whether the backward writes the gradient over the logits; see `cross_entropy`.
        gradient: When the gradient is computed, 'forward' or 'backward'; see `cross_entropy`.

    The call takes `normalizer` and `sample_weight`, as `cross_entropy` does.

    Shape:
        input (C), (N, C) or (N, C, d1, ...); target class indices (), (N) or (N, d1, ...), or class probabilities of
        the shape of input; a scalar comes out, or with 'none' one loss a row. Dtypes as in `cross_entropy`.

    Raises:
        ValueError: An option is none of its values.
        TypeError: An option has the wrong type, or `size_average` or `reduce` is given.
        Errors of the call are those of `cross_entropy`.

    Edge cases: as for `cross_entropy`.

    Example:
        >>> import torch
        >>> from torchlosses import CrossEntropyLoss
        >>> criterion = CrossEntropyLoss(ignore_index=255)
        >>> logits = torch.zeros(2, 4)
        >>> round(criterion(logits, torch.tensor([3, 255])).item(), 4)
        1.3863

    Source: as for `cross_entropy`.
    """

    __constants__ = ("ignore_index", "reduction", "label_smoothing", "inplace_backward")
    function = staticmethod(cross_entropy)
    shown = ("ignore_index", "reduction", "label_smoothing")

    @overload
    def __init__(
        self: CrossEntropyLoss[Tensor],
        weight: Tensor | None = None,
        size_average: None = None,
        ignore_index: int = -100,
        reduce: None = None,
        reduction: _validation.Reduction = "mean",
        label_smoothing: float = 0.0,
        *,
        return_stats: Literal[False] = False,
        **options: Unpack[_FurtherOptions],
    ) -> None: ...

    @overload
    def __init__(
        self: CrossEntropyLoss[tuple[Tensor, RowStatistics]],
        weight: Tensor | None = None,
        size_average: None = None,
        ignore_index: int = -100,
        reduce: None = None,
        reduction: _validation.Reduction = "mean",
        label_smoothing: float = 0.0,
        *,
        return_stats: Literal[True],
        **options: Unpack[_FurtherOptions],
    ) -> None: ...

    @overload
    def __init__(
        self: CrossEntropyLoss[Tensor | tuple[Tensor, RowStatistics]],
        weight: Tensor | None = None,
        size_average: None = None,
        ignore_index: int = -100,
        reduce: None = None,
        reduction: _validation.Reduction = "mean",
        label_smoothing: float = 0.0,
        *,
        return_stats: bool,
        **options: Unpack[_FurtherOptions],
    ) -> None: ...

    def __init__(
        self,
        weight: Tensor | None = None,
        size_average: None = None,
        ignore_index: int = -100,
        reduce: None = None,
        reduction: _validation.Reduction = "mean",
        label_smoothing: float = 0.0,
        *,
        dim: int = 1,
        empty: _validation.Empty = "nan",
        z_loss: float = 0.0,
        logit_scale: float = 1.0,
        logit_softcap: float | None = None,
        loss_dtype: torch.dtype | None = None,
        return_stats: bool = False,
        inplace_backward: bool = False,
        gradient: _validation.Gradient = "forward",
    ) -> None:
        options = {name: value for name, value in locals().items() if name in type(self).kept}
        _validation.check_legacy_arguments(size_average, reduce)
        super().__init__(weight)
        self.keep(**options)
