"""The curves of the page follow the losses."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from training.objectives import HUBER_DELTA, OBJECTIVES, loss_library
from training.playground import HEIGHT, WIDTH, cee_gradient, huber_gradient, panels
from training.tasks import digit_task


@pytest.mark.parametrize("implementation", ["torchlosses", "torch"])
def test_gradients_are_those_of_the_losses(implementation: str) -> None:
    losses = loss_library(implementation)
    p = torch.tensor([1e-6, 1e-3, 0.2, 0.5, 0.9], dtype=torch.float64)
    logits = ((1 - p) / 9).log().unsqueeze(1).repeat(1, 10)
    logits[:, 0] = p.log()
    logits.requires_grad_()
    objective = OBJECTIVES["cee-softmax"](digit_task(torch.device("cpu")), losses)
    (objective.loss(logits, objective.encode(torch.zeros(5)).double()) * 5).backward()
    assert logits.grad is not None
    np.testing.assert_allclose(cee_gradient(p.numpy()), -logits.grad[:, 0].numpy(), rtol=1e-9)
    error = torch.tensor([-0.7, -0.05, 0.02, 0.3], dtype=torch.float64, requires_grad=True)
    (losses.huber(error, torch.zeros_like(error)) * 4).backward()
    assert error.grad is not None
    np.testing.assert_allclose(huber_gradient(error.detach().numpy()), error.grad.numpy(), rtol=1e-12)
    assert np.abs(error.grad.numpy()).max() == HUBER_DELTA


def test_every_curve_fills_its_drawing() -> None:
    for panel in panels(45.0):
        for curve in panel.curves:
            points = np.array([point.split() for point in curve.path.removeprefix("M").split("L")], dtype=float)
            assert points[:, 0].min() == 0
            assert points[:, 0].max() == WIDTH
            assert points[:, 1].min() == 0
            assert points[:, 1].max() == pytest.approx(HEIGHT, abs=0.1)
