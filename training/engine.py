"""The training loop: one objective, from several seeds side by side.

The networks of all seeds are one stack: each parameter holds theirs along its first dimension, torch.func.vmap runs
network and loss over it, and the products of all become one batched product. Nothing mixes: Adam works element by
element, and each seed has its own first weights and its own order of the images. So a seed ends where it would have
ended alone, but for rounding where the products of another stack are computed in another order.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import count

import torch
from torch import Tensor
from torch.func import functional_call, vmap

from training.distributed import Processes
from training.models import build_network
from training.objectives import Objective
from training.randomness import generator

EVALUATION_BATCH = 5000
REPORT_EVERY = 50

Report = Callable[[int, float], None]
MakeOptimizer = Callable[[Iterable[Tensor]], torch.optim.Optimizer]


@dataclass(frozen=True)
class Settings:
    """What the loop needs to know beyond the data."""

    batch_size: int
    learning_rate: float
    device: torch.device
    amp: bool = False
    compile: bool = False
    processes: Processes = field(default_factory=Processes)


class Trainer:
    """Trains a freshly built network from each seed for one objective.

    Args:
        settings: how to train.
        model: the name of the trunk.
        objective: what to train for.
        seeds: each fixes the initial weights and the order of the images of one network.
        optimizer: makes the optimizer from the parameters; Adam with the settings' learning rate where it is None.
        dtype: of the parameters.
    """

    def __init__(
        self,
        settings: Settings,
        model: str,
        objective: Objective,
        seeds: Sequence[int],
        optimizer: MakeOptimizer | None = None,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        self.settings = settings
        self.objective = objective
        self.seeds = tuple(seeds)
        networks = [build_network(model, objective.outputs, seed, settings.device).to(dtype) for seed in self.seeds]
        # Its own parameters are never used: every call brings those of one seed.
        self._network = networks[0].requires_grad_(False)
        self.parameters: dict[str, Tensor] = {
            name: torch.stack([network.get_parameter(name).detach() for network in networks]).requires_grad_()
            for name, _ in self._network.named_parameters()
        }
        make_optimizer = optimizer or partial(torch.optim.Adam, lr=settings.learning_rate, fused=True)
        self.optimizer = make_optimizer(self.parameters.values())
        self._losses: Callable[..., Tensor] = vmap(self._loss)
        if settings.compile:
            # Each stack is compiled anew; without this the compiler gives up after a few.
            torch.compiler.reset()
            self._losses = torch.compile(self._losses)

    @property
    def parameter_count(self) -> int:
        """The number of weights and biases of one network."""
        return sum(parameter[0].numel() for parameter in self.parameters.values())

    def _loss(self, parameters: dict[str, Tensor], images: Tensor, targets: Tensor) -> Tensor:
        """The mean loss of one network over its batch."""
        with torch.autocast(self.settings.device.type, torch.bfloat16, enabled=self.settings.amp):
            return self.objective.loss(functional_call(self._network, parameters, (images,)), targets)

    @torch.no_grad()
    def losses(self, images: Tensor, targets: Tensor) -> Tensor:
        """The mean loss of each network on its own batch, of shape (seeds, batch, ...), without an update."""
        return self._losses(self.parameters, images, targets)

    def step(self, images: Tensor, targets: Tensor, weight: float = 1.0) -> Tensor:
        """One update of every network on its own batch, of shape (seeds, batch, ...); the mean losses before it."""
        losses = self._losses(self.parameters, images, targets)
        self.optimizer.zero_grad()
        losses.sum().mul(weight).backward()
        self.settings.processes.average_gradients(self.parameters.values())
        self.optimizer.step()
        return losses.detach()

    def orders(self, epoch: int, count: int) -> Tensor:
        """The order of the images in an epoch, for each seed: no objective and no history changes it."""
        orders = [torch.randperm(count, generator=generator("order", seed, epoch)) for seed in self.seeds]
        return torch.stack(orders).to(self.settings.device)

    def train_epoch(self, images: Tensor, targets: Tensor, epoch: int, report: Report | None = None) -> list[float]:
        """One pass over all images; returns each network's mean loss per image.

        Args:
            images: all training images.
            targets: all encoded targets.
            epoch: counts from 1.
            report: called now and then with the number of updates of all networks since the last call, and a loss.
        """
        settings, image_count = self.settings, len(images)
        orders = self.orders(epoch, image_count)
        totals = torch.zeros(len(self.seeds), dtype=torch.float64, device=settings.device)
        unreported = 0
        for start in range(0, image_count, settings.batch_size):
            stop = min(start + settings.batch_size, image_count)
            first, last, weight = settings.processes.share(start, stop)
            losses = self.step(*_gather(orders[:, first:last], images, targets), weight)
            totals.add_(losses, alpha=weight * (stop - start))
            unreported += 1
            if report is not None and (unreported == REPORT_EVERY or stop == image_count):
                report(unreported * len(self.seeds), losses[0].item())
                unreported = 0
        return (settings.processes.sum(totals) / (image_count * settings.processes.count)).tolist()

    def batches(self, images: Tensor, targets: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
        """The batches of epoch after epoch without end, for training that is counted in steps."""
        for epoch in count(1):
            for indices in self.orders(epoch, len(images)).split(self.settings.batch_size, dim=1):
                yield _gather(indices, images, targets)

    def first_losses(self, images: Tensor, targets: Tensor) -> list[float]:
        """Each network's mean loss on its first batch, before any update."""
        return self.losses(*next(self.batches(images, targets))).tolist()

    @torch.no_grad()
    def predict(self, images: Tensor) -> Tensor:
        """The networks' outputs, float32 of shape (seeds, count, outputs), for all images in large batches."""
        predictions = []
        with torch.autocast(images.device.type, torch.bfloat16, enabled=self.settings.amp):
            for index in range(len(self.seeds)):
                own = {name: parameter[index] for name, parameter in self.parameters.items()}
                batches = [functional_call(self._network, own, (batch,)) for batch in images.split(EVALUATION_BATCH)]
                predictions.append(torch.cat(batches).float())
        return torch.stack(predictions)


def _gather(indices: Tensor, images: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """The images and targets at `indices`, of shape (seeds, batch)."""
    flat = indices.flatten()
    return images.index_select(0, flat).unflatten(0, indices.shape), targets.index_select(0, flat).unflatten(
        0, indices.shape
    )
