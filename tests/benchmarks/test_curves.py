"""How the time grows, what an import costs, what an argument costs: measured tiny, kept point by point."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from benchmarks import arguments, curves, import_time
from benchmarks.cases import Workload
from benchmarks.implementations import IMPLEMENTATIONS, LIMITS
from benchmarks.results import ImportTimes, Results, read_record, read_results
from benchmarks.worker import Step

from .synthetic_results import timing


def test_points_far_apart_come_first() -> None:
    assert curves.far_apart_first([1, 2, 3, 4, 5]) == [5, 1, 3, 2, 4]
    assert curves.far_apart_first([7]) == [7]
    assert curves.far_apart_first([]) == []
    listed = curves.points(curves.LOSSES, 262_144)
    assert len(set(listed)) == len(listed) == 7 * (7 + 6)
    # Each loss has the ends of both curves before any has a third point.
    first = listed[: 7 * 4]
    assert {case.loss for case in first} == set(curves.LOSSES)
    assert {case.shape[-1] for case in first if case.shape[0] == curves.ROWS} == {2, 262_144}


def test_who_is_drawn_is_measured_and_nobody_else() -> None:
    for case in curves.points(curves.LOSSES, 2):
        serving = [i.name for i in IMPLEMENTATIONS if i.serves(case, "forward+backward")]
        limits = [limit.name for limit in LIMITS if limit.serves(case)]
        assert {"torch", "compiled"} <= set(serving) <= {"native", "torch", "compiled"}
        assert limits == (["products"] if case.loss == "linear_cross_entropy" else ["copy"])


def measured(case: Workload) -> Step:
    return Step(title=str(case), timings=[timing(loss=case.loss, shape=case.shape, passes="forward+backward")])


def test_a_run_that_ends_early_keeps_its_points_and_another_adds_the_rest(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    asked: list[Workload] = []

    def run_job(job: Any) -> Iterator[Step]:
        for case in job.cases:
            asked.append(case)
            yield measured(case)

    monkeypatch.setattr(curves, "run_job", run_job)
    path = tmp_path / "curves.json"
    options = ["--losses", "mse_loss", "--out", str(path), "--largest", "128"]
    assert curves.main([*options, "--budget", "1e-9"]) == 0
    assert len(asked) == len(read_results(path).timings) == 1
    assert "5 points are left" in capsys.readouterr().err
    assert curves.main([*options, "--resume"]) == 0
    shapes = [case.shape for case in asked]
    assert len(shapes) == len(set(shapes)) == 6
    assert {found.shape for found in read_results(path).timings} == set(shapes)
    assert curves.main([*options, "--resume"]) == 0
    assert len(asked) == 6


@pytest.mark.thorough
def test_a_tiny_curve(tmp_path: Path) -> None:
    path = tmp_path / "curves.json"
    assert curves.main(["--losses", "mse_loss", "--largest", "1", "--seconds", "0.001", "--out", str(path)]) == 0
    found: Results = read_results(path)
    assert {timing.implementation for timing in found.timings} >= {"torch", "compiled", "copy"}
    assert {timing.shape for timing in found.timings} == {(1, curves.CLASSES)}


@pytest.mark.parametrize("option", ["--seconds", "--budget", "--largest"])
def test_options_that_make_no_sense(option: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert curves.main([option, "0"]) == 2
    assert f"{option} must be above 0, not 0" in capsys.readouterr().err


@pytest.mark.thorough
def test_import_times(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "import_time.json"
    assert import_time.main(["--processes", "2", "--out", str(path)]) == 0
    found = read_record(path, ImportTimes)
    assert len(found.torch) == len(found.torchlosses) == 2
    assert 0 < min(found.torchlosses) < min(found.torch)
    assert "at most 60 ms more: " in capsys.readouterr().out
    assert import_time.main(["--processes", "1"]) == 2


def test_an_import_that_fails_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(import_time, "_IMPORTS", "raise ImportError('there is no torch')")
    assert import_time.main(["--processes", "2", "--out", str(tmp_path / "no.json")]) == 2
    assert "the import failed: ImportError: there is no torch" in capsys.readouterr().err
    assert not (tmp_path / "no.json").exists()


def test_memory_by_argument(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Large enough for a tensor to be a mapping of its own; of the cheapest calls, and one that has a temporary."""
    chosen = [asked for asked in arguments.ASKED if asked.title in ("mse_loss(x, t)", "cross_entropy(x, y)")]
    monkeypatch.setattr(arguments, "ASKED", tuple(chosen))
    path = tmp_path / "arguments.json"
    assert arguments.main(["--out", str(path)]) == 0
    found = {(peak.loss, peak.implementation): peak.units for peak in read_results(path).memory}
    assert found["mse_loss(x, t)", "native"] == pytest.approx(1, abs=0.3)
    assert found["cross_entropy(x, y)", "torch"] > 2
