"""The command that measures what an import costs beyond torch's own: `python -m benchmarks.import_time`.

Each process imports torch, and then torchlosses; the clock is read before, between and after. The first process is not
counted: it compiles the modules to bytecode, as pip does when it installs, and reads the files of torch from the disk.
"""

from __future__ import annotations

import json
import os
import shlex
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Annotated

import tyro

from benchmarks.environment import ROOT, describe_environment
from benchmarks.errors import BenchmarkError
from benchmarks.results import ImportTimes, write_results
from benchmarks.run import IMPORT_TIME, USAGE_ERROR

PROGRAM = "python -m benchmarks.import_time"
MOST_MILLISECONDS = 60
_IMPORTS = """
import json, time
begun = time.perf_counter()
import torch
between = time.perf_counter()
import torchlosses
print(json.dumps([between - begun, time.perf_counter() - between]))
"""


@dataclass(frozen=True)
class Options:
    """Measure what `import torchlosses` costs beyond `import torch`, and write the results as JSON."""

    processes: int = 9
    """How many processes are measured, one after the other."""
    out: Annotated[
        Path, tyro.conf.arg(metavar="FILE", help_behavior_hint="(default: benchmarks/results/import_time.json)")
    ] = IMPORT_TIME
    """Where to write the results."""

    def __post_init__(self) -> None:
        if self.processes < 2:
            raise BenchmarkError(f"--processes must be 2 or more, not {self.processes}")


def measure(options: Options, command: str) -> ImportTimes:
    """Import in fresh processes.

    Raises:
        BenchmarkError: An import failed.
    """
    samples = []
    with tempfile.TemporaryDirectory() as bytecode:
        environment = {**os.environ, "PYTHONPYCACHEPREFIX": bytecode}
        environment.pop("PYTHONDONTWRITEBYTECODE", None)
        for _ in range(1 + options.processes):
            done = subprocess.run(
                (sys.executable, "-c", _IMPORTS),
                cwd=ROOT,
                env=environment,
                capture_output=True,
                text=True,
                check=False,
            )
            if done.returncode:
                raise BenchmarkError(f"the import failed: {done.stderr.strip().splitlines()[-1]}")
            samples.append(json.loads(done.stdout))
    torch, torchlosses = zip(*samples[1:], strict=True)
    return ImportTimes(
        started=datetime.now(timezone.utc).isoformat(timespec="seconds"),
        command=command,
        environment=describe_environment(),
        torch=list(torch),
        torchlosses=list(torchlosses),
    )


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure as the command line says, and return the exit code: 0 done, 2 not possible."""
    arguments = sys.argv[1:] if arguments is None else arguments
    try:
        options = tyro.cli(Options, prog=PROGRAM, args=list(arguments))
        found = measure(options, shlex.join((*PROGRAM.split(), *arguments)))
    except BenchmarkError as error:
        print(f"error: {error}", file=sys.stderr)
        return USAGE_ERROR
    write_results(found, options.out)
    median = statistics.median(found.torchlosses) * 1e3
    print(f"import torch {statistics.median(found.torch) * 1e3:.0f} ms, torchlosses {median:.0f} ms more")
    print(f"at most {MOST_MILLISECONDS} ms more: {'yes' if median <= MOST_MILLISECONDS else 'no'}; {options.out}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
