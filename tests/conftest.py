"""What every test shares: which of torch's own warnings are not about this package."""

from __future__ import annotations

import pytest

# torch.func and torch.compile script some of torch's own functions when they are first used.
TORCH_WARNINGS = (
    r"ignore:`torch\.jit\.script` is deprecated\. Please switch to `torch\.compile` or `torch\.export`\.:FutureWarning",
)


def pytest_configure(config: pytest.Config) -> None:
    for warning in TORCH_WARNINGS:
        config.addinivalue_line("filterwarnings", warning)
