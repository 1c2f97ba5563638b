"""How good outputs are, by measures that every head can be held to, over the whole test set at once."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torchmetrics.functional import mean_absolute_error, mean_squared_error
from torchmetrics.functional.classification import (
    multiclass_accuracy,
    multiclass_calibration_error,
    multiclass_confusion_matrix,
)

from training.objectives import Objective
from training.results import (
    DecodedMetrics,
    Details,
    Evaluation,
    PerImage,
    ProbabilityMetrics,
    ReliabilityBin,
    Temperature,
)
from training.tasks import Task

CALIBRATION_BINS = 15
RESIDUAL_BINS = 120


def evaluate(objective: Objective, outputs: Tensor, values: Tensor) -> Evaluation:
    """Hold every decoding of `outputs`, of shape (count, outputs), to the right answers; nan unless all are finite."""
    log_probabilities = objective.log_probabilities(outputs)
    if not outputs.isfinite().all():
        lost = DecodedMetrics(accuracy=math.nan, mean_absolute_error=math.nan, root_mean_squared_error=math.nan)
        unlikely = ProbabilityMetrics(
            negative_log_likelihood=math.nan, brier_score=math.nan, calibration_error=math.nan
        )
        return Evaluation(
            decoded=dict.fromkeys(objective.decode(outputs[:1]), lost),
            probabilities=None if log_probabilities is None else unlikely,
        )
    decoded = {
        name: decoded_metrics(objective.task, answers, values) for name, answers in objective.decode(outputs).items()
    }
    probabilities = None
    if log_probabilities is not None:
        probabilities = probability_metrics(log_probabilities, objective.task.classes_of(values))
    return Evaluation(decoded=decoded, probabilities=probabilities)


def converged(initial_loss: float, final_loss: float) -> bool:
    """Whether training ended with a loss that is finite and not above that of the first batch before any update."""
    return math.isfinite(final_loss) and final_loss <= initial_loss


def score(objective: Objective, evaluation: Evaluation, decoding: str) -> float:
    """The number by which learning rates are chosen: accuracy for a category, root mean squared error otherwise."""
    found = evaluation.decoded[decoding]
    return found.accuracy if objective.task.is_category else found.root_mean_squared_error


def decoded_metrics(task: Task, answers: Tensor, values: Tensor) -> DecodedMetrics:
    """Accuracy, mean absolute and root mean squared error of answers, in the unit of the task."""
    if task.is_category:
        accuracy = multiclass_accuracy(answers.long(), values.long(), num_classes=task.classes, average="micro")
    else:
        # A hair of room: half a bin is not a round number in float32.
        accuracy = ((answers - values).abs() <= task.spacing / 2 * (1 + 1e-5)).float().mean()
    return DecodedMetrics(
        accuracy=accuracy.item(),
        mean_absolute_error=mean_absolute_error(answers.double(), values.double()).item(),
        root_mean_squared_error=mean_squared_error(answers.double(), values.double(), squared=False).item(),
    )


def probability_metrics(log_probabilities: Tensor, classes: Tensor) -> ProbabilityMetrics:
    """Negative log-likelihood in nats, Brier score (summed over the classes, 0 to 2), expected calibration error."""
    probabilities = log_probabilities.exp()
    count = log_probabilities.shape[1]
    return ProbabilityMetrics(
        negative_log_likelihood=-log_probabilities.gather(1, classes.unsqueeze(1)).mean().item(),
        brier_score=mean_squared_error(probabilities, F.one_hot(classes, count).double()).item() * count,
        calibration_error=multiclass_calibration_error(
            probabilities, classes, num_classes=count, n_bins=CALIBRATION_BINS
        ).item(),
    )


def details(objective: Objective, outputs: Tensor, values: Tensor) -> Details | None:
    """What each image came to, confusions or residuals, and the reliability; None where outputs are not finite."""
    if not outputs.isfinite().all():
        return None
    task = objective.task
    answers = objective.decode(outputs)
    log_probabilities = objective.log_probabilities(outputs)
    found: dict[str, Any] = {}
    if task.is_category:
        found["confusion"] = {
            name: multiclass_confusion_matrix(answer.long(), values.long(), num_classes=task.classes).tolist()
            for name, answer in answers.items()
        }
        found["answer"] = {name: PerImage.of(answer.long().cpu().numpy()) for name, answer in answers.items()}
    else:
        limit = 2 * task.scale
        edges = np.linspace(-limit, limit, RESIDUAL_BINS + 1)
        errors = {name: (answer - values).double().cpu().numpy() for name, answer in answers.items()}
        found["residual_edges"] = edges.tolist()
        # Only a regression head can leave the range; what does is counted at its ends.
        found["residual_counts"] = {
            name: np.histogram(np.clip(error, -limit, limit), edges)[0].tolist() for name, error in errors.items()
        }
        found["error"] = {name: PerImage.of(error) for name, error in errors.items()}
    if log_probabilities is not None:
        classes = task.classes_of(values)
        found["reliability"] = reliability(log_probabilities.exp(), classes)
        likelihood = -log_probabilities.gather(1, classes.unsqueeze(1)).squeeze(1)
        found["negative_log_likelihood"] = PerImage.of(likelihood.cpu().numpy())
    return Details(**found)


def fit_temperature(outputs: Tensor, classes: Tensor) -> float:
    """The number by which to divide outputs so that their softmax gives the classes the highest likelihood.

    The likelihood has one maximum in the inverse of the temperature, in which it is concave; a golden-section search
    over temperatures from 1/1000 to 1000 finds it (C. Guo et al., "On Calibration of Modern Neural Networks", 2017).
    """

    def loss(logarithm: float) -> float:
        return F.cross_entropy(outputs.double() / math.exp(logarithm), classes).item()

    low, high = -math.log(1000), math.log(1000)
    ratio = (math.sqrt(5) - 1) / 2
    for _ in range(40):
        left, right = high - ratio * (high - low), low + ratio * (high - low)
        low, high = (low, right) if loss(left) <= loss(right) else (left, high)
    return math.exp((low + high) / 2)


def temperature(
    task: Task, outputs: Tensor, values: Tensor, validation_outputs: Tensor, validation_values: Tensor
) -> Temperature | None:
    """The probabilities softmax(outputs / T) with T = 1 and with T chosen on other images; None if not finite."""
    if not (outputs.isfinite().all() and validation_outputs.isfinite().all()):
        return None
    chosen = fit_temperature(validation_outputs, task.classes_of(validation_values))
    before, after = (
        probability_metrics((outputs.double() / divisor).log_softmax(dim=1), task.classes_of(values))
        for divisor in (1.0, chosen)
    )
    return Temperature(temperature=chosen, before=before, after=after)


def reliability(probabilities: Tensor, classes: Tensor) -> list[ReliabilityBin]:
    """Images grouped by their highest probability into equal bins of (0, 1]; empty bins are left out."""
    confidence, predicted = probabilities.max(dim=1)
    right = (predicted == classes).double()
    index = (confidence * CALIBRATION_BINS).ceil().long().clamp(1, CALIBRATION_BINS) - 1
    counts, confidences, rights = (
        torch.zeros(CALIBRATION_BINS, dtype=torch.float64, device=index.device).index_add_(0, index, summand.double())
        for summand in (torch.ones_like(right), confidence, right)
    )
    return [
        ReliabilityBin(confidence=(c / n).item(), accuracy=(r / n).item(), count=int(n.item()))
        for n, c, r in zip(counts, confidences, rights, strict=True)
        if n > 0
    ]
