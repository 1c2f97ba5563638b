"""The behaviour of cee_loss and CEELoss, corner by corner."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from torchlosses import CEELoss, cee_loss, cross_entropy

pytestmark = pytest.mark.usefixtures("each_backend")


def _probabilities(*shape: int) -> Tensor:
    logits = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    return logits.softmax(min(1, len(shape) - 1))


@pytest.mark.parametrize("shape", [(3,), (4, 3), (2, 3, 5), (2, 3, 4, 5)])
@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_index_and_one_hot_targets_agree(shape: tuple[int, ...], reduction: Any) -> None:
    rows = () if len(shape) == 1 else (shape[0], *shape[2:])
    index = torch.randint(3, rows, generator=torch.Generator().manual_seed(1))
    one_hot = F.one_hot(index, 3).movedim(-1, min(1, len(shape) - 1))
    expected = -torch.log(_probabilities(*shape).double() + 1e-7)
    expected = (expected * one_hot).sum(min(1, len(shape) - 1))
    samples = expected.numel()
    expected = {"mean": expected.sum() / samples, "sum": expected.sum(), "none": expected}[reduction]
    for target in (
        index,
        index.to(torch.uint8),
        one_hot,
        one_hot.bool(),
        one_hot.to(torch.uint16),
        one_hot.float(),
        one_hot.double(),
    ):
        loss = cee_loss(_probabilities(*shape), target, reduction=reduction)
        assert loss.shape == expected.shape
        torch.testing.assert_close(loss.double(), expected, rtol=1e-5, atol=1e-6)


def test_mean_divides_by_the_number_of_samples() -> None:
    probabilities, target = _probabilities(2, 3, 5), torch.zeros(2, 5, dtype=torch.long)
    ratio = cee_loss(probabilities, target, reduction="sum") / cee_loss(probabilities, target)
    assert ratio.item() == pytest.approx(10)


def test_close_to_cross_entropy_on_logits() -> None:
    logits = torch.randn(8, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    target = torch.arange(8) % 5
    textbook = cee_loss(logits.softmax(1), target, delta=0.0)
    torch.testing.assert_close(textbook, cross_entropy(logits, target))


def test_logits_are_refused_and_sent_to_cross_entropy() -> None:
    for logits in (torch.tensor([[2.0, 0.5]]), torch.tensor([[0.5, -0.5]]), torch.tensor([[math.inf, 0.5]])):
        for target in (torch.tensor([0]), torch.tensor([[1.0, 0.0]])):
            with pytest.raises(ValueError, match=r"expected probabilities in \[0, 1\].*cross_entropy"):
                cee_loss(logits, target)
            with pytest.raises(ValueError, match="cross_entropy"):
                CEELoss()(logits, target)
            cee_loss(logits, target, validate_args=False)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
def test_rounding_is_no_reason_to_refuse(dtype: torch.dtype) -> None:
    slightly_above = torch.nextafter(torch.ones(1, 1), torch.tensor(2.0)).to(dtype)
    if dtype != torch.float32:
        slightly_above = torch.full((1, 1), 1 + torch.finfo(dtype).eps, dtype=torch.float64).to(dtype)
    assert slightly_above.item() > 1
    cee_loss(slightly_above, torch.tensor([0]))
    with pytest.raises(ValueError, match="expected probabilities"):
        cee_loss(slightly_above + 20 * torch.finfo(dtype).eps, torch.tensor([0]))


def test_nan_passes_through() -> None:
    probabilities = torch.tensor([[math.nan, 0.5]])
    assert cee_loss(probabilities, torch.tensor([0])).isnan()
    assert cee_loss(probabilities, torch.tensor([[1.0, 0.0]])).isnan()
    with pytest.raises(ValueError, match="expected probabilities"):
        cee_loss(torch.tensor([[math.nan, 2.0]]), torch.tensor([0]))
    assert cee_loss(torch.full((1, 2), math.nan), torch.tensor([0])).isnan()


def test_zero_probability_costs_minus_log_delta() -> None:
    probabilities = torch.tensor([[0.0, 1.0]], dtype=torch.float64, requires_grad=True)
    for target in (torch.tensor([0]), torch.tensor([[1.0, 0.0]], dtype=torch.float64)):
        loss = cee_loss(probabilities, target)
        (gradient,) = torch.autograd.grad(loss, probabilities)
        assert loss.item() == pytest.approx(-math.log(1e-7), rel=1e-14)
        assert gradient[0, 0].item() == pytest.approx(-1e7)


def test_delta_of_zero_keeps_zero_times_log_zero_at_zero() -> None:
    probabilities = torch.tensor([[0.0, 1.0]], requires_grad=True)
    target = torch.tensor([[0.0, 1.0]])
    loss = cee_loss(probabilities, target, delta=0.0)
    assert loss == 0
    (gradient,) = torch.autograd.grad(loss, probabilities, create_graph=True)
    torch.testing.assert_close(gradient, torch.tensor([[0.0, -1.0]]))
    (second,) = torch.autograd.grad(gradient.sum(), probabilities)
    torch.testing.assert_close(second, torch.tensor([[0.0, 1.0]]))
    assert cee_loss(probabilities, torch.tensor([0]), delta=0.0) == math.inf


@pytest.mark.parametrize("shape", [(0, 3), (2, 3, 0)])
@pytest.mark.parametrize("soft", [False, True])
def test_empty_batch(shape: tuple[int, ...], soft: bool) -> None:
    target = torch.zeros(shape) if soft else torch.zeros(shape[0], *shape[2:], dtype=torch.long)
    assert cee_loss(torch.zeros(shape), target).isnan()
    assert cee_loss(torch.zeros(shape), target, reduction="sum") == 0
    assert cee_loss(torch.zeros(shape), target, reduction="none").shape == (shape[0], *shape[2:])


WRONG_CALLS: dict[str, tuple[type[Exception], str, tuple[Any, ...], dict[str, Any]]] = {
    "index out of range": (
        IndexError,
        r"Target 3 is out of bounds.*position \(1,\)",
        (_probabilities(2, 3), torch.tensor([1, 3])),
        {},
    ),
    "negative index": (IndexError, "Target -100 is out of bounds", (_probabilities(2, 3), torch.tensor([1, -100])), {}),
    "integer target that is not one-hot": (
        ValueError,
        "is one-hot, so it holds 0 and 1 only, but it ranges from 0 to 2",
        (_probabilities(2, 3), torch.tensor([[0, 1, 2], [1, 0, 0]])),
        {},
    ),
    "floating target of the indices' shape": (
        RuntimeError,
        "expected target dtype to be Long",
        (_probabilities(2, 3), torch.zeros(2)),
        {},
    ),
    "batch sizes differ": (
        ValueError,
        r"Expected input batch_size \(2\)",
        (_probabilities(2, 3), torch.tensor([1, 2, 0])),
        {},
    ),
    "integer input": (
        NotImplementedError,
        "not implemented for Long input",
        (torch.zeros(2, 3, dtype=torch.long), torch.tensor([1, 2])),
        {},
    ),
    "negative delta": (ValueError, "delta must be", (_probabilities(2, 3), torch.tensor([1, 2])), {"delta": -1.0}),
    "delta of nan": (ValueError, "delta must be", (_probabilities(2, 3), torch.tensor([1, 2])), {"delta": math.nan}),
    "delta that is no number": (
        TypeError,
        "delta must be a float",
        (_probabilities(2, 3), torch.tensor([1, 2])),
        {"delta": "1e-7"},
    ),
    "unknown reduction": (
        ValueError,
        "'avg' is not a valid value",
        (_probabilities(2, 3), torch.tensor([1, 2])),
        {"reduction": "avg"},
    ),
}


@pytest.mark.parametrize(("error", "message", "arguments", "options"), WRONG_CALLS.values(), ids=WRONG_CALLS.keys())
def test_wrong_call(error: type[Exception], message: str, arguments: tuple[Any, ...], options: dict[str, Any]) -> None:
    with pytest.raises(error, match=message):
        cee_loss(*arguments, **options)


def test_module_checks_its_options_at_construction_and_shows_them() -> None:
    with pytest.raises(ValueError, match="delta must be"):
        CEELoss(delta=-1.0)
    with pytest.raises(ValueError, match="not a valid value for reduction"):
        CEELoss(reduction="avg")  # type: ignore[arg-type]
    assert repr(CEELoss(reduction="sum")) == "CEELoss(delta=1e-07, reduction='sum', validate_args=True)"
