"""Networks trained side by side, one on each core.

These networks are too small to share out: two threads on one of them wait for each other at every layer, and where
another program takes one of the cores even briefly, both stand still. A network a core is faster, and each network's
result does not depend on how many others are trained beside it.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from typing import TypeVar

import torch

Result = TypeVar("Result")

# Beyond this many the threads of one Python process get in each other's way.
MOST_WORKERS = 4


class StoppedError(Exception):
    """Raised in a worker that is to stop because the run was interrupted or another worker failed."""


class Workers:
    """Runs jobs side by side in threads; torch releases Python's lock while it computes.

    Args:
        count: how many at a time. With more than one, each computes in a single thread.
    """

    def __init__(self, count: int) -> None:
        self.count = count
        self._stopping = threading.Event()

    def run(self, jobs: Sequence[Callable[[], Result]]) -> list[Result]:
        """Do all jobs, begun in order, and return what they return, in order.

        When one raises, or on Ctrl-C, the others are stopped at their next `check`, and then the exception is raised.
        """
        if self.count == 1:
            return [job() for job in jobs]
        with ThreadPoolExecutor(self.count, initializer=torch.set_num_threads, initargs=(1,)) as pool:
            futures = [pool.submit(job) for job in jobs]
            try:
                wait(futures, return_when=FIRST_EXCEPTION)
                for future in futures:
                    if future.done():
                        future.result()
                return [future.result() for future in futures]
            finally:
                self._stopping.set()
                pool.shutdown(wait=True, cancel_futures=True)
                self._stopping.clear()

    def check(self) -> None:
        """To be called often by a job: raises StoppedError where it is to stop."""
        if self._stopping.is_set():
            raise StoppedError


def default_workers() -> int:
    """One a core that this process may use, up to MOST_WORKERS."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(cores, MOST_WORKERS)
