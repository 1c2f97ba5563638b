"""Options: what is allowed, and one line for what is not."""

from __future__ import annotations

import shutil
from dataclasses import FrozenInstanceError, replace
from pathlib import Path

import pytest

from training.compare import main
from training.config import Config, parse_config, read_config, write_config
from training.data import Images, load_images
from training.errors import StudyError
from training.learning_rates import learning_rate, read_tuning
from training.objectives import OBJECTIVES
from training.tune import RATES, best_rate
from training.tune import main as tune

from .synthetic_results import build_results


def test_defaults_are_the_full_study() -> None:
    config = parse_config([])
    assert config == Config()
    assert (config.epochs_for("digit"), config.epochs_for("angle"), config.seeds) == (3, 5, 6)


def test_quick_sets_less_and_leaves_what_is_given() -> None:
    quick = parse_config(["--quick"])
    assert quick.quick
    assert quick.train_limit is not None
    assert quick.test_limit is None
    assert quick.epochs_for("angle") < Config().epochs_for("angle")
    given = parse_config(["--seeds", "5", "--quick", "--epochs", "4"])
    assert given == replace(quick, seeds=5, epochs=4)
    assert given.epochs_for("digit") == 4


def test_a_configuration_cannot_be_changed() -> None:
    with pytest.raises(FrozenInstanceError):
        Config().seeds = 4  # pyright: ignore[reportAttributeAccessIssue]


def test_a_configuration_survives_writing_and_reading(tmp_path: Path) -> None:
    config = parse_config(["--quick", "--objectives", "mse-raw", "--data-root", "some/where", "--angle-limit", "30"])
    write_config(config, tmp_path / "config.json")
    assert read_config(tmp_path / "config.json") == config


BAD = {
    "--epochs 0": "--epochs must be at least 1 and at most 10,000, not 0",
    "--epochs -1": "--epochs must be at least 1 and at most 10,000, not -1",
    "--epochs two": "--epochs must be a whole number, not 'two'",
    "--epochs 1.5": "--epochs must be a whole number, not '1.5'",
    "--batch-size -5": "--batch-size must be at least 1 and at most 1,000,000, not -5",
    "--seeds 0": "--seeds must be at least 1 and at most 1,000, not 0",
    "--learning-rate 0": "--learning-rate must be above 0",
    "--learning-rate nan": "--learning-rate must be above 0",
    "--learning-rate fast": "--learning-rate must be a number, not 'fast'",
    "--angle-bins 1": "--angle-bins must be at least 2 and at most 1,000, not 1",
    "--angle-bins 100000000": "--angle-bins must be at least 2 and at most 1,000, not 100000000",
    "--workers 1000": "at most 64, not 1000",
    "--seeds 100000": "at most 1,000",
    "--learning-rate 1e300": "at most 1,000,000,000",
    "--angle-limit 200": "--angle-limit must be above 0 and at most 180 degrees, not 200",
    "--model transformer": "('mlp', 'cnn')",
    "--dataset cifar": "('mnist', 'fashion-mnist', 'kmnist', 'own')",
    "--dataset own": "--dataset own needs --data-root",
    "--implementation numpy": "('torchlosses', 'torch')",
    "--tasks colour": "('digit', 'angle', 'calibration', 'label-noise', 'few-images')",
    "--tasks digit digit": "--tasks must be one or several of digit, angle, calibration",
    "--objectives mae": "allowed are regression-mse, cross-entropy, mse-softmax, mse-raw, cee-softmax",
    "--device abacus": "--device must be cpu, cuda or cuda:<number>, not 'abacus'",
    "--device cuda:97": "--device cpu always works",
    "--name a/b": "--name may hold up to 100 letters",
    "--parity-steps 0": "--parity-steps must be at least 1",
    "--train-limit 0": "--train-limit must be at least 1",
    "--epoch 3": "perhaps you meant --epochs",
    "--colour": "Unrecognized options: --colour",
    "--resume": "--resume",
    "--resume no-such-run": "there is no folder no-such-run",
    "--resume no-such-run --amp": "--resume takes no other options",
    "--resume no-such-run --seeds 3": "there is no folder no-such-run",
    "--objectives": "--objectives needs a name or several",
}


@pytest.mark.parametrize("options", BAD)
def test_what_is_not_allowed_ends_with_one_line_and_code_2(
    options: str, capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(options.split()) == 2
    output = capsys.readouterr()
    assert output.out == ""
    assert output.err.startswith("error: ")
    assert output.err.count("\n") == 1
    assert BAD[options] in output.err
    assert not list(tmp_path.iterdir())


def test_an_output_folder_that_cannot_be_made_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], tiny_arguments: tuple[str, ...]
) -> None:
    (tmp_path / "file").write_text("in the way")
    assert main([*tiny_arguments, "--out", str(tmp_path / "file" / "runs")]) == 2
    assert "--out: cannot write to" in capsys.readouterr().err
    assert main([*tiny_arguments, "--out", str(tmp_path / "file")]) == 2
    assert "--out:" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("config.json", None, "config.json cannot be read"),
        ("config.json", "{", "config.json is no configuration"),
        ("config.json", '{"seeds": 0}', "--seeds must be at least 1"),
        ("config.json", '{"seeds": 3, "sedes": 4}', "sedes"),
        ("results.json", "{}", "no version of the results' format"),
        ("results.json", '{"schema_version": 1}', "version 1 of the results' format"),
        ("results.json", '{"schema_version": 2}', "results.json is damaged: "),
        ("results.json", "\udce4", "it is no JSON in UTF-8"),
        ("results.json", "", "it is no JSON in UTF-8"),
    ],
)
def test_a_run_with_damaged_files_is_not_resumed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], file: str, content: str | None, message: str
) -> None:
    write_config(Config(), tmp_path / "config.json")
    if content is None:
        (tmp_path / file).unlink()
    else:
        (tmp_path / file).write_bytes(content.encode("utf-8", "surrogateescape"))
    assert main(["--resume", str(tmp_path)]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


def test_a_wrong_value_in_python_is_refused_as_on_the_command_line() -> None:
    with pytest.raises(StudyError, match="--epochs must be at least 1"):
        Config(epochs=0)


def test_tensorboard_without_its_package_is_refused(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert main(["--tensorboard"]) == 2
    assert "pip install 'torchlosses[tensorboard]'" in capsys.readouterr().err


def test_compiling_without_a_compiler_is_refused(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("shutil.which", lambda name: None)
    assert main(["--compile"]) == 2
    assert "C++ compiler" in capsys.readouterr().err


def test_settings_that_were_edited_are_refused_by_name(
    tiny_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(tiny_run, tmp_path / "run")
    edited = replace(read_config(tmp_path / "run" / "config.json"), batch_size=20)
    write_config(edited, tmp_path / "run" / "config.json")
    assert main(["--resume", str(tmp_path / "run")]) == 2
    assert "batch_size is 20 in" in capsys.readouterr().err


def test_the_help_says_what_each_exit_status_means(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        parse_config(["--help"])
    text = " ".join(capsys.readouterr().out.replace("│", " ").split())
    for words in (
        "Exit status: 0 done",
        "2 an option",
        "3 done, but",
        "4 a file could not",
        "129, 130, 143",
        "1 a defect",
    ):
        assert words in text


def test_the_learning_rate_is_the_tuned_one_unless_an_option_or_nothing_says_another() -> None:
    tuning = build_results().tuning
    assert learning_rate(tuning, Config(), "digit", "mse-raw") == (1e-3, "tuned")
    assert learning_rate(tuning, Config(learning_rate=0.5), "digit", "mse-raw") == (0.5, "option")
    assert learning_rate(tuning, Config(), "angle", "mse-raw") == (1e-3, "default")
    assert learning_rate(None, Config(), "digit", "mse-raw") == (1e-3, "default")
    for other in (
        Config(model="cnn"),
        Config(dataset="kmnist"),
        Config(epochs=7),
        Config(batch_size=64),
        Config(quick=True),
    ):
        assert learning_rate(tuning, other, "digit", "mse-raw")[1] == "tuned elsewhere"
    assert learning_rate(tuning, Config(), "label-noise-40", "mse-raw")[1] == "tuned elsewhere"


def test_the_stored_rates_cover_every_objective_and_none_lies_at_the_end_of_its_grid() -> None:
    tuning = read_tuning()
    assert tuning is not None
    assert tuning.command == "python -m training.tune"
    found = {(item.task, item.objective): item for item in tuning.objectives}
    assert found.keys() == {(task, name) for name, kind in OBJECTIVES.items() for task in kind.questions}
    for item in found.values():
        assert item.rates == list(RATES)
        assert min(item.rates) < item.best < max(item.rates)
        scored = best_rate(item.rates, item.scores, higher_is_better=item.task == "digit")
        assert (item.best, item.best_score) == scored


def test_the_best_rate_is_that_of_the_best_mean_and_never_one_that_diverged() -> None:
    rates, scores = (0.1, 1.0, 10.0), [[0.5, 0.7], [0.65, 0.61], [0.99, float("nan")]]
    assert best_rate(rates, scores, higher_is_better=True)[0] == 1.0
    assert best_rate(rates, scores, higher_is_better=False)[0] == 0.1
    with pytest.raises(StudyError, match="diverged at every rate"):
        best_rate((1.0,), [[float("nan")]], higher_is_better=True)


def test_tuning_looks_at_training_images_only_and_keeps_what_others_found(
    tmp_path: Path, synthetic_root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "rates.json"
    options = ["--dataset", "own", "--data-root", str(synthetic_root), "--tasks", "digit", "--rates", "1e-3", "1e-2"]
    options += ["--batch-size", "10", "--out", str(out)]
    assert tune([*options, "--objectives", "cross-entropy"]) == 0
    first = read_tuning(out)
    assert first is not None
    assert (first.train_images, first.validation_images) == (80, 16)
    assert tune([*options, "--objectives", "mse-raw"]) == 0
    second = read_tuning(out)
    assert second is not None
    assert [item.objective for item in second.objectives] == ["cross-entropy", "mse-raw"]
    assert second.objectives[0] == first.objectives[0]
    # Other test images change nothing.
    original = load_images

    def other_tests(dataset: str, root: Path | None) -> Images:
        images = original(dataset, root)
        return Images(images.train, images.train_labels, 255 - images.test, (images.test_labels + 1) % 10)

    monkeypatch.setattr("training.tune.load_images", other_tests)
    assert tune([*options, "--objectives", "cross-entropy"]) == 0
    third = read_tuning(out)
    assert third is not None
    assert {item.objective: item for item in third.objectives}["cross-entropy"] == first.objectives[0]


TUNE_BAD = {
    "--rates 0": "--rates must be above 0 and at most 1,000,000,000",
    "--rates nan": "--rates must be above 0",
    "--seeds 0": "--seeds must be at least 1 and at most 100, not 0",
    "--batch-size 0": "--batch-size must be at least 1 and at most 1,000,000, not 0",
    "--workers 1000": "--workers must be at least 1 and at most 64, not 1000",
    "--train-limit 0": "--train-limit must be at least 1",
    "--train-limit 1": "give a higher --train-limit",
    "--tasks digit digit": "--tasks must be one or several of digit, angle, each once",
    "--objectives": "--objectives needs a name or several",
    "--objectives mae": "allowed are regression-mse",
    "--device cuda:97": "--device cpu always works",
    "--dataset own": "--dataset own needs --data-root",
}


@pytest.mark.parametrize("options", TUNE_BAD)
def test_tuning_refuses_what_is_not_allowed_in_one_line(
    options: str, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    assert tune([*options.split(), "--out", str(tmp_path / "rates.json")]) == 2
    error = capsys.readouterr().err
    assert error.splitlines()[-1].startswith("error: ")
    assert TUNE_BAD[options] in error
    assert not list(tmp_path.iterdir())
