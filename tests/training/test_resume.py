"""A run that was killed or interrupted goes on to the same result."""

from __future__ import annotations

import errno
import itertools
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from training.compare import main
from training.errors import CannotWriteError
from training.files import atomic_path
from training.folders import RunFolder
from training.results import Results, read_results
from training.study import Study

from .conftest import without_times

thorough = pytest.mark.thorough


def start(arguments: tuple[str, ...], out: Path) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "training.compare", *arguments, "--out", str(out), "--name", "tiny"],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stderr=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        text=True,
        # A shell that started the tests in the background has them ignore Ctrl-C, and what they start would too.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )


def wait_for_runs(process: subprocess.Popen[str], out: Path, runs: int) -> Path:
    """Wait until so many objectives have begun, and return the folder."""
    while process.poll() is None:
        for path in out.glob("*/results.json"):
            if len(read_results(path).runs) >= runs:
                return path.parent
        time.sleep(0.002)
    raise AssertionError(f"the run ended too early: {process.stderr.read() if process.stderr else ''}")


@pytest.mark.usefixtures("no_report")
def test_a_killed_run_goes_on_to_the_same_result(
    tiny_arguments: tuple[str, ...], tiny_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    process = start(tiny_arguments, tmp_path)
    folder = wait_for_runs(process, tmp_path, runs=4)
    process.send_signal(signal.SIGSTOP)
    try:
        # As long as there is a process that works on the folder, another one says so.
        assert main(["--resume", str(folder)]) == 2
        assert f"is being worked on by process {process.pid} on" in capsys.readouterr().err
    finally:
        process.send_signal(signal.SIGKILL)
        process.send_signal(signal.SIGCONT)
        process.communicate()
    assert process.returncode == -signal.SIGKILL
    # What holds a folder ends with its process.
    with RunFolder(folder).held():
        pass
    assert not (folder / ".lock").exists()
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


@pytest.mark.thorough
@pytest.mark.usefixtures("no_report")
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


# A tiny run saves 32 times: at the start, after each of 14 epochs, 7 stacks, 4 recoveries, 4 comparisons with torch.nn
# and the gradients, and at the end.
@pytest.mark.parametrize(
    "saves", [3, 25, *(pytest.param(n, marks=thorough) for n in (0, 1, 2, 15, 16, 21, 23, 28, 30, 31))]
)
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


@pytest.mark.usefixtures("no_report")
@pytest.mark.parametrize(
    "damage", ["cut", *(pytest.param(d, marks=thorough) for d in ("removed", "empty", "garbage", "another shape"))]
)
def test_a_network_whose_file_is_damaged_is_trained_again(
    tiny_arguments: tuple[str, ...],
    tiny_run: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    damage: str,
) -> None:
    def stop(self: Study, digits: object) -> None:
        raise StopError

    with monkeypatch.context() as patch:
        patch.setattr(Study, "_gradient_experiment", stop)
        with pytest.raises(StopError):
            main([*tiny_arguments, "--out", str(tmp_path), "--name", "tiny"])
    (folder,) = tmp_path.iterdir()
    kept = sorted(folder.joinpath("checkpoints").iterdir())
    assert [path.name for path in kept] == [
        "digit-cross-entropy-seeds0+1.pt",
        "digit-mse-softmax-seeds0+1.pt",
    ]
    content = kept[0].read_bytes()
    if damage == "removed":
        kept[0].unlink()
    elif damage == "another shape":
        state = torch.load(kept[0])
        state["parameters"]["head.bias"] = torch.zeros(2, 11)
        torch.save(state, kept[0])
    else:
        kept[0].write_bytes({"empty": b"", "cut": content[:1000], "garbage": b"x" * 500}[damage])
    capsys.readouterr()
    assert main(["--resume", str(folder)]) == 0
    if damage != "removed":
        assert "digit-cross-entropy-seeds0+1.pt is damaged" in " ".join(capsys.readouterr().err.split())
    resumed, whole = read_results(folder / "results.json"), read_results(tiny_run / "results.json")
    assert resumed.gradient_experiment is not None
    assert whole.gradient_experiment is not None
    for again, before in zip(resumed.gradient_experiment.curves, whole.gradient_experiment.curves, strict=True):
        # Alone where it was one of a stack: equal but for rounding.
        assert again.measured_gradient == pytest.approx(before.measured_gradient, rel=1e-3, abs=1e-5)


@pytest.fixture
def no_report(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave out the report, which takes longer than all else."""
    monkeypatch.setattr("training.report.write_report", lambda results, folder: folder / "report.html")


@thorough
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_other_signals_leave_a_usable_run_too(tiny_arguments: tuple[str, ...], tmp_path: Path, number: int) -> None:
    process = start(tiny_arguments, tmp_path)
    folder = wait_for_runs(process, tmp_path, runs=2)
    process.send_signal(number)
    # A second one, whatever it is, does not take away what the first one leaves.
    time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    _, error = process.communicate()
    assert process.returncode == 128 + number, error
    assert "Traceback" not in error
    assert f"--resume {folder}" in error
    assert (folder / "report.html").exists()


@pytest.mark.usefixtures("no_report")
@pytest.mark.parametrize("write", [8, *(pytest.param(n, marks=thorough) for n in (0, 3, 17, 30))])
def test_a_full_disk_is_said_in_words_and_the_run_goes_on_once_there_is_room(
    tiny_arguments: tuple[str, ...],
    tiny_run: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    write: int,
) -> None:
    """Results, tables and checkpoints are all written by the same function; one of its calls finds no room."""
    original, calls = os.fsync, itertools.count()

    def fsync(descriptor: int) -> None:
        # The first is that of the configuration.
        if next(calls) == write + 1:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        original(descriptor)

    with monkeypatch.context() as patch:
        patch.setattr("os.fsync", fsync)
        assert main([*tiny_arguments, "--out", str(tmp_path), "--name", "tiny", "--workers", "1"]) == 4
    (folder,) = tmp_path.iterdir()
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith(f"error: {folder}")
    assert "could not be written (No space left on device); make room and go on with" in error
    assert f"--resume {folder}" in error
    assert main(["--resume", str(folder)]) == 0
    assert without_times(read_results(folder / "results.json")) == without_times(
        read_results(tiny_run / "results.json")
    )


def test_a_full_disk_during_the_report_leaves_the_results(
    tiny_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = Path(shutil.copytree(tiny_run, tmp_path / "run"))
    (folder / "report.html").unlink()

    def full(results: Results, directory: Path) -> Path:
        with atomic_path(directory / "figures" / "answer.png"):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("training.report.write_report", full)
    assert main(["--resume", str(folder)]) == 4
    assert "the results are complete; write the report with" in capsys.readouterr().err


@pytest.mark.skipif(os.geteuid() == 0, reason="root writes everywhere")
def test_a_complete_run_can_be_looked_at_on_read_only_media(tiny_run: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(tiny_run, tmp_path / "run"))
    for path in (folder, *folder.rglob("*")):
        path.chmod(0o555 if path.is_dir() else 0o444)
    try:
        assert main(["--resume", str(folder)]) == 0
    finally:
        for path in (folder, *folder.rglob("*")):
            path.chmod(0o755)


@pytest.mark.usefixtures("no_report")
def test_resuming_a_complete_run_removes_what_a_killed_report_left(tiny_run: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(tiny_run, tmp_path / "run"))
    (folder / ".lock").write_text("process 1 on another machine")
    (folder / "figures" / ".answer.png.x.unfinished").write_text("half")
    assert main(["--resume", str(folder)]) == 0
    assert not [path for path in folder.rglob("*") if path.name.startswith(".")]


@pytest.mark.usefixtures("no_report")
def test_a_complete_run_is_not_written_to_while_another_process_does(
    tiny_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = Path(shutil.copytree(tiny_run, tmp_path / "run"))
    with RunFolder(folder).held():
        assert main(["--resume", str(folder)]) == 2
    assert "is being worked on by process" in capsys.readouterr().err


def test_a_complete_run_is_shown_where_its_report_cannot_be_written_again(
    tiny_run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refused(results: Results, directory: Path) -> Path:
        raise CannotWriteError(directory, OSError(errno.EROFS, os.strerror(errno.EROFS)))

    monkeypatch.setattr("training.report.write_report", refused)
    assert main(["--resume", str(tiny_run)]) == 0
    output = capsys.readouterr()
    assert "the report was not written again" in output.err
    assert "Which digit?" in output.out


@pytest.mark.parametrize(("encoding", "reader"), [("ascii", "head -1"), ("ascii", "cat")])
@thorough
def test_any_output_will_do(tiny_run: Path, encoding: str, reader: str) -> None:
    completed = subprocess.run(
        f'{sys.executable} -c "{SHOW}" {tiny_run} | {reader}; exit ${{PIPESTATUS[0]}}',
        shell=True,
        executable="/bin/bash",
        env={**os.environ, "PYTHONIOENCODING": encoding, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )
    assert completed.returncode == 0, completed.stderr
    assert "Traceback" not in completed.stderr
    assert "digit?" in completed.stdout


SHOW = (
    "import sys, training.report; training.report.write_report = lambda results, folder: folder / 'report.html'; "
    "from training.compare import main; sys.exit(main(['--resume', sys.argv[1]]))"
)
