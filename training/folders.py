"""The folder of a run: what is where, how one is begun, taken up again, and held by one process at a time."""

from __future__ import annotations

import os
import shutil
import socket
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from training.config import Config, as_json_object, read_config, write_config
from training.errors import CannotWriteError, StudyError
from training.files import remove_unfinished
from training.questions import TaskName
from training.results import Results, read_results

try:
    import fcntl
except ImportError:  # Windows has no such locks; there a folder is not held.
    fcntl = None

Key = tuple[TaskName, str, int]

# What a resumed run may be given anew.
_CHANGEABLE = frozenset({"seeds", "resume"})


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
    def report(self) -> Path:
        """The page."""
        return self.path / "report.html"

    @property
    def checkpoints(self) -> Path:
        """Networks of a run that is not complete."""
        return self.path / "checkpoints"

    def checkpoint(self, task: TaskName, objective: str, seeds: Sequence[int]) -> Path:
        """A stack of one objective's networks."""
        return self.checkpoints / f"{task}-{objective}-seeds{'+'.join(map(str, seeds))}.pt"

    def stacks(self, task: TaskName, objective: str) -> list[list[int]]:
        """The seeds of each stack of an objective that has a checkpoint."""
        begin = f"{task}-{objective}-seeds"
        return sorted(
            [int(seed) for seed in path.stem.removeprefix(begin).split("+")]
            for path in self.checkpoints.glob(f"{begin}*.pt")
        )

    def tensorboard(self, key: Key) -> Path:
        """One objective's TensorBoard log, from one seed."""
        task, objective, seed = key
        return self.path / "tensorboard" / f"{task}-{objective}-seed{seed}"

    @contextmanager
    def held(self) -> Iterator[None]:
        """Keep other processes out of the folder while the block runs.

        Raises:
            StudyError: another process holds it; the message says which.
            CannotWriteError: nothing can be written there.
        """
        if fcntl is None:
            yield
            return
        lock = self.path / ".lock"
        try:
            descriptor = os.open(lock, os.O_RDWR | os.O_CREAT, 0o644)
        except OSError as error:
            raise CannotWriteError(self.path, error, "go on in a copy of it, where there is room") from error
        try:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError as error:
                holder = os.read(descriptor, 1000).decode("utf-8", "replace").strip() or "another process"
                raise StudyError(f"{self.path} is being worked on by {holder}; wait for it, or stop it") from error
            began = f"{datetime.now():%Y-%m-%d %H:%M:%S}"
            # On a full disk the folder is held all the same, by an unnamed process.
            with suppress(OSError):
                os.truncate(descriptor, 0)
                os.write(descriptor, f"process {os.getpid()} on {socket.gethostname()}, begun at {began}".encode())
            remove_unfinished(self.path)
            yield
            lock.unlink(missing_ok=True)
        finally:
            os.close(descriptor)


def create_folder(config: Config) -> RunFolder:
    """Make a folder for a new run, named by the time, with the configuration in it from the first moment on.

    Raises:
        StudyError: the folder cannot be made.
    """
    stem = f"{datetime.now():%Y%m%d-%H%M%S}-{config.run_name}"
    begun = config.out / f".{stem}-{os.getpid()}"
    try:
        config.out.mkdir(parents=True, exist_ok=True)
        begun.mkdir()
        write_config(config, begun / "config.json")
        for attempt in range(1, 1000):
            folder = RunFolder(config.out / (stem if attempt == 1 else f"{stem}-{attempt}"))
            # Renaming onto an empty folder would succeed.
            if folder.path.exists():
                continue
            with suppress(FileExistsError):
                begun.rename(folder.path)
                return folder
    except (OSError, StudyError) as error:
        shutil.rmtree(begun, ignore_errors=True)
        if config.out.exists() and not config.out.is_dir():
            raise StudyError(f"--out: {config.out} is no folder") from error
        reason = error.strerror if isinstance(error, OSError) else error
        raise StudyError(f"--out: cannot write to {config.out} ({reason}); name another folder") from error
    raise StudyError(f"--out: {config.out} has too many runs called {stem}")


def open_folder(run: Path) -> tuple[RunFolder, Config, Results | None]:
    """A run: its folder, its configuration and what it has found, if anything.

    Raises:
        StudyError: there is no such run, its files cannot be read, or its options are not those it was begun with.
    """
    if not run.is_dir():
        raise StudyError(f"--resume: there is no folder {run}; name the folder of a run, such as runs/<time>-<name>")
    folder = RunFolder(run)
    config = read_config(folder.config)
    if not folder.results.exists():
        return folder, config, None
    try:
        results = read_results(folder.results)
    except StudyError as error:
        raise StudyError(f"--resume: {error}") from error
    begun_with = results.config["seeds"]
    if isinstance(begun_with, int) and config.seeds < begun_with:
        raise StudyError(
            f"--resume: seeds is {config.seeds} in {folder.config}, but the run has {begun_with}; put that back"
        )
    for setting, value in as_json_object(config).items():
        begun = results.config.get(setting)
        if setting not in _CHANGEABLE and begun != value:
            raise StudyError(
                f"--resume: {setting} is {value} in {folder.config}, but the run was begun with {begun}; what was "
                "trained does not fit: put it back, or start a new run"
            )
    return folder, config, results
