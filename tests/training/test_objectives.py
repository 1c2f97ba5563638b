"""Objectives: what they encode, compute and decode, by both implementations of the losses."""

from __future__ import annotations

from statistics import NormalDist

import numpy as np
import pytest
import torch

from training.config import parse_config
from training.errors import StudyError
from training.objectives import OBJECTIVES, Objective, loss_library, select_objectives
from training.tasks import Task, angle_task, digit_task

CPU = torch.device("cpu")
TASKS = {"digit": digit_task(CPU), "angle": angle_task(30, 45.0, CPU)}
FITTING = [(name, task) for name, kind in OBJECTIVES.items() for task in kind.questions]
VALUES = {"digit": torch.tensor([3.0, 0.0, 9.0, 3.0]), "angle": torch.tensor([-45.0, 0.1, 44.9, 12.5])}


# Targets of 100 and 0 are no outputs that these losses would lead to: not ones and zeros, not a no to all others.
LOOSE = {("mse-raw", "expected value"), ("binary-cross-entropy", "expected value")}


def build(name: str, task: str, implementation: str = "torchlosses") -> Objective:
    return OBJECTIVES[name](TASKS[task], loss_library(implementation))


def random_outputs(objective: Objective, count: int = 4) -> torch.Tensor:
    return torch.randn(count, objective.outputs, generator=torch.Generator().manual_seed(3)) * 2


def softmax(x: np.ndarray) -> np.ndarray:
    shifted = np.exp(x - x.max(axis=1, keepdims=True))
    return shifted / shifted.sum(axis=1, keepdims=True)


def textbook_loss(name: str, task: Task, outputs: np.ndarray, values: np.ndarray) -> float:
    """Each loss written out in NumPy float64."""
    classes = np.abs(values[:, None] - task.class_values.double().numpy()).argmin(axis=1)
    one_hot = np.eye(task.classes)[classes]
    rows = np.arange(len(values))
    if name == "regression-mse":
        largest = 9.0 if task.name == "digit" else 45.0
        return float(np.mean((outputs[:, 0] - values / largest) ** 2))
    if name == "cross-entropy":
        return float(-np.mean(np.log(softmax(outputs)[rows, classes])))
    if name == "mse-softmax":
        return float(np.mean((softmax(outputs) - one_hot) ** 2))
    if name == "mse-raw":
        return float(np.mean((outputs - one_hot) ** 2))
    if name == "regression-huber":
        error = np.abs(outputs[:, 0] - values / (9.0 if task.name == "digit" else 45.0))
        return float(np.mean(np.where(error <= 0.1, error**2 / 2, 0.1 * (error - 0.05))))
    if name == "label-smoothing":
        return float(-np.mean(((0.9 * one_hot + 0.1 / task.classes) * np.log(softmax(outputs))).sum(axis=1)))
    if name == "binary-cross-entropy":
        yes = 1 / (1 + np.exp(-outputs))
        return float(-np.mean(one_hot * np.log(yes) + (1 - one_hot) * np.log(1 - yes)))
    if name == "gaussian-histogram":
        edges = np.linspace(-45, 45, 31)
        cumulative = np.array([[NormalDist(value, 3.0).cdf(edge) for edge in edges] for value in values])
        mass = np.diff(cumulative, axis=1)
        target = mass / mass.sum(axis=1, keepdims=True)
        return float(-np.mean((target * np.log(softmax(outputs))).sum(axis=1)))
    if name == "cee-softmax":
        return float(-np.mean(np.log(softmax(outputs)[rows, classes] + 1e-7)))
    raise KeyError(name)


@pytest.mark.parametrize("implementation", ["torchlosses", "torch"])
@pytest.mark.parametrize(("name", "task"), FITTING)
def test_the_loss_is_the_textbook_formula(name: str, task: str, implementation: str) -> None:
    objective = build(name, task, implementation)
    outputs = random_outputs(objective)
    loss = objective.loss(outputs, objective.encode(VALUES[task]))
    expected = textbook_loss(name, objective.task, outputs.double().numpy(), VALUES[task].double().numpy())
    assert loss.item() == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize(("name", "task"), FITTING)
def test_both_implementations_send_the_same_gradient(name: str, task: str) -> None:
    gradients = []
    for implementation in ("torchlosses", "torch"):
        objective = build(name, task, implementation)
        outputs = random_outputs(objective).requires_grad_()
        objective.loss(outputs, objective.encode(VALUES[task])).backward()
        gradients.append(outputs.grad)
    torch.testing.assert_close(*gradients, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize(("name", "task"), FITTING)
def test_what_is_encoded_comes_back_when_decoded(name: str, task: str) -> None:
    objective = build(name, task)
    targets = objective.encode(VALUES[task])
    if objective.head == "classification":
        classes = targets if targets.dim() == 1 else targets.argmax(dim=1)
        targets = torch.nn.functional.one_hot(classes, objective.task.classes).float() * 100
    nearest = objective.task.class_values[objective.task.classes_of(VALUES[task])]
    expected = VALUES[task] if objective.head == "regression" else nearest
    for decoding, answers in objective.decode(targets).items():
        if (name, decoding) in LOOSE:
            continue
        torch.testing.assert_close(answers, expected, atol=1e-4, rtol=0)


def test_a_regression_head_is_rounded_to_a_digit_and_kept_in_range() -> None:
    objective = build("regression-mse", "digit")
    outputs = torch.tensor([[2.4], [2.6], [-3.0], [12.0]]) / 9
    assert objective.decode(outputs)["rounded"].tolist() == [2, 3, 0, 9]


def test_an_angle_has_two_decodings_of_the_same_probabilities() -> None:
    objective = build("cross-entropy", "angle")
    probabilities = torch.zeros(1, 30)
    probabilities[0, 10], probabilities[0, 12] = 0.6, 0.4
    decoded = objective.decode(probabilities.log())
    centre = -45 + 3 * (torch.arange(30) + 0.5)
    assert decoded["most probable"].item() == pytest.approx(centre[10].item())
    assert decoded["expected value"].item() == pytest.approx(
        0.6 * centre[10].item() + 0.4 * centre[12].item(), rel=1e-5
    )


@pytest.mark.parametrize("name", [name for name, task in FITTING if task == "digit"])
def test_probabilities_are_given_where_outputs_are_logits_and_only_there(name: str) -> None:
    objective = build(name, "digit")
    outputs = random_outputs(objective)
    log_probabilities = objective.log_probabilities(outputs)
    if name in ("regression-mse", "regression-huber", "mse-raw"):
        assert log_probabilities is None
    elif name == "binary-cross-entropy":
        assert log_probabilities is not None
        yes = 1 / (1 + np.exp(-outputs.double().numpy()))
        np.testing.assert_allclose(log_probabilities.exp().numpy(), yes / yes.sum(axis=1, keepdims=True), rtol=1e-12)
    else:
        assert log_probabilities is not None
        np.testing.assert_allclose(log_probabilities.exp().numpy(), softmax(outputs.double().numpy()), rtol=1e-12)


@pytest.mark.parametrize(("name", "task"), FITTING)
def test_the_description_fits_the_objective(name: str, task: str) -> None:
    objective = build(name, task)
    description = objective.describe(0.01, "tuned")
    assert description.name == name
    assert description.decodings == list(objective.decode(random_outputs(objective)))
    assert description.primary_decoding in description.decodings
    assert task in description.target


def test_the_expected_value_of_least_squares_is_the_mean_weighted_by_the_outputs() -> None:
    objective = build("mse-raw", "angle")
    outputs = torch.zeros(1, 30)
    outputs[0, 10], outputs[0, 12] = 0.6, 0.5
    expected = 0.6 * (-45 + 3 * 10.5) + 0.5 * (-45 + 3 * 12.5)
    assert objective.decode(outputs)["expected value"].item() == pytest.approx(expected, rel=1e-5)


def test_objectives_are_chosen_by_name_or_suit_the_task() -> None:
    main = ["regression-mse", "cross-entropy", "mse-softmax", "mse-raw", "cee-softmax"]
    assert [found.name for found in select_objectives((), "digit")] == main
    assert [found.name for found in select_objectives((), "angle")] == ["regression-mse", "cross-entropy"]
    assert [found.name for found in select_objectives((), "label-noise-20")] == main[1:]
    every = [found.name for found in select_objectives((), "angle", every=True)]
    assert every == list(OBJECTIVES)
    assert [found.name for found in select_objectives((), "digit", every=True)] == every[:-1]
    assert [found.name for found in select_objectives(("mse-raw", "cross-entropy"), "angle")] == [
        "cross-entropy",
        "mse-raw",
    ]
    with pytest.raises(StudyError, match="unknown mae; allowed are regression-mse, cross-entropy"):
        select_objectives(("mae",), "digit")
    with pytest.raises(StudyError, match="gaussian-histogram cannot be trained for --tasks digit"):
        select_objectives(("gaussian-histogram",), "digit")


def test_the_help_names_every_objective(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        parse_config(["--help"])
    text = capsys.readouterr().out
    for name in OBJECTIVES:
        assert name in text
