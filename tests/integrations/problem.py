"""One tiny problem, trained twice: the namespace of the losses is `torch.nn` once, and ours once."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn
from torch.testing import assert_close
from torch.utils.data import DataLoader, TensorDataset

import torchlosses

EXTRA = "not installed: it comes with the extra 'integrations', see `make integrations`"

ROWS, FEATURES, CLASSES, BATCH_SIZE, LEARNING_RATE = 24, 4, 3, 8, 0.2
IGNORED = 255

# Under autocast both losses compute in float32 from the same bfloat16 outputs, but a gradient that lies between two
# bfloat16 numbers may be rounded to the one or the other: half of 2^-7 of its value, and the updates carry that on.
BFLOAT16 = {"rtol": 2**-8, "atol": 2**-10}


def class_weight(dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.tensor([0.5, 1.0, 3.0], dtype=dtype)


@dataclass(frozen=True)
class Problem:
    """What to learn, and with which loss: the class of that name in the namespace, with these options."""

    name: str
    loss: str
    options: Callable[[torch.dtype], dict[str, Any]] = lambda dtype: {}

    def criterion(self, losses: ModuleType, dtype: torch.dtype = torch.float64) -> nn.Module:
        return getattr(losses, self.loss)(**self.options(dtype))

    @property
    def is_regression(self) -> bool:
        return self.loss == "MSELoss"

    def data(self, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor]:
        generator = torch.Generator().manual_seed(1)
        features = torch.randn(ROWS, FEATURES, generator=generator, dtype=torch.float64)
        quantities = features @ torch.randn(FEATURES, CLASSES, generator=generator, dtype=torch.float64)
        if self.is_regression:
            return features.to(dtype), quantities.to(dtype)
        labels = quantities.argmax(1)
        if "ignore_index" in self.options(dtype):
            labels[::5] = IGNORED
        return features.to(dtype), labels

    def batches(self, dtype: torch.dtype = torch.float64) -> DataLoader[Any]:
        return DataLoader(TensorDataset(*self.data(dtype)), batch_size=BATCH_SIZE)


def _every_option(dtype: torch.dtype) -> dict[str, Any]:
    return {"weight": class_weight(dtype), "ignore_index": IGNORED, "label_smoothing": 0.1}


PROBLEMS = (
    Problem("mse", "MSELoss"),
    Problem("cross-entropy", "CrossEntropyLoss"),
    Problem("cross-entropy-weight-ignore-smoothing", "CrossEntropyLoss", _every_option),
)
WEIGHTED = PROBLEMS[-1]


def problem_name(problem: Problem) -> str:
    return problem.name


def network(dtype: torch.dtype = torch.float64) -> nn.Sequential:
    """The same weights at every call."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(FEATURES, 8), nn.Tanh(), nn.Linear(8, CLASSES)).to(dtype)


def sgd(model: nn.Module) -> torch.optim.SGD:
    return torch.optim.SGD(model.parameters(), lr=LEARNING_RATE, momentum=0.5)


def detached(losses: list[Tensor]) -> Tensor:
    return torch.stack([loss.detach() for loss in losses])


@dataclass(frozen=True)
class Run:
    """What a training left behind."""

    losses: Tensor
    model: nn.Module
    criterion: nn.Module

    def tensors(self) -> Iterator[Tensor]:
        yield self.losses
        yield from self.model.state_dict().values()


def assert_the_import_is_all(
    train: Callable[[ModuleType], Run], *, rtol: float = 1e-11, atol: float = 1e-13
) -> tuple[Run, Run]:
    """Training with our losses gives what training with torch's gives, update for update.

    In float64 the two differ by a rounding or so in every update, 1e-16 of the value; over the dozen updates of a test
    that grows with the problem's condition, and stays far below the tolerance.
    """
    theirs, ours = train(torch.nn), train(torchlosses)
    assert type(theirs.criterion).__module__.startswith("torch.nn")
    assert type(ours.criterion).__module__.startswith("torchlosses")
    assert ours.losses[-1] < 0.9 * ours.losses[0], "the problem is not being learnt, so that the runs prove nothing"
    for got, expected in zip(ours.tensors(), theirs.tensors(), strict=True):
        assert_close(got, expected, rtol=rtol, atol=atol)
    return theirs, ours
