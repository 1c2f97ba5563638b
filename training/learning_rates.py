"""The learning rate of an objective: what `python -m training.tune` found, unless an option says otherwise."""

from __future__ import annotations

from pathlib import Path

from pydantic import ValidationError

from training.config import Config
from training.errors import StudyError
from training.questions import TaskName
from training.results import RateSource, Tuning

TUNED = Path(__file__).with_name("learning_rates.json")
DEFAULT_RATE = 1e-3


def read_tuning(path: Path = TUNED) -> Tuning | None:
    """What was found, or None where there is no such file.

    Raises:
        StudyError: the file is damaged.
    """
    try:
        return Tuning.model_validate_json(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except (OSError, ValueError, ValidationError) as error:
        raise StudyError(f"{path} cannot be read ({error}); write it again with python -m training.tune") from error


def learning_rate(tuning: Tuning | None, config: Config, task: TaskName, objective: str) -> tuple[float, RateSource]:
    """The learning rate of an objective for a task, and where it comes from.

    The harder versions of the digits take the rates of the digits.
    """
    if config.learning_rate is not None:
        return config.learning_rate, "option"
    question = "angle" if task == "angle" else "digit"
    found = (
        [item for item in tuning.objectives if (item.task, item.objective) == (question, objective)] if tuning else []
    )
    if not tuning or not found:
        return DEFAULT_RATE, "default"
    same = (
        (tuning.dataset, tuning.model, tuning.batch_size) == (config.dataset, config.model, config.batch_size)
        and tuning.epochs[question] == config.epochs_for(task)
        and task == question
        and config.train_limit is None
    )
    return found[0].best, "tuned" if same else "tuned elsewhere"
