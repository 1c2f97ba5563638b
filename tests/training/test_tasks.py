"""The two tasks: classes and values, and a rotation that is what it says."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from training.data import Images
from training.questions import TASKS_OF, TaskName
from training.tasks import (
    FEW_IMAGES_SHOWN,
    TaskData,
    angle_data,
    angle_task,
    build_task,
    digit_data,
    digit_task,
    hold_out,
    images_per_epoch,
    rotate,
    task_data,
    to_float,
    with_few_images,
    with_label_noise,
)

CPU = torch.device("cpu")


def test_a_digit_is_its_own_class() -> None:
    task = digit_task(CPU)
    digits = torch.arange(10.0)
    assert torch.equal(task.classes_of(digits), torch.arange(10))
    assert torch.equal(task.class_values, digits)


@pytest.mark.parametrize(("bins", "limit"), [(2, 45.0), (30, 45.0), (7, 10.0), (90, 180.0)])
def test_every_angle_falls_into_the_bin_with_the_nearest_centre(bins: int, limit: float) -> None:
    task = angle_task(bins, limit, CPU)
    assert task.classes == bins
    angles = (torch.rand(5000, generator=torch.Generator().manual_seed(0)) * 2 - 1) * limit
    distances = (angles.unsqueeze(1) - task.class_values).abs()
    assert torch.equal(task.classes_of(angles), distances.argmin(dim=1))
    assert distances.min(dim=1).values.max() <= task.spacing / 2 * (1 + 1e-4)
    assert task.classes_of(torch.tensor([-limit, limit])).tolist() == [0, bins - 1]
    assert task.class_values.sum().abs() < 1e-3


def blob(x: float, y: float) -> Tensor:
    """An image of a soft spot, its centre given in pixels from the middle of the image, x to the right and y up."""
    rows, columns = torch.meshgrid(torch.arange(28.0), torch.arange(28.0), indexing="ij")
    return torch.exp(-((columns - 13.5 - x) ** 2 + (13.5 - rows - y) ** 2) / 8).view(1, 1, 28, 28)


def centre_of_mass(image: Tensor) -> tuple[float, float]:
    rows, columns = torch.meshgrid(torch.arange(28.0), torch.arange(28.0), indexing="ij")
    weights = image[0, 0] / image.sum()
    return (weights * (columns - 13.5)).sum().item(), (weights * (13.5 - rows)).sum().item()


@pytest.mark.parametrize("degrees", [-45.0, -20.0, 0.0, 10.0, 45.0, 90.0])
@pytest.mark.parametrize(("x", "y"), [(6.0, 0.0), (-2.0, 5.0)])
def test_a_spot_moves_counter_clockwise_on_its_circle(degrees: float, x: float, y: float) -> None:
    turned = centre_of_mass(rotate(blob(x, y), torch.tensor([degrees])))
    radians = math.radians(degrees)
    expected = (x * math.cos(radians) - y * math.sin(radians), x * math.sin(radians) + y * math.cos(radians))
    assert turned == pytest.approx(expected, abs=0.05)


def test_a_quarter_turn_is_exact_and_no_turn_changes_nothing(mnist: Images) -> None:
    images = to_float(mnist.test[:50])
    turned = rotate(images, torch.full((50,), 90.0))
    torch.testing.assert_close(turned, torch.rot90(images, 1, (2, 3)), atol=1e-4, rtol=0)
    torch.testing.assert_close(rotate(images, torch.zeros(50)), images, atol=1e-5, rtol=0)


def test_interpolation_is_bilinear(mnist: Images) -> None:
    image = to_float(mnist.test[:1])
    degrees = 17.0
    turned = rotate(image, torch.tensor([degrees]))[0, 0].numpy()
    padded = np.zeros((30, 30))
    padded[1:-1, 1:-1] = image[0, 0].numpy()
    cosine, sine = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    for row, column in ((5, 20), (13, 13), (14, 8), (20, 17), (10, 14)):
        x, up = column - 13.5, 13.5 - row
        # The source of an output pixel is found by turning back.
        source_x, source_up = x * cosine + up * sine, -x * sine + up * cosine
        r, c = 13.5 - source_up + 1, source_x + 13.5 + 1
        r0, c0 = math.floor(r), math.floor(c)
        a, b = r - r0, c - c0
        expected = (
            (1 - a) * (1 - b) * padded[r0, c0]
            + (1 - a) * b * padded[r0, c0 + 1]
            + a * (1 - b) * padded[r0 + 1, c0]
            + a * b * padded[r0 + 1, c0 + 1]
        )
        assert turned[row, column] == pytest.approx(expected, abs=1e-4)


def test_batches_of_the_rotation_do_not_mix(mnist: Images) -> None:
    images = to_float(mnist.train[:4100])
    degrees = torch.linspace(-45, 45, 4100)
    turned = rotate(images, degrees)
    for index in (0, 1999, 2000, 4099):
        alone = rotate(images[index : index + 1], degrees[index : index + 1])
        torch.testing.assert_close(turned[index : index + 1], alone, atol=1e-5, rtol=0)


def test_angles_are_uniform_and_always_the_same(mnist: Images) -> None:
    small = Images(mnist.train[:4000], mnist.train_labels[:4000], mnist.test[:1000], mnist.test_labels[:1000])
    digits = digit_data(small, CPU)
    first, again = (angle_data(digits, 45.0) for _ in range(2))
    assert torch.equal(first.train_values, again.train_values)
    assert torch.equal(first.train_images, again.train_images)
    assert torch.equal(first.test_images, again.test_images)
    assert not torch.equal(first.train_values[:1000], first.test_values)
    assert first.train_values.abs().max() <= 45
    # Each quarter of the range holds a quarter of 4000, give or take four standard deviations.
    counts = torch.histc(first.train_values, 4, -45, 45)
    assert (counts - 1000).abs().max() < 4 * math.sqrt(4000 * 0.25 * 0.75)


def test_the_surround_of_a_rotated_image_is_black_whatever_black_is(mnist: Images) -> None:
    images, degrees = to_float(mnist.test[:20]), torch.linspace(-45, 45, 20)
    torch.testing.assert_close(rotate(3 * images - 0.5, degrees), 3 * rotate(images, degrees) - 0.5)


def test_digits_keep_their_images(mnist: Images) -> None:
    small = Images(mnist.train[:10], mnist.train_labels[:10], mnist.test[:5], mnist.test_labels[:5])
    digits = digit_data(small, CPU)
    assert digits.train_images.shape == (10, 1, 28, 28)
    grey = small.train.numpy() / 255
    for standardised, original in ((digits.train_images, small.train), (digits.test_images, small.test)):
        expected = (original.numpy() / 255 - grey.mean()) / grey.std(ddof=1)
        np.testing.assert_allclose(standardised[:, 0].numpy(), expected, atol=1e-5)
    assert digits.test_values.tolist() == small.test_labels.tolist()


def small_digits(mnist: Images, count: int = 600) -> TaskData:
    return digit_data(
        Images(mnist.train[:count], mnist.train_labels[:count], mnist.test[:50], mnist.test_labels[:50]), CPU
    )


def test_the_last_sixth_is_held_out(mnist: Images) -> None:
    digits = small_digits(mnist)
    data = hold_out(digits)
    assert data.validation_images is not None
    assert data.validation_values is not None
    assert torch.equal(torch.cat((data.train_images, data.validation_images)), digits.train_images)
    assert torch.equal(torch.cat((data.train_values, data.validation_values)), digits.train_values)
    assert len(data.validation_values) == 100
    assert torch.equal(data.test_images, digits.test_images)


@pytest.mark.parametrize("share", [0.0, 0.2, 0.4])
def test_so_many_training_labels_are_wrong_and_no_test_label(mnist: Images, share: float) -> None:
    digits = small_digits(mnist)
    noisy = with_label_noise(digits, share)
    assert (noisy.train_values != digits.train_values).sum().item() == round(600 * share)
    assert set(noisy.train_values.tolist()) <= set(range(10))
    assert torch.equal(noisy.train_values, with_label_noise(digits, share).train_values)
    assert torch.equal(noisy.test_values, digits.test_values)
    assert torch.equal(noisy.train_images, digits.train_images)


def test_a_few_images_are_shown_again_and_again(mnist: Images) -> None:
    digits = small_digits(mnist)
    few = with_few_images(digits, 100)
    assert len(few.train_images) == FEW_IMAGES_SHOWN
    assert torch.equal(few.train_images[300:400], digits.train_images[:100])
    assert torch.equal(few.train_values[:100], few.train_values[100:200])
    assert torch.equal(with_few_images(digits, 10_000).train_images[:600], digits.train_images)


def test_every_task_has_its_data(mnist: Images) -> None:
    digits = small_digits(mnist)
    assert task_data("digit", digits, 45.0) is digits
    assert task_data("angle", digits, 45.0).train_values.abs().max() > 9
    assert task_data("calibration", digits, 45.0).validation_images is not None
    assert (task_data("label-noise-40", digits, 45.0).train_values != digits.train_values).sum() == 240
    assert len(task_data("few-images-1000", digits, 45.0).train_values) == FEW_IMAGES_SHOWN
    assert build_task("label-noise-40", 30, 45.0, CPU).name == "label-noise-40"
    assert build_task("angle", 30, 45.0, CPU).classes == 30


@pytest.mark.parametrize("count", [2, 600])
@pytest.mark.parametrize("name", [name for names in TASKS_OF.values() for name in names])
def test_an_epoch_has_as_many_images_as_the_time_left_is_reckoned_by(mnist: Images, name: TaskName, count: int) -> None:
    assert len(task_data(name, small_digits(mnist, count), 45.0).train_images) == images_per_epoch(name, count)
