"""A run that was killed or interrupted goes on to the same result."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from training.compare import main
from training.results import Results, read_results
from training.study import Study

from .conftest import without_times


def start(arguments: tuple[str, ...], out: Path) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "training.compare", *arguments, "--out", str(out), "--name", "tiny"],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stderr=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        text=True,
    )


def wait_for_runs(process: subprocess.Popen[str], out: Path, runs: int) -> Path:
    """Wait until so many objectives have begun, and return the folder."""
    while process.poll() is None:
        for path in out.glob("*/results.json"):
            if len(read_results(path).runs) >= runs:
                return path.parent
        time.sleep(0.002)
    raise AssertionError(f"the run ended too early: {process.stderr.read() if process.stderr else ''}")


def test_a_killed_run_goes_on_to_the_same_result(
    tiny_arguments: tuple[str, ...], tiny_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    process = start(tiny_arguments, tmp_path)
    folder = wait_for_runs(process, tmp_path, runs=4)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert process.returncode == -signal.SIGKILL
    interrupted = read_results(folder / "results.json")
    assert not interrupted.complete
    assert main(["--resume", str(folder)]) == 0
    resumed = read_results(folder / "results.json")
    assert without_times(resumed) == without_times(read_results(tiny_run / "results.json"))
    assert resumed.started == interrupted.started
    assert resumed.seconds > interrupted.seconds
    assert not (folder / "checkpoints").exists()
    before = (folder / "results.json").read_bytes()
    capsys.readouterr()
    assert main(["--resume", str(folder)]) == 0
    assert "is complete" in capsys.readouterr().err
    assert (folder / "results.json").read_bytes() == before


def test_control_c_leaves_a_usable_run(tiny_arguments: tuple[str, ...], tiny_run: Path, tmp_path: Path) -> None:
    process = start(tiny_arguments, tmp_path)
    folder = wait_for_runs(process, tmp_path, runs=2)
    process.send_signal(signal.SIGINT)
    _, error = process.communicate()
    assert process.returncode == 130, error
    assert "Traceback" not in error
    assert f"--resume {folder}" in error
    assert (folder / "report.html").exists()
    interrupted = read_results(folder / "results.json")
    assert not interrupted.complete
    assert main(["--resume", str(folder)]) == 0
    assert without_times(read_results(folder / "results.json")) == without_times(
        read_results(tiny_run / "results.json")
    )


class StopError(Exception):
    """Ends a run from within, as a loss of power would."""


# A tiny run saves 45 times: after each of 28 epochs, 14 objectives and 2 experiments, and at the end.
@pytest.mark.parametrize("saves", [0, 1, 2, 3, 29, 30, 41, 42, 43, 44])
def test_a_run_may_stop_at_any_moment_of_writing(
    tiny_arguments: tuple[str, ...], tiny_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, saves: int
) -> None:
    monkeypatch.setattr("training.report.write_report", lambda results, folder: folder / "report.html")
    original = Study._save
    done = 0

    def save_or_stop(self: Study, *, complete: bool) -> Results:
        nonlocal done
        if done >= saves:
            raise StopError
        done += 1
        return original(self, complete=complete)

    with monkeypatch.context() as patch:
        patch.setattr(Study, "_save", save_or_stop)
        with pytest.raises(StopError):
            main([*tiny_arguments, "--out", str(tmp_path), "--name", "tiny"])
    (folder,) = tmp_path.iterdir()
    assert main(["--resume", str(folder)]) == 0
    assert without_times(read_results(folder / "results.json")) == without_times(
        read_results(tiny_run / "results.json")
    )


def test_a_run_without_a_network_it_needs_says_so(
    tiny_arguments: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def stop(self: Study, digits: object) -> None:
        raise StopError

    with monkeypatch.context() as patch:
        patch.setattr(Study, "_experiments", stop)
        with pytest.raises(StopError):
            main([*tiny_arguments, "--out", str(tmp_path)])
    (folder,) = tmp_path.iterdir()
    kept = sorted(path.name for path in (folder / "checkpoints").iterdir())
    assert kept == ["digit-cross-entropy-seed0.pt", "digit-mse-softmax-seed0.pt"]
    shutil.rmtree(folder / "checkpoints")
    assert main(["--resume", str(folder)]) == 2
    assert "digit-cross-entropy-seed0.pt is gone" in capsys.readouterr().err
