"""Who is measured: one implementation a line, and the limits of the machine beside them, one a line."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd import Function

import torchlosses
from benchmarks.cases import BOTH, TOGETHER, Workload
from benchmarks.problems import PROBLEMS, gradient_along_a_direction, policy_loss
from benchmarks.results import Passes
from torchlosses import kernels

Loss = Callable[..., Tensor]


@dataclass(frozen=True)
class Call:
    """Something to be timed: `run` is timed, `prepare` is not and comes before every single `run`, if it is given.

    `around` is entered for a sample as a whole, outside of the time.
    """

    run: Callable[[], object]
    prepare: Callable[[], object] | None = None
    around: Callable[[], AbstractContextManager[object]] = nullcontext


@dataclass(frozen=True)
class Implementation:
    """A way to compute the losses.

    Args:
        name: the key in the results.
        title: in words, for tables and legends.
        losses: a function a loss; what is not there is not measured.
        backend: which one of torchlosses runs.
        compiled: whether the function goes through torch.compile.
        consumes: whether the backward destroys the input.
        passes: what it is asked to do.
    """

    name: str
    title: str
    losses: Mapping[str, Loss]
    backend: str | None = None
    compiled: bool = False
    consumes: bool = False
    passes: tuple[Passes, ...] = BOTH

    def serves(self, case: Workload, passes: Passes) -> bool:
        """Whether it can be measured on this."""
        available = self.backend is None or self.backend in kernels.available()
        asked = case.loss in self.losses and passes in self.passes and case.asks_for(self.name)
        return asked and available

    def around(self) -> AbstractContextManager[object]:
        """Within it, the backend is the one asked for."""
        return nullcontext() if self.backend is None else kernels.use(self.backend)

    def function(self, case: Workload) -> Loss:
        """The loss, compiled for this one case if it is to be."""
        loss = self.losses[case.loss]
        if not self.compiled:
            return loss
        # Without it torch.compile sees another shape of the same function, and compiles for any shape from then on.
        torch.compiler.reset()
        return torch.compile(loss, dynamic=False)

    def call(self, loss: Loss, arguments: tuple[Tensor, ...], passes: Passes) -> Call:
        """One forward, or one forward and backward; whoever fills gradients also frees them within the time."""
        if passes == "forward":
            return Call(partial(loss, *(argument.detach() for argument in arguments)), around=self.around)
        if self.consumes:
            return self._call_on_a_copy(loss, arguments)
        learnt = [argument for argument in arguments if argument.requires_grad]

        def run() -> None:
            loss(*arguments).backward()
            for argument in learnt:
                argument.grad = None

        return Call(run, around=self.around)

    def _call_on_a_copy(self, loss: Loss, arguments: tuple[Tensor, ...]) -> Call:
        """As in training, the input is the output of another operation, here a copy; it is made outside of the time."""
        leaf, *others = arguments
        copy = [leaf]

        def prepare() -> None:
            leaf.grad = None
            copy[0] = leaf.clone()

        return Call(lambda: loss(copy[0], *others).backward(), prepare, self.around)


@dataclass(frozen=True)
class Limit:
    """What the machine needs for a simple step over the same memory, beside which a loss can be judged."""

    name: str
    title: str
    losses: tuple[str, ...]
    call: Callable[..., Call] = field(compare=False)
    largest: int | None = None

    def serves(self, case: Workload) -> bool:
        """Whether it says something about this: of a large input, a step that does not depend on the size does not."""
        fits = self.largest is None or math.prod(case.shape) <= self.largest
        return case.loss in self.losses and fits and case.asks_for(self.name)


def _exp_in_place(input: Tensor, *_: Tensor) -> Call:
    warm = torch.empty_like(input)
    return Call(warm.exp_, partial(warm.copy_, input))


class _Nothing(Function):
    """What PyTorch itself needs to call a Function in Python, and its backward."""

    @staticmethod
    def forward(ctx: Any, input: Tensor, loss: Tensor) -> Tensor:  # type: ignore[override]
        ctx.gradient = torch.empty_like(input)
        return loss.detach()

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor, None]:  # type: ignore[override]
        gradient, ctx.gradient = ctx.gradient, None
        return gradient, None


def _do_nothing(input: Tensor, *_: Tensor) -> Call:
    leaf, loss = input.detach().requires_grad_(), torch.zeros(())

    def run() -> None:
        _Nothing.apply(leaf, loss).backward()
        leaf.grad = None

    return Call(run)


def _read(input: Tensor, *_: Tensor) -> Call:
    """Every byte once; in the short dtypes PyTorch's own sums take far longer than reading."""
    numbers = input.reshape(-1)
    if numbers.element_size() < 4 and numbers.numel() % 2 == 0:
        numbers = numbers.view(torch.float32)
    return Call(partial(torch.dot, numbers, numbers))


def _three_products(input: Tensor, linear_weight: Tensor, target: Tensor) -> Call:
    """What a linear loss cannot do without: logits, and the gradients by input and weight, into warm memory."""
    logits = torch.mm(input, linear_weight.t())
    grad_input, grad_weight = torch.empty_like(input), torch.empty_like(linear_weight)

    def run() -> None:
        torch.mm(input, linear_weight.t(), out=logits)
        torch.mm(logits, linear_weight, out=grad_input)
        torch.mm(logits.t(), input, out=grad_weight)

    return Call(run)


HESSIAN = "cross_entropy_hessian"
OURS: dict[str, Loss] = {
    **{loss: getattr(torchlosses, loss) for loss in PROBLEMS if loss != HESSIAN},
    HESSIAN: gradient_along_a_direction(torchlosses.cross_entropy),
    "log_probs": policy_loss(torchlosses.log_probs),
}
# In a linear loss the products take the time, whatever runs beside them.
WITHOUT_PRODUCTS = {name: loss for name, loss in OURS.items() if name != "linear_cross_entropy"}
# Up to torch 2.12 there is none.
CHUNKED = (
    {"linear_cross_entropy": partial(F.linear_cross_entropy, options=nn.LinearCrossEntropyOptions())}
    if hasattr(F, "linear_cross_entropy")
    else {}
)
IN_PLACE = {"cross_entropy": partial(torchlosses.cross_entropy, inplace_backward=True)}
BUILTIN = {loss: problem.builtin for loss, problem in PROBLEMS.items()}
# What AOTAutograd compiles has one derivative.
COMPILED = {loss: builtin for loss, builtin in BUILTIN.items() if loss != HESSIAN}

IMPLEMENTATIONS = (
    Implementation("native", "torchlosses", OURS, backend="native"),
    Implementation("inplace", "torchlosses, in place", IN_PLACE, backend="native", consumes=True, passes=TOGETHER),
    Implementation("eager", "torchlosses, eager backend", WITHOUT_PRODUCTS, backend="eager"),
    Implementation("torch", "torch", BUILTIN),
    Implementation("chunked", "torch, chunked", CHUNKED),
    Implementation("compiled", "torch.compile", COMPILED, compiled=True),
)

CLASSIFICATION = ("cross_entropy", "log_probs", "cee_loss")
OF_PAIRS = ("mse_loss", "huber_loss", "smooth_l1_loss", "binary_cross_entropy_with_logits")
EVERY = (*CLASSIFICATION, *OF_PAIRS)

LIMITS = (
    Limit("clone", "`input.clone()`", EVERY, lambda x, *_: Call(x.clone)),
    Limit("copy", "`warm.copy_(input)`", EVERY, lambda x, *_: Call(partial(torch.empty_like(x).copy_, x))),
    Limit(
        "exp",
        "`torch.exp(input, out=warm)`",
        CLASSIFICATION,
        lambda x, *_: Call(partial(torch.exp, x, out=torch.empty_like(x))),
    ),
    Limit("exp_", "`warm.exp_()`", CLASSIFICATION, _exp_in_place),
    Limit(
        "dot",
        "`torch.dot(input, target)`",
        OF_PAIRS,
        lambda x, target: Call(partial(torch.dot, x.flatten(), target.flatten())),
    ),
    Limit("read", "`torch.dot(input, input)`", EVERY, _read),
    Limit("function", "a Function that does nothing", ("cross_entropy", "mse_loss"), _do_nothing, largest=1 << 18),
    Limit("products", "the three products", ("linear_cross_entropy",), _three_products),
)
