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

# One task each, but for the questions that are asked under several conditions.
TASKS_OF: dict[Question, tuple[TaskName, ...]] = {
    "digit": ("digit",),
    "angle": ("angle",),
    "calibration": ("calibration",),
    "label-noise": ("label-noise-0", "label-noise-20", "label-noise-40"),
    "few-images": ("few-images-100", "few-images-1000", "few-images-10000"),
}
