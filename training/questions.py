"""The questions that a run can ask, and the tasks they are made of."""

from __future__ import annotations

from typing import Literal

Question = Literal["digit", "angle", "calibration", "label-noise", "few-images"]

TaskName = Literal[
    "digit",
    "angle",
    "calibration",
    "label-noise-0",
    "label-noise-20",
    "label-noise-40",
    "few-images-100",
    "few-images-1000",
    "few-images-10000",
]

# The conditions of the harder questions that a run is summed up by, and the words for them within a sentence.
HARDEST: dict[TaskName, str] = {
    "label-noise-40": "with 40 % of the training labels wrong",
    "few-images-100": "from 100 training images",
    "calibration": "with a sixth of the images kept apart",
}

# One task each, but for the questions that are asked under several conditions.
TASKS_OF: dict[Question, tuple[TaskName, ...]] = {
    "digit": ("digit",),
    "angle": ("angle",),
    "calibration": ("calibration",),
    "label-noise": ("label-noise-0", "label-noise-20", "label-noise-40"),
    "few-images": ("few-images-100", "few-images-1000", "few-images-10000"),
}
