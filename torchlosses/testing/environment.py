"""What a check must leave as it was: random numbers, threads, warnings filters, the compiler's caches."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def undisturbed() -> Iterator[None]:
    """Run a check under fixed random numbers and quiet warnings, and put everything back after it."""
    state, threads = torch.get_rng_state(), torch.get_num_threads()
    torch.manual_seed(0)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        torch.set_rng_state(state)
        if torch.get_num_threads() != threads:
            torch.set_num_threads(threads)


@contextmanager
def fresh_compiler() -> Iterator[None]:
    """Without what was compiled before, and without leaving anything behind."""
    import torch._dynamo

    torch._dynamo.reset()
    try:
        yield
    finally:
        if "torch._dynamo" in sys.modules:
            torch._dynamo.reset()
