"""The peak memory of a call, in a process of its own.

What counts is what the kernel of the operating system has given to the process: every page, whoever asked for it, the
allocator of torch, a vector in C++ or a thread. Linux keeps the highest number as VmHWM, and sets it back on request.
"""

from __future__ import annotations

import ctypes
import gc
import multiprocessing
import sys
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

from benchmarks.cases import Workload
from benchmarks.implementations import IMPLEMENTATIONS, LIMITS, Call
from benchmarks.problems import PROBLEMS
from benchmarks.results import Passes

WARM_UP_CALLS = 2
_RESET_PEAK = "5"


def is_measurable() -> bool:
    """Whether this system tells the peak."""
    return sys.platform == "linux" and Path("/proc/self/clear_refs").exists()


def peak_in_fresh_process(case: Workload, passes: Passes, name: str) -> int:
    """The bytes that a call needs at most beyond what was there before it."""
    return in_fresh_process(_peak_of, case, passes, name)


def in_fresh_process(measure: Callable[..., int], *arguments: Any) -> int:
    """What `measure` finds in a process that is forked from one that has imported everything and computed nothing."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__])
    with ProcessPoolExecutor(1, mp_context=context) as executor:
        return executor.submit(measure, *arguments).result()


def _peak_of(case: Workload, passes: Passes, name: str) -> int:
    arguments = PROBLEMS[case.loss].arguments(case)
    for implementation in IMPLEMENTATIONS:
        if implementation.name == name:
            return peak(implementation.call(implementation.function(case), arguments, passes))
    (limit,) = (limit for limit in LIMITS if limit.name == name)
    return peak(limit.call(*(argument.detach() for argument in arguments)))


def peak(call: Call) -> int:
    """The bytes that a call needs at most beyond what is there now, once it has run a few times."""
    with call.around():
        for _ in range(WARM_UP_CALLS):
            if call.prepare is not None:
                call.prepare()
            call.run()
        if call.prepare is not None:
            call.prepare()
        _give_back_what_is_free()
        Path("/proc/self/clear_refs").write_text(_RESET_PEAK)
        before = _highest_resident_bytes()
        call.run()
        return max(_highest_resident_bytes() - before, 0)


def _give_back_what_is_free() -> None:
    """Memory that the allocator has kept from earlier calls would otherwise be used again unseen."""
    gc.collect()
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)


def _highest_resident_bytes() -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    (line,) = (line for line in lines if line.startswith("VmHWM:"))
    return int(line.split()[1]) * 1024
