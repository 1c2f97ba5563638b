"""Every way PyTorch has to a derivative, for every loss, against the loss's formula in plain PyTorch operations.

A way is a function of a loss and its tensors. What it gives for ours must be what plain autograd, or the same
transform, gives for the formula. `make test` runs each way with each loss once; all reductions and backends are marked
`thorough`.
"""

from __future__ import annotations

import io
import itertools
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.autograd import forward_ad, gradcheck, gradgradcheck
from torch.autograd.graph import save_on_cpu, saved_tensors_hooks
from torch.fx.experimental.proxy_tensor import make_fx
from torch.overrides import TorchFunctionMode
from torch.testing import assert_close
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.checkpoint import checkpoint

import torchlosses
from tests.transform_cases import CLASSES, FEATURES, IGNORED, INDEX, PROBLEMS, ROWS, Problem
from torchlosses import kernels

Function = Callable[..., Tensor]
Values = tuple[Tensor, ...]


@pytest.fixture(autouse=True)
def no_graphs_from_before() -> Iterator[None]:
    torch.compiler.reset()
    yield
    torch.compiler.reset()


# What there is to derive, as a function of a loss and its tensors.


def everything(values: Values) -> tuple[int, ...]:
    return tuple(range(len(values)))


def directions(values: Values) -> Values:
    return tuple(torch.linspace(-1, 0.7, v.numel(), dtype=v.dtype).cos().reshape(v.shape) for v in values)


def value(loss: Function, values: Values) -> Any:
    return loss(*values)


def gradients(loss: Function, values: Values) -> Any:
    return torch.func.grad(loss, argnums=everything(values))(*values)


def directional(loss: Function, values: Values) -> Any:
    return torch.func.jvp(loss, values, directions(values))


def hessian(loss: Function, values: Values) -> Any:
    return torch.func.hessian(loss, argnums=everything(values))(*values)


def batch(values: Values) -> Values:
    """Three of each tensor, near each other: probabilities stay what they are."""
    return tuple(torch.stack([v, 0.9 * v, 0.8 * v]) for v in values)


def mapped(loss: Function, values: Values) -> Any:
    return torch.func.vmap(loss)(*batch(values))


def mapped_gradients(loss: Function, values: Values) -> Any:
    return torch.func.vmap(torch.func.grad(loss, argnums=everything(values)))(*batch(values))


def mapped_hessian(loss: Function, values: Values) -> Any:
    return torch.func.vmap(torch.func.hessian(loss, argnums=everything(values)))(*batch(values))


def leaves_of(values: Sequence[Tensor]) -> Values:
    return tuple(v.detach().clone().requires_grad_() for v in values)


def plain_gradients(loss: Function, values: Values) -> Any:
    """Loss and gradients by autograd."""
    leaves = leaves_of(values)
    found = loss(*leaves)
    return found.detach(), torch.autograd.grad(found, leaves)


def second_gradients(loss: Function, values: Values) -> Any:
    """A Hessian-vector product by autograd, twice."""
    leaves = leaves_of(values)
    first = torch.autograd.grad(loss(*leaves), leaves, create_graph=True)
    along = sum(((g * d).sum() for g, d in zip(first, directions(values), strict=True)), torch.zeros(()))
    return first, torch.autograd.grad(along, leaves, allow_unused=True, materialize_grads=True)


# Training: parameters that a loss is a function of, in a module that is exported, compiled or traced.


class Training(nn.Module):
    def __init__(self, loss: Function, values: Values) -> None:
        super().__init__()
        self.loss = loss
        self.parameters_of_loss = nn.ParameterList(v.detach().clone() for v in values)

    def forward(self, scale: Tensor) -> Tensor:
        return self.loss(*(parameter * scale for parameter in self.parameters_of_loss))


SCALE = torch.tensor(0.9, dtype=torch.float64)


def trained(model: Callable[[Tensor], Tensor], parameters: Sequence[Tensor]) -> Any:
    """Losses, and what is left of the parameters, of two steps."""
    losses = []
    for _ in range(2):
        loss = model(SCALE)
        losses.append(loss.detach().clone())
        for parameter, gradient in zip(parameters, torch.autograd.grad(loss, parameters), strict=True):
            parameter.data.sub_(0.01 * gradient)
    return losses, [parameter.detach().clone() for parameter in parameters]


def plain_training(loss: Function, values: Values) -> Any:
    model = Training(loss, values)
    return trained(model, tuple(model.parameters()))


def exported_training(change: Callable[[Any], Any] = lambda program: program, strict: bool = False) -> Any:
    def way(loss: Function, values: Values) -> Any:
        program = change(torch.export.export(Training(loss, values), (SCALE,), strict=strict))
        model = program.module()
        return trained(model, tuple(model.parameters()))

    return way


def saved_and_loaded(program: Any) -> Any:
    file = io.BytesIO()
    torch.export.save(program, file)
    file.seek(0)
    return torch.export.load(file)


class OfTensors(nn.Module):
    def __init__(self, loss: Function) -> None:
        super().__init__()
        self.loss = loss

    def forward(self, *values: Tensor) -> Tensor:
        return self.loss(*values)


def exported(transform: Callable[..., Any]) -> Any:
    def way(loss: Function, values: Values) -> Any:
        return transform(torch.export.export(OfTensors(loss), values, strict=False).module(), values)

    return way


def compiled(transform: Callable[..., Any], backend: str) -> Any:
    """torch.compile around the transform."""

    def way(loss: Function, values: Values) -> Any:
        return torch.compile(lambda *v: transform(loss, v), backend=backend, fullgraph=True)(*values)

    return way


def of_compiled(transform: Callable[..., Any], backend: str, fullgraph: bool = True) -> Any:
    """The transform of what torch.compile gives."""

    def way(loss: Function, values: Values) -> Any:
        return transform(torch.compile(loss, backend=backend, fullgraph=fullgraph), values)

    return way


def functionalized(transform: Callable[..., Any]) -> Any:
    def way(loss: Function, values: Values) -> Any:
        return torch.func.functionalize(lambda *v: transform(loss, v))(*values)

    return way


def traced_step(tracing_mode: str) -> Any:
    def way(loss: Function, values: Values) -> Any:
        def step(*given: Tensor) -> Any:
            leaves = tuple(v.detach().requires_grad_() for v in given)
            found = loss(*leaves)
            return found.detach(), torch.autograd.grad(found, leaves)

        # Traced at other values than it is run at.
        return make_fx(step, tracing_mode=tracing_mode, _allow_non_fake_inputs=True)(*(0.5 * v for v in values))(
            *values
        )

    return way


def jit_traced(loss: Function, values: Values) -> Any:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="`torch.jit.trace", category=FutureWarning)
        traced = torch.jit.trace(loss, tuple(0.5 * v for v in values))
    return plain_gradients(traced, values)


def compiled_autograd(loss: Function, values: Values) -> Any:
    leaves = leaves_of(values)
    found = loss(*leaves)
    with torch._dynamo.compiled_autograd._enable(torch.compile(backend="eager", fullgraph=True)):
        found.backward()
    return found.detach(), tuple(leaf.grad for leaf in leaves)


def dual(loss: Function, values: Values) -> Any:
    with forward_ad.dual_level():
        duals = [forward_ad.make_dual(v, d) for v, d in zip(values, directions(values), strict=True)]
        found = forward_ad.unpack_dual(loss(*duals))
        return found.primal, found.tangent


def mapped_over_leaves(loss: Function, values: Values) -> Any:
    leaves = leaves_of(batch(values))
    losses = torch.func.vmap(loss)(*leaves)
    first = torch.autograd.grad(losses.sum(), leaves, create_graph=True)
    along = sum(((g * g.detach()).sum() for g in first), torch.zeros(()))
    return losses.detach(), first, torch.autograd.grad(along, leaves, allow_unused=True, materialize_grads=True)


def mapped_over_leaves_in_steps(loss: Function, values: Values) -> Any:
    leaves = leaves_of(batch(values))
    losses = torch.stack([loss(*(leaf[i] for leaf in leaves)) for i in range(3)])
    first = torch.autograd.grad(losses.sum(), leaves, create_graph=True)
    along = sum(((g * g.detach()).sum() for g in first), torch.zeros(()))
    return losses.detach(), first, torch.autograd.grad(along, leaves, allow_unused=True, materialize_grads=True)


def linearized(loss: Function, values: Values) -> Any:
    with warnings.catch_warnings():
        # About tensors that a function holds, of any function.
        warnings.filterwarnings("ignore", message="Attempted to insert a get_attr Node")
        found, tangent = torch.func.linearize(loss, *values)
    return found, tangent(*directions(values))


def checkpointed(reentrant: bool) -> Any:
    def way(loss: Function, values: Values) -> Any:
        leaves = leaves_of(values)
        found = checkpoint(loss, *leaves, use_reentrant=reentrant)
        found.backward()
        return found.detach(), tuple(leaf.grad for leaf in leaves)

    return way


def with_saved_tensor_hooks(loss: Function, values: Values) -> Any:
    with saved_tensors_hooks(lambda t: t.clone(), lambda t: t.clone()):
        found = second_gradients(loss, values)
    with save_on_cpu():
        assert_close(second_gradients(loss, values), found)
    return found


class Passing(TorchDispatchMode):
    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return function(*args, **(kwargs or {}))


class PassingFunctions(TorchFunctionMode):
    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return function(*args, **(kwargs or {}))


def under(mode: type[Any]) -> Any:
    def way(loss: Function, values: Values) -> Any:
        with mode():
            return second_gradients(loss, values)

    return way


def under_a_default_device(loss: Function, values: Values) -> Any:
    with torch.device("cpu"):
        return second_gradients(loss, values)


# A way, and what of the formula it must equal.
QUICK: dict[str, tuple[Callable[..., Any], Callable[..., Any]]] = {
    "autograd": (plain_gradients, plain_gradients),
    "autograd twice": (second_gradients, second_gradients),
    "func.grad": (gradients, gradients),
    "func.jvp": (directional, directional),
    "func.hessian": (hessian, hessian),
    "dual tensors": (dual, directional),
    "vmap": (mapped, mapped),
    "vmap(grad)": (mapped_gradients, mapped_gradients),
    "vmap(hessian)": (mapped_hessian, mapped_hessian),
    "vmap over leaves": (mapped_over_leaves, mapped_over_leaves_in_steps),
    "linearize": (linearized, directional),
    "checkpoint": (checkpointed(False), plain_gradients),
    "reentrant checkpoint": (checkpointed(True), plain_gradients),
    "saved-tensor hooks": (with_saved_tensor_hooks, second_gradients),
    "functionalize": (functionalized(value), value),
    "functionalize(grad)": (functionalized(gradients), gradients),
    "make_fx of a step": (traced_step("real"), plain_gradients),
    "make_fx of a step, fake": (traced_step("fake"), plain_gradients),
    "make_fx of a step, symbolic": (traced_step("symbolic"), plain_gradients),
    "dispatch mode": (under(Passing), second_gradients),
    "function mode": (under(PassingFunctions), second_gradients),
    "default device": (under_a_default_device, second_gradients),
}
SLOW: dict[str, tuple[Callable[..., Any], Callable[..., Any]]] = {
    "jit.trace": (jit_traced, plain_gradients),
    "export": (exported_training(), plain_training),
    "export, strict": (exported_training(strict=True), plain_training),
    "export, decomposed": (exported_training(lambda program: program.run_decompositions()), plain_training),
    "export, saved and loaded": (exported_training(saved_and_loaded), plain_training),
    "hessian of an exported program": (exported(hessian), hessian),
    "vmap(grad) of an exported program": (exported(mapped_gradients), mapped_gradients),
    "compile(grad)": (compiled(gradients, "aot_eager"), gradients),
    "compile(jvp)": (compiled(directional, "aot_eager"), directional),
    "compile(hessian)": (compiled(hessian, "aot_eager"), hessian),
    "compile(vmap)": (compiled(mapped, "aot_eager"), mapped),
    "compile(vmap(grad))": (compiled(mapped_gradients, "aot_eager"), mapped_gradients),
    "compile(grad), eager": (compiled(gradients, "eager"), gradients),
    "compile(hessian), eager": (compiled(hessian, "eager"), hessian),
    "compiled": (of_compiled(plain_gradients, "aot_eager"), plain_gradients),
    "compiled, second derivative": (of_compiled(second_gradients, "eager"), second_gradients),
    "compiled, dual tensors": (of_compiled(dual, "eager", fullgraph=False), directional),
    "compiled autograd": (compiled_autograd, plain_gradients),
}
WAYS = {**QUICK, **SLOW}
SEVERAL_REDUCTIONS = ("cross_entropy-options", "mse_loss-weights", "linear_cross_entropy")


def cases() -> Iterator[Any]:
    for number, (problem, way) in enumerate(itertools.product(PROBLEMS, WAYS)):
        backends = kernels.available()
        for reduction, backend in itertools.product(problem.reductions, backends):
            everyday = reduction == "mean" or (problem.name in SEVERAL_REDUCTIONS and way in QUICK)
            if way in SLOW:
                # The backends differ in what runs inside of an operator, which these ways do not see.
                everyday = everyday and backend == backends[number % len(backends)]
            marks = () if everyday else (pytest.mark.thorough,)
            yield pytest.param(
                backend, problem, way, reduction, id=f"{problem.name}-{way}-{reduction}-{backend}", marks=marks
            )


@pytest.mark.parametrize(("each_backend", "problem", "way", "reduction"), list(cases()), indirect=["each_backend"])
@pytest.mark.usefixtures("each_backend")
def test_a_way_to_a_derivative(problem: Problem, way: str, reduction: str) -> None:
    values = problem.values()
    ours, theirs = WAYS[way]
    expected = theirs(problem.truth(reduction), values)
    assert_close(ours(problem.loss(reduction), values), expected, rtol=1e-9, atol=1e-11)
