"""The options that training of large models asks for.

Sample weights, a normalizer, what an empty mean gives, z-loss, soft cap, the rows' statistics, and the class dimension.
"""

from __future__ import annotations

import itertools
import math
import pickle
from collections.abc import Callable
from typing import Any

import mpmath
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.func import grad, jvp, vmap
from torch.testing import assert_close

import torchlosses
from tests.oracles import cross_entropy_denominator, extended_cross_entropy_rows
from torchlosses import RowStatistics, cee_loss, cross_entropy, mse_loss
from torchlosses._validation import Reduction
from torchlosses.testing.checks.cost import peak_bytes

pytestmark = pytest.mark.usefixtures("each_backend")

ROWS, CLASSES = 6, 5
REDUCTIONS_OF_ROWS: tuple[Reduction, ...] = ("mean", "none")
LOSSES = ("mse", "index", "probability", "cee index", "cee probability")


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def indices(*shape: int, ignored: bool = False) -> Tensor:
    target = torch.randint(CLASSES, shape, generator=torch.Generator().manual_seed(2))
    if ignored:
        target.view(-1)[1::3] = -100
    return target


def drawn(loss: str, rows: int = ROWS) -> tuple[Callable[..., Any], Tensor, Tensor]:
    """A loss, its input and its target."""
    logits, others = random(rows, CLASSES), random(rows, CLASSES, seed=1).softmax(1)
    target = indices(rows) if loss.endswith("index") else others
    if loss.startswith("cee"):
        return cee_loss, logits.softmax(1), target
    return (mse_loss if loss == "mse" else cross_entropy), logits, target


def sample_weights(rows: int = ROWS) -> Tensor:
    return torch.linspace(0.5, 2.0, rows, dtype=torch.float64)


def value_and_gradients(loss: Callable[..., Any], *leaves: Tensor) -> tuple[Tensor, ...]:
    leaves = tuple(leaf.detach().clone().requires_grad_() for leaf in leaves)
    value = loss(*leaves)
    return value.detach(), *torch.autograd.grad(value, leaves, torch.ones_like(value))


@pytest.mark.parametrize("kind", ["index", "ignored", "probability"])
@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
def test_equals_the_definition(kind: str, reduction: Any, dtype: torch.dtype) -> None:
    logits = (3 * random(ROWS, CLASSES)).to(dtype)
    target = (
        random(ROWS, CLASSES, seed=1).softmax(1) if kind == "probability" else indices(ROWS, ignored=kind == "ignored")
    )
    for z_loss, logit_softcap, smoothing, weighted, sampled in itertools.product(
        (0.0, 0.1), (None, 2.0), (0.0, 0.2), (False, True), (False, True)
    ):
        weight = torch.linspace(0.5, 2, CLASSES, dtype=torch.float64) if weighted else None
        samples = sample_weights() if sampled else None
        options: dict[str, Any] = {"z_loss": z_loss, "logit_softcap": logit_softcap, "label_smoothing": smoothing}
        of_class = None if weight is None else weight.to(dtype)
        given = target.to(dtype) if kind == "probability" else target
        losses, gradients = extended_cross_entropy_rows(
            logits.double().numpy(),
            given.double().numpy() if kind == "probability" else given.numpy(),
            None if of_class is None else of_class.double().numpy(),
            None if samples is None else samples.numpy(),
            **options,
        )
        if reduction == "mean":
            counted = np.ones(ROWS) if samples is None else samples.numpy()
            if kind == "probability":
                denominator = counted.sum()
            else:
                row_weight = counted if of_class is None else counted * of_class.double().numpy()[target.clamp(min=0)]
                denominator = row_weight[target.numpy() != -100].sum()
                if samples is None:
                    of_class_numpy = None if of_class is None else of_class.double().numpy()
                    assert denominator == pytest.approx(cross_entropy_denominator(target.numpy(), of_class_numpy))
            losses, gradients = losses.sum() / denominator, gradients / denominator
        elif reduction == "sum":
            losses = losses.sum()
        value, gradient = value_and_gradients(
            lambda x, of_class=of_class, given=given, samples=samples, options=options: cross_entropy(
                x, given, of_class, reduction=reduction, sample_weight=samples, **options
            ),
            logits,
        )
        tolerance = {torch.float64: 1e-12, torch.float32: 2e-6, torch.bfloat16: 1e-2}[dtype]
        assert value.dtype == dtype
        assert_close(value.double(), torch.tensor(losses, dtype=torch.float64), rtol=tolerance, atol=tolerance)
        assert_close(gradient.double(), torch.from_numpy(gradients), rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("shape", [(3, 700, 5), (40, 3000), (2, 33, 17)])
@pytest.mark.parametrize("strided", [False, True])
def test_layouts_and_long_rows(shape: tuple[int, ...], strided: bool) -> None:
    """Also rows of several chunks, classes that are no neighbours, and partial tiles."""
    logits = random(*shape).float()
    if strided:
        logits = logits.transpose(0, 1).contiguous().transpose(0, 1)
    rows = (shape[0], *shape[2:])
    target = torch.randint(shape[1], rows, generator=torch.Generator().manual_seed(2))
    samples = torch.rand(rows, generator=torch.Generator().manual_seed(3))
    options: dict[str, Any] = {"z_loss": 0.1, "logit_softcap": 2.0, "label_smoothing": 0.1, "reduction": "none"}
    value, gradient = value_and_gradients(lambda x: cross_entropy(x, target, sample_weight=samples, **options), logits)
    _, statistics = cross_entropy(logits, target, sample_weight=samples, return_stats=True, **options)
    flat = logits.movedim(1, -1).reshape(-1, shape[1]).double().numpy()
    del options["reduction"]
    losses, gradients = extended_cross_entropy_rows(
        flat, target.flatten().numpy(), None, samples.flatten().numpy(), **options
    )
    assert_close(value.flatten().double(), torch.from_numpy(losses), rtol=3e-6, atol=3e-6)
    assert_close(
        gradient.movedim(1, -1).reshape(-1, shape[1]).double(), torch.from_numpy(gradients), rtol=1e-5, atol=1e-7
    )
    assert gradient.stride() == logits.stride()
    log_p = torch.from_numpy(2 * np.tanh(flat / 2)).log_softmax(1)
    assert_close(statistics.entropy.flatten().double(), -(log_p.exp() * log_p).sum(1), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("target", [0, 1])
@pytest.mark.parametrize("kind", ["cross_entropy", "linear_cross_entropy", "log_probs"])
def test_a_small_entropy_keeps_its_digits(kind: str, target: int) -> None:
    """Of a row that is all but sure, of the target or of another class."""
    logits = [0.0, 34.0, -1.0, 3.0]
    with mpmath.workdps(50):
        shifted = [mpmath.mpf(x) - 34 for x in logits]
        total = mpmath.fsum(mpmath.exp(x) for x in shifted)
        truth = float(-mpmath.fsum(mpmath.exp(x) / total * (x - mpmath.log(total)) for x in shifted))
    for dtype, digits in ((torch.float64, 1e-14), (torch.float32, 1e-6)):
        x, y = torch.tensor([logits], dtype=dtype), torch.tensor([target])
        match kind:
            case "cross_entropy":
                found = cross_entropy(x, y, return_stats=True)[1].entropy
            case "linear_cross_entropy":
                found = torchlosses.linear_cross_entropy(x, torch.eye(4, dtype=dtype), y, return_stats=True)[1].entropy
            case _:
                found = torchlosses.log_probs(x, y).entropy
        assert found.item() == pytest.approx(truth, rel=digits, abs=0)


class TestSampleWeight:
    @pytest.mark.parametrize("loss", LOSSES)
    @pytest.mark.parametrize("reduction", ["mean", "sum"])
    def test_counts_as_often_as_it_says(self, loss: str, reduction: str) -> None:
        function, input, target = drawn(loss, 3)
        times = torch.tensor([2, 1, 3])
        weighted = value_and_gradients(lambda x: function(x, target, reduction=reduction, sample_weight=times), input)
        repeated = value_and_gradients(
            lambda x: function(x.repeat_interleave(times, 0), target.repeat_interleave(times, 0), reduction=reduction),
            input,
        )
        assert_close(weighted, repeated)

    @pytest.mark.parametrize("loss", LOSSES)
    @pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
    @pytest.mark.parametrize("filling", [0.25, math.nan, math.inf])
    def test_a_row_of_weight_0_is_absent(self, loss: str, reduction: str, filling: float) -> None:
        function, input, target = drawn(loss)
        samples = sample_weights()
        samples[2] = 0
        kept = samples != 0
        input = input.clone()
        input[2] = filling
        options: dict[str, Any] = {"reduction": reduction}
        if function is cross_entropy:
            options["z_loss"] = 0.1

        def of_all(x: Tensor, s: Tensor) -> Tensor:
            return function(x, target, sample_weight=s, **options)

        def of_kept(x: Tensor, s: Tensor) -> Tensor:
            return function(x, target[kept], sample_weight=s, **options)

        value, gradient, by_weight = value_and_gradients(of_all, input, samples)
        expected, expected_gradient, expected_by_weight = value_and_gradients(of_kept, input[kept], samples[kept])
        if reduction == "none":
            assert not value[2].any()
            value = value[kept]
        assert_close(value, expected)
        assert not gradient[2].any()
        assert_close(gradient[kept], expected_gradient)
        assert_close(by_weight[kept], expected_by_weight)
        assert by_weight.isfinite().all()
        direction = random(ROWS, CLASSES, seed=5)
        weights = torch.ones_like(samples)
        second = jvp(grad(lambda x: of_all(x, samples).sum()), (input,), (direction,))[1]
        expected = jvp(grad(lambda x: of_kept(x, samples[kept]).sum()), (input[kept],), (direction[kept],))[1]
        assert_close(second[kept], expected)
        assert not second[2].any()
        tangent = jvp(lambda x, s: of_all(x, s).sum(), (input, samples), (direction, weights))[1]
        assert tangent.isfinite()

    @pytest.mark.parametrize("loss", LOSSES)
    def test_the_derivative_by_a_weight_of_0_is_the_loss(self, loss: str) -> None:
        function, input, target = drawn(loss)
        losses = function(input, target, reduction="none")
        losses = losses.sum(1) if loss == "mse" else losses
        samples = sample_weights()
        samples[2] = 0
        derivative = value_and_gradients(lambda s: function(input, target, sample_weight=s, reduction="sum"), samples)[
            1
        ]
        assert_close(derivative, losses)

    def test_second_derivatives_by_a_class_weight_of_0(self) -> None:
        logits, target = random(4, 3), torch.tensor([0, 1, 2, 1])
        weight = torch.tensor([1.0, 0.0, 2.0], dtype=torch.float64)
        for function in (
            lambda x, w: cross_entropy(x, target, w, reduction="sum"),
            lambda x, w: cross_entropy(x, target, w),
        ):
            leaves = (logits.clone().requires_grad_(), weight.clone().requires_grad_())
            assert torch.autograd.gradgradcheck(function, leaves, check_fwd_over_rev=True)

    def test_class_weights_do_not_scale_the_z_loss(self) -> None:
        logits, target = random(ROWS, CLASSES), indices(ROWS, ignored=True)
        weight = torch.full((CLASSES,), 3.0, dtype=torch.float64)
        without, beside = (cross_entropy(logits, target, weight, reduction="none", z_loss=z) for z in (0.0, 0.1))
        assert_close(beside - without, 0.1 * logits.logsumexp(1).square() * (target != -100))

    @pytest.mark.parametrize("loss", ["index", "cee index"])
    @pytest.mark.parametrize("shape", [(), (3,), (2, 1), (2, 3)])
    def test_broadcasts_to_the_rows(self, loss: str, shape: tuple[int, ...]) -> None:
        function, input, _ = drawn(loss, 2)
        input, target = input.unsqueeze(2).expand(2, CLASSES, 3), indices(2, 3)
        samples = torch.rand(shape, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
        losses = function(input, target, reduction="none")
        full = samples.expand(2, 3)
        assert_close(function(input, target, sample_weight=samples), (losses * full).sum() / full.sum())

    @pytest.mark.parametrize("shape", [(2,), (2, 1, 1), (1, 3), (2, 3, 4)])
    def test_belongs_to_the_first_dimensions_of_mse(self, shape: tuple[int, ...]) -> None:
        input, target = random(2, 3, 4), random(2, 3, 4, seed=1)
        samples = torch.rand(shape, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
        full = samples.reshape(*shape, *(1,) * (3 - len(shape))).expand(2, 3, 4)
        expected = (full * (input - target) ** 2).sum() / full.sum()
        assert_close(mse_loss(input, target, sample_weight=samples), expected)
        weight = random(2, 3, 4, seed=4).abs()
        expected = (full * weight * (input - target) ** 2).sum() / (full * weight).sum()
        assert_close(mse_loss(input, target, weight=weight, sample_weight=samples), expected)

    def test_an_element_of_weight_0_with_an_infinite_weight(self) -> None:
        weight = torch.tensor([[math.inf], [1.0]])
        loss = mse_loss(torch.ones(2, 1), torch.zeros(2, 1), weight=weight, sample_weight=torch.tensor([0.0, 1.0]))
        assert loss == 1

    def test_a_row_of_weight_0_whose_target_has_probability_0(self) -> None:
        p = torch.tensor([[0.0, 1.0], [0.5, 0.5]], dtype=torch.float64, requires_grad=True)
        samples = torch.tensor([0.0, 1.0], dtype=torch.float64, requires_grad=True)
        loss = cee_loss(p, torch.tensor([0, 0]), delta=0.0, sample_weight=samples)
        gradient, by_weight = torch.autograd.grad(loss, (p, samples))
        assert_close(loss.item(), math.log(2))
        assert_close(gradient, torch.tensor([[0.0, 0.0], [-2.0, 0.0]], dtype=torch.float64))
        assert by_weight.isfinite().all()

    @pytest.mark.parametrize("loss", LOSSES)
    def test_a_mask(self, loss: str) -> None:
        function, input, target = drawn(loss)
        mask = torch.arange(ROWS) % 2 == 0
        assert_close(function(input, target, sample_weight=mask), function(input[mask], target[mask]))

    @pytest.mark.parametrize("loss", LOSSES)
    def test_vmap(self, loss: str) -> None:
        function, input, target = drawn(loss)
        samples = torch.stack([sample_weights(), sample_weights().flip(0)])
        for dims in (0, 1):
            moved = samples.movedim(0, dims)
            mapped = vmap(lambda s: function(input, target, sample_weight=s), in_dims=dims)(moved)
            assert_close(mapped, torch.stack([function(input, target, sample_weight=s) for s in samples]))


class TestNormalizer:
    @pytest.mark.parametrize("loss", LOSSES)
    @pytest.mark.parametrize("sampled", [False, True])
    def test_micro_batches_add_up(self, loss: str, sampled: bool) -> None:
        function, input, target = drawn(loss)
        options: list[dict[str, Any]] = [{}]
        if loss == "index":
            target[:2] = -100
            options = [{}, {"weight": torch.linspace(0.5, 2, CLASSES, dtype=torch.float64), "z_loss": 0.1}]
        samples = sample_weights() if sampled else None
        for option in options:
            whole, gradient = value_and_gradients(
                lambda x, option=option: function(x, target, sample_weight=samples, **option), input
            )
            if loss == "index":
                weight = option.get("weight", torch.ones(CLASSES, dtype=torch.float64))
                counted = weight[target[2:]] * (1 if samples is None else samples[2:])
            else:
                counted = torch.ones(ROWS, dtype=torch.float64) if samples is None else samples
                counted = counted * (CLASSES if loss == "mse" else 1)
            parts = [
                value_and_gradients(
                    lambda x, part=part, option=option, counted=counted: function(
                        x,
                        target[part],
                        sample_weight=None if samples is None else samples[part],
                        normalizer=counted.sum(),
                        **option,
                    ),
                    input[part],
                )
                # The first holds nothing but ignored rows, where there are any.
                for part in (slice(0, 2), slice(2, 3), slice(3, ROWS))
            ]
            assert_close(torch.stack([part[0] for part in parts]).sum(), whole)
            assert_close(torch.cat([part[1] for part in parts]), gradient)

    @pytest.mark.parametrize("loss", LOSSES)
    def test_a_number_keeps_its_digits(self, loss: str) -> None:
        function, input, target = drawn(loss)
        total = function(input, target, reduction="sum")
        assert_close(function(input, target, normalizer=0.1), total / 0.1, rtol=1e-15, atol=0)

    @pytest.mark.parametrize("loss", LOSSES)
    def test_its_derivative(self, loss: str) -> None:
        function, input, target = drawn(loss)
        total = function(input, target, reduction="sum")
        normalizer = torch.tensor(3.0, requires_grad=True)
        function(input, target, normalizer=normalizer).backward()
        assert_close(normalizer.grad, -(total / 9).float())

    @pytest.mark.parametrize("loss", LOSSES)
    def test_is_for_means(self, loss: str) -> None:
        function, input, target = drawn(loss)
        for reduction in ("sum", "none"):
            with pytest.raises(ValueError, match="normalizer is what reduction='mean' divides by"):
                function(input, target, reduction=reduction, normalizer=2.0)
        for wrong in (torch.ones(2), -1.0, math.nan):
            with pytest.raises(ValueError, match="normalizer must be"):
                function(input, target, normalizer=wrong)


class TestEmpty:
    @pytest.mark.parametrize("loss", LOSSES)
    @pytest.mark.parametrize("how", ["no rows", "sample weights", "ignored", "class weights", "normalizer"])
    def test_is_the_same_in_every_loss_and_path(self, loss: str, how: str) -> None:
        function, input, target = drawn(loss)
        options: dict[str, Any] = {}
        if how == "no rows":
            input, target = input[:0], target[:0]
        elif how == "sample weights":
            options["sample_weight"] = torch.zeros(ROWS, dtype=torch.float64)
        elif loss != "index":
            pytest.skip("only class indices can be ignored and have weights in the mean")
        elif how == "ignored":
            target = torch.full_like(target, -100)
        elif how == "class weights":
            options["weight"] = torch.zeros(CLASSES, dtype=torch.float64)
        else:
            target, options["normalizer"] = torch.full_like(target, -100), 0.0
        extras: list[dict[str, Any]] = (
            [{}, {"z_loss": 0.1, "logit_softcap": 2.0}] if function is cross_entropy else [{}]
        )
        for extra in extras:
            for empty, expected in (("nan", math.nan), ("zero", 0.0)):
                value, gradient = value_and_gradients(
                    lambda x, extra=extra, empty=empty: function(x, target, empty=empty, **options, **extra), input
                )
                assert_close(value.item(), expected, equal_nan=True)
                assert not gradient.any()
                assert gradient.shape == input.shape

    @pytest.mark.parametrize("empty", ["nan", "zero"])
    def test_has_no_second_derivative(self, empty: Any) -> None:
        target = torch.full((ROWS,), -100)
        logits, direction = random(ROWS, CLASSES), random(ROWS, CLASSES, seed=1)
        for options in ({"empty": empty}, {"empty": empty, "z_loss": 0.1}):
            gradient = grad(lambda x, options=options: cross_entropy(x, target, **options))
            assert not jvp(gradient, (logits,), (direction,))[1].any()
            assert not grad(lambda x, gradient=gradient: (gradient(x) * direction).sum())(logits).any()

    @pytest.mark.parametrize("loss", LOSSES)
    def test_changes_nothing_else(self, loss: str) -> None:
        function, input, target = drawn(loss)
        assert_close(function(input, target, empty="zero"), function(input, target), rtol=1e-15, atol=0)
        assert function(input * math.nan, target, empty="zero").isnan()

    @pytest.mark.parametrize("loss", LOSSES)
    def test_has_two_values(self, loss: str) -> None:
        function, input, target = drawn(loss)
        with pytest.raises(ValueError, match="'one' is not a valid value for empty: expected one of 'nan', 'zero'"):
            function(input, target, empty="one")


class TestSoftCap:
    @pytest.mark.parametrize("x", [1e-30, 1e-4, 0.3, 0.62, 0.63, 2.0, 8.0, 15.0])
    @pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
    def test_keeps_its_digits(self, x: float, dtype: torch.dtype) -> None:
        """Of one class the loss is the z-loss alone, y²/2, and its gradient y dy/dx."""
        unit = torch.finfo(dtype).eps
        for sign in (1, -1):
            logits = torch.tensor([[sign * x]], dtype=dtype, requires_grad=True)
            loss, statistics = cross_entropy(
                logits, torch.tensor([0]), z_loss=0.5, logit_softcap=1.0, reduction="sum", return_stats=True
            )
            loss.backward()
            assert logits.grad is not None
            with mpmath.workdps(50):
                exact = mpmath.tanh(mpmath.mpf(logits.item()))
                gradient = exact * mpmath.sech(mpmath.mpf(logits.item())) ** 2
            assert abs(statistics.log_sum_exp.item() - float(exact)) <= 2 * unit * abs(float(exact))
            # exp(-2 x) carries the rounding of its argument.
            assert abs(logits.grad.item() - float(gradient)) <= (6 + 2 * x) * unit * abs(float(gradient))

    def test_of_infinite_logits_is_the_cap(self) -> None:
        logits = torch.tensor([[math.inf, -math.inf, 0.0]], requires_grad=True)
        loss, statistics = cross_entropy(logits, torch.tensor([2]), logit_softcap=3.0, return_stats=True)
        loss.backward()
        y = torch.tensor([[3.0, -3.0, 0.0]])
        assert_close(loss, F.cross_entropy(y, torch.tensor([2])))
        assert_close(statistics.log_sum_exp, y.logsumexp(1))
        assert_close(logits.grad, torch.tensor([[0.0, 0.0, y.softmax(1)[0, 2].item() - 1]]))
        second = grad(lambda x: grad(lambda x: cross_entropy(x, torch.tensor([2]), logit_softcap=3.0))(x).sum())(
            logits.detach()
        )
        assert second.isfinite().all()

    def test_of_nan_is_nan(self) -> None:
        assert cross_entropy(torch.tensor([[math.nan, 0.0]]), torch.tensor([1]), logit_softcap=3.0).isnan()


class TestStatistics:
    @pytest.mark.parametrize("kind", ["index", "ignored", "probability"])
    @pytest.mark.parametrize("cap", [None, 2.0])
    @pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
    def test_equal_the_definition(self, kind: str, cap: float | None, dtype: torch.dtype) -> None:
        logits = (3 * random(2, CLASSES, 7)).to(dtype).requires_grad_()
        given = random(2, CLASSES, 7, seed=1).softmax(1).to(dtype)
        target = given if kind == "probability" else indices(2, 7, ignored=kind == "ignored")
        options: dict[str, Any] = {"logit_softcap": cap, "label_smoothing": 0.1}
        loss, statistics = cross_entropy(logits, target, return_stats=True, **options)
        assert_close(loss, cross_entropy(logits, target, **options))
        losses, same = cross_entropy(logits, target, return_stats=True, reduction="none", **options)
        assert_close(losses, cross_entropy(logits, target, reduction="none", **options))
        assert_close(tuple(same), tuple(statistics))
        y = logits.detach().double()
        y = y if cap is None else cap * torch.tanh(y / cap)
        log_p = y.log_softmax(1)
        counted = torch.ones(2, 7, dtype=torch.bool)
        if kind == "probability":
            log_probability = (target.double() * log_p).sum(1)
            correct = y.argmax(1) == target.argmax(1)
        else:
            counted = target != -100
            log_probability = log_p.gather(1, target.clamp(min=0).unsqueeze(1)).squeeze(1)
            correct = y.argmax(1) == target
        assert isinstance(statistics, RowStatistics)
        entropy, z_loss = -(log_p.exp() * log_p).sum(1), torch.zeros_like(log_probability)
        expected = (y.logsumexp(1), log_probability, correct, entropy, z_loss)
        for found, field in zip(statistics, expected, strict=True):
            assert not found.requires_grad
            assert found.shape == (2, 7)
            assert_close(found.to(field.dtype), field * counted, rtol=2e-6, atol=2e-6)
        assert statistics.correct.dtype == torch.bool
        assert statistics.correct.any()

    def test_rows_that_do_not_count_hold_0(self) -> None:
        logits = random(4, CLASSES)
        logits[1:3] = math.nan
        _, statistics = cross_entropy(
            logits,
            torch.tensor([0, -100, 1, 2]),
            sample_weight=torch.tensor([1.0, 1.0, 0.0, 1.0]),
            return_stats=True,
        )
        for field in statistics:
            assert not field[1:3].any()
        assert (statistics.entropy[[0, 3]] > 0).all()

    @pytest.mark.parametrize("kind", ["index", "probability"])
    def test_the_z_loss_is_what_it_adds_to_the_loss(self, kind: str) -> None:
        """Row by row, whatever takes a row out of the sum; and of the sum, in the mean's denominator."""
        logits, target = random(ROWS, CLASSES), indices(ROWS)
        weight = torch.linspace(0, 1.5, CLASSES, dtype=torch.float64)
        target[1], target[3], target[4] = -100, 0, 2
        if kind == "probability":
            target = random(ROWS, CLASSES).softmax(1)
            target[3] = 0
        samples = torch.linspace(0, 2, ROWS, dtype=torch.float64)
        logits[0], logits[2, 0] = math.nan, -math.inf
        given: dict[str, Any] = {"weight": weight, "sample_weight": samples, "return_stats": True, "logit_scale": 0.5}
        for reduction in ("none", "sum", "mean"):
            options = {**given, "reduction": reduction}
            without, zeros = cross_entropy(logits, target, **options)
            found, statistics = cross_entropy(logits, target, z_loss=0.1, **options)
            assert not zeros.z_loss.any()
            difference = statistics.z_loss
            if reduction != "none":
                denominator = torch.ones((), dtype=torch.float64)
                if reduction == "mean":
                    counts = target != -100 if kind == "index" else torch.ones(ROWS, dtype=torch.bool)
                    of_rows = weight[target.masked_fill(~counts, 0)] if kind == "index" else torch.ones_like(samples)
                    denominator = (samples * of_rows * counts).sum()
                difference = difference.sum() / denominator
            assert_close((found - without)[without.isfinite()], difference[without.isfinite()])
        assert not statistics.z_loss[[0, 3]].any()
        assert statistics.z_loss[4] > 0
        assert_close(statistics.z_loss[4], 0.1 * samples[4] * (0.5 * logits[4]).logsumexp(0).square())

    def test_nothing_is_correct_of_nan(self) -> None:
        for value in (math.nan, math.inf, -math.inf):
            logits = torch.full((CLASSES, CLASSES), value)
            assert not cross_entropy(logits, torch.arange(CLASSES), return_stats=True)[1].correct.any()

    def test_a_ruled_out_class_adds_nothing_to_the_entropy(self) -> None:
        logits = torch.tensor([[0.0, 0.0, -math.inf]])
        assert_close(
            cross_entropy(logits, torch.tensor([0]), return_stats=True)[1].entropy, torch.tensor([math.log(2)])
        )

    def test_of_a_single_row(self) -> None:
        loss, statistics = cross_entropy(random(CLASSES), torch.tensor(1), return_stats=True)
        assert all(field.shape == () for field in statistics)
        assert_close(-statistics.target_log_probability, loss)

    def test_under_transforms(self) -> None:
        logits, target = random(3, ROWS, CLASSES), indices(3, ROWS)

        def call(x: Tensor, t: Tensor) -> tuple[Tensor, RowStatistics]:
            return cross_entropy(x, t, z_loss=0.1, return_stats=True)

        gradients, statistics = vmap(grad(call, has_aux=True))(logits, target)
        for index in range(3):
            gradient, found = grad(call, has_aux=True)(logits[index], target[index])
            assert_close(gradients[index], gradient)
            assert_close(tuple(field[index] for field in statistics), tuple(found))

    @pytest.mark.parametrize("cap", [None, 3.0])
    def test_need_no_memory_of_the_size_of_the_logits(self, cap: float | None) -> None:
        rows, classes = 1024, 16384
        logits = torch.randn(rows, classes, requires_grad=True)
        target = torch.randint(classes, (rows,))
        samples = torch.rand(rows)

        def forward() -> None:
            extras: Any = {"z_loss": 0.1, "logit_softcap": cap, "return_stats": True, "gradient": "backward"}
            cross_entropy(logits, target, sample_weight=samples, **extras)

        assert peak_bytes(forward) < 0.75 * logits.nbytes


class TestClassDimension:
    @pytest.mark.parametrize(
        ("shape", "dim"), [((4, CLASSES), -1), ((CLASSES, 4), 0), ((2, 3, CLASSES), -1), ((2, 3, 4, CLASSES), 3)]
    )
    @pytest.mark.parametrize("soft", [False, True])
    def test_equals_moving_it(self, shape: tuple[int, ...], dim: int, soft: bool) -> None:
        logits = random(*shape)
        rows = tuple(size for d, size in enumerate(shape) if d != dim % len(shape))
        target = random(*shape, seed=1).softmax(dim) if soft else indices(*rows)
        for reduction in REDUCTIONS_OF_ROWS:
            options: Any = {"reduction": reduction}
            found = value_and_gradients(lambda x, options=options: cross_entropy(x, target, dim=dim, **options), logits)
            moved_target = target.movedim(dim, 1) if soft else target
            moved = value_and_gradients(
                lambda x, options=options, moved_target=moved_target: cross_entropy(
                    x.movedim(dim, 1), moved_target, **options
                ),
                logits,
            )
            assert_close(found, moved)
        assert cross_entropy(logits, target, dim=dim, reduction="none").shape == rows

    def test_copies_nothing(self) -> None:
        logits = torch.randn(8, 64, 4096)
        target = torch.randint(4096, (8, 64))
        assert peak_bytes(lambda: cross_entropy(logits, target, dim=-1)) < 0.75 * logits.nbytes
        leaf = logits.clone().requires_grad_()
        cross_entropy(leaf, target, dim=2).backward()
        assert leaf.grad is not None
        assert leaf.grad.stride() == leaf.stride()

    def test_of_a_single_row_is_its_only_one(self) -> None:
        for dim in (0, -1, 1):
            assert_close(
                cross_entropy(random(CLASSES), torch.tensor(1), dim=dim),
                cross_entropy(random(CLASSES), torch.tensor(1)),
            )

    def test_that_is_none(self) -> None:
        with pytest.raises(IndexError, match="dim=2 is no dimension of input"):
            cross_entropy(random(4, CLASSES), indices(4), dim=2)
        with pytest.raises(TypeError, match="dim must be an int"):
            cross_entropy(random(4, CLASSES), indices(4), dim=1.5)  # type: ignore[call-overload]


class TestInterface:
    @pytest.mark.parametrize(
        ("option", "error", "message"),
        [
            ({"z_loss": -1.0}, ValueError, "z_loss must be finite and not negative"),
            ({"z_loss": math.inf}, ValueError, "z_loss must be finite and not negative"),
            ({"z_loss": "1"}, TypeError, "z_loss must be a float"),
            ({"logit_softcap": 0.0}, ValueError, "logit_softcap must be positive and finite"),
            ({"logit_softcap": math.nan}, ValueError, "logit_softcap must be positive and finite"),
            ({"empty": "one"}, ValueError, "not a valid value for empty"),
            ({"dim": "1"}, TypeError, "dim must be an int"),
        ],
    )
    def test_wrong_values_raise_at_construction_and_at_the_call(
        self, option: dict[str, Any], error: type[Exception], message: str
    ) -> None:
        with pytest.raises(error, match=message):
            torchlosses.CrossEntropyLoss(**option)
        with pytest.raises(error, match=message):
            cross_entropy(random(4, CLASSES), indices(4), **option)

    def test_sample_weights_that_do_not_fit(self) -> None:
        for loss in ("index", "cee index"):
            function, input, target = drawn(loss)
            with pytest.raises(ValueError, match=r"sample_weight must broadcast to one weight a row, \(6,\)"):
                function(input, target, sample_weight=torch.ones(ROWS, CLASSES))
        with pytest.raises(ValueError, match="sample_weight must have the sizes of the first dimensions of input"):
            mse_loss(random(2, 3), random(2, 3), sample_weight=torch.ones(3))

    @pytest.mark.parametrize(
        ("module", "function", "target"),
        [
            (
                torchlosses.CrossEntropyLoss(dim=-1, z_loss=0.1, logit_softcap=2.0, empty="zero", return_stats=True),
                lambda *a, **k: cross_entropy(
                    *a, **k, dim=-1, z_loss=0.1, logit_softcap=2.0, empty="zero", return_stats=True
                ),
                indices(ROWS),
            ),
            (torchlosses.MSELoss(empty="zero"), mse_loss, random(ROWS, CLASSES, seed=1)),
            (
                torchlosses.CEELoss(empty="zero", validate_args=False),
                lambda *a, **k: cee_loss(*a, **k, validate_args=False),
                random(ROWS, CLASSES, seed=1).softmax(1),
            ),
        ],
    )
    def test_modules_take_them(self, module: Any, function: Callable[..., Any], target: Tensor) -> None:
        input = random(ROWS, CLASSES).softmax(1)
        options: dict[str, Any] = {"sample_weight": sample_weights(), "normalizer": 3.0}
        for copy in (module, pickle.loads(pickle.dumps(module))):
            assert_close(copy(input, target, **options), function(input, target, **options))
        assert "empty='zero'" in repr(module)
        old = module.__class__.__new__(module.__class__)
        state = {name: value for name, value in module.__dict__.items() if name != "empty"}
        old.__setstate__(state)
        assert old.empty == "nan"

    def test_compile_in_one_graph(self) -> None:
        torch._dynamo.reset()
        logits, target, samples = random(ROWS, CLASSES), indices(ROWS, ignored=True), sample_weights()

        def step(x: Tensor, s: Tensor) -> Tensor:
            loss, statistics = cross_entropy(
                x, target, sample_weight=s, z_loss=0.1, logit_softcap=2.0, label_smoothing=0.1, return_stats=True
            )
            return loss + statistics.entropy.sum() + mse_loss(x, logits * 2, sample_weight=s)

        compiled = torch.compile(step, fullgraph=True, backend="aot_eager")
        assert_close(value_and_gradients(compiled, logits, samples), value_and_gradients(step, logits, samples))
        torch._dynamo.reset()

    def test_export(self) -> None:
        module = torchlosses.CrossEntropyLoss(z_loss=0.1, logit_softcap=2.0, return_stats=True)
        arguments = (random(ROWS, CLASSES), indices(ROWS))
        loss, statistics = torch.export.export(module, arguments).module()(*arguments)
        expected, expected_statistics = module(*arguments)
        assert_close(loss, expected)
        assert_close(tuple(statistics), tuple(expected_statistics))

    def test_autocast(self) -> None:
        logits, target = random(ROWS, CLASSES).bfloat16(), indices(ROWS)
        with torch.autocast("cpu"):
            loss, statistics = cross_entropy(
                logits, target, z_loss=0.1, sample_weight=sample_weights(), return_stats=True
            )
        assert loss.dtype == torch.float32
        assert_close(
            loss,
            cross_entropy(logits.float(), target, z_loss=0.1, sample_weight=sample_weights()),
        )
        assert statistics.entropy.dtype == torch.float32


def test_a_soft_cap_leaves_rows_without_part_alone(each_backend: str) -> None:
    """nan in them reaches neither the loss nor the gradient, by way of the cap's slope for one."""
    logits, target = torch.randn(3, 5, generator=torch.Generator().manual_seed(0)), torch.tensor([-100, 1, 2])
    logits[0], logits[2] = torch.nan, torch.inf
    logits.requires_grad_()
    samples = torch.tensor([1.0, 1.0, 0.0])
    loss = torchlosses.cross_entropy(logits, target, sample_weight=samples, logit_softcap=3.0, reduction="sum")
    only = torchlosses.cross_entropy(logits[1:2], target[1:2], logit_softcap=3.0, reduction="sum")
    assert_close(loss, only)
    (gradient,) = torch.autograd.grad(loss, logits)
    assert_close(gradient[1:2], torch.autograd.grad(only, logits)[0][1:2])
    assert not gradient[::2].any()


def test_where_all_of_the_target_is_smoothed_its_logit_is_as_the_others(each_backend: str) -> None:
    logits = torch.tensor([[0.0, 1.0, -torch.inf]])
    for index in range(3):
        loss = torchlosses.cross_entropy(logits, torch.tensor([index]), label_smoothing=1.0)
        assert loss == torch.inf
