"""Objectives: what they encode, compute and decode, by both implementations of the losses."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from training.config import parse_config
from training.errors import StudyError
from training.objectives import OBJECTIVES, Objective, loss_library, select_objectives
from training.tasks import Task, angle_task, digit_task

CPU = torch.device("cpu")
TASKS = {"digit": digit_task(CPU), "angle": angle_task(30, 45.0, CPU)}
VALUES = {"digit": torch.tensor([3.0, 0.0, 9.0, 3.0]), "angle": torch.tensor([-45.0, 0.1, 44.9, 12.5])}


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
    if name == "cee-softmax":
        return float(-np.mean(np.log(softmax(outputs)[rows, classes] + 1e-7)))
    raise KeyError(name)


@pytest.mark.parametrize("implementation", ["torchlosses", "torch"])
@pytest.mark.parametrize("task", ["digit", "angle"])
@pytest.mark.parametrize("name", OBJECTIVES)
def test_the_loss_is_the_textbook_formula(name: str, task: str, implementation: str) -> None:
    objective = build(name, task, implementation)
    outputs = random_outputs(objective)
    loss = objective.loss(outputs, objective.encode(VALUES[task]))
    expected = textbook_loss(name, objective.task, outputs.double().numpy(), VALUES[task].double().numpy())
    assert loss.item() == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("task", ["digit", "angle"])
@pytest.mark.parametrize("name", OBJECTIVES)
def test_both_implementations_send_the_same_gradient(name: str, task: str) -> None:
    gradients = []
    for implementation in ("torchlosses", "torch"):
        objective = build(name, task, implementation)
        outputs = random_outputs(objective).requires_grad_()
        objective.loss(outputs, objective.encode(VALUES[task])).backward()
        gradients.append(outputs.grad)
    torch.testing.assert_close(*gradients, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("task", ["digit", "angle"])
@pytest.mark.parametrize("name", OBJECTIVES)
def test_what_is_encoded_comes_back_when_decoded(name: str, task: str) -> None:
    objective = build(name, task)
    targets = objective.encode(VALUES[task])
    if objective.head == "classification":
        classes = targets if targets.dim() == 1 else targets.argmax(dim=1)
        targets = torch.nn.functional.one_hot(classes, objective.task.classes).float() * 100
    nearest = objective.task.class_values[objective.task.classes_of(VALUES[task])]
    expected = VALUES[task] if objective.head == "regression" else nearest
    for answers in objective.decode(targets).values():
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


@pytest.mark.parametrize("name", OBJECTIVES)
def test_probabilities_are_given_where_outputs_are_logits_and_only_there(name: str) -> None:
    objective = build(name, "digit")
    outputs = random_outputs(objective)
    log_probabilities = objective.log_probabilities(outputs)
    if name in ("regression-mse", "mse-raw"):
        assert log_probabilities is None
    else:
        assert log_probabilities is not None
        np.testing.assert_allclose(log_probabilities.exp().numpy(), softmax(outputs.double().numpy()), rtol=1e-12)


@pytest.mark.parametrize("task", ["digit", "angle"])
@pytest.mark.parametrize("name", OBJECTIVES)
def test_the_description_fits_the_objective(name: str, task: str) -> None:
    objective = build(name, task)
    description = objective.describe()
    assert description.name == name
    assert description.decodings == list(objective.decode(random_outputs(objective)))
    assert description.primary_decoding in description.decodings
    assert task in description.target


def test_objectives_are_chosen_by_name_or_suit_the_task() -> None:
    assert [found.name for found in select_objectives((), "digit")] == list(OBJECTIVES)
    assert [found.name for found in select_objectives((), "angle")] == ["regression-mse", "cross-entropy"]
    assert [found.name for found in select_objectives(("mse-raw", "cross-entropy"), "angle")] == [
        "cross-entropy",
        "mse-raw",
    ]
    with pytest.raises(StudyError, match="unknown mae; allowed are regression-mse, cross-entropy"):
        select_objectives(("mae",), "digit")


def test_the_help_names_every_objective(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        parse_config(["--help"])
    text = capsys.readouterr().out
    for name in OBJECTIVES:
        assert name in text
