"""The command that measures: end to end on tiny inputs, and what it says about bad options."""

from __future__ import annotations

import io
from pathlib import Path

import pytest
from rich.console import Console

from benchmarks import run
from benchmarks.cases import Workload
from benchmarks.errors import BenchmarkError
from benchmarks.implementations import IMPLEMENTATIONS, LIMITS
from benchmarks.results import read_results

# Only a forward, as most of the time goes into compiling it.
TINY = (Workload("mse_loss", (5,), "float64", passes=("forward",), settings=("all", "pages"), memory=True),)


@pytest.mark.parametrize("whole", [False, pytest.param(True, marks=pytest.mark.thorough)])
def test_a_tiny_run_leaves_complete_results(
    whole: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Each setting, and the memory, is a process of its own, which compiles: `make test` has one."""
    monkeypatch.setattr(run, "CASES", TINY)
    path = tmp_path / "results.json"
    chosen = [] if whole else ["--settings", "pages", "--no-memory"]
    assert run.main(["--out", str(path), "--seconds", "0.001", *chosen]) == 0
    printed = capsys.readouterr().out
    assert f"results: {path}" in printed
    found = read_results(path)
    assert found.command == " ".join(("python -m benchmarks.run --out", str(path), "--seconds 0.001", *chosen))
    everyone = {implementation.name for implementation in IMPLEMENTATIONS if "mse_loss" in implementation.losses}
    if found.environment.backend != "native":
        everyone.remove("native")
    limits = {limit.name for limit in LIMITS if "mse_loss" in limit.losses}
    for setting in ("all", "pages") if whole else ("pages",):
        measured = {timing.implementation for timing in found.timings if timing.setting == setting}
        assert measured == everyone | limits
    assert {peak.implementation for peak in found.memory} == (everyone | {"clone"} if whole else set())
    assert {(peak.loss, peak.unit_bytes) for peak in found.memory} == ({("mse_loss", 40)} if whole else set())
    (pages,) = (setting for setting in found.settings if setting.name == "pages")
    assert pages.environment == {"THP_MEM_ALLOC_ENABLE": "1"}


def test_a_process_that_fails_is_reported_with_its_last_words(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCHLOSSES_BACKEND", "quantum")
    options = run.Options(seconds=0.001, memory=False, settings=("all",))
    with pytest.raises(
        BenchmarkError, match=r"(?s)failed with exit code 1; its last lines:.*'quantum' is not a backend"
    ):
        run.measure(TINY[:1], options, "", Console(file=io.StringIO()))


def test_a_wrong_implementation_is_told_in_one_line() -> None:
    assert run._failure(1, "W: a warning\nerror: native is wrong on x\n") == "native is wrong on x"
    assert run._failure(-9, "").startswith(
        "the process that measures was ended by SIGKILL; its last lines:\nit left no"
    )


BAD = {
    "--seconds 0": "--seconds must be above 0 and at most 600, not 0.0",
    "--seconds nan": "--seconds must be above 0 and at most 600, not nan",
    "--losses mse_loss mse_loss": "--losses takes one or more names, each once",
    "--out .": "--out must be a file, and . is a folder",
    "--losses hinge": "cross_entropy",
    "--setings all": "--settings",
}


@pytest.mark.parametrize("options", BAD)
def test_bad_options_end_with_the_reason(options: str, capsys: pytest.CaptureFixture[str]) -> None:
    try:
        code = run.main(options.split())
    except SystemExit as exit_request:
        code = exit_request.code
    captured = capsys.readouterr()
    assert code == run.USAGE_ERROR
    assert BAD[options] in captured.err
    assert not captured.out


def test_help_names_every_option(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as exit_request:
        run.main(["--help"])
    assert exit_request.value.code == 0
    shown = capsys.readouterr().out
    for option in ("--quick", "--losses", "--settings", "--seconds", "--no-memory", "--out"):
        assert option in shown


def test_a_quick_run_is_shorter_and_has_a_file_of_its_own() -> None:
    quick, full = run.parse_options(["--quick"]), run.parse_options([])
    assert set(quick.cases) < set(full.cases)
    assert quick.seconds < full.seconds
    assert set(quick.settings) < set(full.settings)
    assert (quick.path, full.path) == (run.QUICK, run.FULL)
    assert run.parse_options(["--quick", "--seconds", "5", "--losses", "cee_loss"]).seconds == 5
