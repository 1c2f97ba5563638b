"""The checks, one file a subject; importing this package fills `torchlosses.testing.CHECKS`."""

from torchlosses.testing.checks import (  # noqa: F401
    values,
)
