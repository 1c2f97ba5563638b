"""A whole run: every objective from every seed, the experiments and the parity, and what is kept of them on disk."""

from __future__ import annotations

import shutil
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from datetime import datetime
from functools import partial

import torch
from torch import Tensor

from training import experiments, metrics, parity
from training.checkpoints import DamagedCheckpointError, Progress, load_checkpoint, save_checkpoint
from training.config import Config, as_json_object
from training.data import Images, load_images
from training.distributed import Processes
from training.engine import Settings, Trainer
from training.environment import describe_environment
from training.files import write_text_atomically
from training.folders import Key, RunFolder
from training.learning_rates import learning_rate, read_tuning
from training.metrics_table import flat, metrics_table
from training.misread import find_misread
from training.objectives import Objective, loss_library, select_objectives
from training.progress import Display
from training.questions import TaskName
from training.results import (
    EpochRecord,
    GradientExperiment,
    Misread,
    ObjectiveDescription,
    ObjectiveRun,
    PerImage,
    RateSource,
    RecoveryExperiment,
    Results,
    write_results,
)
from training.tasks import Task, TaskData, build_task, digit_data, digit_task, images_per_epoch, task_data
from training.workers import Workers, default_workers

LogEpoch = Callable[[EpochRecord], None]
# The shorter task last: so the workers end at about the same time.
_LONGEST_FIRST: tuple[TaskName, ...] = ("angle",)


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
        self._digits: TaskData | None = None
        self._images: Images | None = None
        self._runs: dict[Key, ObjectiveRun] = (
            {(run.task, run.objective, run.seed): run for run in earlier.runs} if earlier else {}
        )
        self._gradient: GradientExperiment | None = earlier.gradient_experiment if earlier else None
        recovery = earlier.recovery_experiment if earlier else None
        self._curves = {(curve.seed, curve.objective): curve for curve in recovery.curves} if recovery else {}
        self._parity = {(record.loss, record.optimizer): record for record in earlier.parity} if earlier else {}
        self._misread: Misread | None = earlier.misread if earlier else None
        # A run goes on with the rates it was begun with, whatever was tuned since.
        self._tuning = earlier.tuning if earlier else read_tuning()
        self._settings = Settings(
            config.batch_size, config.learning_rate or 0.0, device, config.amp, config.compile, processes
        )
        # Processes have to agree on what comes next, all threads share the compiler, and one stack fills a GPU.
        one_at_a_time = config.compile or processes.count > 1 or device.type != "cpu"
        self._workers = Workers(1 if one_at_a_time else config.workers or default_workers())
        self._lock = threading.RLock()
        self._data: dict[TaskName, TaskData] = {}
        losses = loss_library(config.implementation)
        self._tasks: list[Task] = [
            build_task(name, config.angle_bins, config.angle_limit, device) for name in config.task_names
        ]
        self._objectives: dict[TaskName, list[Objective]] = {
            task.name: [
                objective(task, losses)
                for objective in select_objectives(config.objectives, task.name, every=config.all)
            ]
            for task in self._tasks
        }

    def run(self) -> Results:
        """Do everything that is not done yet."""
        self.processes.wait()
        digits = self._load_digits()
        if self.processes.is_first:
            self._save(complete=False)
        self.display.expect(self._remaining_steps())
        order = sorted(self._tasks, key=lambda task: task.name not in _LONGEST_FIRST)
        jobs = [
            partial(self._train, objective, seeds, digits)
            for task in order
            for objective in self._objectives[task.name]
            for seeds in self._stacks(objective)
        ]
        if self.processes.is_first:
            # Short ones last: they fill the time in which a worker would wait for the other.
            jobs += [partial(self._recover, objective, seeds, digits) for objective, seeds in self._recovery_stacks()]
            jobs += [
                partial(self._compare_with_builtin, loss, optimizer, digits)
                for loss, optimizer in self._parity_keys()
                if (loss, optimizer) not in self._parity
            ]
        self._workers.run(jobs)
        if self.processes.is_first:
            if self._gradient_keys():
                self._gradient = self._gradient_experiment(digits)
                self._save(complete=False)
            if self._misread is None and self._images is not None:
                self._misread = find_misread(self.results(complete=True), self._images.test)
            self._save(complete=True)
            shutil.rmtree(self.folder.checkpoints, ignore_errors=True)
        self.processes.wait()
        return self.results(complete=True)

    def results(self, *, complete: bool) -> Results:
        """What has been found so far."""
        digits = self._digits
        labels = torch.zeros(0) if digits is None else digits.test_values
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
            train_images=0 if digits is None else len(digits.train_images),
            test_images=len(labels),
            test_labels=PerImage.of(labels.long().cpu().numpy()),
            angle_limit=self.config.angle_limit,
            angle_bin_width=2 * self.config.angle_limit / self.config.angle_bins,
            objectives=[self._describe(objective) for task in self._tasks for objective in self._objectives[task.name]],
            runs=[self._runs[key] for key in self._keys() if key in self._runs],
            tuning=self._tuning,
            misread=self._misread,
            gradient_experiment=self._gradient,
            recovery_experiment=self._recovery(),
            parity=[self._parity[key] for key in self._parity_keys() if key in self._parity],
        )

    def save_partial(self) -> Results | None:
        """Keep what an interrupted run has found; None where it had not even read the images."""
        return None if self._digits is None else self._save(complete=False)

    def _rate(self, objective: Objective) -> tuple[float, RateSource]:
        return learning_rate(self._tuning, self.config, objective.task.name, objective.name)

    def _describe(self, objective: Objective) -> ObjectiveDescription:
        return objective.describe(*self._rate(objective))

    def _load_digits(self) -> TaskData:
        self.display.now("reading the images")
        images = load_images(self.config.dataset, self.config.data_root)
        self._images = images.first(self.config.train_limit, self.config.test_limit)
        self._digits = digit_data(self._images, self.device)
        self.display.done()
        return self._digits

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
            for seed in self.config.run_seeds
            for objective in self._objectives[task.name]
        ]

    def _stacks(self, objective: Objective) -> list[list[int]]:
        """The seeds of an objective that are not done yet: those that have begun in the stacks they began in."""
        task = objective.task.name
        left = [seed for seed in self.config.run_seeds if not self._is_complete((task, objective.name, seed))]
        begun = [seeds for seeds in self.folder.stacks(task, objective.name) if set(seeds) <= set(left)]
        fresh = [seed for seed in left if not any(seed in seeds for seeds in begun)]
        size = self.config.stack
        return begun + [fresh[i : i + size] for i in range(0, len(fresh), size)]

    def _is_complete(self, key: Key) -> bool:
        return key in self._runs and self._runs[key].complete

    def _advance(self, steps: int, loss: float) -> None:
        self._workers.check()
        self.display.advance(steps, loss)

    def _data_of(self, task: Task, digits: TaskData) -> TaskData:
        with self._lock:
            if task.name not in self._data:
                self.display.now(f"{task.name} · preparing the images")
                # Only the last is kept: the objectives of a task follow each other.
                self._data = {task.name: task_data(task.name, digits, self.config.angle_limit)}
            return self._data[task.name]

    def _trainer(self, objective: Objective, seeds: Sequence[int], settings: Settings) -> Trainer:
        rate, _ = self._rate(objective)
        return Trainer(replace(settings, learning_rate=rate), self.config.model, objective, seeds)

    def _resumed(
        self, objective: Objective, seeds: Sequence[int], settings: Settings
    ) -> tuple[Trainer, Progress | None]:
        """A stack where its checkpoint left it; from the start, with a word on the screen, where that is damaged."""
        path = self.folder.checkpoint(objective.task.name, objective.name, seeds)
        trainer = self._trainer(objective, seeds, settings)
        try:
            return trainer, load_checkpoint(path, trainer)
        except DamagedCheckpointError as error:
            self.display.note(f"{path} is damaged ({error}); its networks are trained again")
            return self._trainer(objective, seeds, settings), None

    def _train(self, objective: Objective, seeds: Sequence[int], digits: TaskData) -> None:
        """Train a stack from where its checkpoints end, and keep what comes of it."""
        task = objective.task
        data = self._data_of(task, digits)
        keys: list[Key] = [(task.name, objective.name, seed) for seed in seeds]
        wanted = self.config.epochs_for(task.name)
        trainer, progress = self._resumed(objective, seeds, self._settings)
        # No process removes a checkpoint before all have read it.
        self.processes.wait()
        targets = objective.encode(data.train_values)
        if progress is None:
            progress = Progress(trainer.first_losses(data.train_images, targets), [[] for _ in seeds])
        epochs = progress.epochs
        steps = -(-len(data.train_images) // self.config.batch_size) * len(seeds)
        told = _told(seeds)
        outputs: Tensor | None = None
        with ExitStack() as logs:
            log = [logs.enter_context(self._tensorboard(key)) for key in keys]
            for number in range(len(epochs[0]) + 1, wanted + 1):
                self.display.now(f"{task.name} · {objective.name} · {told} · epoch {number}/{wanted}", steps)
                begun = time.perf_counter()
                losses = trainer.train_epoch(data.train_images, targets, number, self._advance)
                seconds = (time.perf_counter() - begun) / len(seeds)
                outputs = trainer.predict(data.test_images)
                for index, key in enumerate(keys):
                    evaluation = metrics.evaluate(objective, outputs[index], data.test_values)
                    record = EpochRecord(epoch=number, train_loss=losses[index], seconds=seconds, evaluation=evaluation)
                    epochs[index].append(record)
                    log[index](record)
                    with self._lock:
                        self._runs[key] = self._record(key, trainer, progress.initial_losses[index], epochs[index])
                if self.processes.is_first:
                    save_checkpoint(self.folder.checkpoint(task.name, objective.name, seeds), trainer, progress)
                    self._save(complete=False)
                self._note_epoch(objective, told, [own[-1] for own in epochs], wanted)
        # Where the last epoch was trained before the run was interrupted, nothing has been predicted yet.
        outputs = trainer.predict(data.test_images) if outputs is None else outputs
        self._finish(objective, keys, trainer, data, progress, outputs)
        self.display.done()

    def _finish(
        self,
        objective: Objective,
        keys: Sequence[Key],
        trainer: Trainer,
        data: TaskData,
        progress: Progress,
        outputs: Tensor,
    ) -> None:
        first, epochs = progress.initial_losses, progress.epochs
        kept_apart = None if data.validation_images is None else trainer.predict(data.validation_images)
        for index, key in enumerate(keys):
            details = metrics.details(objective, outputs[index], data.test_values)
            temperature = None
            if kept_apart is not None and data.validation_values is not None:
                temperature = metrics.temperature(
                    objective.task, outputs[index], data.test_values, kept_apart[index], data.validation_values
                )
            diverged = details is None or not metrics.converged(first[index], epochs[index][-1].train_loss)
            finished = self._record(key, trainer, first[index], epochs[index]).model_copy(
                update={"details": details, "temperature": temperature, "diverged": diverged, "complete": True}
            )
            with self._lock:
                self._runs[key] = finished
            if diverged:
                self.display.note(f"{key[0]} · {key[1]} · seed {key[2]} · diverged at {finished.learning_rate:g}")
        if self.processes.is_first:
            self._save(complete=False)
            if not set(keys) & set(self._gradient_keys()):
                self.folder.checkpoint(objective.task.name, objective.name, trainer.seeds).unlink(missing_ok=True)

    def _record(self, key: Key, trainer: Trainer, first: float, epochs: list[EpochRecord]) -> ObjectiveRun:
        task, objective, seed = key
        return ObjectiveRun(
            task=task,
            objective=objective,
            seed=seed,
            parameters=trainer.parameter_count,
            learning_rate=trainer.settings.learning_rate,
            initial_loss=first,
            epochs=list(epochs),
        )

    def _note_epoch(self, objective: Objective, seeds: str, epochs: Sequence[EpochRecord], wanted: int) -> None:
        decoding = next(iter(epochs[0].evaluation.decoded))
        results = [epoch.evaluation.decoded[decoding] for epoch in epochs]
        if objective.task.is_category:
            outcome = f"{sum(result.accuracy for result in results) / len(results):.2%} right"
        else:
            mean = sum(result.root_mean_squared_error for result in results) / len(results)
            outcome = f"off by {mean:.2f}° (root mean square)"
        loss = sum(epoch.train_loss for epoch in epochs) / len(epochs)
        self.display.note(
            f"{objective.task.name} · {objective.name} · {seeds} · epoch {epochs[0].epoch}/{wanted} · "
            f"loss {loss:.4f} · {decoding} {outcome} · {epochs[0].seconds:.1f} s a seed"
        )

    def _gradient_keys(self) -> list[Key]:
        """The trained networks that the gradient experiment looks at: of the first seed."""
        if self._gradient is not None:
            return []
        return [
            ("digit", objective.name, self.config.first_seed)
            for objective in self._objectives.get("digit", [])
            if objective.name in experiments.GRADIENT_OBJECTIVES
        ]

    def _recovery_objectives(self) -> list[Objective]:
        return [objective for objective in self._objectives.get("digit", []) if objective.head == "classification"]

    def _recovery(self) -> RecoveryExperiment | None:
        keys = [(seed, objective.name) for seed in self.config.run_seeds for objective in self._recovery_objectives()]
        curves = [self._curves[key] for key in keys if key in self._curves]
        if not curves:
            return None
        return RecoveryExperiment(
            margin=experiments.RECOVERY_MARGIN,
            wrong_class=experiments.RECOVERY_CLASS,
            threshold=experiments.RECOVERY_THRESHOLD,
            curves=curves,
        )

    def _recovery_stacks(self) -> list[tuple[Objective, list[int]]]:
        size = self.config.stack
        found = []
        for objective in self._recovery_objectives():
            seeds = [seed for seed in self.config.run_seeds if (seed, objective.name) not in self._curves]
            found += [(objective, seeds[i : i + size]) for i in range(0, len(seeds), size)]
        return found

    def _recover(self, objective: Objective, seeds: list[int], digits: TaskData) -> None:
        """Watch a stack recover from a confident mistake, and keep what comes of it."""
        steps = self.config.recovery_steps
        told = f"experiment · recovery · {objective.name} · {_told(seeds)}"
        self.display.now(told, steps * len(seeds))
        # In the first process alone.
        settings = replace(self._settings, compile=False, processes=Processes())
        trainer = self._trainer(objective, seeds, settings)
        curves = experiments.recovery_curves(trainer, digits, steps, self._advance)
        self.display.done()
        with self._lock:
            self._curves |= {(curve.seed, curve.objective): curve for curve in curves}
            self._save(complete=False)
        recovered = sum(curve.recovered_at is not None for curve in curves)
        self.display.note(f"{told} · {recovered} of {len(seeds)} recovered within {steps} updates")

    def _gradient_experiment(self, digits: TaskData) -> GradientExperiment:
        self.display.now("experiment · gradients at the logits")
        objectives: list[Objective] = []
        outputs: dict[str, Tensor] = {}
        settings = replace(self._settings, compile=False, processes=Processes())
        for task, name, seed in self._gradient_keys():
            objective = next(found for found in self._objectives[task] if found.name == name)
            seeds = next((seeds for seeds in self.folder.stacks(task, name) if seed in seeds), [seed])
            trainer, progress = self._resumed(objective, seeds, settings)
            if progress is None:
                targets = objective.encode(digits.train_values)
                for epoch in range(1, self.config.epochs_for(task) + 1):
                    trainer.train_epoch(digits.train_images, targets, epoch, lambda steps, loss: self._workers.check())
            objectives.append(objective)
            outputs[name] = trainer.predict(digits.test_images)[seeds.index(seed)]
        self.display.done()
        return experiments.gradient_experiment(objectives, outputs, digits.test_values, seed=self.config.first_seed)

    def _parity_keys(self) -> list[tuple[str, str]]:
        return [(loss, optimizer) for loss in parity.OBJECTIVES for optimizer in parity.RULES]

    def _compare_with_builtin(self, loss: str, optimizer: str, digits: TaskData) -> None:
        """Hold one of our losses against that of torch.nn, and keep what comes of it."""
        self.display.now(f"parity · {loss} · {optimizer}", self.config.parity_steps)
        record = parity.compare_losses(
            # In full precision, whatever the study uses: what is compared are the losses.
            Settings(self.config.batch_size, 0.0, self.device),
            self.config.model,
            loss,
            optimizer,
            digit_task(self.device),
            digits,
            loss_library("torchlosses"),
            loss_library("torch"),
            seed=self.config.first_seed,
            steps=self.config.parity_steps,
            report=self._advance,
        )
        self.display.done()
        with self._lock:
            self._parity[loss, optimizer] = record
            self._save(complete=False)
        self.display.note(
            f"parity · {loss} · {optimizer} · {record.steps} steps · largest difference in loss "
            f"{record.largest_loss_difference:.1e}, in weights {record.largest_weight_difference:.1e}"
        )

    def _remaining_steps(self) -> int:
        """The updates that are ahead, of all networks together."""
        digits = 0 if self._digits is None else len(self._digits.train_images)
        steps = 0
        for key in self._keys():
            done = len(self._runs[key].epochs) if key in self._runs else 0
            steps_per_epoch = -(-images_per_epoch(key[0], digits) // self.config.batch_size)
            steps += (self.config.epochs_for(key[0]) - done) * steps_per_epoch
        steps += sum(len(seeds) for _, seeds in self._recovery_stacks()) * self.config.recovery_steps
        return steps + (len(self._parity_keys()) - len(self._parity)) * self.config.parity_steps

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


def _told(seeds: Sequence[int]) -> str:
    return f"seed {seeds[0]}" if len(seeds) == 1 else f"seeds {seeds[0]}-{seeds[-1]}"
