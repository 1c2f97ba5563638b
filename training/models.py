"""The trunks, and the head that each objective puts on them."""

from __future__ import annotations

import math
import threading

import torch
from torch import Tensor, nn

from training.randomness import derived_seed

HEAD_INPUTS = 128

_BUILDING = threading.Lock()


class Linear(nn.Module):
    """y = x W + b, initialised as torch.nn.Linear.

    W has the shape (inputs, outputs): so the gradients of many stacked networks' weights come out of their batched
    products in the order in which they are kept, and need no copy.
    """

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        bound = 1 / math.sqrt(inputs)
        self.weight = nn.Parameter(torch.empty(inputs, outputs).uniform_(-bound, bound))
        self.bias = nn.Parameter(torch.empty(outputs).uniform_(-bound, bound))

    def forward(self, features: Tensor) -> Tensor:
        """Features of shape (count, inputs) to (count, outputs)."""
        return torch.addmm(self.bias, features, self.weight)


class Network(nn.Module):
    """A trunk that turns an image into 128 features, and a linear head."""

    def __init__(self, trunk: nn.Module, outputs: int) -> None:
        super().__init__()
        self.trunk = trunk
        self.head = Linear(HEAD_INPUTS, outputs)

    def forward(self, images: Tensor) -> Tensor:
        """Images of shape (count, 1, 28, 28) to outputs of shape (count, outputs)."""
        return self.head(self.trunk(images))


def mlp() -> nn.Module:
    """Two fully connected layers, 784-256-128."""
    return nn.Sequential(nn.Flatten(), Linear(784, 256), nn.ReLU(), Linear(256, HEAD_INPUTS), nn.ReLU())


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
        Linear(32 * 7 * 7, HEAD_INPUTS),
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
