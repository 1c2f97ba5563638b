"""Losses that are wrong in one realistic way each, with the check that must catch them and what it must say."""
# pyright: reportIncompatibleMethodOverride=false

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd import Function

CHECKED = ("none", "mean", "sum")


@dataclass(frozen=True)
class Specimen:
    """A broken loss; `says` is a part of the finding's summary."""

    loss: Any
    kind: str
    check: str
    says: str
    reference: Any = None
    dtypes: tuple[str, ...] | None = None


ZOO: dict[str, Specimen] = {}


def specimen(
    kind: str, check: str, says: str, reference: Any = None, dtypes: tuple[str, ...] | None = None
) -> Callable[[Any], Any]:
    """Put a loss into the zoo; one that breaks in several ways has several of these."""

    def collect(loss: Any) -> Any:
        ZOO[f"{loss.__name__}-{check}"] = Specimen(loss, kind, check, says, reference, dtypes)
        return loss

    return collect


def reduced(losses: Tensor, reduction: str, count: Tensor | float | None = None) -> Tensor:
    if reduction not in CHECKED:
        raise ValueError(f"reduction must be one of {CHECKED}, but got {reduction!r}")
    if reduction == "none":
        return losses
    return losses.sum() if reduction == "sum" else losses.sum() / (losses.numel() if count is None else count)


def picked(log_probabilities: Tensor, target: Tensor) -> Tensor:
    return log_probabilities.gather(1, target.unsqueeze(1)).squeeze(1)


class _MeanSquare(Function):
    """The mean square of the difference; subclasses have wrong backwards."""

    @staticmethod
    def forward(ctx: Any, input: Tensor, target: Tensor) -> Tensor:
        ctx.save_for_backward(input, target)
        return (input - target).square().mean()


# Values ------------------------------------------------------------------------------------------------------------


@specimen("regression", "values.reference", "the value differs", F.mse_loss)
def half_the_square(input: Tensor, target: Tensor, reduction: str = "mean") -> Tensor:
    return reduced((input - target).square() / 2, reduction)


@specimen("classification", "values.reference", "the value differs", F.cross_entropy)
def smoothing_without_weights(
    input: Tensor, target: Tensor, weight: Tensor | None = None, label_smoothing: float = 0.0
) -> Tensor:
    """The smoothed part forgets the class weights."""
    logs = F.log_softmax(input, 1)
    w = torch.ones_like(input[0]) if weight is None else weight
    hard, smooth = -picked(logs, target) * w[target], -logs.mean(1)
    return ((1 - label_smoothing) * hard + label_smoothing * smooth).sum() / w[target].sum()


class _WrongFactor(_MeanSquare):
    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        input, target = ctx.saved_tensors
        return grad * (input - target) / input.numel(), None


@specimen("regression", "values.reference_gradients", "the gradient by input differs", F.mse_loss)
def gradient_without_its_two(input: Tensor, target: Tensor) -> Tensor:
    return _WrongFactor.apply(input, target.detach())  # type: ignore[return-value]


@specimen("classification", "values.bfloat16", "off by more than rounding in torch.bfloat16")
def adds_up_in_the_dtype_of_the_input(input: Tensor, target: Tensor) -> Tensor:
    total = input.new_zeros(())
    for loss in -picked(F.log_softmax(input, 1), target):
        total = total + loss
    return total / len(target)


@specimen("regression", "values.float16", "not finite in torch.float16")
def sums_before_it_divides(input: Tensor, target: Tensor) -> Tensor:
    return ((input - target) ** 4).sum() / input.numel()


@specimen("regression", "values.float16_range", "leaves the range of float16")
def squares_in_float16(input: Tensor, target: Tensor) -> Tensor:
    return ((input - target) * (input - target)).mean()


@specimen("classification", "values.extreme_inputs", "a loss that is not finite")
def log_of_softmax(input: Tensor, target: Tensor, reduction: str = "mean") -> Tensor:
    return reduced(-picked(torch.softmax(input, 1).log(), target), reduction)


@specimen("classification", "values.confident_mistake", "the gradient of a confident mistake vanishes")
def log_of_softmax_plus_delta(input: Tensor, target: Tensor, reduction: str = "mean") -> Tensor:
    return reduced(-picked(torch.log(torch.softmax(input, 1) + 1e-7), target), reduction)


@specimen("classification", "values.confident_tail", "the small loss of a confident row is lost")
def one_minus_probability(input: Tensor, target: Tensor) -> Tensor:
    """log(1 - (1 - p))."""
    return -torch.log1p(-(1 - picked(torch.softmax(input, 1), target))).mean()


@specimen("classification", "values.masked_classes", "a masked class changes the loss")
def zero_times_infinity(input: Tensor, target: Tensor) -> Tensor:
    if target.dim() == 1:
        target = F.one_hot(target, input.shape[1]).to(input.dtype)
    return -(target * F.log_softmax(input, 1)).sum(1).mean()


@specimen("classification", "values.one_class", "raised ZeroDivisionError")
def spreads_over_the_others(input: Tensor, target: Tensor) -> Tensor:
    logs = F.log_softmax(input, 1)
    share = torch.full_like(logs, 0.1 / (input.shape[1] - 1))
    return -(logs * share.scatter(1, target.unsqueeze(1), 0.9)).sum(1).mean()


@specimen("regression", "values.nan_is_shown", "a nan in the input is hidden")
def hides_nan(input: Tensor, target: Tensor) -> Tensor:
    return torch.nan_to_num((input - target).square()).mean()


@specimen("regression", "values.runs", "another dtype came out")
def always_float32(input: Tensor, target: Tensor) -> Tensor:
    return F.mse_loss(input.float(), target.float())


@specimen("regression", "values.float32", "off by more than rounding in torch.float32", F.mse_loss)
def saves_memory_in_bfloat16(input: Tensor, target: Tensor) -> Tensor:
    return F.mse_loss(input.bfloat16(), target.bfloat16()).to(input.dtype)


@specimen("regression", "values.float64", "float64 is computed in a narrower dtype", dtypes=("float64", "float32"))
def computes_in_float32(input: Tensor, target: Tensor) -> Tensor:
    """A kernel that converts what it loads, and what it stores."""
    return F.mse_loss(input.float(), target.float()).to(input.dtype)


@specimen("classification", "values.many_classes", "off by more than rounding", F.cross_entropy)
def leaves_the_last_block_of_classes_out(input: Tensor, target: Tensor, reduction: str = "mean") -> Tensor:
    """Blocks of 4096 classes, and no block for the rest."""
    blocks = max(1, input.shape[1] // 4096)
    seen = input[:, : 4096 * blocks]
    return reduced(seen.logsumexp(1) - picked(input, target), reduction)


# Derivatives -------------------------------------------------------------------------------------------------------


class _Detached(Function):
    """Works out its gradient in the forward, and hands it out as a constant."""

    @staticmethod
    def forward(ctx: Any, input: Tensor, target: Tensor) -> Tensor:
        ctx.save_for_backward((input.softmax(1) - F.one_hot(target, input.shape[1])) / len(target))
        return F.cross_entropy(input, target)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return ctx.saved_tensors[0] * grad.detach(), None


@specimen("classification", "derivatives.no_dropped_second_derivative", "is silently dropped")
def second_derivative_dropped(input: Tensor, target: Tensor) -> Tensor:
    return _Detached.apply(input, target)  # type: ignore[return-value]


class _SavedSoftmax(Function):
    @staticmethod
    def forward(ctx: Any, input: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
        softmax = input.softmax(1)
        ctx.mark_non_differentiable(softmax)
        ctx.save_for_backward(softmax, target)
        return F.cross_entropy(input, target), softmax

    @staticmethod
    def backward(ctx: Any, grad: Tensor, _: Tensor) -> tuple[Tensor, None]:  # type: ignore[override]
        softmax, target = ctx.saved_tensors
        return grad * (softmax - F.one_hot(target, softmax.shape[1])) / len(target), None


@specimen("classification", "derivatives.gradgradcheck", "is not that of finite differences")
def saved_softmax_is_a_constant(input: Tensor, target: Tensor) -> Tensor:
    return _SavedSoftmax.apply(input, target)[0]  # type: ignore[index]


class _Square(Function):
    """The sum of squares, right in reverse mode; subclasses spoil a rule."""

    @staticmethod
    def forward(input: Tensor) -> Tensor:  # type: ignore[override]
        return input.square().sum()

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        ctx.save_for_backward(*inputs)
        ctx.save_for_forward(*inputs)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        return 2 * grad * ctx.saved_tensors[0]


class _ZeroTangent(_Square):
    @staticmethod
    def jvp(ctx: Any, tangent: Tensor) -> Tensor:
        return torch.zeros((), dtype=tangent.dtype)


@specimen("regression", "derivatives.no_silent_zero_tangent", "the tangent is silently dropped")
def zero_tangent(input: Tensor, target: Tensor) -> Tensor:
    return _ZeroTangent.apply(input - target)  # type: ignore[return-value]


class _HalfTangent(_Square):
    @staticmethod
    def jvp(ctx: Any, tangent: Tensor) -> Tensor:
        return (ctx.saved_tensors[0] * tangent).sum()


@specimen("regression", "transforms.jvp_equals_vjp", "forward and reverse mode disagree")
@specimen("regression", "derivatives.forward_ad", "is not that of finite differences")
def half_a_tangent(input: Tensor, target: Tensor) -> Tensor:
    return _HalfTangent.apply(input - target)  # type: ignore[return-value]


class _SummedMap(_Square):
    @staticmethod
    def vmap(info: Any, in_dims: tuple[int | None, ...], input: Tensor) -> tuple[Tensor, int]:
        return input.square().sum().expand(info.batch_size), 0


@specimen("regression", "transforms.vmap", "is not a loop")
def sums_over_the_mapped_dimension(input: Tensor, target: Tensor) -> Tensor:
    return _SummedMap.apply(input - target)  # type: ignore[return-value]


@specimen("classification", "derivatives.ties", "is not that of finite differences")
def maximum_found_by_comparison(input: Tensor, target: Tensor) -> Tensor:
    """log1p over the classes below the maximum; where two are equal to it, one is lost."""
    maximum = input.detach().amax(1, keepdim=True)
    rest = torch.where(input == maximum, torch.zeros_like(input), (input - maximum).exp()).sum(1)
    top = input.max(1).values
    return (torch.log1p(rest) + top - picked(input, target)).mean()


@specimen("classification", "derivatives.gradcheck", "is not that of finite differences")
def detached_denominator(input: Tensor, target: Tensor) -> Tensor:
    """A focal loss that does not differentiate its own factor."""
    log_probability = picked(F.log_softmax(input, 1), target)
    return (-((1 - log_probability.exp().detach()) ** 2) * log_probability).mean()


class _DetachingSquare(_Square):
    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        return 2 * grad * ctx.saved_tensors[0].detach()


@specimen("regression", "transforms.reverse_over_reverse", "jacrev of jacrev is not the derivative of the gradient")
def detaches_in_its_backward(input: Tensor, target: Tensor) -> Tensor:
    return _DetachingSquare.apply(input - target)  # type: ignore[return-value]


class _PlainTangent(_Square):
    generate_vmap_rule = True
    """Its jvp runs with forward mode switched off, as PyTorch does, and is a constant to the next level."""

    @staticmethod
    def jvp(ctx: Any, tangent: Tensor) -> Tensor:
        return 2 * (ctx.saved_tensors[0] * tangent).sum()


@specimen("regression", "transforms.forward_over_forward", "jacfwd of jacfwd is not the derivative of the gradient")
def plain_tangent(input: Tensor, target: Tensor) -> Tensor:
    return _PlainTangent.apply(input - target)  # type: ignore[return-value]


class _Twice(Function):
    """2 g x as a Function of its own, whose rules are wrong."""

    @staticmethod
    def forward(grad: Tensor, input: Tensor) -> Tensor:  # type: ignore[override]
        return 2 * grad * input

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        ctx.save_for_backward(*inputs)
        ctx.save_for_forward(*inputs)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor]:
        incoming, input = ctx.saved_tensors
        return 2 * (grad * input).sum(), 2 * grad * incoming

    @staticmethod
    def jvp(ctx: Any, grad_tangent: Tensor | None, input_tangent: Tensor | None) -> Tensor:  # type: ignore[override]
        """Without the factor 2."""
        grad, input = ctx.saved_tensors
        parts = [
            factor * tangent
            for factor, tangent in ((input, grad_tangent), (grad, input_tangent))
            if tangent is not None
        ]
        return torch.stack(parts).sum(0)


class _SquareByTwice(_HalfTangent):
    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        return _Twice.apply(grad, ctx.saved_tensors[0])  # type: ignore[return-value]


@specimen("regression", "derivatives.forward_over_reverse", "is not that of finite differences")
def wrong_tangent_of_the_gradient(input: Tensor, target: Tensor) -> Tensor:
    return _SquareByTwice.apply(input - target)  # type: ignore[return-value]


class _BatchedPath(_Square):
    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        """A path of its own for batched gradients, without the factor 2."""
        functorch: Any = torch._C._functorch  # type: ignore[attr-defined]
        factor = 1 if functorch.is_legacy_batchedtensor(grad) else 2
        return factor * grad * ctx.saved_tensors[0]


@specimen("regression", "derivatives.batched_gradient", "is not that of a loop")
def another_formula_for_batched_gradients(input: Tensor, target: Tensor) -> Tensor:
    return _BatchedPath.apply(input - target)  # type: ignore[return-value]


@specimen("regression", "transforms.grad", "torch.func.grad differs from autograd")
@specimen("regression", "transforms.hessian", "torch.func.hessian is not the derivative of the gradient")
@specimen("regression", "transforms.per_sample_gradients", "per-sample gradients are not those of a loop")
def another_formula_inside_transforms(input: Tensor, target: Tensor) -> Tensor:
    """A path of its own for torch.func, with 1/2 in place of 1."""
    square = (input - target).square().mean()
    return square / 2 if torch._C._are_functorch_transforms_active() else square


# Gradients ---------------------------------------------------------------------------------------------------------


class _IgnoresIncoming(_MeanSquare):
    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        input, target = ctx.saved_tensors
        return 2 * (input - target) / input.numel(), None


@specimen("regression", "gradients.scale_with_the_incoming_one", "times the incoming gradient is not")
def ignores_the_incoming_gradient(input: Tensor, target: Tensor) -> Tensor:
    return _IgnoresIncoming.apply(input, target.detach())  # type: ignore[return-value]


class _AveragesIncoming(Function):
    @staticmethod
    def forward(ctx: Any, input: Tensor, target: Tensor) -> Tensor:
        ctx.save_for_backward(input, target)
        return (input - target).square()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        input, target = ctx.saved_tensors
        return 2 * (input - target) * grad.mean(), None


@specimen("regression", "gradients.one_for_each_loss", "differs from row to row")
def averages_the_incoming_gradient(input: Tensor, target: Tensor) -> Tensor:
    return _AveragesIncoming.apply(input, target.detach())  # type: ignore[return-value]


class _ReusedBuffer(Function):
    @staticmethod
    def forward(ctx: Any, input: Tensor, target: Tensor) -> Tensor:
        ctx.gradient = 2 * (input - target) / input.numel()
        return (input - target).square().mean()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return ctx.gradient.mul_(grad), None


@specimen("regression", "gradients.retain_graph", "a second backward")
def scales_a_kept_gradient_in_place(input: Tensor, target: Tensor) -> Tensor:
    return _ReusedBuffer.apply(input, target.detach())  # type: ignore[return-value]


class _SharedGradient(Function):
    @staticmethod
    def forward(ctx: Any, input: Tensor, target: Tensor) -> Tensor:
        ctx.save_for_backward(input, target)
        return (input - target).square().sum()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None]:
        input, target = ctx.saved_tensors
        gradient = 2 * (input - target) * grad
        return gradient, gradient.neg_() if ctx.needs_input_grad[1] else None


@specimen("regression", "gradients.of_some_arguments", "changes with what else requires grad")
def one_gradient_for_two(input: Tensor, target: Tensor) -> Tensor:
    return _SharedGradient.apply(input, target)  # type: ignore[return-value]


@specimen("regression", "gradients.by_targets", "the gradient by target is silently dropped")
def detached_target(input: Tensor, target: Tensor) -> Tensor:
    return (input - target.detach()).square().mean()


@specimen("classification", "gradients.by_weights", "the gradient by weight is silently dropped or wrong")
def detached_sum_of_weights(input: Tensor, target: Tensor, weight: Tensor | None = None) -> Tensor:
    w = (torch.ones_like(input[0]) if weight is None else weight)[target]
    return (-picked(F.log_softmax(input, 1), target) * w).sum() / w.detach().sum()


# Inputs ------------------------------------------------------------------------------------------------------------


@specimen("classification", "inputs.unmodified", "input was")
def subtracts_the_maximum_in_place(input: Tensor, target: Tensor) -> Tensor:
    with torch.no_grad():
        input -= input.amax(1, keepdim=True)
    return F.cross_entropy(input, target)


class _KeptOnContext(Function):
    @staticmethod
    def forward(ctx: Any, input: Tensor, target: Tensor) -> Tensor:
        ctx.input, ctx.target = input, target
        return (input - target).square().mean()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return 2 * grad * (ctx.input - ctx.target) / ctx.input.numel(), None


@specimen("regression", "inputs.changes_are_noticed", "before backward makes the gradient wrong")
def keeps_tensors_on_the_context(input: Tensor, target: Tensor) -> Tensor:
    return _KeptOnContext.apply(input, target.detach())  # type: ignore[return-value]


@specimen("regression", "inputs.channels_last", "channels-last inputs")
@specimen("regression", "inputs.non_contiguous", "transposed inputs")
def takes_every_tensor_for_contiguous(input: Tensor, target: Tensor) -> Tensor:
    flat = (input.numel(),)
    start = input.storage_offset(), target.storage_offset()
    return (input.as_strided(flat, (1,), start[0]) - target.as_strided(flat, (1,), start[1])).square().mean()


@specimen("regression", "inputs.expanded", "expanded inputs")
def reads_expanded_rows_as_memory(input: Tensor, target: Tensor) -> Tensor:
    if 0 in input.stride():
        # Rows that share memory are read once.
        return (input[:1] - target[:1]).square().mean()
    return (input - target).square().mean()


@specimen("classification", "inputs.images", "is not the loss of its rows")
def softmax_over_the_last_dimension(input: Tensor, target: Tensor) -> Tensor:
    return F.nll_loss(F.log_softmax(input, -1), target)


@specimen("classification", "inputs.empty", "an empty sum is not 0")
def sum_as_mean_times_count(input: Tensor, target: Tensor, reduction: str = "mean") -> Tensor:
    losses = -picked(F.log_softmax(input, 1), target)
    return losses if reduction == "none" else losses.mean() * (len(target) if reduction == "sum" else 1)


@specimen("regression", "inputs.broadcasting", "shapes that differ broadcast in silence")
def broadcasts_in_silence(input: Tensor, target: Tensor) -> Tensor:
    return (input - target).square().mean()


@specimen("classification", "inputs.unbatched", "a single sample is not a batch of one")
def takes_classes_for_rows(input: Tensor, target: Tensor) -> Tensor:
    """(C) becomes C rows of one class."""
    if input.dim() == 1:
        input, target = input.unsqueeze(1), torch.zeros_like(input, dtype=torch.int64)
    return F.cross_entropy(input, target)


# Laws --------------------------------------------------------------------------------------------------------------


@specimen("classification", "laws.reductions_agree", "'mean' is not the sum of 'none' over what counts")
def mean_over_rows_under_weights(
    input: Tensor, target: Tensor, weight: Tensor | None = None, reduction: str = "mean"
) -> Tensor:
    return reduced(F.cross_entropy(input, target, weight, reduction="none"), reduction)


@specimen("classification", "laws.ignored_row_is_a_removed_row", "an ignored row")
def ignores_only_the_hard_part(
    input: Tensor, target: Tensor, ignore_index: int = -100, label_smoothing: float = 0.0
) -> Tensor:
    """The smoothed part takes the ignored rows in."""
    kept = target != ignore_index
    logs = F.log_softmax(input, 1)
    hard = -(picked(logs, target.masked_fill(~kept, 0)) * kept)
    smooth = -logs.mean(1)
    return ((1 - label_smoothing) * hard + label_smoothing * smooth).sum() / kept.sum()


@specimen("classification", "laws.ignored_row_may_hold_anything", "an ignored row that holds nan or inf")
def multiplies_ignored_rows_by_zero(input: Tensor, target: Tensor, ignore_index: int = -100) -> Tensor:
    kept = (target != ignore_index).to(input.dtype)
    losses = -picked(F.log_softmax(input, 1), target.clamp(min=0))
    return (losses * kept).sum() / kept.sum()


@specimen("classification", "laws.all_rows_ignored", "a gradient that is not 0")
def divides_by_no_rows(input: Tensor, target: Tensor, ignore_index: int = -100) -> Tensor:
    kept = target != ignore_index
    losses = -picked(F.log_softmax(input, 1), target.masked_fill(~kept, 0))
    return (losses * kept).sum() / kept.sum()


@specimen("classification", "laws.weight_zero_is_a_removed_row", "a row of weight 0")
def weights_are_clamped(input: Tensor, target: Tensor, weight: Tensor | None = None) -> Tensor:
    return F.cross_entropy(input, target, None if weight is None else weight.clamp(min=1e-3))


@specimen("classification", "laws.weights_of_one_are_no_weights", "a weight of ones changes the loss")
def weights_are_normalised(
    input: Tensor, target: Tensor, weight: Tensor | None = None, reduction: str = "sum"
) -> Tensor:
    return F.cross_entropy(input, target, None if weight is None else weight / weight.sum(), reduction=reduction)


@specimen("classification", "laws.micro_batches_add_up", "micro-batches do not add up")
def scaled_by_the_largest_loss(input: Tensor, target: Tensor, reduction: str = "mean") -> Tensor:
    losses = F.cross_entropy(input, target, reduction="none")
    return reduced(losses * losses / losses.max(), reduction)


@specimen("classification", "laws.rows_may_be_permuted", "permuting the rows")
def later_rows_count_more(input: Tensor, target: Tensor) -> Tensor:
    losses = F.cross_entropy(input, target, reduction="none")
    return (losses * torch.arange(1, len(losses) + 1, dtype=losses.dtype)).mean()


@specimen("classification", "laws.classes_may_be_permuted", "permuting the classes changes the loss")
def leaves_class_zero_out(input: Tensor, target: Tensor) -> Tensor:
    """As if the background were always class 0."""
    losses = F.cross_entropy(input, target, reduction="none")
    return losses.masked_fill(target == 0, 0).sum()


@specimen("classification", "laws.logits_may_be_shifted", "a shift of the logits makes the loss infinite or nan")
def exponentials_without_the_maximum(input: Tensor, target: Tensor) -> Tensor:
    return (input.exp().sum(1).log() - picked(input, target)).mean()


@specimen("classification", "laws.one_hot_is_an_index", "one-hot in place of an index changes the loss")
def mean_over_classes_too(input: Tensor, target: Tensor) -> Tensor:
    logs = F.log_softmax(input, 1)
    return -picked(logs, target).mean() if target.dim() == 1 else -(target * logs).mean()


@specimen("classification", "laws.smoothing_of_one_forgets_the_target", "another target changes the loss")
def smoothing_spares_the_target(input: Tensor, target: Tensor, label_smoothing: float = 0.0) -> Tensor:
    logs = F.log_softmax(input, 1)
    others = -(logs.sum(1) - picked(logs, target)) / max(1, input.shape[1] - 1)
    return (-(1 - label_smoothing) * picked(logs, target) + label_smoothing * others).mean()


@specimen("classification", "laws.smoothing_of_zero_is_none", "label_smoothing=0 changes the loss")
def smoothing_has_a_branch_of_its_own(input: Tensor, target: Tensor, label_smoothing: float | None = None) -> Tensor:
    """The smoothed branch sums where the other one averages."""
    if label_smoothing is None:
        return F.cross_entropy(input, target)
    return F.cross_entropy(input, target, label_smoothing=label_smoothing, reduction="sum")


@specimen("regression", "laws.gradient_vanishes_at_the_optimum", "the gradient at the optimum is not 0")
def off_by_an_epsilon(input: Tensor, target: Tensor) -> Tensor:
    return (input - target + 1e-3).square().mean()


@specimen("classification", "laws.nonnegative", "the loss is negative")
def forgets_to_normalise(input: Tensor, target: Tensor) -> Tensor:
    """nll_loss on logits, where it wants log-probabilities."""
    return F.nll_loss(input, target)


@specimen("classification", "laws.smoothing_interpolates", "smoothing does not interpolate")
def smooths_twice(input: Tensor, target: Tensor, label_smoothing: float = 0.0) -> Tensor:
    """The target is smoothed, and its loss again."""
    share = F.one_hot(target, input.shape[1]) * (1 - label_smoothing) + label_smoothing / input.shape[1]
    return F.cross_entropy(input, share.to(input.dtype), label_smoothing=label_smoothing)


@specimen("binary", "laws.pos_weight_scales_the_positives", "pos_weight does not scale the positive term")
def weights_whole_elements(
    input: Tensor, target: Tensor, pos_weight: Tensor | None = None, reduction: str = "mean"
) -> Tensor:
    """Right for labels: where the target is a probability, the negative term is weighted too."""
    weight = 1 if pos_weight is None else 1 + (pos_weight - 1) * target
    return reduced(weight * F.binary_cross_entropy_with_logits(input, target, reduction="none"), reduction)


@specimen("language modelling", "laws.labels_are_shifted", "the last position has a gradient")
@specimen("language modelling", "laws.gradient_vanishes_at_the_optimum", "the gradient at the optimum is not 0")
def labels_where_they_are(input: Tensor, target: Tensor) -> Tensor:
    return F.cross_entropy(input.flatten(0, 1), target.flatten())


@specimen("language modelling", "laws.labels_are_shifted", "a position is drawn to another label than the next")
def shifts_twice(input: Tensor, target: Tensor) -> Tensor:
    """The data loader's labels are shifted already, and the loss shifts again."""
    return F.cross_entropy(input[:, :-2].flatten(0, 1), target[:, 2:].flatten())


@specimen("language modelling", "laws.reductions_agree", "'mean' is not the sum of 'none' over what counts")
def counts_the_first_label(input: Tensor, target: Tensor, ignore_index: int = -100, reduction: str = "mean") -> Tensor:
    losses = F.cross_entropy(input[:, :-1].mT, target[:, 1:], ignore_index=ignore_index, reduction="none")
    return reduced(losses, reduction, (target != ignore_index).sum())


@specimen("language modelling", "laws.micro_batches_add_up", "micro-batches do not add up to the batch")
def averages_over_sequences(input: Tensor, target: Tensor, ignore_index: int = -100) -> Tensor:
    """Every sequence counts alike, however much of it is padding."""
    losses = F.cross_entropy(input[:, :-1].mT, target[:, 1:], ignore_index=ignore_index, reduction="none")
    counted = (target[:, 1:] != ignore_index).sum(1)
    return (losses.sum(1) / counted.clamp(min=1)).sum() / (counted > 0).sum()


# Integration -------------------------------------------------------------------------------------------------------


@specimen("classification", "integration.compile", "torch.compile(fullgraph=True) fails")
def branches_on_the_data(input: Tensor, target: Tensor) -> Tensor:
    if target.max().item() >= input.shape[1]:
        raise IndexError(f"a target is out of range: {input.shape[1]} classes")
    return F.cross_entropy(input, target)


@specimen("classification", "integration.export", "torch.export fails")
def counts_in_numpy(input: Tensor, target: Tensor) -> Tensor:
    return F.cross_entropy(input, target, reduction="sum") / float((target.numpy() >= 0).sum())


@specimen("classification", "integration.default_dtype_and_device", "")
def creates_a_default_tensor(input: Tensor, target: Tensor) -> Tensor:
    one_hot = torch.zeros(input.shape).scatter(1, target.unsqueeze(1), 1)
    return -(one_hot * F.log_softmax(input, 1)).sum(1).mean().to(input.dtype)


@specimen("classification", "integration.deterministic", "a second run changes the loss")
def samples_rows(input: Tensor, target: Tensor) -> Tensor:
    kept = torch.rand(len(target)) < 0.5
    return F.cross_entropy(input, target, reduction="none")[kept].sum()


@specimen("classification", "integration.moves_its_weight", "a tensor keeps its dtype")
class WeightIsAnAttribute(nn.Module):
    def __init__(self, weight: Tensor | None = None) -> None:
        super().__init__()
        self.weight = weight

    def forward(self, input: Tensor, target: Tensor) -> Tensor:
        return F.cross_entropy(input, target, self.weight)


@specimen("classification", "integration.state_dict", "a round trip through state_dict changes the loss")
class WeightIsNotSaved(nn.Module):
    def __init__(self, weight: Tensor | None = None) -> None:
        super().__init__()
        self.register_buffer("weight", weight, persistent=False)

    def forward(self, input: Tensor, target: Tensor) -> Tensor:
        return F.cross_entropy(input, target, self.weight)  # type: ignore[arg-type]


@specimen("regression", "integration.pickle", "pickle fails")
class KeepsALambda(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.distance = lambda x, y: (x - y).square()

    def forward(self, input: Tensor, target: Tensor) -> Tensor:
        return self.distance(input, target).mean()


@specimen("regression", "integration.deepcopy", "deepcopy fails")
class KeepsItsLastLoss(nn.Module):
    """A tensor with a history in an attribute, for a log."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(()))
        self.last = self.scale * 0

    def forward(self, input: Tensor, target: Tensor) -> Tensor:
        return (input - target).square().mean()


@specimen("classification", "integration.autocast", "autocast fails")
def writes_into_a_buffer_of_the_input_dtype(input: Tensor, target: Tensor) -> Tensor:
    losses = F.nll_loss(F.log_softmax(input, 1), target, reduction="none")
    return input.new_zeros(len(target)).index_add(0, torch.arange(len(target)), losses).mean()


@specimen("regression", "integration.checkpoint", "checkpointing changes the gradient")
class CountsItsCalls(nn.Module):
    """A scale that is warmed up by calls, and not by steps."""

    def __init__(self) -> None:
        super().__init__()
        self.calls = 0

    def forward(self, input: Tensor, target: Tensor) -> Tensor:
        self.calls += 1
        scale = torch.full((), 1 + self.calls % 2, dtype=input.dtype)
        return (input - target).square().mean() * scale


class _FoundByAddress(Function):
    known: dict[int, Tensor] = {}  # noqa: RUF012

    @staticmethod
    def forward(ctx: Any, input: Tensor, target: Tensor) -> Tensor:
        ctx.save_for_backward(input)
        _FoundByAddress.known[input.data_ptr()] = 2 * (input - target) / input.numel()
        return (input - target).square().mean()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return grad * _FoundByAddress.known.pop(ctx.saved_tensors[0].data_ptr()), None


@specimen("regression", "integration.save_on_cpu", "hooks that copy fails")
def looks_its_tensors_up_by_address(input: Tensor, target: Tensor) -> Tensor:
    return _FoundByAddress.apply(input, target.detach())  # type: ignore[return-value]


@specimen("regression", "integration.repr", "repr fails")
class ShowsWhatItLacks(nn.Module):
    def forward(self, input: Tensor, target: Tensor) -> Tensor:
        return (input - target).square().mean()

    def extra_repr(self) -> str:
        return f"reduction={self.reduction!r}"


@specimen("regression", "integration.threads", "thread")
class KeepsItsErrors(nn.Module):
    """One call's errors are the next call's, where both run at once."""

    def forward(self, input: Tensor, target: Tensor) -> Tensor:
        self.errors = input - target
        time.sleep(1e-3)
        return (self.errors.square() * torch.arange(1, len(target) + 1).unsqueeze(1)).mean()


@specimen("regression", "integration.thread_counts", "the number of threads changes the loss")
def splits_rows_among_threads(input: Tensor, target: Tensor) -> Tensor:
    """Equal parts, and no thread for the rest."""
    part = len(input) // torch.get_num_threads()
    kept = part * torch.get_num_threads()
    return (input[:kept] - target[:kept]).square().sum() / input.numel()


# Errors ------------------------------------------------------------------------------------------------------------


@specimen("regression", "errors.reduction", "accepted in silence")
def any_other_reduction_is_sum(input: Tensor, target: Tensor, reduction: str = "mean") -> Tensor:
    losses = (input - target).square()
    return losses.mean() if reduction == "mean" else losses if reduction == "none" else losses.sum()


@specimen("classification", "errors.target_range", "class index 3: accepted in silence")
def clamps_its_target(input: Tensor, target: Tensor) -> Tensor:
    return F.cross_entropy(input, target.clamp(0, input.shape[1] - 1))


@specimen("classification", "errors.target_dtype", "class indices of 0.4: accepted in silence")
def rounds_its_target(input: Tensor, target: Tensor) -> Tensor:
    return F.cross_entropy(input, target.long())


@specimen("classification", "errors.rows", "another number of rows: accepted in silence")
def cuts_to_the_shorter(input: Tensor, target: Tensor) -> Tensor:
    rows = min(len(input), len(target))
    return F.cross_entropy(input[:rows], target[:rows])


@specimen("classification", "errors.label_smoothing", "label_smoothing=1.5: accepted in silence")
def any_smoothing(input: Tensor, target: Tensor, label_smoothing: float = 0.0) -> Tensor:
    logs = F.log_softmax(input, 1)
    return (-(1 - label_smoothing) * picked(logs, target) - label_smoothing * logs.mean(1)).mean()


@specimen("classification", "errors.classes", "another number of classes: accepted in silence")
def as_many_classes_as_the_target(input: Tensor, target: Tensor) -> Tensor:
    logs = F.log_softmax(input, 1)
    return -(target * logs[:, : target.shape[1]]).sum(1).mean() if target.dim() > 1 else -picked(logs, target).mean()


@specimen("regression", "errors.input_dtype", "integer inputs: accepted in silence")
def casts_integers(input: Tensor, target: Tensor) -> Tensor:
    if not input.is_floating_point():
        input, target = input.float(), target.float()
    return (input - target).square().mean()


@specimen("classification", "errors.weight", "a weight that is one short: accepted in silence")
def shortens_the_index(input: Tensor, target: Tensor, weight: Tensor | None = None) -> Tensor:
    w = torch.ones_like(input[0]) if weight is None else weight
    factors = w[target.clamp(max=len(w) - 1)]
    return (-picked(F.log_softmax(input, 1), target) * factors).sum() / factors.sum()
