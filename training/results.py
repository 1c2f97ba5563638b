"""What a run of the study leaves behind: the shape of `results.json`, checked on every write and every read.

The engine fills these models, the report reads them; neither knows the other.
Every angle is in degrees, every time in seconds, every negative log-likelihood in nats.
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict

from training.files import write_text_atomically

SCHEMA_VERSION = 1

TaskName = Literal["digit", "angle"]


class _Record(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=True, ser_json_inf_nan="constants")


class Environment(_Record):
    """The machine and the versions that produced the numbers."""

    torchlosses: str
    torch: str
    torchvision: str
    torchmetrics: str
    numpy: str
    python: str
    platform: str
    processor: str
    device: str
    threads: int
    processes: int


class DecodedMetrics(_Record):
    """How far one decoding of a head's outputs is from the truth, over the whole test set.

    `accuracy` is the share of images decoded to the right digit, or to within half an angle bin of the right angle.
    """

    accuracy: float
    mean_absolute_error: float
    root_mean_squared_error: float


class ProbabilityMetrics(_Record):
    """How good a head's probabilities are; only for heads whose outputs are probabilities."""

    negative_log_likelihood: float
    brier_score: float
    calibration_error: float


class Evaluation(_Record):
    """One pass over the test set. The keys of `decoded` name the decodings, such as 'most probable'."""

    decoded: dict[str, DecodedMetrics]
    probabilities: ProbabilityMetrics | None


class EpochRecord(_Record):
    """One epoch; `epoch` counts from 1, `train_loss` is the mean over the epoch's images."""

    epoch: int
    train_loss: float
    seconds: float
    evaluation: Evaluation


class ReliabilityBin(_Record):
    """Images whose highest probability fell into one bin: how sure the network was and how often it was right."""

    confidence: float
    accuracy: float
    count: int


class Details(_Record):
    """What the figures need beyond the metrics, from the test set after the last epoch.

    confusion: decoding -> counts, rows the true digit, columns the decoded digit (digit task only).
    residual_counts: decoding -> counts of (decoded - true) between neighbouring `residual_edges` (angle task only).
    reliability: bins of the highest probability (heads with probabilities only).
    """

    confusion: dict[str, list[list[int]]] | None = None
    residual_edges: list[float] | None = None
    residual_counts: dict[str, list[int]] | None = None
    reliability: list[ReliabilityBin] | None = None


class ObjectiveRun(_Record):
    """One objective trained from one seed."""

    task: TaskName
    objective: str
    seed: int
    parameters: int
    epochs: list[EpochRecord]
    details: Details | None
    complete: bool


class ObjectiveDescription(_Record):
    """An objective in words, for legends and tables.

    `name` is the key used by the runs ('regression-mse'), `title` is for people ('Regression head, MSE'),
    `primary_decoding` is the decoding by which it is compared with the others.
    """

    name: str
    task: TaskName
    title: str
    head: Literal["regression", "classification"]
    loss: str
    target: str
    decodings: list[str]
    primary_decoding: str


class GradientCurve(_Record):
    """The size of the loss gradient at the right class's logit against the probability given to that class.

    `theory_gradient` follows the formula with the remaining probability spread evenly over the other classes,
    `theory_gradient_one_rival` with all of it on one of them: the two extremes, between which every image lies.
    `measured_*` come from test images passed through a trained network.
    """

    objective: str
    title: str
    theory_probability: list[float]
    theory_gradient: list[float]
    theory_gradient_one_rival: list[float]
    measured_probability: list[float]
    measured_gradient: list[float]


class GradientExperiment(_Record):
    """Experiment (a): what reaches the logits, MSE on softmax against cross-entropy."""

    classes: int
    seed: int
    curves: list[GradientCurve]


class RecoveryCurve(_Record):
    """One network, pushed to a wrong class by `margin` and then trained; accuracy[i] is that after steps[i] updates.

    `recovered_at` is the first measured step whose accuracy reaches `RecoveryExperiment.threshold`, or None.
    """

    objective: str
    title: str
    seed: int
    steps: list[int]
    accuracy: list[float]
    train_loss: list[float]
    recovered_at: int | None


class RecoveryExperiment(_Record):
    """Experiment (b): a confidently wrong start."""

    margin: float
    wrong_class: int
    threshold: float
    curves: list[RecoveryCurve]


class ParityRecord(_Record):
    """Our losses against the torch.nn built-ins: the same seed, the same batches, `steps` updates by `optimizer`."""

    loss: str
    optimizer: str = "Adam"
    ours: str
    builtin: str
    steps: int
    seed: int
    largest_loss_difference: float
    largest_weight_difference: float
    loss_tolerance: float
    weight_tolerance: float
    passed: bool


class Results(_Record):
    """Everything a run found. `complete` is False while it runs and after it was interrupted."""

    schema_version: Literal[1] = SCHEMA_VERSION
    name: str
    started: str
    seconds: float
    complete: bool
    command: str
    config: dict[str, object]
    environment: Environment
    train_images: int
    test_images: int
    angle_limit: float
    angle_bin_width: float
    objectives: list[ObjectiveDescription]
    runs: list[ObjectiveRun]
    gradient_experiment: GradientExperiment | None
    recovery_experiment: RecoveryExperiment | None
    parity: list[ParityRecord]


def write_results(results: Results, path: Path) -> None:
    """Write `results` so that `path` never holds half a file."""
    write_text_atomically(path, results.model_dump_json(indent=1))


def read_results(path: Path) -> Results:
    """Read and check `results.json`; raises pydantic.ValidationError that names each field that is wrong."""
    return Results.model_validate_json(path.read_text(encoding="utf-8"))
