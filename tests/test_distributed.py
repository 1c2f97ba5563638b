"""Losses over several processes: spawned once for each number of processes, which run all of `distributed_cases`."""

from __future__ import annotations

import copy
import os
import pickle
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.testing import assert_close

from tests.processes import ROOT, assert_all_pass
from torchlosses import cross_entropy, linear_cross_entropy
from torchlosses.distributed import (
    ClassParallelCrossEntropyLoss,
    ClassParallelLinearCrossEntropyLoss,
    class_parallel_cross_entropy,
    class_parallel_linear_cross_entropy,
    global_normalizer,
)

thorough = pytest.mark.thorough


@pytest.mark.parametrize("processes", [2, *(pytest.param(count, marks=thorough) for count in (1, 3, 4))])
def test_equals_one_process(processes: int, tmp_path: Path) -> None:
    assert_all_pass(processes, tmp_path)


@thorough
@pytest.mark.parametrize(("name", "processes"), [("classes.py", 2), ("rows_and_classes.py", 4)])
def test_programs_of_the_docs(name: str, processes: int, tmp_path: Path) -> None:
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "docs/distributed.md").read_text(encoding="utf-8"), re.DOTALL)
    (program,) = (block for block in blocks if block.startswith(f"# {name}"))
    script = tmp_path / name
    script.write_text(program, encoding="utf-8")
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    ended = subprocess.run([*command, str(script)], env=environment, capture_output=True, text=True, timeout=600)
    assert ended.returncode == 0, ended.stderr


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

    def test_the_dimension_of_the_classes_has_to_be_said(self) -> None:
        probabilities = torch.rand(2, 3, 5)
        assert global_normalizer(probabilities, dim=1) == 10
        assert global_normalizer(probabilities, dim=-1) == 6
        with pytest.raises(ValueError, match="dim must say which dimension"):
            global_normalizer(probabilities)
        with pytest.raises(IndexError, match="dim=3 is no dimension"):
            global_normalizer(probabilities, dim=3)

    def test_modules(self) -> None:
        generator = torch.Generator().manual_seed(2)
        logits, x = torch.randn(3, 4, generator=generator), torch.randn(3, 2, generator=generator)
        target, layer, weight = torch.tensor([0, 3, -100]), nn.Linear(2, 4), torch.rand(4, generator=generator)
        options: dict[str, Any] = {"label_smoothing": 0.1, "logit_scale": 0.5, "z_loss": 0.1, "return_stats": True}
        of_logits = ClassParallelCrossEntropyLoss(weight, **options)
        of_layer = ClassParallelLinearCrossEntropyLoss(layer, weight, block_rows=2, **options)
        for copied in (lambda module: module, copy.deepcopy, lambda module: pickle.loads(pickle.dumps(module))):
            loss, statistics = copied(of_logits)(logits, target, sample_weight=torch.ones(3))
            expected = cross_entropy(logits, target, weight, **options)
            assert_close(loss, expected[0])
            assert_close(tuple(statistics), tuple(expected[1]))
            loss, statistics = copied(of_layer)(x, target, normalizer=2.0)
            extra = {"linear_bias": layer.bias, "weight": weight, "normalizer": 2.0}
            expected = linear_cross_entropy(x, layer.weight, target, **extra, **options)
            assert_close(loss, expected[0])
            assert_close(tuple(statistics), tuple(expected[1]))
        assert set(of_layer.state_dict()) == {"weight", "linear.weight", "linear.bias"}
        assert "z_loss=0.1" in repr(of_logits)
        with pytest.raises(ValueError, match="reduction"):
            ClassParallelCrossEntropyLoss(reduction="avg")  # type: ignore[arg-type]

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
