"""Files are whole or absent."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from training.errors import CannotWriteError
from training.files import atomic_path, remove_unfinished, write_text_atomically


def test_the_text_arrives(tmp_path: Path) -> None:
    path = tmp_path / "new" / "folder" / "file.txt"
    write_text_atomically(path, "grüße\n")
    assert path.read_text(encoding="utf-8") == "grüße\n"
    assert list(path.parent.iterdir()) == [path]


def test_an_error_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "file.txt"
    write_text_atomically(path, "old")

    def write_half() -> None:
        with atomic_path(path) as temporary:
            temporary.write_text("half")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_half()
    assert path.read_text(encoding="utf-8") == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_what_cannot_be_written_is_named_and_the_old_file_stays(tmp_path: Path) -> None:
    path = tmp_path / "file.txt"
    write_text_atomically(path, "old")

    def full() -> None:
        with atomic_path(path):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with pytest.raises(CannotWriteError, match=r"file\.txt could not be written \(No space left on device\)"):
        full()
    assert path.read_text(encoding="utf-8") == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_what_a_kill_leaves_is_removed(tmp_path: Path) -> None:
    whole, unfinished = tmp_path / "figures" / "a.png", tmp_path / "figures" / ".a.png.x1y2z3.unfinished"
    whole.parent.mkdir()
    for path in (whole, unfinished):
        path.write_text("content")
    remove_unfinished(tmp_path)
    assert [path.name for path in whole.parent.iterdir()] == ["a.png"]
