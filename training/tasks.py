"""The questions put to the same images: a category and a quantity, and harder versions of the first.

All are described alike, by classes with a numerical value each, so that every objective serves every task.
Images are float32 of shape (count, 1, 28, 28), grey levels from 0 to 1; answers are float32 of shape (count,).
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor

from training.data import Images
from training.errors import StudyError
from training.questions import TaskName
from training.randomness import generator

VALIDATION_SHARE = 6
# With few images an epoch shows them again and again, until it has shown this many.
FEW_IMAGES_SHOWN = 20_000
_ROTATION_BATCH = 2000


@dataclass(frozen=True)
class Task:
    """What is asked.

    Attributes:
        name: 'digit', 'angle', or a harder version of the digits.
        class_values: the value each class stands for: the digits themselves, or the centres of the angle bins.
        spacing: the distance between neighbouring class values.
        scale: what a regression head's output of 1 stands for: the largest answer, so that both tasks train alike.
        is_category: whether only the class values themselves are answers.
    """

    name: TaskName
    class_values: Tensor
    spacing: float
    scale: float
    is_category: bool

    @property
    def classes(self) -> int:
        """The number of outputs of a classification head."""
        return len(self.class_values)

    def classes_of(self, values: Tensor) -> Tensor:
        """The index of the class each value belongs to, int64."""
        indices = ((values - self.class_values[0]) / self.spacing + 0.5).floor().long()
        return indices.clamp(0, self.classes - 1)


@dataclass(frozen=True)
class TaskData:
    """A task's images and right answers, on the device; `validation_*` only where a task keeps some apart."""

    train_images: Tensor
    train_values: Tensor
    test_images: Tensor
    test_values: Tensor
    validation_images: Tensor | None = None
    validation_values: Tensor | None = None


def digit_task(device: torch.device, name: TaskName = "digit") -> Task:
    """Which digit is it?"""
    return Task(name, torch.arange(10.0, device=device), spacing=1.0, scale=9.0, is_category=True)


def angle_task(bins: int, limit: float, device: torch.device) -> Task:
    """By how many degrees, counter-clockwise and within `limit`, was the image rotated?"""
    width = 2 * limit / bins
    centres = -limit + width * (torch.arange(bins, device=device) + 0.5)
    return Task("angle", centres, spacing=width, scale=limit, is_category=False)


def build_task(name: TaskName, bins: int, limit: float, device: torch.device) -> Task:
    """The task of that name."""
    return angle_task(bins, limit, device) if name == "angle" else digit_task(device, name)


def task_data(name: TaskName, digits: TaskData, limit: float) -> TaskData:
    """The data of a task, made from the upright images with their digits."""
    if name == "angle":
        return angle_data(digits, limit)
    if name == "calibration":
        return hold_out(digits)
    if name.startswith("label-noise-"):
        return with_label_noise(digits, int(name.removeprefix("label-noise-")) / 100)
    if name.startswith("few-images-"):
        return with_few_images(digits, int(name.removeprefix("few-images-")))
    return digits


def images_per_epoch(name: TaskName, count: int) -> int:
    """How many training images an epoch of a task has, made from `count` upright ones."""
    if name == "calibration":
        return count - _kept_apart(count)
    if name.startswith("few-images-"):
        return max(FEW_IMAGES_SHOWN, min(int(name.removeprefix("few-images-")), count))
    return count


def _kept_apart(count: int) -> int:
    return max(1, count // VALIDATION_SHARE)


def digit_data(images: Images, device: torch.device) -> TaskData:
    """The upright images with their digits, the grey levels standardised by those of the training images."""
    train, test = to_float(images.train), to_float(images.test)
    deviation, mean = torch.std_mean(train)
    return TaskData(
        ((train - mean) / deviation).to(device),
        images.train_labels.float().to(device),
        ((test - mean) / deviation).to(device),
        images.test_labels.float().to(device),
    )


def angle_data(upright: TaskData, limit: float) -> TaskData:
    """The images rotated by angles uniform in [-limit, limit): the same for every seed, as the digits are.

    So what differs between seeds is how a network starts and in which order it sees the images, for both tasks.
    """
    device = upright.train_images.device
    train_angles, test_angles = (
        (torch.rand(count, generator=generator("rotation", split)) * 2 - 1).mul(limit).to(device)
        for split, count in enumerate((len(upright.train_images), len(upright.test_images)))
    )
    return TaskData(
        rotate(upright.train_images, train_angles),
        train_angles,
        rotate(upright.test_images, test_angles),
        test_angles,
    )


def hold_out(data: TaskData) -> TaskData:
    """The last sixth of the training images kept apart, to choose by; the test images are not for that.

    Raises:
        StudyError: there are fewer than two images to divide.
    """
    if len(data.train_images) < 2:
        raise StudyError("there is one training image, and none to keep apart; give a higher --train-limit")
    kept = len(data.train_images) - _kept_apart(len(data.train_images))
    return replace(
        data,
        train_images=data.train_images[:kept],
        train_values=data.train_values[:kept],
        validation_images=data.train_images[kept:],
        validation_values=data.train_values[kept:],
    )


def with_label_noise(data: TaskData, share: float) -> TaskData:
    """A share of the training labels replaced by another digit each, the same for every seed; test labels stay."""
    count = len(data.train_values)
    stream = generator("noise", count)
    wrong = torch.randperm(count, generator=stream)[: round(share * count)].to(data.train_values.device)
    shift = torch.randint(1, 10, (len(wrong),), generator=stream).to(data.train_values.device)
    values = data.train_values.clone()
    values[wrong] = (values[wrong] + shift) % 10
    return replace(data, train_values=values)


def with_few_images(data: TaskData, count: int) -> TaskData:
    """Only the first `count` training images, shown over and over until an epoch has FEW_IMAGES_SHOWN of them."""
    count = min(count, len(data.train_images))
    shown = torch.arange(max(FEW_IMAGES_SHOWN, count), device=data.train_images.device) % count
    return replace(data, train_images=data.train_images[shown], train_values=data.train_values[shown])


def to_float(images: Tensor) -> Tensor:
    """Bytes of shape (count, 28, 28) as float32 grey levels from 0 to 1, of shape (count, 1, 28, 28)."""
    return images.unsqueeze(1).float().div_(255)


def rotate(images: Tensor, degrees: Tensor) -> Tensor:
    """Turn each image about its centre, counter-clockwise as seen, with bilinear interpolation and a black surround.

    Black is the darkest grey level of `images`, which need not be 0.
    """
    rotated = torch.empty_like(images)
    black = images.min()
    for start in range(0, len(images), _ROTATION_BATCH):
        batch = images[start : start + _ROTATION_BATCH]
        radians = degrees[start : start + _ROTATION_BATCH] * (math.pi / 180)
        cosine, sine, zero = radians.cos(), radians.sin(), torch.zeros_like(radians)
        # Rows map output coordinates (x to the right, y downwards) to the input they are read from.
        matrices = torch.stack((cosine, -sine, zero, sine, cosine, zero), dim=1).view(-1, 2, 3)
        grid = F.affine_grid(matrices, list(batch.shape), align_corners=False)
        rotated[start : start + _ROTATION_BATCH] = F.grid_sample(batch - black, grid, align_corners=False) + black
    return rotated
