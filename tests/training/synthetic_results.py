"""Results as a run would leave them, made from a few numbers instead of from training."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np

from training.questions import TaskName
from training.results import (
    DecodedMetrics,
    Details,
    Environment,
    EpochRecord,
    Evaluation,
    GradientCurve,
    GradientExperiment,
    Misread,
    ObjectiveDescription,
    ObjectiveRun,
    ParityRecord,
    PerImage,
    ProbabilityMetrics,
    RecoveryCurve,
    RecoveryExperiment,
    ReliabilityBin,
    Results,
    Sensitivity,
    Tuning,
)

OBJECTIVES = {
    "regression-mse": ("Regression head, MSE", "regression", "MSELoss", "the value itself", False),
    "cross-entropy": (
        "Classification head, cross-entropy",
        "classification",
        "cross-entropy on logits",
        "class index",
        True,
    ),
    "mse-softmax": (
        "Classification head, MSE on probabilities",
        "classification",
        "MSE on softmax probabilities",
        "one-hot",
        True,
    ),
    "mse-raw": (
        "Classification head, MSE on raw outputs",
        "classification",
        "MSELoss",
        "one-hot",
        False,
    ),
    "cee-softmax": (
        "Classification head, CEE on probabilities",
        "classification",
        "cross-entropy error on softmax probabilities",
        "one-hot",
        True,
    ),
}

IMAGES = 10_000
LABELS = np.arange(IMAGES) % 10
# How hard each image is, for every objective alike: the hardest are read wrongly first.
DIFFICULTY = np.random.default_rng(1).permutation(IMAGES)
# Errors of the angle in units of their root mean square, for every objective alike.
ERRORS = np.random.default_rng(2).normal(size=IMAGES)
ERRORS /= np.sqrt(np.mean(ERRORS**2))

# Final error a seed: share of wrong digits; degrees for each decoding of the angle.
DIGIT_ERROR = {
    "regression-mse": (0.281, 0.274, 0.288),
    "cross-entropy": (0.0251, 0.0243, 0.0256),
    "mse-softmax": (0.0291, 0.0297, 0.0287),
    "mse-raw": (0.0203, 0.0207, 0.0199),
    "cee-softmax": (0.0250, 0.0244, 0.0257),
}
ANGLE_ERROR = {
    ("regression-mse", "direct"): (8.71, 8.65, 8.78),
    ("cross-entropy", "most probable"): (9.21, 9.16, 9.29),
    ("cross-entropy", "expected value"): (8.11, 8.05, 8.14),
}


def describe(task: TaskName, name: str) -> ObjectiveDescription:
    title, head, loss, target, _ = OBJECTIVES[name]
    if head == "regression":
        decodings = ["rounded"] if task == "digit" else ["direct"]
    else:
        decodings = ["most probable"] if task == "digit" else ["most probable", "expected value"]
    return ObjectiveDescription(
        name=name,
        task=task,
        title=title,
        head="regression" if head == "regression" else "classification",
        loss=loss,
        target=target,
        decodings=decodings,
        primary_decoding=decodings[-1],
        family="mean squared error" if "mse" in name else "cross-entropy",
        learning_rate=1e-3,
        rate_source="tuned",
    )


def build_results(
    *,
    digit: Mapping[str, Sequence[float]] = DIGIT_ERROR,
    angle: Mapping[tuple[str, str], Sequence[float]] = ANGLE_ERROR,
    seeds: int | None = None,
    complete: bool = True,
    experiments: bool = True,
    parity: bool = True,
    parity_passed: bool = True,
    details: bool = True,
    tuned: bool = True,
) -> Results:
    """A run with the given final errors, one value a seed; `seeds` keeps only the first few."""
    generator = np.random.default_rng(0)
    runs: list[ObjectiveRun] = []
    for name, errors in digit.items():
        for seed, error in enumerate(errors[:seeds]):
            runs.append(digit_run(name, seed, error, details, generator))
    angle_names = list(dict.fromkeys(name for name, _ in angle))
    for name in angle_names:
        decodings = {decoding: errors for (owner, decoding), errors in angle.items() if owner == name}
        for seed in range(min(len(errors[:seeds]) for errors in decodings.values())):
            final = {decoding: errors[seed] for decoding, errors in decodings.items()}
            runs.append(_angle_run(name, seed, final, details, generator))
    return Results(
        name="synthetic",
        started="2026-01-02T03:04:05",
        seconds=161.4,
        complete=complete,
        command="python -m training.compare --seeds 3",
        config={"model": "mlp", "seeds": 3, "batch_size": 128, "dataset": "mnist", "implementation": "ours"},
        environment=Environment(
            torchlosses="0.1.0",
            torch="2.14.1",
            torchvision="0.29.1",
            torchmetrics="1.9.0",
            numpy="2.4.6",
            python="3.12.3",
            platform="Linux-6.8-x86_64-with-glibc2.39",
            processor="x86_64",
            device="cpu",
            threads=2,
            processes=1,
        ),
        train_images=60_000,
        test_images=IMAGES,
        test_labels=PerImage.of(LABELS),
        angle_limit=45.0,
        angle_bin_width=3.0,
        objectives=[describe("digit", name) for name in digit] + [describe("angle", name) for name in angle_names],
        runs=runs,
        tuning=_tuning() if tuned else None,
        misread=Misread(index=7, label=7, pixels=[[0] * 28] * 28) if details else None,
        gradient_experiment=_gradients(generator) if experiments else None,
        recovery_experiment=_recovery(3 if seeds is None else seeds) if experiments else None,
        parity=_parity(parity_passed) if parity else [],
    )


def _probabilities(name: str, error: float) -> ProbabilityMetrics | None:
    if not OBJECTIVES[name][4]:
        return None
    return ProbabilityMetrics(
        negative_log_likelihood=3.3 * error, brier_score=1.5 * error, calibration_error=0.006 + 0.1 * error
    )


def digit_run(name: str, seed: int, error: float, with_details: bool, generator: np.random.Generator) -> ObjectiveRun:
    decoding = "rounded" if name.startswith("regression") else "most probable"
    epochs = []
    for epoch in range(1, 4):
        share = min(error * (1 + 1.2 / epoch**2 - 1.2 / 9), 1.0)
        metrics = DecodedMetrics(
            accuracy=1 - share, mean_absolute_error=1.4 * share, root_mean_squared_error=2.2 * math.sqrt(share)
        )
        epochs.append(
            EpochRecord(
                epoch=epoch,
                train_loss=0.3 / epoch,
                seconds=1.7 + 0.05 * seed,
                evaluation=Evaluation(decoded={decoding: metrics}, probabilities=_probabilities(name, share)),
            )
        )
    confusion = np.zeros((10, 10), dtype=int)
    for true in range(10):
        wrong = int(1000 * error) if math.isfinite(error) else 0
        confusion[true, true] = 1000 - wrong
        if decoding == "rounded":
            near = [c for c in (true - 1, true + 1) if 0 <= c <= 9]
            for c in near:
                confusion[true, c] += wrong // len(near)
        else:
            for c in generator.integers(0, 10, wrong):
                confusion[true, c] += 1
    wrong_ones = (round(IMAGES * error) if math.isfinite(error) else 0) > DIFFICULTY
    likelihood = 3.3 * error * ERRORS**2 if math.isfinite(error) else ERRORS**2
    details = Details(
        confusion={decoding: confusion.tolist()},
        reliability=_reliability(generator) if OBJECTIVES[name][4] else None,
        answer={decoding: PerImage.of(np.where(wrong_ones, (LABELS + 1) % 10, LABELS))},
        negative_log_likelihood=PerImage.of(likelihood) if OBJECTIVES[name][4] else None,
    )
    parameters = 784 * 256 + 256 + 256 * 128 + 128 + 129 * (1 if decoding == "rounded" else 10)
    return ObjectiveRun(
        task="digit",
        objective=name,
        seed=seed,
        parameters=parameters,
        learning_rate=1e-3,
        initial_loss=2.3,
        epochs=epochs,
        details=details if with_details else None,
        diverged=not all(map(math.isfinite, [error])),
        complete=True,
    )


def _angle_run(
    name: str, seed: int, final: Mapping[str, float], with_details: bool, generator: np.random.Generator
) -> ObjectiveRun:
    epochs = []
    for epoch in range(1, 6):
        factor = 1 + 0.9 / epoch - 0.18
        decoded = {
            decoding: DecodedMetrics(
                accuracy=min(1.2 / (error * factor), 1.0),
                mean_absolute_error=0.72 * error * factor,
                root_mean_squared_error=error * factor,
            )
            for decoding, error in final.items()
        }
        probabilities = None
        if OBJECTIVES[name][4]:
            probabilities = ProbabilityMetrics(
                negative_log_likelihood=1.9 * factor, brier_score=0.8, calibration_error=0.02
            )
        epochs.append(
            EpochRecord(
                epoch=epoch,
                train_loss=0.1 * factor,
                seconds=1.9,
                evaluation=Evaluation(decoded=decoded, probabilities=probabilities),
            )
        )
    edges = np.linspace(-90, 90, 121)
    counts = {}
    for decoding, error in final.items():
        errors = generator.normal(0, error if math.isfinite(error) else 1.0, 10_000)
        counts[decoding] = np.histogram(errors, edges)[0].tolist()
    details = Details(
        residual_edges=edges.tolist(),
        residual_counts=counts,
        error={decoding: PerImage.of(error * ERRORS) for decoding, error in final.items()},
        reliability=_reliability(generator) if OBJECTIVES[name][4] else None,
    )
    return ObjectiveRun(
        task="angle",
        objective=name,
        seed=seed,
        parameters=784 * 256 + 256 + 256 * 128 + 128 + 129 * (1 if name.startswith("regression") else 30),
        learning_rate=1e-3,
        initial_loss=2.3,
        epochs=epochs,
        details=details if with_details else None,
        diverged=not all(map(math.isfinite, final.values())),
        complete=True,
    )


def _reliability(generator: np.random.Generator) -> list[ReliabilityBin]:
    bins = []
    for i in range(2, 15):
        confidence = (i + 0.5) / 15
        accuracy = float(np.clip(confidence - 0.03 + generator.normal(0, 0.04), 0, 1))
        bins.append(ReliabilityBin(confidence=confidence, accuracy=accuracy, count=int(20 * 1.5**i)))
    return bins


def cross_entropy_gradient(p: np.ndarray, rivals: int = 9) -> np.ndarray:
    return 1 - p


def mse_softmax_gradient(p: np.ndarray, rivals: int = 9) -> np.ndarray:
    """Gradient of mean((softmax(x) - onehot)^2) at the right logit, the rest of the probability on some rivals."""
    rest = (1 - p) / rivals
    inner = p * (p - 1) + rivals * rest * rest
    return -2 / 10 * p * ((p - 1) - inner)


def _gradients(generator: np.random.Generator) -> GradientExperiment:
    p = np.concatenate([np.logspace(-6, -1.3, 60), np.linspace(0.06, 0.9999, 60)])
    measured = np.concatenate([10 ** generator.uniform(-6, 0, 300), generator.uniform(0, 1, 300)])
    curves = []
    for name, formula in (
        ("mse-softmax", mse_softmax_gradient),
        ("cross-entropy", cross_entropy_gradient),
    ):
        curves.append(
            GradientCurve(
                objective=name,
                title=OBJECTIVES[name][0],
                theory_probability=p.tolist(),
                theory_gradient=formula(p).tolist(),
                theory_gradient_one_rival=formula(p, rivals=1).tolist(),
                measured_probability=measured.tolist(),
                measured_gradient=formula(measured, rivals=3).tolist(),
            )
        )
    return GradientExperiment(classes=10, seed=0, curves=curves)


def _recovery(seeds: int) -> RecoveryExperiment:
    steps = [0, 5, 10, 20, 40, 80, 120, 160, 240, 320, 400]
    curves = []
    for name, speed in (
        ("cross-entropy", 15.0),
        ("mse-softmax", 4000.0),
        ("mse-raw", 30.0),
    ):
        for seed in range(seeds):
            accuracy = [0.098 + 0.85 * (1 - math.exp(-step / (speed * (1 + 0.1 * seed)))) for step in steps]
            recovered = next((s for s, a in zip(steps, accuracy, strict=True) if a >= 0.9), None)
            curves.append(
                RecoveryCurve(
                    objective=name,
                    title=OBJECTIVES[name][0],
                    seed=seed,
                    steps=steps,
                    accuracy=accuracy,
                    train_loss=[1 - a for a in accuracy],
                    recovered_at=recovered,
                )
            )
    return RecoveryExperiment(margin=20.0, wrong_class=3, threshold=0.9, curves=curves)


def _parity(passed: bool) -> list[ParityRecord]:
    records = []
    for loss in ("MSE", "cross-entropy"):
        broken = not passed and loss == "MSE"
        records.append(
            ParityRecord(
                loss=loss,
                ours="torchlosses.MSELoss" if loss == "MSE" else "torchlosses.CrossEntropyLoss",
                builtin="torch.nn.MSELoss" if loss == "MSE" else "torch.nn.CrossEntropyLoss",
                steps=300,
                seed=0,
                largest_loss_difference=0.3 if broken else 2.4e-7,
                largest_weight_difference=0.02 if broken else 1.1e-6,
                loss_tolerance=1e-4,
                weight_tolerance=1e-3,
                passed=not broken,
            )
        )
    return records


def _tuning() -> Tuning:
    environment = Environment(
        torchlosses="0.1.0",
        torch="2.14.1",
        torchvision="0.29.1",
        torchmetrics="1.9.0",
        numpy="2.4.6",
        python="3.12.3",
        platform="Linux",
        processor="x86_64",
        device="cpu",
        threads=2,
        processes=1,
    )
    rates = [3e-4, 1e-3, 3e-3]
    searched: list[Sensitivity] = []
    for name in DIGIT_ERROR:
        accuracy = 1 - DIGIT_ERROR[name][0]
        scores = [[accuracy - 0.01] * 2, [accuracy] * 2, [math.nan] * 2]
        searched.append(
            Sensitivity(task="digit", objective=name, rates=rates, scores=scores, best=1e-3, best_score=accuracy)
        )
    for (name, _), errors in ANGLE_ERROR.items():
        scores = [[errors[0] + 1] * 2, [errors[0]] * 2, [errors[0] + 2] * 2]
        searched.append(
            Sensitivity(task="angle", objective=name, rates=rates, scores=scores, best=1e-3, best_score=errors[0])
        )
    return Tuning(
        command="python -m training.tune",
        dataset="mnist",
        model="mlp",
        epochs={"digit": 3, "angle": 5},
        batch_size=128,
        seeds=[1000, 1001],
        train_images=50_000,
        validation_images=10_000,
        seconds=600.0,
        environment=environment,
        objectives=searched,
    )
