"""Small batches, whose gradient is computed along with the loss: what differs from the ordinary way is nothing."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.fx.experimental.proxy_tensor import make_fx
from torch.testing import assert_close

import torchlosses
from torchlosses import _transforms
from torchlosses._transforms import SMALL

pytestmark = pytest.mark.usefixtures("each_backend")

Loss = Callable[[Tensor], Tensor]


def cross_entropy_of(input: Tensor, **options: Any) -> Tensor:
    target = torch.arange(len(input)) % input.shape[1]
    target[1:2] = -100
    return torchlosses.cross_entropy(input, target, **options)


def mse_loss_of(input: Tensor, **options: Any) -> Tensor:
    return torchlosses.mse_loss(
        input, torch.linspace(-2, 2, input.numel(), dtype=input.dtype).view_as(input), **options
    )


LOSSES = {"cross_entropy": cross_entropy_of, "mse_loss": mse_loss_of}
each_loss = pytest.mark.parametrize("loss", LOSSES.values(), ids=LOSSES)


def leaf(dtype: torch.dtype = torch.float64, shape: tuple[int, int] = (6, 5)) -> Tensor:
    return (3 * torch.randn(shape, generator=torch.Generator().manual_seed(0), dtype=dtype)).requires_grad_()


def ordinary(monkeypatch: pytest.MonkeyPatch) -> None:
    """From here on, no batch is small."""
    monkeypatch.setattr(_transforms, "SMALL", -1)


def is_computed_along(loss: Tensor) -> bool:
    return getattr(loss.grad_fn, "gradient", None) is not None


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(
    ("loss", "options"),
    [
        (cross_entropy_of, {}),
        (cross_entropy_of, {"reduction": "sum", "label_smoothing": 0.2}),
        (mse_loss_of, {}),
        (mse_loss_of, {"reduction": "sum"}),
    ],
    ids=["cross_entropy", "cross_entropy options", "mse_loss", "mse_loss sum"],
)
@pytest.mark.parametrize("classes", [2, 10, 16, 17, 100])
@pytest.mark.parametrize("rows", [1, 3, 64, 200])
def test_loss_and_gradient_have_the_bits_of_the_ordinary_way(
    loss: Callable[..., Tensor],
    dtype: torch.dtype,
    options: dict[str, Any],
    rows: int,
    classes: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    input = leaf(dtype, (rows, classes))
    value = loss(input, **options)
    assert is_computed_along(value)
    (gradient,) = torch.autograd.grad(value, input)
    ordinary(monkeypatch)
    expected = loss(input, **options)
    assert not is_computed_along(expected)
    assert torch.equal(value, expected)
    assert torch.equal(gradient, torch.autograd.grad(expected, input)[0])


@each_loss
def test_where_the_gradient_is_not_computed_along(loss: Callable[..., Tensor]) -> None:
    assert not is_computed_along(loss(leaf().detach()))
    assert not is_computed_along(loss(leaf(), reduction="none"))
    assert not is_computed_along(loss(leaf(torch.bfloat16)))
    assert not is_computed_along(loss(leaf(shape=(SMALL // 4 + 1, 4))))
    with torch.no_grad():
        assert not is_computed_along(loss(leaf()))
    with forward_ad.dual_level():
        assert not is_computed_along(loss(leaf()))
    target = leaf()
    assert not is_computed_along(torchlosses.mse_loss(leaf(), target))


@each_loss
@pytest.mark.parametrize("factor", [0.0, 1.0, -2.5])
def test_the_incoming_gradient_multiplies(loss: Loss, factor: float, monkeypatch: pytest.MonkeyPatch) -> None:
    input = leaf()
    (gradient,) = torch.autograd.grad(loss(input), input, torch.tensor(factor, dtype=torch.float64))
    ordinary(monkeypatch)
    (one,) = torch.autograd.grad(loss(input), input)
    assert_close(gradient, factor * one, rtol=1e-15, atol=0)


def test_an_ignored_row_stays_0_whatever_comes_in() -> None:
    input = leaf()
    (gradient,) = torch.autograd.grad(cross_entropy_of(input), input, torch.tensor(torch.inf, dtype=torch.float64))
    assert gradient[1].eq(0).all()
    assert not gradient[0].isfinite().any()


@each_loss
def test_a_second_backward_with_another_gradient(loss: Loss) -> None:
    input = leaf()
    value = loss(input)
    (first,) = torch.autograd.grad(value, input, retain_graph=True)
    kept = first.clone()
    (second,) = torch.autograd.grad(value, input, torch.tensor(-3.0, dtype=torch.float64))
    assert_close(second, -3 * kept, rtol=1e-15, atol=0)
    assert torch.equal(first, kept)
    with pytest.raises(RuntimeError, match="backward through the graph a second time"):
        torch.autograd.grad(value, input)


@each_loss
def test_the_gradient_of_the_gradient_after_a_backward(loss: Loss) -> None:
    """The gradient that was computed along knows no derivative of its own; it must not be taken for a constant."""
    input = leaf()
    value = loss(input)
    torch.autograd.grad(value, input, retain_graph=True)
    (gradient,) = torch.autograd.grad(value, input, create_graph=True)
    (found,) = torch.autograd.grad(gradient.square().sum(), input)
    step = 1e-6
    direction = torch.randn(input.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)

    def penalty(at: Tensor) -> Tensor:
        at = at.detach().requires_grad_()
        return torch.autograd.grad(loss(at), at)[0].square().sum()

    difference = (penalty(input + step * direction) - penalty(input - step * direction)) / (2 * step)
    assert_close((found * direction).sum(), difference, rtol=1e-6, atol=1e-9)


@each_loss
def test_several_gradients_at_once(loss: Loss) -> None:
    input = leaf()
    factors = torch.tensor([1.0, -2.0], dtype=torch.float64)
    (found,) = torch.autograd.grad(loss(input), input, factors, is_grads_batched=True)
    (one,) = torch.autograd.grad(loss(input), input)
    assert_close(found, torch.stack([one, -2 * one]), rtol=1e-15, atol=0)


@each_loss
def test_the_tangent_of_an_incoming_gradient(loss: Loss) -> None:
    """Forward mode may begin behind the loss."""
    input = leaf()
    value = loss(input)
    (one,) = torch.autograd.grad(value, input, retain_graph=True)
    value = loss(input)
    with forward_ad.dual_level():
        incoming = forward_ad.make_dual(torch.ones_like(value.detach()), torch.full_like(value.detach(), 5.0))
        (found,) = torch.autograd.grad(value, input, incoming)
        tangent = forward_ad.unpack_dual(found).tangent
    assert_close(tangent, 5 * one, rtol=1e-14, atol=0)


@each_loss
def test_a_traced_backward_multiplies_by_what_comes_in(loss: Loss) -> None:
    """A number that tracing has read once would stay in the graph as a constant."""

    def gradient(input: Tensor, incoming: Tensor) -> Tensor:
        input = input.detach().requires_grad_()
        return torch.autograd.grad(loss(input), input, incoming)[0]

    one = torch.tensor(1.0, dtype=torch.float64)
    graph = make_fx(gradient)(leaf().detach(), one)
    assert_close(graph(leaf().detach(), 4 * one), 4 * gradient(leaf(), one), rtol=1e-15, atol=0)


@each_loss
def test_the_gradient_belongs_to_the_leaf_alone(loss: Loss) -> None:
    """What was computed along is handed out, not copied, and not held by the graph."""
    input = leaf()
    value = loss(input)
    ready = value.grad_fn.gradient  # type: ignore[union-attr]
    address = ready.data_ptr()
    del ready
    value.backward(retain_graph=True)
    assert input.grad is not None
    assert input.grad.data_ptr() == address
    before = input.grad.clone()
    value.backward()
    assert_close(input.grad, 2 * before, rtol=1e-15, atol=0)
