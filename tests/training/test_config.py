"""Options: what is allowed, and one line for what is not."""

from __future__ import annotations

from dataclasses import FrozenInstanceError, replace
from pathlib import Path

import pytest

from training.compare import main
from training.config import Config, parse_config, read_config, write_config
from training.errors import StudyError


def test_defaults_are_the_full_study() -> None:
    config = parse_config([])
    assert config == Config()
    assert (config.epochs_for("digit"), config.epochs_for("angle"), config.seeds) == (3, 5, 3)


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
    "--epochs 0": "--epochs must be at least 1, not 0",
    "--epochs -1": "--epochs must be at least 1, not -1",
    "--epochs two": "--epochs must be a whole number, not 'two'",
    "--epochs 1.5": "--epochs must be a whole number, not '1.5'",
    "--batch-size -5": "--batch-size must be at least 1, not -5",
    "--seeds 0": "--seeds must be at least 1, not 0",
    "--learning-rate 0": "--learning-rate must be above 0",
    "--learning-rate nan": "--learning-rate must be above 0",
    "--learning-rate fast": "--learning-rate must be a number, not 'fast'",
    "--angle-bins 1": "--angle-bins must be at least 2, not 1",
    "--angle-limit 200": "--angle-limit must be above 0 and at most 180 degrees, not 200",
    "--model transformer": "('mlp', 'cnn')",
    "--dataset cifar": "('mnist', 'fashion-mnist', 'kmnist')",
    "--implementation numpy": "('torchlosses', 'torch')",
    "--tasks colour": "('digit', 'angle')",
    "--tasks digit digit": "--tasks must be digit, angle or both",
    "--objectives mae": "allowed are regression-mse, cross-entropy, mse-softmax, mse-raw, cee-softmax",
    "--device abacus": "--device must be cpu, cuda or cuda:<number>, not 'abacus'",
    "--device cuda:97": "--device cpu always works",
    "--name a/b": "--name may hold letters",
    "--parity-steps 0": "--parity-steps must be at least 1",
    "--train-limit 0": "--train-limit must be at least 1",
    "--epoch 3": "perhaps you meant --epochs",
    "--colour": "Unrecognized options: --colour",
    "--resume": "--resume",
    "--resume no-such-run": "there is no folder no-such-run",
    "--resume no-such-run --amp": "--resume takes no other options",
    "--resume no-such-run --seeds 3": "--resume takes no other options",
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
        ("results.json", "{}", "results.json is damaged"),
    ],
)
def test_a_run_with_damaged_files_is_not_resumed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], file: str, content: str | None, message: str
) -> None:
    write_config(Config(), tmp_path / "config.json")
    if content is None:
        (tmp_path / file).unlink()
    else:
        (tmp_path / file).write_text(content)
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
