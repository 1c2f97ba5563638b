"""The folder of a run: what is where, how one is begun and how one is taken up again."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from pydantic import ValidationError

from training.config import Config, read_config, write_config
from training.errors import StudyError
from training.results import Results, TaskName, read_results

Key = tuple[TaskName, str, int]


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
