"""Data-parallel training: what the processes of one `torchrun` agree on.

Every process holds all data, takes its share of each global batch, and the gradients are averaged over the processes.
A batch that does not divide evenly is weighted so that the average is that of the whole batch.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor

from training.errors import StudyError


@dataclass(frozen=True)
class Processes:
    """This process among all."""

    rank: int = 0
    count: int = 1

    @property
    def is_first(self) -> bool:
        """Whether this process is the one that writes."""
        return self.rank == 0

    def share(self, start: int, stop: int) -> tuple[int, int, float]:
        """This process's part of the batch [start, stop) and the weight of its mean loss.

        The weights are such that the weighted mean losses, averaged over the processes, give the mean loss of the
        batch. A process for which nothing is left takes the first item with weight 0: it has to take part all the same.
        """
        if self.count == 1:
            return start, stop, 1.0
        size = stop - start
        first = start + size * self.rank // self.count
        last = start + size * (self.rank + 1) // self.count
        if first == last:
            return start, start + 1, 0.0
        return first, last, (last - first) * self.count / size

    def average_gradients(self, parameters: Iterable[Tensor]) -> None:
        """Replace each parameter's gradient by its mean over the processes."""
        if self.count > 1:
            for parameter in parameters:
                if parameter.grad is not None:
                    dist.all_reduce(parameter.grad)
                    parameter.grad /= self.count

    def sum(self, value: Tensor) -> Tensor:
        """The sum of `value` over the processes."""
        if self.count > 1:
            dist.all_reduce(value)
        return value

    def agree(self, decide: Callable[[], Path]) -> Path:
        """What the first process decides, or its StudyError, in every process."""
        if self.count == 1:
            return decide()
        answer: list[Path | StudyError | None] = [None]
        if self.is_first:
            try:
                answer[0] = decide()
            except StudyError as error:
                answer[0] = error
        dist.broadcast_object_list(answer)
        if not isinstance(answer[0], Path):
            raise answer[0] or StudyError("the first process decided nothing")
        return answer[0]

    def wait(self) -> None:
        """Until every process has come this far."""
        if self.count > 1:
            dist.barrier()


@contextmanager
def process_group(device: torch.device) -> Iterator[tuple[torch.device, Processes]]:
    """Join the processes that `torchrun` started, if it did; with GPUs, each takes its own."""
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        yield device, Processes()
        return
    if device.type == "cuda":
        device = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
        torch.cuda.set_device(device)
    dist.init_process_group("nccl" if device.type == "cuda" else "gloo")
    try:
        yield device, Processes(dist.get_rank(), dist.get_world_size())
    finally:
        dist.destroy_process_group()
