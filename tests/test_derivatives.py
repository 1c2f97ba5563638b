"""Derivatives that `torchlosses.testing` does not ask for; the others are in tests/testing/test_own_losses.py."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.autograd import forward_ad, gradcheck, gradgradcheck
from torch.func import grad, hessian, jacfwd, jacrev, jvp, vmap

import torchlosses
from tests.cases import CASES, CASES_WITH_BUILTIN, CLASSES, ComparedLoss, identifier
from tests.turns import in_turn
from torchlosses import kernels

pytestmark = pytest.mark.usefixtures("each_backend")

SOME = pytest.mark.parametrize(
    "name",
    [
        "cross_entropy-index-4x3-mean-weight-smoothing",
        "cross_entropy-probability-4x3-none-weight",
        "cross_entropy-ignored-2x3x2-sum-weight-smoothing",
        "mse_loss-3x2-3x2-mean-weight",
        "cee_loss-probability-4x3-mean",
    ],
)


@SOME
def test_batches_of_derivatives(name: str) -> None:
    """What `torchlosses.testing` leaves out: several tangents at once, and several gradients of the gradient."""
    case = next(case for case in CASES if case.name == name)
    tensors = case.tensors()
    options = {} if case.ours is not torchlosses.cee_loss else {"validate_args": False}
    function, leaves = case.function({**tensors, **options}), case.leaves(tensors)  # type: ignore[dict-item]
    assert gradcheck(function, leaves, check_forward_ad=True, check_batched_forward_grad=True)
    assert gradgradcheck(function, leaves, check_batched_grad=True)


@SOME
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


@pytest.mark.parametrize(
    ("each_backend", "case", "transform"),
    in_turn(
        kernels.available(),
        {f"{case.name}-{name}": (case, NESTED[name]) for case, name in itertools.product(_SCALAR, NESTED)},
        # As on a chessboard: half of the transforms of each case, and half of the cases of each.
        lambda case, transform: (_SCALAR.index(case) + list(NESTED.values()).index(transform)) % 2 == 0,
    ),
    indirect=["each_backend"],
)
def test_torch_func_equals_the_builtin(case: ComparedLoss, transform) -> None:
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
def test_vmapped_gradients_equal_a_loop(case: ComparedLoss) -> None:
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
