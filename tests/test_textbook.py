"""The numbers of the text that this project grew from, out of the losses and out of the NumPy reference."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from torchlosses import CEELoss, MSELoss, cee_loss, mse_loss, reference

pytestmark = pytest.mark.usefixtures("each_backend")

# The text's image is a 2; the first answer gives 2 the most, the second 7.
TARGET = [0.0, 0.0, 1.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0]
RIGHT = [0.1, 0.05, 0.6, 0.0, 0.05, 0.1, 0.0, 0.1, 0.0, 0.0]
WRONG = [0.1, 0.05, 0.1, 0.0, 0.05, 0.1, 0.0, 0.6, 0.0, 0.0]
MSE_NUMBERS = [(RIGHT, 0.0195), (WRONG, 0.1195)]
CEE_NUMBERS = [(RIGHT, 0.510825457099338), (WRONG, 2.302584092994546)]


@pytest.mark.parametrize(("answer", "number"), MSE_NUMBERS)
def test_mean_squared_error(answer: list[float], number: float) -> None:
    input, target = torch.tensor(answer, dtype=torch.float64), torch.tensor(TARGET, dtype=torch.float64)
    assert abs(reference.mean_squared_error(answer, TARGET) - number) < 1e-12
    assert abs(MSELoss()(input, target).item() - number) < 1e-12
    assert abs(mse_loss(input.expand(3, -1), target.expand(3, -1)).item() - number) < 1e-12


@pytest.mark.parametrize(("answer", "number"), CEE_NUMBERS)
def test_cross_entropy_error(answer: list[float], number: float) -> None:
    input, target = torch.tensor(answer, dtype=torch.float64), torch.tensor(TARGET, dtype=torch.float64)
    assert abs(reference.cross_entropy_error(answer, TARGET) - number) < 1e-12
    for one_hot_or_index in (target, target.long(), target.bool(), torch.tensor(2), torch.tensor([2])):
        assert abs(CEELoss()(input, one_hot_or_index).item() - number) < 1e-12
    assert abs(cee_loss(input.expand(4, -1), torch.tensor([2] * 4)).item() - number) < 1e-12


def _numerical_gradient(function: object, x: np.ndarray) -> np.ndarray:
    """Central differences, as in the text's section 4.3, but with an assertion behind them."""
    gradient = np.zeros_like(x)
    for position in np.ndindex(x.shape):
        step = np.zeros_like(x)
        step[position] = 1e-6
        gradient[position] = (function(x + step) - function(x - step)) / 2e-6  # type: ignore[operator]
    return gradient


@pytest.mark.parametrize(
    ("value", "gradient"),
    [
        (reference.mean_squared_error, reference.mean_squared_error_gradient),
        (reference.cross_entropy_error, reference.cross_entropy_error_gradient),
        (reference.softmax_cross_entropy, reference.softmax_cross_entropy_gradient),
    ],
)
@pytest.mark.parametrize("shape", [(5,), (3, 4)])
def test_reference_gradients_are_the_slopes_of_the_reference(value, gradient, shape: tuple[int, ...]) -> None:
    random = np.random.default_rng(0)
    x, t = reference.softmax(random.normal(size=shape)), reference.softmax(random.normal(size=shape))
    np.testing.assert_allclose(gradient(x, t), _numerical_gradient(lambda y: value(y, t), x), atol=1e-7)


def test_reference_takes_class_indices_and_batches() -> None:
    y = np.array([RIGHT, WRONG])
    expected = (0.510825457099338 + 2.302584092994546) / 2
    assert abs(reference.cross_entropy_error(y, np.array([2, 2])) - expected) < 1e-12
    assert abs(reference.cross_entropy_error(y, np.array([TARGET, TARGET])) - expected) < 1e-12
    assert reference.softmax_cross_entropy(np.zeros(4), np.int64(1)) == pytest.approx(np.log(4))


def test_reference_names_shapes_that_do_not_fit() -> None:
    with pytest.raises(ValueError, match=r"\(10,\) and \(9,\)"):
        reference.mean_squared_error(np.zeros(10), np.zeros(9))
    with pytest.raises(ValueError, match=r"\(2, 10\)"):
        reference.cross_entropy_error(np.zeros((2, 10)), np.zeros((10, 2)))
    with pytest.raises(ValueError, match=r"\(2, 2, 2\)"):
        reference.cross_entropy_error(np.zeros((2, 2, 2)), np.zeros((2, 2, 2)))
