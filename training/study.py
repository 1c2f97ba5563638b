"""A whole run: every objective from every seed, the experiments and the parity, and what is kept of them on disk."""

from __future__ import annotations

import csv
import io
import platform
import shutil
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from importlib.metadata import version
from pathlib import Path

import torch
from pydantic import ValidationError
from torch import Tensor

import torchlosses
from training import experiments, metrics, parity
from training.checkpoints import load_checkpoint, save_checkpoint
from training.config import Config, as_json_object, read_config, write_config
from training.data import Images, load_images
from training.distributed import Processes
from training.engine import Settings, Trainer
from training.errors import StudyError
from training.files import write_text_atomically
from training.objectives import Objective, loss_library, select_objectives
from training.progress import Display
from training.results import (
    Environment,
    EpochRecord,
    GradientExperiment,
    ObjectiveRun,
    ParityRecord,
    RecoveryExperiment,
    Results,
    TaskName,
    read_results,
    write_results,
)
from training.tasks import Task, TaskData, angle_data, angle_task, digit_data, digit_task

Key = tuple[TaskName, str, int]
LogEpoch = Callable[[EpochRecord], None]


@dataclass(frozen=True)
class RunFolder:
    """Where a run keeps its files."""

    path: Path

    @property
    def config(self) -> Path:
        """The options of the run."""
        return self.path / "config.json"

    @property
    def results(self) -> Path:
        """What was found so far."""
        return self.path / "results.json"

    @property
    def metrics(self) -> Path:
        """A row per objective, seed and epoch."""
        return self.path / "metrics.csv"

    @property
    def checkpoints(self) -> Path:
        """Networks of a run that is not complete."""
        return self.path / "checkpoints"

    def checkpoint(self, key: Key) -> Path:
        """One objective's network, from one seed."""
        task, objective, seed = key
        return self.checkpoints / f"{task}-{objective}-seed{seed}.pt"

    def tensorboard(self, key: Key) -> Path:
        """One objective's TensorBoard log, from one seed."""
        task, objective, seed = key
        return self.path / "tensorboard" / f"{task}-{objective}-seed{seed}"


def create_folder(config: Config) -> RunFolder:
    """Make a folder for a new run, named by the time, and keep the configuration in it.

    Raises:
        StudyError: the folder cannot be made.
    """
    stem = f"{datetime.now():%Y%m%d-%H%M%S}-{config.run_name}"
    for attempt in range(1, 1000):
        folder = RunFolder(config.out / (stem if attempt == 1 else f"{stem}-{attempt}"))
        try:
            folder.path.mkdir(parents=True)
            write_config(config, folder.config)
        except FileExistsError as error:
            if folder.path.is_dir():
                continue
            raise StudyError(f"--out: {config.out} is no folder") from error
        except OSError as error:
            raise StudyError(f"--out: cannot write to {config.out} ({error.strerror}); name another folder") from error
        return folder
    raise StudyError(f"--out: {config.out} has too many runs called {stem}")


def open_folder(run: Path) -> tuple[RunFolder, Config, Results | None]:
    """An interrupted run: its folder, its configuration and what it has found, if anything.

    Raises:
        StudyError: there is no such run, or its files cannot be read.
    """
    if not run.is_dir():
        raise StudyError(f"--resume: there is no folder {run}; name the folder of a run, such as runs/<time>-<name>")
    folder = RunFolder(run)
    config = read_config(folder.config)
    if not folder.results.exists():
        return folder, config, None
    try:
        return folder, config, read_results(folder.results)
    except (ValidationError, OSError) as error:
        raise StudyError(f"--resume: {folder.results} is damaged ({type(error).__name__})") from error


class Study:
    """Does the work of one run, and can say at any moment what it has found.

    Args:
        config: the options.
        folder: where to keep what is found; only the first process writes.
        earlier: what an interrupted run had found.
        device: where to train.
        processes: the processes that share the work.
        display: shows the progress.
        command: the command line, for the record.
    """

    def __init__(
        self,
        config: Config,
        folder: RunFolder,
        earlier: Results | None,
        device: torch.device,
        processes: Processes,
        display: Display,
        command: str,
    ) -> None:
        self.config = config
        self.display = display
        self.processes = processes
        self.device = device
        self.folder = folder
        self._command = earlier.command if earlier else command
        self._started = earlier.started if earlier else datetime.now().astimezone().isoformat(timespec="seconds")
        self._earlier_seconds = earlier.seconds if earlier else 0.0
        self._begun = time.monotonic()
        self._train_images = self._test_images = 0
        self._runs: dict[Key, ObjectiveRun] = (
            {(run.task, run.objective, run.seed): run for run in earlier.runs} if earlier else {}
        )
        self._gradient: GradientExperiment | None = earlier.gradient_experiment if earlier else None
        self._recovery: RecoveryExperiment | None = earlier.recovery_experiment if earlier else None
        self._parity: list[ParityRecord] = list(earlier.parity) if earlier else []
        self._settings = Settings(
            config.batch_size, config.learning_rate, device, config.amp, config.compile, processes
        )
        # The experiments and the parity run in the first process alone.
        self._alone = Settings(config.batch_size, config.learning_rate, device, config.amp)
        self._losses = loss_library(config.implementation)
        tasks = {"digit": digit_task(device), "angle": angle_task(config.angle_bins, config.angle_limit, device)}
        self._tasks: list[Task] = [tasks[name] for name in config.tasks]
        self._objectives: dict[TaskName, list[Objective]] = {
            task.name: [objective(task, self._losses) for objective in select_objectives(config.objectives, task.name)]
            for task in self._tasks
        }

    def run(self) -> Results:
        """Do everything that is not done yet."""
        self.processes.wait()
        digits = self._load_digits()
        self.display.expect(self._remaining_steps())
        for task in self._tasks:
            for seed in range(self.config.seeds):
                self._train_seed(task, seed, digits)
        if self.processes.is_first:
            self._experiments(digits)
            self._compare_with_builtin(digits)
            self._save(complete=True)
            shutil.rmtree(self.folder.checkpoints, ignore_errors=True)
        self.processes.wait()
        return self.results(complete=True)

    def results(self, *, complete: bool) -> Results:
        """What has been found so far."""
        return Results(
            name=self.config.run_name,
            started=self._started,
            seconds=self._earlier_seconds + time.monotonic() - self._begun,
            complete=complete,
            command=self._command,
            config=as_json_object(self.config),
            environment=describe_environment(self.device, self.processes.count),
            train_images=self._train_images,
            test_images=self._test_images,
            angle_limit=self.config.angle_limit,
            angle_bin_width=2 * self.config.angle_limit / self.config.angle_bins,
            objectives=[objective.describe() for task in self._tasks for objective in self._objectives[task.name]],
            runs=list(self._runs.values()),
            gradient_experiment=self._gradient,
            recovery_experiment=self._recovery,
            parity=self._parity,
        )

    def save_partial(self) -> Results | None:
        """Keep what an interrupted run has found; None where it had not even read the images."""
        return self._save(complete=False) if self._train_images else None

    def _load_digits(self) -> TaskData:
        self.display.now("reading the images")
        images = load_images(self.config.dataset, self.config.data_root)
        train, test = self.config.train_limit, self.config.test_limit
        digits = digit_data(
            Images(images.train[:train], images.train_labels[:train], images.test[:test], images.test_labels[:test]),
            self.device,
        )
        self._train_images, self._test_images = len(digits.train_images), len(digits.test_images)
        return digits

    def _save(self, *, complete: bool) -> Results:
        results = self.results(complete=complete)
        write_results(results, self.folder.results)
        write_text_atomically(self.folder.metrics, metrics_table(results.runs))
        return results

    def _train_seed(self, task: Task, seed: int, digits: TaskData) -> None:
        remaining = [
            objective
            for objective in self._objectives[task.name]
            if not self._is_complete((task.name, objective.name, seed))
        ]
        if not remaining:
            return
        data = digits
        if task.name == "angle":
            self.display.now(f"angle · rotating the images · seed {seed}")
            data = angle_data(digits, self.config.angle_limit, seed)
        for objective in remaining:
            self._train(objective, seed, data)

    def _train(self, objective: Objective, seed: int, data: TaskData) -> None:
        task = objective.task
        key: Key = (task.name, objective.name, seed)
        epochs_wanted = self.config.epochs_for(task.name)
        trainer = Trainer(self._settings, self.config.model, objective, seed)
        epochs = load_checkpoint(self.folder.checkpoint(key), trainer)
        targets = objective.encode(data.train_values)
        with self._tensorboard(key) as log:
            for number in range(len(epochs) + 1, epochs_wanted + 1):
                self.display.now(f"{task.name} · {objective.name} · seed {seed} · epoch {number}/{epochs_wanted}")
                begun = time.perf_counter()
                loss = trainer.train_epoch(data.train_images, targets, number, self.display.advance)
                seconds = time.perf_counter() - begun
                evaluation = metrics.evaluate(objective, trainer.predict(data.test_images), data.test_values)
                epochs.append(EpochRecord(epoch=number, train_loss=loss, seconds=seconds, evaluation=evaluation))
                self._keep_epoch(key, trainer, epochs)
                log(epochs[-1])
                self._note_epoch(objective, seed, epochs[-1], epochs_wanted)
        details = metrics.details(objective, trainer.predict(data.test_images), data.test_values)
        self._runs[key] = _record(key, trainer, epochs).model_copy(update={"details": details, "complete": True})
        if self.processes.is_first:
            self._save(complete=False)
            if key not in self._gradient_keys():
                self.folder.checkpoint(key).unlink(missing_ok=True)

    def _keep_epoch(self, key: Key, trainer: Trainer, epochs: list[EpochRecord]) -> None:
        self._runs[key] = _record(key, trainer, epochs)
        if self.processes.is_first:
            save_checkpoint(self.folder.checkpoint(key), trainer, epochs)
            self._save(complete=False)

    def _note_epoch(self, objective: Objective, seed: int, epoch: EpochRecord, wanted: int) -> None:
        decoding, result = next(iter(epoch.evaluation.decoded.items()))
        if objective.task.is_category:
            outcome = f"{result.accuracy:.2%} right"
        else:
            outcome = f"off by {result.root_mean_squared_error:.2f}° (root mean square)"
        self.display.note(
            f"{objective.task.name} · {objective.name} · seed {seed} · epoch {epoch.epoch}/{wanted} · "
            f"loss {epoch.train_loss:.4f} · {decoding} {outcome} · {epoch.seconds:.1f} s"
        )

    def _is_complete(self, key: Key) -> bool:
        return key in self._runs and self._runs[key].complete

    def _gradient_keys(self) -> list[Key]:
        """The trained networks that the gradient experiment looks at: of the first seed."""
        return [
            ("digit", objective.name, 0)
            for objective in self._objectives.get("digit", [])
            if objective.name in experiments.GRADIENT_OBJECTIVES
        ]

    def _recovery_objectives(self) -> list[Objective]:
        return [objective for objective in self._objectives.get("digit", []) if objective.head == "classification"]

    def _experiments(self, digits: TaskData) -> None:
        if self._gradient is None and self._gradient_keys():
            self.display.now("experiment · gradients at the logits")
            self._gradient = self._gradient_experiment(digits)
            self._save(complete=False)
        if self._recovery is None and self._recovery_objectives():
            curves = []
            for seed in range(self.config.seeds):
                for objective in self._recovery_objectives():
                    self.display.now(f"experiment · recovery · {objective.name} · seed {seed}")
                    curves.append(
                        experiments.recovery_curve(
                            self._alone,
                            self.config.model,
                            objective,
                            seed,
                            digits,
                            self.config.recovery_steps,
                            self.display.advance,
                        )
                    )
            self.display.note(f"experiment · recovery · {len(curves)} networks")
            self._recovery = RecoveryExperiment(
                margin=experiments.RECOVERY_MARGIN,
                wrong_class=experiments.RECOVERY_CLASS,
                threshold=experiments.RECOVERY_THRESHOLD,
                curves=curves,
            )
            self._save(complete=False)

    def _gradient_experiment(self, digits: TaskData) -> GradientExperiment:
        objectives: list[Objective] = []
        outputs: dict[str, Tensor] = {}
        for _, name, seed in self._gradient_keys():
            objective = next(found for found in self._objectives["digit"] if found.name == name)
            trainer = Trainer(self._alone, self.config.model, objective, seed)
            checkpoint = self.folder.checkpoint(("digit", name, seed))
            if not load_checkpoint(checkpoint, trainer):
                raise StudyError(f"{checkpoint} is gone, and the run cannot go on without it; start a new one")
            objectives.append(objective)
            outputs[name] = trainer.predict(digits.test_images)
        return experiments.gradient_experiment(objectives, outputs, digits.test_values, seed=0)

    def _compare_with_builtin(self, digits: TaskData) -> None:
        done = {(record.loss, record.optimizer) for record in self._parity}
        settings = Settings(self.config.batch_size, self.config.learning_rate, self.device)
        for loss in parity.OBJECTIVES:
            for optimizer in parity.RULES:
                if (loss, optimizer) in done:
                    continue
                self.display.now(f"parity · {loss} · {optimizer}")
                record = parity.compare_losses(
                    settings,
                    self.config.model,
                    loss,
                    optimizer,
                    digit_task(self.device),
                    digits,
                    loss_library("torchlosses"),
                    loss_library("torch"),
                    seed=0,
                    steps=self.config.parity_steps,
                    report=self.display.advance,
                )
                self._parity.append(record)
                self._save(complete=False)
                self.display.note(
                    f"parity · {loss} · {optimizer} · {record.steps} steps · largest difference in loss "
                    f"{record.largest_loss_difference:.1e}, in weights {record.largest_weight_difference:.1e}"
                )

    def _remaining_steps(self) -> int:
        batches = -(-self._train_images // self.config.batch_size)
        steps = 0
        for task in self._tasks:
            for objective in self._objectives[task.name]:
                for seed in range(self.config.seeds):
                    run = self._runs.get((task.name, objective.name, seed))
                    steps += batches * (self.config.epochs_for(task.name) - (len(run.epochs) if run else 0))
        if self._recovery is None:
            steps += self.config.seeds * len(self._recovery_objectives()) * self.config.recovery_steps
        return steps + (len(parity.OBJECTIVES) * len(parity.RULES) - len(self._parity)) * self.config.parity_steps

    @contextmanager
    def _tensorboard(self, key: Key) -> Iterator[LogEpoch]:
        if not self.config.tensorboard or not self.processes.is_first:
            yield lambda epoch: None
            return
        from torch.utils.tensorboard import SummaryWriter

        with SummaryWriter(self.folder.tensorboard(key)) as writer:

            def log(epoch: EpochRecord) -> None:
                for name, value in _flat(epoch).items():
                    writer.add_scalar(f"{key[0]}/{name}", value, epoch.epoch)

            yield log


def _record(key: Key, trainer: Trainer, epochs: list[EpochRecord]) -> ObjectiveRun:
    task, objective, seed = key
    return ObjectiveRun(
        task=task,
        objective=objective,
        seed=seed,
        parameters=trainer.parameters,
        epochs=list(epochs),
        details=None,
        complete=False,
    )


def metrics_table(runs: Iterable[ObjectiveRun]) -> str:
    """The metrics as CSV, a row per objective, seed and epoch; cells that do not apply to an objective stay empty."""
    rows = [
        {"task": run.task, "objective": run.objective, "seed": run.seed, "epoch": epoch.epoch, **_flat(epoch)}
        for run in runs
        for epoch in run.epochs
    ]
    columns = list(dict.fromkeys(column for row in rows for column in row))
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, restval="", lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def _flat(epoch: EpochRecord) -> dict[str, float]:
    values = {"train_loss": epoch.train_loss, "seconds": epoch.seconds}
    for decoding, decoded in epoch.evaluation.decoded.items():
        prefix = decoding.replace(" ", "_")
        values |= {f"{prefix}_{metric}": value for metric, value in decoded.model_dump().items()}
    if epoch.evaluation.probabilities is not None:
        values |= epoch.evaluation.probabilities.model_dump()
    return values


def describe_environment(device: torch.device, processes: int) -> Environment:
    """The machine and the versions of what matters."""
    return Environment(
        torchlosses=torchlosses.__version__,
        torch=torch.__version__,
        torchvision=version("torchvision"),
        torchmetrics=version("torchmetrics"),
        numpy=version("numpy"),
        python=platform.python_version(),
        platform=platform.platform(),
        processor=_processor(),
        device=torch.cuda.get_device_name(device) if device.type == "cuda" else str(device),
        threads=torch.get_num_threads(),
        processes=processes,
    )


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.processor() or platform.machine())
