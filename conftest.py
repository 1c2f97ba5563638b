"""What needs a library that may be absent is not collected without it; other libraries' warnings about themselves."""

from __future__ import annotations

import os
from importlib.util import find_spec

import pytest

# For the processes that tests start: several of them run at once, and small tensors gain nothing from threads.
os.environ.setdefault("OMP_NUM_THREADS", "1")

collect_ignore = []
if find_spec("transformers") is None or find_spec("peft") is None or find_spec("accelerate") is None:
    collect_ignore += ["torchlosses/integrations/transformers.py", "docs/language_models.md"]

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
