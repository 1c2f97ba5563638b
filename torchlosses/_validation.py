"""Every check a caller can trip, and its message. No mathematics.

The error types are those of the torch.nn namesakes, so that code which catches them keeps working.
"""

from __future__ import annotations

import math
import operator
import warnings
from collections.abc import Callable
from functools import partial
from typing import Any, Literal, NoReturn, get_args

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad

from torchlosses._pytorch import transforms_active
from torchlosses._rows import autocast_enabled
from torchlosses.kernels.eager import check_dense

Reduction = Literal["none", "mean", "sum"]
Broadcast = Literal["warn", "error", "allow"]
Empty = Literal["nan", "zero"]
Gradient = Literal["forward", "backward"]
Divergence = Literal["forward", "reverse", "jensen-shannon"]
TopKRest = Literal["merge", "renormalize"]

REDUCTIONS, BROADCASTS, GRADIENTS = get_args(Reduction), get_args(Broadcast), get_args(Gradient)
# How far the probabilities of a row's k largest, which were rounded, may sum to more than 1.
TOP_K_TOLERANCE = 0.02
_FLOATS = frozenset({torch.float16, torch.bfloat16, torch.float32, torch.float64})
_TYPES = ("Float", "Double", "Half", "BFloat16", "Long", "Int", "Short", "Char", "Byte", "Bool")
_NAMES = {torch.complex64: "ComplexFloat", torch.complex128: "ComplexDouble"}
_NAMES |= {getattr(torch, f"{name}Tensor").dtype: name for name in _TYPES}
_INTEGERS = frozenset(
    {torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64, torch.uint16, torch.uint32, torch.uint64}
)


def is_integer(dtype: torch.dtype) -> bool:
    """Whether `dtype` can hold class indices."""
    return dtype in _INTEGERS


# Which of these types torch raises depends on its version, and on where it notices.


class OptionError(ValueError, RuntimeError):
    """An option has a value that it cannot have."""


class ShapeError(ValueError, RuntimeError, IndexError):
    """The dimensions do not fit."""


class WrongTypeError(TypeError, AttributeError):
    """An argument has a type that it cannot have, such as no tensor."""


def _one_of(name: str, values: tuple[str, ...]) -> Callable[[Any], Any]:
    """The check of an option that has one of these values."""

    def check(value: Any) -> Any:
        if value not in values:
            expected = ", ".join(map(repr, values))
            raise ValueError(f"{value!r} is not a valid value for {name}: expected one of {expected}.")
        return value

    return check


check_reduction = _one_of("reduction", REDUCTIONS)
check_broadcast_option = _one_of("broadcast", BROADCASTS)
check_gradient_option = _one_of("gradient", GRADIENTS)
check_empty = _one_of("empty", get_args(Empty))
_check_divergence = _one_of("divergence", get_args(Divergence))
_check_top_k_rest = _one_of("top_k_rest", get_args(TopKRest))


def _number(name: str, value: float) -> float:
    if isinstance(value, float):
        return value
    if type(value) is int:
        return float(value)
    if isinstance(value, (str, bytes)) or not hasattr(value, "__float__"):
        raise TypeError(f"{name} must be a float, but got {value!r}.")
    if isinstance(value, Tensor) and value.requires_grad and torch.is_grad_enabled():
        raise TypeError(
            f"{name} must be a float, by which nothing is derived, but got a tensor that requires grad: call .item(),"
            " or multiply it into a tensor argument where it is trained."
        )
    return float(value)


# The numbers that an option may be, in words.
_RANGES: dict[str, Callable[[float], bool]] = {
    "finite": lambda value: -math.inf < value < math.inf,
    "finite and not negative": lambda value: 0.0 <= value < math.inf,
    "positive and finite": lambda value: 0.0 < value < math.inf,
    "between 0.0 and 1.0": lambda value: 0.0 <= value <= 1.0,
    "between 0 and 1, both excluded": lambda value: 0.0 < value < 1.0,
}


def _number_that_is(
    expected: str, name: str, hint: str = "", error: type[Exception] = ValueError
) -> Callable[..., float]:
    """The check of an option that is a number of that range; the option may have other names too."""
    holds = _RANGES[expected]

    def check(value: float, name: str = name) -> float:
        value = _number(name, value)
        if not holds(value):
            raise error(f"{name} must be {expected}, but got {value}{hint}.")
        return value

    return check


check_label_smoothing = _number_that_is("between 0.0 and 1.0", "label_smoothing", error=OptionError)
check_delta = _number_that_is("finite and not negative", "delta", "; the textbook's value is 1e-7")
check_huber_delta = _number_that_is("positive and finite", "delta", "; 1.0 is the usual value", OptionError)
check_beta = _number_that_is("finite and not negative", "beta", "; 1.0 is the usual value", OptionError)
check_temperature = _number_that_is("positive and finite", "temperature", "; 1.0 is none")
check_z_loss = _number_that_is("finite and not negative", "z_loss", "; 1e-4 is a usual value")
check_logit_scale = _number_that_is("finite", "logit_scale", "; 1.0 leaves the logits as they are")
_check_soft_cap = _number_that_is("positive and finite", "logit_softcap", "; None leaves the logits as they are")
_check_low_rank_scale = _number_that_is("finite", "the scale of low_rank")
_check_normalizer_number = _number_that_is("finite and not negative", "normalizer")
_check_mixture = _number_that_is(
    "between 0 and 1, both excluded",
    "beta",
    ": the Jensen-Shannon divergence is 0 there. What it tends to, divided by beta or 1 - beta, are "
    "divergence='forward' and 'reverse'",
)


def check_logit_softcap(logit_softcap: float | None, name: str = "logit_softcap") -> float | None:
    return None if logit_softcap is None else _check_soft_cap(logit_softcap, name)


def _integer(name: str, value: int, expected: str = "an int", hint: str = "") -> int:
    try:
        # The compiler would make a constant of a number that changes from call to call.
        return value if type(value) is int else operator.index(value)
    except TypeError:
        raise TypeError(f"{name} must be {expected}, but got {value!r}{hint}.") from None


def check_ignore_index(ignore_index: int) -> int:
    hint = "; to ignore no row, leave it at its default of -100"
    ignore_index = _integer("ignore_index", ignore_index, hint=hint)
    if not -(2**63) <= ignore_index < 2**63:
        raise OptionError(f"ignore_index must be a class index or another int of 64 bits, but got {ignore_index}.")
    return ignore_index


def check_dim(dim: int, of: str = "classes") -> int:
    return _integer("dim", dim, f"an int, the dimension of the {of}")


def check_block_rows(block_rows: int | None) -> int | None:
    if block_rows is None:
        return None
    block_rows = _integer("block_rows", block_rows, "an int or None")
    if block_rows < 1:
        raise ValueError(f"block_rows must be at least 1, but got {block_rows}; None chooses.")
    return block_rows


def check_loss_dtype(loss_dtype: torch.dtype | None) -> torch.dtype | None:
    if loss_dtype is not None and loss_dtype not in _FLOATS:
        raise TypeError(f"loss_dtype must be a floating-point dtype or None, but got {loss_dtype!r}.")
    return loss_dtype


# The check of each option that stands for itself.
CHECKS: dict[str, Callable[[Any], Any]] = {
    "reduction": check_reduction,
    "empty": check_empty,
    "broadcast": check_broadcast_option,
    "gradient": check_gradient_option,
    "label_smoothing": check_label_smoothing,
    "ignore_index": check_ignore_index,
    "delta": check_delta,
    "dim": check_dim,
    "z_loss": check_z_loss,
    "logit_scale": check_logit_scale,
    "logit_softcap": check_logit_softcap,
    "loss_dtype": check_loss_dtype,
    "beta": check_beta,
    "temperature": check_temperature,
    "block_rows": check_block_rows,
    "student_logit_scale": partial(check_logit_scale, name="student_logit_scale"),
    "student_logit_softcap": partial(check_logit_softcap, name="student_logit_softcap"),
    "teacher_logit_scale": lambda value: None if value is None else check_logit_scale(value, "teacher_logit_scale"),
    "teacher_logit_softcap": partial(check_logit_softcap, name="teacher_logit_softcap"),
}


def checked(options: dict[str, Any]) -> dict[str, Any]:
    """Options by name, each after its check."""
    return {name: CHECKS[name](value) if name in CHECKS else value for name, value in options.items()}


def check_legacy_arguments(size_average: object, reduce: object) -> None:
    if size_average is not None or reduce is not None:
        raise TypeError(
            f"size_average and reduce (got size_average={size_average!r}, reduce={reduce!r}) are not supported: "
            "use reduction='mean' (both True), reduction='sum' (size_average=False) or reduction='none' (reduce=False)."
        )


def check_binary(function: str, input: Tensor, target: Tensor) -> None:
    """Logits and probabilities, both floats of one shape."""
    if input.shape != target.shape:
        raise ValueError(
            f"{function}: Target size ({tuple(target.shape)}) must be the same as input size ({tuple(input.shape)})."
        )
    check_floating_input(function, input)
    if target.dtype not in _FLOATS:
        raise NotImplementedError(
            f"{function}: expected a floating-point target, got {_name(target.dtype)}: call .to(input.dtype)."
        )


def check_broadcasting_weight(function: str, name: str, weight: Tensor, shape: torch.Size) -> Tensor:
    """A real factor of each element, as a view of that shape."""
    _check_real(function, name, weight)
    try:
        return weight.expand(shape)
    except RuntimeError:
        raise RuntimeError(
            f"{function}: {name} of shape {tuple(weight.shape)} does not broadcast to the input's, {tuple(shape)}."
        ) from None


def check_tensors(function: str, **arguments: object) -> None:
    for name, argument in arguments.items():
        if not isinstance(argument, Tensor):
            raise WrongTypeError(f"{function}: {name} must be a Tensor, but got {type(argument).__name__}.")
        if argument.is_nested:
            check_jagged(function, name, argument)
        check_dense(function, name, argument)


def check_jagged(function: str, name: str, tensor: Tensor) -> None:
    """A nested tensor is one that the loss can take."""
    if tensor.layout is not torch.jagged:
        raise NotImplementedError(
            f"{function}: {name} is a nested tensor of strided layout, which has no sizes. Make it with "
            "layout=torch.jagged, or give .to_padded_tensor(...) and a sample_weight of 0 for the padding."
        )
    if function.startswith("linear_") or function == "log_probs":
        raise NotImplementedError(
            f"{function}: {name} is a nested tensor: give the values of each, {name}.values() here, and "
            "torch.nested.nested_tensor_from_jagged(result, offsets) makes a nested tensor of what there is a row."
        )


def check_same_device(function: str, input: Tensor, **others: Tensor | None) -> None:
    for name, other in others.items():
        if other is None:
            continue
        check_tensors(function, **{name: other})
        if other.device != input.device:
            raise RuntimeError(
                f"{function}: expected input and {name} on the same device, but input is on {input.device} and {name} "
                f"on {other.device}. Move one of them with .to(...)."
            )


def check_floating_input(function: str, input: Tensor, name: str = "input") -> None:
    if input.dtype not in _FLOATS:
        raise NotImplementedError(
            f'"{function}" not implemented for {_name(input.dtype)} {name}: expected float32, float64, bfloat16 or '
            "float16. Convert it with .float()."
        )


def _check_real(function: str, name: str, tensor: Tensor, error: type[Exception] = RuntimeError) -> None:
    if tensor.dtype.is_complex:
        raise error(f"{function}: expected a real {name}, got {_name(tensor.dtype)}.")


def check_elementwise_dtypes(function: str, input: Tensor, target: Tensor) -> None:
    for name, tensor in (("input", input), ("target", target)):
        if tensor.dtype not in _FLOATS and not is_integer(tensor.dtype) and tensor.dtype != torch.bool:
            raise NotImplementedError(
                f'"{function}" not implemented for {_name(tensor.dtype)} {name}: expected float32, float64, bfloat16 '
                "or float16. Convert it with .float(), and complex numbers with torch.view_as_real."
            )
    if not (input.dtype.is_floating_point or target.dtype.is_floating_point):
        raise NotImplementedError(
            f'"{function}" not implemented for {_name(input.dtype)} input and {_name(target.dtype)} target: at least '
            "one must be a floating-point tensor. Convert with .float()."
        )


def check_broadcast(function: str, input: Tensor, target: Tensor, broadcast: Broadcast, stacklevel: int) -> None:
    try:
        common = torch.broadcast_shapes(input.shape, target.shape)
    except RuntimeError:
        raise RuntimeError(
            f"{function}: input of size {tuple(input.shape)} and target of size {tuple(target.shape)} do not "
            "broadcast. Give both the same size."
        ) from None
    if broadcast == "error":
        raise ValueError(
            f"{function}: the target size {tuple(target.shape)} differs from the input size {tuple(input.shape)}; "
            f"broadcasting would compare {tuple(common)} pairs. Give both the same size (often .squeeze(1) or "
            ".unsqueeze(1) on one of them)."
        )
    if broadcast == "warn":
        warnings.warn(
            f"Using a target size ({target.size()}) that is different to the input size ({input.size()}). "
            "This will likely lead to incorrect results due to broadcasting. "
            "Please ensure they have the same size.",
            stacklevel=stacklevel + 1,
        )


def check_element_weight(function: str, input: Tensor, weight: Tensor) -> None:
    if weight.shape != input.shape:
        raise ValueError(
            "Weights and input must have the same size: "
            f"weight has {tuple(weight.shape)}, input has {tuple(input.shape)}."
        )
    _check_real(function, "weight", weight, NotImplementedError)


def check_classification_shapes(function: str, input: Tensor, target: Tensor) -> None:
    """Input (C), (N, C) or (N, C, d1, ...); target of the same shape, or of that shape without the class dimension."""
    if input.dim() == 0:
        raise ShapeError(
            f"{function}: expected input of shape (C), (N, C) or (N, C, d1, ...), but got a tensor without dimensions."
        )
    if target.shape == input.shape:
        return
    if input.dim() == 1:
        if target.dim() == 0 or tuple(target.shape) == (1,):
            return
        raise ShapeError(
            "For 1D input, 1D target must have size 1, "
            f"but got target size: {tuple(target.shape)} for input of {input.shape[0]} classes."
        )
    batch = target.shape[0] if target.dim() else 0
    if batch != input.shape[0]:
        raise ValueError(
            f"Expected input batch_size ({input.shape[0]}) to match target batch_size ({batch}): "
            f"input is {tuple(input.shape)}, target is {tuple(target.shape)}."
        )
    expected = [input.shape[0], *input.shape[2:]]
    if list(target.shape) != expected:
        raise RuntimeError(
            f"{function}: Expected target size {expected} (class indices) or {list(input.shape)} (class "
            f"probabilities), got {list(target.shape)}. The class dimension is dimension 1 of the input and absent "
            "from indices."
        )


def check_cross_entropy_target(input: Tensor, target: Tensor, ignore_index: int) -> None:
    if target.shape == input.shape:
        _check_class_probabilities(target, ignore_index)
    else:
        check_index_dtype(target)


def _check_class_probabilities(target: Tensor, ignore_index: int) -> None:
    if not target.dtype.is_floating_point:
        raise RuntimeError(
            f"Expected floating point type for target with class probabilities, got {_name(target.dtype)}: for one-hot "
            "targets call .to(input.dtype); class indices must not have the class dimension."
        )
    if ignore_index >= 0:
        raise RuntimeError(
            f"ignore_index is not supported for floating point target (got ignore_index={ignore_index}): give the "
            "rows to leave out a sample_weight of 0, or mark them with class indices, or leave ignore_index negative."
        )


def check_index_dtype(target: Tensor, or_probabilities: bool = True) -> None:
    if not is_integer(target.dtype):
        other = ", or give class probabilities of the input's shape" if or_probabilities else ""
        raise RuntimeError(
            "expected target dtype to be Long or Byte or another integer type for class indices, "
            f"but got {_name(target.dtype)}: call .long(){other}."
        )


def check_cee_target(input: Tensor, target: Tensor) -> None:
    if target.shape != input.shape:
        check_index_dtype(target)
    else:
        _check_real("cee_loss", "target", target)


def check_class_weight(input: Tensor, target: Tensor, weight: Tensor, autocast: bool) -> None:
    classes = input.shape[0] if input.dim() == 1 else input.shape[1]
    check_weight_of_classes(classes, input.dtype, target.shape != input.shape, weight, autocast)


def check_weight_of_classes(
    classes: int, dtype: torch.dtype, indices: bool, weight: Tensor, autocast: bool, function: str = "cross_entropy"
) -> None:
    """One real factor a class, with class indices of the logits' `dtype`."""
    if tuple(weight.shape) != (classes,):
        raise RuntimeError(
            f"{function}: weight tensor should be defined either for all {classes} classes or no classes "
            f"but got weight tensor of shape: {list(weight.shape)}"
        )
    _check_real(function, "weight", weight)
    if not indices or weight.dtype == dtype:
        return
    if autocast and weight.dtype.is_floating_point:
        return
    raise RuntimeError(
        f"expected scalar type {_name(dtype)} but found {_name(weight.dtype)}: with class indices, weight must "
        "have the dtype of input. Convert it with .to(input.dtype)."
    )


def check_linear(function: str, input: Tensor, linear_weight: Tensor, linear_bias: Tensor | None, dim: int = -1) -> int:
    """Input (..., features), linear_weight (classes, d1, ..., features), linear_bias (classes, d1, ...).

    Returns the dimension of the input's features, counted from the front.
    """
    if input.dim() == 0:
        raise RuntimeError(f"{function}: expected input of shape (..., features), but got a tensor without dimensions.")
    dim = check_dimension(function, input, dim, "features")
    if linear_weight.dim() < 2:
        raise RuntimeError(
            f"{function}: expected linear_weight of shape (classes, features), but got {tuple(linear_weight.shape)}."
        )
    if input.shape[dim] != linear_weight.shape[-1]:
        place = "its last dimension" if dim == input.dim() - 1 else f"dimension {dim}"
        raise RuntimeError(
            f"{function}: input has {input.shape[dim]} features ({place}), but linear_weight expects "
            f"{linear_weight.shape[-1]}: input is {tuple(input.shape)}, linear_weight {tuple(linear_weight.shape)}. "
            "`dim` says which dimension of input holds the features."
        )
    if linear_bias is not None and linear_bias.shape != linear_weight.shape[:-1]:
        raise RuntimeError(
            f"{function}: expected linear_bias of shape {tuple(linear_weight.shape[:-1])}, the shape of linear_weight "
            f"without features, but got {tuple(linear_bias.shape)}."
        )
    if input.dim() == 1 and linear_weight.dim() > 2:
        raise RuntimeError(
            f"{function}: a linear_weight of shape {tuple(linear_weight.shape)} needs an input with a batch dimension, "
            f"but input is {tuple(input.shape)}."
        )
    return dim


def check_product(
    function: str, input: Tensor, linear_weight: Tensor, linear_bias: Tensor | None, dim: int, **others: Tensor | None
) -> int:
    """The operands of a product and, on their device, the others; `target` must be one of them.

    Returns the dimension of the input's features, counted from the front.
    """
    check_tensors(function, input=input, linear_weight=linear_weight, target=others["target"])
    check_same_device(function, input, linear_weight=linear_weight, linear_bias=linear_bias, **others)
    check_floating_input(function, input)
    dim = check_linear(function, input, linear_weight, linear_bias, dim)
    autocast = autocast_enabled(input.device)
    check_linear_dtypes(function, autocast, input, linear_weight=linear_weight, linear_bias=linear_bias)
    return dim


def check_low_rank(
    function: str, input: Tensor, linear_weight: Tensor, low_rank: Any, dim: int
) -> tuple[Tensor | None, Tensor | None, float]:
    """A, B and the scale; without a low-rank term None, None and 1."""
    if low_rank is None:
        return None, None, 1.0
    if not isinstance(low_rank, (tuple, list)) or len(low_rank) != 3:
        raise TypeError(f"{function}: low_rank must be (A, B, scale) or None, but got {type(low_rank).__name__}.")
    a, b, scale = low_rank
    check_tensors(function, **{"A of low_rank": a, "B of low_rank": b})
    scale = _check_low_rank_scale(scale)
    for name, tensor in (("A", a), ("B", b)):
        if tensor.dtype not in _FLOATS:
            raise RuntimeError(f"{function}: expected a floating-point {name} of low_rank, got {_name(tensor.dtype)}.")
    check_same_device(function, input, **{"A of low_rank": a, "B of low_rank": b})
    features, classes = input.shape[dim], linear_weight.shape[0]
    if linear_weight.dim() != 2:
        raise ValueError(f"{function}: low_rank needs a linear_weight of two dimensions, not {linear_weight.dim()}.")
    if a.dim() != 2 or b.dim() != 2 or a.shape[1] != features or b.shape[0] != classes or a.shape[0] != b.shape[1]:
        raise RuntimeError(
            f"{function}: expected low_rank with A of shape (rank, {features}) and B of shape ({classes}, rank), "
            f"but got {tuple(a.shape)} and {tuple(b.shape)}."
        )
    return a, b, scale


def pair_of(low_rank: Any) -> tuple[Any, ...]:
    """A and B of a low-rank term, if it is one; `check_low_rank` says what is wrong with another."""
    return tuple(low_rank[:2]) if isinstance(low_rank, (tuple, list)) else ()


def check_linear_layer(function: str, linear: Any) -> None:
    """A module with the weight and the sizes of a linear layer."""
    if not (isinstance(linear, nn.Module) and hasattr(linear, "out_features") and hasattr(linear, "weight")):
        raise TypeError(
            f"{function}: expected a torch.nn.Linear, or a module with its attributes, but got {type(linear).__name__}."
        )


def check_linear_dtypes(
    function: str, autocast: bool, input: Tensor, *, input_name: str = "input", **others: Tensor | None
) -> None:
    """The operands of a product have one dtype; under autocast, which makes it so, they need to be floats."""
    for name, tensor in others.items():
        if tensor is None or tensor.dtype == input.dtype:
            continue
        if autocast and tensor.dtype in _FLOATS and torch.float64 not in (tensor.dtype, input.dtype):
            continue
        raise RuntimeError(
            f"{function}: expected {input_name} and {name} to have the same dtype, but got {_name(input.dtype)} and "
            f"{_name(tensor.dtype)}. Convert one of them with .to(...)."
        )


def check_linear_target(
    function: str, target: Tensor, rows: list[int], probabilities: list[int], ignore_index: int
) -> bool:
    """Whether target holds class indices, of shape `rows`; else it holds probabilities, of shape `probabilities`."""
    shape = list(target.shape)
    if shape == probabilities:
        _check_class_probabilities(target, ignore_index)
        return False
    if shape == rows or (not rows and shape == [1]):
        check_index_dtype(target)
        return True
    message = (
        f"{function}: expected a target of shape {rows} (class indices) or {probabilities} (class probabilities), "
        f"but got {shape}."
    )
    if rows and (not shape or shape[0] != rows[0]):
        raise ValueError(f"Expected input batch_size ({rows[0]}) to match target batch_size: {message}")
    raise RuntimeError(message)


def check_divergence_reduction(reduction: str) -> Any:
    if reduction == "batchmean":
        raise ValueError(
            "'batchmean' is not a valid value for reduction: reduction='mean' divides the sum by the number of rows "
            "that count, which is what torch.nn.functional.kl_div calls 'batchmean' where each row is a sample. To "
            "divide by another number, such as that of the sequences, pass it as normalizer."
        )
    return check_reduction(reduction)


def check_divergence(divergence: str, beta: float | None) -> float:
    """The share of the teacher in the mixture of the Jensen-Shannon divergence."""
    _check_divergence(divergence)
    if beta is None:
        return 0.5
    if divergence != "jensen-shannon":
        raise ValueError(
            f"beta={beta!r} is the teacher's share in the mixture of divergence='jensen-shannon', but divergence is "
            f"{divergence!r}: leave one of them out."
        )
    return _check_mixture(beta)


def check_distilled_layer(
    function: str, role: str, input: Tensor, linear_weight: Tensor, linear_bias: Tensor | None, autocast: bool
) -> None:
    """Features (..., features), weight (classes, features), bias (classes), of one dtype."""
    names = f"{role}_input", f"{role}_weight", f"{role}_bias"
    check_tensors(function, **{names[0]: input, names[1]: linear_weight})
    for name, tensor in zip(names, (input, linear_weight, linear_bias), strict=True):
        if tensor is not None:
            check_floating_input(function, tensor, name)
    if linear_weight.dim() != 2 or not linear_weight.shape[0]:
        raise RuntimeError(
            f"{function}: expected {names[1]} of shape (classes, features) with at least one class, but got "
            f"{tuple(linear_weight.shape)}."
        )
    if input.dim() == 0 or input.shape[-1] != linear_weight.shape[1]:
        raise RuntimeError(
            f"{function}: expected {names[0]} of shape (..., {linear_weight.shape[1]}), the features of {names[1]}, "
            f"but got {tuple(input.shape)}."
        )
    if linear_bias is not None and linear_bias.shape != linear_weight.shape[:1]:
        raise RuntimeError(
            f"{function}: expected {names[2]} of shape {tuple(linear_weight.shape[:1])}, one number a class, but got "
            f"{tuple(linear_bias.shape)}."
        )
    layer = {names[1]: linear_weight, names[2]: linear_bias}
    check_linear_dtypes(function, autocast, input, input_name=names[0], **layer)


def check_teacher(function: str, given: dict[str, Any], further: dict[str, Any]) -> str:
    """Which of the ways to give a teacher was chosen; `further` goes with teacher_input only."""
    chosen = [name for name, value in given.items() if value is not None]
    if len(chosen) != 1:
        raise ValueError(
            f"{function}: expected one of {', '.join(given)}, but got {' and '.join(chosen) or 'none'}: the teacher "
            "is its features (with teacher_weight), its logits, or its k largest log-probabilities and their indices."
        )
    extra = [name for name, value in further.items() if value is not None]
    if chosen[0] == "teacher_input":
        if "teacher_weight" not in extra:
            raise ValueError(
                f"{function}: teacher_input needs teacher_weight, the weight of the teacher's last layer; logits are "
                "given as teacher_logits."
            )
    elif extra:
        raise ValueError(
            f"{function}: {' and '.join(extra)} belong to teacher_input, but the teacher was given as {chosen[0]}, "
            "which is taken as it is: leave them out."
        )
    return chosen[0]


def check_teacher_rows(function: str, name: str, tensor: Tensor, rows: list[int], last: int | str) -> None:
    """Floats of shape (*rows, last), or (*rows, any number of what it is called)."""
    check_tensors(function, **{name: tensor})
    if tensor.dtype not in _FLOATS:
        raise RuntimeError(f"{function}: expected a floating-point {name}, but got {_name(tensor.dtype)}.")
    fits = isinstance(last, str) or (tensor.dim() > 0 and tensor.shape[-1] == last)
    if fits and list(tensor.shape[:-1]) == rows and tensor.dim():
        return
    hint = "" if fits else " Where one vocabulary is padded, cut the classes that the other lacks."
    raise ValueError(
        f"{function}: expected {name} of shape ({', '.join(map(str, [*rows, last]))}), with a row for each of "
        f"student_input and what student_weight has as classes, but got {tuple(tensor.shape)}.{hint}"
    )


def check_labels(function: str, target: Tensor, rows: torch.Size) -> None:
    """One label a row."""
    if not is_integer(target.dtype):
        raise RuntimeError(
            f"{function}: expected a target of labels, of an integer dtype, but got {_name(target.dtype)}; a mask goes "
            "to sample_weight."
        )
    if target.shape != rows:
        raise ValueError(
            f"{function}: expected a target of shape {tuple(rows)}, one label for each row of student_input, but got "
            f"{tuple(target.shape)}."
        )


def check_top_k_options(
    function: str, top_k: Any, rest: str | None, divergence: str, temperature: float
) -> tuple[Tensor, Tensor] | None:
    """The pair, if that is how the teacher was given; whether the rest can be what was asked for."""
    if top_k is None:
        if rest is not None:
            raise ValueError(f"{function}: top_k_rest={rest!r} belongs to teacher_top_k, which was not given.")
        return None
    if not isinstance(top_k, (tuple, list)) or len(top_k) != 2:
        raise TypeError(f"{function}: teacher_top_k must be a pair (values, indices), but got {type(top_k).__name__}.")
    values, indices = top_k
    check_tensors(function, **{"values of teacher_top_k": values, "indices of teacher_top_k": indices})
    if not is_integer(indices.dtype):
        raise RuntimeError(
            f"{function}: expected integer indices in teacher_top_k=(values, indices), but got {_name(indices.dtype)}."
        )
    if indices.shape != values.shape:
        raise ValueError(
            f"{function}: expected values and indices of teacher_top_k to have one shape, but got "
            f"{tuple(values.shape)} and {tuple(indices.shape)}."
        )
    _check_top_k_rest(rest or "merge")
    if rest == "renormalize" and divergence == "reverse":
        raise ValueError(
            f"{function}: with top_k_rest='renormalize' the teacher rules out all classes but k, so that "
            "divergence='reverse' is infinite: use top_k_rest='merge', or another divergence."
        )
    if rest != "renormalize" and temperature != 1:
        raise ValueError(
            f"{function}: with top_k_rest='merge' the k log-probabilities say how much the other classes have "
            f"together, but not how much at temperature={temperature}: give them as log_softmax(logits / temperature) "
            "with temperature=1 and student_logit_scale=1 / temperature; or use top_k_rest='renormalize'."
        )
    return values, indices


def check_top_k(
    function: str, values: Tensor, indices: Tensor, classes: int, sample_weight: Tensor | None, merges: bool
) -> None:
    """Values and indices of (rows, k), where they count: entries that are not -inf, in rows that have a weight."""
    counted = values != -math.inf
    if sample_weight is not None:
        counted = counted & (sample_weight != 0).unsqueeze(1)
    if not counted.numel():
        return
    outside = counted & ((indices < 0) | (indices >= classes))
    if bool(outside.any()):
        row, place = _first(outside)
        raise IndexError(
            f"{function}: index {int(indices[row, place])} at entry {place} of row {row} of teacher_top_k is out of "
            f"bounds: there are {classes} classes. A list that is shorter than k is filled up with values of -inf."
        )
    # Entries that do not count get numbers of their own.
    apart = torch.arange(-1, -1 - indices.shape[1], -1, device=indices.device, dtype=indices.dtype)
    ordered = torch.where(counted, indices, apart).sort(1).values
    twice = ordered[:, 1:] == ordered[:, :-1]
    if bool(twice.any()):
        row, place = _first(twice)
        raise ValueError(
            f"{function}: index {int(ordered[row, place])} stands more than once in row {row} of teacher_top_k; each "
            "class has one log-probability."
        )
    total = values.to(torch.float64).exp().masked_fill(counted.logical_not(), 0).sum(1).max()
    if merges and float(total) > 1 + TOP_K_TOLERANCE:
        raise ValueError(
            f"{function}: the values of teacher_top_k are log-probabilities, whose exponentials sum to at most 1, but "
            f"in a row they sum to {float(total):.6g}. Give log_softmax of the logits, taken over all classes, or use "
            "top_k_rest='renormalize'."
        )


def check_normalizer(normalizer: Tensor | float | None, reduction: str) -> Tensor | float | None:
    """A denominator for 'mean': a number that is not negative, or a tensor without dimensions."""
    if normalizer is None:
        return None
    if reduction != "mean":
        raise ValueError(
            f"normalizer is what reduction='mean' divides by, but reduction is {reduction!r}: leave one of them out."
        )
    if isinstance(normalizer, Tensor):
        if normalizer.numel() != 1 or normalizer.dtype.is_complex or normalizer.dtype == torch.bool:
            raise ValueError(
                f"normalizer must be one number, but got a tensor of shape {tuple(normalizer.shape)} and dtype "
                f"{_name(normalizer.dtype)}: sum it up first."
            )
        # DataParallel makes a tensor of one number of it.
        return normalizer if normalizer.dim() == 0 else normalizer.reshape(())
    return _check_normalizer_number(normalizer)


def check_dimension(function: str, input: Tensor, dim: int, of: str = "classes", name: str = "input") -> int:
    """The dimension of the classes or features, counted from the front."""
    dimensions = input.dim()
    dim = check_dim(dim, of)
    if not -dimensions <= dim < dimensions:
        raise IndexError(
            f"{function}: dim={dim} is no dimension of {name}, which has shape {tuple(input.shape)}: expected "
            f"{-dimensions} to {dimensions - 1}."
        )
    return dim % dimensions


def check_sample_weight(function: str, sample_weight: Tensor, rows: torch.Size) -> None:
    """One weight a row, of a shape that broadcasts to the rows'."""
    _check_real(function, "sample_weight", sample_weight)
    try:
        common = torch.broadcast_shapes(sample_weight.shape, rows)
    except RuntimeError:
        common = None
    if common != rows:
        raise ValueError(
            f"{function}: sample_weight must broadcast to one weight a row, {tuple(rows)}, but has shape "
            f"{tuple(sample_weight.shape)}."
        )


def check_leading_sample_weight(function: str, sample_weight: Tensor, shape: torch.Size) -> Tensor:
    """One weight for each entry of the first dimensions, as a view that broadcasts to `shape`."""
    _check_real(function, "sample_weight", sample_weight)
    sizes = zip(sample_weight.shape, shape, strict=False)
    if sample_weight.dim() > len(shape) or any(given not in (1, size) for given, size in sizes):
        raise ValueError(
            f"{function}: sample_weight must have the sizes of the first dimensions of input, or 1, but it is "
            f"{tuple(sample_weight.shape)} and input is {tuple(shape)}: give one weight a sample, {tuple(shape[:1])}."
        )
    return sample_weight.reshape(*sample_weight.shape, *(1,) * (len(shape) - sample_weight.dim()))


def check_inplace_backward(input: Tensor) -> bool:
    """Whether a backward may write over `input`: False where none follows, or where torch.compile sees to memory."""
    check_tensors("cross_entropy", input=input)
    if torch.compiler.is_compiling() or not (input.requires_grad and torch.is_grad_enabled()):
        return False
    if transforms_active() or forward_ad.unpack_dual(input).tangent is not None:
        raise _inplace_error("input is given to a transform of torch.func or to forward-mode AD, which need it again")
    if input.is_leaf or (input._base is not None and input._base.is_leaf and input._base.requires_grad):
        raise _inplace_error("input is a leaf that requires grad, or a view of one, whose values would be lost")
    reached = 0
    for stride, size in sorted(zip(input.stride(), input.shape, strict=True)):
        if size > 1 and stride <= reached:
            raise _inplace_error("several elements of input share memory (it is expanded, or a view that overlaps)")
        reached += stride * (size - 1)
    return True


def _inplace_error(reason: str) -> RuntimeError:
    return RuntimeError(
        f"cross_entropy: inplace_backward=True writes the gradient over input, but {reason}. Give it the output of a "
        "layer that nothing else needs, or leave inplace_backward at False."
    )


def check_indices_in_range(target: Tensor, classes: int, ignore_index: int | None) -> None:
    if not target.numel():
        return
    lowest, highest = (int(value) for value in target.aminmax())
    if lowest >= 0 and highest < classes:
        return
    outside = (target < 0) | (target >= classes)
    if ignore_index is not None:
        outside &= target != ignore_index
    if not bool(outside.any()):
        return
    position = _first(outside)
    value = int(target[position])
    if value == classes and not bool((target == 0).any()):
        hint = f"labels that count from 1 to {classes} need `target - 1`"
    elif ignore_index is not None and (value == 255 or value < 0):
        hint = f"if {value} marks rows to leave out, pass ignore_index={value}"
    else:
        hint = "check the labels, or give the input as many classes as there are labels"
    raise IndexError(
        f"Target {value} is out of bounds. It stands at position {position} of the target, and there are {classes} "
        f"classes, so indices run from 0 to {classes - 1}: {hint}."
    )


def _first(mask: Tensor) -> tuple[int, ...]:
    return tuple(int(i) for i in mask.nonzero()[0])


def check_probabilities(input: Tensor, counted: Tensor | None) -> None:
    """Probabilities of the rows that count lie in [0, 1], up to rounding; nan may pass."""
    input = _of_counted(input, counted)
    if not input.numel():
        return
    tolerance = 4 * torch.finfo(input.dtype).eps
    lowest, highest = (float(value) for value in input.aminmax())
    if math.isnan(lowest):
        # nan has taken the place of both; it may pass, what stands beside it may not.
        check_probabilities(input[~input.isnan()], None)
    if lowest < -tolerance or highest > 1 + tolerance:
        raise_not_probabilities(lowest, highest)


def check_one_hot(target: Tensor, dimensions: int, counted: Tensor | None) -> None:
    if target.dim() < dimensions or target.is_floating_point() or target.dtype == torch.bool:
        return
    target = _of_counted(target, counted)
    if not target.numel():
        return
    lowest, highest = (int(value) for value in target.aminmax())
    if lowest < 0 or highest > 1:
        raise_not_one_hot(lowest, highest)


def _of_counted(tensor: Tensor, counted: Tensor | None) -> Tensor:
    return tensor if counted is None or bool(counted.all()) else tensor.movedim(1, -1)[counted]


def raise_not_probabilities(lowest: float, highest: float) -> NoReturn:
    raise ValueError(
        f"cee_loss: expected probabilities in [0, 1], but input ranges from {lowest:.6g} to {highest:.6g}. "
        "Logits belong to cross_entropy; or apply softmax first. (validate_args=False skips this check.)"
    )


def raise_not_one_hot(lowest: int, highest: int) -> NoReturn:
    raise ValueError(
        "cee_loss: an integer target of the input's shape is one-hot, so it holds 0 and 1 only, but it ranges from "
        f"{lowest} to {highest}. Class indices must not have the class dimension."
    )


def _name(dtype: torch.dtype) -> str:
    """The name by which torch's own messages call a dtype."""
    return _NAMES.get(dtype, str(dtype).removeprefix("torch."))
