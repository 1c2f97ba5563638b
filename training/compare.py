"""The command: `python -m training.compare`."""

from __future__ import annotations

import importlib.util
import os
import shlex
import shutil
import signal
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

from rich.console import Console

from training.config import PROGRAM, Config, parse_config
from training.errors import StudyError

if TYPE_CHECKING:
    import torch

    from training.folders import RunFolder
    from training.results import Results
    from training.study import Study

FAILED = 1
USAGE_ERROR = 2
INTERRUPTED = 128 + signal.SIGINT


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the study as the command line says, and return the exit code.

    0: done; 1: done, but our losses and the built-in ones differ by more than their tolerance;
    2: an option, a file or the machine does not allow it; 130: interrupted, and ready to be resumed.
    """
    arguments = sys.argv[1:] if arguments is None else arguments
    try:
        return _run(parse_config(arguments), shlex.join((*PROGRAM.split(), *arguments)))
    except StudyError as error:
        if _is_first_process():
            print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        return USAGE_ERROR
    except KeyboardInterrupt:
        return INTERRUPTED


def _run(config: Config, command: str) -> int:
    # Imported only now: wrong options and --help are answered at once.
    from training.distributed import process_group
    from training.folders import RunFolder, create_folder, open_folder
    from training.objectives import select_objectives
    from training.progress import Display
    from training.study import Study

    folder, earlier = None, None
    if config.resume is not None:
        folder, config, earlier = open_folder(config.resume)
        if earlier is not None and earlier.complete:
            print(f"{folder.path} is complete; there is nothing to go on with", file=sys.stderr)
            return _conclude(earlier, folder)
    _check_packages(config)
    for task in config.tasks:
        select_objectives(config.objectives, task)
    with process_group(_device(config)) as (device, processes):
        is_new = folder is None
        if folder is None:
            folder = RunFolder(processes.agree(lambda: create_folder(config).path))
        display = Display(Console(stderr=True), quiet=not processes.is_first)
        study = Study(config, folder, earlier, device, processes, display, command)
        try:
            with display:
                results = study.run()
        except KeyboardInterrupt:
            if processes.is_first:
                _leave_usable(study)
            return INTERRUPTED
        except StudyError:
            # Where the data are missing nothing was begun, and no empty run is left behind.
            if is_new and processes.is_first and not folder.results.exists():
                shutil.rmtree(folder.path)
            raise
    return _conclude(results, folder) if processes.is_first else 0


def _leave_usable(study: Study) -> None:
    results = study.save_partial()
    print("\ninterrupted", file=sys.stderr)
    if results is not None and any(run.epochs for run in results.runs):
        from training.report import write_report

        print(f"report so far: {write_report(results, study.folder.path)}", file=sys.stderr)
    print(f"go on with: {PROGRAM} --resume {shlex.quote(str(study.folder.path))}", file=sys.stderr)


def _conclude(results: Results, folder: RunFolder) -> int:
    from training.report import write_report
    from training.table import print_table

    report = write_report(results, folder.path)
    print_table(results, Console())
    print(f"took {results.seconds:.0f} s; report: {report}")
    failed = [record for record in results.parity if not record.passed]
    for record in failed:
        print(
            f"PARITY FAILED: {record.ours} and {record.builtin} with {record.optimizer}: largest difference in loss "
            f"{record.largest_loss_difference:.3g} (allowed {record.loss_tolerance:g}), in weights "
            f"{record.largest_weight_difference:.3g} (allowed {record.weight_tolerance:g})",
            file=sys.stderr,
        )
    return FAILED if failed else 0


def _check_packages(config: Config) -> None:
    if config.tensorboard and importlib.util.find_spec("tensorboard") is None:
        raise StudyError("--tensorboard needs a package that is not installed: pip install 'torchlosses[tensorboard]'")
    compilers = [os.environ.get("CXX", "g++"), "g++", "clang++", "c++"]
    if config.compile and config.device == "cpu" and not any(map(shutil.which, compilers)):
        raise StudyError("--compile needs a C++ compiler on the CPU and none was found; install g++ or leave it out")


def _device(config: Config) -> torch.device:
    import torch

    device = torch.device(config.device)
    if device.type == "cuda":
        found = torch.cuda.device_count() if torch.cuda.is_available() else 0
        if (device.index or 0) >= found:
            raise StudyError(f"--device {config.device}: PyTorch sees {found} GPU(s) here; --device cpu always works")
    return device


def _is_first_process() -> bool:
    return os.environ.get("RANK", "0") == "0"


if __name__ == "__main__":
    sys.exit(main())
