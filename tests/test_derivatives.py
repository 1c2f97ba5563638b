"""Derivatives of all orders, in every mode that PyTorch has."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.autograd import forward_ad, gradcheck, gradgradcheck
from torch.func import functional_call, grad, hessian, jacfwd, jacrev, jvp, vjp, vmap

import torchlosses
from tests.cases import CASES, CASES_WITH_BUILTIN, CLASSES, Case, identifier

pytestmark = pytest.mark.usefixtures("each_backend")


@pytest.mark.parametrize("case", CASES, ids=identifier)
def test_gradcheck(case: Case) -> None:
    tensors = case.tensors()
    options = {} if case.ours is not torchlosses.cee_loss else {"validate_args": False}
    function, leaves = case.function({**tensors, **options}), case.leaves(tensors)  # type: ignore[dict-item]
    assert gradcheck(
        function,
        leaves,
        check_forward_ad=True,
        check_backward_ad=True,
        check_batched_grad=True,
        check_batched_forward_grad=True,
        check_undefined_grad=True,
    )
    assert gradgradcheck(function, leaves, check_fwd_over_rev=True, check_rev_over_rev=True, check_batched_grad=True)


@pytest.mark.parametrize(
    "name",
    [
        "cross_entropy-index-4x3-mean-weight-smoothing",
        "cross_entropy-probability-4x3-none-weight",
        "mse_loss-3x2-3x2-mean-weight",
        "cee_loss-probability-4x3-mean",
    ],
)
def test_third_derivatives(name: str) -> None:
    case = next(case for case in CASES if case.name == name)
    tensors = case.tensors()
    options = {} if case.ours is not torchlosses.cee_loss else {"validate_args": False}
    function = case.function({**tensors, **options})  # type: ignore[dict-item]

    def squared_gradient(*leaves: Tensor) -> Tensor:
        loss = function(*leaves)
        gradients = torch.autograd.grad(loss, leaves, torch.ones_like(loss), create_graph=True)
        return torch.stack([gradient.square().sum() for gradient in gradients]).sum()

    assert gradgradcheck(squared_gradient, case.leaves(tensors))


NESTED = {
    "grad": grad,
    "hessian": hessian,
    "jacfwd(jacfwd)": lambda f: jacfwd(jacfwd(f)),
    "jacrev(jacrev)": lambda f: jacrev(jacrev(f)),
    "jacrev(jacfwd)": lambda f: jacrev(jacfwd(f)),
    "jacfwd(jacfwd(jacfwd))": lambda f: jacfwd(jacfwd(jacfwd(f))),
    "jacfwd(jacfwd(grad))": lambda f: jacfwd(jacfwd(grad(f))),
}

# Broadcasting happens outside of the Function and is covered by gradcheck; the last shape differs by a view.
_SCALAR = [
    case
    for case in CASES_WITH_BUILTIN
    if case.options["reduction"] != "none" and "broadcast" not in case.options and "x2x2" not in case.name
]


def _polynomial_mse(input: Tensor, target: Tensor, weight: Tensor | None = None, reduction: str = "mean") -> Tensor:
    """The squared error composed of elementary operations: torch's own kernel refuses nested forward mode."""
    squares = (input - target) ** 2 if weight is None else weight * (input - target) ** 2
    denominator = squares.numel() if weight is None else weight.sum()
    return squares.sum() / denominator if reduction == "mean" else squares.sum()


@pytest.mark.parametrize("transform", NESTED.values(), ids=NESTED.keys())
@pytest.mark.parametrize("case", _SCALAR, ids=identifier)
def test_torch_func_equals_the_builtin(case: Case, transform) -> None:
    tensors = case.tensors()
    builtin = case.builtin if case.ours is not torchlosses.mse_loss else _polynomial_mse
    others = {name: tensor for name, tensor in tensors.items() if name != "input"}

    def ours(input: Tensor) -> Tensor:
        return case.ours(input, **others, **case.options)

    def theirs(input: Tensor) -> Tensor:
        assert builtin is not None
        return builtin(input, **others, **case.options)

    expected = transform(theirs)(tensors["input"])
    torch.testing.assert_close(transform(ours)(tensors["input"]), expected)


@pytest.mark.parametrize("case", CASES, ids=identifier)
def test_vmap_equals_a_loop(case: Case) -> None:
    """Over every tensor at once and over each alone, mapped along the first and the last dimension."""
    batch = [case.tensors(seed=seed) for seed in range(3)]
    names = list(batch[0])
    for mapped in (names, *([name] for name in names)):
        for dimension in (0, -1):
            arguments = [
                torch.stack([tensors[n] for tensors in batch], dimension) if n in mapped else batch[0][n] for n in names
            ]
            in_dims = tuple(dimension if n in mapped else None for n in names)

            def loss(*values: Tensor) -> Tensor:
                return case.ours(**dict(zip(names, values, strict=True)), **case.options)

            expected = torch.stack(
                [loss(*(tensors[n] if n in mapped else batch[0][n] for n in names)) for tensors in batch]
            )
            torch.testing.assert_close(vmap(loss, in_dims)(*arguments), expected)


@pytest.mark.parametrize("case", CASES, ids=identifier)
def test_vmapped_gradients_equal_a_loop(case: Case) -> None:
    batch = [case.tensors(seed=seed) for seed in range(3)]
    names = list(batch[0])
    positions = tuple(names.index(name) for name in case.differentiable)

    def loss(*values: Tensor) -> Tensor:
        return case.ours(**dict(zip(names, values, strict=True)), **case.options).sum()

    mapped = vmap(grad(loss, argnums=positions))(*(torch.stack([t[n] for t in batch]) for n in names))
    for index, tensors in enumerate(batch):
        expected = grad(loss, argnums=positions)(*(tensors[n] for n in names))
        torch.testing.assert_close(tuple(g[index] for g in mapped), expected)


def test_nested_vmap() -> None:
    logits = torch.randn(2, 3, 4, CLASSES, dtype=torch.float64)
    target = torch.randint(CLASSES, (4,))
    nested = vmap(vmap(lambda x: torchlosses.cross_entropy(x, target)))(logits)
    flat = torch.stack([torchlosses.cross_entropy(x, target) for x in logits.flatten(0, 1)]).unflatten(0, (2, 3))
    torch.testing.assert_close(nested, flat)


def test_per_sample_gradients_of_a_model() -> None:
    model = torch.nn.Linear(5, CLASSES).double()
    inputs, targets = torch.randn(6, 5, dtype=torch.float64), torch.randint(CLASSES, (6,))
    parameters = {name: parameter.detach() for name, parameter in model.named_parameters()}

    def loss(parameters: dict[str, Tensor], x: Tensor, t: Tensor) -> Tensor:
        return torchlosses.cross_entropy(functional_call(model, parameters, (x.unsqueeze(0),)), t.unsqueeze(0))

    per_sample = vmap(grad(loss), in_dims=(None, 0, 0))(parameters, inputs, targets)
    for index in range(6):
        model.zero_grad()
        torchlosses.cross_entropy(model(inputs[index]), targets[index]).backward()
        for name, parameter in model.named_parameters():
            torch.testing.assert_close(per_sample[name][index], parameter.grad)


@pytest.mark.parametrize("case", CASES, ids=identifier)
def test_jvp_and_vjp_agree(case: Case) -> None:
    """<v, J u> computed forward equals <J' v, u> computed backward."""
    tensors = case.tensors()
    options = {} if case.ours is not torchlosses.cee_loss else {"validate_args": False}
    function = case.function({**tensors, **options})  # type: ignore[dict-item]
    primals = tuple(tensors[name] for name in case.differentiable)
    generator = torch.Generator().manual_seed(1)
    directions = tuple(torch.randn(p.shape, generator=generator, dtype=p.dtype) for p in primals)
    value, forward = jvp(function, primals, directions)[:2]
    cotangent = torch.randn(value.shape, generator=generator, dtype=value.dtype)
    pull_back = vjp(function, *primals)[1]
    backward = torch.stack([(g * u).sum() for g, u in zip(pull_back(cotangent), directions, strict=True)]).sum()
    torch.testing.assert_close((cotangent * forward).sum(), backward)


@pytest.mark.parametrize("differentiated", ["input", "target", "weight"])
def test_partial_tangents(differentiated: str) -> None:
    """A tangent on one argument only, as forward-mode AD gives it."""
    logits = torch.randn(4, CLASSES, dtype=torch.float64)
    tensors: dict[str, Any] = {
        "input": logits,
        "target": logits.flip(0).softmax(1),
        "weight": torch.rand(CLASSES, dtype=torch.float64) + 0.5,
    }
    direction = torch.randn_like(tensors[differentiated])
    with forward_ad.dual_level():
        dual = forward_ad.make_dual(tensors[differentiated], direction)
        tangent = forward_ad.unpack_dual(torchlosses.cross_entropy(**{**tensors, differentiated: dual})).tangent
    step = 1e-6
    shifted = [
        torchlosses.cross_entropy(**{**tensors, differentiated: tensors[differentiated] + sign * step * direction})
        for sign in (1, -1)
    ]
    assert tangent is not None
    torch.testing.assert_close(tangent, (shifted[0] - shifted[1]) / (2 * step), rtol=1e-6, atol=1e-8)


def test_hidden_rows_leave_no_trace_in_any_order() -> None:
    """An ignored row of nan: loss, gradient, directional derivative and Hessian-vector product as if it were absent."""
    clean = torch.randn(3, CLASSES, dtype=torch.float64)
    target = torch.tensor([0, 2, 1])
    dirty = torch.cat([clean, torch.full((1, CLASSES), float("nan"), dtype=torch.float64)])
    dirty_target = torch.cat([target, torch.tensor([-100])])

    def loss(x: Tensor, t: Tensor) -> Tensor:
        return torchlosses.cross_entropy(x, t, label_smoothing=0.1)

    direction = torch.randn(4, CLASSES, dtype=torch.float64)
    for dirty_result, clean_result in (
        (grad(loss)(dirty, dirty_target), grad(loss)(clean, target)),
        (
            jvp(grad(lambda x: loss(x, dirty_target)), (dirty,), (direction,))[1],
            jvp(grad(lambda x: loss(x, target)), (clean,), (direction[:3],))[1],
        ),
    ):
        torch.testing.assert_close(dirty_result[:3], clean_result)
        assert (dirty_result[3] == 0).all()
    torch.testing.assert_close(
        jvp(lambda x: loss(x, dirty_target), (dirty,), (direction,))[1],
        jvp(lambda x: loss(x, target), (clean,), (direction[:3],))[1],
    )
    leaf = dirty.clone().requires_grad_()
    (first,) = torch.autograd.grad(loss(leaf, dirty_target), leaf, create_graph=True)
    (second,) = torch.autograd.grad((first * direction).sum(), leaf)
    assert second.isfinite().all()
    assert (second[3] == 0).all()
