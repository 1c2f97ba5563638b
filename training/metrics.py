"""How good outputs are, by measures that every head can be held to, over the whole test set at once."""

from __future__ import annotations

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
from training.results import DecodedMetrics, Details, Evaluation, ProbabilityMetrics, ReliabilityBin
from training.tasks import Task

CALIBRATION_BINS = 15
RESIDUAL_BINS = 120


def evaluate(objective: Objective, outputs: Tensor, values: Tensor) -> Evaluation:
    """Hold every decoding of `outputs`, of shape (count, outputs), to the right answers."""
    decoded = {
        name: decoded_metrics(objective.task, answers, values) for name, answers in objective.decode(outputs).items()
    }
    log_probabilities = objective.log_probabilities(outputs)
    probabilities = None
    if log_probabilities is not None:
        probabilities = probability_metrics(log_probabilities, objective.task.classes_of(values))
    return Evaluation(decoded=decoded, probabilities=probabilities)


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


def details(objective: Objective, outputs: Tensor, values: Tensor) -> Details:
    """Confusion matrices or residuals, and the reliability of the probabilities."""
    task = objective.task
    answers = objective.decode(outputs)
    confusion = residual_edges = residual_counts = None
    if task.is_category:
        confusion = {
            name: multiclass_confusion_matrix(answer.long(), values.long(), num_classes=task.classes).tolist()
            for name, answer in answers.items()
        }
    else:
        limit = 2 * task.scale
        edges = np.linspace(-limit, limit, RESIDUAL_BINS + 1)
        residual_edges = edges.tolist()
        residual_counts = {
            # Only a regression head can leave the range; what does is counted at its ends.
            name: np.histogram((answer - values).double().clamp(-limit, limit).cpu().numpy(), edges)[0].tolist()
            for name, answer in answers.items()
        }
    log_probabilities = objective.log_probabilities(outputs)
    return Details(
        confusion=confusion,
        residual_edges=residual_edges,
        residual_counts=residual_counts,
        reliability=None
        if log_probabilities is None
        else reliability(log_probabilities.exp(), task.classes_of(values)),
    )


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
