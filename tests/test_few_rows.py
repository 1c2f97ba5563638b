"""A few rows go past the dispatcher: what differs from the operators is the time."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

import torchlosses
from torchlosses import _declare, kernels

pytestmark = pytest.mark.skipif("native" not in kernels.available(), reason="the compiled operators are not there")

Loss = Callable[..., Tensor]
LOSSES: dict[str, Loss] = {
    "cross_entropy": torchlosses.cross_entropy,
    "mse_loss": torchlosses.mse_loss,
    "huber_loss": torchlosses.huber_loss,
    "smooth_l1_loss": torchlosses.smooth_l1_loss,
    "binary_cross_entropy_with_logits": torchlosses.binary_cross_entropy_with_logits,
}
OPTIONS: dict[str, list[dict[str, Any]]] = {
    "cross_entropy": [{}, {"label_smoothing": 0.1}, {"ignore_index": 0}],
    "mse_loss": [{}],
    "huber_loss": [{}, {"delta": 0.3}],
    "smooth_l1_loss": [{}, {"beta": 0.3}, {"beta": 0.0}],
    "binary_cross_entropy_with_logits": [{}, {"label_smoothing": 0.1}, {"ignore_index": 1}],
}
each_loss = pytest.mark.parametrize("name", LOSSES)


def example(name: str, shape: tuple[int, int] = (6, 5), dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    input = torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype).requires_grad_()
    if name == "cross_entropy":
        return input, torch.randint(shape[1], shape[:1], generator=generator)
    return input, torch.randint(2, shape, generator=generator).to(dtype)


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The losses that were computed without an operator."""
    found: list[str] = []

    def watched(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any) -> Any:
            found.append(name)
            return function(*arguments)

        return call

    monkeypatch.setattr(kernels, "few", {name: watched(name, function) for name, function in kernels.few.items()})
    return found


def by_operators(function: Callable[[], Any], monkeypatch: pytest.MonkeyPatch) -> Any:
    with monkeypatch.context() as patch:
        patch.setattr(kernels, "few", {})
        return function()


def assert_same(found: Any, expected: Any) -> None:
    torch.testing.assert_close(found, expected, rtol=0, atol=0, equal_nan=True)


@each_loss
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("shape", [(1, 1), (6, 5), (64, 10), (40, 1000)], ids=str)
@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_the_bits_are_those_of_the_operators(
    name: str,
    dtype: torch.dtype,
    shape: tuple[int, int],
    reduction: str,
    calls: list[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    input, target = example(name, shape, dtype)
    for options in OPTIONS[name]:
        for factor in (1.0, 0.3):
            for gradient in ("forward", "backward"):

                def call(options: dict[str, Any] = options, factor: float = factor, gradient: str = gradient) -> Any:
                    loss = LOSSES[name](input, target, reduction=reduction, gradient=gradient, **options)
                    return loss.detach(), *torch.autograd.grad(loss * factor, input)

                calls.clear()
                found = call()
                assert calls
                assert_same(found, by_operators(call, monkeypatch))
        with torch.no_grad():
            loss = LOSSES[name](input, target, reduction=reduction, **options)
        assert_same(loss, found[0])


@each_loss
def test_a_second_backward_and_a_second_derivative(
    name: str, calls: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    input, target = example(name, dtype=torch.float64)

    def call() -> tuple[Tensor, ...]:
        loss = LOSSES[name](input, target)
        (first,) = torch.autograd.grad(loss, input, retain_graph=True)
        first.zero_()
        (second,) = torch.autograd.grad(loss, input, retain_graph=True)
        (third,) = torch.autograd.grad(loss, input, create_graph=True)
        return second, third.detach(), *torch.autograd.grad(third.square().sum(), input)

    found = call()
    assert calls
    assert_same(found, by_operators(call, monkeypatch))
    assert found[2].any()


@each_loss
def test_a_batch_of_incoming_gradients(name: str, calls: list[str]) -> None:
    input, target = example(name)
    loss = LOSSES[name](input, target)
    assert calls
    factors = torch.tensor([1.0, 2.0])
    (each,) = torch.autograd.grad(loss, input, factors, is_grads_batched=True, retain_graph=True)
    (by_map,) = torch.func.vmap(lambda g: torch.autograd.grad(loss, input, g, retain_graph=True))(factors)
    (one,) = torch.autograd.grad(loss, input)
    torch.testing.assert_close(each, torch.stack([one, 2 * one]))
    torch.testing.assert_close(by_map, each)


@each_loss
def test_what_was_saved_must_not_change(name: str, calls: list[str]) -> None:
    input, target = example(name)
    logits = input * 1
    loss = LOSSES[name](logits, target)
    assert calls
    with torch.no_grad():
        logits.add_(1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_a_mean_over_nothing(reduction: str, calls: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    for name, options in (("cross_entropy", {}), ("binary_cross_entropy_with_logits", {"ignore_index": -100})):
        input, target = example(name)
        target.fill_(-100)

        def call(name: str = name, options: Any = options, input: Any = input, target: Any = target) -> Any:
            loss = LOSSES[name](input, target, reduction=reduction, **options)
            return loss.detach(), *torch.autograd.grad(loss, input)

        loss, gradient = call()
        assert loss.isnan() if reduction == "mean" else loss == 0
        assert torch.equal(gradient, torch.zeros_like(gradient))
        torch.testing.assert_close((loss, gradient), by_operators(call, monkeypatch), equal_nan=True)
    assert calls


@pytest.mark.parametrize("grad", [True, False])
def test_an_index_out_of_bounds_is_named(grad: bool, calls: list[str]) -> None:
    with torch.set_grad_enabled(grad), pytest.raises(IndexError, match="Target 5 is out of bounds"):
        torchlosses.cross_entropy(torch.zeros(3, 5, requires_grad=True), torch.tensor([0, 5, 1]))
    assert calls


@pytest.mark.parametrize(
    "input",
    [
        torch.zeros(3, 5).t(),
        torch.zeros(0, 5),
        torch.zeros(5, 3, dtype=torch.bfloat16),
        torch.view_as_complex(torch.ones(5, 3, 2)).conj().imag,
        torch.zeros(_declare.FEW // 4, 5),
    ],
    ids=["strides", "empty", "bfloat16", "negated", "many"],
)
def test_who_does_not_go_that_way(input: Tensor, calls: list[str]) -> None:
    target = torch.zeros(input.shape)
    assert torch.equal(torchlosses.mse_loss(input, target.to(input.dtype)), input.square().mean()) or input.numel() == 0
    torchlosses.cross_entropy(input, torch.zeros(len(input), dtype=torch.int64))
    assert not calls


def test_nor_who_wants_a_gradient_of_the_target(calls: list[str]) -> None:
    input, target = example("mse_loss")
    target.requires_grad_()
    loss = torchlosses.mse_loss(input, target)
    by_input, by_target = torch.autograd.grad(loss, (input, target))
    assert torch.equal(by_input, -by_target)
    assert not calls


def test_an_ignore_index_that_is_no_int64(calls: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    input, target = example("cross_entropy")

    def call() -> Tensor:
        return torchlosses.cross_entropy(input, target, ignore_index=1 << 70)

    with pytest.raises(RuntimeError) as found:
        call()
    with pytest.raises(RuntimeError) as expected:
        by_operators(call, monkeypatch)
    assert str(found.value) == str(expected.value)
