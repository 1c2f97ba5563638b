"""What is measured: one case a line."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

from benchmarks.results import Dtype, Passes

LossName = Literal["cross_entropy", "mse_loss", "cee_loss", "linear_cross_entropy"]

BOTH: tuple[Passes, ...] = get_args(Passes)
TOGETHER: tuple[Passes, ...] = ("forward+backward",)


@dataclass(frozen=True)
class Case:
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
    """

    loss: LossName
    shape: tuple[int, ...]
    dtype: Dtype = "float32"
    passes: tuple[Passes, ...] = BOTH
    settings: tuple[str, ...] = ("all",)
    memory: bool = False
    quick: bool = False
    without: tuple[str, ...] = ()

    def __str__(self) -> str:
        return f"{self.loss} {'×'.join(map(str, self.shape))} {self.dtype}"


# "all" threads, a "single" one, and all with huge "pages" for every allocation.
SETTINGS = ("all", "single", "pages")
THREADS = ("all", "single")

CASES = (
    Case("cross_entropy", (64, 10), settings=THREADS, quick=True),
    Case("cross_entropy", (128, 1000)),
    Case("cross_entropy", (4096, 1000), settings=THREADS, quick=True, memory=True),
    Case("cross_entropy", (1024, 32000), settings=SETTINGS, memory=True),
    Case("cross_entropy", (512, 128256), settings=("all", "pages"), memory=True),
    Case("cross_entropy", (8, 21, 256, 256), settings=("all", "pages"), memory=True),
    Case("cross_entropy", (1024, 32000), "bfloat16", settings=SETTINGS, memory=True),
    Case("cross_entropy", (4096, 1000), "float16"),
    Case("cross_entropy", (4096, 1000), "float64"),
    Case("mse_loss", (64, 10), settings=THREADS, quick=True),
    Case("mse_loss", (1 << 20,)),
    Case("mse_loss", (1 << 25,), settings=SETTINGS, memory=True),
    Case("mse_loss", (1 << 25,), "bfloat16"),
    Case("cee_loss", (64, 10)),
    Case("cee_loss", (4096, 1000)),
    Case("cee_loss", (1024, 32000), memory=True),
    # How the cost grows with the classes at 1024 rows, and with the rows at 1000 classes.
    *(Case("cross_entropy", (1024, classes), passes=TOGETHER) for classes in (10, 100, 1000, 10_000, 128_256)),
    *(Case("cross_entropy", (rows, 1000), passes=TOGETHER) for rows in (1, 16, 32_768)),
    Case("linear_cross_entropy", (2048, 512, 32000), passes=TOGETHER, memory=True),
    # Half a minute is what torch's chunks of so few rows would take for one call.
    *(
        Case("linear_cross_entropy", (256, 512, classes), passes=TOGETHER, memory=True, without=("chunked",))
        for classes in (1000, 10_000, 32_000, 128_256, 256_000)
    ),
)
