"""The options of a run: one frozen record, filled from the command line, kept in `config.json`."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from contextlib import redirect_stderr
from dataclasses import dataclass, fields, replace
from io import StringIO
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro
from pydantic import TypeAdapter, ValidationError

from training.errors import StudyError
from training.files import write_text_atomically
from training.results import TaskName

PROGRAM = "python -m training.compare"


def _hint(metavar: str, default: str) -> object:
    return tyro.conf.arg(metavar=metavar, help_behavior_hint=f"(default: {default})")


@dataclass(frozen=True)
class Config:
    """Which loss belongs to which head? Train on MNIST with each, and write a report that shows it.

    Two questions are put to the same images: which digit is it (a category), and by how many degrees was it rotated
    (a quantity). Without options this takes under 3 minutes on two CPU cores; start with --quick for a first look.
    """

    quick: bool = False
    """A first look in well under a minute: fewer images, seeds, epochs and steps. Other options still apply."""
    resume: Annotated[Path | None, _hint("RUN", "none")] = None
    """Go on with an interrupted run: its folder, such as runs/20250101-120000-mnist-mlp. Takes no other options."""

    tasks: tuple[TaskName, ...] = ("digit", "angle")
    """The questions to ask."""
    objectives: Annotated[
        tuple[str, ...], _hint("NAME [NAME ...]", "all for the digit, the first two for the angle")
    ] = ()
    """What to train for: regression-mse, cross-entropy, mse-softmax, mse-raw, cee-softmax."""
    model: Literal["mlp", "cnn"] = "mlp"
    """The network below the head: fully connected layers, or convolutions (better, several times slower)."""
    implementation: Literal["torchlosses", "torch"] = "torchlosses"
    """Whose losses to train with: our own, or PyTorch's built-in ones."""

    seeds: int = 3
    """How many times to repeat everything, each time from another seed; every result is given with its spread."""
    epochs: Annotated[int | None, _hint("INT", "3 for the digit, 5 for the angle; 1 and 2 with --quick")] = None
    """Passes over the training images."""
    batch_size: int = 128
    """Images per update; with several processes, of all of them together."""
    learning_rate: float = 1e-3
    """The learning rate of Adam."""
    angle_bins: int = 30
    """Into how many bins a classification head divides the angles."""
    angle_limit: float = 45.0
    """Images are rotated by up to this many degrees either way."""

    dataset: Literal["mnist", "fashion-mnist", "kmnist"] = "mnist"
    """The images. MNIST comes with this program; the others are downloaded, or found under --data-root."""
    data_root: Annotated[Path | None, _hint("FOLDER", "a folder in your cache directory")] = None
    """Where the data set is, or is to be put."""
    out: Annotated[Path, _hint("FOLDER", "runs")] = Path("runs")
    """The folder in which each run gets a folder of its own."""
    name: Annotated[str, _hint("NAME", "the data set and the model")] = ""
    """Ends the name of the run's folder."""

    device: str = "cpu"
    """Where to train: cpu, cuda, or one GPU, such as cuda:1."""
    workers: Annotated[int | None, _hint("INT", "one per core, at most 4")] = None
    """How many networks to train at the same time, each on a core of its own (1 with torchrun, --compile or a GPU)."""
    amp: bool = False
    """Train and evaluate in mixed precision (bfloat16 autocast)."""
    compile: bool = False
    """Compile the training step with torch.compile. Needs a C++ compiler; slower for short runs."""
    tensorboard: bool = False
    """Also log every epoch for TensorBoard, in the run's folder."""

    parity_steps: int = 300
    """How many updates are repeated with PyTorch's built-in losses, to show that ours do the same."""
    recovery_steps: int = 300
    """How many updates a network gets to recover from a confidently wrong start."""
    train_limit: Annotated[int | None, _hint("INT", "all; 20000 with --quick")] = None
    """Use only the first so many training images."""
    test_limit: Annotated[int | None, _hint("INT", "all")] = None
    """Use only the first so many test images."""

    def __post_init__(self) -> None:
        for option, allowed in _LEAST.items():
            value = getattr(self, option)
            if value is not None and value < allowed:
                raise StudyError(f"--{option.replace('_', '-')} must be at least {allowed}, not {value}")
        if not (math.isfinite(self.learning_rate) and self.learning_rate > 0):
            raise StudyError(f"--learning-rate must be above 0 and finite, not {self.learning_rate}")
        if not 0 < self.angle_limit <= 180:
            raise StudyError(f"--angle-limit must be above 0 and at most 180 degrees, not {self.angle_limit}")
        if not self.tasks or len(set(self.tasks)) < len(self.tasks):
            raise StudyError("--tasks must be digit, angle or both, each once")
        if not re.fullmatch(r"cpu|cuda(:\d+)?", self.device):
            raise StudyError(f"--device must be cpu, cuda or cuda:<number>, not '{self.device}'")
        if not re.fullmatch(r"[\w.+-]*", self.name) or self.name.startswith("."):
            raise StudyError(f"--name may hold letters, digits, '-', '_', '+' and '.', and not '{self.name}'")

    def epochs_for(self, task: TaskName) -> int:
        """Passes over the training images for a task."""
        if self.epochs is not None:
            return self.epochs
        return {"digit": 1, "angle": 2}[task] if self.quick else {"digit": 3, "angle": 5}[task]

    @property
    def run_name(self) -> str:
        """What the run's folder is called after its time."""
        return self.name or f"{self.dataset}-{self.model}{'-quick' if self.quick else ''}"


_LEAST = {
    "seeds": 1,
    "epochs": 1,
    "batch_size": 1,
    "angle_bins": 2,
    "workers": 1,
    "parity_steps": 1,
    "recovery_steps": 1,
    "train_limit": 1,
    "test_limit": 1,
}

# What --quick changes beside the epochs.
_QUICK: dict[str, Any] = {"seeds": 2, "train_limit": 20_000, "parity_steps": 100, "recovery_steps": 200}


def parse_config(arguments: Sequence[str]) -> Config:
    """The configuration from the command line.

    Raises:
        StudyError: an option or a value is not allowed; the message is one line.
        SystemExit: after `--help`.
    """
    quick = "--quick" in arguments
    defaults = replace(Config(), **_QUICK) if quick else Config()
    complaint = StringIO()
    try:
        with redirect_stderr(complaint):
            config = tyro.cli(
                Config,
                prog=PROGRAM,
                args=list(arguments),
                default=defaults,
                config=(tyro.conf.FlagCreatePairsOff,),
            )
    except SystemExit as exit_request:
        if exit_request.code in (None, 0):
            raise
        raise StudyError(_in_one_line(complaint.getvalue())) from None
    if config.resume is not None:
        others = [
            option.name for option in fields(config) if getattr(config, option.name) != getattr(Config(), option.name)
        ]
        others.remove("resume")
        if others or len(arguments) > 2:
            raise StudyError("--resume takes no other options: a run goes on with the options it was started with")
    return replace(config, quick=quick)


def _in_one_line(complaint: str) -> str:
    """What is wrong, from the box that tyro draws around it."""
    # Lines that end in dashes, drawn or typed, part the title from what is wrong, and that from the help.
    sections: list[list[str]] = [[]]
    for line in complaint.splitlines():
        text = line.strip("│| ")
        if re.search(r"[─-]{3,}\W*$", text):
            sections.append([])
        elif text:
            sections[-1].append(text)
    message = " ".join(sections[1] if len(sections) > 1 else ()) or "the options could not be understood"
    if unreadable := re.match(r"Error parsing (--[\w-]+):.*'(.*?)'\]?$", message):
        kind = "a whole number" if "for int()" in message else "a number"
        message = f"{unreadable[1]} must be {kind}, not '{unreadable[2]}'"
    hints = [line for section in sections[2:] for line in section if line.startswith("--")]
    if hints and "Perhaps you meant:" in complaint:
        message += f"; perhaps you meant {hints[0].split()[0]}"
    return f"{message.rstrip('.')}; see {PROGRAM} --help"


_ADAPTER = TypeAdapter(Config)


def write_config(config: Config, path: Path) -> None:
    """Write `config` as JSON."""
    write_text_atomically(path, _ADAPTER.dump_json(config, indent=1).decode())


def read_config(path: Path) -> Config:
    """Read what `write_config` wrote.

    Raises:
        StudyError: the file is missing or is no configuration.
    """
    try:
        return _ADAPTER.validate_json(path.read_bytes())
    except OSError as error:
        raise StudyError(f"--resume: {path} cannot be read ({error.strerror}); name the folder of a run") from error
    except ValidationError as error:
        raise StudyError(f"--resume: {path} is no configuration of a run: {error.errors()[0]['msg']}") from error


def as_json_object(config: Config) -> dict[str, object]:
    """`config` as plain JSON values."""
    return _ADAPTER.dump_python(config, mode="json")
