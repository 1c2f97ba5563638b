"""Every way PyTorch has to a derivative, for every loss, against the loss's formula in plain PyTorch operations.

A way is a function of a loss and its tensors. What it gives for ours must be what plain autograd, or the same
transform, gives for the formula. `make test` runs each way with each problem, and all reductions
where they are marked `thorough`; for the slow ways the reductions and backends take turns, and in `make test` the
problems of one family too.
"""

from __future__ import annotations

import io
import itertools
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from typing import Any

import pytest
import torch
import torch._dynamo.compiled_autograd
from torch import Tensor, nn
from torch._dynamo.backends.debugging import aot_eager
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.autograd import forward_ad, gradcheck, gradgradcheck
from torch.autograd.graph import save_on_cpu, saved_tensors_hooks
from torch.fx.experimental.proxy_tensor import make_fx
from torch.overrides import TorchFunctionMode
from torch.testing import assert_close
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map_only
from torch.utils.checkpoint import checkpoint

import torchlosses
from tests.transform_cases import CLASSES, FEATURES, INDEX, PROBLEMS, ROWS, Problem
from tests.turns import in_turn
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


def traced_step(tracing_mode: Any) -> Any:
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
        warnings.filterwarnings("ignore", message="`torch.jit.trace")
        # Sizes are compared in Python, as in torch's own losses.
        warnings.filterwarnings("ignore", message="Converting a tensor to a Python", module="torchlosses")
        traced: Any = torch.jit.trace(loss, tuple(0.5 * v for v in values))
    return plain_gradients(traced, values)


def compiled_autograd(loss: Function, values: Values) -> Any:
    leaves = leaves_of(values)
    found = loss(*leaves)
    with warnings.catch_warnings():
        # Dynamo looks at each tensor's .grad, whatever it is.
        warnings.filterwarnings("ignore", message="The .grad attribute of a Tensor that is not a leaf")
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
    "checkpoint": (checkpointed(False), plain_gradients),
    "reentrant checkpoint": (checkpointed(True), plain_gradients),
    "saved-tensor hooks": (with_saved_tensor_hooks, second_gradients),
    "functionalize": (functionalized(value), value),
    "functionalize(grad)": (functionalized(gradients), gradients),
    "dispatch mode": (under(Passing), second_gradients),
    "function mode": (under(PassingFunctions), second_gradients),
    "default device": (under_a_default_device, second_gradients),
}
SLOW: dict[str, tuple[Callable[..., Any], Callable[..., Any]]] = {
    "linearize": (linearized, directional),
    "make_fx of a step": (traced_step("real"), plain_gradients),
    "make_fx of a step, fake": (traced_step("fake"), plain_gradients),
    "make_fx of a step, symbolic": (traced_step("symbolic"), plain_gradients),
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


def family(problem: Problem) -> str:
    """Losses with one declaration: those of single elements, and each loss of rows."""
    loss = problem.name.partition("-")[0]
    return loss if loss in ("cross_entropy", "cee_loss", "linear_cross_entropy") else "elementwise"


def cases() -> Iterator[Any]:
    backends = kernels.available()
    families: dict[str, list[Problem]] = {}
    for problem in PROBLEMS:
        families.setdefault(family(problem), []).append(problem)
    for (place, problem), (number, way) in itertools.product(enumerate(PROBLEMS), enumerate(WAYS)):
        chosen = list(itertools.product(problem.reductions, backends))
        everyday = [
            (reduction, backend)
            for turn, (reduction, backend) in enumerate(chosen)
            if backend == backends[(number + place + turn // len(backends)) % len(backends)]
            and (reduction == "mean" or problem.name in SEVERAL_REDUCTIONS)
        ]
        if way in SLOW:
            # These see neither what runs inside of an operator nor how its result is made.
            reduction = problem.reductions[(number + place) % len(problem.reductions)]
            chosen = [(reduction, backends[number % len(backends)])]
            relatives = families[family(problem)]
            everyday = chosen if problem is relatives[number // len(backends) % len(relatives)] else []
            if way.startswith("compile(hessian)") and family(problem) != "elementwise":
                # The slowest of all.
                everyday = []
        for reduction, backend in chosen:
            marks = () if (reduction, backend) in everyday else (pytest.mark.thorough,)
            name = f"{problem.name}-{way}-{reduction}-{backend}"
            yield pytest.param(backend, problem, way, reduction, id=name, marks=marks)


@pytest.mark.parametrize(("each_backend", "problem", "way", "reduction"), list(cases()), indirect=["each_backend"])
@pytest.mark.usefixtures("each_backend")
def test_a_way_to_a_derivative(problem: Problem, way: str, reduction: str) -> None:
    if torch.__version__ < "2.13" and way.startswith("compile(hessian)"):
        pytest.skip("torch up to 2.12 does not trace torch.func.hessian of several arguments, whosever the loss")
    values = problem.values()
    ours, theirs = WAYS[way]
    expected = theirs(problem.truth(reduction), values)
    assert_close(ours(problem.loss(reduction), values), expected, rtol=1e-9, atol=1e-11)


every_problem = pytest.mark.parametrize("problem", PROBLEMS, ids=lambda problem: problem.name)


def fake(mode: FakeTensorMode, values: Any) -> Any:
    return tree_map_only(Tensor, mode.from_tensor, values)


@pytest.mark.parametrize(
    ("each_backend", "problem", "inside"),
    in_turn(
        kernels.available(),
        {
            f"{problem.name}-{'inside' if inside else 'outside'}": (problem, inside)
            for inside, problem in itertools.product((True, False), PROBLEMS)
        },
    ),
    indirect=["each_backend"],
)
@pytest.mark.usefixtures("each_backend")
def test_fake_tensors(problem: Problem, inside: bool) -> None:
    """Shapes without values, in their mode and out of it, as memory estimators use them."""
    mode = FakeTensorMode(allow_non_fake_inputs=False)
    values = fake(mode, problem.values())
    for reduction in problem.reductions:
        given = {**dict(zip(problem.draw, values, strict=True)), **fake(mode, problem.fixed), "reduction": reduction}
        # Out of the mode, torch's own `where` mixes real tensors into its derivative: there, what training asks for.
        leaves = [given[name].requires_grad_() for name in (problem.draw if inside else tuple(problem.draw)[:1])]
        with mode if inside else nullcontext():
            losses = problem.ours(**given)
            assert losses.shape == ((ROWS,) if reduction == "none" else ()) or losses.shape == leaves[0].shape
            found = torch.autograd.grad(losses, leaves, torch.ones_like(losses), create_graph=inside)
            assert [f.shape for f in found] == [leaf.shape for leaf in leaves]
            if inside:
                squares = torch.stack([f.square().sum() for f in found]).sum()
                again = torch.autograd.grad(squares, leaves, allow_unused=True)
                assert all(a is None or a.shape == leaf.shape for a, leaf in zip(again, leaves, strict=True))


@every_problem
@pytest.mark.usefixtures("each_backend")
def test_meta_tensors(problem: Problem) -> None:
    to_meta: Any = lambda value: tree_map_only(Tensor, lambda t: t.to("meta"), value)  # noqa: E731
    values, fixed = to_meta(problem.values()), to_meta(problem.fixed)
    for reduction in problem.reductions:
        leaves = leaves_of(values)
        losses = problem.ours(**dict(zip(problem.draw, leaves, strict=True)), **fixed, reduction=reduction)
        found = torch.autograd.grad(losses, leaves, torch.ones_like(losses), create_graph=True)
        assert all(f.is_meta and f.shape == leaf.shape for f, leaf in zip(found, leaves, strict=True))


@every_problem
@pytest.mark.usefixtures("each_backend")
def test_inference_mode(problem: Problem) -> None:
    for reduction in problem.reductions:
        values = problem.values()
        with torch.inference_mode():
            found = problem.loss(reduction)(*problem.values())
        assert found.is_inference()
        assert_close(found.clone(), problem.truth(reduction)(*values), rtol=1e-9, atol=1e-11)


@every_problem
@pytest.mark.usefixtures("each_backend")
def test_saved_tensors_have_their_version_checked(problem: Problem) -> None:
    leaves = leaves_of(problem.values())
    inputs = [leaf * 1.0 for leaf in leaves]
    loss = problem.loss(problem.reductions[-1])(*inputs)
    with torch.no_grad():
        inputs[0].mul_(2)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        torch.autograd.grad(loss, leaves)


class Recording(TorchDispatchMode):
    """What is called of this package's operators, and with what."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple[Any, tuple[Any, ...]]] = []

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if function.namespace == "torchlosses":
            self.calls.append((function, args))
        return function(*args, **(kwargs or {}))


@pytest.mark.parametrize(
    ("each_backend", "problem"),
    in_turn(
        kernels.available(),
        {problem.name: (problem,) for problem in PROBLEMS},
        # These take ten times as long as the others, and each has one beside it that goes the same way.
        lambda problem: (
            not problem.name.startswith(
                ("linear_cross_entropy-", "linear_kl_div-", "linear_log_probs", "cross_entropy-options")
            )
        ),
    ),
    indirect=["each_backend"],
)
@pytest.mark.usefixtures("each_backend")
def test_an_operator_called_directly_is_differentiated(problem: Problem) -> None:
    """Both operators of a loss, against finite differences, in every mode that gradcheck knows."""
    # Half of them with one number, half with one for each row.
    for reduction in (problem.reductions[-(PROBLEMS.index(problem) % 2)],):
        with Recording() as recording:
            plain_gradients(problem.loss(reduction), problem.values())
        operators = dict(recording.calls)
        assert len(operators) == 2
        for operator, arguments in operators.items():
            is_backward = operator.name().endswith("_backward")
            places = [
                place
                for place, argument in enumerate(arguments)
                # The state is a function of the tensors before it.
                if isinstance(argument, Tensor) and argument.is_floating_point() and not is_state(operator, place)
            ]

            def call(*given: Tensor, operator: Any = operator, arguments: Any = arguments, places: Any = places) -> Any:
                merged = list(arguments)
                for place, value in zip(places, given, strict=True):
                    merged[place] = value
                for place in [place for place in range(len(merged)) if is_state(operator, place)]:
                    # A compiled kernel reads it.
                    loss = getattr(
                        torch.ops.torchlosses, operator._schema.name.removesuffix("_backward").split("::")[1]
                    )
                    merged[place] = loss.default(*merged[1:place], *merged[place + 1 :])[-1].detach()
                outputs = operator(*merged)
                if operator.name().endswith("_backward"):
                    return outputs if isinstance(outputs, Tensor) else tuple(o for o in outputs if o.numel())
                return outputs[0]

            leaves = leaves_of([arguments[place] for place in places])
            assert gradcheck(call, leaves, check_forward_ad=True, check_batched_grad=True)
            if not is_backward:
                assert gradgradcheck(call, leaves, check_fwd_over_rev=True)


def is_state(operator: Any, place: int) -> bool:
    return operator._schema.arguments[place].name == "state"


@pytest.mark.usefixtures("each_backend")
@pytest.mark.parametrize("batched", [(), (3,)], ids=["one row", "rows"])
def test_one_row_of_the_linear_cross_entropy_reads_no_value(batched: tuple[int, ...]) -> None:
    """Class weights and a mean look up the weight of the target, which may be mapped, fake or on no device."""
    x = torch.randn(*batched, FEATURES, dtype=torch.float64)
    w, weight = torch.randn(CLASSES, FEATURES, dtype=torch.float64), torch.rand(CLASSES, dtype=torch.float64) + 0.5
    target = torch.zeros(batched, dtype=torch.int64)
    loss = torchlosses.linear_cross_entropy
    targets = torch.stack([target, target + 1])
    found = torch.func.vmap(torch.func.grad(lambda t, x: loss(x, w, t, weight=weight), argnums=1), (0, None))(
        targets, x
    )
    for index, one in enumerate(targets):
        rows = x.reshape(-1, FEATURES).requires_grad_()
        truth = nn.functional.cross_entropy(rows @ w.t(), one.reshape(-1), weight)
        assert_close(found[index], torch.autograd.grad(truth, rows)[0].reshape(x.shape))
    assert loss(x.to("meta"), w.to("meta"), target.to("meta"), weight=weight.to("meta")).shape == ()
    mode = FakeTensorMode()
    faked = fake(mode, (x, w, target, weight))
    for context in (mode, nullcontext()):
        with context:
            assert loss(*faked[:3], weight=faked[3]).shape == ()


@pytest.mark.usefixtures("each_backend")
def test_a_program_with_a_batch_of_any_size() -> None:
    """Exported at one number of rows, run and trained at another."""
    for problem in PROBLEMS:
        if "target" not in problem.draw or "weight" in problem.draw or problem.reductions == ("mean",):
            continue
        values = problem.values()
        shapes = tuple({0: torch.export.Dim.AUTO} if v.shape[0] == ROWS else None for v in values)
        program = torch.export.export(OfTensors(problem.loss("mean")), values, dynamic_shapes=(shapes,)).module()
        doubled = tuple(torch.cat([v, 0.5 * v]) if v.shape[0] == ROWS else v for v in values)
        assert_close(plain_gradients(program, doubled), plain_gradients(problem.truth("mean"), doubled))


@pytest.mark.parametrize("backend", ["eager"])
def test_a_number_that_changes_is_compiled_twice(backend: str) -> None:
    """A `normalizer`: once as a constant, once as a variable. What an operator takes as a number stays a constant."""
    x, t = torch.randn(ROWS, CLASSES, dtype=torch.float64), torch.rand(ROWS, CLASSES, dtype=torch.float64)
    p, w = t.softmax(1), torch.randn(CLASSES, CLASSES, dtype=torch.float64)
    calls: dict[str, Callable[[float], Tensor]] = {
        "mse_loss": lambda v: torchlosses.mse_loss(x, t, normalizer=v),
        "huber_loss": lambda v: torchlosses.huber_loss(x, t, normalizer=v),
        "cee_loss": lambda v: torchlosses.cee_loss(p, INDEX, normalizer=v),
        "cross_entropy": lambda v: torchlosses.cross_entropy(x, INDEX, normalizer=v),
        "linear_cross_entropy": lambda v: torchlosses.linear_cross_entropy(x, w, INDEX, normalizer=v),
        "binary": lambda v: torchlosses.binary_cross_entropy_with_logits(x, p, normalizer=v),
    }
    for name, call in calls.items():
        torch.compiler.reset()
        graphs: list[Any] = []

        def counting(module: Any, inputs: Any, graphs: list[Any] = graphs) -> Any:
            graphs.append(module)
            return module.forward if backend == "eager" else aot_eager(module, inputs)

        function = torch.compile(call, backend=counting, fullgraph=True)
        for step in range(12):
            number = 1.5 + step
            assert_close(
                function(number), call(number), rtol=1e-9, atol=1e-11, msg=lambda text, name=name: f"{name}: {text}"
            )
        assert len(graphs) <= 2, f"{name}: {len(graphs)} graphs"
