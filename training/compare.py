"""The command: `python -m training.compare`."""

from __future__ import annotations

import errno
import importlib.util
import io
import os
import shlex
import shutil
import sys
from collections.abc import Sequence
from contextlib import ExitStack, nullcontext, suppress
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console

from training.config import PROGRAM, Config, more_seeds, parse_config
from training.errors import CannotWriteError, StudyError
from training.signals import StoppedBySignal, raising_signals

if TYPE_CHECKING:
    from training.folders import RunFolder
    from training.results import Results
    from training.study import Study

USAGE_ERROR = 2
PARITY_FAILED = 3
CANNOT_WRITE = 4
_NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EROFS)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the study as the command line says, and return the exit status that `--help` describes."""
    arguments = sys.argv[1:] if arguments is None else arguments
    _accept_any_encoding()
    try:
        with raising_signals():
            return _run(parse_config(arguments), arguments)
    except CannotWriteError as error:
        _complain(error)
        return CANNOT_WRITE
    except StudyError as error:
        _complain(error)
        return USAGE_ERROR
    except StoppedBySignal as stopped:
        return stopped.status
    except OSError as error:
        # From a library that writes a file by itself, such as TensorBoard.
        if error.errno not in _NO_ROOM:
            raise
        _complain(CannotWriteError(Path(error.filename or "a file"), error))
        return CANNOT_WRITE


def _complain(error: StudyError) -> None:
    if _is_first_process():
        _say(f"error: {' '.join(str(error).split())}")


def _say(line: str) -> None:
    """A line on standard error, if anybody still listens there."""
    with suppress(OSError):
        print(line, file=sys.stderr, flush=True)


def _accept_any_encoding() -> None:
    """Where the output's encoding lacks a letter, such as the degree sign in ASCII, print another and go on."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")


def _run(config: Config, arguments: Sequence[str]) -> int:
    # Imported only now: wrong options and --help are answered at once.
    from training.distributed import process_group
    from training.environment import find_device
    from training.folders import RunFolder, create_folder, open_folder
    from training.objectives import select_objectives
    from training.progress import Display
    from training.study import Study

    command = shlex.join((*PROGRAM.split(), *arguments))
    folder, earlier = None, None
    if config.resume is not None:
        seeds = config.seeds if more_seeds(arguments) else None
        folder, config, earlier = open_folder(config.resume)
        if seeds is not None:
            if seeds < config.seeds:
                raise StudyError(f"--seeds: the run has {config.seeds} already; give as many or more, not {seeds}")
            config = replace(config, seeds=seeds)
        if earlier is not None and earlier.complete and len(config.run_seeds) == earlier.config["seeds"]:
            _say(f"{folder.path} is complete; there is nothing to go on with")
            with ExitStack() as stack:
                # On read-only media nobody else writes either.
                with suppress(CannotWriteError):
                    stack.enter_context(folder.held())
                return _conclude(earlier, folder)
    _check_packages(config)
    for task in config.task_names:
        select_objectives(config.objectives, task, every=config.all)
    with process_group(find_device(config.device)) as (device, processes):
        is_new = folder is None
        if folder is None:
            folder = RunFolder(processes.agree(lambda: create_folder(config).path))
        with folder.held() if processes.is_first else nullcontext():
            if processes.is_first and earlier is not None and config.seeds != earlier.config["seeds"]:
                from training.config import write_config

                write_config(config, folder.config)
            display = Display(Console(stderr=True), quiet=not processes.is_first)
            study = Study(config, folder, earlier, device, processes, display, command)
            try:
                with display:
                    results = study.run()
            except StoppedBySignal as stopped:
                if processes.is_first:
                    _leave_usable(study, stopped)
                raise
            except CannotWriteError as error:
                advice = f"make room and go on with: {_resume(folder)}"
                raise CannotWriteError(error.path, error.cause, advice) from error
            except StudyError:
                # Where the data are missing nothing was begun, and no empty run is left behind.
                if is_new and processes.is_first and not folder.results.exists():
                    shutil.rmtree(folder.path)
                raise
            return _conclude(results, folder) if processes.is_first else 0


def _resume(folder: RunFolder) -> str:
    return f"{PROGRAM} --resume {shlex.quote(str(folder.path))}"


def _leave_usable(study: Study, stopped: StoppedBySignal) -> None:
    _say(f"\ninterrupted; go on with: {_resume(study.folder)}")
    results = study.save_partial()
    if results is not None and any(run.epochs for run in results.runs):
        from training.report import write_report

        _say(f"report so far: {write_report(results, study.folder.path)}")


def _conclude(results: Results, folder: RunFolder) -> int:
    from training.report import write_report
    from training.table import print_table

    try:
        report = write_report(results, folder.path)
    except CannotWriteError as error:
        # A finished run can be looked at where nothing can be written, as long as its report is there.
        if not (results.complete and folder.report.exists()):
            advice = f"the results are complete; write the report with: {_resume(folder)}"
            raise CannotWriteError(error.path, error.cause, advice) from error
        _say(f"the report was not written again: {error}")
        report = folder.report
    try:
        print_table(results, Console())
        print(f"took {results.seconds:.0f} s; report: {report}", flush=True)
    except (BrokenPipeError, SystemExit):
        # Whoever read the table has gone, on which rich exits; everything is written. What is left goes nowhere.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    failed = [record for record in results.parity if not record.passed]
    for record in failed:
        _say(
            f"PARITY FAILED: {record.ours} and {record.builtin} with {record.optimizer}: largest difference in loss "
            f"{record.largest_loss_difference:.3g} (allowed {record.loss_tolerance:g}), in weights "
            f"{record.largest_weight_difference:.3g} (allowed {record.weight_tolerance:g})"
        )
    return PARITY_FAILED if failed else 0


def _check_packages(config: Config) -> None:
    if config.tensorboard and importlib.util.find_spec("tensorboard") is None:
        raise StudyError("--tensorboard needs a package that is not installed: pip install 'torchlosses[tensorboard]'")
    compilers = [os.environ.get("CXX", "g++"), "g++", "clang++", "c++"]
    if config.compile and config.device == "cpu" and not any(map(shutil.which, compilers)):
        raise StudyError("--compile needs a C++ compiler on the CPU and none was found; install g++ or leave it out")


def _is_first_process() -> bool:
    return os.environ.get("RANK", "0") == "0"


if __name__ == "__main__":
    sys.exit(main())
