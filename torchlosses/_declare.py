"""A loss is declared as an autograd Function is written, with a forward and a backward; all else about it follows here.

    class SquaredError(Loss):
        name = "mse_loss"
        tensors = ("input", "target", "weight?", "sample_weight?")
        options = Options                                              # a NamedTuple: one field an option

        @staticmethod
        def forward(input, target, weight, sample_weight, options):    # the losses of the rows
            ...

        @staticmethod
        def backward(grad_output, input, target, weight, sample_weight, options):    # the gradient by `input`
            ...

How that relates to `torch.autograd.Function`. forward and backward mean what they mean there, the loss and its gradient
written out by hand. Three things differ. They are pure functions of their arguments: there is no ctx, and backward
takes the tensors again. They are written in differentiable operations, and speak of rows only: what a reduction makes
of the rows, and what a mean divides by, is the same for all losses and stands here. And each becomes an operator of the
namespace `torchlosses`:

    NAME            (*tensors, normalizer, *options)                              -> loss, gradients, state
    NAME_backward   (grad_output, *tensors, normalizer, state, *options)          -> gradients
    NAME_backward_  (grad_output, gradient, *tensors, normalizer, state, *options)   the same, written to `gradient`

so that a backend can put kernels in their place, the same two, fast. Without one they run as they are written
(`kernels.eager`), a block of rows at a time.

Every derivative beyond these two, by the other tensors, of the gradient, along a direction, is the automatic derivative
of forward and backward. It is registered for the dispatch key Autograd, in front of every backend, so that an operator
has it wherever it goes: in a direct call, a compiled graph, an exported program, under torch.func.

In a compiled graph a number among the options is a constant, unless it changes from call to call: then the overload
NAME.numbers takes it in a tensor, so that one graph serves all values.

The gradient along with the loss. Where autograd alone is at work and the result is one number, NAME computes the
gradient for an incoming gradient of 1 in the same pass. The first backward hands it out, after NAME_backward_ has
computed it again if the incoming gradient is another; a second backward computes it anew.

What PyTorch keeps private has names in `torchlosses._pytorch`.
"""

from __future__ import annotations

import importlib
import math
from collections import namedtuple
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, get_type_hints

import torch
from torch import Tensor, nn
from torch.autograd import Function

from torchlosses import _flops, kernels
from torchlosses._forked import one_thread, returning, threads_are_gone
from torchlosses._pytorch import (
    SingleLevelFunction,
    below_autograd,
    compiled_autograd_key,
    enable_single_level_autograd_function,
    forward_ad_rule,
    forward_mode_active,
    functorch,
    is_memory,
    is_plain,
    is_real,
    make_dual,
    nobody_follows,
    not_compiled,
    profiling,
    recording,
    save,
    saved_tensors_have_hooks,
    set_forward_mode,
    set_grad_enabled,
    transforms_active,
    tree_map_only,
    unpack_dual,
    vjp,
)
from torchlosses._rows import compute_dtype, mean_of, part_of_mean

_SCHEMA_TYPES = {
    str: "str",
    int: "SymInt",
    int | None: "SymInt?",
    torch.SymInt: "SymInt",
    float: "float",
    float | None: "float?",
    bool: "bool",
    torch.dtype: "ScalarType",
}

# The first fields of every record of options, none of them a number that the caller gives.
_FOR_LOSSES = 4

# For so few numbers a call takes longer than the arithmetic.
FEW = 1 << 17
_WIDE = (torch.float32, torch.float64)

# Tensors of several processes, by the name of their class, and who computes a loss of them: loaded when one is seen.
_TAKEN_OVER = {"DTensor": "torchlosses.distributed._dtensors"}

# Where the package is imported a second time in one process, the operators of the first are replaced.
if (_former := getattr(torch.ops.torchlosses, "library_in_use", None)) is not None:
    _former._destroy()
LIBRARY = torch.library.Library("torchlosses", "FRAGMENT")
torch.ops.torchlosses.library_in_use = LIBRARY  # type: ignore[assignment]
# Those refuse to run where gradients are switched on.
for _name in kernels.few:
    LIBRARY.impl(f"{_name}_few", torch.library.fallthrough_kernel, "Autograd")


def taken_over(*tensors: Any) -> Any:
    """The module that computes a loss of these tensors, if there is one for a subclass among them."""
    for tensor in tensors:
        # Up to torch 2.10, the compiler does not know the name of the type of a number that changes.
        if tensor is None or type(tensor) in (Tensor, nn.Parameter) or isinstance(tensor, (int, float)):
            continue
        if (module := _TAKEN_OVER.get(type(tensor).__name__)) is not None:
            return importlib.import_module(module)
    return None


def _nothing(*_: Any) -> None:
    """What a loss does not declare."""


class Loss:
    """What a loss declares; see the module's text. A subclass is not instantiated: `apply` calls the loss.

    Attributes:
        name: of the operator, the public function's.
        tensors: The tensors, in order; a question mark makes one optional.
        options: The record of options. Its first fields are `reduction`, `empty`, `dtype` and `gradients`.
        shared: Tensors that all rows share, such as one number a class.
        derived: How many of the tensors, the first ones, have their gradient in `backward`, which then gives a tuple.
        elementwise: Whether a row is an element: all tensors then have the shape of the first.
        kernels: What runs where no other backend does.
        check: Looks at the values, where looking is free; (*tensors, options).
        flops: The operations of the matrix products of one of its operators, where it has some; (shapes of the
            tensors, options).
        counted: Which rows count in a mean; None where all do; (*tensors, options).
        denominator: What a mean divides by where rows have weights; None where it is the number of rows that count.
        scales: Whether gradients that came along with the loss are multiplied by an incoming gradient other than 1,
            because computing them again would take far longer than rounding once more costs.
    """

    name: str
    tensors: tuple[str, ...]
    options: Any
    shared: tuple[str, ...] = ()
    derived: int = 1
    elementwise: bool = False
    kernels: Any = kernels.eager
    scales: bool = False

    forward: Callable[..., Any]
    backward: Callable[..., Any]
    check: Callable[..., None] = staticmethod(_nothing)
    flops: Callable[..., int] | None = None
    counted: Callable[..., Tensor | None] = staticmethod(_nothing)
    denominator: Callable[..., Tensor | None] = staticmethod(_nothing)

    @staticmethod
    def state_fields(options: Any) -> int:
        """How many numbers a row `forward` gives beside the losses, in one tensor: what backward kernels keep."""
        return 0

    @staticmethod
    def shows_state(options: Any) -> bool:
        """Whether the caller wants to see it."""
        return False

    @staticmethod
    def shown(state: Tensor, tensors: Sequence[Any], options: Any) -> Tensor:
        """What the caller sees of it."""
        return state

    @classmethod
    def rows(cls, input: Tensor) -> Sequence[int]:
        """The shape of the rows."""
        return input.shape if cls.elementwise else [*input.shape[:1], *input.shape[2:]]

    @classmethod
    def results(cls, input: Tensor) -> Sequence[int]:
        """The shape of what `forward` gives: one loss a row, or several numbers where the classes were."""
        return cls.rows(input)

    # What follows is the same for all losses.

    keeps: bool
    count: int  # tensors, the normalizer among them
    operator: Any
    backward_operator: Any
    backward_operator_: Any
    of_numbers: Any  # as the first two, for options some numbers of which are in a tensor
    backward_of_numbers: Any
    options_of_numbers: Any
    _direct: Any
    _of_few: Any
    _of_small_batch: Any

    def __init_subclass__(cls, abstract: bool = False) -> None:
        """Make the operators, unless what is declared is what several losses share."""
        if abstract:
            return
        cls.count = len(cls.tensors) + 1
        cls.keeps = cls.state_fields is not Loss.state_fields
        cls._shared_places = {i for i, name in enumerate(cls.tensors) if name.rstrip("?") in cls.shared}
        own = ", ".join(f"Tensor{'?' * t.endswith('?')} {t.rstrip('?')}" for t in (*cls.tensors, "normalizer?"))
        fields = get_type_hints(cls.options)
        record = ", ".join(f"{_SCHEMA_TYPES[kind]} {name}" for name, kind in fields.items())
        cls.options_of_numbers = namedtuple("OptionsOfNumbers", [*fields, "numbers"])  # type: ignore[misc]
        gradients = ", ".join(["Tensor"] * cls.derived)
        state = ", Tensor state" if cls.keeps else ""
        n, m = cls.count, cls.count + cls.keeps

        def fake(*a: Any) -> Any:
            return cls._fake(a[:n], cls.options(*a[n:]))

        def fake_gradients(grad_output: Any, *a: Any) -> Any:
            return cls._fake_gradients(a[:n], cls.options(*a[m:]))

        arguments, returns = f"{own}, {record}", f"(Tensor, {gradients}{', Tensor' if cls.keeps else ''})"
        rules = _Rules(cls.options, n, 0, cls._reduced, cls)
        cls.operator = _define(
            cls.name,
            f"({arguments}) -> {returns}",
            lambda *a: cls.kernels.forward(cls, a[:n], cls.options(*a[n:])),
            fake,
            lambda info, dims, *a: cls._fold(info, dims, a[:n], cls.options(*a[n:])),
            rules,
        )
        cls.of_numbers = _define_of_numbers(
            cls, cls.operator, f"({arguments}, Tensor numbers) -> {returns}", fake, rules
        )
        arguments = f"Tensor grad_output, {own}{state}, {record}"
        returns = gradients if cls.derived == 1 else f"({gradients})"
        rules = _Rules(cls.options, 1 + n, m - n, cls._gradient_of_rows, None)
        cls.backward_operator = _define(
            f"{cls.name}_backward",
            f"({arguments}) -> {returns}",
            lambda g, *a: cls.kernels.backward(cls, g, a[:n], cls.options(*a[m:]), *a[n:m]),
            fake_gradients,
            lambda info, dims, *a: cls._fold_backward(info, dims, a[: 1 + m], cls.options(*a[1 + m :])),
            rules,
        )
        cls.backward_of_numbers = _define_of_numbers(
            cls, cls.backward_operator, f"({arguments}, Tensor numbers) -> {returns}", fake_gradients, rules
        )
        if cls.derived == 1:
            cls.backward_operator_ = _define(
                f"{cls.name}_backward_",
                f"(Tensor grad_output, Tensor(a!) gradient, {own}{state}, {record}) -> ()",
                lambda g, out, *a: cls.kernels.backward_(cls, g, out, a[:n], cls.options(*a[m:]), *a[n:m]),
                lambda *a: None,
                None,
                None,
            )
        if cls.flops is not None:
            flops, of_loss = cls.flops, getattr(torch.ops.torchlosses, cls.name)
            of_gradients = getattr(torch.ops.torchlosses, f"{cls.name}_backward")
            _flops.register(of_loss, lambda *a, **_: flops(a[: n - 1], cls.options(*a[n:])))
            _flops.register(of_gradients, lambda *a, **_: flops(a[1:n], cls.options(*a[1 + m :])))
        for suffix, key, kernel in kernels._in_triton(cls):
            LIBRARY.impl(f"{cls.name}{suffix}", _undisturbed(kernel), key)
        cls._direct = _direct_function(cls)
        cls._of_few = _function_of_few(cls)
        cls._of_small_batch = _function_of_small_batch(cls)

    @classmethod
    def apply(cls, *tensors: Any, normalizer: Tensor | float | None, options: Any) -> tuple[Tensor, Any]:
        """The loss, and the rows' state (None where nothing is kept of it)."""
        if (module := taken_over(*tensors, normalizer)) is not None:
            return module.apply(cls, tensors, normalizer, options)
        if options.reduction == "mean":
            if normalizer is None:
                normalizer = cls.denominator(*tensors, options)
            elif not isinstance(normalizer, Tensor):
                normalizer = _number(normalizer, tensors[0])
        arguments: tuple[Any, ...] = (*tensors, normalizer)
        shows_state = cls.shows_state(options)
        if not is_plain(tensors[0]):
            output = cls._called_for_others(arguments, options)
            return output[0], cls.shown(output[-1], tensors, options) if shows_state else None
        try:
            if _may_take_triton(tensors[0]) and not shows_state and all(tensor is None for tensor in arguments[2:]):
                loss = cls._of_small(tensors[0], tensors[1], options)
                if loss is not None:
                    return loss, None
            if torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in arguments):
                output = cls._direct(*arguments, options)
                if not shows_state:
                    return output, None
            else:
                output = cls._computed(arguments, _without_gradients(options))
        except _REFUSALS:
            cls.explain(*tensors, options)
            raise
        return output[0], cls.shown(output[-1], tensors, options) if shows_state else None

    @classmethod
    def _called_for_others(cls, arguments: Sequence[Any], options: Any) -> Any:
        """The operator, for a compiler, a transform, a mode or a subclass."""
        if not torch.compiler.is_compiling():
            return cls.operator(*arguments, *options._replace(gradients=0))
        options = options._replace(gradients=cls._wanted(arguments, options) if cls.scales else 0)
        others = arguments[cls.derived :]
        followed = any(t is not None and t.requires_grad for t in others)
        if followed or transforms_active() or forward_mode_active():
            # Derivatives of the formulas, in which a number decides what is computed.
            return cls.operator(*arguments, *options)
        options, numbers = _with_numbers_apart(options)
        if numbers is None:
            return cls.operator(*arguments, *options)
        return cls.of_numbers(*arguments, *options, numbers)

    @classmethod
    def _computed(cls, tensors: Sequence[Any], options: Any) -> Any:
        """What the operator gives, where nobody follows."""
        if (own := cls._past_dispatcher(tensors)) is not None:
            return own.forward(*tensors, options)
        with below_autograd():
            return cls.operator(*tensors, *options)

    @classmethod
    def _past_dispatcher(cls, tensors: Sequence[Any]) -> Any:
        """What computes tensors that are nothing but memory past the dispatcher, unless a profile shows operators."""
        if not _may_take_triton(tensors[0]) or profiling():
            return None
        own = kernels._past_dispatcher(cls.name, tensors[0].device)
        if own is None:
            return None
        return own if all(tensor is None or is_memory(tensor) for tensor in tensors) else None

    @classmethod
    def explain(cls, *tensors_and_options: Any) -> None:
        """Raise what the check objects to; one that cannot look at the tensors either has nothing to say."""
        try:
            with below_autograd():
                cls.check(*tensors_and_options)
        except RuntimeError as error:
            if isinstance(error, (IndexError, ValueError)):
                raise

    @classmethod
    def of_few(cls, input: Any, target: Any, reduction: str, gradients: int, own: tuple[Any, ...]) -> Tensor | None:
        """The loss of two tensors of the CPU and nothing else, past most of a call; None where it is not so simple.

        `own` are the options behind those of all losses. Of a few rows every check takes a share of the time. With a
        gradient the way is theirs alone: nothing is kept of the rows for a backward that computes it again.
        """
        few = kernels.few.get(cls.name)
        if not (
            few is not None
            and is_plain(input)
            and type(target) is Tensor
            and input.is_cpu
            and input.dtype in _WIDE
            and reduction in ("mean", "sum")
            and not target.requires_grad
            and not profiling()
        ):
            return None
        is_mean = reduction == "mean"
        try:
            if not torch.is_grad_enabled():
                return few(input, target, is_mean, None, None, *own)[0]
            if input.requires_grad:
                return cls._of_few(input, target, (few, is_mean, gradients, own)) if input.numel() <= FEW else None
            set_grad_enabled(False)
            try:
                return few(input, target, is_mean, None, None, *own)[0]
            finally:
                set_grad_enabled(True)
        except _REFUSALS:
            # The long way says what is wrong.
            return None

    @classmethod
    def _of_small(cls, input: Tensor, target: Tensor, options: Any) -> Tensor | None:
        """The loss of a small batch on a GPU, in one launch with its gradient; None where it is another."""
        own = kernels._past_dispatcher(cls.name, input.device)
        if (
            own is None
            or not options.gradients
            or not kernels._multiplies(input, options.reduction)
            or target.requires_grad
            or not (is_memory(input) and is_memory(target))
            or profiling()
        ):
            return None
        tensors = (input, target, *(None,) * (cls.count - 2))
        if not (torch.is_grad_enabled() and input.requires_grad):
            return own.forward(*tensors, _without_gradients(options))[0]
        if saved_tensors_have_hooks():
            return None
        loss, gradient, *_ = own.forward(*tensors, options)
        return cls._of_small_batch(input, target, (options, loss, gradient))

    @classmethod
    def _wanted(cls, arguments: Sequence[Any], options: Any) -> int:
        """The gradients that are to come along with the loss, a bit each."""
        if not options.gradients or options.reduction == "none" or torch.compiler.is_exporting():
            return 0
        if not torch.is_grad_enabled():
            return 0
        return sum(1 << i for i, t in enumerate(arguments[: cls.derived]) if t is not None and t.requires_grad)

    @classmethod
    def handed_over(
        cls, grad_output: Tensor, ready: Sequence[Tensor], tensors: Any, state: Any, options: Any
    ) -> Sequence[Tensor]:
        """The gradients for `grad_output`, in the memory of those for 1."""
        if cls.scales:
            return [gradient if gradient.numel() == 0 else gradient.mul_(grad_output) for gradient in ready]
        # On the CPU a look is free; elsewhere the kernel looks.
        if grad_output.is_cpu and grad_output.item() == 1:
            return ready
        if (own := cls._past_dispatcher((ready[0], grad_output, *tensors, *state))) is not None:
            own.backward(grad_output, ready[0], *tensors, *state, options)
            return ready
        with below_autograd():
            cls.backward_operator_(grad_output, ready[0], *tensors, *state, *options)
        return ready

    @classmethod
    def _fake(cls, tensors: Sequence[Any], options: Any) -> tuple[Tensor, ...]:
        input = tensors[0]
        rows = cls.rows(input)
        if options.reduction != "none":
            loss = input.new_empty((), dtype=options.dtype)
        elif cls.elementwise:
            loss = torch.empty_like(input, dtype=options.dtype)
        else:
            loss = input.new_empty(cls.results(input), dtype=options.dtype)
        gradients = (
            torch.empty_like(tensors[i]) if options.gradients >> i & 1 else input.new_empty(0)
            for i in range(cls.derived)
        )
        if not cls.keeps:
            return loss, *gradients
        return loss, *gradients, input.new_empty([cls.state_fields(options), *rows], dtype=compute_dtype(*tensors[:-1]))

    @classmethod
    def _fake_gradients(cls, tensors: Sequence[Any], options: Any) -> Any:
        if cls.derived == 1:
            return torch.empty_like(tensors[0])
        wanted = (options.gradients >> i & 1 for i in range(cls.derived))
        return tuple(
            torch.empty_like(t) if want else tensors[0].new_empty(0) for t, want in zip(tensors, wanted, strict=False)
        )

    @classmethod
    def losses_of(cls, tensors: Sequence[Any], options: Any) -> tuple[Tensor, Tensor | None]:
        """What `forward` gives: the rows' losses, and their state."""
        output = cls.forward(*tensors, options)
        return output if cls.keeps else (output, None)

    @classmethod
    def divisor(cls, tensors: Sequence[Any], options: Any) -> Tensor:
        """What a mean divides by: the last of the tensors, or the number of rows that count."""
        *tensors, normalizer = tensors
        if normalizer is not None:
            return normalizer
        counted = cls.counted(*tensors, options)
        if counted is None:
            return tensors[0].new_full((), math.prod(cls.rows(tensors[0])), dtype=torch.int64)
        return counted.sum()

    @classmethod
    def grad_of_rows(cls, grad_output: Tensor, tensors: Sequence[Any], options: Any) -> Tensor:
        """The gradient of the result by a row's loss: one number a row, or one for all."""
        if options.reduction == "mean":
            grad_output = part_of_mean(grad_output, cls.divisor(tensors, options))
        return grad_output.to(compute_dtype(*tensors[:-1]))

    @classmethod
    def _reduced(cls, *tensors_and_options: Any) -> Tensor:
        """The loss in differentiable steps."""
        *tensors, options = tensors_and_options
        losses, _ = cls.losses_of(tensors[:-1], options)
        return cls.reduced(losses if options.reduction == "none" else losses.sum(), tensors, options)

    @classmethod
    def reduced(cls, losses: Tensor, tensors: Sequence[Any], options: Any) -> Tensor:
        """Of the losses themselves for 'none', else of their sum."""
        if options.reduction == "mean":
            losses = mean_of(losses, cls.divisor(tensors, options), options.empty)
        return losses.to(options.dtype)

    @classmethod
    def _gradient_of_rows(cls, *arguments: Any) -> Any:
        """The gradients of `backward`, in differentiable steps."""
        grad_output, *tensors, options = arguments
        found = cls.backward(cls.grad_of_rows(grad_output, tensors, options), *tensors[:-1], options)
        if cls.derived == 1:
            return found.to(tensors[0].dtype)
        return tuple(
            gradient.to(tensor.dtype) if options.gradients >> i & 1 else tensors[0].new_empty(0)
            for i, (gradient, tensor) in enumerate(zip(found, tensors, strict=False))
        )

    @classmethod
    def _backward(
        cls, grad_output: Tensor, tensors: Sequence[Any], kept: Sequence[Tensor], options: Any, needed: Any
    ) -> list[Tensor | None]:
        """The gradients, those that came along with the loss only multiplied where nobody follows."""
        state, ready = kept[: cls.keeps], kept[cls.keeps :]
        if not ready or recording():
            return cls._gradients(grad_output, tensors, state, options, needed)
        others = (*(False,) * cls.derived, *needed[cls.derived :])
        gradients = cls._gradients(grad_output, tensors, state, options, others)
        for i, gradient in enumerate(ready):
            if needed[i]:
                gradients[i] = _SCALED(gradient, grad_output, tensors[i])
        return gradients

    @classmethod
    def _gradients(
        cls, grad_output: Tensor, tensors: Sequence[Any], state: Sequence[Tensor], options: Any, needed: Any
    ) -> list[Tensor | None]:
        """By the first tensors through the operator, so that they can be differentiated again; by the others too."""
        gradients: list[Tensor | None] = [None] * cls.count
        wanted = sum(1 << i for i in range(cls.derived) if needed[i])
        if wanted:
            bits = 0 if cls.derived == 1 else wanted
            numbers_apart = type(options) is cls.options_of_numbers
            operator = cls.backward_of_numbers if numbers_apart else cls.backward_operator
            found = operator(grad_output, *tensors, *state, *options._replace(gradients=bits))
            for i, gradient in enumerate((found,) if cls.derived == 1 else found):
                gradients[i] = gradient if needed[i] else None
        others = [place for place in range(cls.derived, cls.count) if needed[place]]
        for place, gradient in _pulled_back(cls._reduced, tensors, options, others, grad_output).items():
            gradients[place] = gradient
        return gradients

    # A mapped call is one of more rows.

    @classmethod
    def _fold(cls, info: Any, dims: Sequence[int | None], tensors: Sequence[Any], options: Any) -> Any:
        *own, normalizer = tensors
        if any(dims[place] is not None for place in cls._shared_places):
            return _loop(cls.operator, info, dims, (*tensors, *options))
        front = cls._front(own, dims, info.batch_size)
        flat = cls._flat(front)
        input = front[0]
        shape = (info.batch_size, *cls.results(input[0]))
        row_dtype = options.dtype if options.reduction == "none" else compute_dtype(*own)
        unreduced = options._replace(reduction="none", dtype=row_dtype, gradients=0)
        losses, *others = cls.operator(*flat, None, *unreduced)
        losses = losses.reshape(shape)
        if options.reduction != "none":
            losses = losses.reshape(info.batch_size, -1).sum(1)
        if options.reduction == "mean":
            divisor = cls._mapped_divisor(normalizer, dims[len(own)], flat, options, shape)
            losses = mean_of(losses, divisor, options.empty)
        outputs, places = [losses.to(options.dtype)], [0]
        outputs += others[: cls.derived]
        places += [None] * cls.derived
        if cls.keeps:
            outputs.append(others[-1].unflatten(1, input.shape[:2]))
            places.append(1)
        return tuple(outputs), tuple(places)

    @classmethod
    def _fold_backward(cls, info: Any, dims: Sequence[int | None], arguments: Sequence[Any], options: Any) -> Any:
        grad_output, *own = arguments
        if any(dims[1 + place] is not None for place in cls._shared_places) or cls.derived > 1:
            return _loop(cls.backward_operator, info, dims, (*arguments, *options))
        state = [own.pop()] if cls.keeps else []
        normalizer = own.pop()
        front = cls._front(own, dims[1:], info.batch_size)
        input = front[0]
        shape = (info.batch_size, *cls.results(input[0]))
        grad = front_of(grad_output, dims[0], info.batch_size)
        if options.reduction == "mean":
            divisor = cls._mapped_divisor(normalizer, dims[cls.count], cls._flat(front), options, shape)
            grad = part_of_mean(grad, divisor)
        grad = grad.reshape(-1, *(1,) * (len(shape) - 1)) if grad.dim() == 1 else grad
        flat = cls._flat([*front, grad.expand(shape)])
        kept = []
        if cls.keeps:
            kept = [front_of(state[0], dims[1 + cls.count], info.batch_size).movedim(0, 1).flatten(1, 2)]
        gradient = cls.backward_operator(flat[-1], *flat[:-1], None, *kept, *options._replace(reduction="none"))
        return gradient.reshape(input.shape), 0

    @classmethod
    def _mapped_divisor(
        cls, normalizer: Tensor | None, dim: int | None, flat: Sequence[Any], options: Any, shape: Sequence[int]
    ) -> Tensor:
        """What the mapped means divide by: `divisor` of each, or one for all; `shape` is that of their rows' losses."""
        if normalizer is not None:
            return front_of(normalizer, dim, shape[0])
        counted = cls.counted(*flat, options)
        if counted is None:
            return flat[0].new_full((), math.prod(shape[1:]), dtype=torch.int64)
        return counted.reshape(shape[0], -1).sum(1)

    @classmethod
    def _front(cls, tensors: Sequence[Any], dims: Sequence[int | None], size: int) -> list[Any]:
        shared = cls._shared_places
        return [t if place in shared else front_of(t, dims[place], size) for place, t in enumerate(tensors)]

    @classmethod
    def _flat(cls, tensors: Sequence[Any]) -> list[Any]:
        """The mapped dimension and the rows as one; elements need no such thing."""
        if cls.elementwise:
            return list(tensors)
        shared = cls._shared_places
        return [t if place in shared or t is None else t.flatten(0, 1) for place, t in enumerate(tensors)]


# A compiled kernel says in one sentence what it objects to, and the type that LibTorch makes of that differs between
# versions; the check says where, and what to do.
_REFUSALS = (IndexError, ValueError, RuntimeError)


class _Rules(NamedTuple):
    """How an operator is differentiated."""

    options: Any
    tensors: int
    skipped: int  # arguments behind the tensors that are functions of them
    formula: Callable[..., Any]  # the same in differentiable steps
    loss: type[Loss] | None  # whose gradients are not the formula's


def _define(
    name: str,
    schema: str,
    kernel: Callable[..., Any],
    fake: Callable[..., Any],
    fold: Callable[..., Any] | None,
    rules: _Rules | None,
) -> Any:
    """An operator, its twin `eager_NAME` to which other backends pass on what they do not cover, and its derivative."""
    LIBRARY.define(name + schema, tags=(torch.Tag.pt2_compliant_tag,))
    LIBRARY.define(f"eager_{name}{schema}")
    operator = getattr(torch.ops.torchlosses, name).default
    for each in (name, f"eager_{name}"):
        LIBRARY.impl(each, _undisturbed(kernel), "CompositeExplicitAutograd")
    torch.library.register_fake(f"torchlosses::{name}", fake, lib=LIBRARY)
    if fold is not None:
        torch.library.register_vmap(f"torchlosses::{name}", fold, lib=LIBRARY)
    autograd = _without_derivative(operator) if rules is None else _with_derivative(operator, rules)
    LIBRARY.impl(name, autograd, "Autograd")
    return operator


def _define_of_numbers(loss: type[Loss], operator: Any, schema: str, fake: Callable[..., Any], rules: _Rules) -> Any:
    """The operator's overload for options whose numbers are in a tensor, in their order, and nan where they were.

    The compiler makes a constant of an operator's number, and compiles again for each value; what tensors are made of
    is an input of the graph. Where the tensor can be read, it is read and the operator itself is called.
    """
    if not any(kind in (float, float | None) for kind in list(get_type_hints(loss.options).values())[_FOR_LOSSES:]):
        return None
    name = operator._schema.name.partition("::")[2] + ".numbers"
    LIBRARY.define(name + schema, tags=(torch.Tag.pt2_compliant_tag,))
    of_numbers = getattr(torch.ops.torchlosses, name.partition(".")[0]).numbers

    def read(*arguments: Any) -> Any:
        *given, tensor = arguments
        numbers = iter(tensor.tolist())
        own = len(given) - len(loss.options._fields) + _FOR_LOSSES
        filled = (next(numbers) if isinstance(a, float) and math.isnan(a) else a for a in given[own:])
        return operator(*given[:own], *filled)

    def refuse(*_: Any) -> Any:
        raise NotImplementedError(
            f"Where its numbers cannot be read, {of_numbers.name()} has no derivative but the gradient of the loss by "
            f"the first tensors: call {operator.name()}."
        )

    traced = _with_derivative(of_numbers, rules._replace(options=loss.options_of_numbers, formula=refuse))

    def differentiated(*arguments: Any) -> Any:
        return read(*arguments) if is_plain(arguments[-1]) else traced(*arguments)

    LIBRARY.impl(name, not_compiled(read), "CompositeExplicitAutograd")
    LIBRARY.impl(name, not_compiled(differentiated), "Autograd")
    torch.library.register_fake(f"torchlosses::{name}", lambda *arguments: fake(*arguments[:-1]), lib=LIBRARY)
    return of_numbers


def _with_numbers_apart(options: Any) -> tuple[Any, Tensor | None]:
    """Options whose numbers differ from call to call of a compiled graph, as nan and a tensor; others are constants."""
    # It takes long to import.
    from torch.fx.experimental.symbolic_shapes import has_static_value

    values, numbers = list(options), []
    for place in range(_FOR_LOSSES, len(values)):
        value = values[place]
        if isinstance(value, float) and not has_static_value(value):
            values[place] = math.nan
            numbers.append(torch.ones((), dtype=torch.float64, device="cpu") * value)
    return type(options)(*values), torch.stack(numbers) if numbers else None


def define_linear(
    name: str, schema: str, kernel: Callable[..., Tensor], transpose: Callable[..., Tensor] | None
) -> Callable[..., Tensor]:
    """An operator that is linear in its first argument, the only tensor, and gives a tensor of the same shape.

    Its derivative along a direction is itself, and `transpose(grad, *others)` gives the gradient by the first argument.
    Where there is no such function it has no derivative.
    """
    LIBRARY.define(name + schema, tags=(torch.Tag.pt2_compliant_tag,))
    operator = getattr(torch.ops.torchlosses, name).default
    LIBRARY.impl(name, kernel, "CompositeExplicitAutograd")
    torch.library.register_fake(f"torchlosses::{name}", lambda tensor, *_: tensor.new_empty(tensor.shape), lib=LIBRARY)

    def forward(ctx: Any, tensor: Tensor, *others: Any) -> Tensor:
        ctx.others = others
        with torch.enable_grad(), set_forward_mode(True), below_autograd():
            return operator(tensor, *others)

    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        assert transpose is not None
        return transpose(grad, *ctx.others), *(None,) * len(ctx.others)

    @forward_ad_rule
    def jvp(ctx: Any, saved: tuple[Any, ...], tangent: Tensor, *_: None) -> Tensor:
        return operator(tangent, *ctx.others)

    methods = {"forward": forward, "backward": backward, "jvp": jvp}
    methods["_compiled_autograd_key"] = compiled_autograd_key
    function: Any = type(name, (SingleLevelFunction,), {key: staticmethod(value) for key, value in methods.items()})

    def autograd(*arguments: Any) -> Tensor:
        if transpose is None or not recording():
            with below_autograd():
                return operator(*arguments)
        with enable_single_level_autograd_function():
            return function.apply(*arguments)

    LIBRARY.impl(name, autograd, "Autograd")
    return operator


def _undisturbed(kernel: Callable[..., Any]) -> Callable[..., Any]:
    """Autocast chose the dtype of the loss before the operator ran; it must not change the operator's own steps."""

    def call(*arguments: Any) -> Any:
        if threads_are_gone():
            with one_thread():
                return call(*arguments)
        device = arguments[0].device.type
        if not torch.amp.is_autocast_available(device) or not torch.is_autocast_enabled(device):
            return kernel(*arguments)
        with torch.autocast(device, enabled=False):
            return kernel(*arguments)

    return not_compiled(call)


def _without_derivative(operator: Any) -> Callable[..., Any]:
    def call(*arguments: Any) -> Any:
        tensors = [argument for argument in arguments if isinstance(argument, Tensor)]
        if torch.is_grad_enabled() and any(tensor.requires_grad for tensor in tensors):
            raise RuntimeError(
                f"{operator.name()} has no derivative: call it under torch.no_grad(), or the operator of the loss, "
                "which has one."
            )
        with below_autograd():
            return operator(*arguments)

    return call


def _with_derivative(operator: Any, rules: _Rules) -> Callable[..., Any]:
    """The kernel for the dispatch key Autograd: a Function of one level, of autograd or of torch.func."""
    n, skipped = rules.tensors, rules.skipped
    m = n + skipped

    def forward(ctx: Any, *arguments: Any) -> Any:
        *tensors, options = arguments
        if transforms_active():
            # `apply` switched both kinds of gradient off; the transforms further out need them.
            with torch.enable_grad(), set_forward_mode(True), below_autograd():
                output = operator(*tensors, *options)
        else:
            with below_autograd():
                output = operator(*tensors, *options)
        ctx.options = options
        loss: Any = rules.loss
        kept: tuple[Any, ...] = ()
        if loss is not None:
            ctx.mark_non_differentiable(*output[1:])
            kept = output[1 + loss.derived :]
            if loss.scales and options.gradients:
                kept = (*kept, *output[1 : 1 + loss.derived])
        ctx.set_materialize_grads(False)
        # Of a gradient nothing is kept: its state is a function of the tensors.
        save(ctx, *tensors[:n], *kept)
        return output

    def backward(ctx: Any, *grads: Any) -> Any:
        nothing = (None,) * (skipped + 1)
        if all(grad is None for grad in grads):
            return (None,) * n + nothing
        saved, needed = ctx.saved_tensors, ctx.needs_input_grad[:n]
        tensors = saved[:n]
        if rules.loss is not None:
            if grads[0] is None:
                return (None,) * n + nothing
            return *rules.loss._backward(grads[0], tensors, saved[n:], ctx.options, needed), *nothing
        places = [place for place in range(n) if needed[place]]
        grad = grads[0] if len(grads) == 1 else tuple(grads)
        gradients = _pulled_back(rules.formula, tensors, ctx.options, places, grad)
        return *(gradients.get(place) for place in range(n)), *nothing

    @forward_ad_rule
    def jvp(ctx: Any, saved: tuple[Any, ...], *tangents: Any) -> Any:
        duals = [
            t if d is None else make_dual(t.contiguous(), d, level=0) for t, d in zip(saved[:n], tangents, strict=False)
        ]
        result = rules.formula(*duals, ctx.options)
        outputs = result if isinstance(result, tuple) else (result,)
        parts = [unpack_dual(output, level=0) for output in outputs]
        found: Any = tuple(torch.zeros_like(x) if tangent is None else tangent for x, tangent in parts)
        if rules.loss is not None:
            found += (None,) * (len(operator._schema.returns) - 1)
        return found if len(found) > 1 else found[0]

    methods = {
        "forward": forward,
        "backward": returning(backward),
        "jvp": jvp,
        "_compiled_autograd_key": compiled_autograd_key,
    }
    name = operator._schema.name.partition("::")[2]
    function: Any = type(name, (SingleLevelFunction,), {key: staticmethod(value) for key, value in methods.items()})

    def kernel(*arguments: Any) -> Any:
        if transforms_active():
            with enable_single_level_autograd_function():
                return function.apply(*arguments[:m], rules.options(*arguments[m:]))
        try:
            if torch.is_grad_enabled() or forward_mode_active():
                return function.apply(*arguments[:m], rules.options(*arguments[m:]))
            with below_autograd():
                return operator(*arguments)
        except _REFUSALS:
            if rules.loss is not None and is_real(arguments[0]):
                rules.loss.explain(*arguments[: n - 1], rules.options(*arguments[m:]))
            raise

    return not_compiled(kernel)


def _direct_function(loss: type[Loss]) -> Callable[..., Any]:
    """The same for plain autograd, past the dispatcher: with the gradient along with the loss."""
    n = loss.count
    nothing = (None,) * (n + 1 - loss.derived)

    def forward(ctx: Any, *arguments: Any) -> Any:
        *tensors, options = arguments
        if options.gradients:
            wanted = options.reduction != "none" and not saved_tensors_have_hooks()
            bits = 0
            if wanted:
                needed = ctx.needs_input_grad
                bits = int(needed[0]) if loss.derived == 1 else sum(1 << i for i in range(loss.derived) if needed[i])
            if bits != options.gradients:
                options = options._replace(gradients=bits)
        output = loss._computed(tensors, options)
        ctx.options, ctx.gradients = options, None
        if options.gradients:
            ctx.gradients = output[1 : 1 + loss.derived]
        if not loss.keeps:
            ctx.save_for_backward(*tensors)
            return output[0]
        state = output[-1]
        ctx.save_for_backward(*tensors, state)
        if not loss.shows_state(options):
            return output[0]
        ctx.mark_non_differentiable(state)
        ctx.set_materialize_grads(False)
        return output[0], state

    def backward(ctx: Any, grad_output: Tensor | None, *_: None) -> Any:
        if grad_output is None:
            return (None,) * (n + 1)
        # Also where they are not needed: autograd checks here that they are still what they were.
        saved = ctx.saved_tensors
        tensors, state, needed, options = saved[:n], saved[n:], ctx.needs_input_grad, ctx.options
        ready, ctx.gradients = ctx.gradients, None
        if not nobody_follows(grad_output):
            if getattr(options, "inplace_backward", False):
                raise RuntimeError(
                    f"{loss.name}: inplace_backward=True writes the gradient over the logits, so it cannot be "
                    "differentiated again (create_graph=True). Leave inplace_backward at False for second derivatives."
                )
            return *loss._gradients(grad_output, tensors, state, _without_gradients(options), needed), None
        if ready is not None and not any(needed[loss.derived :]):
            # The commonest backward, of a small batch too: nothing is left to compute.
            ready = loss.handed_over(grad_output, ready, tensors, state, options)
            given = ready if len(ready) == 1 else (g if want else None for g, want in zip(ready, needed, strict=False))
            return *given, *nothing
        in_place = getattr(options, "inplace_backward", False) and needed[0]
        if ready is None and loss.derived == 1 and not (in_place or any(needed[1:])):
            # As `_gradients`, which would take longer than a small batch.
            with below_autograd():
                found = loss.backward_operator(grad_output, *tensors, *state, *_without_gradients(options))
            return found, *nothing
        along = loss.derived if ready is not None else int(in_place)
        needed = (*(False,) * along, *needed[along:])
        gradients = loss._gradients(grad_output, tensors, state, _without_gradients(options), needed)
        if ready is not None:
            for i, gradient in enumerate(loss.handed_over(grad_output, ready, tensors, state, options)):
                if ctx.needs_input_grad[i]:
                    gradients[i] = gradient
        elif in_place:
            gradients[0] = _in_place(loss, grad_output, tensors, state, options)
        return *gradients, None

    methods = {"forward": staticmethod(forward), "backward": staticmethod(returning(backward))}
    # Past Function.apply, which asks once more for torch.func.
    function: Any = super(Function, type(loss.name, (Function,), methods))
    return function.apply


def _function_of_few(loss: type[Loss]) -> Callable[..., Any]:
    """For a few rows: the least that autograd needs. Where `few` does not cover the call, the result is None."""

    def forward(ctx: Any, input: Tensor, target: Tensor, call: tuple[Any, ...]) -> Tensor | None:
        few, is_mean, gradients, own = ctx.call = call
        along = gradients and not saved_tensors_have_hooks()
        result, gradient = few(input, target, is_mean, 1.0 if along else None, None, *own)
        ctx.gradients = (gradient,) if along else None
        ctx.save_for_backward(input, target)
        return result

    def backward(ctx: Any, grad_output: Tensor) -> Any:
        # Also where they are not needed: autograd checks here that they are still what they were.
        input, target = ctx.saved_tensors
        ready, ctx.gradients = ctx.gradients, None
        incoming = None
        if nobody_follows(grad_output):
            incoming = grad_output.item()
            if ready is not None and incoming == 1:
                return ready[0], None, None
        few, is_mean, _, own = ctx.call
        # Hooks may have given back other tensors than were saved.
        if incoming is not None and is_plain(input) and type(target) is Tensor:
            result, gradient = few(input, target, is_mean, incoming, None if ready is None else ready[0], *own)
            if result is not None:
                return gradient if ready is None else ready[0], None, None
        options = loss.options("mean" if is_mean else "sum", math.nan, input.dtype, 0, *own)
        return _computed_again(loss, grad_output, input, target, options), None, None

    methods = {"forward": staticmethod(forward), "backward": staticmethod(backward)}
    function: Any = super(Function, type(loss.name, (Function,), methods))
    return function.apply


def _function_of_small_batch(loss: type[Loss]) -> Callable[..., Any]:
    """For a small batch on a GPU, whose loss and gradient are there by now."""

    def forward(ctx: Any, input: Tensor, target: Tensor, found: tuple[Any, Tensor, Tensor]) -> Tensor:
        ctx.options, result, ctx.gradient = found
        ctx.save_for_backward(input, target)
        return result

    def backward(ctx: Any, grad_output: Tensor) -> Any:
        # Also where they are not needed: autograd checks here that they are still what they were.
        input, target = ctx.saved_tensors
        ready, ctx.gradient = ctx.gradient, None
        if ready is not None and nobody_follows(grad_output):
            # A look at the incoming gradient would wait for the device.
            kernels._multiply(ready, grad_output, input, target)
            return ready, None, None
        return _computed_again(loss, grad_output, input, target, _without_gradients(ctx.options)), None, None

    methods = {"forward": staticmethod(forward), "backward": staticmethod(backward)}
    function: Any = super(Function, type(loss.name, (Function,), methods))
    return function.apply


def _computed_again(loss: type[Loss], grad_output: Tensor, input: Tensor, target: Tensor, options: Any) -> Any:
    """The gradient of a loss of which nothing is kept."""
    tensors = (input, target, *(None,) * (loss.count - 2))
    state = ()
    if loss.keeps:
        with torch.no_grad():
            state = loss.operator(*tensors, *options)[-1:]
    needed = (True, *(False,) * (loss.count - 1))
    return returning(loss._gradients)(grad_output, tensors, state, options, needed)[0]


def _in_place(loss: type[Loss], grad_output: Tensor, tensors: Any, state: Any, options: Any) -> Tensor:
    """The gradient, written over the first tensor, of which nothing is left."""
    input = tensors[0].detach()
    with below_autograd():
        loss.backward_operator_(grad_output, input, input, *tensors[1:], *state, *_without_gradients(options))
    # Autograd's own check then stops a second backward, and whoever else has kept the values.
    torch.autograd.graph.increment_version(tensors[0])
    return input


def _without_gradients(options: Any) -> Any:
    """The options of a call that makes no gradient along with the loss."""
    return options._replace(gradients=0) if options.gradients else options


def _may_take_triton(tensor: Tensor) -> bool:
    """Quicker to say than whether it does."""
    return not tensor.is_cpu or kernels._TRITON_ON_CPU


def _number(value: float, like: Tensor) -> Tensor:
    """A number as a tensor; float32 would lose its digits."""
    dtype = torch.float32 if like.device.type == "mps" else torch.float64
    if torch.compiler.is_compiling():
        # The compiler makes inputs of the numbers that enter arithmetic; of others it makes constants, a graph each.
        return like.new_ones((), dtype=dtype) * value
    return like.new_full((), value, dtype=dtype)


def _pulled_back(
    formula: Callable[..., Any], tensors: Sequence[Any], options: Any, places: Sequence[int], grad: Any
) -> dict[int, Tensor]:
    """The automatic derivatives by the tensors at `places`."""
    if not places:
        return {}
    # Levels of torch.func that are left by now would be taken for the one that vjp enters.
    tensors, grad = tree_map_only(Tensor, functorch.unwrap_if_dead, (list(tensors), grad))

    def call(*values: Tensor) -> Any:
        merged = list(tensors)
        for place, value in zip(places, values, strict=True):
            merged[place] = value
        return formula(*merged, options)

    output, pull_back = vjp(call, *(tensors[place] for place in places))
    if isinstance(grad, tuple):
        grad = tuple(torch.zeros_like(o) if g is None else g for g, o in zip(grad, output, strict=True))
    return dict(zip(places, pull_back(grad), strict=True))


def front_of(tensor: Any, dimension: int | None, size: int) -> Any:
    """`tensor` with the mapped dimension in front; one that is not mapped is expanded."""
    if tensor is None:
        return None
    return tensor.expand(size, *tensor.shape) if dimension is None else tensor.movedim(dimension, 0)


def _loop(operator: Any, info: Any, dims: Sequence[int | None], arguments: Sequence[Any]) -> Any:
    """The mapped call as a plain loop, for the rare arguments that cannot be folded into the rows."""
    calls = [
        operator(*(a if d is None else a.select(d, i) for a, d in zip(arguments, dims, strict=True)))
        for i in range(info.batch_size)
    ]
    if isinstance(calls[0], Tensor):
        return torch.stack(calls), 0
    return tuple(torch.stack(outputs) for outputs in zip(*calls, strict=True)), (0,) * len(calls[0])


def _scaled(gradient: Tensor, grad_output: Tensor, tensor: Tensor) -> Tensor:
    return (gradient * grad_output).to(gradient.dtype)


# The tensor by which the gradient is taken has no part in the product. It is there so that a compiled graph, which has
# no second derivative, knows that one would be needed, and says so.
_SCALED = _define(
    "scaled_gradient",
    "(Tensor gradient, Tensor grad_output, Tensor tensor) -> Tensor",
    _scaled,
    lambda gradient, grad_output, tensor: torch.empty_like(gradient),
    None,
    None,
)
