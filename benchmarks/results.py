"""What a measurement leaves behind: the shape of its JSON file, checked on every write and every read.

Times are in seconds a call, memory in bytes. The worker fills these records, the report reads them.
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from benchmarks.errors import BenchmarkError
from training.files import write_text_atomically

SCHEMA_VERSION = 1

Passes = Literal["forward", "forward+backward"]
Dtype = Literal["float32", "float64", "bfloat16", "float16"]


class Record(BaseModel):
    """A checked record that neither takes unknown fields nor changes."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class Environment(Record):
    """The code, the versions and the machine that produced the numbers.

    `commit` is None outside of a git checkout, `dirty` says whether tracked files differed from it. `allocator` holds
    the variables of the process's environment that change how memory is allocated, `transparent_huge_pages` the
    kernel's setting. `load` is how many processes wanted a core in the minute before, None where that is not known.
    """

    commit: str | None
    dirty: bool
    torchlosses: str
    backend: str
    instruction_set: str
    torch: str
    python: str
    platform: str
    processor: str
    cores: int
    libc: str
    allocator: dict[str, str]
    transparent_huge_pages: str | None
    load: float | None


class Setting(Record):
    """What a process was started with. `threads` are those of torch, `environment` the variables that were added."""

    name: str
    title: str
    threads: int = Field(ge=1)
    environment: dict[str, str]


class Measured(Record):
    """What was measured: which implementation or limit, on what, doing what."""

    setting: str
    loss: str
    shape: tuple[int, ...]
    dtype: Dtype
    passes: Passes
    implementation: str


class Timing(Measured):
    """Seconds a call: median and quartiles over `rounds` samples, each the mean of `calls` calls."""

    median: float = Field(gt=0)
    lower_quartile: float = Field(gt=0)
    upper_quartile: float = Field(gt=0)
    rounds: int = Field(ge=1)
    calls: int = Field(ge=1)


class PeakMemory(Measured):
    """The most that was resident at once during a call beyond what was before it, in a process of its own.

    `unit_bytes` is the size of one tensor of (rows, classes), or of the input's shape for a mean squared error.
    """

    extra_bytes: int = Field(ge=0)
    unit_bytes: int = Field(ge=1)

    @property
    def units(self) -> float:
        """The extra memory in tensors of the input's size."""
        return self.extra_bytes / self.unit_bytes


class Results(Record):
    """Everything that a measurement found. `implementations` and `limits` say in words what the names stand for."""

    schema_version: Literal[1] = SCHEMA_VERSION
    started: str
    seconds: float
    command: str
    quick: bool
    environment: Environment
    implementations: dict[str, str]
    limits: dict[str, str]
    settings: list[Setting]
    timings: list[Timing]
    memory: list[PeakMemory]

    def title(self, name: str) -> str:
        """An implementation or limit in words."""
        return self.implementations.get(name) or self.limits.get(name, name)


class ImportTimes(Record):
    """Seconds that `import torch` took in each of some processes, and `import torchlosses` behind it."""

    started: str
    command: str
    environment: Environment
    torch: list[float]
    torchlosses: list[float]


class TrainingCurves(Record):
    """The loss of each step of `examples.language_model`: trained plainly, lean, and lean without the normaliser."""

    started: str
    command: str
    torch_version: str
    plain: list[float]
    lean: list[float]
    naive: list[float]


Kind = TypeVar("Kind", bound=Record)


def write_results(results: Record, path: Path) -> None:
    """Write `results` so that `path` never holds half a file."""
    write_text_atomically(path, results.model_dump_json(indent=1) + "\n")


def read_results(path: Path) -> Results:
    """Read and check what `python -m benchmarks.run` wrote; see `read_record`."""
    return read_record(path, Results)


def read_record(path: Path, kind: type[Kind]) -> Kind:
    """Read and check what `write_results` wrote.

    Raises:
        BenchmarkError: The file is missing or holds something else; the message names the first field that is wrong.
    """
    try:
        return kind.model_validate_json(path.read_bytes())
    except OSError as error:
        raise BenchmarkError(
            f"{path} cannot be read ({error.strerror}); `python -m benchmarks.run` writes results"
        ) from error
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"])) or "the file"
        raise BenchmarkError(
            f"{path} holds no results of this version: {where}: {first['msg']}; measure with `python -m benchmarks.run`"
        ) from error
