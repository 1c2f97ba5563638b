"""A few rows go a shorter way: what differs from the operators is the time."""

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
# With what it keeps private.
of_torch: Any = torch
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
# What their operators take beside what all of them take.
OWN: dict[str, tuple[Any, ...]] = {
    "cross_entropy": (-100, 0.0),
    "mse_loss": (),
    "huber_loss": (1.0,),
    "smooth_l1_loss": (1.0,),
    "binary_cross_entropy_with_logits": (None, 0.0),
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
    """What went the shorter way: the losses, each with "+" where its gradient came along."""
    found: list[str] = []

    def watched(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any) -> Any:
            loss, gradient = function(*arguments)
            if loss is not None:
                found.append(name + "+" * (gradient is not None))
            return loss, gradient

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


def transposed(tensor: Tensor) -> Tensor:
    return tensor.t().contiguous() if tensor.dim() == 2 else tensor


def transposed_back(tensor: Tensor) -> Tensor:
    return tensor.t() if tensor.dim() == 2 else tensor


def narrowed(tensor: Tensor) -> Tensor:
    return tensor.bfloat16() if tensor.is_floating_point() else tensor.int()


def as_it_is(tensor: Tensor) -> Tensor:
    return tensor


PACKED = {
    "strides": (transposed, transposed_back),
    "dtype": (narrowed, as_it_is),
    "layout": (Tensor.clone, lambda tensor: of_torch._neg_view(-tensor)),
}


LAID_OUT: dict[str, Callable[[Tensor], Tensor]] = {
    "strides": lambda tensor: transposed_back(transposed(tensor)),
    "negated": lambda tensor: of_torch._neg_view(-tensor),
}


@each_loss
@pytest.mark.parametrize("how", PACKED)
def test_what_hooks_give_back_is_looked_at(name: str, how: str, calls: list[str]) -> None:
    input, target = example(name)
    with torch.autograd.graph.saved_tensors_hooks(*PACKED[how]):
        loss = LOSSES[name](input, target)
    assert calls
    (found,) = torch.autograd.grad(3 * loss, input)
    (expected,) = torch.autograd.grad(3 * LOSSES[name](input, target), input)
    tolerance = 2e-2 if how == "dtype" else 1e-6
    torch.testing.assert_close(found, expected, rtol=tolerance, atol=tolerance / 10)


@each_loss
def test_what_a_hook_of_one_tensor_gives_back_is_looked_at(name: str, calls: list[str]) -> None:
    input, target = example(name)
    loss = LOSSES[name](input, target)
    assert calls
    saved: Any = loss.grad_fn
    saved._raw_saved_tensors[0].register_hooks(transposed, transposed_back)
    (found,) = torch.autograd.grad(3 * loss, input)
    (expected,) = torch.autograd.grad(3 * LOSSES[name](input, target), input)
    # Other strides are walked through in another order.
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-7)


def of_zeros(tensor: Tensor) -> Tensor:
    shape = (len(tensor) + 1, *tensor.shape[1:])
    return of_torch._efficientzerotensor(shape, dtype=tensor.dtype, device="cpu")[1:]


def wrapped(tensor: Tensor) -> Tensor:
    return of_torch._to_functional_tensor(torch.cat([tensor[:1], tensor]))[1:]


def value_of(loss: Tensor) -> Tensor:
    if of_torch._is_functional_tensor(loss):
        of_torch._sync(loss)
        return of_torch._from_functional_tensor(loss)
    return loss


@each_loss
@pytest.mark.parametrize("place", [0, 1], ids=["input", "target"])
@pytest.mark.parametrize("make", [of_zeros, wrapped])
def test_tensors_without_memory(name: str, make: Callable[[Tensor], Tensor], place: int) -> None:
    tensors = [tensor.detach() for tensor in example(name)]
    plain = list(tensors)
    if make is of_zeros:
        plain[place] = torch.zeros_like(plain[place])
    tensors[place] = make(tensors[place])
    torch.testing.assert_close(value_of(LOSSES[name](*tensors)), LOSSES[name](*plain))
    if place == 0 and make is of_zeros:
        (found,) = torch.autograd.grad(LOSSES[name](tensors[0].requires_grad_(), tensors[1]), tensors[0])
        (expected,) = torch.autograd.grad(LOSSES[name](plain[0].requires_grad_(), plain[1]), plain[0])
        torch.testing.assert_close(found, expected)


@each_loss
@pytest.mark.parametrize("grad", [True, False])
@pytest.mark.parametrize("place", [0, 1], ids=["input", "target"])
def test_memory_that_was_freed_is_named(name: str, place: int, grad: bool) -> None:
    tensors = [tensor.detach() for tensor in example(name)]
    tensors[place] = torch.cat([tensors[place][:1], tensors[place]])[1:]
    tensors[place].untyped_storage().resize_(0)
    tensors[0].requires_grad_(grad)
    with pytest.raises(RuntimeError, match="storage was resized to 0"):
        LOSSES[name](*tensors)


@each_loss
@pytest.mark.filterwarnings("ignore:Sparse CSR tensor support is in beta:UserWarning")
@pytest.mark.parametrize("make", [Tensor.to_mkldnn, Tensor.to_sparse, Tensor.to_sparse_csr])
def test_other_layouts_are_named(name: str, make: Callable[[Tensor], Tensor]) -> None:
    input, target = example(name)
    with pytest.raises(NotImplementedError, match="has the layout"):
        LOSSES[name](make(input.detach()), target)
    if name != "cross_entropy":
        with pytest.raises(NotImplementedError, match="has the layout"):
            LOSSES[name](input, make(target))


@each_loss
def test_a_profile_shows_the_loss(name: str) -> None:
    input, target = example(name)
    profile = torch.autograd.profiler.profile()
    with torch.no_grad(), profile:
        LOSSES[name](input, target)
    assert f"torchlosses::{name}" in {event.key for event in profile.key_averages()}


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
def test_an_index_out_of_bounds_is_named(grad: bool) -> None:
    with torch.set_grad_enabled(grad), pytest.raises(IndexError, match="Target 5 is out of bounds"):
        torchlosses.cross_entropy(torch.zeros(3, 5, requires_grad=True), torch.tensor([0, 5, 1]))


@each_loss
@pytest.mark.parametrize("lay_out", LAID_OUT.values(), ids=LAID_OUT)
def test_any_layout(name: str, lay_out: Callable[[Tensor], Tensor], calls: list[str]) -> None:
    input, target = example(name)
    plain = LOSSES[name](input, target)
    (expected,) = torch.autograd.grad(plain, input)
    input = lay_out(input.detach()).requires_grad_()
    loss = LOSSES[name](input, lay_out(target))
    assert len(calls) == 2
    (found,) = torch.autograd.grad(loss, input)
    torch.testing.assert_close((loss, found), (plain, expected))


@each_loss
def test_how_many_go_that_way(name: str, calls: list[str]) -> None:
    """With a gradient a few; without one any number."""
    shape = (_declare.FEW // 4, 5)
    input, target = example(name, shape)
    LOSSES[name](input, target)
    assert not calls
    LOSSES[name](input.detach(), target)
    with torch.no_grad():
        LOSSES[name](input, target)
    assert len(calls) == 2


@each_loss
def test_who_does_not_go_that_way(name: str, calls: list[str]) -> None:
    input, target = example(name)
    LOSSES[name](input, target, reduction="none")
    LOSSES[name](input.bfloat16(), target.bfloat16() if target.is_floating_point() else target)
    assert not calls


@each_loss
def test_what_its_operator_does_not_cover(name: str, calls: list[str]) -> None:
    input, target = example(name)
    loss = LOSSES[name](input[:0], target[:0], reduction="sum")
    assert not calls
    assert loss == 0
    (gradient,) = torch.autograd.grad(loss, input)
    assert not gradient.any()


@each_loss
def test_its_operator_has_no_derivative(name: str) -> None:
    input, target = example(name)
    operator = kernels.few[name]
    arguments = (input, target, True, 1.0, None, *OWN[name])
    with pytest.raises(RuntimeError, match="has no derivative"):
        operator(*arguments)
    with torch.no_grad():
        loss, gradient = operator(*arguments)
    expected = LOSSES[name](input, target)
    assert_same((loss, gradient), (expected, *torch.autograd.grad(expected, input)))


@each_loss
def test_a_gradient_comes_along_where_it_is_wanted(name: str, calls: list[str]) -> None:
    input, target = example(name)
    LOSSES[name](input, target)
    assert calls.pop() == f"{name}+"
    with torch.autograd.graph.saved_tensors_hooks(as_it_is, as_it_is):
        LOSSES[name](input, target)
    LOSSES[name](input, target, gradient="backward")
    LOSSES[name](input.detach(), target)
    with torch.no_grad():
        LOSSES[name](input, target)
    assert calls == [name] * 4


@each_loss
def test_another_gradient_takes_the_memory_of_the_one_that_came_along(name: str, calls: list[str]) -> None:
    input, target = example(name)
    loss = LOSSES[name](input, target)
    saved: Any = loss.grad_fn
    address = saved.gradients[0].data_ptr()
    (2 * loss).backward()
    assert input.grad is not None
    assert input.grad.data_ptr() == address
    assert calls == [f"{name}+", name]


@each_loss
def test_memory_that_does_not_fit_is_not_written_to(name: str) -> None:
    input, target = example(name)
    for memory in (torch.zeros(6, 4), torch.zeros(30), torch.zeros(6, 5, dtype=torch.float64)):
        with torch.no_grad():
            assert kernels.few[name](input, target, True, 1.0, memory, *OWN[name]) == (None, None)
        assert not memory.any()


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
