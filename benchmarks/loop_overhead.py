"""How much longer an epoch of the study takes than a bare loop: `python -m benchmarks.loop_overhead`.

The bare loop is what one would write by hand with torch.nn's losses: the same network, batches, data on the device.
Epochs of both alternate, so that a machine that slows down slows down both; the medians are compared.
"""

from __future__ import annotations

import argparse
import statistics
import time

import torch
from torch import nn

from training.data import load_images
from training.engine import Settings, Trainer
from training.models import mlp
from training.objectives import OBJECTIVES, loss_library
from training.tasks import digit_data, digit_task

BUILTIN = {"cross-entropy": nn.CrossEntropyLoss, "mse-raw": nn.MSELoss}


class BareLoop:
    """A network and its optimizer, trained by the plainest loop."""

    def __init__(self, loss: nn.Module, batch_size: int) -> None:
        torch.manual_seed(0)
        self.network = nn.Sequential(mlp(), nn.Linear(128, 10))
        self.optimizer = torch.optim.Adam(self.network.parameters(), lr=1e-3)
        self.loss = loss
        self.batch_size = batch_size

    def epoch(self, images: torch.Tensor, targets: torch.Tensor) -> None:
        """One pass over all images in a fresh order."""
        for indices in torch.randperm(len(images)).split(self.batch_size):
            loss = self.loss(self.network(images[indices]), targets[indices])
            self.optimizer.zero_grad()
            loss.backward()
            self.optimizer.step()


def measure(name: str, implementation: str, batch_size: int, repetitions: int) -> tuple[float, float]:
    """The median seconds of an epoch, of the study and of the bare loop."""
    device = torch.device("cpu")
    data = digit_data(load_images("mnist", None), device)
    objective = OBJECTIVES[name](digit_task(device), loss_library(implementation))
    targets = objective.encode(data.train_values)
    trainer = Trainer(Settings(batch_size, 1e-3, device), "mlp", objective, seeds=[0])
    bare = BareLoop(BUILTIN[name](), batch_size)
    seconds: tuple[list[float], list[float]] = ([], [])
    for repetition in range(repetitions + 1):
        loops = (
            lambda epoch=repetition: trainer.train_epoch(data.train_images, targets, epoch, lambda steps, loss: None),
            lambda: bare.epoch(data.train_images, targets),
        )
        for loop, taken in zip(loops, seconds, strict=True):
            begun = time.perf_counter()
            loop()
            taken.append(time.perf_counter() - begun)
    # The first epoch of each warms up.
    study, bare_loop = (statistics.median(taken[1:]) for taken in seconds)
    return study, bare_loop


def main() -> None:
    """Measure and print a line per objective and implementation."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--repetitions", type=int, default=7)
    options = parser.parse_args()
    print(
        f"{torch.get_num_threads()} threads, batch size {options.batch_size}, medians of {options.repetitions} epochs"
    )
    for name in BUILTIN:
        for implementation in ("torchlosses", "torch"):
            study, bare = measure(name, implementation, options.batch_size, options.repetitions)
            print(f"{name:14} {implementation:12} study {study:.3f} s, bare {bare:.3f} s, ratio {study / bare:.3f}")


if __name__ == "__main__":
    main()
