"""Two processes do what one does."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from training.results import Results, read_results

from .conftest import synthetic_arrays, write_idx


def run(arguments: list[str], *, processes: int) -> Results:
    out = Path(arguments[arguments.index("--out") + 1])
    launcher = (
        [] if processes == 1 else ["torch.distributed.run", "--standalone", f"--nproc-per-node={processes}", "-m"]
    )
    completed = subprocess.run(
        [sys.executable, "-m", *launcher, "training.compare", *arguments],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )
    assert completed.returncode == 0, completed.stderr
    # Only the first process writes and speaks.
    assert completed.stdout.count("report:") == 1
    assert completed.stderr.count("epoch 1/2") == 3
    (folder,) = out.iterdir()
    return read_results(folder / "results.json")


@pytest.mark.thorough
def test_two_processes_give_the_result_of_one(tmp_path: Path) -> None:
    # 97 images at 16 a batch leave a last batch of one image, which two processes cannot share.
    root = write_idx(tmp_path / "data", synthetic_arrays(train=97))
    options = ["--dataset", "own", "--data-root", str(root), "--batch-size", "16", "--epochs", "2"]
    options += ["--tasks", "digit", "--objectives", "regression-mse", "cross-entropy", "mse-softmax", "--seeds", "1"]
    options += ["--parity-steps", "2", "--recovery-steps", "2"]
    one = run([*options, "--out", str(tmp_path / "one")], processes=1)
    two = run([*options, "--out", str(tmp_path / "two")], processes=2)
    assert (one.environment.processes, two.environment.processes) == (1, 2)
    assert two.complete
    for single, double in zip(one.runs, two.runs, strict=True):
        assert (single.objective, single.parameters) == (double.objective, double.parameters)
        for alone, together in zip(single.epochs, double.epochs, strict=True):
            assert together.train_loss == pytest.approx(alone.train_loss, rel=1e-4)
            for decoding, metrics in alone.evaluation.decoded.items():
                assert together.evaluation.decoded[decoding].root_mean_squared_error == pytest.approx(
                    metrics.root_mean_squared_error, rel=1e-3
                )
            if alone.evaluation.probabilities is not None:
                assert together.evaluation.probabilities is not None
                assert together.evaluation.probabilities.negative_log_likelihood == pytest.approx(
                    alone.evaluation.probabilities.negative_log_likelihood, rel=1e-4
                )
