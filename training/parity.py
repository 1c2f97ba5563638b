"""Our losses against the torch.nn built-ins: two networks trained in step, one with each.

Each loss is held twice. With Adam the steps are those of the study; but Adam divides the gradient by its own size, and
so would not notice a gradient that is wrong by a factor. Plain gradient descent does.

Both networks compute in float64. Where a gradient is nearly zero, Adam turns a difference in its last bit into one of a
whole step; in float32 that soon grows until it could hide an error, in float64 it stays far below the tolerance.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from training.engine import MakeOptimizer, Report, Settings, Trainer
from training.objectives import CrossEntropy, LossLibrary, Objective, RegressionMSE
from training.results import ParityRecord
from training.tasks import Task, TaskData

OBJECTIVES: dict[str, type[Objective]] = {"MSELoss": RegressionMSE, "CrossEntropyLoss": CrossEntropy}


@dataclass(frozen=True)
class Rule:
    """How to make the optimizer, and how far apart the two networks may end up.

    In exact arithmetic they take the same steps. The last bit of the loss and its gradient may differ, and training
    amplifies that.
    """

    optimizer: MakeOptimizer
    loss_tolerance: float
    weight_tolerance: float


# The learning rates are fixed: the tolerances hold for them.
RULES = {
    "Adam": Rule(partial(torch.optim.Adam, lr=1e-3, fused=True), loss_tolerance=1e-7, weight_tolerance=1e-6),
    "gradient descent": Rule(partial(torch.optim.SGD, lr=0.1), loss_tolerance=1e-10, weight_tolerance=1e-10),
}


def compare_losses(
    settings: Settings,
    model: str,
    loss: str,
    optimizer: str,
    task: Task,
    data: TaskData,
    ours: LossLibrary,
    builtin: LossLibrary,
    seed: int,
    steps: int,
    report: Report,
) -> ParityRecord:
    """Train both for `steps` updates from the same seed on the same batches and report the largest differences.

    The losses are compared at every step, the weights at every tenth and the last.
    """
    rule = RULES[optimizer]
    trainers = [
        Trainer(settings, model, OBJECTIVES[loss](task, losses), [seed], rule.optimizer, torch.float64)
        for losses in (ours, builtin)
    ]
    targets = trainers[0].objective.encode(data.train_values)
    loss_differences: list[Tensor] = []
    weight_differences: list[Tensor] = []
    unreported = 0
    for step, batch in zip(range(1, steps + 1), trainers[0].batches(data.train_images, targets), strict=False):
        images, answers = (tensor.double() if tensor.is_floating_point() else tensor for tensor in batch)
        mine, theirs = (trainer.step(images, answers) for trainer in trainers)
        loss_differences.append((mine - theirs).abs())
        unreported += 1
        if step % 10 == 0 or step == steps:
            weight_differences.append(_largest_difference(*trainers))
            report(unreported, mine[0].item())
            unreported = 0
    # Tensor.max, unlike the built-in one, keeps a nan; and a nan is within no tolerance.
    loss_difference = torch.stack(loss_differences).max().item()
    weight_difference = torch.stack(weight_differences).max().item()
    return ParityRecord(
        loss=loss,
        optimizer=optimizer,
        ours=f"{ours.name}.{loss}",
        builtin=f"{builtin.name}.{loss}",
        steps=steps,
        seed=seed,
        largest_loss_difference=loss_difference,
        largest_weight_difference=weight_difference,
        loss_tolerance=rule.loss_tolerance,
        weight_tolerance=rule.weight_tolerance,
        passed=loss_difference <= rule.loss_tolerance and weight_difference <= rule.weight_tolerance,
    )


def _largest_difference(first: Trainer, second: Trainer) -> Tensor:
    pairs = zip(first.parameters.values(), second.parameters.values(), strict=True)
    return torch.stack([(a.detach() - b.detach()).abs().max() for a, b in pairs]).max()


def holds(record: ParityRecord) -> bool:
    """Whether the differences are within the tolerance, by the record's own word and by its numbers."""
    return (
        record.passed
        and record.largest_loss_difference <= record.loss_tolerance
        and record.largest_weight_difference <= record.weight_tolerance
    )
