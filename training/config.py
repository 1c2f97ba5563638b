"""The options of a run: one frozen record, filled from the command line, kept in `config.json`."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from contextlib import redirect_stderr
from dataclasses import dataclass, replace
from io import StringIO
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, TypeVar, get_args

import tyro
from pydantic import TypeAdapter, ValidationError

from training.errors import StudyError
from training.files import write_text_atomically
from training.questions import TASKS_OF, Question, TaskName

PROGRAM = "python -m training.compare"


Dataset = Literal["mnist", "fashion-mnist", "kmnist", "own"]


def _hint(metavar: str, default: str) -> object:
    return tyro.conf.arg(metavar=metavar, help_behavior_hint=f"(default: {default})")


@dataclass(frozen=True)
class Config:
    """Which loss belongs to which head? Train on MNIST with each, and write a report that shows it.

    Two questions are put to the same images: which digit is it (a category), and by how many degrees was it rotated
    (a quantity). Without options this takes under 150 seconds on two CPU cores; start with --quick for a first look.

    Exit status: 0 done. 2 an option, a file or the machine does not allow it. 3 done, but our losses and PyTorch's
    differ by more than their tolerance. 4 a file could not be written (a full disk); what was done is kept and --resume
    goes on. 129, 130, 143 ended by SIGHUP, Ctrl-C or SIGTERM, with a report of what was found so far; --resume goes on.
    1 a defect of this program, with a traceback. Under torchrun the status is torchrun's own: 1 for every failure.
    """

    __pydantic_config__: ClassVar[dict[str, Any]] = {"extra": "forbid"}

    quick: bool = False
    """A first look in well under a minute: fewer images, seeds, epochs and steps. Other options still apply."""
    all: bool = False
    """Every objective that suits a task, not only the main ones. Takes about three times as long."""
    resume: Annotated[Path | None, _hint("RUN", "none")] = None
    """Go on with an interrupted run: its folder, such as runs/20250101-120000-mnist-mlp. Takes one other option: with
    --seeds, a run is given more seeds, and what it has is not trained again."""

    tasks: tuple[Question, ...] = ("digit", "angle")
    """The questions to ask: digit, angle; and of the digits calibration (are the probabilities right, and does one
    number put them right?), label-noise (0, 20 and 40 % wrong labels) and few-images (100, 1,000 and 10,000 images)."""
    objectives: Annotated[
        tuple[str, ...], _hint("NAME [NAME ...]", "the first five for the digit, the first two for the angle")
    ] = ()
    """What to train for: regression-mse, cross-entropy, mse-softmax, mse-raw, cee-softmax, regression-huber,
    label-smoothing, binary-cross-entropy, gaussian-histogram (of the angle)."""
    model: Literal["mlp", "cnn"] = "mlp"
    """The network below the head: fully connected layers, or convolutions (better, many times slower)."""
    implementation: Literal["torchlosses", "torch"] = "torchlosses"
    """Whose losses to train with: our own, or PyTorch's built-in ones."""

    seeds: int = 6
    """How many times to repeat everything, each time from another seed; objectives are compared seed by seed."""
    first_seed: int = 0
    """The first of the seeds."""
    stack: int = 6
    """How many seeds of an objective to train side by side, as one stack of networks."""
    epochs: Annotated[int | None, _hint("INT", "3 for the digit, 5 for the angle; 1 and 2 with --quick")] = None
    """Passes over the training images."""
    batch_size: int = 128
    """Images per update; with several processes, of all of them together."""
    learning_rate: Annotated[float | None, _hint("FLOAT", "for each objective what python -m training.tune found")] = (
        None
    )
    """The learning rate of Adam, for every objective."""
    angle_bins: int = 30
    """Into how many bins a classification head divides the angles."""
    angle_limit: float = 45.0
    """Images are rotated by up to this many degrees either way."""

    dataset: Dataset = "mnist"
    """The images. MNIST comes with this program; Fashion-MNIST and KMNIST are downloaded, or found under --data-root;
    own are your own, under --data-root (training/data/README.md says how)."""
    data_root: Annotated[Path | None, _hint("FOLDER", "a folder in your cache directory")] = None
    """Where the data set is, or is to be put."""
    out: Annotated[Path, _hint("FOLDER", "runs")] = Path("runs")
    """The folder in which each run gets a folder of its own."""
    name: Annotated[str, _hint("NAME", "the data set and the model")] = ""
    """Ends the name of the run's folder."""

    device: str = "cpu"
    """Where to train: cpu, cuda, or one GPU, such as cuda:1."""
    workers: Annotated[int | None, _hint("INT", "one per core, at most 4")] = None
    """How many stacks to train at the same time, each on a core of its own (1 with torchrun, --compile or a GPU)."""
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
        check_bounds(self, BOUNDS)
        check_choices(self.tasks, get_args(Question), self.device)
        if self.learning_rate is not None and not 0 < self.learning_rate <= MOST_LEARNING_RATE:
            limit = f"{MOST_LEARNING_RATE:,.0f}"
            raise StudyError(f"--learning-rate must be above 0 and at most {limit}, not {self.learning_rate}")
        if not 0 < self.angle_limit <= 180:
            raise StudyError(f"--angle-limit must be above 0 and at most 180 degrees, not {self.angle_limit}")
        if self.dataset == "own" and self.data_root is None:
            raise StudyError("--dataset own needs --data-root, the folder with your images")
        if not re.fullmatch(r"[\w.+-]*", self.name) or self.name.startswith(".") or len(self.name) > 100:
            raise StudyError(f"--name may hold up to 100 letters, digits, '-', '_', '+' and '.', and not '{self.name}'")

    def epochs_for(self, task: TaskName) -> int:
        """Passes over the training images for a task."""
        if self.epochs is not None:
            return self.epochs
        few, many = (2, 5) if task == "angle" else (1, 3)
        return few if self.quick else many

    @property
    def run_seeds(self) -> range:
        """The seeds of the run."""
        return range(self.first_seed, self.first_seed + self.seeds)

    @property
    def task_names(self) -> list[TaskName]:
        """The tasks, one for each condition of each question."""
        return [task for question in self.tasks for task in TASKS_OF[question]]

    @property
    def run_name(self) -> str:
        """What the run's folder is called after its time."""
        return self.name or f"{self.dataset}-{self.model}{'-quick' if self.quick else ''}"


MOST_LEARNING_RATE = 1e9
# What fits into memory and ends: a stack of networks, a table of targets, a run.
BOUNDS = {
    "seeds": (1, 1000),
    "first_seed": (0, 1_000_000_000),
    "stack": (1, 64),
    "epochs": (1, 10_000),
    "batch_size": (1, 1_000_000),
    "angle_bins": (2, 1000),
    "workers": (1, 64),
    "parity_steps": (1, 1_000_000),
    "recovery_steps": (1, 1_000_000),
    "train_limit": (1, 1_000_000_000),
    "test_limit": (1, 1_000_000_000),
}


def check_bounds(options: object, bounds: Mapping[str, tuple[int, int]]) -> None:
    """Raise StudyError, naming the option and its bounds, where one lies outside."""
    for option, (least, most) in bounds.items():
        value = getattr(options, option)
        if value is not None and not least <= value <= most:
            given = f"--{option.replace('_', '-')} must be at least {least:,} and at most {most:,}"
            raise StudyError(f"{given}, not {value}")


def check_choices(tasks: Sequence[str], allowed: Sequence[str], device: str) -> None:
    """Raise StudyError where a task is given twice, or none is, or where there is no such kind of device."""
    if not tasks or len(set(tasks)) < len(tasks):
        raise StudyError(f"--tasks must be one or several of {', '.join(allowed)}, each once")
    if not re.fullmatch(r"cpu|cuda(:\d+)?", device):
        raise StudyError(f"--device must be cpu, cuda or cuda:<number>, not '{device}'")


# What --quick changes beside the epochs.
_QUICK: dict[str, Any] = {"seeds": 2, "train_limit": 20_000, "parity_steps": 100, "recovery_steps": 200}


Options = TypeVar("Options")


def parse_options(kind: type[Options], program: str, arguments: Sequence[str], default: Options) -> Options:
    """The options of a program from its command line, those that are not given from `default`.

    Raises:
        StudyError: an option or a value is not allowed; the message is one line.
        SystemExit: after `--help`.
    """
    complaint = StringIO()
    try:
        with redirect_stderr(complaint):
            options = tyro.cli(
                kind, prog=program, args=list(arguments), default=default, config=(tyro.conf.FlagCreatePairsOff,)
            )
    except SystemExit as exit_request:
        if exit_request.code in (None, 0):
            raise
        raise StudyError(_in_one_line(complaint.getvalue(), program)) from None
    if "--objectives" in arguments and not getattr(options, "objectives", None):
        raise StudyError("--objectives needs a name or several; see --help, or leave it out")
    return options


def parse_config(arguments: Sequence[str]) -> Config:
    """The configuration from the command line; with `--resume` only that and the seeds are the caller's.

    Raises:
        StudyError: an option or a value is not allowed; the message is one line.
        SystemExit: after `--help`.
    """
    quick = "--quick" in arguments
    defaults = replace(Config(), **_QUICK) if quick else Config()
    config = parse_options(Config, PROGRAM, arguments, defaults)
    if config.resume is not None and {word.split("=")[0] for word in arguments if word.startswith("--")} - {
        "--resume",
        "--seeds",
    }:
        raise StudyError("--resume takes no other options but --seeds: a run goes on with those it was started with")
    return replace(config, quick=quick)


def more_seeds(arguments: Sequence[str]) -> bool:
    """Whether the command line asks for a number of seeds."""
    return any(word.split("=")[0] == "--seeds" for word in arguments)


def _in_one_line(complaint: str, program: str) -> str:
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
    return f"{message.rstrip('.')}; see {program} --help"


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
        first = error.errors()[0]
        setting = f"{first['loc'][-1]}: " if first["loc"] else ""
        raise StudyError(f"--resume: {path} is no configuration of a run: {setting}{first['msg']}") from error
    except StudyError as error:
        raise StudyError(f"--resume: {path} is no configuration of a run: {error}") from error


def as_json_object(config: Config) -> dict[str, object]:
    """`config` as plain JSON values."""
    return _ADAPTER.dump_python(config, mode="json")
