"""What is measured: one case a line."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

from benchmarks.results import Dtype, Passes

LossName = Literal[
    "cross_entropy",
    "cross_entropy_hessian",
    "mse_loss",
    "huber_loss",
    "smooth_l1_loss",
    "binary_cross_entropy_with_logits",
    "log_probs",
    "cee_loss",
    "linear_cross_entropy",
]

BOTH: tuple[Passes, ...] = get_args(Passes)
TOGETHER: tuple[Passes, ...] = ("forward+backward",)


@dataclass(frozen=True)
class Workload:
    """A loss on inputs of one shape and dtype.

    Args:
        loss: a key of `problems.PROBLEMS`.
        shape: of the input; of a linear loss (rows, features, classes).
        dtype: of the input.
        passes: what is called.
        settings: names from `SETTINGS` under which times are taken.
        memory: whether the peak memory is measured too, with all threads and the default allocator.
        quick: whether it is part of a quick run.
        without: implementations that are left out.
        only: implementations and limits that are measured; all that can be if it is empty.
    """

    loss: LossName
    shape: tuple[int, ...]
    dtype: Dtype = "float32"
    passes: tuple[Passes, ...] = BOTH
    settings: tuple[str, ...] = ("all",)
    memory: bool = False
    quick: bool = False
    without: tuple[str, ...] = ()
    only: tuple[str, ...] = ()

    def asks_for(self, name: str) -> bool:
        """Whether this implementation or limit is to be measured."""
        return name not in self.without and (not self.only or name in self.only)

    def __str__(self) -> str:
        return f"{self.loss} {'×'.join(map(str, self.shape))} {self.dtype}"


# "all" threads, a "single" one, and all with huge "pages" for every allocation.
SETTINGS = ("all", "single", "pages")
THREADS = ("all", "single")

CASES = (
    Workload("cross_entropy", (64, 10), settings=THREADS, quick=True),
    Workload("cross_entropy", (128, 1000)),
    Workload("cross_entropy", (4096, 1000), settings=THREADS, quick=True, memory=True),
    Workload("cross_entropy", (1024, 32000), settings=SETTINGS, memory=True),
    Workload("cross_entropy", (512, 128256), settings=("all", "pages"), memory=True),
    Workload("cross_entropy", (8, 21, 256, 256), settings=("all", "pages"), memory=True),
    Workload("cross_entropy", (1024, 32000), "bfloat16", settings=SETTINGS, memory=True),
    Workload("cross_entropy", (4096, 1000), "float16"),
    Workload("cross_entropy", (4096, 1000), "float64"),
    Workload("mse_loss", (64, 10), settings=THREADS, quick=True),
    Workload("mse_loss", (1 << 20,)),
    Workload("mse_loss", (1 << 25,), settings=SETTINGS, memory=True),
    Workload("mse_loss", (1 << 25,), "bfloat16"),
    *(
        Workload(
            loss, shape, passes=TOGETHER, memory=shape == (1 << 25,) and loss == "binary_cross_entropy_with_logits"
        )
        for loss in ("huber_loss", "smooth_l1_loss", "binary_cross_entropy_with_logits")
        for shape in ((64, 10), (1 << 25,))
    ),
    Workload("log_probs", (64, 10)),
    Workload("log_probs", (4096, 1000)),
    Workload("log_probs", (1024, 32000), memory=True),
    Workload("log_probs", (1024, 32000), "bfloat16"),
    Workload("cee_loss", (64, 10)),
    Workload("cee_loss", (4096, 1000)),
    Workload("cee_loss", (1024, 32000), memory=True),
    Workload("cross_entropy_hessian", (2048, 1000), passes=TOGETHER),
    Workload("linear_cross_entropy", (2048, 512, 32000), passes=TOGETHER, memory=True),
)
