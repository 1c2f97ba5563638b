"""The two experiments that show why a loss suits a head, on the digits."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from training.engine import Report, Trainer
from training.objectives import Objective
from training.randomness import generator
from training.results import GradientCurve, GradientExperiment, RecoveryCurve
from training.tasks import TaskData

GRADIENT_OBJECTIVES = ("cross-entropy", "mse-softmax")
_POINTS_PER_BIN = 30
_LOG_ODDS = np.linspace(-16.0, 16.0, 257)

RECOVERY_MARGIN = 20.0
RECOVERY_CLASS = 0
RECOVERY_THRESHOLD = 0.8
# Enough test images to tell 80 % from what lies 2 points away; all of them would take as long as the training.
_RECOVERY_IMAGES = 2000
_RECOVERY_STEPS = (0, 5, 10, 20, 35, 50, 75, 100, 150, 200, 250)


def theoretical_gradient(
    objective: str, probability: np.ndarray, classes: int, *, one_rival: bool = False
) -> np.ndarray:
    """How strongly one image's loss pulls the right class's logit up, -dL/dx_y, given that class's probability p.

    Cross-entropy pulls with 1 - p, whatever the other probabilities are. MSE on softmax, averaged over the C classes,

        L = 1/C sum_j (s_j - t_j)^2,   -dL/dx_y = 2/C p (1 - 2 p + sum_j s_j^2) = 2/C p ((1 - p)^2 + Q),

    with Q the sum of the other classes' squared probabilities: at least (1 - p)^2 / (C - 1), spread evenly, and at
    most (1 - p)^2, all on one rival. Either way the pull is proportional to p: where the network is confidently wrong,
    it vanishes.
    """
    rest = (1 - probability) ** 2
    if objective == "cross-entropy":
        return 1 - probability
    if objective == "mse-softmax":
        return 2 / classes * probability * (rest + (rest if one_rival else rest / (classes - 1)))
    raise KeyError(objective)


def measured_gradients(objective: Objective, outputs: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
    """The probability of the right class and -dL/dx_y at its logit, per image, in float64."""
    logits = outputs.double().requires_grad_()
    # The loss is a mean over images that do not mix: times their number it is the sum of the losses of each.
    loss = objective.loss(logits, _in_float64(objective.encode(values))) * len(outputs)
    (gradient,) = torch.autograd.grad(loss, logits)
    right = objective.task.classes_of(values).unsqueeze(1)
    probability = outputs.double().softmax(dim=1).gather(1, right).squeeze(1)
    return probability, -gradient.gather(1, right).squeeze(1)


def _in_float64(targets: Tensor) -> Tensor:
    return targets.double() if targets.is_floating_point() else targets


def gradient_experiment(
    objectives: Sequence[Objective], outputs: Mapping[str, Tensor], values: Tensor, seed: int
) -> GradientExperiment:
    """What reaches the logits, theory and test images, for objectives named in GRADIENT_OBJECTIVES.

    Args:
        objectives: the objectives.
        outputs: what the network trained for each objective makes of the test images.
        values: the right answers.
        seed: fixes which images are shown.
    """
    classes = objectives[0].task.classes
    theory = 1 / (1 + np.exp(-_LOG_ODDS))
    curves = []
    for objective in objectives:
        probability, gradient = measured_gradients(objective, outputs[objective.name], values)
        shown = spread_sample(probability, seed)
        curves.append(
            GradientCurve(
                objective=objective.name,
                title=objective.title,
                theory_probability=theory.tolist(),
                theory_gradient=theoretical_gradient(objective.name, theory, classes).tolist(),
                theory_gradient_one_rival=theoretical_gradient(
                    objective.name, theory, classes, one_rival=True
                ).tolist(),
                measured_probability=probability[shown].tolist(),
                measured_gradient=gradient[shown].tolist(),
            )
        )
    return GradientExperiment(classes=classes, seed=seed, curves=curves)


def spread_sample(probability: Tensor, seed: int) -> Tensor:
    """Indices of a few images at every level of probability, in order of it; most images crowd near 1."""
    order = torch.randperm(len(probability), generator=generator("sample", seed)).to(probability.device)
    level = torch.logit(probability[order], eps=1e-12).floor()
    # The rank of each image within its level, by a stable sort.
    sorted_level, by_level = level.sort(stable=True)
    starts = torch.searchsorted(sorted_level, sorted_level)
    rank = torch.arange(len(order), device=order.device) - starts
    chosen = order[by_level[rank < _POINTS_PER_BIN]]
    return chosen[probability[chosen].argsort(stable=True)]


def recovery_stride(test_images: int) -> int:
    """Every how many test images one is looked at: evenly, for the first of MNIST are not like the rest."""
    return max(1, test_images // _RECOVERY_IMAGES)


def recovery_steps(steps: int) -> list[int]:
    """After how many updates the accuracy is measured."""
    return [step for step in (*_RECOVERY_STEPS, *range(300, steps, 100)) if step < steps] + [steps]


def recovery_curves(trainer: Trainer, data: TaskData, steps: int, report: Report) -> list[RecoveryCurve]:
    """Train networks that start out confidently wrong, and measure how fast they recover.

    The networks are freshly initialised, the same for every objective of a seed; then the bias of one output is raised
    by RECOVERY_MARGIN, so that they take every image for that class with a probability of nearly 1. Fresh networks, not
    trained ones: nothing else in them helps or hinders, and what follows depends on the gradient that the loss sends
    back. The optimizer is that of the study, Adam: not even steps whose size does not depend on the gradient's scale
    help where the gradient has all but vanished.

    Args:
        trainer: a fresh stack; its networks are pushed and trained.
        data: the digits.
        steps: how many updates to watch.
        report: called with the number of updates of all networks since the last call, and a loss.
    """
    objective = trainer.objective
    with torch.no_grad():
        trainer.parameters["head.bias"][:, RECOVERY_CLASS] += RECOVERY_MARGIN
    every = recovery_stride(len(data.test_images))
    test_images = data.test_images[::every]
    right = objective.task.classes_of(data.test_values[::every])
    measured = recovery_steps(steps)
    accuracy: list[list[float]] = [[] for _ in trainer.seeds]
    train_loss: list[list[float]] = [[] for _ in trainer.seeds]
    batches = trainer.batches(data.train_images, objective.encode(data.train_values))
    for step, (images, targets) in zip(range(steps + 1), batches, strict=False):
        if step in measured:
            predicted = trainer.predict(test_images).argmax(dim=2)
            for index, loss in enumerate(trainer.losses(images, targets).tolist()):
                train_loss[index].append(loss)
                accuracy[index].append((predicted[index] == right).double().mean().item())
            since = step - measured[max(len(accuracy[0]) - 2, 0)]
            report(since * len(trainer.seeds), train_loss[0][-1])
        if step < steps:
            trainer.step(images, targets)
    return [
        RecoveryCurve(
            objective=objective.name,
            title=objective.title,
            seed=seed,
            steps=measured,
            accuracy=accuracy[index],
            train_loss=train_loss[index],
            recovered_at=next(
                (step for step, share in zip(measured, accuracy[index], strict=True) if share >= RECOVERY_THRESHOLD),
                None,
            ),
        )
        for index, seed in enumerate(trainer.seeds)
    ]
