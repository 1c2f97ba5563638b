"""What every test shares: which of torch's own warnings are not about this package, and how many threads it gets."""

from __future__ import annotations

import gc
from collections.abc import Iterator

import hypothesis
import pytest
import torch

from torchlosses import kernels

# torch.func and torch.compile script some of torch's own functions when they are first used.
TORCH_WARNINGS = (
    r"ignore:`torch\.jit\.script(_method)?` is deprecated\. Please switch to `torch\.compile` or `torch\.export`\.",
    # torch 2.10, of the first profile and the first program loaded in a process.
    r"ignore:Warning. Profiler clears events at the end of each cycle",
    r"ignore:The given buffer is not writable:UserWarning:torch",
    # torch 2.10, of torch.export's run_decompositions.
    r"ignore:`isinstance\(treespec, LeafSpec\)` is deprecated:FutureWarning",
)


# How long an example takes says more about the machine than about the code.
hypothesis.settings.register_profile("untimed", deadline=None)
hypothesis.settings.load_profile("untimed")


def pytest_configure(config: pytest.Config) -> None:
    for warning in TORCH_WARNINGS:
        config.addinivalue_line("filterwarnings", warning)
    # Small tensors gain nothing from threads, and several test processes at once would wait for each other's.
    torch.set_num_threads(1)


def pytest_collection_finish() -> None:
    # What is imported and collected by now stays; to look for garbage in it again and again takes a while.
    gc.collect()
    gc.freeze()


@pytest.fixture(params=kernels.available())
def each_backend(request: pytest.FixtureRequest) -> Iterator[str]:
    """Runs a test once on every backend that is installed."""
    with kernels.use(request.param):
        yield request.param


@pytest.fixture
def eager_backend() -> Iterator[None]:
    """For tests of what the operators in PyTorch operations do inside."""
    with kernels.use("eager"):
        yield
