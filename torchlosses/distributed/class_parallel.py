"""Cross-entropy over classes that are split over processes: the functions and modules; `_split` has the mathematics."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, overload

import torch
import torch.distributed as dist
from torch import Tensor

from torchlosses import _validation
from torchlosses._options import CallOptions, FurtherOptions, RowStatistics, statistics_of
from torchlosses._rows import (
    autocast_enabled,
    compute_dtype,
    from_rows,
    indices_to_rows,
    result_dtype,
    row_shape,
    to_rows,
)
from torchlosses.cross_entropy import cross_entropy
from torchlosses.distributed import _agreement, _dtensors
from torchlosses.distributed._split import LinearOptions, Options, SplitCrossEntropy, SplitLinearCrossEntropy
from torchlosses.kernels.linear import default_block_rows, product_dtype
from torchlosses.linear_cross_entropy import LowRank, linear_cross_entropy

if TYPE_CHECKING:
    from typing_extensions import Unpack

_of_whole: Any = cross_entropy
_of_whole_linear: Any = linear_cross_entropy


class ModuleOptions(FurtherOptions, total=False):
    """What the modules take beside what cross-entropies take, for their type."""

    group: dist.ProcessGroup | None
    ignore_index: int
    reduction: _validation.Reduction
    label_smoothing: float


class _CallOptions(ModuleOptions, CallOptions, total=False):
    pass


@overload
def class_parallel_cross_entropy(
    input: Tensor,
    target: Tensor,
    weight: Tensor | None = None,
    *,
    return_stats: Literal[False] = False,
    **options: Unpack[_CallOptions],
) -> Tensor: ...


@overload
def class_parallel_cross_entropy(
    input: Tensor,
    target: Tensor,
    weight: Tensor | None = None,
    *,
    return_stats: Literal[True],
    **options: Unpack[_CallOptions],
) -> tuple[Tensor, RowStatistics]: ...


@overload
def class_parallel_cross_entropy(
    input: Tensor,
    target: Tensor,
    weight: Tensor | None = None,
    *,
    return_stats: bool,
    **options: Unpack[_CallOptions],
) -> Tensor | tuple[Tensor, RowStatistics]: ...


def class_parallel_cross_entropy(
    input: Tensor,
    target: Tensor,
    weight: Tensor | None = None,
    *,
    group: dist.ProcessGroup | None = None,
    ignore_index: int = -100,
    reduction: _validation.Reduction = "mean",
    label_smoothing: float = 0.0,
    normalizer: Tensor | float | None = None,
    sample_weight: Tensor | None = None,
    empty: _validation.Empty = "nan",
    z_loss: float = 0.0,
    logit_scale: float = 1.0,
    logit_softcap: float | None = None,
    loss_dtype: torch.dtype | None = None,
    return_stats: bool = False,
    gradient: _validation.Gradient = "forward",
) -> Tensor | tuple[Tensor, RowStatistics]:
    r"""`torchlosses.cross_entropy` of logits whose classes are split over processes, in nats.

    .. math:: \text{loss}_n = -\sum_c w_c \left((1-\varepsilon)\, t_{nc} + \frac{\varepsilon}{C}\right)
        \log \frac{\exp x_{nc}}{\sum_j \exp x_{nj}} + \lambda \Big(\log \sum_j \exp x_{nj}\Big)^2

    over the classes of all processes. The value, the same in each of them, is that of one process with all classes; the
    gradient is that of this process's logits. Some five numbers a row are sent, whatever the number of classes. Every
    process of the group has to call this, with the same rows, targets and options; `docs/distributed.md` lists what
    they must agree on, and how tensor and data parallel go together.

    Args:
        input: This process's logits, of shape (C_p), (N, C_p) or (N, C_p, d1, ...), the classes in the order of the
            processes, any number of them in each; or a DTensor with `Shard` on the class dimension.
        target: Class indices of shape (), (N) or (N, d1, ...) that count over all classes, the same in each process; or
            this process's class probabilities, of the shape of `input`, split like it.
        weight: One factor a class, of shape (C), for all classes, in each process.
        group: The processes that have the classes. None is all of them; for a DTensor, those of its mesh.
        ignore_index: As in `torchlosses.cross_entropy`, and so are all further options.
        reduction: 'mean', 'sum' or 'none'.
        label_smoothing: ε in [0, 1].
        normalizer: What 'mean' divides by.
        sample_weight: One weight a row, the same in each process.
        empty: What a mean over nothing gives: 'nan' or 'zero'.
        z_loss: λ.
        logit_scale: A factor of the logits, before the soft cap.
        logit_softcap: c of x -> c tanh(x / c).
        loss_dtype: The dtype of the result.
        return_stats: Whether to return a `RowStatistics` beside the loss.
        gradient: Whether the gradient by `input` is computed along with the loss, 'forward', or in the 'backward'.
            Either way it needs no further number from the other processes.

    Returns:
        As `torchlosses.cross_entropy`; of a DTensor, a DTensor with `Replicate`. Dtypes as there.

    Raises:
        RuntimeError: The processes do not agree on the rows, the dtypes, the targets or an option, or an argument is
            wrong in one of them: then all of them raise. `weight`, `sample_weight`, `normalizer` or class probabilities
            require grad in some of the processes only; a second derivative is asked for where `input` does. And as
            `torchlosses.cross_entropy`.
        ValueError: The DTensor is not split along its class dimension; this process is none of the group; and as
            `torchlosses.cross_entropy`.
        IndexError: A class index is out of bounds (on the CPU).

    Edge cases: as for `torchlosses.cross_entropy`. A process may have no class, and so may all of them.
    Differentiable to all orders with respect to all floating-point tensors, also DTensors, and in forward mode
    (plain tensors); every process asks for the same derivatives. Each process calls backward on what it makes of its
    own part of a gradient: together they count as the sum. vmap raises. `torch.compile` breaks the graph where the
    processes agree; a second derivative of what it compiled raises.

    Example:
        >>> import torch
        >>> from torchlosses.distributed import class_parallel_cross_entropy
        >>> class_parallel_cross_entropy(torch.zeros(2, 4), torch.tensor([3, 0]))  # one process that has all classes
        tensor(1.3863)

    Source: M. Shoeybi et al., *Megatron-LM* (2019), section 3, for class indices.
    """
    name = "class_parallel_cross_entropy"
    options = {
        "reduction": reduction, "ignore_index": ignore_index, "label_smoothing": label_smoothing,
        "normalizer": normalizer, "sample_weight": sample_weight, "empty": empty, "z_loss": z_loss,
        "logit_scale": logit_scale, "logit_softcap": logit_softcap, "loss_dtype": loss_dtype,
        "return_stats": return_stats, "gradient": gradient,
    }  # fmt: skip
    if _dtensors.any_of(input, target, weight, sample_weight, normalizer):
        _dtensors.check_split(name, group, input, "input", min(1, input.dim() - 1))
        return _of_whole(input, target, weight, **options)
    with _agreement.telling(name, group, input, target):
        _validation.check_tensors(name, input=input, target=target)
        _validation.check_floating_input(name, input)
        _validation.check_classification_shapes(name, input, target)
        _validation.check_same_device(name, input, target=target, weight=weight, sample_weight=sample_weight)
        _validation.check_cross_entropy_target(input, target, ignore_index)
        call = _Call(name, input, target, weight, row_shape(input), target.shape != input.shape, options)
        settings = call.settings()
    agreed = call.agree(group, settings, input.shape[min(1, input.dim() - 1)], split={"input": input})
    losses, state = SplitCrossEntropy.apply(
        to_rows(input),
        indices_to_rows(target.to(torch.int64)) if call.indices else to_rows(target),
        weight,
        None if sample_weight is None else indices_to_rows(call.of_rows(sample_weight)),
        normalizer=_validation.check_normalizer(normalizer, reduction),
        options=Options(*settings.values(), *agreed.of_operator()),
    )
    loss = from_rows(losses, input) if reduction == "none" else losses
    if state is None:
        return loss
    return loss, statistics_of(from_rows(field, input) for field in state.unbind())


class _LinearCallOptions(_CallOptions, total=False):
    linear_bias: Tensor | None
    weight: Tensor | None
    low_rank: LowRank | None
    block_rows: int | None


@overload
def class_parallel_linear_cross_entropy(
    input: Tensor,
    linear_weight: Tensor,
    target: Tensor,
    *,
    return_stats: Literal[False] = False,
    **options: Unpack[_LinearCallOptions],
) -> Tensor: ...


@overload
def class_parallel_linear_cross_entropy(
    input: Tensor,
    linear_weight: Tensor,
    target: Tensor,
    *,
    return_stats: Literal[True],
    **options: Unpack[_LinearCallOptions],
) -> tuple[Tensor, RowStatistics]: ...


@overload
def class_parallel_linear_cross_entropy(
    input: Tensor,
    linear_weight: Tensor,
    target: Tensor,
    *,
    return_stats: bool,
    **options: Unpack[_LinearCallOptions],
) -> Tensor | tuple[Tensor, RowStatistics]: ...


def class_parallel_linear_cross_entropy(
    input: Tensor,
    linear_weight: Tensor,
    target: Tensor,
    *,
    linear_bias: Tensor | None = None,
    weight: Tensor | None = None,
    group: dist.ProcessGroup | None = None,
    ignore_index: int = -100,
    reduction: _validation.Reduction = "mean",
    label_smoothing: float = 0.0,
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
) -> Tensor | tuple[Tensor, RowStatistics]:
    r"""`torchlosses.linear_cross_entropy` of a linear layer whose classes are split over processes, in nats.

    .. math:: \text{loss}_n = -\sum_c w_c \left((1-\varepsilon)\, t_{nc} + \frac{\varepsilon}{C}\right)
        \log \frac{\exp y_{nc}}{\sum_j \exp y_{nj}} + \lambda \Big(\log \sum_j \exp y_{nj}\Big)^2,
        \qquad y_n = W x_n + b

    over the classes of all processes. The value and the gradient by `input`, the same in each of them, are those of one
    process with all classes; the gradients by `linear_weight` and `linear_bias` are those of this process's classes.
    Some five numbers a row are sent, and for the gradient a row's features. This process's logits exist for a block of
    rows at a time. Every process of the group has to call this, with the same rows, targets and options.

    Args:
        input: Features of shape (..., features), the same in each process; or a DTensor.
        linear_weight: This process's rows of W, of shape (C_p, features), the classes in the order of the processes;
            or a DTensor with `Shard(0)`.
        target: Class indices of the shape of `input` without features that count over all classes; or this process's
            class probabilities, of shape (..., C_p).
        linear_bias: b of shape (C_p), split like `linear_weight`.
        weight: One factor a class, of shape (C), for all classes, in each process.
        group: The processes that have the classes. None is all of them; for a DTensor, those of its mesh.
        ignore_index: As in `torchlosses.linear_cross_entropy`, and so are all further options.
        reduction: 'mean', 'sum' or 'none'.
        label_smoothing: ε in [0, 1].
        normalizer: What 'mean' divides by.
        sample_weight: One weight a row, the same in each process.
        empty: What a mean over nothing gives: 'nan' or 'zero'.
        z_loss: λ.
        logit_scale: A factor of the logits, before the soft cap.
        logit_softcap: c of y -> c tanh(y / c).
        loss_dtype: The dtype of the result.
        low_rank: (A, B, r) of a low-rank term of the weight, A the same in each process, B split like `linear_weight`.
        return_stats: Whether to return a `RowStatistics` beside the loss.
        block_rows: How many rows are worked on at a time, the same in each process.
        gradient: Whether the gradients by `input`, `linear_weight`, `linear_bias` and `low_rank` are computed along
            with a loss that is one number, 'forward', in three products, or in the 'backward', in four.

    Returns:
        As `torchlosses.linear_cross_entropy`; of a DTensor, a DTensor with `Replicate`. Dtypes as there.

    Raises:
        RuntimeError: The processes do not agree on the rows, the dtypes, the targets or an option, or an argument is
            wrong in one of them: then all of them raise. `input`, A, `weight`, `sample_weight`, `normalizer` or class
            probabilities require grad in some of the processes only; a second derivative is asked for where
            `linear_weight`, `linear_bias` or B does. And as `torchlosses.linear_cross_entropy`.
        ValueError: The DTensor is not split along its classes; this process is none of the group; and as
            `torchlosses.linear_cross_entropy`.
        IndexError: A class index is out of bounds (on the CPU).

    Edge cases: as for `torchlosses.linear_cross_entropy`. A process may have no class, and so may all of them.
    Differentiable as `class_parallel_cross_entropy` is; beyond the gradient the logits are computed again, block by
    block too.

    Example:
        >>> import torch
        >>> from torchlosses.distributed import class_parallel_linear_cross_entropy
        >>> class_parallel_linear_cross_entropy(torch.ones(2, 8), torch.zeros(4, 8), torch.tensor([3, 0]))
        tensor(1.3863)

    Source: as for `class_parallel_cross_entropy`.
    """
    name, pair = "class_parallel_linear_cross_entropy", _validation.pair_of(low_rank)
    options = {
        "reduction": reduction, "ignore_index": ignore_index, "label_smoothing": label_smoothing,
        "normalizer": normalizer, "sample_weight": sample_weight, "empty": empty, "z_loss": z_loss,
        "logit_scale": logit_scale, "logit_softcap": logit_softcap, "loss_dtype": loss_dtype,
        "return_stats": return_stats, "gradient": gradient,
    }  # fmt: skip
    if _dtensors.any_of(input, linear_weight, target, linear_bias, weight, sample_weight, normalizer, *pair):
        _dtensors.check_split(name, group, linear_weight, "linear_weight", 0)
        of_layer = {"linear_bias": linear_bias, "low_rank": low_rank, "block_rows": block_rows}
        return _of_whole_linear(input, linear_weight, target, weight=weight, **of_layer, **options)
    with _agreement.telling(name, group, input, linear_weight):
        others = {"target": target, "weight": weight, "sample_weight": sample_weight}
        dim = _validation.check_product(name, input, linear_weight, linear_bias, -1, **others)
        if linear_weight.dim() != 2:
            raise RuntimeError(f"{name}: expected linear_weight (classes, features), got {tuple(linear_weight.shape)}.")
        a, b, low_rank_scale = _validation.check_low_rank(name, input, linear_weight, low_rank, dim)
        block_rows = _validation.check_block_rows(block_rows)
        shape, own = input.shape[:-1], linear_weight.shape[0]
        indices = _validation.check_linear_target(name, target, [*shape], [*shape, own], ignore_index)
        call = _Call(name, input, target, weight, shape, indices, options)
        settings = call.settings()
    dtype = product_dtype(input)
    agreed = call.agree(
        group,
        settings,
        own,
        split={"linear_weight": linear_weight, "linear_bias": linear_bias, "B of low_rank": b},
        replicated={"input": input, "A of low_rank": a},
        same={
            "product dtype": dtype, "low_rank": None if a is None else low_rank_scale,
            "features": input.shape[-1], "block_rows": block_rows,
        },
    )  # fmt: skip
    count = math.prod(shape)
    if block_rows is None:
        block_rows = default_block_rows(agreed.most, dtype.itemsize, input.device.type, count)
    of_product = (dtype, low_rank_scale, block_rows, False, False)
    loss, state = SplitLinearCrossEntropy.apply(
        input.reshape(count, input.shape[-1]),
        linear_weight,
        linear_bias,
        a,
        b,
        target.reshape(count).to(torch.int64) if indices else target.reshape(count, own),
        weight,
        None if sample_weight is None else call.of_rows(sample_weight).reshape(count),
        normalizer=_validation.check_normalizer(normalizer, reduction),
        options=LinearOptions(*settings.values(), *agreed.of_operator(), *of_product),
    )
    loss = loss.reshape(shape) if reduction == "none" else loss
    if state is None:
        return loss
    return loss, statistics_of(field.reshape(shape) for field in state.unbind())


# The options of the cross-entropy by the names that the caller knows, in the order of their record.
_RECORD = (
    *("reduction", "empty", "loss_dtype", "gradient", "ignore_index", "label_smoothing", "z_loss", "logit_scale"),
    *("logit_softcap", "return_stats", "inplace_backward"),
)


@dataclass
class _Call:
    """What both functions are given, and what is checked and agreed on in the same way."""

    function: str
    input: Tensor
    target: Tensor
    weight: Tensor | None
    rows: torch.Size
    indices: bool
    options: dict[str, Any]

    def settings(self) -> dict[str, Any]:
        """The options of the cross-entropy, each checked."""
        options, input = _validation.checked(self.options), self.input
        _validation.check_normalizer(options["normalizer"], options["reduction"])
        dtype = input.dtype if self.indices else torch.promote_types(input.dtype, self.target.dtype)
        if self.weight is not None:
            self._check_weight(self.weight.shape[0] if self.weight.dim() else 0)
            dtype = torch.promote_types(dtype, self.weight.dtype)
        if options["sample_weight"] is not None:
            _validation.check_sample_weight(self.function, options["sample_weight"], self.rows)
        options |= {
            "empty": 0.0 if options["empty"] == "zero" else math.nan,
            "loss_dtype": result_dtype(options["loss_dtype"], dtype, input.device),
            "gradient": int(options["gradient"] == "forward"),
            "return_stats": bool(options["return_stats"]),
            "inplace_backward": False,
        }
        return {name: options[name] for name in _RECORD}

    def agree(
        self,
        group: dist.ProcessGroup | None,
        settings: Mapping[str, Any],
        classes: int,
        *,
        split: Mapping[str, Any],
        replicated: Mapping[str, Any] | None = None,
        same: Mapping[str, Any] | None = None,
    ) -> _agreement.Classes:
        """What the processes have together, after the checks that need to know it; they fail in all or in none."""
        function, input, target, weight = self.function, self.input, self.target, self.weight
        further = {name: self.options[name] for name in ("sample_weight", "normalizer")}
        described = {
            "the shape of the rows": tuple(self.rows),
            "the dtype of input": input.dtype,
            "the kind of target": "class indices" if self.indices else f"probabilities of {target.dtype}",
            "weight": None if weight is None else (tuple(weight.shape), weight.dtype),
            **{name: value.dtype if isinstance(value, Tensor) else value for name, value in further.items()},
        }
        agreed = _agreement.agree(
            function,
            group,
            input.device,
            classes,
            target,
            split={**split, "target": target},
            replicated={"weight": weight, **further, **(replicated or {})},
            same={**described, **settings, **(same or {})},
        )
        if self.indices and target.device.type == "cpu":
            _validation.check_indices_in_range(target, agreed.total, settings["ignore_index"])
        self._check_weight(agreed.total)
        return agreed

    def _check_weight(self, classes: int) -> None:
        if self.weight is not None:
            autocast = autocast_enabled(self.input.device)
            _validation.check_weight_of_classes(
                classes, self.input.dtype, self.indices, self.weight, autocast, self.function
            )

    def of_rows(self, sample_weight: Tensor) -> Tensor:
        """One for each row, in the dtype of the computation."""
        return sample_weight.to(compute_dtype(self.input, self.target, self.weight)).expand(self.rows)
