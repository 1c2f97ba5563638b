"""What every test shares: which of torch's own warnings are not about this package, and how many threads it gets."""

from __future__ import annotations

import hypothesis
import pytest
import torch

# torch.func and torch.compile script some of torch's own functions when they are first used.
TORCH_WARNINGS = (
    r"ignore:`torch\.jit\.script` is deprecated\. Please switch to `torch\.compile` or `torch\.export`\.",
)


# How long an example takes says more about the machine than about the code.
hypothesis.settings.register_profile("untimed", deadline=None)
hypothesis.settings.load_profile("untimed")


def pytest_configure(config: pytest.Config) -> None:
    for warning in TORCH_WARNINGS:
        config.addinivalue_line("filterwarnings", warning)
    # Small tensors gain nothing from threads, and several test processes at once would wait for each other's.
    torch.set_num_threads(1)
