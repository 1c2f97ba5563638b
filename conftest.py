"""What needs a library that may be absent is left out without it, by name; libraries' warnings about themselves."""

from __future__ import annotations

import os
from importlib.util import find_spec

import pytest

# For the processes that tests start: several of them run at once, and small tensors gain nothing from threads.
os.environ.setdefault("OMP_NUM_THREADS", "1")

# What cannot be imported without a library.
NEEDS = {
    "accelerate": ("torchlosses/integrations/transformers.py", "docs/language_models.md"),
    "peft": ("torchlosses/integrations/transformers.py", "docs/language_models.md"),
    "torchvision": ("tests/training",),
    "transformers": ("torchlosses/integrations/transformers.py", "docs/language_models.md"),
}
MISSING = {library: paths for library, paths in NEEDS.items() if find_spec(library) is None}
collect_ignore = sorted({path for paths in MISSING.values() for path in paths})

LIBRARY_WARNINGS = (
    # PEFT asks Transformers for what Transformers has renamed.
    r"ignore:.*is deprecated and will be removed in v6:FutureWarning",
    # The compiler looks at the gradient of each tensor that it is given.
    r"ignore:The \.grad attribute of a Tensor that is not a leaf:UserWarning",
)


def pytest_configure(config: pytest.Config) -> None:
    """Add the warnings to those that are no errors."""
    for warning in LIBRARY_WARNINGS:
        config.addinivalue_line("filterwarnings", warning)


def pytest_report_header() -> list[str]:
    """Say what is not collected."""
    return [f"left out without {library}: {', '.join(paths)}" for library, paths in MISSING.items()]
