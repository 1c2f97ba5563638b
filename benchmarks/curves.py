"""The command that measures how the time grows: `python -m benchmarks.curves`.

For each loss, forward and backward, with a few rows and ever more classes, and with some classes and ever more rows:
torchlosses, torch, torch.compile, and the limit of the machine (for a linear loss its three products, otherwise a copy
of the input, which reads as much as a loss has to and writes as much as its gradient). Points come in rounds, far apart
first, and each is written as soon as it is measured. So a run that ends early, by --budget or by hand, leaves curves
with fewer points, and --resume adds the others.
"""

from __future__ import annotations

import shlex
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Annotated

import tyro
from rich.console import Console

from benchmarks.cases import TOGETHER, LossName, Workload
from benchmarks.errors import BenchmarkError
from benchmarks.results import Results, Timing, read_results, write_results
from benchmarks.run import CURVES, INTERRUPTED, USAGE_ERROR, run_job

PROGRAM = "python -m benchmarks.curves"

LOSSES: tuple[LossName, ...] = (
    "mse_loss",
    "cross_entropy",
    "cee_loss",
    "binary_cross_entropy_with_logits",
    "huber_loss",
    "smooth_l1_loss",
    "linear_cross_entropy",
)
ROWS, CLASSES, FEATURES = 128, 1000, 256
EVER_MORE_CLASSES = (2, 16, 128, 1024, 8192, 65_536, 262_144)
EVER_MORE_ROWS = (1, 8, 64, 512, 4096, 32_768)
DRAWN = ("native", "torch", "compiled", "copy", "products")


@dataclass(frozen=True)
class Options:
    """Measure the time of each loss at ever more classes and rows, and write the results as JSON."""

    losses: tuple[LossName, ...] = LOSSES
    """Only these losses."""
    seconds: float = 0.2
    """How long to take times of one point; large inputs get 5 to 7 rounds, however long they take."""
    budget: float = 360.0
    """No point is begun after so many seconds in all."""
    largest: int = EVER_MORE_CLASSES[-1]
    """No more classes or rows than this."""
    resume: bool = False
    """Keep the points that are in the file, and measure the others."""
    out: Annotated[
        Path, tyro.conf.arg(metavar="FILE", help_behavior_hint="(default: benchmarks/results/curves.json)")
    ] = CURVES
    """Where to write the results."""

    def __post_init__(self) -> None:
        for name in ("seconds", "budget", "largest"):
            if not getattr(self, name) > 0:
                raise BenchmarkError(f"--{name} must be above 0, not {getattr(self, name)}")


def far_apart_first(values: Sequence[int]) -> list[int]:
    """The last, the first, then the middle of every gap."""
    if not values:
        return []
    order, gaps = [len(values) - 1, 0], [(0, len(values) - 1)]
    for low, high in gaps:
        if high - low > 1:
            middle = (low + high) // 2
            order.append(middle)
            gaps += [(low, middle), (middle, high)]
    return [values[place] for place in dict.fromkeys(order)]


def points(losses: Sequence[LossName], largest: int) -> list[Workload]:
    """What is measured, in the order in which it is."""

    def case(loss: LossName, rows: int, classes: int) -> Workload:
        shape = (rows, FEATURES, classes) if loss == "linear_cross_entropy" else (rows, classes)
        return Workload(loss, shape, passes=TOGETHER, only=DRAWN)

    classes = far_apart_first([extent for extent in EVER_MORE_CLASSES if extent <= largest])
    rows = far_apart_first([extent for extent in EVER_MORE_ROWS if extent <= largest])
    found = []
    for place in range(max(len(classes), len(rows))):
        for loss in losses:
            found += [case(loss, ROWS, extent) for extent in classes[place : place + 1]]
            found += [case(loss, extent, CLASSES) for extent in rows[place : place + 1]]
    return found


def measure(options: Options, command: str, console: Console) -> Results:
    """Measure, writing after each point, until all are there or the time is up."""
    # Imported only now: wrong options and --help are answered at once.
    from benchmarks.environment import describe_environment, settings
    from benchmarks.implementations import IMPLEMENTATIONS, LIMITS
    from benchmarks.worker import Job

    begun = time.monotonic()
    before = read_results(options.out) if options.resume and options.out.exists() else None
    timings: list[Timing] = [] if before is None else list(before.timings)
    done = {(timing.loss, timing.shape) for timing in timings}
    missing = [case for case in points(options.losses, options.largest) if (case.loss, case.shape) not in done]
    (setting,) = settings(("all",))
    results = Results(
        started=datetime.now(timezone.utc).isoformat(timespec="seconds"),
        seconds=0.0,
        command=command,
        quick=False,
        environment=describe_environment(),
        implementations={i.name: i.title for i in IMPLEMENTATIONS if i.name in DRAWN},
        limits={limit.name: limit.title for limit in LIMITS if limit.name in DRAWN},
        settings=[setting],
        timings=timings,
        memory=[],
    )
    earlier = 0.0 if before is None else before.seconds
    if missing:
        for number, step in enumerate(run_job(Job(setting, tuple(missing), options.seconds)), 1):
            timings += step.timings
            passed = time.monotonic() - begun
            results = results.model_copy(update={"timings": timings, "seconds": round(earlier + passed, 1)})
            write_results(results, options.out)
            console.print(f"{number} of {len(missing)}: {step.title}", highlight=False)
            if passed > options.budget and number < len(missing):
                console.print(f"{len(missing) - number} points are left; --resume measures them.", style="yellow")
                break
    return results


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure as the command line says, and return the exit code: 0 done, 2 not possible, 130 interrupted."""
    arguments = sys.argv[1:] if arguments is None else arguments
    try:
        options = tyro.cli(Options, prog=PROGRAM, args=list(arguments))
        results = measure(options, shlex.join((*PROGRAM.split(), *arguments)), Console(stderr=True))
    except BenchmarkError as error:
        print(f"error: {error}", file=sys.stderr)
        return USAGE_ERROR
    except KeyboardInterrupt:
        print("interrupted; what was measured is kept, and --resume goes on", file=sys.stderr)
        return INTERRUPTED
    print(f"{len(results.timings)} times, {results.seconds:.0f} s; results: {options.out}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
