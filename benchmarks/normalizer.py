"""The command behind the curves of docs/normalizer.md: `python -m benchmarks.normalizer`.

It trains `examples.language_model` plainly, lean, and lean without the normaliser, and writes the losses of all steps.
"""

from __future__ import annotations

import json
import shlex
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Annotated

import torch
import tyro

from benchmarks.environment import ROOT
from benchmarks.errors import BenchmarkError
from benchmarks.results import TrainingCurves, write_results
from benchmarks.run import NORMALIZER, USAGE_ERROR

PROGRAM = "python -m benchmarks.normalizer"


@dataclass(frozen=True)
class Options:
    """Train the example with and without the normaliser, and write the curves as JSON."""

    steps: int = 40
    """Steps of the optimizer."""
    out: Annotated[
        Path, tyro.conf.arg(metavar="FILE", help_behavior_hint="(default: benchmarks/results/normalizer.json)")
    ] = NORMALIZER
    """Where to write the results."""


def curves(steps: int, *, naive: bool) -> dict[str, list[float]]:
    """The losses of each step, in one process and in two.

    Raises:
        BenchmarkError: The training failed.
    """
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "curves.json")
        command = [sys.executable, "-m", "examples.language_model", "--steps", str(steps), "--curve", str(path)]
        done = subprocess.run([*command, *["--naive"] * naive], cwd=ROOT, capture_output=True, text=True, check=False)
        # The exit code says whether the curves are the same, and those without the normaliser are not.
        if not path.exists():
            raise BenchmarkError(f"the example failed: {done.stderr.strip()[-500:]}")
        return json.loads(path.read_text(encoding="utf-8"))


def main(arguments: Sequence[str] | None = None) -> int:
    """Train, write, and return the exit code."""
    arguments = sys.argv[1:] if arguments is None else arguments
    started = datetime.now(timezone.utc).isoformat(timespec="seconds")
    try:
        options = tyro.cli(Options, prog=PROGRAM, args=list(arguments))
        with_normalizer, without = (curves(options.steps, naive=naive) for naive in (False, True))
    except BenchmarkError as error:
        print(f"error: {error}", file=sys.stderr)
        return USAGE_ERROR
    found = TrainingCurves(
        started=started,
        command=shlex.join((*PROGRAM.split(), *arguments)),
        torch_version=torch.__version__,
        plain=with_normalizer["plain"],
        lean=with_normalizer["lean"],
        naive=without["lean"],
    )
    write_results(found, options.out)
    print(f"results: {options.out}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
