"""How far a network has come, on disk: enough to go on as if nothing had happened.

No random state is kept: the order of an epoch follows from the seed and the number of the epoch.
"""

from __future__ import annotations

from pathlib import Path

import torch

from training.engine import Trainer
from training.files import atomic_path
from training.results import EpochRecord


def save_checkpoint(path: Path, trainer: Trainer, epochs: list[EpochRecord]) -> None:
    """Write the network, its optimizer and the epochs so far; `path` never holds half of it."""
    state = {
        "network": trainer.network.state_dict(),
        "optimizer": trainer.optimizer.state_dict(),
        "epochs": [epoch.model_dump_json() for epoch in epochs],
    }
    with atomic_path(path) as temporary:
        torch.save(state, temporary)


def load_checkpoint(path: Path, trainer: Trainer) -> list[EpochRecord]:
    """Put `trainer` where it was and return the epochs it had done; none where there is no checkpoint."""
    if not path.exists():
        return []
    state = torch.load(path, map_location=trainer.settings.device, weights_only=True)
    trainer.network.load_state_dict(state["network"])
    trainer.optimizer.load_state_dict(state["optimizer"])
    return [EpochRecord.model_validate_json(epoch) for epoch in state["epochs"]]
