"""What a loss costs beside its reference: measured, never passed or failed."""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

from torchlosses.testing.audit import SETTINGS, Audit, Subject
from torchlosses.testing.kinds import Case
from torchlosses.testing.registry import check

ROWS, CLASSES, REPEATS = 512, 1000, 7


def _large(audit: Audit) -> list[Case]:
    plain = audit.cases(without=SETTINGS, reductions=("mean", None), rows=ROWS, classes=CLASSES)
    return audit.in_training_dtype(plain[:1])


@check("cost.time_and_memory", _large)
def time_and_memory(audit: Audit, case: Case) -> dict[str, float]:
    """A loss over many classes can cost as much as the layer before it; beside the reference, that is seen."""
    measured = {f"loss {key}": value for key, value in _costs(audit, case, audit.loss).items()}
    if audit.reference is not None:
        others = _costs(audit, case, audit.reference)
        measured.update({f"reference {key}": value for key, value in others.items()})
    return measured


def _costs(audit: Audit, case: Case, subject: Subject) -> dict[str, float]:
    call, (leaf,) = audit.function(case, subject, names=[audit.kind.primary])

    def forward() -> object:
        with torch.no_grad():
            return call(leaf)

    def both() -> object:
        loss = call(leaf)
        return loss, torch.autograd.grad(loss, leaf, torch.ones_like(loss))

    return {
        "forward, ms": _milliseconds(forward, leaf.device),
        "forward and backward, ms": _milliseconds(both, leaf.device),
        "peak memory, MB": peak_bytes(both, leaf.device) / 1e6,
        "input, MB": leaf.numel() * leaf.element_size() / 1e6,
    }


def _milliseconds(call: Callable[[], object], device: torch.device) -> float:
    call()
    times = []
    for _ in range(REPEATS):
        _wait(device)
        start = time.perf_counter()
        call()
        _wait(device)
        times.append(time.perf_counter() - start)
    return 1e3 * statistics.median(times)


def _wait(device: torch.device) -> None:
    if device.type != "cpu":
        torch.get_device_module(device).synchronize(device)


def peak_bytes(call: Callable[[], object], device: torch.device | None = None) -> int:
    """The most bytes that were allocated at one time during the call, as the allocator saw it."""
    if device is not None and device.type != "cpu":
        memory = torch.get_device_module(device)
        memory.reset_peak_memory_stats(device)
        before = memory.memory_allocated(device)
        call()
        return memory.max_memory_allocated(device) - before
    # The profiler's library writes its own progress to stderr unless it is told not to.
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        result = call()
    results: Any = None if profiler.profiler is None else profiler.profiler.kineto_results
    events = [event for event in results.events() if event.name() == "[memory]"]
    events.sort(key=lambda event: event.start_ns())
    allocated = peak = 0
    for event in events:
        allocated += event.nbytes()
        peak = max(peak, allocated)
    del result
    return peak
