"""A whole run: every objective from every seed, the experiments and the parity, and what is kept of them on disk."""

from __future__ import annotations

import shutil
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import datetime
from functools import partial

import torch
from torch import Tensor

from training import experiments, metrics, parity
from training.checkpoints import load_checkpoint, save_checkpoint
from training.config import Config, as_json_object
from training.data import Images, load_images
from training.distributed import Processes
from training.engine import Settings, Trainer
from training.environment import describe_environment
from training.errors import StudyError
from training.files import write_text_atomically
from training.folders import Key, RunFolder
from training.metrics_table import flat, metrics_table
from training.objectives import Objective, loss_library, select_objectives
from training.progress import Display
from training.results import (
    EpochRecord,
    GradientExperiment,
    ObjectiveRun,
    ParityRecord,
    RecoveryCurve,
    RecoveryExperiment,
    Results,
    TaskName,
    write_results,
)
from training.tasks import Task, TaskData, angle_data, angle_task, digit_data, digit_task
from training.workers import Workers, default_workers

LogEpoch = Callable[[EpochRecord], None]


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
        # The experiments run in the first process alone.
        self._alone = Settings(config.batch_size, config.learning_rate, device, config.amp)
        # Processes have to agree on what comes next, all threads share the compiler, and one network fills a GPU.
        one_at_a_time = config.compile or processes.count > 1 or device.type != "cpu"
        self._workers = Workers(1 if one_at_a_time else config.workers or default_workers())
        self._lock = threading.RLock()
        self._angles: dict[int, TaskData] = {}
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
        self._workers.run(
            [
                partial(self._train, objective, seed, digits)
                for task in self._tasks
                for seed in range(self.config.seeds)
                for objective in self._objectives[task.name]
                if not self._is_complete((task.name, objective.name, seed))
            ]
        )
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
            environment=describe_environment(
                self.device,
                self.processes.count,
                self._workers.count if self._workers.count > 1 else torch.get_num_threads(),
            ),
            train_images=self._train_images,
            test_images=self._test_images,
            angle_limit=self.config.angle_limit,
            angle_bin_width=2 * self.config.angle_limit / self.config.angle_bins,
            objectives=[objective.describe() for task in self._tasks for objective in self._objectives[task.name]],
            runs=[self._runs[key] for key in self._keys() if key in self._runs],
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
        self.display.done()
        return digits

    def _save(self, *, complete: bool) -> Results:
        with self._lock:
            results = self.results(complete=complete)
            write_results(results, self.folder.results)
            write_text_atomically(self.folder.metrics, metrics_table(results.runs))
        return results

    def _keys(self) -> list[Key]:
        """Every run in the order of the report, whichever is finished first."""
        return [
            (task.name, objective.name, seed)
            for task in self._tasks
            for seed in range(self.config.seeds)
            for objective in self._objectives[task.name]
        ]

    def _advance(self, steps: int, loss: float) -> None:
        self._workers.check()
        self.display.advance(steps, loss)

    def _data(self, task: Task, seed: int, digits: TaskData) -> TaskData:
        if task.name == "digit":
            return digits
        with self._lock:
            if seed not in self._angles:
                self.display.now(f"angle · seed {seed} · rotating the images")
                # Only the last is kept: objectives of one seed follow each other.
                self._angles = {seed: angle_data(digits, self.config.angle_limit, seed)}
            return self._angles[seed]

    def _train(self, objective: Objective, seed: int, digits: TaskData) -> None:
        task = objective.task
        data = self._data(task, seed, digits)
        key: Key = (task.name, objective.name, seed)
        epochs_wanted = self.config.epochs_for(task.name)
        trainer = Trainer(self._settings, self.config.model, objective, seed)
        epochs = load_checkpoint(self.folder.checkpoint(key), trainer)
        targets = objective.encode(data.train_values)
        steps = self._steps_per_epoch()
        with self._tensorboard(key) as log:
            for number in range(len(epochs) + 1, epochs_wanted + 1):
                self.display.now(
                    f"{task.name} · {objective.name} · seed {seed} · epoch {number}/{epochs_wanted}", steps
                )
                begun = time.perf_counter()
                loss = trainer.train_epoch(data.train_images, targets, number, self._advance)
                seconds = time.perf_counter() - begun
                evaluation = metrics.evaluate(objective, trainer.predict(data.test_images), data.test_values)
                epochs.append(EpochRecord(epoch=number, train_loss=loss, seconds=seconds, evaluation=evaluation))
                self._keep_epoch(key, trainer, epochs)
                log(epochs[-1])
                self._note_epoch(objective, seed, epochs[-1], epochs_wanted)
        details = metrics.details(objective, trainer.predict(data.test_images), data.test_values)
        finished = _record(key, trainer, epochs).model_copy(update={"details": details, "complete": True})
        with self._lock:
            self._runs[key] = finished
        if self.processes.is_first:
            self._save(complete=False)
            if key not in self._gradient_keys():
                self.folder.checkpoint(key).unlink(missing_ok=True)
        self.display.done()

    def _keep_epoch(self, key: Key, trainer: Trainer, epochs: list[EpochRecord]) -> None:
        with self._lock:
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
            self.display.done()
            self._save(complete=False)
        if self._recovery is None and self._recovery_objectives():
            curves = self._workers.run(
                [
                    partial(self._recovery_curve, objective, seed, digits)
                    for seed in range(self.config.seeds)
                    for objective in self._recovery_objectives()
                ]
            )
            self._recovery = RecoveryExperiment(
                margin=experiments.RECOVERY_MARGIN,
                wrong_class=experiments.RECOVERY_CLASS,
                threshold=experiments.RECOVERY_THRESHOLD,
                curves=curves,
            )
            self._save(complete=False)

    def _recovery_curve(self, objective: Objective, seed: int, digits: TaskData) -> RecoveryCurve:
        steps = self.config.recovery_steps
        self.display.now(f"experiment · recovery · {objective.name} · seed {seed}", steps)
        curve = experiments.recovery_curve(
            self._alone, self.config.model, objective, seed, digits, steps, self._advance
        )
        self.display.done()
        when = "not recovered" if curve.recovered_at is None else f"recovered after {curve.recovered_at}"
        self.display.note(f"experiment · recovery · {objective.name} · seed {seed} · {when} of {steps} steps")
        return curve

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
        self._parity += self._workers.run(
            [
                partial(self._parity_record, loss, optimizer, digits)
                for loss in parity.OBJECTIVES
                for optimizer in parity.RULES
                if (loss, optimizer) not in done
            ]
        )

    def _parity_record(self, loss: str, optimizer: str, digits: TaskData) -> ParityRecord:
        self.display.now(f"parity · {loss} · {optimizer}", self.config.parity_steps)
        record = parity.compare_losses(
            # In full precision, whatever the study uses: what is compared are the losses.
            Settings(self.config.batch_size, self.config.learning_rate, self.device),
            self.config.model,
            loss,
            optimizer,
            digit_task(self.device),
            digits,
            loss_library("torchlosses"),
            loss_library("torch"),
            seed=0,
            steps=self.config.parity_steps,
            report=self._advance,
        )
        self.display.done()
        self.display.note(
            f"parity · {loss} · {optimizer} · {record.steps} steps · largest difference in loss "
            f"{record.largest_loss_difference:.1e}, in weights {record.largest_weight_difference:.1e}"
        )
        return record

    def _steps_per_epoch(self) -> int:
        return -(-self._train_images // self.config.batch_size)

    def _remaining_steps(self) -> int:
        epochs = sum(
            self.config.epochs_for(key[0]) - (len(self._runs[key].epochs) if key in self._runs else 0)
            for key in self._keys()
        )
        steps = epochs * self._steps_per_epoch()
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
                for name, value in flat(epoch).items():
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
