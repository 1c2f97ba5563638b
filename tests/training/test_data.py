"""The images: good, missing, misplaced and damaged files."""

from __future__ import annotations

import gzip
import hashlib
import os
import shutil
from pathlib import Path
from urllib.error import URLError

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision import datasets

from training import data
from training.data import EMBEDDED, FILES, MNIST_MD5, Images, load_images
from training.errors import CannotWriteError, StudyError

from .conftest import idx_bytes, synthetic_arrays, write_idx

MNIST_PLACE = Path("MNIST/raw")


def assert_holds(images: Images, arrays: dict[str, np.ndarray]) -> None:
    for tensor, name in zip((images.train, images.train_labels, images.test, images.test_labels), FILES, strict=True):
        np.testing.assert_array_equal(tensor.numpy(), arrays[name])


def test_all_of_mnist_is_read_as_torchvision_reads_it(mnist: Images, mnist_root: Path) -> None:
    train, test = (datasets.MNIST(mnist_root, train=train, download=False) for train in (True, False))
    assert mnist.train.shape == (60_000, 28, 28)
    assert mnist.test.shape == (10_000, 28, 28)
    assert torch.equal(mnist.train, train.data)
    assert torch.equal(mnist.train_labels, train.targets)
    assert torch.equal(mnist.test, test.data)
    assert torch.equal(mnist.test_labels, test.targets)


def test_the_attribution_lists_the_checksums_that_are_held_to() -> None:
    attribution = (EMBEDDED / "README.md").read_text(encoding="utf-8")
    assert "CC BY-SA 3.0" in attribution
    for name, md5 in MNIST_MD5.items():
        assert f"| {name} |" in attribution
        assert md5 in attribution


def test_files_are_unpacked_once(mnist_root: Path, tmp_path: Path) -> None:
    shutil.copytree(mnist_root, tmp_path, dirs_exist_ok=True)
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / MNIST_PLACE).iterdir()}
    assert {path.name for path in before} == set(FILES)
    load_images("mnist", tmp_path)
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / MNIST_PLACE).iterdir()} == before


def test_without_a_root_the_cache_of_the_user_is_used(
    mnist_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(data.platformdirs, "user_cache_path", lambda name, appauthor: tmp_path / name)
    (tmp_path / "torchlosses").symlink_to(mnist_root)
    assert len(load_images("mnist", None).train) == 60_000


@pytest.mark.parametrize("name", FILES)
def test_a_damaged_mnist_file_is_named(mnist_root: Path, tmp_path: Path, name: str) -> None:
    folder = tmp_path / MNIST_PLACE
    shutil.copytree(mnist_root / MNIST_PLACE, folder)
    content = bytearray((folder / name).read_bytes())
    content[-1] ^= 1
    (folder / name).write_bytes(content)
    with pytest.raises(StudyError, match=f"{name} is damaged: its MD5 is"):
        load_images("mnist", tmp_path)


def test_a_cut_mnist_file_is_named(mnist_root: Path, tmp_path: Path) -> None:
    folder = tmp_path / MNIST_PLACE
    shutil.copytree(mnist_root / MNIST_PLACE, folder)
    os.truncate(folder / FILES[0], 1000)
    with pytest.raises(StudyError, match=rf"{FILES[0]} is damaged.*put a whole copy there") as caught:
        load_images("mnist", tmp_path)
    # What lies in a folder of one's own is not to be deleted on our advice.
    assert "delete" not in str(caught.value)


def test_a_missing_mnist_file_is_unpacked_again(mnist_root: Path, tmp_path: Path) -> None:
    folder = tmp_path / MNIST_PLACE
    shutil.copytree(mnist_root / MNIST_PLACE, folder)
    (folder / FILES[3]).unlink()
    load_images("mnist", tmp_path)
    assert hashlib.md5((folder / FILES[3]).read_bytes()).hexdigest() == MNIST_MD5[FILES[3]]


@pytest.mark.parametrize("damage", ["cut", "content", "no gzip", "missing"])
def test_a_damaged_embedded_file_is_named_and_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, damage: str
) -> None:
    embedded = tmp_path / "embedded"
    shutil.copytree(EMBEDDED, embedded)
    monkeypatch.setattr(data, "EMBEDDED", embedded)
    victim = embedded / f"{FILES[0]}.gz"
    if damage == "cut":
        os.truncate(victim, victim.stat().st_size // 2)
    elif damage == "content":
        victim.write_bytes(gzip.compress(b"something else"))
    elif damage == "no gzip":
        victim.write_bytes(b"version https://git-lfs.github.com/spec/v1")
    else:
        victim.unlink()
    with pytest.raises(StudyError, match=f"{FILES[0]}.gz is (damaged|missing)"):
        load_images("mnist", tmp_path / "cache")
    left = tmp_path / "cache" / MNIST_PLACE
    assert not left.exists() or not list(left.iterdir())


@pytest.mark.parametrize("place", ["", "raw", "FashionMNIST/raw", "FashionMNIST", "fashion-mnist"])
@pytest.mark.parametrize("gzipped", [False, True])
def test_files_are_found_in_any_usual_place_and_used_as_they_are(tmp_path: Path, place: str, gzipped: bool) -> None:
    arrays = synthetic_arrays(30, 20)
    folder = write_idx(tmp_path / place, arrays, gzipped=gzipped)
    before = sorted(folder.iterdir())
    assert_holds(load_images("fashion-mnist", tmp_path), arrays)
    assert sorted(folder.iterdir()) == before


def test_gzipped_and_plain_files_may_be_mixed(tmp_path: Path) -> None:
    arrays = synthetic_arrays(30, 20)
    write_idx(tmp_path, arrays, gzipped=True)
    (tmp_path / f"{FILES[1]}.gz").unlink()
    (tmp_path / FILES[1]).write_bytes(idx_bytes(arrays[FILES[1]]))
    assert_holds(load_images("kmnist", tmp_path), arrays)


def _break(arrays: dict[str, np.ndarray], name: str, damage: str) -> bytes:
    content = idx_bytes(arrays[name])
    if damage == "cut":
        return content[:-1]
    if damage == "too long":
        return content + b"\0"
    if damage == "empty":
        return b""
    if damage == "wrong kind":
        return b"\0\0\x09" + content[3:]
    if damage == "no entries":
        return content[:4] + b"\0\0\0\0" + content[8:]
    raise ValueError(damage)


@pytest.mark.parametrize("name", [FILES[0], FILES[3]])
@pytest.mark.parametrize("damage", ["cut", "too long", "empty", "wrong kind", "no entries"])
def test_a_damaged_file_of_another_data_set_is_named(tmp_path: Path, name: str, damage: str) -> None:
    arrays = synthetic_arrays(30, 20)
    write_idx(tmp_path, arrays)
    (tmp_path / name).write_bytes(_break(arrays, name, damage))
    with pytest.raises(StudyError, match=f"{name} is damaged"):
        load_images("fashion-mnist", tmp_path)


def test_a_damaged_gzipped_file_is_named(tmp_path: Path) -> None:
    write_idx(tmp_path, synthetic_arrays(30, 20), gzipped=True)
    victim = tmp_path / f"{FILES[2]}.gz"
    os.truncate(victim, victim.stat().st_size - 20)
    with pytest.raises(StudyError, match=f"{FILES[2]}.gz is damaged"):
        load_images("fashion-mnist", tmp_path)


def test_labels_outside_the_classes_are_refused(tmp_path: Path) -> None:
    arrays = synthetic_arrays(30, 20)
    arrays[FILES[1]][7] = 10
    write_idx(tmp_path, arrays)
    with pytest.raises(StudyError, match=f"{FILES[1]} is damaged: it holds the label 10"):
        load_images("fashion-mnist", tmp_path)


def test_images_of_another_size_are_refused(tmp_path: Path) -> None:
    arrays = synthetic_arrays(30, 20)
    arrays[FILES[0]] = arrays[FILES[0]][:, :27]
    write_idx(tmp_path, arrays)
    with pytest.raises(StudyError, match="27 x 28"):
        load_images("fashion-mnist", tmp_path)


def test_images_and_labels_must_be_of_one_number(tmp_path: Path) -> None:
    arrays = synthetic_arrays(30, 20)
    arrays[FILES[1]] = arrays[FILES[1]][:29]
    write_idx(tmp_path, arrays)
    with pytest.raises(StudyError, match="30 train images but 29 train labels"):
        load_images("fashion-mnist", tmp_path)


def test_without_a_network_the_error_says_which_files_to_put_where(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def unreachable(*args: object, **kwargs: object) -> None:
        raise URLError("no network")

    monkeypatch.setattr("torchvision.datasets.mnist.download_and_extract_archive", unreachable)
    with pytest.raises(StudyError) as caught:
        load_images("kmnist", tmp_path)
    message = str(caught.value)
    assert str(tmp_path / "KMNIST" / "raw") in message
    assert "no network" in message
    assert "--data-root" in message
    assert all(name in message for name in FILES)


def test_a_download_is_read_from_where_torchvision_puts_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    arrays = synthetic_arrays(30, 20)

    def pretend(url: str, download_root: str, filename: str, md5: str) -> None:
        name = filename.removesuffix(".gz")
        (Path(download_root) / name).write_bytes(idx_bytes(arrays[name]))

    monkeypatch.setattr("torchvision.datasets.mnist.download_and_extract_archive", pretend)
    assert_holds(load_images("fashion-mnist", tmp_path), arrays)


def test_a_root_that_cannot_be_written_to_is_an_error_in_words(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(CannotWriteError, match=r"could not be written .*another --data-root"):
        load_images("mnist", tmp_path / "file")


@pytest.mark.parametrize("dataset", ["mnist", "fashion-mnist"])
@pytest.mark.parametrize("place", ["", "raw"])
def test_a_folder_with_some_of_the_four_files_is_not_filled(tmp_path: Path, dataset: str, place: str) -> None:
    folder = write_idx(tmp_path / place, synthetic_arrays(30, 20))
    (folder / FILES[1]).unlink()
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(
        StudyError, match=f"only some of the four files, and nothing is added to it; missing: {FILES[1]}"
    ):
        load_images(dataset, tmp_path)
    assert sorted(tmp_path.rglob("*")) == before


def test_damaged_files_in_the_cache_may_be_deleted(
    mnist_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(data.platformdirs, "user_cache_path", lambda name, appauthor: tmp_path)
    shutil.copytree(mnist_root, tmp_path, dirs_exist_ok=True)
    os.truncate(tmp_path / MNIST_PLACE / FILES[0], 1000)
    with pytest.raises(StudyError, match="delete it to have it fetched again"):
        load_images("mnist", None)


@pytest.mark.parametrize("gzipped", [False, True])
def test_four_files_of_one_s_own_are_read_under_no_other_name(tmp_path: Path, gzipped: bool) -> None:
    arrays = synthetic_arrays(30, 20)
    write_idx(tmp_path, arrays, gzipped=gzipped)
    assert_holds(load_images("own", tmp_path), arrays)


def test_a_folder_of_pictures_is_read_by_digit(tmp_path: Path) -> None:
    for split, count in (("train", 3), ("test", 2)):
        for digit in (0, 7):
            folder = tmp_path / split / str(digit)
            folder.mkdir(parents=True)
            for index in range(count):
                picture = Image.new("RGB", (56, 56), (10 * digit + index,) * 3)
                picture.save(folder / f"{index}.png")
    images = load_images("own", tmp_path)
    assert images.train.shape == (6, 28, 28)
    assert images.test.shape == (4, 28, 28)
    assert images.train_labels.tolist() == [0, 0, 0, 7, 7, 7]
    assert images.train[:, 5, 5].tolist() == [0, 1, 2, 70, 71, 72]
    (tmp_path / "train" / "7" / "note.txt").write_text("no picture")
    with pytest.raises(StudyError, match=r"note\.txt cannot be read as a picture"):
        load_images("own", tmp_path)


def test_own_images_that_are_not_there_are_explained(tmp_path: Path) -> None:
    with pytest.raises(StudyError, match=r"neither four IDX files .* nor pictures in train/0 to train/9"):
        load_images("own", tmp_path)
    assert not list(tmp_path.iterdir())
    explained = (EMBEDDED / "README.md").read_text(encoding="utf-8")
    assert "--dataset own" in explained
