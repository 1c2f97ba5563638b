"""The gradient that is computed along with the loss: what differs from computing it in the backward is nothing."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.fx.experimental.proxy_tensor import make_fx
from torch.testing import assert_close
from torch.utils.checkpoint import checkpoint

import torchlosses

pytestmark = pytest.mark.usefixtures("each_backend")

Loss = Callable[..., Tensor]
DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)


def indices_of(input: Tensor) -> Tensor:
    target = torch.arange(len(input)) % input.shape[1]
    target[1:2] = -100
    return target


def numbers_of(input: Tensor) -> Tensor:
    return torch.linspace(-2, 2, input.numel()).to(input.dtype).view_as(input)


def shares_of(input: Tensor) -> Tensor:
    return numbers_of(input).float().softmax(1).to(input.dtype)


def cross_entropy_of(input: Tensor, **options: Any) -> Tensor:
    return torchlosses.cross_entropy(input, indices_of(input), **options)


def everything_of(input: Tensor, **options: Any) -> Tensor:
    weights = {"weight": torch.linspace(0.5, 2, input.shape[1]).to(input.dtype)}
    weights["sample_weight"] = torch.linspace(1, 0, len(input), dtype=input.dtype)
    extras = {"z_loss": 0.1, "logit_scale": 1.5, "logit_softcap": 2.0, "label_smoothing": 0.1}
    return torchlosses.cross_entropy(input, indices_of(input), **weights, **extras, **options)


LOSSES: dict[str, Loss] = {
    "cross_entropy": cross_entropy_of,
    "cross_entropy, all options": everything_of,
    "cross_entropy, probabilities": lambda x, **o: torchlosses.cross_entropy(x, shares_of(x), **o),
    "mse_loss": lambda x, **o: torchlosses.mse_loss(x, numbers_of(x), **o),
    "huber_loss": lambda x, **o: torchlosses.huber_loss(x, numbers_of(x), **o),
    "smooth_l1_loss": lambda x, **o: torchlosses.smooth_l1_loss(x, numbers_of(x), **o),
    "binary_cross_entropy_with_logits": (
        lambda x, **o: torchlosses.binary_cross_entropy_with_logits(x, shares_of(x), **o)
    ),
    "cee_loss": lambda x, **o: torchlosses.cee_loss(x, shares_of(x), validate_args=False, **o),
}
each_loss = pytest.mark.parametrize("loss", LOSSES.values(), ids=LOSSES)


def leaf(dtype: torch.dtype = torch.float64, shape: tuple[int, int] = (6, 5)) -> Tensor:
    numbers = torch.randn(shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    return (0.2 + numbers.square()).to(dtype).requires_grad_()


def is_computed_along(loss: Tensor) -> bool:
    return getattr(loss.grad_fn, "gradients", None) is not None


@each_loss
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", [(1, 2), (3, 10), (64, 17), (200, 100), (3, 70_000)], ids=str)
def test_loss_and_gradient_have_the_bits_of_the_ordinary_way(
    loss: Loss, dtype: torch.dtype, shape: tuple[int, int]
) -> None:
    for reduction in ("mean", "sum"):
        input = leaf(dtype, shape)
        value = loss(input, reduction=reduction)
        assert is_computed_along(value)
        (gradient,) = torch.autograd.grad(value, input)
        expected = loss(input, reduction=reduction, gradient="backward")
        assert not is_computed_along(expected)
        assert torch.equal(value, expected)
        assert torch.equal(gradient, torch.autograd.grad(expected, input)[0])


@each_loss
def test_where_the_gradient_is_not_computed_along(loss: Loss) -> None:
    assert not is_computed_along(loss(leaf().detach()))
    assert not is_computed_along(loss(leaf(), reduction="none"))
    assert not is_computed_along(loss(leaf(), gradient="backward"))
    with torch.no_grad():
        assert not is_computed_along(loss(leaf()))
    with torch.inference_mode():
        assert loss(leaf().detach()).grad_fn is None
    with forward_ad.dual_level():
        assert not is_computed_along(loss(leaf()))
    with torch.autograd.graph.saved_tensors_hooks(lambda x: x, lambda x: x):
        assert not is_computed_along(loss(leaf()))


def test_nothing_is_computed_for_the_other_inputs_alone() -> None:
    weight = torch.rand(5, dtype=torch.float64, requires_grad=True)
    loss = torchlosses.cross_entropy(leaf().detach(), torch.arange(6) % 5, weight)
    assert loss.requires_grad
    assert not is_computed_along(loss)


@each_loss
@pytest.mark.parametrize("use_reentrant", [False, True])
def test_nothing_is_computed_in_a_checkpointed_forward(
    loss: Loss, use_reentrant: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    input = leaf()
    (expected,) = torch.autograd.grad(loss(input), input)
    found: list[bool] = []

    def call(x: Tensor) -> Tensor:
        value = loss(x)
        found.append(is_computed_along(value))
        return value

    checkpoint(call, input, use_reentrant=use_reentrant).backward()
    assert found[0] is False
    assert input.grad is not None
    assert torch.equal(input.grad, expected)


def test_reading_once_is_what_it_costs(each_backend: str) -> None:
    """A gradient from forward to backward, and nothing beside it; the other way holds nothing."""
    from torchlosses.testing.checks.cost import peak_bytes

    input = torch.randn(512, 4096, requires_grad=True)
    target = torch.randint(4096, (512,))
    kept: list[Tensor] = []
    ways: Any = (("forward", 1), ("backward", 0))
    for gradient, held in ways:
        peak = peak_bytes(
            lambda gradient=gradient: kept.append(torchlosses.cross_entropy(input, target, gradient=gradient))
        )
        assert held * input.nbytes <= peak < (held + 0.9) * input.nbytes + (8 << 20) * (each_backend == "eager")


@each_loss
@pytest.mark.parametrize("factor", [0.0, 1.0, -2.5])
def test_the_incoming_gradient_is_taken_as_in_the_backward(loss: Loss, factor: float) -> None:
    input, incoming = leaf(), torch.tensor(factor, dtype=torch.float64)
    (gradient,) = torch.autograd.grad(loss(input), input, incoming)
    (expected,) = torch.autograd.grad(loss(input, gradient="backward"), input, incoming)
    assert torch.equal(gradient, expected)
    (one,) = torch.autograd.grad(loss(input), input)
    assert_close(gradient, factor * one, rtol=1e-14, atol=1e-17)


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
    assert_close(second, -3 * kept, rtol=1e-14, atol=1e-17)
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
    assert_close(found, torch.stack([one, -2 * one]), rtol=1e-14, atol=1e-17)


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
    assert_close(graph(leaf().detach(), 4 * one), 4 * gradient(leaf(), one), rtol=1e-14, atol=1e-17)


@each_loss
def test_the_gradient_belongs_to_the_leaf_alone(loss: Loss) -> None:
    """What was computed along is handed out, not copied, and not held by the graph."""
    input = leaf()
    value = loss(input)
    (ready,) = value.grad_fn.gradients  # type: ignore[union-attr]
    address = ready.data_ptr()
    del ready
    value.backward(retain_graph=True)
    assert input.grad is not None
    assert input.grad.data_ptr() == address
    assert not is_computed_along(value)
    before = input.grad.clone()
    # Nothing done to the first result can reach the second.
    input.grad.zero_()
    value.backward()
    assert torch.equal(input.grad, before)
