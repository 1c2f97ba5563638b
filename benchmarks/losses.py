"""How long our losses take beside torch.nn's: `make bench`.

Both run alternately in one process, so that a machine that slows down slows down both, and the medians are compared.
Before a case is timed, both implementations must give the same loss and gradient.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from rich.console import Console
from rich.table import Table
from torch import Tensor

import torchlosses


@dataclass(frozen=True)
class Case:
    """Two implementations of a loss, and what they are given."""

    name: str
    ours: Callable[[Tensor, Tensor], Tensor]
    builtin: Callable[[Tensor, Tensor], Tensor]
    shape: tuple[int, ...]
    dtype: torch.dtype = torch.float32

    def draw(self) -> tuple[Tensor, Tensor]:
        """An input that requires grad, and a target."""
        generator = torch.Generator().manual_seed(0)
        input = torch.randn(self.shape, generator=generator).to(self.dtype).requires_grad_()
        if self.name.startswith("mse"):
            return input, torch.randn(self.shape, generator=generator).to(self.dtype)
        return input, torch.randint(self.shape[1], (self.shape[0], *self.shape[2:]), generator=generator)


CASES = [
    *(
        Case("cross_entropy", torchlosses.cross_entropy, F.cross_entropy, shape)
        for shape in ((64, 10), (128, 1000), (4096, 1000), (1024, 32000), (512, 128256), (8, 21, 256, 256))
    ),
    Case("cross_entropy", torchlosses.cross_entropy, F.cross_entropy, (1024, 32000), torch.bfloat16),
    *(Case("mse_loss", torchlosses.mse_loss, F.mse_loss, shape) for shape in ((64, 10), (1 << 20,), (1 << 25,))),
]


def check(case: Case) -> None:
    """Raise AssertionError unless both implementations agree."""
    results = []
    for loss in (case.ours, case.builtin):
        input, target = case.draw()
        value = loss(input, target)
        results.append((value.detach().float(), *torch.autograd.grad(value, input)))
    # torch's own accumulation in low precision is what limits the agreement there.
    relative, absolute = (2e-2, 1e-3) if case.dtype.itemsize == 2 else (1e-4, 1e-6)
    torch.testing.assert_close(results[0], results[1], rtol=relative, atol=absolute)


def measure(case: Case, repetitions: int) -> dict[tuple[str, str], float]:
    """Median seconds of the forward alone and of forward and backward, for both implementations."""
    input, target = case.draw()

    def forward(loss: Callable[[Tensor, Tensor], Tensor]) -> None:
        with torch.no_grad():
            loss(input, target)

    def forward_and_backward(loss: Callable[[Tensor, Tensor], Tensor]) -> None:
        input.grad = None
        loss(input, target).backward()

    steps = {
        (step.__name__, name): lambda step=step, loss=loss: step(loss)
        for step in (forward, forward_and_backward)
        for name, loss in (("ours", case.ours), ("builtin", case.builtin))
    }
    seconds: dict[tuple[str, str], list[float]] = {key: [] for key in steps}
    for repetition in range(repetitions + 2):
        for key, call in steps.items():
            begun = time.perf_counter()
            call()
            if repetition >= 2:
                seconds[key].append(time.perf_counter() - begun)
    return {key: statistics.median(values) for key, values in seconds.items()}


def main() -> None:
    """Print a table of all cases."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.losses", description="Our losses beside torch.nn's.")
    parser.add_argument("--repetitions", type=int, default=15, help="timings of each step (default: 15)")
    repetitions = parser.parse_args().repetitions
    if repetitions < 1:
        parser.error(f"argument --repetitions: must be at least 1, not {repetitions}")
    table = Table(title=f"torch {torch.__version__}, {torch.get_num_threads()} threads; medians in ms")
    for column in ("loss", "shape", "dtype", "forward", "torch", "ratio", "forward + backward", "torch", "ratio"):
        table.add_column(column, justify="left" if column in ("loss", "shape", "dtype") else "right")
    for case in CASES:
        check(case)
        small = torch.Size(case.shape).numel() < 1 << 16
        median = measure(case, repetitions * 20 if small else repetitions)
        row = [case.name, "×".join(map(str, case.shape)), str(case.dtype).removeprefix("torch.")]
        for step in ("forward", "forward_and_backward"):
            ours, builtin = median[step, "ours"], median[step, "builtin"]
            row += [f"{ours * 1e3:.3f}", f"{builtin * 1e3:.3f}", f"{builtin / ours:.2f}×"]
        table.add_row(*row)
    Console(width=120).print(table)


if __name__ == "__main__":
    main()
