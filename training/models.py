"""The trunks, and the head that each objective puts on them."""

from __future__ import annotations

import threading

import torch
from torch import Tensor, nn

from training.randomness import derived_seed

HEAD_INPUTS = 128

_BUILDING = threading.Lock()


class Network(nn.Module):
    """A trunk that turns an image into 128 features, and a linear head."""

    def __init__(self, trunk: nn.Module, outputs: int) -> None:
        super().__init__()
        self.trunk = trunk
        self.head = nn.Linear(HEAD_INPUTS, outputs)

    def forward(self, images: Tensor) -> Tensor:
        """Images of shape (count, 1, 28, 28) to outputs of shape (count, outputs)."""
        return self.head(self.trunk(images))


def mlp() -> nn.Module:
    """Two fully connected layers, 784-256-128."""
    return nn.Sequential(nn.Flatten(), nn.Linear(784, 256), nn.ReLU(), nn.Linear(256, HEAD_INPUTS), nn.ReLU())


def cnn() -> nn.Module:
    """Two convolutions with pooling, and a fully connected layer."""
    return nn.Sequential(
        nn.Conv2d(1, 16, 3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(16, 32, 3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(32 * 7 * 7, HEAD_INPUTS),
        nn.ReLU(),
    )


TRUNKS = {"mlp": mlp, "cnn": cnn}


def build_network(model: str, outputs: int, seed: int, device: torch.device) -> Network:
    """A freshly initialised network; for one seed the trunk starts the same whatever the head."""
    # The initial weights come from torch's global generator, which all threads share.
    with _BUILDING, torch.random.fork_rng(devices=[]):
        torch.manual_seed(derived_seed("network", seed))
        network = Network(TRUNKS[model](), outputs)
    return network.to(device)
