"""The figures to reach, one a line, and what the results say about each."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NamedTuple

from benchmarks.lookup import Lookup, Subject
from benchmarks.results import Dtype, Passes


@dataclass(frozen=True)
class Bound:
    """At least so many times as fast as `against`, or at most so much of its time.

    `at_least` and `at_most` are both ratios; exactly one is given.
    """

    against: str
    at_least: float | None = None
    at_most: float | None = None


class Reached(NamedTuple):
    """A bound and the measured ratio; None where it was not measured."""

    bound: Bound
    ratio: float | None

    @property
    def reached(self) -> bool:
        """Whether it was measured and is within the bound."""
        if self.ratio is None:
            return False
        if self.bound.at_least is not None:
            return self.ratio >= self.bound.at_least
        return self.bound.at_most is not None and self.ratio <= self.bound.at_most


@dataclass(frozen=True)
class Goal:
    """How fast an implementation is to be: `torch` and `compiled` times as fast, `limit` of the time of a limit."""

    loss: str
    shape: tuple[int, ...]
    passes: Passes = "forward+backward"
    torch: float | None = None
    compiled: float | None = None
    limit: tuple[str, float] | None = None
    dtype: Dtype = "float32"
    implementation: str = "native"
    setting: str = "all"

    @property
    def subject(self) -> Subject:
        """What it is about."""
        return Subject(self.loss, self.shape, self.dtype, self.passes)

    def measured(self, results: Lookup) -> tuple[Reached | None, Reached | None, Reached | None]:
        """The bounds against torch, torch.compile and a limit, each with what the results say."""
        limit = None if self.limit is None else Bound(self.limit[0], at_most=self.limit[1])
        return (
            self._reached(None if self.torch is None else Bound("torch", at_least=self.torch), results),
            self._reached(None if self.compiled is None else Bound("compiled", at_least=self.compiled), results),
            self._reached(limit, results),
        )

    def _reached(self, bound: Bound | None, results: Lookup) -> Reached | None:
        if bound is None:
            return None
        ratio = results.ratio(self.setting, self.subject, self.implementation, bound.against)
        if ratio is not None and bound.at_most is not None:
            ratio = 1 / ratio
        return Reached(bound, ratio)


@dataclass(frozen=True)
class MemoryGoal:
    """How many tensors of (rows, classes) a call may need at most; a hundredth stands for something in each row."""

    loss: str
    shape: tuple[int, ...]
    passes: Passes
    at_most: float
    words: str
    implementation: str = "native"
    dtype: Dtype = field(default="float32", kw_only=True)

    @property
    def subject(self) -> Subject:
        """What it is about."""
        return Subject(self.loss, self.shape, self.dtype, self.passes)

    def measured(self, results: Lookup) -> Reached:
        """The bound with what the results say."""
        found = results.memory("all", self.subject, self.implementation)
        return Reached(Bound("input", at_most=self.at_most), None if found is None else found.units)


LARGE = ((1024, 32000), (512, 128256))
IMAGES = (8, 21, 256, 256)
LINEAR = (2048, 512, 32000)
ELEMENTWISE = ("huber_loss", "smooth_l1_loss", "binary_cross_entropy_with_logits")
# The gradients by input and weight and 48 MB beside them, in tensors of the size of the logits.
LEAN = ((2048 + 32000) * 512 * 4 + 48e6) / (2048 * 32000 * 4)

GOALS = (
    Goal("cross_entropy", (1024, 32000), "forward", torch=6, compiled=6, limit=("exp", 0.7)),
    *(Goal("cross_entropy", shape, torch=8, compiled=4, limit=("clone", 0.7)) for shape in LARGE),
    *(Goal("cross_entropy", shape, torch=2.5, compiled=3, setting="pages") for shape in LARGE),
    *(Goal("cross_entropy", shape, torch=8, implementation="inplace") for shape in LARGE),
    Goal("cross_entropy", (4096, 1000), torch=4, compiled=3),
    Goal("cross_entropy", (128, 1000), torch=1.8, compiled=3),
    Goal("cross_entropy", (64, 10), torch=1.05, compiled=2),
    Goal("mse_loss", (64, 10), torch=1, compiled=2),
    *(Goal(loss, (64, 10), torch=0.952) for loss in ELEMENTWISE),
    Goal("cross_entropy", (1024, 32000), torch=4.5, compiled=4, dtype="bfloat16"),
    Goal("cross_entropy", IMAGES, torch=5, compiled=3),
    Goal("mse_loss", (1 << 25,), "forward", torch=6, compiled=6, limit=("dot", 1.15)),
    Goal("mse_loss", (1 << 25,), torch=4.5, compiled=2.5, limit=("clone", 0.8)),
    *(Goal(loss, (1 << 25,), torch=3) for loss in ELEMENTWISE),
    Goal("cross_entropy_hessian", (2048, 1000), torch=1),
    # The operators in PyTorch operations stay ahead from 4096×1000 up.
    *(Goal("cross_entropy", shape, torch=1, implementation="eager") for shape in ((4096, 1000), *LARGE)),
    Goal("mse_loss", (1 << 25,), torch=1, implementation="eager"),
    Goal("linear_cross_entropy", LINEAR, torch=1, limit=("products", 1.15)),
    Goal("linear_cross_entropy", LINEAR, limit=("chunked", 0.667)),
)

MEMORY_GOALS = (
    *(
        goal
        for shape in LARGE
        for goal in (
            MemoryGoal("cross_entropy", shape, "forward", 0.01, "O(rows)"),
            MemoryGoal("cross_entropy", shape, "forward+backward", 1.01, "one gradient"),
            MemoryGoal("cross_entropy", shape, "forward+backward", 0.01, "O(rows)", "inplace"),
        )
    ),
    MemoryGoal("linear_cross_entropy", LINEAR, "forward+backward", LEAN, "the gradients and 48 MB"),
)
