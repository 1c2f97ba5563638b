"""The command that measures: `python -m benchmarks.run`. `python -m benchmarks.report` makes the documents from it."""

from __future__ import annotations

import os
import shlex
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal, get_args

import tyro
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from benchmarks.cases import CASES, LossName, Workload
from benchmarks.errors import BenchmarkError
from benchmarks.results import PeakMemory, Results, Timing, write_results

if TYPE_CHECKING:
    from benchmarks.worker import Job, Step

PROGRAM = "python -m benchmarks.run"
FOLDER = Path(__file__).parent / "results"
FULL = FOLDER / "full.json"
QUICK = FOLDER / "quick.json"
# What the other commands write.
CURVES, IMPORT_TIME, ARGUMENTS = (FOLDER / f"{name}.json" for name in ("curves", "import_time", "arguments"))
NORMALIZER, TRANSFORMERS = FOLDER / "normalizer.json", FOLDER / "transformers.json"
USAGE_ERROR = 2
INTERRUPTED = 128 + signal.SIGINT
_QUICK_SECONDS = 0.2
_LAST_LINES = 15
_WIDTH = 120
_MOST_LOAD = 0.5

SettingName = Literal["all", "single", "pages"]


@dataclass(frozen=True)
class Options:
    """Measure the losses beside torch's and beside the limits of the machine, and write the results as JSON.

    Everything takes about 7 minutes on two cores, on a machine that does nothing else. Start with --quick for a first
    look.
    """

    quick: bool = False
    """A few cases, briefly: under a minute. Written to a file of its own, never into the documents."""
    losses: tuple[LossName, ...] = get_args(LossName)
    """Only these losses."""
    settings: tuple[SettingName, ...] = ("all", "single", "pages")
    """Only these settings: all threads, a single one, all with huge pages for every allocation; all with --quick."""
    seconds: Annotated[float, tyro.conf.arg(help_behavior_hint="(default: 1; 0.2 with --quick)")] = 1.0
    """How long to take times of one case; large inputs get 5 to 7 rounds, however long they take."""
    memory: bool = True
    """Whether to measure the peak memory too."""
    out: Annotated[
        Path | None,
        tyro.conf.arg(metavar="FILE", help_behavior_hint="(default: benchmarks/results/full.json or quick.json)"),
    ] = None
    """Where to write the results."""

    def __post_init__(self) -> None:
        if not 0 < self.seconds <= 600:
            raise BenchmarkError(f"--seconds must be above 0 and at most 600, not {self.seconds}")
        for name in ("losses", "settings"):
            values = getattr(self, name)
            if not values or len(set(values)) < len(values):
                raise BenchmarkError(f"--{name} takes one or more names, each once")
        if self.out is not None and self.out.is_dir():
            raise BenchmarkError(f"--out must be a file, and {self.out} is a folder")

    @property
    def path(self) -> Path:
        """Where the results go."""
        return self.out or (QUICK if self.quick else FULL)

    @property
    def cases(self) -> tuple[Workload, ...]:
        """What is measured."""
        return tuple(case for case in CASES if case.loss in self.losses and (case.quick or not self.quick))


def measure(cases: Sequence[Workload], options: Options, command: str, console: Console) -> Results:
    """Measure `cases`, each under its settings, and the peak memory of those that ask for it.

    Raises:
        BenchmarkError: An implementation is wrong, or a process failed.
    """
    # Imported only now: wrong options and --help are answered at once.
    from benchmarks import memory
    from benchmarks.environment import describe_environment, settings
    from benchmarks.implementations import IMPLEMENTATIONS, LIMITS
    from benchmarks.worker import Job

    started, begun = datetime.now(timezone.utc), time.monotonic()
    environment = describe_environment()
    if environment.load is not None and environment.load > _MOST_LOAD * environment.cores:
        console.print(
            f"Times will mean little: {environment.load} processes want the {environment.cores} cores of this machine.",
            style="yellow",
        )
    chosen = [setting for setting in settings(options.settings) if any(setting.name in case.settings for case in cases)]
    jobs = [
        Job(setting, tuple(case for case in cases if setting.name in case.settings), options.seconds)
        for setting in chosen
    ]
    if options.memory and memory.is_measurable():
        cases_of_memory = tuple(case for case in cases if case.memory)
        jobs += [Job(setting, cases_of_memory, memory=True) for setting in chosen if setting.name == "all"]
    elif options.memory:
        console.print("The peak memory is not measured: this system does not tell it.", style="yellow")
    timings: list[Timing] = []
    peaks: list[PeakMemory] = []
    bar = Progress(
        TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), console=console
    )
    with bar:
        task = bar.add_task("measuring", total=sum(len(case.passes) for job in jobs for case in job.cases))
        for job in jobs:
            for step in run_job(job):
                timings += step.timings
                peaks += step.memory
                bar.advance(task)
                bar.print(step.title, highlight=False)
    return Results(
        started=started.isoformat(timespec="seconds"),
        seconds=round(time.monotonic() - begun, 1),
        command=command,
        quick=options.quick,
        environment=environment,
        implementations={implementation.name: implementation.title for implementation in IMPLEMENTATIONS},
        limits={limit.name: limit.title for limit in LIMITS},
        settings=chosen,
        timings=timings,
        memory=peaks,
    )


def run_job(job: Job) -> Iterator[Step]:
    """What a worker with this job finishes, as it finishes it."""
    from benchmarks.worker import JOB, Step

    if not job.cases:
        return
    threads = {name: str(job.setting.threads) for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS")}
    with tempfile.TemporaryFile() as complaints:
        worker = subprocess.Popen(
            (sys.executable, "-m", "benchmarks.worker"),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=complaints,
            env={**os.environ, **threads, **job.setting.environment},
        )
        with worker:
            assert worker.stdin is not None
            assert worker.stdout is not None
            try:
                # One that could not even start has closed the pipe; its exit code and last lines say why.
                with suppress(BrokenPipeError), worker.stdin as pipe:
                    pipe.write(JOB.dump_json(job))
                for line in worker.stdout:
                    yield Step.model_validate_json(line)
            except BaseException:
                worker.terminate()
                raise
        if worker.returncode:
            complaints.seek(0)
            raise BenchmarkError(_failure(worker.returncode, complaints.read().decode(errors="replace")))


def _failure(code: int, complaints: str) -> str:
    lines = complaints.strip().splitlines() or ["it left no message"]
    if lines[-1].startswith("error: "):
        return lines[-1].removeprefix("error: ")
    ended = f"was ended by {signal.Signals(-code).name}" if code < 0 else f"failed with exit code {code}"
    return "\n".join((f"the process that measures {ended}; its last lines:", *lines[-_LAST_LINES:]))


def parse_options(arguments: Sequence[str]) -> Options:
    """The options from the command line.

    Raises:
        BenchmarkError: A value is not allowed.
        SystemExit: After `--help`, or an option that does not exist.
    """
    default = Options(quick="--quick" in arguments)
    if default.quick:
        default = Options(quick=True, seconds=_QUICK_SECONDS, settings=("all",))
    return tyro.cli(Options, prog=PROGRAM, args=list(arguments), default=default)


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure as the command line says, and return the exit code: 0 done, 2 not possible, 130 interrupted."""
    arguments = sys.argv[1:] if arguments is None else arguments
    console = Console(stderr=True)
    try:
        options = parse_options(arguments)
        results = measure(options.cases, options, shlex.join((*PROGRAM.split(), *arguments)), console)
    except BenchmarkError as error:
        print(f"error: {error}", file=sys.stderr)
        return USAGE_ERROR
    except KeyboardInterrupt:
        print("interrupted; nothing was written", file=sys.stderr)
        return INTERRUPTED
    write_results(results, options.path)
    from benchmarks.tables import print_results

    print_results(results, Console(width=None if sys.stdout.isatty() else _WIDTH))
    print(f"took {results.seconds:.0f} s; results: {options.path}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
