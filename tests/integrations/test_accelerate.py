"""Hugging Face Accelerate: changing the import of the loss changes nothing else."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

import torchlosses
from tests.integrations.problem import (
    BFLOAT16,
    EXTRA,
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

accelerate = pytest.importorskip("accelerate", reason=f"accelerate is {EXTRA}")

every_problem = pytest.mark.parametrize("problem", PROBLEMS, ids=problem_name)


@pytest.fixture(autouse=True)
def fresh_accelerator() -> Iterator[None]:
    """Accelerate keeps one state a process, the precision included."""
    yield
    accelerate.state.AcceleratorState._reset_state(reset_partial_state=True)
    accelerate.state.GradientState._reset_state()


def train_with(
    accelerator: Any, losses: ModuleType, problem: Problem, dtype: torch.dtype, prepare_criterion: bool = False
) -> Run:
    model, criterion = network(dtype), problem.criterion(losses, dtype)
    model, optimizer, batches = accelerator.prepare(model, sgd(model), problem.batches(dtype))
    criterion = accelerator.prepare(criterion) if prepare_criterion else criterion.to(accelerator.device)
    history = []
    for _ in range(4):
        for features, target in batches:
            with accelerator.accumulate(model), accelerator.autocast():
                loss = criterion(model(features), target)
                accelerator.backward(loss)
                if accelerator.sync_gradients:
                    accelerator.clip_grad_norm_(model.parameters(), 1.0)
                optimizer.step()
                optimizer.zero_grad()
            history.append(accelerator.gather(loss.detach()))
    run = Run(detached(history), accelerator.unwrap_model(model), accelerator.unwrap_model(criterion))
    accelerator.free_memory()
    return run


@every_problem
@pytest.mark.parametrize(
    ("accumulation", "prepare_criterion"),
    [(3, True), *(pytest.param(*way, marks=pytest.mark.thorough) for way in ((3, False), (1, True), (1, False)))],
)
def test_training(problem: Problem, accumulation: int, prepare_criterion: bool) -> None:
    accelerator = accelerate.Accelerator(cpu=True, gradient_accumulation_steps=accumulation)
    assert_the_import_is_all(lambda losses: train_with(accelerator, losses, problem, torch.float64, prepare_criterion))


@every_problem
def test_mixed_precision(problem: Problem) -> None:
    accelerator = accelerate.Accelerator(cpu=True, mixed_precision="bf16")
    theirs, ours = assert_the_import_is_all(
        lambda losses: train_with(accelerator, losses, problem, torch.float32), **BFLOAT16
    )
    assert ours.losses.dtype == theirs.losses.dtype == torch.float32


def test_class_weight_is_placed_and_saved(tmp_path: Path) -> None:
    """A prepared loss is on the accelerator's device, and its weight is part of the saved state, as torch's is."""
    accelerator = accelerate.Accelerator(cpu=True)
    theirs = accelerator.prepare(WEIGHTED.criterion(torch.nn))
    accelerator.save_state(tmp_path)
    accelerator.free_memory()
    ours = accelerator.prepare(WEIGHTED.criterion(torchlosses))
    assert ours.weight.device == accelerator.device
    assert ours.weight.dtype == torch.float64
    ours.weight.zero_()
    accelerator.load_state(tmp_path)
    torch.testing.assert_close(ours.weight, theirs.weight, rtol=0, atol=0)
