"""The behaviour of mse_loss and MSELoss, corner by corner, beside that of torch.nn."""

from __future__ import annotations

import math
import warnings
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from torchlosses import MSELoss, mse_loss

pytestmark = pytest.mark.usefixtures("each_backend")

WARNING = (
    r"Using a target size \(torch.Size\(\[3\]\)\) that is different to the input size \(torch.Size\(\[3, 1\]\)\). "
    "This will likely lead to incorrect results due to broadcasting. Please ensure they have the same size."
)


def _values(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def test_broadcasting_warns_with_torchs_words() -> None:
    for loss in (mse_loss, MSELoss(), F.mse_loss):
        with pytest.warns(UserWarning, match=WARNING):
            value = loss(_values(3, 1), _values(3, seed=1))
        expected = ((_values(3, 1) - _values(3, seed=1)) ** 2).mean()
        torch.testing.assert_close(value, expected)


def test_the_warning_points_to_the_caller() -> None:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        mse_loss(_values(3, 1), _values(3))
    assert [warning.filename for warning in caught] == [__file__]


def test_broadcast_option() -> None:
    input, target = _values(3, 1), _values(3, seed=1)
    with pytest.raises(ValueError, match=r"target size \(3,\) differs from the input size \(3, 1\).*\(3, 3\) pairs"):
        mse_loss(input, target, broadcast="error")
    with pytest.raises(ValueError, match=r"target size \(3,\)"):
        MSELoss(broadcast="error")(input, target)
    allowed = MSELoss(broadcast="allow")(input, target)
    torch.testing.assert_close(allowed, ((input - target) ** 2).mean())
    with pytest.raises(ValueError, match="'maybe' is not a valid value for broadcast"):
        MSELoss(broadcast="maybe")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="'maybe' is not a valid value for broadcast"):
        mse_loss(input, target, broadcast="maybe")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="'maybe' is not a valid value for broadcast"):
        mse_loss(input, input, broadcast="maybe")  # type: ignore[arg-type]


WRONG_CALLS: dict[str, tuple[type[Exception], str, tuple[Any, ...], dict[str, Any]]] = {
    "shapes that do not broadcast": (
        RuntimeError,
        r"input of size \(3,\) and target of size \(2,\) do not broadcast",
        (_values(3), _values(2)),
        {},
    ),
    "integers": (
        NotImplementedError,
        "not implemented for Long input and Long target",
        (torch.zeros(3, dtype=torch.long), torch.zeros(3, dtype=torch.long)),
        {},
    ),
    "complex input": (
        NotImplementedError,
        "not implemented for ComplexFloat input",
        (torch.zeros(3, dtype=torch.complex64), torch.zeros(3, dtype=torch.complex64)),
        {},
    ),
    "complex target": (
        NotImplementedError,
        "not implemented for ComplexFloat target",
        (_values(3), torch.zeros(3, dtype=torch.complex64)),
        {},
    ),
    "unknown reduction": (ValueError, "'avg' is not a valid value", (_values(3), _values(3)), {"reduction": "avg"}),
    "weight of another shape": (
        ValueError,
        "Weights and input must have the same size",
        (_values(3), _values(3)),
        {"weight": torch.ones(2)},
    ),
}


@pytest.mark.parametrize(("error", "message", "arguments", "options"), WRONG_CALLS.values(), ids=WRONG_CALLS.keys())
@pytest.mark.filterwarnings("ignore:Using a target size:UserWarning")
def test_wrong_call(error: type[Exception], message: str, arguments: tuple[Any, ...], options: dict[str, Any]) -> None:
    """The error is of torch's own type, and says what is wrong."""
    with pytest.raises(error, match=message):
        mse_loss(*arguments, **options)
    with pytest.raises(error):
        F.mse_loss(*arguments, **options)


@pytest.mark.parametrize("legacy", [{"size_average": True}, {"size_average": False}, {"reduce": False}])
def test_legacy_options_name_reduction(legacy: dict[str, Any]) -> None:
    with pytest.raises(TypeError, match="reduction="):
        MSELoss(**legacy)
    with pytest.raises(TypeError, match="reduction="):
        mse_loss(_values(3), _values(3), **legacy)


def test_wrong_reduction_at_construction_and_wrong_types() -> None:
    with pytest.raises(ValueError, match="'avg' is not a valid value for reduction"):
        MSELoss(reduction="avg")  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="target must be a Tensor, but got float"):
        mse_loss(_values(3), 0.0)  # type: ignore[arg-type]
    with pytest.raises(RuntimeError, match="target on meta"):
        mse_loss(_values(3), torch.zeros(3, device="meta"))


def test_positional_arguments_keep_the_places_they_have_in_torch() -> None:
    arguments: tuple[Any, ...] = (None, None, "sum", torch.tensor([1.0, 2.0, 3.0]))
    expected = F.mse_loss(_values(3), _values(3, seed=1), *arguments)
    torch.testing.assert_close(mse_loss(_values(3), _values(3, seed=1), *arguments), expected)
    torch.testing.assert_close(
        MSELoss(None, None, "sum")(_values(3), _values(3, seed=1)),
        torch.nn.MSELoss(None, None, "sum")(_values(3), _values(3, seed=1)),
    )


@pytest.mark.parametrize("input_dtype", [torch.float16, torch.float32, torch.float64, torch.int64, torch.bool])
@pytest.mark.parametrize("target_dtype", [torch.bfloat16, torch.float32, torch.float64])
def test_mixed_dtypes_are_promoted(input_dtype: torch.dtype, target_dtype: torch.dtype) -> None:
    input, target = (_values(5) * 3).to(input_dtype), _values(5, seed=1, dtype=target_dtype)
    leaves = [t.requires_grad_() for t in (input, target) if t.is_floating_point()]
    loss, expected = mse_loss(input, target), F.mse_loss(input, target)
    assert loss.dtype == expected.dtype
    tolerance = 2e-2 if loss.dtype.itemsize == 2 else 1e-6
    torch.testing.assert_close(loss, expected, rtol=tolerance, atol=tolerance)
    gradients = torch.autograd.grad(loss, leaves)
    assert [gradient.dtype for gradient in gradients] == [leaf.dtype for leaf in leaves]
    exact = 2 / 5 * (input.detach().double() - target.detach().double())
    torch.testing.assert_close(gradients[-1].double(), -exact, rtol=2e-2, atol=2e-3)


@pytest.mark.parametrize("shape", [(0,), (0, 3), (2, 0, 3)])
def test_empty(shape: tuple[int, ...]) -> None:
    for reduction in ("mean", "sum", "none"):
        input = torch.zeros(shape, requires_grad=True)
        loss = mse_loss(input, torch.zeros(shape), reduction=reduction)  # type: ignore[arg-type]
        expected = F.mse_loss(torch.zeros(shape), torch.zeros(shape), reduction=reduction)
        torch.testing.assert_close(loss, expected, equal_nan=True)
        loss.sum().backward()
        assert input.grad is not None
        assert input.grad.shape == shape


def test_weighted_mean_broadcasts_numerator_and_denominator_alike() -> None:
    """torch gives 5.0 here, where the unweighted mean is 1.667."""
    input, target = torch.tensor([[0.0], [1.0], [2.0]]), torch.tensor([0.0, 1.0, 2.0])
    unweighted = mse_loss(input, target, broadcast="allow")
    weighted = mse_loss(input, target, weight=torch.ones(3, 1), broadcast="allow")
    torch.testing.assert_close(weighted, unweighted)
    weight = torch.tensor([[1.0], [2.0], [5.0]])
    spread = weight.expand(3, 3)
    expected = (spread * (input - target) ** 2).sum() / spread.sum()
    torch.testing.assert_close(mse_loss(input, target, weight=weight, broadcast="allow"), expected)


def test_float16_does_not_overflow() -> None:
    """300² is beyond float16; torch gives inf."""
    input, target = torch.tensor([300.0, 1.0], dtype=torch.float16), torch.zeros(2, dtype=torch.float16)
    assert mse_loss(input, target) == torch.tensor(45000.5).half()
    assert F.mse_loss(input, target).item() == math.inf


def test_infinity_and_nan_pass_through() -> None:
    inf, nan = math.inf, math.nan
    values = mse_loss(torch.tensor([inf, nan, inf, -inf]), torch.tensor([0.0, 0.0, inf, inf]), reduction="none")
    torch.testing.assert_close(values, torch.tensor([inf, nan, nan, inf]), equal_nan=True)


def test_module_shows_its_options() -> None:
    assert repr(MSELoss(reduction="sum")) == "MSELoss(reduction='sum')"
    assert repr(MSELoss(broadcast="error")) == "MSELoss(reduction='mean', broadcast='error')"
