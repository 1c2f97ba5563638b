"""The command that chooses the learning rates: `python -m training.tune`."""

from __future__ import annotations

import math
import shlex
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from statistics import fmean
from typing import Annotated, Literal

import torch
import tyro
from rich.console import Console

from training import metrics
from training.config import BOUNDS, MOST_LEARNING_RATE, Dataset, check_bounds, check_choices, parse_options
from training.data import load_images
from training.distributed import Processes
from training.engine import Settings, Trainer
from training.environment import describe_environment, find_device
from training.errors import StudyError
from training.files import write_text_atomically
from training.learning_rates import TUNED, read_tuning
from training.objectives import Objective, loss_library, select_objectives
from training.progress import Display
from training.results import Sensitivity, Tuning
from training.tasks import TaskData, build_task, digit_data, hold_out, task_data
from training.workers import Workers, default_workers

PROGRAM = "python -m training.tune"
EPOCHS: dict[Literal["digit", "angle"], int] = {"digit": 3, "angle": 5}
_BOUNDED = ("batch_size", "train_limit", "workers")
RATES = (1e-4, 3e-4, 1e-3, 3e-3, 1e-2)


@dataclass(frozen=True)
class Options:
    """Choose each objective's learning rate for the study, all by the same search.

    The last sixth of the training images is kept apart. Each objective is trained on the rest at each rate of the grid,
    from the same seeds; the rate that does best on the images kept apart is the one (accuracy for the digit, root mean
    squared error for the angle). The test images are not looked at. With all objectives this takes about 10 minutes on
    two CPU cores. What is found replaces what the file has for the same tasks and objectives.
    """

    tasks: tuple[Literal["digit", "angle"], ...] = ("digit", "angle")
    """The tasks to tune for."""
    objectives: tuple[str, ...] = ()
    """The objectives to tune; all by default."""
    rates: tuple[float, ...] = RATES
    """The grid."""
    seeds: int = 2
    """From how many seeds to train at each rate; they are none of those that the study takes by default."""
    batch_size: int = 128
    """Images per update."""
    model: Literal["mlp", "cnn"] = "mlp"
    """The network below the head."""
    dataset: Dataset = "mnist"
    """The images."""
    data_root: Path | None = None
    """Where the data set is, or is to be put."""
    train_limit: int | None = None
    """Use only the first so many training images."""
    device: str = "cpu"
    """Where to train."""
    workers: int | None = None
    """How many stacks of networks to train at the same time."""
    out: Annotated[
        Path, tyro.conf.arg(metavar="FILE", help_behavior_hint="(default: training/learning_rates.json)")
    ] = TUNED
    """The file to write."""

    def __post_init__(self) -> None:
        if not self.rates or not all(0 < rate <= MOST_LEARNING_RATE for rate in self.rates):
            raise StudyError(f"--rates must be above 0 and at most {MOST_LEARNING_RATE:,.0f}")
        check_bounds(self, {**{option: BOUNDS[option] for option in _BOUNDED}, "seeds": (1, 100)})
        check_choices(self.tasks, tuple(EPOCHS), self.device)


FIRST_SEED = 1000


def main(arguments: Sequence[str] | None = None) -> int:
    """Tune as the command line says; returns the exit status: 0 done, 2 not possible, 130 interrupted."""
    arguments = sys.argv[1:] if arguments is None else arguments
    try:
        options = parse_options(Options, PROGRAM, arguments, Options())
        # What to tune, where the files are and with how many workers has no part in what is found.
        same = replace(
            Options(),
            **{name: getattr(options, name) for name in ("tasks", "objectives", "data_root", "workers", "out")},
        )
        command = PROGRAM if options == same else shlex.join((*PROGRAM.split(), *arguments))
        tuning = tune(options, command)
    except StudyError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("\ninterrupted; objectives that were finished are kept", file=sys.stderr)
        return 130
    for item in tuning.objectives:
        print(f"{item.task:6} {item.objective:20} {item.best:g}")
    return 0


def tune(options: Options, command: str) -> Tuning:
    """Search for every objective, writing the file after each."""
    begun = time.monotonic()
    device = find_device(options.device)
    workers = Workers(1 if device.type != "cpu" else options.workers or default_workers())
    images = load_images(options.dataset, options.data_root).first(options.train_limit, None)
    digits = hold_out(digit_data(images, device))
    if digits.validation_images is None or digits.validation_values is None:
        raise StudyError("there are no images to choose by")
    # The images kept apart stand where the test images do, and the test images are out of reach.
    digits = TaskData(digits.train_images, digits.train_values, digits.validation_images, digits.validation_values)
    losses = loss_library("torchlosses")
    tuning = Tuning(
        command=command,
        dataset=options.dataset,
        model=options.model,
        epochs=EPOCHS,
        batch_size=options.batch_size,
        seeds=list(range(FIRST_SEED, FIRST_SEED + options.seeds)),
        train_images=len(digits.train_images),
        validation_images=len(digits.test_images),
        seconds=0.0,
        environment=describe_environment(device, 1, workers.count if workers.count > 1 else torch.get_num_threads()),
        objectives=[],
    )
    earlier = read_tuning(options.out)
    found = {(item.task, item.objective): item for item in (earlier.objectives if earlier else ())}
    steps = -(-len(digits.train_images) // options.batch_size) * options.seeds * len(options.rates)
    chosen = {task: select_objectives(options.objectives, task, every=True) for task in options.tasks}
    with Display(Console(stderr=True)) as display:
        display.expect(sum(steps * EPOCHS[task] * len(chosen[task]) for task in options.tasks))
        for task_name in options.tasks:
            task = build_task(task_name, 30, 45.0, device)
            data = task_data(task_name, digits, task.scale)
            for kind in chosen[task_name]:
                objective = kind(task, losses)
                jobs = [
                    partial(_scores, objective, rate, data, tuning, options, device, workers, display)
                    for rate in options.rates
                ]
                scores = workers.run(jobs)
                best, best_score = best_rate(options.rates, scores, higher_is_better=task.is_category)
                found[task_name, kind.name] = Sensitivity(
                    task=task_name,
                    objective=kind.name,
                    rates=list(options.rates),
                    scores=scores,
                    best=best,
                    best_score=best_score,
                )
                seconds = (earlier.seconds if earlier else 0.0) + time.monotonic() - begun
                tuning = tuning.model_copy(update={"objectives": list(found.values()), "seconds": seconds})
                write_text_atomically(options.out, tuning.model_dump_json(indent=1) + "\n")
                display.note(f"{task_name} · {kind.name} · best at {best:g}: {best_score:.4g}")
    return tuning


def best_rate(
    rates: Sequence[float], scores: Sequence[Sequence[float]], *, higher_is_better: bool
) -> tuple[float, float]:
    """The rate with the best mean score, and that score; a rate at which a run diverged is out.

    Raises:
        StudyError: a run diverged at every rate.
    """
    means = {
        rate: fmean(values)
        for rate, values in zip(rates, scores, strict=True)
        if values and all(map(math.isfinite, values))
    }
    if not means:
        raise StudyError("--rates: a training diverged at every rate; give lower ones")
    best = (max if higher_is_better else min)(means, key=lambda rate: means[rate])
    return best, means[best]


def _scores(
    objective: Objective,
    rate: float,
    data: TaskData,
    tuning: Tuning,
    options: Options,
    device: torch.device,
    workers: Workers,
    display: Display,
) -> list[float]:
    """Each seed's score after training at one rate; nan where it diverged."""

    def advance(steps: int, loss: float) -> None:
        workers.check()
        display.advance(steps, loss)

    task = objective.task
    epochs = tuning.epochs["digit" if task.is_category else "angle"]
    settings = Settings(options.batch_size, rate, device, processes=Processes())
    trainer = Trainer(settings, options.model, objective, tuning.seeds)
    targets = objective.encode(data.train_values)
    first = trainer.first_losses(data.train_images, targets)
    display.now(f"{task.name} · {objective.name} · rate {rate:g}", None)
    last: list[float] = []
    for epoch in range(1, epochs + 1):
        last = trainer.train_epoch(data.train_images, targets, epoch, advance)
    display.done()
    decoding = objective.describe(rate, "option").primary_decoding
    return [
        metrics.score(objective, metrics.evaluate(objective, outputs, data.test_values), decoding)
        if metrics.converged(before, after)
        else math.nan
        for outputs, before, after in zip(trainer.predict(data.test_images), first, last, strict=True)
    ]


if __name__ == "__main__":
    sys.exit(main())
