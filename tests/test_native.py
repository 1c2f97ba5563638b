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
from tests.turns import in_turn
from torchlosses import kernels
from torchlosses.kernels import eager

pytestmark = pytest.mark.skipif(
    "native" not in kernels.available(), reason="the package was installed without its compiled operators"
)

COMPILED = list(CALLS)
# Of log-probabilities nothing is.
REDUCED = [name for name in COMPILED if name != "log_probs"]

# Rows shorter than a vector, of its size, just above it, of several chunks; positions that end within a tile.
SHAPES = ((5, 3), (3, 16), (4, 33), (2, 9001), (3, 5, 7), (2, 21, 300), (1, 600, 33))
TOLERANCES = {
    torch.float64: (1e-12, 1e-14),
    torch.float32: (2e-5, 1e-6),
    torch.bfloat16: (1.6e-2, 1e-3),
    torch.float16: (2e-3, 1e-5),
}
OPERATORS = torch.ops.torchlosses
# Of cross_entropy, behind the options that all losses have.
PLAIN = (-100, 0.0, 0.0, 1.0, None, False, False)


def laid_out(operator: Any, arguments: tuple[Any, ...], shape: tuple[int, ...], layout: str) -> list[Any]:
    """The arguments with the tensors of the input's shape in another layout, and the state of their rows."""
    changed = [LAYOUTS[layout](a) if isinstance(a, Tensor) and a.shape == shape else a for a in arguments]
    name = operator.name().partition("::")[2]
    loss = name.partition("_backward")[0]
    if loss in ("cross_entropy", "log_probs") and loss != name:
        # Another layout may hold other values.
        start = 2 if name.endswith("_") else 1
        state = [argument.name for argument in operator._schema.arguments].index("state")
        forward = getattr(OPERATORS, loss).default
        changed[state] = forward(*changed[start:state], *changed[state + 1 :])[2]
        if name.endswith("_"):
            changed[1] = torch.empty_like(changed[1])
    return changed


def compared(output: Any) -> list[Tensor]:
    """What two backends have in common: loss and gradient, and of the rows' state what a caller may see."""
    outputs = list(output) if isinstance(output, tuple) else [output]
    return [*outputs[:2], *(state[2:] for state in outputs[2:])]


class TestEqualsEager:
    @pytest.mark.parametrize(
        ("dtype", "loss", "layout"),
        in_turn(
            DTYPES,
            {f"{loss}-{layout}": (loss, layout) for loss, layout in itertools.product(COMPILED, LAYOUTS)},
        ),
    )
    def test_layouts(self, loss: str, layout: str, dtype: torch.dtype) -> None:
        relative, absolute = TOLERANCES[dtype]
        for shape, reduction in zip(SHAPES, itertools.cycle(REDUCTIONS), strict=False):
            for operator, arguments in CALLS[loss](shape, dtype, reduction):
                changed = laid_out(operator, arguments, shape, layout)
                actual = compared(result_of(operator, changed))
                with kernels.use("eager"):
                    expected = compared(result_of(operator, changed))
                for one, other in zip(actual, expected, strict=True):
                    assert_close(one.double(), other.double(), rtol=relative, atol=absolute)
                    assert (one.dtype, one.stride()) == (other.dtype, other.stride())

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


@pytest.fixture
def no_way_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is passed on to the operators in PyTorch operations."""

    def fail(loss: Any, *_: Any) -> None:
        raise AssertionError(f"{loss.name} was passed on")

    for name in ("forward", "backward", "backward_"):
        monkeypatch.setattr(eager, name, fail)


class TestCoverage:
    @pytest.mark.parametrize("dtype", DTYPES, ids=str)
    @pytest.mark.parametrize("layout", LAYOUTS)
    @pytest.mark.parametrize("loss", [name for name in COMPILED if name != "cee_loss"])
    @pytest.mark.usefixtures("no_way_out")
    def test_every_layout_and_dtype(self, loss: str, layout: str, dtype: torch.dtype) -> None:
        for shape in ((4, 33), (3, 5, 7)):
            for operator, arguments in CALLS[loss](shape, dtype, "mean"):
                result_of(operator, laid_out(operator, arguments, shape, layout))

    @pytest.mark.parametrize("integer", [torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8], ids=str)
    @pytest.mark.usefixtures("no_way_out")
    def test_class_indices(self, integer: torch.dtype) -> None:
        x, target = torch.randn(6, 5, 4), torch.randint(5, (6, 4))
        losses = torchlosses.cross_entropy(x, target.to(integer), reduction="none", ignore_index=2)
        assert_close(losses, F.cross_entropy(x, target, reduction="none", ignore_index=2), rtol=1e-6, atol=1e-7)

    @pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64], ids=str)
    @pytest.mark.usefixtures("no_way_out")
    def test_the_dtype_of_the_loss(self, dtype: torch.dtype) -> None:
        """Of rows in any dtype; the sum of bfloat16 losses keeps its digits in float32."""
        x, target = torch.randn(300, 50).bfloat16(), torch.randint(50, (300,))
        truth = F.cross_entropy(x.double(), target, reduction="none")
        losses = torchlosses.cross_entropy(x, target, reduction="none", loss_dtype=dtype)
        total = torchlosses.cross_entropy(x, target, reduction="sum", loss_dtype=dtype)
        for loss, expected in ((losses, truth), (total, truth.sum())):
            assert loss.dtype == dtype
            assert_close(loss.double(), expected, rtol=4e-3 if dtype == torch.bfloat16 else 1e-6, atol=0)

    def test_what_the_kernels_do_not_cover(self) -> None:
        """A wider target or weight goes the other way and comes out right."""
        x = torch.randn(6, 5, 4)
        for other, weight in (
            (torch.softmax(x.double(), 1), None),
            (torch.softmax(x, 1), torch.rand(5, dtype=torch.float64)),
        ):
            leaf = x.clone().requires_grad_()
            loss = torchlosses.cross_entropy(leaf, other, weight)
            truth = F.cross_entropy(leaf.double(), other.double(), weight)
            assert_close(loss.double(), truth, rtol=1e-6, atol=1e-7)
            (gradient,) = torch.autograd.grad(loss, leaf)
            assert_close(gradient.double(), torch.autograd.grad(truth, leaf)[0].double(), rtol=1e-4, atol=1e-7)


class TestGradientAlongWithTheLoss:
    @pytest.mark.parametrize("dtype", DTYPES, ids=str)
    @pytest.mark.parametrize("loss", REDUCED)
    def test_it_is_the_backward_of_1_to_the_bit(self, loss: str, dtype: torch.dtype) -> None:
        one = torch.ones(())
        for shape in (*SHAPES, (70, 9), (2, 40000)):
            for operator, arguments in CALLS[loss](shape, dtype, "mean"):
                if "backward" in operator.name():
                    continue
                tensors, options = split(operator, arguments)
                if not options[3]:
                    continue
                _, along, *state = operator(*arguments)
                assert torch.equal(backward_of(operator)(one, *tensors, *state, *options), along)
                kept = along.clone()
                in_place_of(operator)(one, kept, *tensors, *state, *options)
                assert torch.equal(kept, along)
                # Another incoming gradient is computed anew, whatever stands there.
                g = torch.tensor(0.3, dtype=torch.float64)
                expected = backward_of(operator)(g, *tensors, *state, *options)
                for there in (kept, torch.full_like(kept, math.nan)):
                    in_place_of(operator)(g, there, *tensors, *state, *options)
                    assert torch.equal(there, expected)

    def test_1_needs_no_work(self) -> None:
        """What came along is left as it is, whatever it is."""
        x, target = torch.randn(64, 10), torch.randint(10, (64,))
        options = ("mean", math.nan, torch.float32, 1, *PLAIN)
        state = OPERATORS.cross_entropy(x, target, None, None, None, *options)[2]
        there = torch.full_like(x, 7.0)
        OPERATORS.cross_entropy_backward_(torch.ones(()), there, x, target, None, None, None, state, *options)
        assert bool((there == 7).all())

    @pytest.mark.parametrize("g", [math.inf, -math.inf, math.nan])
    @pytest.mark.parametrize("shape", [(3, 5), (3, 40), (3, 5, 2)], ids=str)
    def test_an_incoming_gradient_that_is_not_finite(self, g: float, shape: tuple[int, ...]) -> None:
        """It passes through rows that count; a row that leaves no trace stays exactly 0."""
        x, target = torch.zeros(shape), torch.zeros(shape[:1] + shape[2:], dtype=torch.int64)
        target[0] = 1
        options = ("sum", math.nan, torch.float32, 0, 1, *PLAIN[1:])
        state = OPERATORS.cross_entropy(x, target, None, None, None, *options)[2]
        gradient = OPERATORS.cross_entropy_backward(torch.tensor(g), x, target, None, None, None, state, *options)
        assert bool((gradient[0] == 0).all())
        expected = torch.full(shape, g)[1:]
        expected[:, 0] = -g
        assert_close(gradient[1:], expected, rtol=0, atol=0, equal_nan=True)

    @pytest.mark.parametrize("loss", REDUCED)
    def test_a_mean_over_nothing(self, loss: str) -> None:
        """0 rows that count: the loss is what `empty` says where the sum is 0 too, the gradient is 0."""
        for operator, arguments in CALLS[loss]((4, 33), torch.float32, "mean"):
            tensors, options = split(operator, arguments)
            if "backward" in operator.name():
                continue
            nothing = (*tensors[:-1], torch.zeros(()))
            value, along, *_ = operator(*nothing, *options)
            assert value.item() == math.inf
            assert not along.any()
            still = (torch.zeros_like(tensors[0]), *nothing[1:])
            if loss == "mse_loss":
                still = (still[0], still[0], *nothing[2:])
                assert operator(*still, options[0], 0.0, *options[2:])[0].item() == 0
                assert math.isnan(operator(*still, *options)[0].item())


def split(operator: Any, arguments: tuple[Any, ...]) -> tuple[tuple[Any, ...], tuple[Any, ...]]:
    """The tensors, and the options behind them."""
    names = [argument.name for argument in operator._schema.arguments]
    start = names.index("reduction")
    return arguments[:start], arguments[start:]


def backward_of(operator: Any) -> Any:
    return getattr(OPERATORS, operator.name().partition("::")[2] + "_backward").default


def in_place_of(operator: Any) -> Any:
    return getattr(OPERATORS, operator.name().partition("::")[2] + "_backward_").default


class TestInstructionSets:
    @pytest.mark.parametrize(
        ("name", "part"),
        [
            ("avx2", "not thorough"),
            *(pytest.param(name, "not large", marks=pytest.mark.thorough) for name in ("avx2", "baseline")),
        ],
    )
    def test_each_equals_eager(self, name: str, part: str) -> None:
        """The processor chooses one of them; the others run here in a process that is told to."""
        few = "test_layouts and (contiguous or transposed) or named"
        chosen = ["-m", part, "-k", few if part == "not thorough" else "TestEqualsEager or TestGradientAlong or named"]
        run = subprocess.run(
            [sys.executable, "-m", "pytest", __file__, "-n0", "-q", "-p", "no:cacheprovider", *chosen],
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


def drawn_rows(classes: int, scale: float, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(classes)
    x = (torch.randn(max(2, 4096 // classes), classes, generator=generator) * scale).to(dtype)
    return x, torch.randint(classes, (len(x),), generator=generator)


class TestAccuracy:
    @pytest.mark.parametrize("classes", [3, 10, 1000, 131072])
    @pytest.mark.parametrize("scale", [0.1, 1.0, 10.0])
    @pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
    def test_never_worse_than_torch(self, classes: int, scale: float, dtype: torch.dtype) -> None:
        x, target = drawn_rows(classes, scale, dtype)
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

    @pytest.mark.parametrize("weighted", [False, True])
    @pytest.mark.parametrize("elements", [1, 3, 1000, 100_000, 1_000_000])
    def test_sums_of_squared_errors(self, elements: int, weighted: bool) -> None:
        """Within a unit in the last place, also where the values are of wide range, or near each other."""
        generator = torch.Generator().manual_seed(elements)
        spread = torch.randn(elements, generator=generator) * 10 ** (6 * torch.rand(elements, generator=generator) - 3)
        near = 1 + 1e-3 * torch.rand(elements, generator=generator)
        weight = torch.rand(elements, generator=generator) if weighted else None
        for x, target in ((spread, torch.zeros(elements)), (near, torch.full((elements,), 0.1))):
            squares = (x.double() - target.double()).square() * (1 if weight is None else weight.double())
            truth = math.fsum(squares.tolist())
            total = torchlosses.mse_loss(x, target, weight=weight, reduction="sum")
            assert oracles.ulps(total.item(), truth, np.float32) <= 1
            mean = torchlosses.mse_loss(x, target, weight=weight, normalizer=float(elements))
            assert oracles.ulps(mean.item(), truth / elements, np.float32) <= 1

    @pytest.mark.parametrize("elements", [7, 1000, 40_000])
    def test_sums_of_float64(self, elements: int) -> None:
        """With what the additions round away: within a unit in the last place where values are near each other."""
        x = 1 + 1e-3 * torch.rand(elements, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
        with mpmath.workdps(60):
            truth = mpmath.fsum(mpmath.mpf(value) ** 2 for value in x.tolist())
        total = torchlosses.mse_loss(x, torch.zeros_like(x), reduction="sum")
        assert oracles.ulps(total.item(), truth, np.float64) <= 1

    @pytest.mark.parametrize("scale", [0.01, 0.1, 1.0])
    @pytest.mark.parametrize("shape", [(5, 40, 4, 1), (3, 2), (50, 300), (2, 21, 100)], ids=str)
    def test_probabilities_with_class_weights(self, shape: tuple[int, ...], scale: float) -> None:
        """Where all probabilities are small, A p - a is the right way to the gradient; never worse than torch."""
        for seed in range(5):
            generator = torch.Generator().manual_seed(seed)
            x = torch.randn(shape, generator=generator) * scale
            target = torch.softmax(torch.randn(shape, generator=generator), 1)
            weight = torch.rand(shape[1], generator=generator) + 0.1
            wide = x.double().requires_grad_()
            (truth,) = torch.autograd.grad(F.cross_entropy(wide, target.double(), weight.double()), wide)
            errors = []
            for loss in (torchlosses.cross_entropy, F.cross_entropy):
                leaf = x.clone().requires_grad_()
                (gradient,) = torch.autograd.grad(loss(leaf, target, weight), leaf)
                errors.append((gradient.double() - truth).abs().max().item())
            assert errors[0] <= errors[1] + torch.finfo(torch.float32).eps * truth.abs().max().item()

    @pytest.mark.parametrize("rows", [1, 100, 1000])
    def test_the_textbook_loss_of_two_classes(self, rows: int) -> None:
        """float64, with zeros among the probabilities: large losses that are near each other."""
        generator = torch.Generator().manual_seed(rows)
        p = torch.rand(rows, 1, dtype=torch.float64, generator=generator).round()
        p = torch.cat([p, 1 - p], 1)
        t = torch.rand(rows, 1, dtype=torch.float64, generator=generator)
        t = torch.cat([t, 1 - t], 1)
        with mpmath.workdps(60):
            terms = zip(p.flatten().tolist(), t.flatten().tolist(), strict=True)
            truth = -mpmath.fsum(b * mpmath.log(mpmath.mpf(a) + mpmath.mpf(1e-7)) for a, b in terms) / rows
        assert oracles.ulps(torchlosses.cee_loss(p, t).item(), truth, np.float64) <= 1.5

    def test_a_class_without_a_share_has_no_effect(self) -> None:
        x = torch.tensor([[-math.inf, 0.0, 1.0, 2.0]], requires_grad=True)
        weight = torch.tensor([0.0, 1.0, 1.0, 1.0])
        loss = torchlosses.cross_entropy(x, torch.tensor([0]), weight, label_smoothing=0.3, reduction="sum")
        log_sum = math.log(1 + math.e + math.e**2)
        assert loss.item() == pytest.approx(0.3 / 4 * (3 * log_sum - 3), rel=1e-6)
        (gradient,) = torch.autograd.grad(loss, x)
        expected = [0.0, *(0.3 / 4 * (3 * math.exp(v - log_sum) - 1) for v in (0.0, 1.0, 2.0))]
        assert gradient.flatten().tolist() == pytest.approx(expected, abs=1e-7)


def plain_values(y: Tensor, target: Tensor) -> Tensor:
    """Log-probability and entropy, side by side where the classes were."""
    log_p = y.log_softmax(1)
    p = log_p.exp()
    entropy = -(p * log_p.masked_fill(p == 0, 0)).sum(1)
    return torch.stack([log_p.gather(1, target.unsqueeze(1)).squeeze(1), entropy], 1)


def values_of(x: Tensor, target: Tensor, **options: Any) -> Tensor:
    """The same of ours."""
    return torch.stack(torchlosses.log_probs(x, target, dim=1, **options)[:2], 1)


def factors_of(values: Tensor) -> Tensor:
    """An incoming gradient of its own for each, of both signs."""
    return torch.linspace(-1, 2, values.numel(), dtype=values.dtype).reshape(values.shape)


class TestLogProbabilities:
    @pytest.mark.parametrize("offset", [0, 1, 3])
    @pytest.mark.parametrize("dtype", DTYPES, ids=str)
    @pytest.mark.usefixtures("no_way_out")
    def test_every_size_and_alignment(self, dtype: torch.dtype, offset: int) -> None:
        """Rows of every number of classes up to several vectors, wherever they begin in memory."""
        for classes in (*range(1, 70), 127, 257, 4097):
            rows, gap = 3, offset
            memory = torch.randn(offset + rows * (classes + gap), generator=torch.Generator().manual_seed(classes))
            x = (3 * memory).to(dtype).as_strided((rows, classes), (classes + gap, 1), offset)
            target = torch.arange(rows) * 7 % classes
            wide = x.double().requires_grad_()
            truth = plain_values(wide, target)
            (gradient,) = torch.autograd.grad(truth, wide, factors_of(truth))
            leaf = x.detach().requires_grad_()
            found = values_of(leaf, target)
            (ours,) = torch.autograd.grad(found, leaf, factors_of(found))
            relative, absolute = TOLERANCES[torch.float64 if dtype == torch.float64 else torch.float32]
            assert_close(found.double(), truth, rtol=relative, atol=absolute)
            assert_close(ours.double(), gradient, rtol=TOLERANCES[dtype][0], atol=TOLERANCES[dtype][1])

    @pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
    @pytest.mark.parametrize("shape", [(4, 1), (4, 5), (4, 40), (4, 5000), (2, 5, 3)], ids=str)
    def test_values_that_are_not_finite(self, value: float, shape: tuple[int, ...]) -> None:
        """As the formula treats them, for incoming gradients of either output or both; ignored rows are inert."""
        x = torch.randn(shape, generator=torch.Generator().manual_seed(3))
        target = torch.zeros(shape[:1] + shape[2:], dtype=torch.int64)
        target[-1] = -100
        for classes in ([shape[1] // 2], [0], [shape[1] - 1], list(range(shape[1]))):
            bad = x.clone()
            bad[:1, classes] = bad[-1:, classes] = value
            bad.requires_grad_()
            results = []
            for name in ("native", "eager"):
                with kernels.use(name):
                    found = torchlosses.log_probs(bad, target, dim=1)
                    both = torch.stack(found[:2], 1)
                    incoming = [torch.zeros_like(both), torch.zeros_like(both), factors_of(both)]
                    incoming[0][:, 0], incoming[1][:, 1] = 1, 1
                    gradients = [torch.autograd.grad(both, bad, g, retain_graph=True)[0] for g in incoming]
                    assert not any(tensor[-1:].any() for tensor in (*found, *gradients))
                    results.append((*(field.detach() for field in found), *gradients))
            assert_close(results[0], results[1], rtol=1e-5, atol=1e-6, equal_nan=True)

    @pytest.mark.parametrize("order", ["rising", "falling", "mixed"])
    def test_a_maximum_that_changes_on_the_way(self, order: str) -> None:
        """Over several chunks of a row: what had been added is taken from the new maximum."""
        x = torch.linspace(-30, 20, 20_001).repeat(2, 1)
        x[1] /= 50
        x = {"rising": x, "falling": x.flip(1), "mixed": x[:, torch.randperm(20_001)]}[order]
        target = torch.tensor([17, 20_000])
        wide, leaf = x.double().requires_grad_(), x.clone().requires_grad_()
        truth, found = plain_values(wide, target), values_of(leaf, target)
        assert_close(found.double(), truth, rtol=1e-6, atol=1e-6)
        expected = torch.autograd.grad(truth, wide, factors_of(truth))[0]
        gradient = torch.autograd.grad(found, leaf, factors_of(found))[0]
        assert_close(gradient.double(), expected, rtol=2e-5, atol=1e-9)

    def test_the_first_of_the_largest_is_the_hit(self) -> None:
        for classes, places in ((3, (0, 1)), (40, (7, 33)), (9001, (4095, 4096)), (9001, (5000, 9000))):
            x = torch.zeros(2, classes)
            x[:, list(places)] = 2.0
            assert torchlosses.log_probs(x, torch.tensor(places)).correct.tolist() == [True, False]
            shuffled = torch.stack([x, x], 2)
            found = torchlosses.log_probs(shuffled, torch.tensor(places)[:, None].expand(2, 2), dim=1)
            assert found.correct.tolist() == [[True, True], [False, False]]

    @pytest.mark.parametrize("shape", [(0, 5), (3, 0), (3, 1), (2, 3, 0)], ids=str)
    def test_nothing_to_compute(self, shape: tuple[int, ...]) -> None:
        x, target = torch.randn(shape, requires_grad=True), torch.zeros(shape[:1] + shape[2:], dtype=torch.int64)
        target[:] = 0 if shape[1] else -100
        found = torchlosses.log_probs(x, target, dim=1)
        assert all(field.shape == target.shape and not field.any() for field in found[:2])
        (gradient,) = torch.autograd.grad(found.log_probability.sum() + found.entropy.sum(), x)
        assert gradient.shape == shape
        assert not gradient.any()

    @pytest.mark.parametrize("shape", [(7, 33), (2, 21, 5)], ids=str)
    @pytest.mark.parametrize("own", [(-100, 1.0, None), (3, 0.5, 1.5)])
    @pytest.mark.usefixtures("no_way_out")
    def test_the_gradient_over_the_logits(self, own: tuple[Any, ...], shape: tuple[int, ...]) -> None:
        x = torch.randn(shape).bfloat16()
        target = torch.arange(x.numel() // shape[1]).reshape(shape[:1] + shape[2:]) % shape[1]
        options = ("none", math.nan, torch.float32, 0, *own)
        values, _, state = OPERATORS.log_probs(x, target, None, *options)
        arguments = (target, None, state, *options)
        expected = OPERATORS.log_probs_backward(factors_of(values), x, *arguments)
        OPERATORS.log_probs_backward_(factors_of(values), x, x, *arguments)
        assert torch.equal(x, expected)

    @pytest.mark.parametrize("classes", [3, 10, 1000, 131072])
    @pytest.mark.parametrize("scale", [0.1, 1.0, 10.0])
    @pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
    def test_never_worse_than_torch(self, classes: int, scale: float, dtype: torch.dtype) -> None:
        x, target = drawn_rows(classes, scale, dtype)
        wide = x.double().requires_grad_()
        truth = plain_values(wide, target)
        true_gradient = torch.autograd.grad(truth.sum(), wide)[0]
        errors = []
        for values in (values_of, lambda y, t: plain_values(y.float(), t)):
            leaf = x.clone().requires_grad_()
            found = values(leaf, target)
            gradient = torch.autograd.grad(found.sum(), leaf)[0]
            of_gradient = (gradient.double() - true_gradient).abs().amax(1) / true_gradient.abs().amax(1)
            off = ((found.double() - truth).abs() / truth.abs()).amax(0)
            errors.append([*off.tolist(), of_gradient.max().item()])
        # Which of two good results happens to be rounded the better way says nothing.
        units = (torch.finfo(torch.float32).eps,) * 2 + (torch.finfo(dtype).eps,)
        for ours, builtin, unit in zip(*errors, units, strict=True):
            assert ours <= builtin + unit

    @pytest.mark.parametrize("margin", [5.0, 12.0, 20.0, 60.0, 85.0])
    @pytest.mark.parametrize("classes", [2, 5, 17, 5000])
    def test_the_confident_tail(self, margin: float, classes: int) -> None:
        """Where the plain formula gives 0, values and gradients are right to 8 units in the last place."""
        place = classes // 2
        x = torch.zeros(1, classes)
        x[0, place] = margin
        x.requires_grad_()
        log_probability, entropy, _ = torchlosses.log_probs(x, torch.tensor([place]))
        of_log_probability = torch.autograd.grad(log_probability, x, retain_graph=True)[0][0]
        of_entropy = torch.autograd.grad(entropy, x)[0][0]
        with mpmath.workdps(60):
            e = mpmath.exp(-mpmath.mpf(margin))
            rest = (classes - 1) * e
            distance = margin * rest / (1 + rest)
            pairs = [
                (log_probability, -mpmath.log1p(rest)),
                (entropy, mpmath.log1p(rest) + distance),
                (of_log_probability[place], rest / (1 + rest)),
                (of_log_probability[0 if place else 1], -e / (1 + rest)),
                (of_entropy[place], -distance / (1 + rest)),
            ]
            if rest < 1:
                # Otherwise D is near the margin, and of their difference few digits are left.
                pairs.append((of_entropy[0 if place else 1], -e * (distance - margin) / (1 + rest)))
            for found, truth in pairs:
                assert oracles.ulps(found.item(), truth, np.float32) <= 8


@pytest.fixture
def two_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


class TestThreads:
    @pytest.mark.parametrize(
        ("dtype", "loss", "shape"),
        in_turn(
            (torch.float32, torch.bfloat16),
            {
                f"{loss}-{shape}": (loss, shape)
                for loss, shape in itertools.product(COMPILED, ((300, 2000), (12, 20000), (3, 21, 5000)))
            },
        ),
    )
    @pytest.mark.usefixtures("two_threads")
    def test_their_number_does_not_change_a_bit(self, loss: str, dtype: torch.dtype, shape: tuple[int, ...]) -> None:
        for operator, arguments in CALLS[loss](shape, dtype, "mean"):
            if any(isinstance(a, Tensor) and a.shape == shape and not a.is_floating_point() for a in arguments):
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

    @pytest.mark.parametrize(
        "call",
        [
            "cross_entropy(x, y)",
            *(
                pytest.param(call, marks=pytest.mark.thorough)
                for call in (
                    "mse_loss(x, p)",
                    "cee_loss(p, y)",
                    "huber_loss(x, p)",
                    "smooth_l1_loss(x, p)",
                    "binary_cross_entropy_with_logits(x, p)",
                    "log_probs(x, y).entropy.sum()",
                )
            ),
        ],
    )
    def test_a_forked_process(self, call: str) -> None:
        """The threads of the parent do not exist in it; waiting for them would never end."""
        script = (
            "import os, torch, torchlosses\n"
            "torch.set_num_threads(2)\n"
            "x, y = torch.randn(400, 4000, requires_grad=True), torch.randint(4000, (400,))\n"
            "p = torch.softmax(x.detach(), 1)\n"
            "p = p.requires_grad_() if 'cee' in CALL else p\n"
            "def step():\n"
            f"    loss = torchlosses.{call}\n"
            "    return loss.detach(), torch.autograd.grad(2 * loss, p if 'cee' in CALL else x)[0]\n"
            "expected = step()\n"
            "child = os.fork()\n"
            "if child == 0:\n"
            "    found = step()\n"
            # PyTorch's own operations would wait.
            "    torch.set_num_threads(1)\n"
            "    os._exit(0 if all(map(torch.equal, found, expected)) else 1)\n"
            "raise SystemExit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))\n"
        ).replace("CALL", repr(call))
        subprocess.run([sys.executable, "-c", script], check=True, timeout=120)


class TestBounds:
    """An index outside the classes is never used as one, whatever else is wrong."""

    @pytest.mark.parametrize("index", [-1, 5, 1 << 40, -(1 << 40)])
    @pytest.mark.parametrize("shape", [(40, 5), (4, 5, 33)], ids=str)
    def test_forward(self, index: int, shape: tuple[int, ...]) -> None:
        x = torch.softmax(torch.randn(shape), 1)
        target = torch.zeros(shape[:1] + shape[2:], dtype=torch.int64)
        target.view(-1)[-1] = index
        for loss in (torchlosses.cross_entropy, torchlosses.cee_loss, values_of):
            with pytest.raises(IndexError, match=f"Target {index} is out of bounds. It stands at position"):
                loss(x, target)

    @pytest.mark.parametrize("index", [-1, 5, 1 << 40])
    @pytest.mark.parametrize("shape", [(40, 5), (4, 5, 33)], ids=str)
    def test_an_index_that_is_changed_after_the_forward(self, index: int, shape: tuple[int, ...]) -> None:
        """Below autograd's check for in-place changes the operator has a check of its own."""
        x = torch.randn(shape)
        target = torch.zeros(shape[:1] + shape[2:], dtype=torch.int64)
        options = ("mean", math.nan, torch.float32, 0, *PLAIN)
        own = ("none", math.nan, torch.float32, 0, -100, 1.0, None)
        _, _, state = OPERATORS.cross_entropy(x, target, None, None, None, *options)
        values, _, of_rows = OPERATORS.log_probs(x, target, None, *own)
        target.view(-1)[-1] = index
        for name, g, arguments in (
            ("cross_entropy", torch.tensor(1.0), (x, target, None, None, None, state, *options)),
            ("log_probs", torch.ones_like(values), (x, target, None, of_rows, *own)),
        ):
            with pytest.raises(IndexError, match="out of bounds"):
                getattr(OPERATORS, f"{name}_backward")(g, *arguments)
            with pytest.raises(IndexError, match="out of bounds"):
                getattr(OPERATORS, f"{name}_backward_")(g, x.clone(), *arguments)


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
