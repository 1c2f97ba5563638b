"""The training loop: one network, one objective, one seed."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from functools import partial
from itertools import count

import torch
from torch import Tensor, nn

from training.distributed import Processes
from training.models import Network, build_network
from training.objectives import Objective
from training.randomness import generator

EVALUATION_BATCH = 5000
REPORT_EVERY = 50

Report = Callable[[int, float], None]
MakeOptimizer = Callable[[Iterable[nn.Parameter]], torch.optim.Optimizer]


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
    """Trains one freshly built network for one objective.

    Args:
        settings: how to train.
        model: the name of the trunk.
        objective: what to train for.
        seed: fixes the initial weights and the order of the images.
        optimizer: makes the optimizer from the parameters; Adam with the settings' learning rate where it is None.
    """

    def __init__(
        self,
        settings: Settings,
        model: str,
        objective: Objective,
        seed: int,
        optimizer: MakeOptimizer | None = None,
    ) -> None:
        self.settings = settings
        self.objective = objective
        self.seed = seed
        self.network: Network = build_network(model, objective.outputs, seed, settings.device)
        make_optimizer = optimizer or partial(torch.optim.Adam, lr=settings.learning_rate, fused=True)
        self.optimizer = make_optimizer(self.network.parameters())
        self._replica = settings.processes.wrap(self.network)
        self._batch_loss: Callable[[Tensor, Tensor], Tensor] = self._plain_batch_loss
        if settings.compile:
            # Each network is compiled anew; without this the compiler gives up after a few.
            torch.compiler.reset()
            self._batch_loss = torch.compile(self._plain_batch_loss)

    @property
    def parameters(self) -> int:
        """The number of weights and biases."""
        return sum(parameter.numel() for parameter in self.network.parameters())

    def _plain_batch_loss(self, images: Tensor, targets: Tensor) -> Tensor:
        with torch.autocast(self.settings.device.type, torch.bfloat16, enabled=self.settings.amp):
            return self.objective.loss(self._replica(images), targets)

    def order(self, epoch: int, count: int) -> Tensor:
        """The order of the images in an epoch: it depends on the seed and the epoch, on no objective and no history."""
        return torch.randperm(count, generator=generator("order", self.seed, epoch)).to(self.settings.device)

    def step(self, images: Tensor, targets: Tensor, weight: float = 1.0) -> Tensor:
        """One update; returns the mean loss before it."""
        loss = self._batch_loss(images, targets)
        self.optimizer.zero_grad()
        (loss if weight == 1.0 else loss * weight).backward()
        self.optimizer.step()
        return loss.detach()

    def train_epoch(self, images: Tensor, targets: Tensor, epoch: int, report: Report | None = None) -> float:
        """One pass over all images; returns the mean loss per image.

        Args:
            images: all training images.
            targets: all encoded targets.
            epoch: counts from 1.
            report: called now and then with the number of steps done since the last call, and the batch's loss.
        """
        settings, image_count = self.settings, len(images)
        order = self.order(epoch, image_count)
        total = torch.zeros((), dtype=torch.float64, device=settings.device)
        unreported = 0
        for start in range(0, image_count, settings.batch_size):
            stop = min(start + settings.batch_size, image_count)
            first, last, weight = settings.processes.share(start, stop)
            indices = order[first:last]
            loss = self.step(images.index_select(0, indices), targets.index_select(0, indices), weight)
            total.add_(loss, alpha=weight * (stop - start))
            unreported += 1
            if report is not None and (unreported == REPORT_EVERY or stop == image_count):
                report(unreported, loss.item())
                unreported = 0
        return settings.processes.sum(total).item() / (image_count * settings.processes.count)

    def batches(self, images: Tensor, targets: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
        """The batches of epoch after epoch without end, for training that is counted in steps."""
        for epoch in count(1):
            for indices in self.order(epoch, len(images)).split(self.settings.batch_size):
                yield images.index_select(0, indices), targets.index_select(0, indices)

    def predict(self, images: Tensor) -> Tensor:
        """The network's outputs, float32, for all images."""
        return predict(self.network, images, amp=self.settings.amp)


@torch.no_grad()
def predict(network: nn.Module, images: Tensor, *, amp: bool = False) -> Tensor:
    """The outputs of `network`, float32, for all images in large batches."""
    was_training = network.training
    network.eval()
    with torch.autocast(images.device.type, torch.bfloat16, enabled=amp):
        outputs = torch.cat([network(batch).float() for batch in images.split(EVALUATION_BATCH)])
    network.train(was_training)
    return outputs
