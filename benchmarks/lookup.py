"""Results by what they are about."""

from __future__ import annotations

from typing import NamedTuple

from benchmarks.results import Dtype, Measured, Passes, PeakMemory, Results, Timing


class Subject(NamedTuple):
    """What was computed."""

    loss: str
    shape: tuple[int, ...]
    dtype: Dtype
    passes: Passes

    @property
    def title(self) -> str:
        """Loss, shape, and the dtype if it is not float32."""
        shape = f"{self.shape[0] / 1e6:.3g} M" if len(self.shape) == 1 else "×".join(map(str, self.shape))
        return f"{self.loss} {shape}" + ("" if self.dtype == "float32" else f" {self.dtype}")


class Lookup:
    """Finds what was measured."""

    def __init__(self, results: Results) -> None:
        self.results = results
        self._timings = {(*_key(timing), timing.implementation): timing for timing in results.timings}
        self._memory = {(*_key(peak), peak.implementation): peak for peak in results.memory}

    def timing(self, setting: str, subject: Subject, implementation: str) -> Timing | None:
        """The time of this, if it was measured."""
        return self._timings.get((setting, subject, implementation))

    def memory(self, setting: str, subject: Subject, implementation: str) -> PeakMemory | None:
        """The peak memory of this, if it was measured."""
        return self._memory.get((setting, subject, implementation))

    def ratio(self, setting: str, subject: Subject, implementation: str, against: str) -> float | None:
        """How many times as fast as `against` an implementation is, by the medians."""
        own, other = (self.timing(setting, subject, name) for name in (implementation, against))
        return None if own is None or other is None else other.median / own.median

    def timed(self, setting: str) -> list[Subject]:
        """What was timed under a setting, in the order of the measurement."""
        return list(dict.fromkeys(subject for found, subject, _ in self._timings if found == setting))

    def weighed(self) -> list[Subject]:
        """What memory was measured of, in the order of the measurement."""
        return list(dict.fromkeys(subject for _, subject, _ in self._memory))


def subject_of(measured: Measured) -> Subject:
    """What a record is about."""
    return Subject(measured.loss, measured.shape, measured.dtype, measured.passes)


def _key(measured: Measured) -> tuple[str, Subject]:
    return measured.setting, subject_of(measured)
