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
FITTING = [(name, task) for name, kind in OBJECTIVES.items() for task in kind.questions]


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


@pytest.mark.parametrize(("name", "task"), FITTING)
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
        assert 0.001 < found.accuracy < 0.99


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


@pytest.mark.parametrize("name", [name for name, task in FITTING if task == "digit"])
def test_the_confusion_matrix_counts_rows_of_truth(name: str) -> None:
    objective = build(name, "digit")
    outputs, values = sample(objective)
    details = metrics.details(objective, outputs, values)
    assert details is not None
    assert details.confusion is not None
    assert details.residual_counts is None
    for decoding, answers in objective.decode(outputs).items():
        expected = np.zeros((10, 10), int)
        for truth, answer in zip(values.int().tolist(), answers.int().tolist(), strict=True):
            expected[truth][answer] += 1
        assert details.confusion[decoding] == expected.tolist()
        assert details.answer is not None
        assert details.answer[decoding].values().tolist() == answers.int().tolist()


@pytest.mark.parametrize("name", OBJECTIVES)
def test_every_residual_is_counted(name: str) -> None:
    objective = build(name, "angle")
    outputs, values = sample(objective)
    if objective.head == "regression":
        # Beyond every edge.
        outputs[0] = 100.0
    details = metrics.details(objective, outputs, values)
    assert details is not None
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
        assert details.error is not None
        np.testing.assert_allclose(details.error[decoding].values(), residuals, rtol=1 / 2048, atol=1e-7)


def test_reliability_bins_partition_the_images() -> None:
    objective = build("cross-entropy", "digit")
    outputs, values = sample(objective)
    details = metrics.details(objective, outputs, values)
    assert details is not None
    bins = details.reliability
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


@pytest.mark.parametrize(("name", "task"), FITTING)
@pytest.mark.parametrize("poison", [float("nan"), float("inf")])
def test_outputs_that_are_not_finite_are_a_result_without_numbers(name: str, task: str, poison: float) -> None:
    objective = build(name, task)
    outputs, values = sample(objective)
    outputs[3] = poison
    evaluation = metrics.evaluate(objective, outputs, values)
    assert evaluation.decoded.keys() == objective.decode(outputs).keys()
    assert all(np.isnan(found.accuracy) for found in evaluation.decoded.values())
    assert metrics.details(objective, outputs, values) is None


@pytest.mark.parametrize(
    ("before", "after", "converged"),
    [(2.3, 0.1, True), (2.3, 2.3, True), (2.3, 2.4, False), (2.3, float("nan"), False), (2.3, float("inf"), False)],
)
def test_a_run_has_diverged_where_its_loss_is_above_that_of_an_untrained_network(
    before: float, after: float, converged: bool
) -> None:
    assert metrics.converged(before, after) is converged


def test_the_likelihood_of_every_image_is_kept() -> None:
    objective = build("cross-entropy", "digit")
    outputs, values = sample(objective)
    details = metrics.details(objective, outputs, values)
    probabilities = metrics.evaluate(objective, outputs, values).probabilities
    assert details is not None
    assert details.negative_log_likelihood is not None
    assert probabilities is not None
    mean = details.negative_log_likelihood.values().mean()
    assert mean == pytest.approx(probabilities.negative_log_likelihood, rel=1e-3)


@pytest.mark.parametrize("factor", [0.25, 1.0, 5.0])
def test_a_temperature_undoes_what_outputs_were_multiplied_by(factor: float) -> None:
    """Labels drawn from the softmax of the outputs are calibrated at temperature 1."""
    generator = torch.Generator().manual_seed(5)
    outputs = 2 * torch.randn(20_000, 10, generator=generator)
    classes = torch.multinomial(outputs.softmax(dim=1), 1, generator=generator).squeeze(1)
    assert metrics.fit_temperature(factor * outputs, classes) == pytest.approx(factor, rel=0.03)
    task = digit_task(CPU)
    half = 10_000
    found = metrics.temperature(
        task, factor * outputs[:half], classes[:half].float(), factor * outputs[half:], classes[half:].float()
    )
    assert found is not None
    assert found.after.calibration_error < 0.02
    assert found.after.negative_log_likelihood <= found.before.negative_log_likelihood + 1e-3
