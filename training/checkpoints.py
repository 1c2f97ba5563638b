"""How far a network has come, on disk: enough to go on as if nothing had happened.

Each seed has a file of its own, whatever stack it was trained in. No random state is kept: the order of an epoch
follows from the seed and the number of the epoch.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from training.engine import Trainer
from training.files import write_bytes_atomically
from training.results import EpochRecord


@dataclass(frozen=True)
class Checkpoint:
    """One network as it was after some epochs, its optimizer's numbers, and what was measured."""

    parameters: dict[str, Tensor]
    optimizer: dict[str, dict[str, Tensor]]
    initial_loss: float
    epochs: list[EpochRecord]


class DamagedCheckpointError(Exception):
    """A file that holds no network, or one of another shape."""


def save_checkpoint(path: Path, trainer: Trainer, index: int, initial_loss: float, epochs: list[EpochRecord]) -> None:
    """Write one network of the stack; `path` never holds half of it.

    Raises:
        CannotWriteError: the disk is full, for one.
    """
    state = {
        "parameters": {name: parameter.detach()[index].clone() for name, parameter in trainer.parameters.items()},
        "optimizer": {
            name: {
                key: value[index].clone() if value.shape == parameter.shape else value.clone()
                for key, value in trainer.optimizer.state[parameter].items()
            }
            for name, parameter in trainer.parameters.items()
        },
        "initial_loss": initial_loss,
        "epochs": [epoch.model_dump_json() for epoch in epochs],
    }
    # In memory first: torch.save has an error of its own for a full disk.
    content = io.BytesIO()
    torch.save(state, content)
    write_bytes_atomically(path, content.getvalue())


def read_checkpoint(path: Path, shapes: dict[str, torch.Size]) -> Checkpoint | None:
    """Read a network with parameters of these shapes; None where there is no such file.

    Raises:
        DamagedCheckpointError: the file holds something else.
    """
    if not path.exists():
        return None
    try:
        state: Any = torch.load(path, map_location="cpu", weights_only=True)
        found = Checkpoint(
            state["parameters"],
            state["optimizer"],
            float(state["initial_loss"]),
            [EpochRecord.model_validate_json(epoch) for epoch in state["epochs"]],
        )
        if {name: parameter.shape for name, parameter in found.parameters.items()} != shapes:
            raise DamagedCheckpointError("its network has another shape")
        if found.optimizer.keys() != shapes.keys() or not found.epochs:
            raise DamagedCheckpointError("its optimizer is of another network")
    except DamagedCheckpointError:
        raise
    # A damaged file fails in the unpickler, in zip, in torch or on a missing key, each with an error of its own.
    except Exception as error:
        raise DamagedCheckpointError(f"{type(error).__name__}") from error
    return found


def restore(trainer: Trainer, checkpoints: Sequence[Checkpoint]) -> None:
    """Put each network of the stack where it was."""
    state = {}
    for position, (name, parameter) in enumerate(trainer.parameters.items()):
        with torch.no_grad():
            parameter.copy_(torch.stack([checkpoint.parameters[name] for checkpoint in checkpoints]))
        numbers = [checkpoint.optimizer[name] for checkpoint in checkpoints]
        state[position] = {
            key: torch.stack([item[key] for item in numbers]) if value.shape == parameter.shape[1:] else value
            for key, value in numbers[0].items()
        }
    loaded = trainer.optimizer.state_dict()
    trainer.optimizer.load_state_dict({"state": state, "param_groups": loaded["param_groups"]})
