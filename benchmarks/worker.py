"""One process, one setting: reads a job as JSON from standard input, writes a record a line to standard output.

The settings are such that a process cannot change them later: the variables of its environment, its threads.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass

import torch
from pydantic import Field, TypeAdapter

from benchmarks import memory
from benchmarks.cases import Workload
from benchmarks.checks import answer, check, truth
from benchmarks.errors import BenchmarkError
from benchmarks.implementations import IMPLEMENTATIONS, LIMITS, Call, Implementation
from benchmarks.problems import PROBLEMS
from benchmarks.results import Measured, Passes, PeakMemory, Record, Setting, Timing
from benchmarks.timing import time_in_turn

# Memory is also measured of this limit, which allocates exactly one tensor: it shows that the measurement is right.
MEMORY_LIMIT = "clone"


@dataclass(frozen=True)
class Job:
    """What a worker has to do: times of `cases` under `setting`, for so many seconds each; or their peak memory."""

    setting: Setting
    cases: tuple[Workload, ...]
    seconds: float = 0.0
    memory: bool = False


class Step(Record):
    """What a worker has finished: one case and what was called, with everything measured on it."""

    title: str
    timings: list[Timing] = Field(default_factory=list)
    memory: list[PeakMemory] = Field(default_factory=list)


JOB = TypeAdapter(Job)


def steps(job: Job) -> Iterator[Step]:
    """Measure everything the job asks for."""
    for case in job.cases:
        for passes in case.passes:
            title = f"{case}, {passes}, {job.setting.title}"
            if job.memory:
                yield Step(title=f"{title}, peak memory", memory=list(_memory(job.setting, case, passes)))
            else:
                yield Step(title=title, timings=list(_timings(job.setting, case, passes, job.seconds)))


def _timings(setting: Setting, case: Workload, passes: Passes, seconds: float) -> Iterator[Timing]:
    arguments = PROBLEMS[case.loss].arguments(case)
    exact = truth(case, arguments)
    calls: dict[str, Call] = {}
    for implementation in _implementations(case, passes):
        loss = implementation.function(case)
        with implementation.around():
            found = answer(loss, arguments, passes, consumes=implementation.consumes)
        check(implementation.name, case, found, exact)
        del found
        calls[implementation.name] = implementation.call(loss, arguments, passes)
    del exact
    for limit in LIMITS:
        if limit.serves(case):
            calls[limit.name] = limit.call(*(argument.detach() for argument in arguments))
    for name, summary in time_in_turn(calls, seconds).items():
        yield Timing(**_about(setting, case, passes, name).model_dump(), **asdict(summary))


def _memory(setting: Setting, case: Workload, passes: Passes) -> Iterator[PeakMemory]:
    unit = PROBLEMS[case.loss].unit(case.shape) * getattr(torch, case.dtype).itemsize
    for name in (*(implementation.name for implementation in _implementations(case, passes)), MEMORY_LIMIT):
        extra = memory.peak_in_fresh_process(case, passes, name)
        yield PeakMemory(**_about(setting, case, passes, name).model_dump(), extra_bytes=extra, unit_bytes=unit)


def _implementations(case: Workload, passes: Passes) -> list[Implementation]:
    return [implementation for implementation in IMPLEMENTATIONS if implementation.serves(case, passes)]


def _about(setting: Setting, case: Workload, passes: Passes, name: str) -> Measured:
    return Measured(
        setting=setting.name,
        loss=case.loss,
        shape=case.shape,
        dtype=case.dtype,
        passes=passes,
        implementation=name,
    )


def _own_standard_output() -> Callable[[str], None]:
    """Writes a line; whatever else prints, compilers for one, goes to standard error from now on."""
    lines = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    return lambda line: print(line, file=lines, flush=True)


def main() -> int:
    """Do the job, and return the exit code."""
    write = _own_standard_output()
    job = JOB.validate_json(sys.stdin.buffer.read())
    torch.set_num_threads(job.setting.threads)
    try:
        for step in steps(job):
            write(step.model_dump_json())
    except BenchmarkError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
