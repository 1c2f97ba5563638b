"""Times, taken in turn, so that a machine that slows down slows down everyone.

`timeit` of the standard library takes each sample. The benchmark tools that take whole series (torch.utils.benchmark
warms up anew before every one, pyperf and pytest-benchmark give each function a stretch or a process of its own)
cannot take turns call by call, nor restore an input that a call has destroyed.
"""

from __future__ import annotations

import random
import statistics
import time
from collections.abc import Mapping
from dataclasses import dataclass
from timeit import Timer

from benchmarks.implementations import Call

SAMPLE_SECONDS = 1e-3
WARM_UP_CALLS = 2
FEWEST_ROUNDS = 7
MOST_ROUNDS = 200


@dataclass(frozen=True)
class Summary:
    """Seconds a call."""

    median: float
    lower_quartile: float
    upper_quartile: float
    rounds: int
    calls: int


def time_in_turn(calls: Mapping[str, Call], seconds: float) -> dict[str, Summary]:
    """Take samples of all calls, round by round, for about so many seconds, but for `FEWEST_ROUNDS` at least.

    Every round has another order, so that nobody always comes after the same neighbour.
    """
    repetitions = {name: _calls_in_a_sample(call) for name, call in calls.items()}
    samples: dict[str, list[float]] = {name: [] for name in calls}
    order = list(calls)
    shuffle = random.Random(0).shuffle
    begun = time.perf_counter()
    for taken in range(MOST_ROUNDS):
        if taken >= FEWEST_ROUNDS and time.perf_counter() - begun > seconds:
            break
        shuffle(order)
        for name in order:
            samples[name].append(_sample(calls[name], repetitions[name]))
    return {name: _summary(samples[name], repetitions[name]) for name in calls}


def _calls_in_a_sample(call: Call) -> int:
    """Enough for the clock; one where every call has to be prepared."""
    once = [_sample(call, 1) for _ in range(WARM_UP_CALLS)][-1]
    return 1 if call.prepare is not None else max(1, round(SAMPLE_SECONDS / once))


def _sample(call: Call, repetitions: int) -> float:
    """Seconds a call, after one that is not timed.

    It finds the memory as its own kind leaves it, as in a training loop. Pages that another implementation has had in
    between may have gone back to the host of a virtual machine, and would cost more than the loss.
    """
    with call.around():
        if call.prepare is not None:
            call.prepare()
        call.run()
        return Timer(call.run, call.prepare or "pass").timeit(repetitions) / repetitions


def _summary(samples: list[float], calls: int) -> Summary:
    lower, median, upper = statistics.quantiles(samples, n=4, method="inclusive")
    return Summary(median, lower, upper, len(samples), calls)
