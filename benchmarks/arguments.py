"""The command that measures the peak memory by what is asked of a loss: `python -m benchmarks.arguments`.

Forward and backward, beyond the inputs, in tensors of the input's size, each call in a process of its own; beside it
what torch needs for the same, where torch has it. Times are not taken, so that a busy machine does not matter.
"""

from __future__ import annotations

import shlex
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import torch
import torch.nn.functional as F
import tyro
from torch import Tensor

import torchlosses
from benchmarks import memory
from benchmarks.environment import describe_environment, settings
from benchmarks.errors import BenchmarkError
from benchmarks.implementations import Call
from benchmarks.results import PeakMemory, Results, write_results
from benchmarks.run import ARGUMENTS, USAGE_ERROR

PROGRAM = "python -m benchmarks.arguments"
# More bytes than the largest block that glibc takes from its heap, of which some may be free and warm.
ROWS, CLASSES = 1024, 12000


class Asked(NamedTuple):
    """A call: what the table says of it, the loss's name, its arguments, and whether torch has the same."""

    title: str
    loss: str
    draw: Callable[[], tuple[tuple[Tensor, ...], dict[str, Any]]]
    in_torch: bool = True


def _pair(*, learnt: bool = False, **options: Callable[[], Tensor]) -> Any:
    """Predictions and targets that are numbers."""
    return lambda: ((_logits(), torch.rand(ROWS, CLASSES).requires_grad_(learnt)), _made(options))


def _indices(**options: Any) -> Any:
    return lambda: ((_logits(), torch.randint(CLASSES, (ROWS,))), _made(options))


def _shares(*, learnt: bool = False, **options: Any) -> Any:
    shares = lambda: torch.rand(ROWS, CLASSES).softmax(1).requires_grad_(learnt)  # noqa: E731
    return lambda: ((_logits(), shares()), _made(options))


def _made(options: dict[str, Any]) -> dict[str, Any]:
    return {name: value() if callable(value) else value for name, value in options.items()}


def _logits() -> Tensor:
    return torch.randn(ROWS, CLASSES).requires_grad_()


def _a_row() -> Tensor:
    return torch.rand(ROWS)


def _a_class() -> Tensor:
    return torch.rand(CLASSES)


def _an_element() -> Tensor:
    return torch.rand(ROWS, CLASSES)


ASKED = (
    Asked("mse_loss(x, t)", "mse_loss", _pair()),
    Asked("mse_loss(x, t, weight=w)", "mse_loss", _pair(weight=_an_element)),
    Asked("mse_loss(x, t, sample_weight=s)", "mse_loss", _pair(sample_weight=_a_row), in_torch=False),
    Asked("huber_loss(x, t)", "huber_loss", _pair()),
    Asked("huber_loss(x, t, weight=w)", "huber_loss", _pair(weight=_an_element)),
    Asked("binary_cross_entropy_with_logits(x, t)", "binary_cross_entropy_with_logits", _pair()),
    Asked(
        "binary_cross_entropy_with_logits(x, t, pos_weight=q)",
        "binary_cross_entropy_with_logits",
        _pair(pos_weight=_a_class),
    ),
    Asked("cross_entropy(x, y)", "cross_entropy", _indices()),
    Asked("cross_entropy(x, y, weight=w)", "cross_entropy", _indices(weight=_a_class)),
    Asked("cross_entropy(x, y, label_smoothing=0.1)", "cross_entropy", _indices(label_smoothing=0.1)),
    Asked("cross_entropy(x, y, sample_weight=s)", "cross_entropy", _indices(sample_weight=_a_row), in_torch=False),
    Asked(
        "cross_entropy(x, y, z_loss=1e-4, logit_softcap=30)",
        "cross_entropy",
        _indices(z_loss=1e-4, logit_softcap=30.0),
        in_torch=False,
    ),
    Asked("cross_entropy(x, p)", "cross_entropy", _shares()),
    Asked("mse_loss(x, t), t requires grad", "mse_loss", _pair(learnt=True)),
    Asked(
        "binary_cross_entropy_with_logits(x, t), t requires grad",
        "binary_cross_entropy_with_logits",
        _pair(learnt=True),
    ),
    Asked("cross_entropy(x, p), p requires grad", "cross_entropy", _shares(learnt=True)),
    Asked(
        "cross_entropy(x, y, weight=w), w requires grad",
        "cross_entropy",
        _indices(weight=lambda: _a_class().requires_grad_()),
        in_torch=False,
    ),
    Asked(
        "cross_entropy(x, y, sample_weight=s), s requires grad",
        "cross_entropy",
        _indices(sample_weight=lambda: _a_row().requires_grad_()),
        in_torch=False,
    ),
)


@dataclass(frozen=True)
class Options:
    """Measure the peak memory by what is asked of a loss, and write the results as JSON."""

    out: Annotated[
        Path, tyro.conf.arg(metavar="FILE", help_behavior_hint="(default: benchmarks/results/arguments.json)")
    ] = ARGUMENTS
    """Where to write the results."""


def peak_of(title: str, name: str) -> int:
    """The bytes that a call and its backward need beyond what is there; to be run in a process of its own."""
    torch.manual_seed(0)
    (asked,) = (asked for asked in ASKED if asked.title == title)
    loss = getattr(torchlosses if name == "native" else F, asked.loss)
    arguments, options = asked.draw()
    learnt = [value for value in (*arguments, *options.values()) if isinstance(value, Tensor) and value.requires_grad]

    def run() -> None:
        loss(*arguments, **options).backward()
        for tensor in learnt:
            tensor.grad = None

    return memory.peak(Call(run))


def measure(command: str) -> Results:
    """The peak memory of every call.

    Raises:
        BenchmarkError: This system does not tell it.
    """
    if not memory.is_measurable():
        raise BenchmarkError("this system does not tell the peak memory of a process")
    begun, started = time.monotonic(), datetime.now(timezone.utc)
    peaks = []
    for asked in ASKED:
        for name in ("native", "torch") if asked.in_torch else ("native",):
            extra = memory.in_fresh_process(peak_of, asked.title, name)
            peaks.append(
                PeakMemory(
                    setting="all",
                    loss=asked.title,
                    shape=(ROWS, CLASSES),
                    dtype="float32",
                    passes="forward+backward",
                    implementation=name,
                    extra_bytes=extra,
                    unit_bytes=ROWS * CLASSES * 4,
                )
            )
    return Results(
        started=started.isoformat(timespec="seconds"),
        seconds=round(time.monotonic() - begun, 1),
        command=command,
        quick=False,
        environment=describe_environment(),
        implementations={"native": "torchlosses", "torch": "torch"},
        limits={},
        settings=settings(("all",)),
        timings=[],
        memory=peaks,
    )


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, and return the exit code: 0 done, 2 not possible."""
    arguments = sys.argv[1:] if arguments is None else arguments
    try:
        options = tyro.cli(Options, prog=PROGRAM, args=list(arguments))
        results = measure(shlex.join((*PROGRAM.split(), *arguments)))
    except BenchmarkError as error:
        print(f"error: {error}", file=sys.stderr)
        return USAGE_ERROR
    write_results(results, options.out)
    for peak in results.memory:
        print(f"{peak.units:5.2f}  {peak.implementation:7} {peak.loss}")
    print(f"took {results.seconds:.0f} s; results: {options.out}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
