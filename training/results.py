"""What a run of the study leaves behind: the shape of `results.json`, checked on every write and every read.

The engine fills these models, the report reads them; neither knows the other.
Every angle is in degrees, every time in seconds, every negative log-likelihood in nats.
"""

from __future__ import annotations

import base64
import binascii
import json
import zlib
from pathlib import Path
from typing import Any, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, ValidationError

from training.errors import StudyError
from training.files import write_text_atomically
from training.questions import TaskName

SCHEMA_VERSION = 2

Head = Literal["regression", "classification"]
Family = Literal["mean squared error", "cross-entropy", "absolute error"]
RateSource = Literal["tuned", "tuned elsewhere", "option", "default"]


class Record(BaseModel):
    """A part of the results: unknown fields are refused, and values that are not finite survive the file."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=True, ser_json_inf_nan="constants")


class Environment(Record):
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


class PerImage(Record):
    """One number for each test image, in their order: compressed, and written in base64.

    kind: 'uint8' for digits, 'float16' for other numbers (rounded by at most a part in 2048 each).
    """

    kind: Literal["uint8", "float16"]
    count: int
    data: str

    @classmethod
    def of(cls, values: np.ndarray) -> PerImage:
        """Pack an array of small whole numbers or of others."""
        whole = np.issubdtype(values.dtype, np.integer)
        largest = np.finfo(np.float16).max
        packed = values.astype(np.uint8) if whole else np.clip(values, -largest, largest).astype("<f2")
        data = base64.b64encode(zlib.compress(packed.tobytes(), 9)).decode("ascii")
        return cls(kind="uint8" if whole else "float16", count=len(values), data=data)

    def values(self) -> np.ndarray:
        """The numbers again, as int64 or float64."""
        content = zlib.decompress(base64.b64decode(self.data))
        if self.kind == "uint8":
            return np.frombuffer(content, np.uint8).astype(np.int64)
        return np.frombuffer(content, "<f2").astype(np.float64)


class DecodedMetrics(Record):
    """How far one decoding of a head's outputs is from the truth, over the whole test set.

    `accuracy` is the share of images decoded to the right digit, or to within half an angle bin of the right angle.
    """

    accuracy: float
    mean_absolute_error: float
    root_mean_squared_error: float


class ProbabilityMetrics(Record):
    """How good a head's probabilities are; only for heads whose outputs are probabilities."""

    negative_log_likelihood: float
    brier_score: float
    calibration_error: float


class Evaluation(Record):
    """One pass over the test set. The keys of `decoded` name the decodings, such as 'most probable'."""

    decoded: dict[str, DecodedMetrics]
    probabilities: ProbabilityMetrics | None


class EpochRecord(Record):
    """One epoch; `epoch` counts from 1, `train_loss` is the mean over the epoch's images.

    `seconds` is the network's share of the time that all networks of its stack took together.
    """

    epoch: int
    train_loss: float
    seconds: float
    evaluation: Evaluation


class ReliabilityBin(Record):
    """Images whose highest probability fell into one bin: how sure the network was and how often it was right."""

    confidence: float
    accuracy: float
    count: int


class Details(Record):
    """What figures and paired comparisons need beyond the metrics, from the test set after the last epoch.

    confusion: decoding -> counts, rows the true digit, columns the decoded digit (digits only).
    residual_counts: decoding -> counts of (decoded - true) between neighbouring `residual_edges` (angle only).
    reliability: bins of the highest probability (heads with probabilities only).
    answer: decoding -> the digit that each image was decoded to (digits only).
    error: decoding -> decoded - true of each image (angle only).
    negative_log_likelihood: of each image (heads with probabilities only).
    """

    confusion: dict[str, list[list[int]]] | None = None
    residual_edges: list[float] | None = None
    residual_counts: dict[str, list[int]] | None = None
    reliability: list[ReliabilityBin] | None = None
    answer: dict[str, PerImage] | None = None
    error: dict[str, PerImage] | None = None
    negative_log_likelihood: PerImage | None = None


class Temperature(Record):
    """What dividing the outputs by one number, chosen on images kept apart, does for the probabilities."""

    temperature: float
    before: ProbabilityMetrics
    after: ProbabilityMetrics


class ObjectiveRun(Record):
    """One objective trained from one seed.

    `initial_loss` is the loss of the first batch before the first update. A run has diverged where its outputs are not
    finite, or its loss over the last epoch is above that.
    """

    task: TaskName
    objective: str
    seed: int
    parameters: int
    learning_rate: float
    initial_loss: float
    epochs: list[EpochRecord]
    details: Details | None = None
    temperature: Temperature | None = None
    diverged: bool = False
    complete: bool = False


class ObjectiveDescription(Record):
    """An objective in words, for legends and tables.

    `name` is the key used by the runs ('regression-mse'), `title` is for people ('Regression head, MSE'),
    `primary_decoding` is the decoding by which it is compared with the others. `rate_source` says whether the learning
    rate was tuned for this very setting, for another (its data set, network or task), given as an option, or neither.
    """

    name: str
    task: TaskName
    title: str
    head: Head
    family: Family
    loss: str
    target: str
    decodings: list[str]
    primary_decoding: str
    learning_rate: float
    rate_source: RateSource


class Sensitivity(Record):
    """How well an objective does on validation images at each learning rate of the grid.

    `scores` has one list a rate, of one number a seed: accuracy for the digit, root mean squared error for the angle
    (of the primary decoding; nan where the run diverged). `best` is the rate with the best mean, and `best_score` that.
    """

    task: Literal["digit", "angle"]
    objective: str
    rates: list[float]
    scores: list[list[float]]
    best: float
    best_score: float


class Tuning(Record):
    """What `python -m training.tune` found, and the command that finds it again."""

    command: str
    dataset: str
    model: str
    epochs: dict[Literal["digit", "angle"], int]
    batch_size: int
    seeds: list[int]
    train_images: int
    validation_images: int
    seconds: float
    environment: Environment
    objectives: list[Sensitivity]


class GradientCurve(Record):
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


class GradientExperiment(Record):
    """Experiment (a): what reaches the logits, MSE on softmax against cross-entropy."""

    classes: int
    seed: int
    curves: list[GradientCurve]


class RecoveryCurve(Record):
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


class RecoveryExperiment(Record):
    """Experiment (b): a confidently wrong start."""

    margin: float
    wrong_class: int
    threshold: float
    curves: list[RecoveryCurve]


class Misread(Record):
    """A test image that some objectives read wrongly from the first seed, with its grey levels from 0 to 255."""

    index: int
    label: int
    pixels: list[list[int]]


class ParityRecord(Record):
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


class Results(Record):
    """Everything a run found. `complete` is False while it runs and after it was interrupted."""

    schema_version: Literal[2] = SCHEMA_VERSION
    name: str
    started: str
    seconds: float
    complete: bool
    command: str
    config: dict[str, object]
    environment: Environment
    train_images: int
    test_images: int
    test_labels: PerImage
    angle_limit: float
    angle_bin_width: float
    objectives: list[ObjectiveDescription]
    runs: list[ObjectiveRun]
    tuning: Tuning | None
    misread: Misread | None
    gradient_experiment: GradientExperiment | None
    recovery_experiment: RecoveryExperiment | None
    parity: list[ParityRecord]


def write_results(results: Results, path: Path) -> None:
    """Write `results` so that `path` never holds half a file."""
    write_text_atomically(path, results.model_dump_json(indent=1))


def read_results(path: Path) -> Results:
    """Read and check `results.json`.

    Raises:
        StudyError: the file cannot be read, is of another version of this program, or is damaged; it says which.
    """
    try:
        content: Any = json.loads(path.read_bytes().decode("utf-8"))
    except OSError as error:
        raise StudyError(f"{path} cannot be read ({error.strerror})") from error
    except ValueError as error:
        raise StudyError(f"{path} is damaged: it is no JSON in UTF-8 ({error})") from error
    version = content.get("schema_version") if isinstance(content, dict) else None
    if version != SCHEMA_VERSION:
        found = "no version" if version is None else f"version {version}"
        raise StudyError(
            f"{path} has {found} of the results' format, and this program reads version {SCHEMA_VERSION}: take the "
            "version of this program that wrote it, or start a new run"
        )
    try:
        results = Results.model_validate(content)
        for packed in (results.test_labels, *(item for run in results.runs for item in _packed(run.details))):
            if not len(packed.values()) == packed.count == results.test_images:
                raise ValueError(f"there is not one number for each of {results.test_images} test images")
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(map(str, first["loc"]))
        raise StudyError(f"{path} is damaged: {place}: {first['msg']}") from error
    except (ValueError, zlib.error, binascii.Error) as error:
        raise StudyError(f"{path} is damaged: numbers of single images cannot be unpacked ({error})") from error
    return results


def _packed(details: Details | None) -> list[PerImage]:
    if details is None:
        return []
    likelihood = [details.negative_log_likelihood] if details.negative_log_likelihood else []
    return [*(details.answer or {}).values(), *(details.error or {}).values(), *likelihood]
