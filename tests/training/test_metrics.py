"""Metrics against their definitions, written out in NumPy."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from training import metrics
from training.objectives import OBJECTIVES, Objective, loss_library
from training.tasks import angle_task, digit_task

CPU = torch.device("cpu")
COUNT = 500


def build(name: str, task: str) -> Objective:
    tasks = {"digit": digit_task(CPU), "angle": angle_task(30, 45.0, CPU)}
    return OBJECTIVES[name](tasks[task], loss_library("torch"))


def sample(objective: Objective) -> tuple[torch.Tensor, torch.Tensor]:
    """Outputs that are right about half the time, and the right answers."""
    generator = torch.Generator().manual_seed(11)
    if objective.task.is_category:
        values = torch.randint(0, 10, (COUNT,), generator=generator).float()
    else:
        values = (torch.rand(COUNT, generator=generator) * 2 - 1) * 45
    noise = torch.randn(COUNT, objective.outputs, generator=generator)
    if objective.head == "regression":
        return values.unsqueeze(1) / objective.task.scale + 0.05 * noise, values
    classes = objective.task.classes_of(values)
    return noise + 2 * torch.nn.functional.one_hot(classes, objective.task.classes), values


@pytest.mark.parametrize("task", ["digit", "angle"])
@pytest.mark.parametrize("name", OBJECTIVES)
def test_metrics_follow_their_definitions(name: str, task: str) -> None:
    objective = build(name, task)
    outputs, values = sample(objective)
    evaluation = metrics.evaluate(objective, outputs, values)
    truth = values.double().numpy()
    decoded = objective.decode(outputs)
    assert evaluation.decoded.keys() == decoded.keys()
    for decoding, answers in decoded.items():
        error = answers.double().numpy() - truth
        found = evaluation.decoded[decoding]
        right = np.abs(error) < (0.5 if task == "digit" else 1.5 + 1e-4)
        assert found.accuracy == pytest.approx(right.mean(), abs=1e-6)
        assert found.mean_absolute_error == pytest.approx(np.abs(error).mean(), rel=1e-9)
        assert found.root_mean_squared_error == pytest.approx(np.sqrt((error**2).mean()), rel=1e-9)
        assert 0.01 < found.accuracy < 0.99


@pytest.mark.parametrize("task", ["digit", "angle"])
def test_probability_metrics_follow_their_definitions(task: str) -> None:
    objective = build("cross-entropy", task)
    outputs, values = sample(objective)
    found = metrics.evaluate(objective, outputs, values).probabilities
    assert found is not None
    classes = objective.task.classes_of(values).numpy()
    exponentials = np.exp(outputs.double().numpy())
    probabilities = exponentials / exponentials.sum(axis=1, keepdims=True)
    rows = np.arange(COUNT)
    assert found.negative_log_likelihood == pytest.approx(-np.log(probabilities[rows, classes]).mean(), rel=1e-6)
    one_hot = np.eye(objective.task.classes)[classes]
    assert found.brier_score == pytest.approx(((probabilities - one_hot) ** 2).sum(axis=1).mean(), rel=1e-6)
    confidence = probabilities.max(axis=1)
    right = probabilities.argmax(axis=1) == classes
    gap = 0.0
    for low in np.arange(15) / 15:
        inside = (confidence > low) & (confidence <= low + 1 / 15)
        if inside.any():
            gap += inside.mean() * abs(confidence[inside].mean() - right[inside].mean())
    assert found.calibration_error == pytest.approx(gap, abs=1e-6)


def test_a_very_improbable_truth_has_a_finite_likelihood() -> None:
    objective = build("cross-entropy", "digit")
    outputs = torch.zeros(1, 10)
    outputs[0, 4] = 300.0
    found = metrics.evaluate(objective, outputs, torch.tensor([2.0])).probabilities
    assert found is not None
    assert found.negative_log_likelihood == pytest.approx(300.0)
    assert found.brier_score == pytest.approx(2.0)


@pytest.mark.parametrize("name", OBJECTIVES)
def test_the_confusion_matrix_counts_rows_of_truth(name: str) -> None:
    objective = build(name, "digit")
    outputs, values = sample(objective)
    details = metrics.details(objective, outputs, values)
    assert details.confusion is not None
    assert details.residual_counts is None
    for decoding, answers in objective.decode(outputs).items():
        expected = np.zeros((10, 10), int)
        for truth, answer in zip(values.int().tolist(), answers.int().tolist(), strict=True):
            expected[truth][answer] += 1
        assert details.confusion[decoding] == expected.tolist()


@pytest.mark.parametrize("name", OBJECTIVES)
def test_every_residual_is_counted(name: str) -> None:
    objective = build(name, "angle")
    outputs, values = sample(objective)
    if objective.head == "regression":
        # Beyond every edge.
        outputs[0] = 100.0
    details = metrics.details(objective, outputs, values)
    assert details.confusion is None
    assert details.residual_edges is not None
    assert details.residual_counts is not None
    edges = np.array(details.residual_edges)
    for decoding, answers in objective.decode(outputs).items():
        counts = details.residual_counts[decoding]
        assert len(counts) == len(edges) - 1
        assert sum(counts) == COUNT
        residuals = (answers - values).double().numpy()
        middle = len(counts) // 2
        inside = (residuals >= edges[middle]) & (residuals < edges[middle + 1])
        assert counts[middle] == inside.sum()


def test_reliability_bins_partition_the_images() -> None:
    objective = build("cross-entropy", "digit")
    outputs, values = sample(objective)
    bins = metrics.details(objective, outputs, values).reliability
    assert bins is not None
    probabilities = outputs.double().softmax(dim=1)
    confidence, predicted = probabilities.max(dim=1)
    assert sum(found.count for found in bins) == COUNT
    mean_confidence = sum(found.count * found.confidence for found in bins) / COUNT
    mean_accuracy = sum(found.count * found.accuracy for found in bins) / COUNT
    assert mean_confidence == pytest.approx(confidence.mean().item(), rel=1e-9)
    assert mean_accuracy == pytest.approx((predicted == values.long()).double().mean().item(), rel=1e-9)
    # The calibration error is the weighted gap of these very bins.
    gap = sum(found.count * abs(found.confidence - found.accuracy) for found in bins) / COUNT
    expected = metrics.evaluate(objective, outputs, values).probabilities
    assert expected is not None
    assert gap == pytest.approx(expected.calibration_error, abs=1e-6)
    assert all(found.accuracy <= 1 and found.count > 0 for found in bins)
