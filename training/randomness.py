"""Every random choice of the study, each from its own stream, so that none depends on what ran before it."""

from __future__ import annotations

import numpy as np
import torch

_PURPOSES = ("network", "order", "rotation", "sample", "noise", "bootstrap")


def derived_seed(purpose: str, *keys: int) -> int:
    """A seed for one purpose, one of those above, and the given keys."""
    return int(np.random.SeedSequence((_PURPOSES.index(purpose), *keys)).generate_state(1)[0])


def generator(purpose: str, *keys: int) -> torch.Generator:
    """A CPU generator for one purpose and the given keys."""
    return torch.Generator().manual_seed(derived_seed(purpose, *keys))
