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
# A call this long is neither warmed up twice nor led in, and gets fewer rounds: seconds hide what these are for.
LONG_CALL_SECONDS = 0.5
FEWEST_ROUNDS_OF_LONG_CALLS = 5
MOST_ROUNDS = 200


@dataclass(frozen=True)
class Summary:
    """Seconds a call."""

    median: float
    lower_quartile: float
    upper_quartile: float
    rounds: int
    calls: int


@dataclass(frozen=True)
class _Plan:
    """How a call is sampled: so many times in a row, after one that is not timed, unless it is long."""

    repetitions: int
    is_long: bool


def time_in_turn(calls: Mapping[str, Call], seconds: float) -> dict[str, Summary]:
    """Take samples of all calls, round by round, for about so many seconds, but for `FEWEST_ROUNDS` at least.

    Every round has another order, so that nobody always comes after the same neighbour.
    """
    plans = {name: _plan(call) for name, call in calls.items()}
    fewest = FEWEST_ROUNDS_OF_LONG_CALLS if any(plan.is_long for plan in plans.values()) else FEWEST_ROUNDS
    samples: dict[str, list[float]] = {name: [] for name in calls}
    order = list(calls)
    shuffle = random.Random(0).shuffle
    begun = time.perf_counter()
    for taken in range(MOST_ROUNDS):
        if taken >= fewest and time.perf_counter() - begun > seconds:
            break
        shuffle(order)
        for name in order:
            samples[name].append(_sample(calls[name], plans[name]))
    return {name: _summary(samples[name], plans[name].repetitions) for name in calls}


def _plan(call: Call) -> _Plan:
    """Enough repetitions for the clock; one where every call has to be prepared."""
    alone = _Plan(1, is_long=True)
    once = SAMPLE_SECONDS
    for _ in range(WARM_UP_CALLS):
        once = _sample(call, alone)
        if once > LONG_CALL_SECONDS:
            return alone
    return _Plan(1 if call.prepare is not None else max(1, round(SAMPLE_SECONDS / once)), is_long=False)


def _sample(call: Call, plan: _Plan) -> float:
    """Seconds a call.

    The one that leads in finds the memory as others left it, the timed ones as their own kind does, as in a training
    loop. Pages that another implementation has had in between may have gone back to the host of a virtual machine, and
    would cost more than the loss.
    """
    with call.around():
        if not plan.is_long:
            if call.prepare is not None:
                call.prepare()
            call.run()
        return Timer(call.run, call.prepare or "pass").timeit(plan.repetitions) / plan.repetitions


def _summary(samples: list[float], calls: int) -> Summary:
    lower, median, upper = statistics.quantiles(samples, n=4, method="inclusive")
    return Summary(median, lower, upper, len(samples), calls)
