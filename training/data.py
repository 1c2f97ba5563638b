"""The images: found or unpacked, checked, and read through torchvision.

MNIST itself is embedded beside this file. Fashion-MNIST and KMNIST are read from a folder, or downloaded by
torchvision. One's own images are four IDX files, or a folder of pictures for each digit.
"""

from __future__ import annotations

import gzip
import hashlib
import shutil
import socket
import tempfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from urllib.error import URLError

import numpy as np
import platformdirs
import torch
from PIL import Image
from torch import Tensor
from torchvision import datasets

from training.errors import CannotWriteError, StudyError
from training.files import atomic_path

EMBEDDED = Path(__file__).parent / "data"

# The name of each uncompressed file and the MD5 of the original MNIST file of that name.
MNIST_MD5 = {
    "train-images-idx3-ubyte": "6bbc9ace898e44ae57da46a324031adb",
    "train-labels-idx1-ubyte": "a25bea736e30d166cdddb491f175f624",
    "t10k-images-idx3-ubyte": "2646ac647ad5339dbf082846283269ea",
    "t10k-labels-idx1-ubyte": "27ae3e4e09519cfbb04c329615203637",
}
FILES = tuple(MNIST_MD5)

DATASETS: dict[str, type[datasets.MNIST]] = {
    "mnist": datasets.MNIST,
    "fashion-mnist": datasets.FashionMNIST,
    "kmnist": datasets.KMNIST,
    # Read as MNIST's files are, and never looked for elsewhere.
    "own": datasets.MNIST,
}

_UNREADABLE_GZIP = (gzip.BadGzipFile, EOFError, zlib.error)
_DOWNLOAD_TIMEOUT = 30.0
_SIDE = 28
_CLASSES = 10


@dataclass(frozen=True)
class Images:
    """All images, uint8 of shape (count, 28, 28), with their labels, int64 of shape (count,)."""

    train: Tensor
    train_labels: Tensor
    test: Tensor
    test_labels: Tensor

    def first(self, train: int | None, test: int | None) -> Images:
        """Only the first so many of each; None means all."""
        return Images(self.train[:train], self.train_labels[:train], self.test[:test], self.test_labels[:test])


def default_root() -> Path:
    """The folder in the user's cache where data sets are kept."""
    return platformdirs.user_cache_path("torchlosses", appauthor=False)


def load_images(dataset: str, root: Path | None) -> Images:
    """Read all of `dataset`, from `root` where it has the files, else unpacked or downloaded into it.

    Raises:
        StudyError: a file is damaged (it is named), or cannot be found, unpacked or downloaded.
    """
    if dataset == "own":
        if root is None:
            raise StudyError("--dataset own needs --data-root, the folder with your images")
        folder = next((place for place in (root, root / "raw") if all(_existing(place, name) for name in FILES)), None)
        return _load_pictures(root) if folder is None else _load_idx(dataset, folder, "put a whole copy there")
    advice = (
        "delete it to have it fetched again, or put a whole copy there"
        if root is None
        else "put a whole copy there; images of your own are for --dataset own"
    )
    chosen = default_root() if root is None else root
    folder = find_folder(chosen, dataset)
    if folder is None:
        if root is not None:
            _refuse_to_fill(chosen, dataset)
        folder = _obtain(chosen, dataset)
    return _load_idx(dataset, folder, advice)


def _load_idx(dataset: str, folder: Path, advice: str) -> Images:
    with _unpacked(folder) as raw:
        for name in FILES:
            check_file(raw / name, dataset, _existing(folder, name) or folder / name, advice)
        train, test = (_read(dataset, raw, train=train) for train in (True, False))
    for images, labels, split in ((train.data, train.targets, "train"), (test.data, test.targets, "t10k")):
        if len(images) != len(labels):
            raise StudyError(f"{folder}: {len(images)} {split} images but {len(labels)} {split} labels")
    return Images(train.data, train.targets, test.data, test.targets)


def _load_pictures(root: Path) -> Images:
    """The pictures in train/<digit> and test/<digit>, turned into grey levels of 28 x 28."""
    tensors: list[Tensor] = []
    for split in ("train", "test"):
        paths = [(path, digit) for digit in range(_CLASSES) for path in _pictures(root / split / str(digit))]
        if not paths:
            missing = ", ".join(name for name in FILES if not _existing(root, name))
            raise StudyError(
                f"--data-root: {root} holds neither four IDX files (missing: {missing}) nor pictures in "
                f"{split}/0 to {split}/9; training/data/README.md shows both ways to bring images of your own"
            )
        images = torch.empty(len(paths), _SIDE, _SIDE, dtype=torch.uint8)
        for index, (path, _) in enumerate(paths):
            try:
                with Image.open(path) as picture:
                    grey = picture.convert("L").resize((_SIDE, _SIDE), Image.Resampling.BILINEAR)
            except (OSError, ValueError) as error:
                raise StudyError(f"{path} cannot be read as a picture ({error})") from error
            images[index] = torch.from_numpy(np.asarray(grey).copy())
        tensors += [images, torch.tensor([digit for _, digit in paths])]
    return Images(*tensors)


def _pictures(folder: Path) -> list[Path]:
    return sorted(path for path in folder.glob("*") if path.is_file() and not path.name.startswith("."))


def _places(root: Path, dataset: str) -> tuple[Path, ...]:
    name = DATASETS[dataset].__name__
    return (root / name / "raw", root / name, root / dataset, root / "raw", root)


def find_folder(root: Path, dataset: str) -> Path | None:
    """The folder at or under `root` that holds all four files, gzipped or not; None where there is none."""
    return next((place for place in _places(root, dataset) if all(_existing(place, file) for file in FILES)), None)


def _refuse_to_fill(root: Path, dataset: str) -> None:
    """Raise StudyError where `root` holds some of the four files: the others may be somebody's own.

    Unless they are the originals where MNIST is unpacked to, as an unpacking that was stopped leaves them.
    """
    for place in _places(root, dataset):
        present = {name: path for name in FILES if (path := _existing(place, name))}
        ours = dataset == "mnist" and place == root / DATASETS[dataset].__name__ / "raw"
        if present and not (ours and all(_md5(path) == MNIST_MD5[name] for name, path in present.items())):
            missing = ", ".join(name for name in FILES if name not in present)
            raise StudyError(
                f"--data-root: {place} has only some of the four files, and nothing is added to it; missing: {missing}"
            )


def check_file(path: Path, dataset: str, shown_as: Path, advice: str) -> None:
    """Raise StudyError, naming the file and giving the advice, unless it is whole.

    For MNIST the checksum must be the original's; for the others the header must fit the contents.
    """
    if dataset == "mnist":
        found, expected = _md5(path), MNIST_MD5[path.name]
        problem = "" if found == expected else f"its MD5 is {found}, not {expected} as in the original"
    else:
        problem = _structural_problem(path.read_bytes(), is_images="images" in path.name)
    if problem:
        raise StudyError(f"{shown_as} is damaged: {problem}; {advice}")


def _md5(path: Path) -> str:
    return hashlib.md5(path.read_bytes(), usedforsecurity=False).hexdigest()


def _structural_problem(content: bytes, *, is_images: bool) -> str:
    dimensions = 3 if is_images else 1
    header = 4 + 4 * dimensions
    if len(content) < header or content[:4] != bytes((0, 0, 8, dimensions)):
        return f"it does not start as an IDX file of bytes with {dimensions} dimension(s) does"
    sizes = [int.from_bytes(content[4 + 4 * i : 8 + 4 * i], "big") for i in range(dimensions)]
    if is_images and sizes[1:] != [_SIDE, _SIDE]:
        return f"its images are {sizes[1]} x {sizes[2]}, not {_SIDE} x {_SIDE}"
    expected = header + sizes[0] * (_SIDE * _SIDE if is_images else 1)
    if sizes[0] == 0 or len(content) != expected:
        return f"it has {len(content)} bytes, where its header of {sizes[0]} entries calls for {expected}"
    if not is_images and max(content[header:]) >= _CLASSES:
        return f"it holds the label {max(content[header:])}, above {_CLASSES - 1}"
    return ""


def _existing(folder: Path, name: str) -> Path | None:
    return next((path for path in (folder / name, folder / f"{name}.gz") if path.is_file()), None)


def _read(dataset: str, raw: Path, *, train: bool) -> datasets.MNIST:
    # torchvision looks in root/<class name>/raw only; naming the folder lets it read from any place.
    reader = type("_FromFolder", (DATASETS[dataset],), {"raw_folder": property(lambda self: str(raw))})
    return reader(raw, train=train)


@contextmanager
def _unpacked(folder: Path) -> Iterator[Path]:
    """`folder` itself if its files are uncompressed, else a temporary folder with uncompressed ones."""
    if all((folder / name).is_file() for name in FILES):
        yield folder
        return
    with tempfile.TemporaryDirectory() as temporary:
        try:
            for name in FILES:
                path = _existing(folder, name)
                if path is None:
                    raise StudyError(f"{folder / name} is missing")
                if path.suffix == ".gz":
                    _gunzip(path, Path(temporary) / name)
                else:
                    shutil.copyfile(path, Path(temporary) / name)
        except OSError as error:
            raise CannotWriteError(Path(temporary), error) from error
        yield Path(temporary)


def _gunzip(source: Path, target: Path) -> None:
    try:
        with gzip.open(source) as compressed, target.open("wb") as file:
            shutil.copyfileobj(compressed, file, length=1 << 20)
    except _UNREADABLE_GZIP as error:
        raise StudyError(f"{source} is damaged: {error}; replace it by a whole copy") from error


def _obtain(root: Path, dataset: str) -> Path:
    """Unpack or download the files into torchvision's usual place under `root`, and return that folder."""
    reader = DATASETS[dataset]
    folder = root / reader.__name__ / "raw"
    if dataset == "mnist":
        try:
            for name in FILES:
                if _existing(folder, name) is None:
                    _unpack_embedded(name, folder)
        except CannotWriteError as error:
            raise CannotWriteError(folder, error.cause, "make room or choose another --data-root") from error
        return folder
    try:
        _download(reader, root)
    except (OSError, URLError, RuntimeError) as error:
        names = ", ".join(f"{name}.gz" for name in FILES)
        reason = str(error).strip().splitlines()[-1]
        raise StudyError(
            f"{dataset} is not in {root} and could not be downloaded ({reason}); put {names} "
            f"(gzipped or not) into {folder}, or name the folder that has them with --data-root"
        ) from error
    return folder


def _unpack_embedded(name: str, folder: Path) -> None:
    source = EMBEDDED / f"{name}.gz"
    if not source.is_file():
        raise StudyError(f"{source} is missing; it belongs to the checkout (try `git checkout -- {source}`)")
    with atomic_path(folder / name) as target:
        _gunzip(source, target)
        found = _md5(target)
        if found != MNIST_MD5[name]:
            raise StudyError(f"{source} is damaged: its contents have MD5 {found}, not {MNIST_MD5[name]}")


def _download(reader: type[datasets.MNIST], root: Path) -> None:
    root.mkdir(parents=True, exist_ok=True)
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(_DOWNLOAD_TIMEOUT)
    try:
        reader(root, download=True)
    finally:
        socket.setdefaulttimeout(before)
