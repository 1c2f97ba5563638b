"""A tiny run from end to end."""

from __future__ import annotations

import csv
import json
import re
from pathlib import Path

import pytest

from training.compare import main
from training.config import read_config
from training.data import FILES
from training.measures import ACCURACY, CALIBRATION_ERROR, ROOT_MEAN_SQUARED_ERROR, contenders
from training.results import Results, read_results

from .conftest import without_times

OBJECTIVES = {
    "digit": ["regression-mse", "cross-entropy", "mse-softmax", "mse-raw", "cee-softmax"],
    "angle": ["regression-mse", "cross-entropy"],
}


@pytest.fixture
def no_report(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave out the report, which takes longer than all else and has tests of its own."""
    monkeypatch.setattr("training.report.write_report", lambda results, folder: folder / "report.html")


@pytest.fixture(scope="module")
def results(tiny_run: Path) -> Results:
    return read_results(tiny_run / "results.json")


def test_the_folder_holds_what_is_promised(tiny_run: Path) -> None:
    assert re.fullmatch(r"\d{8}-\d{6}-tiny", tiny_run.name)
    for name in ("config.json", "results.json", "metrics.csv", "report.html"):
        assert (tiny_run / name).stat().st_size > 0
    figures = {path.stem for path in (tiny_run / "figures").iterdir()}
    assert figures
    for figure in figures:
        assert {(tiny_run / "figures" / f"{figure}{kind}").exists() for kind in (".png", ".svg")} == {True}
    # What is only needed to resume is gone.
    assert not (tiny_run / "checkpoints").exists()
    assert not [path for path in tiny_run.rglob("*") if path.name.startswith(".")]


def test_everything_was_trained_on_all_images(results: Results) -> None:
    assert results.complete
    assert (results.train_images, results.test_images) == (96, 40)
    expected = [(task, name, seed) for task, names in OBJECTIVES.items() for seed in (0, 1) for name in names]
    assert [(run.task, run.objective, run.seed) for run in results.runs] == expected
    for run in results.runs:
        assert run.complete
        assert [epoch.epoch for epoch in run.epochs] == [1, 2]
        assert run.details is not None
        for counts in (run.details.confusion or {}).values():
            assert sum(map(sum, counts)) == 40
        for counts in (run.details.residual_counts or {}).values():
            assert sum(counts) == 40
    assert [(found.task, found.name) for found in results.objectives] == [
        (task, name) for task, names in OBJECTIVES.items() for name in names
    ]


def test_the_experiments_and_the_parity_are_part_of_it(results: Results) -> None:
    assert results.gradient_experiment is not None
    assert [curve.objective for curve in results.gradient_experiment.curves] == ["cross-entropy", "mse-softmax"]
    assert results.misread is not None
    assert results.test_labels.values().tolist() == [index % 10 for index in range(40)]
    assert results.recovery_experiment is not None
    assert {(curve.objective, curve.seed) for curve in results.recovery_experiment.curves} == {
        (name, seed) for name in OBJECTIVES["digit"] if name != "regression-mse" for seed in (0, 1)
    }
    assert {(record.loss, record.optimizer) for record in results.parity} == {
        (loss, optimizer) for loss in ("MSELoss", "CrossEntropyLoss") for optimizer in ("Adam", "gradient descent")
    }
    assert all(record.passed for record in results.parity)


def test_the_table_of_metrics_has_a_row_per_objective_seed_and_epoch(tiny_run: Path, results: Results) -> None:
    with (tiny_run / "metrics.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == sum(len(run.epochs) for run in results.runs)
    by_key = {(row["task"], row["objective"], row["seed"], row["epoch"]): row for row in rows}
    for run in results.runs:
        for epoch in run.epochs:
            row = by_key[run.task, run.objective, str(run.seed), str(epoch.epoch)]
            assert float(row["train_loss"]) == epoch.train_loss
            for decoding, decoded in epoch.evaluation.decoded.items():
                assert float(row[f"{decoding.replace(' ', '_')}_accuracy"]) == decoded.accuracy
            has_probabilities = epoch.evaluation.probabilities is not None
            assert (row["brier_score"] != "") == has_probabilities


def test_the_options_are_kept(tiny_run: Path, results: Results) -> None:
    config = read_config(tiny_run / "config.json")
    assert config.batch_size == 10
    assert results.config == json.loads((tiny_run / "config.json").read_text())
    assert "--batch-size 10" in results.command


@pytest.mark.thorough
@pytest.mark.usefixtures("no_report")
def test_the_builtin_losses_give_the_same_study(
    tiny_arguments: tuple[str, ...], results: Results, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*tiny_arguments, "--out", str(tmp_path), "--implementation", "torch"]) == 0
    output = capsys.readouterr()
    assert "Which digit?" in output.out
    assert "report.html" in output.out
    (folder,) = tmp_path.iterdir()
    builtin = read_results(folder / "results.json")
    for ours, theirs in zip(results.runs, builtin.runs, strict=True):
        for mine, other in zip(ours.epochs, theirs.epochs, strict=True):
            assert mine.train_loss == pytest.approx(other.train_loss, rel=1e-3)


@pytest.mark.usefixtures("no_report")
def test_a_run_shows_what_it_does_where_there_is_no_terminal(
    tiny_arguments: tuple[str, ...], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = [*tiny_arguments, "--out", str(tmp_path), "--tasks", "angle", "--objectives", "mse-raw", "--seeds", "1"]
    assert main(arguments) == 0
    lines = capsys.readouterr().err.splitlines()
    # The comparison with torch.nn stands in the same queue.
    epoch = r"angle · mse-raw · seed 0 · epoch 1/2 · loss [\d.]+ .* s a seed · .* left$"
    assert any(re.match(epoch, line) for line in lines)
    assert any(line.startswith("parity · ") for line in lines)
    (folder,) = tmp_path.iterdir()
    results = read_results(folder / "results.json")
    # Without the digit task there is nothing for the experiments to look at.
    assert results.gradient_experiment is None
    assert results.recovery_experiment is None
    assert results.parity


def test_a_failed_parity_fails_the_run_after_writing_it(
    tiny_arguments: tuple[str, ...], tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from training import parity

    monkeypatch.setitem(parity.RULES, "Adam", parity.Rule(parity.RULES["Adam"].optimizer, -1.0, -1.0))
    assert main([*tiny_arguments, "--out", str(tmp_path), "--tasks", "angle", "--seeds", "1", "--epochs", "1"]) == 3
    assert "PARITY FAILED: torchlosses.MSELoss and torch.nn.MSELoss with Adam" in capsys.readouterr().err
    (folder,) = tmp_path.iterdir()
    results = read_results(folder / "results.json")
    assert results.complete
    assert [record.passed for record in results.parity] == [False, True, False, True]
    assert (folder / "report.html").exists()


def test_two_runs_in_one_second_get_folders_of_their_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from datetime import datetime

    from training import folders
    from training.config import Config

    class Stopped(datetime):
        @classmethod
        def now(cls, tz=None) -> datetime:
            return datetime(2025, 1, 2, 3, 4, 5)

    monkeypatch.setattr(folders, "datetime", Stopped)
    folders = [folders.create_folder(Config(out=tmp_path)).path.name for _ in range(3)]
    assert folders == [f"20250102-030405-mnist-mlp{end}" for end in ("", "-2", "-3")]


@pytest.mark.usefixtures("no_report")
@pytest.mark.parametrize("workers", [pytest.param("1", marks=pytest.mark.thorough), "3"])
def test_the_result_does_not_depend_on_how_many_stacks_are_trained_at_a_time(
    tiny_arguments: tuple[str, ...], tmp_path: Path, results: Results, workers: str
) -> None:
    assert main([*tiny_arguments, "--out", str(tmp_path), "--name", "tiny", "--workers", workers]) == 0
    (folder,) = tmp_path.iterdir()
    assert without_times(read_results(folder / "results.json")) == without_times(results)


@pytest.mark.usefixtures("no_report")
def test_tensorboard_logs_every_run(tiny_arguments: tuple[str, ...], tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    arguments = [
        *tiny_arguments,
        "--out",
        str(tmp_path),
        "--tasks",
        "digit",
        "--objectives",
        "mse-raw",
        "--tensorboard",
    ]
    assert main(arguments) == 0
    (folder,) = tmp_path.iterdir()
    logs = {path.parent.name for path in (folder / "tensorboard").rglob("events.*")}
    assert logs == {"digit-mse-raw-seed0", "digit-mse-raw-seed1"}


@pytest.mark.usefixtures("no_report")
def test_mixed_precision_and_the_other_network_run_through(
    tiny_arguments: tuple[str, ...], tmp_path: Path, results: Results
) -> None:
    arguments = [*tiny_arguments, "--out", str(tmp_path), "--amp", "--model", "cnn", "--seeds", "1", "--epochs", "1"]
    assert main(arguments) == 0
    (folder,) = tmp_path.iterdir()
    assert without_times(read_results(folder / "results.json")) != without_times(results)


def test_a_damaged_file_is_named_and_leaves_no_empty_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    raw = tmp_path / "data" / "MNIST" / "raw"
    raw.mkdir(parents=True)
    for name in FILES:
        (raw / name).write_bytes(b"not an IDX file")
    assert main(["--quick", "--data-root", str(tmp_path / "data"), "--out", str(tmp_path / "runs")]) == 2
    message = capsys.readouterr().err.splitlines()[-1]
    assert str(raw / FILES[0]) in message
    assert "is damaged" in message
    assert list((tmp_path / "runs").iterdir()) == []


@pytest.mark.usefixtures("no_report")
def test_the_result_does_not_depend_on_the_stack(
    tiny_arguments: tuple[str, ...], tmp_path: Path, results: Results
) -> None:
    """But for rounding: the products of one network and of several may be computed in another order."""
    assert main([*tiny_arguments, "--out", str(tmp_path), "--name", "tiny", "--stack", "1"]) == 0
    (folder,) = tmp_path.iterdir()
    alone = read_results(folder / "results.json")
    for one, other in zip(results.runs, alone.runs, strict=True):
        assert (one.task, one.objective, one.seed) == (other.task, other.objective, other.seed)
        for stacked, single in zip(one.epochs, other.epochs, strict=True):
            assert stacked.train_loss == pytest.approx(single.train_loss, rel=1e-3)


@pytest.mark.usefixtures("no_report")
@pytest.mark.parametrize(
    ("questions", "others"),
    [
        (["digit", "angle"], 0),
        pytest.param(["digit", "angle", "calibration", "label-noise", "few-images"], 7 * 6, marks=pytest.mark.thorough),
    ],
)
def test_every_objective_and_every_task_runs_through(
    questions: list[str], others: int, tiny_arguments: tuple[str, ...], tmp_path: Path
) -> None:
    arguments = [
        *tiny_arguments,
        "--out",
        str(tmp_path),
        "--all",
        "--seeds",
        "1",
        "--epochs",
        "1",
        "--tasks",
        *questions,
    ]
    assert main([*arguments, "--batch-size", "500"]) == 0
    (folder,) = tmp_path.iterdir()
    results = read_results(folder / "results.json")
    trained = {(run.task, run.objective) for run in results.runs if run.complete}
    assert len(trained) == 8 + 9 + others
    assert (("label-noise-40", "binary-cross-entropy") in trained) == bool(others)
    for run in results.runs:
        assert (run.temperature is not None) == (run.task == "calibration")


@pytest.mark.usefixtures("no_report")
def test_a_run_that_diverges_is_a_result(
    tiny_arguments: tuple[str, ...], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = [*tiny_arguments, "--out", str(tmp_path), "--learning-rate", "1e6", "--tasks", "digit", "--seeds", "2"]
    assert main(arguments) == 0
    output = capsys.readouterr()
    assert "diverged at 1e+06" in output.err
    assert "diverged in 2 of 2" in output.out
    (folder,) = tmp_path.iterdir()
    results = read_results(folder / "results.json")
    assert all(run.diverged for run in results.runs if run.objective in ("regression-mse", "mse-raw"))
    assert {item.rate_source for item in results.objectives} == {"option"}


@pytest.mark.usefixtures("no_report")
def test_a_finished_run_is_given_more_seeds_without_training_the_old_ones_again(
    tiny_arguments: tuple[str, ...],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    options = [*tiny_arguments, "--tasks", "digit", "--objectives", "cross-entropy", "--first-seed", "5"]
    assert main([*options, "--out", str(tmp_path / "few"), "--name", "tiny"]) == 0
    assert main([*options, "--out", str(tmp_path / "many"), "--name", "tiny", "--seeds", "4", "--stack", "2"]) == 0
    (few,), (many,) = ((tmp_path / name).iterdir() for name in ("few", "many"))
    before = read_results(few / "results.json")
    assert [run.seed for run in before.runs] == [5, 6]
    capsys.readouterr()
    assert main(["--resume", str(few), "--seeds", "4"]) == 0
    assert "seeds 5-6 · epoch" not in capsys.readouterr().err
    after = read_results(few / "results.json")
    assert after.runs[:2] == before.runs
    assert without_times(after) == without_times(read_results(many / "results.json"))
    assert main(["--resume", str(few), "--seeds", "2"]) == 2
    assert "the run has 4 already" in capsys.readouterr().err


def test_numbers_fit_a_narrow_terminal(results: Results) -> None:
    from io import StringIO

    from rich.console import Console

    from training.table import print_table

    for width in (40, 50, 80, 120):
        screen = StringIO()
        print_table(results, Console(file=screen, width=width))
        lines = screen.getvalue().splitlines()
        assert max(map(len, lines)) <= width
        # Nothing is cut off: every number of every objective is there to its last letter.
        words = " ".join(screen.getvalue().replace("\N{NO-BREAK SPACE}", " ").split())
        for item in contenders(results, "digit"):
            for measure in (ACCURACY, ROOT_MEAN_SQUARED_ERROR, CALIBRATION_ERROR):
                if item.summary(measure).values:
                    text = " ".join(measure.format(item.summary(measure)).replace("\N{NO-BREAK SPACE}", " ").split())
                    assert text in words, (width, text)
        for name in OBJECTIVES["digit"]:
            assert any(line.strip().startswith(name) for line in lines), (width, name)
