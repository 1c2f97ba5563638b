"""What a network is trained for: how targets are encoded, which loss, how outputs are decoded.

To add an objective, write a class like those below and add it to `OBJECTIVES`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from training.errors import StudyError
from training.questions import TaskName
from training.results import Family, Head, ObjectiveDescription, RateSource
from training.tasks import Task

Loss = Callable[[Tensor, Tensor], Tensor]

# Beyond this share of the largest answer an error counts in proportion, not squared.
HUBER_DELTA = 0.1
LABEL_SMOOTHING = 0.1


@dataclass(frozen=True)
class LossLibrary:
    """The losses, each averaging over the batch, from one implementation."""

    name: str
    mean_squared_error: Loss
    huber: Loss
    cross_entropy: Loss
    smoothed_cross_entropy: Loss
    cross_entropy_error: Loss
    binary_cross_entropy: Loss


def loss_library(implementation: str) -> LossLibrary:
    """The losses of `torchlosses`, or those of `torch`.

    torch.nn has no cross-entropy error on probabilities; there the textbook's formula, differentiated by autograd,
    stands in for it.
    """
    if implementation == "torch":
        return LossLibrary(
            "torch.nn",
            F.mse_loss,
            partial(F.huber_loss, delta=HUBER_DELTA),
            F.cross_entropy,
            partial(F.cross_entropy, label_smoothing=LABEL_SMOOTHING),
            _composed_cross_entropy_error,
            F.binary_cross_entropy_with_logits,
        )
    import torchlosses

    return LossLibrary(
        "torchlosses",
        torchlosses.mse_loss,
        partial(torchlosses.huber_loss, delta=HUBER_DELTA),
        torchlosses.cross_entropy,
        partial(torchlosses.cross_entropy, label_smoothing=LABEL_SMOOTHING),
        # A softmax never leaves [0, 1], and looking would make a GPU wait at every step.
        torchlosses.CEELoss(validate_args=False),
        torchlosses.binary_cross_entropy_with_logits,
    )


def _composed_cross_entropy_error(probabilities: Tensor, targets: Tensor) -> Tensor:
    return -(targets * torch.log(probabilities + 1e-7)).sum(dim=1).mean()


class Objective(ABC):
    """One way to train a head for a task.

    Class attributes:
        name: the key on the command line and in the results.
        title: the name for people.
        head: 'regression' (one output) or 'classification' (one output a class).
        family: what the loss is a kind of: 'mean squared error', 'cross-entropy' or 'absolute error'.
        loss_title, target_title: the loss and its targets in words.
        questions: what it can be trained for.
        main: the questions for which a run without `--all` and `--objectives` trains it.
    """

    name: ClassVar[str]
    title: ClassVar[str]
    head: ClassVar[Head] = "classification"
    family: ClassVar[Family] = "cross-entropy"
    loss_title: ClassVar[str]
    target_title: ClassVar[str] = "one-hot vector"
    questions: ClassVar[tuple[str, ...]] = ("digit", "angle")
    main: ClassVar[tuple[str, ...]] = ()

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

    def describe(self, learning_rate: float, rate_source: RateSource) -> ObjectiveDescription:
        """The objective in words, with the learning rate it is trained at and where that comes from."""
        decodings = list(self.decode(torch.zeros(1, self.outputs, device=self.task.class_values.device)))
        return ObjectiveDescription(
            name=self.name,
            task=self.task.name,
            title=self.title,
            head=self.head,
            family=self.family,
            loss=self.loss_title,
            target=self.target_title if self.task.is_category else self.target_title.replace("digit", "angle"),
            decodings=decodings,
            # The mean of a distribution is what answers a quantity best by the squared error it is judged by.
            primary_decoding="expected value" if "expected value" in decodings else decodings[0],
            learning_rate=learning_rate,
            rate_source=rate_source,
        )


class _Softmax(Objective):
    """Outputs are logits: their softmax gives the probabilities of the classes."""

    def decode(self, outputs: Tensor) -> dict[str, Tensor]:
        """The most probable class's value and, for a quantity, the expected value too."""
        decoded = {"most probable": self.task.class_values[outputs.argmax(dim=1)]}
        if not self.task.is_category:
            decoded["expected value"] = self.log_probabilities(outputs).exp().float() @ self.task.class_values
        return decoded

    def log_probabilities(self, outputs: Tensor) -> Tensor:
        """The log-softmax, in float64 so that its tail survives."""
        return outputs.double().log_softmax(dim=1)


class _Regression(Objective):
    """One output, the answer itself as a number, in units of the largest answer."""

    head = "regression"
    family = "mean squared error"
    target_title = "the digit as a number, as a share of the largest"

    def encode(self, values: Tensor) -> Tensor:
        """The numbers, in units of the task's scale, as a column."""
        return values.unsqueeze(1) / self.task.scale

    def decode(self, outputs: Tensor) -> dict[str, Tensor]:
        """The number: rounded to a digit for a category, as it is for a quantity."""
        values = outputs.squeeze(1) * self.task.scale
        if self.task.is_category:
            return {"rounded": values.round().clamp(self.task.class_values[0], self.task.class_values[-1])}
        return {"direct": values}


class RegressionMSE(_Regression):
    """Mean squared error on one output."""

    name = "regression-mse"
    title = "Regression head, MSE"
    loss_title = "MSE"
    main = ("digit", "angle")

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """The mean squared difference."""
        return self.losses.mean_squared_error(outputs, targets)


class RegressionHuber(_Regression):
    """The Huber loss on one output: squared near the truth, in proportion beyond."""

    name = "regression-huber"
    title = "Regression head, Huber"
    family = "absolute error"
    loss_title = f"Huber loss, squared up to {HUBER_DELTA:g} of the largest answer"

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """The mean Huber loss."""
        return self.losses.huber(outputs, targets)


class CrossEntropy(_Softmax):
    """Cross-entropy on logits."""

    name = "cross-entropy"
    title = "Classification head, cross-entropy"
    loss_title = "cross-entropy on logits"
    target_title = "class index of the digit"
    main = ("digit", "angle")

    def encode(self, values: Tensor) -> Tensor:
        """Class indices."""
        return self.task.classes_of(values)

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """The mean of -log softmax at the right class."""
        return self.losses.cross_entropy(outputs, targets)


class LabelSmoothing(CrossEntropy):
    """Cross-entropy that wants a little of every class."""

    name = "label-smoothing"
    title = "Classification head, smoothed cross-entropy"
    loss_title = f"cross-entropy on logits, labels smoothed by {LABEL_SMOOTHING:g}"
    main = ()

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """The mean of -sum(target * log softmax), the target smoothed."""
        return self.losses.smoothed_cross_entropy(outputs, targets)


class SoftmaxMSE(_Softmax):
    """The textbook's mean squared error: on softmax probabilities."""

    name = "mse-softmax"
    title = "Classification head, MSE on probabilities"
    family = "mean squared error"
    loss_title = "MSE on softmax probabilities"
    target_title = "one-hot vector of the digit"
    main = ("digit",)

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """The mean squared difference between probabilities and one-hot vectors."""
        return self.losses.mean_squared_error(outputs.softmax(dim=1), targets)


class RawMSE(Objective):
    """Mean squared error straight on the outputs of a classification head: least-squares classification."""

    name = "mse-raw"
    title = "Classification head, MSE on raw outputs"
    family = "mean squared error"
    loss_title = "MSE on raw outputs"
    target_title = "one-hot vector of the digit"
    main = ("digit",)

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """The mean squared difference between outputs and one-hot vectors."""
        return self.losses.mean_squared_error(outputs, targets)

    def decode(self, outputs: Tensor) -> dict[str, Tensor]:
        """The value of the class with the highest output and, for a quantity, the mean weighted by the outputs.

        Least squares estimates the probabilities, so that mean estimates the expected value; but nothing keeps an
        output between 0 and 1.
        """
        decoded = {"highest output": self.task.class_values[outputs.argmax(dim=1)]}
        if not self.task.is_category:
            decoded["expected value"] = outputs @ self.task.class_values
        return decoded


class SoftmaxCEE(_Softmax):
    """The textbook's cross-entropy error: on softmax probabilities, with a small constant in the logarithm."""

    name = "cee-softmax"
    title = "Classification head, CEE on probabilities"
    loss_title = "cross-entropy error on softmax probabilities"
    target_title = "one-hot vector of the digit"
    main = ("digit",)

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """The mean of -sum(target * log(probability + 1e-7))."""
        return self.losses.cross_entropy_error(outputs.softmax(dim=1), targets)


class BinaryCrossEntropy(_Softmax):
    """A yes or no to every class by itself."""

    name = "binary-cross-entropy"
    title = "Classification head, binary cross-entropy"
    loss_title = "binary cross-entropy on the logit of each class"
    target_title = "one-hot vector of the digit"

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """The mean over images and classes of -log sigmoid(x) where the class is right, -log sigmoid(-x) elsewhere."""
        return self.losses.binary_cross_entropy(outputs, targets)

    def log_probabilities(self, outputs: Tensor) -> Tensor:
        """Each class's probability by itself, divided by their sum."""
        logarithms = F.logsigmoid(outputs.double())
        return logarithms - logarithms.logsumexp(dim=1, keepdim=True)


class GaussianHistogram(_Softmax):
    """Regression by classification: cross-entropy with a Gaussian around the truth, divided into the bins."""

    name = "gaussian-histogram"
    title = "Classification head, Gaussian histogram"
    loss_title = "cross-entropy on logits"
    target_title = "share of each bin in a Gaussian around the angle, one bin wide (standard deviation)"
    questions = ("angle",)

    def encode(self, values: Tensor) -> Tensor:
        """The Gaussian's mass in each bin, of the mass in all of them."""
        edges = torch.cat((self.task.class_values, self.task.class_values[-1:] + self.task.spacing))
        edges = edges.double() - self.task.spacing / 2
        cumulative = torch.special.ndtr((edges - values.double().unsqueeze(1)) / self.task.spacing)
        mass = cumulative.diff(dim=1)
        return (mass / mass.sum(dim=1, keepdim=True)).float()

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """The mean of -sum(target * log softmax)."""
        return self.losses.cross_entropy(outputs, targets)


OBJECTIVES: dict[str, type[Objective]] = {
    objective.name: objective
    for objective in (
        RegressionMSE,
        CrossEntropy,
        SoftmaxMSE,
        RawMSE,
        SoftmaxCEE,
        RegressionHuber,
        LabelSmoothing,
        BinaryCrossEntropy,
        GaussianHistogram,
    )
}


def select_objectives(names: Sequence[str], task: TaskName, *, every: bool = False) -> list[type[Objective]]:
    """The named objectives in their usual order; without names the main ones of the task, or `every` one that fits.

    Raises:
        StudyError: a name is unknown, or none of the named suits the task.
    """
    question = "angle" if task == "angle" else "digit"
    unknown = [name for name in names if name not in OBJECTIVES]
    if unknown:
        raise StudyError(f"--objectives: unknown {', '.join(unknown)}; allowed are {', '.join(OBJECTIVES)}")
    fitting = [objective for objective in OBJECTIVES.values() if question in objective.questions]
    # The harder versions of the digits ask what a loss does to probabilities and decisions: a head of one has neither.
    if task not in ("digit", "angle"):
        fitting = [objective for objective in fitting if objective.head == "classification"]
    if names:
        chosen = [objective for objective in fitting if objective.name in names]
        if not chosen:
            allowed = ", ".join(objective.name for objective in fitting)
            raise StudyError(
                f"--objectives: {', '.join(names)} cannot be trained for --tasks {task}; allowed: {allowed}"
            )
        return chosen
    return fitting if every else [objective for objective in fitting if question in objective.main]
