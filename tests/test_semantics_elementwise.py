"""huber_loss, smooth_l1_loss and binary_cross_entropy_with_logits beside their torch.nn namesakes."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from typing import Any

import mpmath
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd import gradcheck, gradgradcheck
from torch.testing import assert_close

import torchlosses
from tests.turns import in_turn
from torchlosses import binary_cross_entropy_with_logits, huber_loss, kernels, smooth_l1_loss

pytestmark = pytest.mark.usefixtures("each_backend")

Loss = Callable[..., Tensor]
DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
REDUCTIONS = ("mean", "sum", "none")
PAIRS: dict[str, tuple[Loss, Loss, dict[str, Any]]] = {
    "huber_loss": (huber_loss, F.huber_loss, {}),
    "huber_loss, delta": (huber_loss, F.huber_loss, {"delta": 0.3}),
    "smooth_l1_loss": (smooth_l1_loss, F.smooth_l1_loss, {}),
    "smooth_l1_loss, beta": (smooth_l1_loss, F.smooth_l1_loss, {"beta": 0.3}),
    "smooth_l1_loss, beta 0": (smooth_l1_loss, F.smooth_l1_loss, {"beta": 0.0}),
    "binary": (binary_cross_entropy_with_logits, F.binary_cross_entropy_with_logits, {}),
}
each_pair = pytest.mark.parametrize("name", PAIRS)


def drawn(*shape: int, dtype: torch.dtype = torch.float64, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def arguments(name: str, shape: tuple[int, ...], dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor]:
    target = drawn(*shape, dtype=dtype, seed=1)
    return drawn(*shape, dtype=dtype), target.sigmoid() if name == "binary" else target


def value_and_gradients(loss: Loss, *given: Tensor, **options: Any) -> tuple[Tensor, ...]:
    leaves = [tensor.detach().clone().requires_grad_() for tensor in given]
    value = loss(*leaves, **options)
    return value.detach(), *torch.autograd.grad(value, leaves, torch.ones_like(value))


@each_pair
@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("shape", [(), (5,), (4, 3), (2, 3, 2), (0, 3)], ids=str)
def test_values_and_gradients_are_those_of_the_builtin(name: str, shape: tuple[int, ...], reduction: str) -> None:
    ours, builtin, options = PAIRS[name]
    given = arguments(name, shape)
    options = {**options, "reduction": reduction}
    found, expected = (value_and_gradients(loss, *given, **options) for loss in (ours, builtin))
    assert_close(found, expected, equal_nan=True)


@each_pair
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_no_further_from_the_truth_than_the_builtin(name: str, dtype: torch.dtype, reduction: str) -> None:
    ours, builtin, options = PAIRS[name]
    options = {**options, "reduction": reduction}
    for scale in (1e-3, 1.0, 8.0):
        input, target = arguments(name, (300, 7), dtype)
        input = input * scale
        truth = value_and_gradients(builtin, input.double(), target.double(), **options)
        results = [value_and_gradients(loss, input, target, **options) for loss in (ours, builtin)]
        for exact, mine, theirs in zip(truth[:2], *results, strict=False):
            error, allowed = ((found.double() - exact).abs().max() for found in (mine, theirs))
            rounding = torch.finfo(dtype).eps * exact.abs().max()
            assert error <= allowed + rounding / 2


@pytest.mark.parametrize(
    ("each_backend", "name"),
    in_turn(kernels.available(), {name: (name,) for name in PAIRS}),
    indirect=["each_backend"],
)
def test_derivatives_in_every_mode(name: str) -> None:
    ours, _, options = PAIRS[name]
    leaves = [tensor.requires_grad_() for tensor in arguments(name, (3, 2))]
    sample_weight = torch.tensor([0.5, 1.0, 2.0], dtype=torch.float64, requires_grad=True)
    for reduction in REDUCTIONS:

        def loss(x: Tensor, t: Tensor, s: Tensor, reduction: str = reduction) -> Tensor:
            return ours(x, t, sample_weight=s, reduction=reduction, **options)

        given = (*leaves, sample_weight)
        assert gradcheck(loss, given, check_forward_ad=True, check_batched_grad=True)
        assert gradgradcheck(loss, given, check_fwd_over_rev=True)


@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_weights_of_binary_cross_entropy(reduction: str) -> None:
    """A weight and a pos_weight of every shape that broadcasts; a mean divides by the number of elements."""
    x, t = drawn(4, 3), drawn(4, 3, seed=1).sigmoid()
    shapes = ((), (3,), (4, 1), (4, 3))
    for weight_shape, pos_shape in itertools.product((None, *shapes), repeat=2):
        options: dict[str, Any] = {"reduction": reduction}
        if weight_shape is not None:
            options["weight"] = drawn(*weight_shape, seed=2).abs()
        if pos_shape is not None:
            options["pos_weight"] = drawn(*pos_shape, seed=3).abs()
        expected = value_and_gradients(F.binary_cross_entropy_with_logits, x, t, **options)
        assert_close(value_and_gradients(binary_cross_entropy_with_logits, x, t, **options), expected)


@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_the_weight_of_huber(reduction: str) -> None:
    x, t, weight = drawn(4, 3), drawn(4, 3, seed=1), drawn(4, 3, seed=2).abs()
    options: dict[str, Any] = {"weight": weight, "reduction": reduction}
    assert_close(value_and_gradients(huber_loss, x, t, **options), value_and_gradients(F.huber_loss, x, t, **options))
    with pytest.raises(ValueError, match="Weights and input must have the same size"):
        huber_loss(x, t, weight=weight[0])


def test_huber_of_large_errors() -> None:
    x = torch.tensor([1e30, -1e30, math.inf], requires_grad=True)
    losses = huber_loss(x, torch.zeros(3), reduction="none")
    assert_close(losses.detach(), torch.tensor([1e30, 1e30, math.inf]))
    assert_close(torch.autograd.grad(losses.sum(), x)[0], torch.tensor([1.0, -1.0, 1.0]))


def test_options_of_huber_and_smooth_l1() -> None:
    x = torch.zeros(2)
    for call in (
        lambda: huber_loss(x, x, delta=0.0),
        lambda: huber_loss(x, x, delta=math.inf),
        lambda: torchlosses.HuberLoss(delta=-1.0),
    ):
        with pytest.raises(RuntimeError, match="delta must be positive") as caught:
            call()
        assert isinstance(caught.value, ValueError)
    for call in (
        lambda: smooth_l1_loss(x, x, beta=-1.0),
        lambda: smooth_l1_loss(x, x, beta=math.inf),
        lambda: torchlosses.SmoothL1Loss(beta=-1.0),
    ):
        with pytest.raises(RuntimeError, match="beta must be finite and not negative") as caught:
            call()
        assert isinstance(caught.value, ValueError)


@pytest.mark.parametrize("loss", [huber_loss, smooth_l1_loss])
def test_shapes_that_broadcast_are_warned_of(loss: Loss) -> None:
    with pytest.warns(UserWarning, match="Using a target size"):
        loss(torch.zeros(3, 1), torch.zeros(3))
    with pytest.raises(ValueError, match="broadcasting would compare"):
        loss(torch.zeros(3, 1), torch.zeros(3), broadcast="error")
    assert loss(torch.zeros(3, 1), torch.zeros(3), broadcast="allow").item() == 0
    with pytest.raises(RuntimeError, match="do not broadcast"):
        loss(torch.zeros(3), torch.zeros(2))
    with pytest.raises(NotImplementedError, match="not implemented for Long"):
        loss(torch.zeros(3, dtype=torch.int64), torch.zeros(3, dtype=torch.int64))


def test_errors_of_binary_cross_entropy() -> None:
    x = torch.zeros(4, 3)
    wrong: dict[str, Any] = {"reduction": "all"}
    for ours, error, message in (
        (lambda: binary_cross_entropy_with_logits(x, torch.zeros(3)), ValueError, "must be the same as input size"),
        (lambda: binary_cross_entropy_with_logits(x, x, torch.ones(2)), RuntimeError, "weight of shape"),
        (lambda: binary_cross_entropy_with_logits(x, x, pos_weight=torch.ones(4)), RuntimeError, "pos_weight of shape"),
        (lambda: binary_cross_entropy_with_logits(x, x.long()), RuntimeError, "floating-point target"),
        (lambda: binary_cross_entropy_with_logits(x, x, **wrong), ValueError, "not a valid value"),
        (lambda: binary_cross_entropy_with_logits(x, x, size_average=True), TypeError, "reduction="),  # type: ignore[arg-type]
        (lambda: binary_cross_entropy_with_logits(x, x, label_smoothing=2.0), ValueError, "between 0.0 and 1.0"),
    ):
        with pytest.raises(error, match=message):
            ours()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_confident_tail_of_binary_cross_entropy(dtype: torch.dtype) -> None:
    """Against 50 digits, relative to the loss's own size, as far as the dtype reaches down."""
    for logit in (5.0, 16.0, 40.0, -12.0):
        x = torch.tensor([logit, -logit], dtype=dtype, requires_grad=True)
        t = torch.tensor([1.0, 0.0], dtype=dtype)
        losses = binary_cross_entropy_with_logits(x, t, reduction="none")
        (gradient,) = torch.autograd.grad(losses.sum(), x)
        with mpmath.workdps(50):
            exact = float(mpmath.log1p(mpmath.exp(-logit)))
            slope = float(1 / (1 + mpmath.exp(logit)))
        tiny = torch.finfo(dtype).smallest_normal
        tolerance: dict[str, Any] = {"rtol": 4 * torch.finfo(dtype).eps, "atol": tiny}
        assert_close(losses.detach().double(), torch.tensor([exact, exact], dtype=torch.float64), **tolerance)
        assert_close(gradient.double(), torch.tensor([-slope, slope], dtype=torch.float64), **tolerance)
        if logit == 40.0 and dtype is torch.float32:
            assert losses[0].item() == pytest.approx(4.248354e-18)


def test_infinite_logits_of_binary_cross_entropy() -> None:
    x = torch.tensor([math.inf, -math.inf, math.inf, -math.inf], dtype=torch.float64, requires_grad=True)
    t = torch.tensor([1.0, 0.0, 0.0, 1.0], dtype=torch.float64)
    losses = binary_cross_entropy_with_logits(x, t, reduction="none")
    assert losses.tolist() == [0, 0, math.inf, math.inf]
    assert torch.autograd.grad(losses.sum(), x)[0].tolist() == [0, 0, 1, -1]


@each_pair
@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_nan_passes_through(name: str, reduction: str) -> None:
    loss, _, options = PAIRS[name]
    x, t = arguments(name, (4,))
    x[1] = math.nan
    value, *gradients = value_and_gradients(loss, x, t, reduction=reduction, **options)
    assert value.isnan().tolist() == ([False, True, False, False] if reduction == "none" else True)
    for gradient in gradients:
        assert gradient.isnan().tolist() == [False, True, False, False]


def test_ignored_elements_leave_no_trace() -> None:
    x, t = drawn(6), drawn(6, seed=1).sigmoid()
    t[2] = x[2] = -1
    x[2] = math.nan
    kept = torch.tensor([True, True, False, True, True, True])
    for reduction in ("mean", "sum"):
        options: dict[str, Any] = {"reduction": reduction}
        found = value_and_gradients(
            lambda x, options=options: binary_cross_entropy_with_logits(x, t, ignore_index=-1, **options), x
        )
        expected = value_and_gradients(
            lambda x, options=options: F.binary_cross_entropy_with_logits(x, t[kept], **options), x[kept]
        )
        assert_close((found[0], found[1][kept]), expected)
        assert found[1][2] == 0


def test_label_smoothing_of_binary_cross_entropy() -> None:
    x, t = drawn(6), drawn(6, seed=1).sigmoid()
    expected = F.binary_cross_entropy_with_logits(x, 0.8 * t + 0.1)
    assert_close(binary_cross_entropy_with_logits(x, t, label_smoothing=0.2), expected)


@pytest.mark.parametrize("empty", ["nan", "zero"])
@each_pair
def test_empty_means(name: str, empty: Any) -> None:
    ours, _, options = PAIRS[name]
    x = torch.zeros(0, requires_grad=True)
    loss = ours(x, torch.zeros(0), empty=empty, **options)
    assert loss.isnan() if empty == "nan" else loss == 0
    assert torch.autograd.grad(loss, x)[0].shape == (0,)


@pytest.mark.parametrize(
    ("ours", "builtin"),
    [
        (torchlosses.HuberLoss, nn.HuberLoss),
        (torchlosses.SmoothL1Loss, nn.SmoothL1Loss),
        (torchlosses.BCEWithLogitsLoss, nn.BCEWithLogitsLoss),
    ],
)
def test_modules_are_subclasses_with_the_same_state(ours: type[nn.Module], builtin: type[nn.Module]) -> None:
    assert issubclass(ours, builtin)
    options: dict[str, Any] = {"pos_weight": torch.tensor(2.0)} if builtin is nn.BCEWithLogitsLoss else {}
    mine, theirs = ours(**options), builtin(**options)
    assert mine.state_dict().keys() == theirs.state_dict().keys()
    x, t = drawn(4, 3), drawn(4, 3, seed=1).sigmoid()
    assert_close(mine(x, t), theirs(x, t))
    assert "reduction='mean'" in repr(mine)
