"""What a network is trained for: how targets are encoded, which loss, how outputs are decoded.

To add an objective, write a class like those below and add it to `OBJECTIVES`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from training.errors import StudyError
from training.results import ObjectiveDescription, TaskName
from training.tasks import Task

Loss = Callable[[Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class LossLibrary:
    """The three losses, each averaging over the batch, from one implementation."""

    name: str
    mean_squared_error: Loss
    cross_entropy: Loss
    cross_entropy_error: Loss


def loss_library(implementation: str) -> LossLibrary:
    """The losses of `torchlosses`, or those of `torch`.

    torch.nn has no cross-entropy error on probabilities; there the textbook's formula, differentiated by autograd,
    stands in for it.
    """
    if implementation == "torch":
        return LossLibrary("torch.nn", nn.MSELoss(), nn.CrossEntropyLoss(), _composed_cross_entropy_error)
    import torchlosses

    return LossLibrary(
        "torchlosses",
        torchlosses.MSELoss(),
        torchlosses.CrossEntropyLoss(),
        # A softmax never leaves [0, 1], and looking would make a GPU wait at every step.
        torchlosses.CEELoss(validate_args=False),
    )


def _composed_cross_entropy_error(probabilities: Tensor, targets: Tensor) -> Tensor:
    return -(targets * torch.log(probabilities + 1e-7)).sum(dim=1).mean()


class Objective(ABC):
    """One way to train a head for a task.

    Class attributes:
        name: the key on the command line and in the results.
        title: the name for people.
        head: 'regression' (one output) or 'classification' (one output a class).
        loss_title, target_title: the loss and its targets in words.
        default_tasks: the tasks it is trained for unless `--objectives` says otherwise.
    """

    name: ClassVar[str]
    title: ClassVar[str]
    head: ClassVar[Literal["regression", "classification"]] = "classification"
    loss_title: ClassVar[str]
    target_title: ClassVar[str] = "one-hot vector"
    default_tasks: ClassVar[tuple[TaskName, ...]] = ("digit",)

    def __init__(self, task: Task, losses: LossLibrary) -> None:
        self.task = task
        self.losses = losses

    @property
    def outputs(self) -> int:
        """The number of outputs of the head."""
        return 1 if self.head == "regression" else self.task.classes

    def encode(self, values: Tensor) -> Tensor:
        """Right answers to the targets of the loss; one-hot vectors unless a class says otherwise."""
        return F.one_hot(self.task.classes_of(values), self.task.classes).float()

    @abstractmethod
    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """The mean loss over a batch."""

    @abstractmethod
    def decode(self, outputs: Tensor) -> dict[str, Tensor]:
        """Outputs to answers, by every decoding that makes sense, the primary one first."""

    def log_probabilities(self, outputs: Tensor) -> Tensor | None:
        """The logarithm of the probability of each class, or None where the outputs are no probabilities."""
        return None

    def describe(self) -> ObjectiveDescription:
        """The objective in words."""
        decodings = list(self.decode(torch.zeros(1, self.outputs, device=self.task.class_values.device)))
        return ObjectiveDescription(
            name=self.name,
            task=self.task.name,
            title=self.title,
            head=self.head,
            loss=self.loss_title,
            target=self.target_title if self.task.is_category else self.target_title.replace("digit", "angle"),
            decodings=decodings,
            primary_decoding=decodings[0],
        )


class _Softmax(Objective):
    """Outputs are logits: their softmax gives the probabilities of the classes."""

    def decode(self, outputs: Tensor) -> dict[str, Tensor]:
        """The most probable class's value and, for a quantity, the expected value too."""
        decoded = {"most probable": self.task.class_values[outputs.argmax(dim=1)]}
        if not self.task.is_category:
            decoded["expected value"] = outputs.softmax(dim=1) @ self.task.class_values
        return decoded

    def log_probabilities(self, outputs: Tensor) -> Tensor:
        """The log-softmax, in float64 so that its tail survives."""
        return outputs.double().log_softmax(dim=1)


class RegressionMSE(Objective):
    """One output, the answer itself as a number."""

    name = "regression-mse"
    title = "Regression head, MSE"
    head = "regression"
    loss_title = "MSE"
    target_title = "the digit as a number, as a share of the largest"
    default_tasks = ("digit", "angle")

    def encode(self, values: Tensor) -> Tensor:
        """The numbers, in units of the task's scale, as a column."""
        return values.unsqueeze(1) / self.task.scale

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """The mean squared difference."""
        return self.losses.mean_squared_error(outputs, targets)

    def decode(self, outputs: Tensor) -> dict[str, Tensor]:
        """The number: rounded to a digit for a category, as it is for a quantity."""
        values = outputs.squeeze(1) * self.task.scale
        if self.task.is_category:
            return {"rounded": values.round().clamp(self.task.class_values[0], self.task.class_values[-1])}
        return {"direct": values}


class CrossEntropy(_Softmax):
    """Cross-entropy on logits."""

    name = "cross-entropy"
    title = "Classification head, cross-entropy"
    loss_title = "cross-entropy on logits"
    target_title = "class index of the digit"
    default_tasks = ("digit", "angle")

    def encode(self, values: Tensor) -> Tensor:
        """Class indices."""
        return self.task.classes_of(values)

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """The mean of -log softmax at the right class."""
        return self.losses.cross_entropy(outputs, targets)


class SoftmaxMSE(_Softmax):
    """The textbook's mean squared error: on softmax probabilities."""

    name = "mse-softmax"
    title = "Classification head, MSE on probabilities"
    loss_title = "MSE on softmax probabilities"
    target_title = "one-hot vector of the digit"

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """The mean squared difference between probabilities and one-hot vectors."""
        return self.losses.mean_squared_error(outputs.softmax(dim=1), targets)


class RawMSE(Objective):
    """Mean squared error straight on the outputs of a classification head: least-squares classification."""

    name = "mse-raw"
    title = "Classification head, MSE on raw outputs"
    loss_title = "MSE on raw outputs"
    target_title = "one-hot vector of the digit"

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """The mean squared difference between outputs and one-hot vectors."""
        return self.losses.mean_squared_error(outputs, targets)

    def decode(self, outputs: Tensor) -> dict[str, Tensor]:
        """The value of the class with the highest output."""
        return {"highest output": self.task.class_values[outputs.argmax(dim=1)]}


class SoftmaxCEE(_Softmax):
    """The textbook's cross-entropy error: on softmax probabilities, with a small constant in the logarithm."""

    name = "cee-softmax"
    title = "Classification head, CEE on probabilities"
    loss_title = "cross-entropy error on softmax probabilities"
    target_title = "one-hot vector of the digit"

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """The mean of -sum(target * log(probability + 1e-7))."""
        return self.losses.cross_entropy_error(outputs.softmax(dim=1), targets)


OBJECTIVES: dict[str, type[Objective]] = {
    objective.name: objective for objective in (RegressionMSE, CrossEntropy, SoftmaxMSE, RawMSE, SoftmaxCEE)
}


def select_objectives(names: tuple[str, ...], task: TaskName) -> list[type[Objective]]:
    """The named objectives in their usual order; without names, those that suit the task by default.

    Raises:
        StudyError: a name is unknown.
    """
    unknown = [name for name in names if name not in OBJECTIVES]
    if unknown:
        raise StudyError(f"--objectives: unknown {', '.join(unknown)}; allowed are {', '.join(OBJECTIVES)}")
    if names:
        return [objective for name, objective in OBJECTIVES.items() if name in names]
    return [objective for objective in OBJECTIVES.values() if task in objective.default_tasks]
