"""The compiled operators: equal to the eager ones, to themselves on any number of threads, accurate, and safe."""

from __future__ import annotations

import itertools
import math
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from typing import Any

import mpmath
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.testing import assert_close

import torchlosses
from tests import oracles
from tests.test_operators import CALLS, DTYPES, LAYOUTS, REDUCTIONS, result_of
from torchlosses import kernels

pytestmark = pytest.mark.skipif(
    "native" not in kernels.available(), reason="the package was installed without its compiled operators"
)

# Rows shorter than a vector, of its size, just above it, of several chunks; positions that end within a tile.
SHAPES = ((5, 3), (3, 16), (4, 33), (2, 9001), (3, 5, 7), (2, 21, 300), (1, 600, 33))
TOLERANCES = {
    torch.float64: (1e-12, 1e-14),
    torch.float32: (2e-5, 1e-6),
    torch.bfloat16: (1.6e-2, 1e-3),
    torch.float16: (2e-3, 1e-5),
}


def result(output: Any) -> Tensor:
    return output[0] if isinstance(output, tuple) else output


class TestEqualsEager:
    @pytest.mark.parametrize("dtype", DTYPES, ids=str)
    @pytest.mark.parametrize("layout", LAYOUTS)
    @pytest.mark.parametrize("loss", CALLS)
    def test_layouts(self, loss: str, layout: str, dtype: torch.dtype) -> None:
        relative, absolute = TOLERANCES[dtype]
        for shape, reduction in zip(SHAPES, itertools.cycle(REDUCTIONS), strict=False):
            for operator, arguments in CALLS[loss](shape, dtype, reduction):
                laid_out = [LAYOUTS[layout](a) if isinstance(a, Tensor) and a.shape == shape else a for a in arguments]
                if "cross_entropy_backward" in operator.name():
                    # Another layout may hold other values, and these are the statistics of its rows.
                    _, input, target, weight, _, _, reduction, *options = laid_out
                    forward = (input, target, weight, reduction, *options, dtype)
                    laid_out[4:6] = kernels.cross_entropy_forward(*forward)[1:]
                elif "cross_entropy_extended_backward" in operator.name():
                    forward = (*laid_out[1:5], "none", *laid_out[7:], False, dtype)
                    laid_out[5:7] = kernels.cross_entropy_extended_forward(*forward)[1:3]
                actual = result_of(operator, laid_out)
                with kernels.use("eager"):
                    expected = result_of(operator, laid_out)
                # The statistics of a row that is ignored are nobody's business.
                assert_close(result(actual).double(), result(expected).double(), rtol=relative, atol=absolute)
                outputs = zip(*(r if isinstance(r, tuple) else (r,) for r in (actual, expected)), strict=True)
                assert all(a.dtype == e.dtype and a.stride() == e.stride() for a, e in outputs)

    @pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
    @pytest.mark.parametrize("shape", [(3, 5), (3, 40), (3, 5000), (2, 5, 3)], ids=str)
    @pytest.mark.parametrize("smoothing", [0.0, 0.1])
    @pytest.mark.parametrize("kind", ["indices", "probabilities"])
    def test_values_that_are_not_finite(
        self, value: float, shape: tuple[int, ...], smoothing: float, kind: str
    ) -> None:
        x = torch.randn(shape, generator=torch.Generator().manual_seed(3))
        target = torch.zeros(shape[:1] + shape[2:], dtype=torch.int64)
        shares = F.one_hot(target, shape[1]).movedim(-1, 1).to(x)
        for classes in ([1], [0], [shape[1] - 1], list(range(shape[1]))):
            bad = x.clone()
            bad[0, classes] = value
            bad.requires_grad_()
            results = []
            for name in ("native", "eager"):
                with kernels.use(name):
                    loss = torchlosses.cross_entropy(
                        bad, target if kind == "indices" else shares, reduction="none", label_smoothing=smoothing
                    )
                    results.append((loss.detach(), *torch.autograd.grad(loss.sum(), bad)))
            assert_close(results[0], results[1], rtol=1e-5, atol=1e-6, equal_nan=True)

    def test_what_the_kernels_do_not_cover(self) -> None:
        """A wider target or weight, and strides that no walk suits, go the other way and come out right."""
        x = torch.randn(6, 5, 4)
        strided = torch.randn(4, 12, 5, 6).permute(3, 2, 1, 0)[:, :, ::3, 0]
        target = torch.randint(5, (6, 4))
        for input, other, weight in (
            (x, torch.softmax(x.double(), 1), None),
            (strided, target, None),
            (x, torch.softmax(x, 1), torch.rand(5, dtype=torch.float64)),
        ):
            leaf = input.clone(memory_format=torch.preserve_format).requires_grad_()
            loss = torchlosses.cross_entropy(leaf, other, weight)
            truth = F.cross_entropy(leaf.double(), other if other.dtype == torch.int64 else other.double(), weight)
            assert_close(loss.double(), truth, rtol=1e-6, atol=1e-7)
            (gradient,) = torch.autograd.grad(loss, leaf)
            assert_close(gradient.double(), torch.autograd.grad(truth, leaf)[0].double(), rtol=1e-4, atol=1e-7)


class TestInstructionSets:
    @pytest.mark.parametrize("name", ["avx2", "baseline"])
    def test_each_equals_eager(self, name: str) -> None:
        """The processor chooses one of them; the others run here in a process that is told to."""
        run = subprocess.run(
            [
                sys.executable,
                "-m",
                "pytest",
                __file__,
                "-q",
                "-p",
                "no:cacheprovider",
                "-k",
                "TestEqualsEager or named",
            ],
            env={**os.environ, "TORCHLOSSES_INSTRUCTION_SET": name},
            capture_output=True,
            text=True,
            check=False,
        )
        assert run.returncode == 0, run.stdout[-3000:]

    def test_the_one_that_was_named_runs(self) -> None:
        """Or a lesser one, where the processor does not have it."""
        wanted = os.environ.get("TORCHLOSSES_INSTRUCTION_SET")
        assert kernels.INSTRUCTION_SET in ("avx512", "avx2", "baseline")
        if wanted is not None:
            assert kernels.INSTRUCTION_SET in (wanted, "baseline")


def relative_errors(x: Tensor, target: Tensor, loss: Callable[..., Tensor]) -> tuple[float, float]:
    """The largest errors of losses and gradients, in units of the largest truth of a row, against float64."""
    wide = x.double().requires_grad_()
    truth = F.cross_entropy(wide, target, reduction="none")
    (true_gradient,) = torch.autograd.grad(truth.sum(), wide)
    leaf = x.clone().requires_grad_()
    losses = loss(leaf, target, reduction="none")
    (gradient,) = torch.autograd.grad(losses.sum(), leaf)
    of_loss = ((losses.double() - truth) / truth).abs().max().item()
    of_gradient = ((gradient.double() - true_gradient).abs().amax(1) / true_gradient.abs().amax(1)).max().item()
    return of_loss, of_gradient


class TestAccuracy:
    @pytest.mark.parametrize("classes", [3, 10, 1000, 131072])
    @pytest.mark.parametrize("scale", [0.1, 1.0, 10.0])
    @pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
    def test_never_worse_than_torch(self, classes: int, scale: float, dtype: torch.dtype) -> None:
        generator = torch.Generator().manual_seed(classes)
        x = (torch.randn(max(2, 4096 // classes), classes, generator=generator) * scale).to(dtype)
        target = torch.randint(classes, (len(x),), generator=generator)
        ours = relative_errors(x, target, torchlosses.cross_entropy)
        builtin = relative_errors(x, target, F.cross_entropy)
        # Which of two good results happens to be rounded the better way says nothing.
        unit = torch.finfo(dtype).eps
        assert ours[0] <= builtin[0] + unit
        assert ours[1] <= builtin[1] + unit

    @pytest.mark.parametrize("margin", [5.0, 12.0, 20.0, 60.0, 85.0])
    @pytest.mark.parametrize("classes", [2, 5, 17, 5000])
    def test_the_confident_tail(self, margin: float, classes: int) -> None:
        """Where torch.nn gives 0 the loss and its gradient are right to 8 units in the last place."""
        x = torch.zeros(1, classes)
        x[0, classes // 2] = margin
        x.requires_grad_()
        loss = torchlosses.cross_entropy(x, torch.tensor([classes // 2]))
        (gradient,) = torch.autograd.grad(loss, x)
        with mpmath.workdps(60):
            others = (classes - 1) * mpmath.exp(-mpmath.mpf(margin))
            truth, at_target = mpmath.log1p(others), -others / (1 + others)
        assert oracles.ulps(loss.item(), truth, np.float32) <= 8
        assert oracles.ulps(gradient[0, classes // 2].item(), at_target, np.float32) <= 8

    @pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
    def test_every_exponential(self, dtype: torch.dtype) -> None:
        """Over its whole range, subnormal results included, each probability is right to 4 units in the last place."""
        lowest = -103.0 if dtype == torch.float32 else -744.0
        x = torch.cat([torch.zeros(1, dtype=dtype), torch.linspace(lowest, -1e-3, 4000, dtype=dtype)])
        leaf = x[None].clone().requires_grad_()
        (gradient,) = torch.autograd.grad(torchlosses.cross_entropy(leaf, torch.tensor([0])), leaf)
        number = x.numpy().dtype.type
        with mpmath.workdps(40):
            exponentials = [mpmath.exp(mpmath.mpf(value)) for value in x.tolist()]
            total = mpmath.fsum(exponentials)
            errors = [
                oracles.ulps(actual, exponential / total, number)
                for actual, exponential in zip(gradient[0, 1:].tolist(), exponentials[1:], strict=True)
            ]
        assert max(errors) <= 4


@pytest.fixture
def two_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


class TestThreads:
    @pytest.mark.parametrize("shape", [(300, 2000), (12, 20000), (3, 21, 5000)], ids=str)
    @pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
    @pytest.mark.parametrize("loss", CALLS)
    @pytest.mark.usefixtures("two_threads")
    def test_their_number_does_not_change_a_bit(self, loss: str, dtype: torch.dtype, shape: tuple[int, ...]) -> None:
        for operator, arguments in CALLS[loss](shape, dtype, "mean"):
            if any(isinstance(a, Tensor) and a.shape == shape and a.dtype != dtype for a in arguments):
                # An integer one-hot target is not the kernels' business, and torch.sum's order depends on the threads.
                continue
            torch.set_num_threads(2)
            of_two = result_of(operator, arguments)
            torch.set_num_threads(1)
            assert_close(of_two, result_of(operator, arguments), rtol=0, atol=0, equal_nan=True)

    @pytest.mark.usefixtures("two_threads")
    def test_four_at_once(self) -> None:
        x, target = torch.randn(200, 3000), torch.randint(3000, (200,))

        def step() -> Tensor:
            leaf = x.clone().requires_grad_()
            return torch.autograd.grad(torchlosses.cross_entropy(leaf, target), leaf)[0]

        expected, results = step(), []

        def work() -> None:
            results.extend(step() for _ in range(10))

        threads = [threading.Thread(target=work) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(results) == 40
        assert all(torch.equal(result, expected) for result in results)

    def test_a_forked_process(self) -> None:
        """The threads of the parent do not exist in it; waiting for them would never end."""
        script = (
            "import os, torch, torchlosses\n"
            "torch.set_num_threads(2)\n"
            "x, y = torch.randn(400, 4000), torch.randint(4000, (400,))\n"
            "expected = torchlosses.cross_entropy(x, y)\n"
            "child = os.fork()\n"
            "if child == 0:\n"
            "    os._exit(0 if torch.equal(torchlosses.cross_entropy(x, y), expected) else 1)\n"
            "raise SystemExit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))\n"
        )
        subprocess.run([sys.executable, "-c", script], check=True, timeout=120)


class TestBounds:
    """An index outside the classes is never used as one, whatever else is wrong."""

    @pytest.mark.parametrize("index", [-1, 5, 1 << 40, -(1 << 40)])
    @pytest.mark.parametrize("shape", [(40, 5), (4, 5, 33)], ids=str)
    def test_forward(self, index: int, shape: tuple[int, ...]) -> None:
        x = torch.softmax(torch.randn(shape), 1)
        target = torch.zeros(shape[:1] + shape[2:], dtype=torch.int64)
        target.view(-1)[-1] = index
        for loss in (torchlosses.cross_entropy, torchlosses.cee_loss):
            with pytest.raises(IndexError, match=f"Target {index} is out of bounds. It stands at position"):
                loss(x, target)

    @pytest.mark.parametrize("index", [-1, 5, 1 << 40])
    @pytest.mark.parametrize("shape", [(40, 5), (4, 5, 33)], ids=str)
    def test_an_index_that_is_changed_after_the_forward(self, index: int, shape: tuple[int, ...]) -> None:
        """Below autograd's check for in-place changes the operator has a check of its own."""
        x = torch.randn(shape)
        target = torch.zeros(shape[:1] + shape[2:], dtype=torch.int64)
        _, maximum, rest = kernels.cross_entropy_forward(x, target, None, "mean", -100, 0.0, torch.float32)
        target.view(-1)[-1] = index
        arguments = (torch.tensor(1.0), x, target, None, maximum, rest, "mean", -100, 0.0)
        with pytest.raises(IndexError, match="out of bounds"):
            kernels.cross_entropy_backward(*arguments)
        with pytest.raises(IndexError, match="out of bounds"):
            kernels.cross_entropy_backward_(*arguments)


@pytest.mark.large
def test_more_elements_than_32_bits_count() -> None:
    """2^31 + 2^17 logits, so that a product of sizes in 32 bits would wrap."""
    rows, classes = (1 << 14) + 1, 1 << 17
    x = torch.zeros(rows, classes, dtype=torch.bfloat16)
    x[-1, -1] = 8.0
    target = torch.full((rows,), classes - 1)
    x.requires_grad_()
    losses = torchlosses.cross_entropy(x, target, reduction="none")
    assert losses[0].item() == pytest.approx(math.log(classes), rel=1e-2)
    assert losses[-1].item() == pytest.approx(math.log(classes - 1 + math.exp(8)) - 8, rel=1e-2)
    (gradient,) = torch.autograd.grad(losses[-1], x)
    assert gradient[-1, -1].item() == pytest.approx(math.exp(8) / (classes - 1 + math.exp(8)) - 1, rel=1e-2)
    assert not gradient[:-1].any()
    del gradient
    flat = x.detach().view(-1)
    assert torchlosses.mse_loss(flat, torch.ones(1, dtype=torch.bfloat16).expand(flat.shape)).item() == pytest.approx(
        1.0
    )
    assert torchlosses.mse_loss(flat, flat, reduction="sum").item() == 0
