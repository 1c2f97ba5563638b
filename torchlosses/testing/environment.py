"""What a check must leave as it was: random numbers, threads, warnings filters, the compiler's caches."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager

import torch


@contextmanager
def undisturbed(device: torch.device) -> Iterator[None]:
    """Run a check under fixed random numbers and quiet warnings, and put everything back after it."""
    threads = torch.get_num_threads()
    with _same_random_numbers_afterwards(device), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.manual_seed(0)
        try:
            yield
        finally:
            if torch.get_num_threads() != threads:
                torch.set_num_threads(threads)


def _same_random_numbers_afterwards(device: torch.device) -> AbstractContextManager[None]:
    if device.type == "cpu":
        return torch.random.fork_rng(devices=[])
    return torch.random.fork_rng(devices=[device], device_type=device.type)


def random_state(device: torch.device) -> torch.Tensor:
    """The states of the random numbers of the CPU and of the device."""
    state = torch.get_rng_state()
    return state if device.type == "cpu" else torch.cat([state, torch.get_device_module(device).get_rng_state(device)])


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
