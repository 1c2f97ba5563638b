"""How far a stack of networks has come, on disk: enough to go on as if nothing had happened.

A stack has one file, so that its networks are always equally far. No random state is kept: the order of an epoch
follows from the seed and the number of the epoch.
"""

from __future__ import annotations

import io
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from training.engine import Trainer
from training.files import write_bytes_atomically
from training.results import EpochRecord


@dataclass(frozen=True)
class Progress:
    """What was measured of each network of a stack: its loss before the first update, and its epochs."""

    initial_losses: list[float]
    epochs: list[list[EpochRecord]]


class DamagedCheckpointError(Exception):
    """A file that holds no stack, or one of other networks."""


def save_checkpoint(path: Path, trainer: Trainer, progress: Progress) -> None:
    """Write the networks, their optimizer and what was measured; `path` never holds half of it.

    Raises:
        CannotWriteError: the disk is full, for one.
    """
    state = {
        "parameters": {name: parameter.detach() for name, parameter in trainer.parameters.items()},
        "optimizer": trainer.optimizer.state_dict(),
        "initial_losses": progress.initial_losses,
        "epochs": [[epoch.model_dump_json() for epoch in own] for own in progress.epochs],
    }
    # In memory first: torch.save has an error of its own for a full disk.
    content = io.BytesIO()
    torch.save(state, content)
    write_bytes_atomically(path, content.getvalue())


def load_checkpoint(path: Path, trainer: Trainer) -> Progress | None:
    """Put the stack where it was; None where there is no such file, and then nothing is changed.

    Raises:
        DamagedCheckpointError: the file holds something else; the trainer is not to be used any more.
    """
    if not path.exists():
        return None
    try:
        state: Any = torch.load(path, map_location=trainer.settings.device, weights_only=True)
        progress = Progress(
            [float(loss) for loss in state["initial_losses"]],
            [[EpochRecord.model_validate_json(epoch) for epoch in own] for own in state["epochs"]],
        )
        shapes = {name: parameter.shape for name, parameter in state["parameters"].items()}
        if shapes != {name: parameter.shape for name, parameter in trainer.parameters.items()}:
            raise DamagedCheckpointError("its networks have other shapes")
        if not len(progress.initial_losses) == len(progress.epochs) == len(trainer.seeds):
            raise DamagedCheckpointError("it is of another number of networks")
        with torch.no_grad():
            for name, parameter in trainer.parameters.items():
                parameter.copy_(state["parameters"][name])
        trainer.optimizer.load_state_dict(state["optimizer"])
    except DamagedCheckpointError:
        raise
    # A damaged file fails in the unpickler, in zip, in torch or on a missing key, each with an error of its own.
    except Exception as error:
        raise DamagedCheckpointError(type(error).__name__) from error
    return progress
