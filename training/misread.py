"""A real digit that the study's networks disagree about, for the page."""

from __future__ import annotations

import numpy as np
from torch import Tensor

from training.measures import contenders
from training.results import Misread, Results


def find_misread(results: Results, images: Tensor) -> Misread | None:
    """The test image that divides the objectives most: read rightly and wrongly by as many as can be, first seed.

    Args:
        results: a finished run; None is returned where no objective has read digits, or none has misread one.
        images: the test images, uint8 of shape (count, 28, 28).
    """
    answers = first_answers(results)
    labels = results.test_labels.values()
    if not answers or not len(labels):
        return None
    wrong = np.mean([answer != labels for answer in answers.values()], axis=0)
    index = int(np.argmin(np.abs(wrong - 0.5) + (wrong == 0)))
    if wrong[index] == 0:
        return None
    return Misread(index=index, label=int(labels[index]), pixels=images[index].tolist())


def first_answers(results: Results) -> dict[str, np.ndarray]:
    """What each objective answered to each test image from the first seed that it has finished."""
    found = {}
    for item in contenders(results, "digit"):
        for run in item.runs[:1]:
            if run.details and run.details.answer and item.decoding in run.details.answer:
                found[item.description.name] = run.details.answer[item.decoding].values()
    return found
