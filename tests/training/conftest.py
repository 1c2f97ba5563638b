"""Tiny data sets and configurations for the tests of the study."""

from __future__ import annotations

import gzip
from pathlib import Path

import numpy as np
import pytest
import torch

from training.compare import main
from training.data import FILES, Images, load_images
from training.results import Results

# The networks of the tests are too small to be worth sharing out, and tests may run side by side.
torch.set_num_threads(1)

TINY = (
    *("--dataset", "own"),
    *("--seeds", "2"),
    *("--epochs", "2"),
    *("--batch-size", "10"),
    *("--parity-steps", "3"),
    *("--recovery-steps", "6"),
)


def idx_bytes(array: np.ndarray) -> bytes:
    """An IDX file of bytes, by the format's definition."""
    header = bytes((0, 0, 8, array.ndim)) + b"".join(size.to_bytes(4, "big") for size in array.shape)
    return header + array.astype(np.uint8).tobytes()


def synthetic_arrays(train: int = 96, test: int = 40, seed: int = 0) -> dict[str, np.ndarray]:
    """Images that can be learnt: a bright bar whose place is the label, on noise."""
    random = np.random.default_rng(seed)
    arrays = {}
    for split, count in (("train", train), ("t10k", test)):
        labels = np.arange(count) % 10
        images = random.integers(0, 60, (count, 28, 28))
        for image, label in zip(images, labels, strict=True):
            image[4 + 2 * label : 6 + 2 * label, 4:24] = 255
        arrays[f"{split}-images-idx3-ubyte"] = images
        arrays[f"{split}-labels-idx1-ubyte"] = labels
    return arrays


def write_idx(folder: Path, arrays: dict[str, np.ndarray], *, gzipped: bool = False) -> Path:
    """Write the four files into `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    for name in FILES:
        content = idx_bytes(arrays[name])
        if gzipped:
            (folder / f"{name}.gz").write_bytes(gzip.compress(content))
        else:
            (folder / name).write_bytes(content)
    return folder


@pytest.fixture(scope="session")
def synthetic_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a tiny data set of one's own."""
    return write_idx(tmp_path_factory.mktemp("synthetic"), synthetic_arrays())


@pytest.fixture(scope="session")
def mnist_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder into which the embedded MNIST has been unpacked."""
    root = tmp_path_factory.mktemp("mnist")
    load_images("mnist", root)
    return root


@pytest.fixture(scope="session")
def mnist(mnist_root: Path) -> Images:
    """All of MNIST."""
    return load_images("mnist", mnist_root)


def without_times(results: Results) -> dict[str, object]:
    """What two runs that did the same have in common: everything but when, where and how fast."""
    found = results.model_dump(mode="json")
    for key in ("started", "seconds", "command", "environment", "config"):
        del found[key]
    for run in found["runs"]:
        for epoch in run["epochs"]:
            del epoch["seconds"]
    return found


@pytest.fixture(scope="session")
def tiny_arguments(synthetic_root: Path) -> tuple[str, ...]:
    """Options for a run of a second or two that has every part."""
    return (*TINY, "--data-root", str(synthetic_root))


@pytest.fixture(scope="session")
def tiny_run(tiny_arguments: tuple[str, ...], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a complete tiny run."""
    out = tmp_path_factory.mktemp("tiny")
    assert main([*tiny_arguments, "--out", str(out), "--name", "tiny"]) == 0
    (folder,) = out.iterdir()
    return folder
