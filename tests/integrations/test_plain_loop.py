"""The loop that everybody writes: changing the import of the loss changes nothing else."""

from __future__ import annotations

from types import ModuleType

import pytest
import torch
import torch.nn.functional as F

import torchlosses
from tests.integrations.problem import (
    BFLOAT16,
    PROBLEMS,
    WEIGHTED,
    Problem,
    Run,
    assert_the_import_is_all,
    detached,
    network,
    problem_name,
    sgd,
)

every_problem = pytest.mark.parametrize("problem", PROBLEMS, ids=problem_name)


@every_problem
def test_plain_loop(problem: Problem) -> None:
    def train(losses: ModuleType) -> Run:
        model, criterion = network(), problem.criterion(losses)
        optimizer = sgd(model)
        history = []
        for _ in range(4):
            for features, target in problem.batches():
                optimizer.zero_grad()
                loss = criterion(model(features), target)
                loss.backward()
                optimizer.step()
                history.append(loss)
        return Run(detached(history), model, criterion)

    assert_the_import_is_all(train)


@every_problem
def test_loop_with_an_optimizer_that_evaluates_the_loss_again(problem: Problem) -> None:
    def train(losses: ModuleType) -> Run:
        model, criterion = network(), problem.criterion(losses)
        optimizer = torch.optim.LBFGS(model.parameters(), lr=0.5, max_iter=4)
        features, target = problem.data()
        history = []

        def closure() -> torch.Tensor:
            optimizer.zero_grad()
            loss = criterion(model(features), target)
            loss.backward()
            history.append(loss)
            return loss

        for _ in range(2):
            optimizer.step(closure)
        return Run(detached(history), model, criterion)

    # Curvature is estimated from differences of gradients, which multiplies a rounding.
    assert_the_import_is_all(train, rtol=1e-7, atol=1e-9)


@every_problem
def test_loop_with_autocast_and_a_gradient_scaler(problem: Problem) -> None:
    def train(losses: ModuleType) -> Run:
        model, criterion = network(torch.float32), problem.criterion(losses, torch.float32)
        optimizer = sgd(model)
        scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
        history = []
        for _ in range(4):
            for features, target in problem.batches(torch.float32):
                optimizer.zero_grad()
                with torch.autocast("cpu", dtype=torch.bfloat16):
                    loss = criterion(model(features), target)
                scaler.scale(loss).backward()
                scaler.step(optimizer)
                scaler.update()
                history.append(loss)
        return Run(detached(history), model, criterion)

    theirs, ours = assert_the_import_is_all(train, **BFLOAT16)
    assert ours.losses.dtype == theirs.losses.dtype == torch.float32


def test_loop_with_the_functions() -> None:
    features, target = WEIGHTED.data()
    options = WEIGHTED.options(torch.float64)

    def gradients(functional: ModuleType) -> tuple[torch.Tensor, ...]:
        model = network()
        loss = functional.cross_entropy(model(features), target, **options)
        return torch.autograd.grad(loss + functional.mse_loss(model(features), features[:, :3]), [*model.parameters()])

    torch.testing.assert_close(gradients(torchlosses.functional), gradients(F), rtol=1e-11, atol=1e-13)
