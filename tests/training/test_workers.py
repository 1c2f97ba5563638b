"""Jobs side by side."""

from __future__ import annotations

import threading
import time

import pytest
import torch

from training.workers import StoppedError, Workers, default_workers


@pytest.mark.parametrize("count", [1, 2, 5])
def test_results_come_in_the_order_of_the_jobs(count: int) -> None:
    def job(number: int) -> int:
        time.sleep(0.002 * (7 - number))
        return number

    assert Workers(count).run([lambda number=number: job(number) for number in range(7)]) == list(range(7))
    assert Workers(count).run([]) == []


def test_two_workers_work_at_the_same_time_each_in_one_thread() -> None:
    meeting = threading.Barrier(2, timeout=20)

    def job() -> int:
        meeting.wait()
        return torch.get_num_threads()

    assert Workers(2).run([job, job]) == [1, 1]


@pytest.mark.parametrize("kind", [ValueError, KeyboardInterrupt])
def test_when_one_fails_the_others_are_stopped_and_the_rest_never_begun(kind: type[BaseException]) -> None:
    workers = Workers(2)
    begun, stopped, late = threading.Event(), threading.Event(), threading.Event()

    def fails() -> None:
        begun.wait(20)
        raise kind("broken")

    def goes_on() -> None:
        begun.set()
        try:
            while True:
                workers.check()
                time.sleep(0.001)
        except StoppedError:
            stopped.set()
            raise

    with pytest.raises(kind, match="broken"):
        workers.run([goes_on, fails, goes_on])
    assert stopped.is_set()
    # The same workers can be used again.
    assert workers.run([late.set]) == [None]
    assert late.is_set()


def test_there_is_a_worker() -> None:
    assert default_workers() >= 1
