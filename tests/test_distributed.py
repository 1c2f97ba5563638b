"""Losses over several processes: spawned once for each number of processes, which run all of `distributed_cases`."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from torchlosses.distributed import class_parallel_cross_entropy, class_parallel_linear_cross_entropy, global_normalizer

ROOT = Path(__file__).resolve().parent.parent
SCRIPT = """
import sys
import tests.distributed_cases as cases
cases.main(int(sys.argv[1]), int(sys.argv[2]), sys.argv[3])
"""


@pytest.mark.parametrize("processes", [1, 2, 3, 4])
def test_equals_one_process(processes: int, tmp_path: Path) -> None:
    started = [
        subprocess.Popen(
            [sys.executable, "-c", SCRIPT, str(rank), str(processes), str(tmp_path)],
            cwd=ROOT,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(processes)
    ]
    try:
        errors = [process.communicate(timeout=240)[1] for process in started]
    finally:
        for process in started:
            process.kill()
    failures = [path.read_text(encoding="utf-8") for path in sorted(tmp_path.glob("failure-*"))]
    assert not failures, failures[0]
    assert all(process.returncode == 0 for process in started), errors


class TestAlone:
    """Without torch.distributed, a process is the only one."""

    def test_global_normalizer(self) -> None:
        target = torch.tensor([1, -100, 0, 1])
        assert global_normalizer(target) == 3
        assert global_normalizer(target, ignore_index=1) == 2
        weight, samples = torch.tensor([2.0, 3.0]), torch.tensor([1.0, 1.0, 0.5, 0.0])
        assert global_normalizer(target, weight=weight) == 8
        assert global_normalizer(target, weight=weight, sample_weight=samples) == 4
        assert global_normalizer(torch.rand(4, 2).softmax(1), sample_weight=samples) == 2.5
        assert global_normalizer(torch.rand(2, 3, 5), dim=-1) == 6
        assert global_normalizer(torch.rand(5)) == 1
        assert not global_normalizer(target, weight=weight.requires_grad_()).requires_grad
        with pytest.raises(ValueError, match="sample_weight must broadcast"):
            global_normalizer(target, sample_weight=torch.ones(3))

    def test_gradients_pass_gradcheck(self) -> None:
        generator = torch.Generator().manual_seed(1)

        def normal(*shape: int) -> Tensor:
            return torch.randn(shape, generator=generator, dtype=torch.float64).requires_grad_()

        logits, x, layer, bias = normal(3, 4), normal(3, 2), normal(4, 2), normal(4)
        probabilities = normal(3, 4).detach().softmax(1).requires_grad_()
        weight, samples = (normal(size).detach().exp().requires_grad_() for size in (4, 3))
        normalizer = torch.tensor(2.5, dtype=torch.float64, requires_grad=True)
        extras: dict[str, Any] = {"label_smoothing": 0.1, "z_loss": 0.1, "logit_softcap": 2.0}

        def of_logits(logits: Tensor, target: Tensor, weight: Tensor, samples: Tensor, normalizer: Tensor) -> Tensor:
            options = {"weight": weight, "sample_weight": samples, "normalizer": normalizer}
            return class_parallel_cross_entropy(logits, target, **options, **extras)

        def of_layer(x: Tensor, layer: Tensor, bias: Tensor, weight: Tensor) -> Tensor:
            target = torch.tensor([0, 3, -100])
            options = {"linear_bias": bias, "weight": weight, "reduction": "none", "block_rows": 2}
            return class_parallel_linear_cross_entropy(x, layer, target, **options, **extras)

        for check in (torch.autograd.gradcheck, torch.autograd.gradgradcheck):
            assert check(of_logits, (logits, probabilities, weight, samples, normalizer))
            assert check(of_layer, (x, layer, bias, weight))

    @pytest.mark.parametrize(
        ("options", "error", "message"),
        [
            ({"reduction": "avg"}, ValueError, "not a valid value for reduction"),
            ({"weight": torch.ones(3)}, RuntimeError, "for all 4 classes"),
            ({"normalizer": 1.0, "reduction": "sum"}, ValueError, "normalizer is what"),
            ({"target": torch.zeros(3, 4, dtype=torch.int64)}, RuntimeError, "Expected floating point type"),
            ({"target": torch.zeros(2, dtype=torch.int64)}, ValueError, "batch_size"),
        ],
    )
    def test_errors(self, options: dict, error: type[Exception], message: str) -> None:
        arguments = {"input": torch.zeros(3, 4), "target": torch.tensor([0, 1, 2]), **options}
        with pytest.raises(error, match=message):
            class_parallel_cross_entropy(**arguments)
