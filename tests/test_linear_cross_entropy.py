"""The linear cross-entropy: equal to the composition in every option, order and mode; and small."""

from __future__ import annotations

import copy
import io
import itertools
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch._dynamo.exc import Unsupported
from torch.autograd import forward_ad, gradcheck, gradgradcheck
from torch.func import grad, hessian, jacfwd, jacrev, vmap
from torch.profiler import ProfilerActivity, profile
from torch.testing import assert_close
from torch.utils.checkpoint import checkpoint

import torchlosses
from tests.oracles import cross_entropy_denominator, cross_entropy_rows
from tests.torchs_losses import torchs_linear_cross_entropy
from tests.turns import in_turn
from torchlosses import LinearCrossEntropyLoss, linear_cross_entropy
from torchlosses.kernels import linear
from torchlosses.testing.checks.cost import peak_bytes

ROWS, FEATURES, CLASSES = 7, 4, 5
BLOCK = 3
INF = float("inf")
against_torch = pytest.mark.skipif(
    not hasattr(F, "linear_cross_entropy"), reason=f"torch {torch.__version__} has no linear_cross_entropy"
)


def textbook(
    input: Tensor,
    linear_weight: Tensor,
    target: Tensor,
    linear_bias: Tensor | None = None,
    weight: Tensor | None = None,
    reduction: str = "mean",
    ignore_index: int = -100,
    label_smoothing: float = 0.0,
    normalizer: Tensor | float | None = None,
    sample_weight: Tensor | None = None,
    z_loss: float = 0.0,
    logit_softcap: float | None = None,
) -> Tensor:
    """The definition, in elementary operations on all logits at once."""
    y = F.linear(input, linear_weight, linear_bias)
    if logit_softcap is not None:
        y = logit_softcap * torch.tanh(y / logit_softcap)
    classes = y.shape[-1]
    indices = target.dim() < y.dim()
    counted = target != ignore_index if indices else torch.ones(y.shape[:-1], dtype=torch.bool)
    shares = F.one_hot(target.clamp(min=0), classes).to(y.dtype) if indices else target
    weights = torch.ones(classes, dtype=y.dtype) if weight is None else weight
    samples = torch.ones_like(counted, dtype=y.dtype) if sample_weight is None else sample_weight.expand(counted.shape)
    smoothed = weights * ((1 - label_smoothing) * shares + label_smoothing / classes)
    log_sum_exp = y.logsumexp(-1)
    losses = (smoothed * (log_sum_exp.unsqueeze(-1) - y)).sum(-1) + z_loss * log_sum_exp**2
    losses = losses * samples * counted
    if reduction == "none":
        return losses
    if reduction == "sum":
        return losses.sum()
    if normalizer is None:
        normalizer = ((shares * weights).sum(-1) * samples * counted).sum() if indices else samples.sum()
    return losses.sum() / normalizer


def tensors(kind: str = "index", batch: tuple[int, ...] = (ROWS,), seed: int = 0) -> dict[str, Any]:
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    drawn: dict[str, Any] = {"input": normal(*batch, FEATURES), "linear_weight": normal(CLASSES, FEATURES)}
    drawn["linear_bias"] = normal(CLASSES)
    if kind == "probability":
        drawn["target"] = normal(*batch, CLASSES).softmax(-1)
    else:
        drawn["target"] = torch.randint(CLASSES, batch, generator=generator)
        if kind == "ignored":
            drawn["target"].view(-1)[::3] = -100
    drawn["weight"] = torch.rand(CLASSES, generator=generator, dtype=torch.float64) + 0.5
    drawn["sample_weight"] = torch.rand(batch, generator=generator, dtype=torch.float64) + 0.5
    return drawn


def choose(drawn: dict[str, Any], *names: str) -> dict[str, Any]:
    """Leaves of the arguments that are always there and those that are named."""
    chosen = {}
    for name in ("input", "linear_weight", "target", *names):
        leaf = drawn[name].detach().clone()
        chosen[name] = leaf.requires_grad_() if leaf.is_floating_point() else leaf
    return chosen


def differentiable(leaves: dict[str, Any]) -> list[Tensor]:
    return [leaf for leaf in leaves.values() if leaf.requires_grad]


def check_against_textbook(leaves: dict[str, Any], **options: Any) -> None:
    actual = linear_cross_entropy(**leaves, **options, block_rows=BLOCK)
    expected = textbook(**leaves, **options)
    assert_close(actual, expected)
    incoming = torch.linspace(0.5, 2, expected.numel(), dtype=torch.float64).reshape(expected.shape)
    found = torch.autograd.grad(actual, differentiable(leaves), incoming)
    assert_close(found, torch.autograd.grad(expected, differentiable(leaves), incoming))
    assert any(gradient.any() for gradient in found)


kinds = pytest.mark.parametrize("kind", ["index", "ignored", "probability"])
reductions = pytest.mark.parametrize("reduction", ["none", "mean", "sum"])


class TestValuesAndGradients:
    @pytest.mark.usefixtures("each_backend")
    @kinds
    @reductions
    @pytest.mark.parametrize(
        "names", [(), ("linear_bias",), ("weight",), ("sample_weight",), ("linear_bias", "weight", "sample_weight")]
    )
    @pytest.mark.parametrize("smoothing", [0.0, 0.2])
    def test_every_argument(self, kind: str, reduction: str, names: tuple[str, ...], smoothing: float) -> None:
        leaves = choose(tensors(kind), *names)
        check_against_textbook(leaves, reduction=reduction, label_smoothing=smoothing)

    @pytest.mark.usefixtures("each_backend")
    @kinds
    @reductions
    @pytest.mark.parametrize(
        "options", [{"z_loss": 0.1}, {"logit_softcap": 1.5}, {"z_loss": 0.1, "logit_softcap": 1.5}]
    )
    def test_every_option(self, kind: str, reduction: str, options: dict[str, Any]) -> None:
        for names, smoothing in ((("linear_bias",), 0.0), (("weight", "sample_weight"), 0.2)):
            leaves = choose(tensors(kind), *names)
            check_against_textbook(leaves, reduction=reduction, label_smoothing=smoothing, **options)

    @kinds
    @reductions
    @pytest.mark.parametrize("batch", [(), (1,), (2, 3), (2, 1, 3), (BLOCK,), (2 * BLOCK + 1,)])
    def test_any_number_of_dimensions(self, kind: str, reduction: str, batch: tuple[int, ...]) -> None:
        if kind == "ignored" and batch in ((), (1,)):
            pytest.skip("the only row would be ignored")
        check_against_textbook(choose(tensors(kind, batch), "linear_bias", "sample_weight"), reduction=reduction)

    @pytest.mark.parametrize("kind", ["index", "ignored", "probability"])
    @pytest.mark.parametrize("weighted", [False, True])
    def test_the_textbook_in_numpy(self, kind: str, weighted: bool) -> None:
        drawn = tensors(kind)
        leaves = choose(drawn, *(["weight"] if weighted else []))
        loss = linear_cross_entropy(**leaves, label_smoothing=0.1, block_rows=BLOCK)
        logits = drawn["input"].numpy() @ drawn["linear_weight"].numpy().T
        weight = drawn["weight"].numpy() if weighted else None
        losses, gradients = cross_entropy_rows(logits, drawn["target"].numpy(), weight, label_smoothing=0.1)
        denominator = cross_entropy_denominator(drawn["target"].numpy(), weight)
        assert loss.item() == pytest.approx(losses.sum() / denominator, rel=1e-12)
        loss.backward()
        gradients /= denominator
        assert_close(leaves["linear_weight"].grad, torch.from_numpy(gradients.T @ drawn["input"].numpy()))
        assert_close(leaves["input"].grad, torch.from_numpy(gradients @ drawn["linear_weight"].numpy()))

    @against_torch
    @reductions
    @pytest.mark.parametrize("places", [(2,), (2, 3)])
    @pytest.mark.parametrize("probabilities", [False, True])
    def test_a_loss_at_several_places_equals_torch(
        self, reduction: str, places: tuple[int, ...], probabilities: bool
    ) -> None:
        generator = torch.Generator().manual_seed(0)

        def normal(*shape: int) -> Tensor:
            return torch.randn(shape, generator=generator, dtype=torch.float64, requires_grad=True)

        leaves = [normal(ROWS, FEATURES), normal(CLASSES, *places, FEATURES), normal(CLASSES, *places)]
        target = torch.randint(CLASSES, (ROWS, *places), generator=generator)
        if probabilities:
            target = normal(ROWS, CLASSES, *places).detach().softmax(1)
        else:
            target.view(-1)[::4] = -100
        weight = torch.rand(CLASSES, generator=generator, dtype=torch.float64)
        options: dict[str, Any] = {"weight": weight, "reduction": reduction, "label_smoothing": 0.1}
        actual = linear_cross_entropy(leaves[0], leaves[1], target, linear_bias=leaves[2], **options)
        expected = F.linear_cross_entropy(leaves[0], leaves[1], target, linear_bias=leaves[2], **options)
        assert_close(actual, expected)
        incoming = torch.linspace(0.5, 2, expected.numel(), dtype=torch.float64).reshape(expected.shape)
        assert_close(torch.autograd.grad(actual, leaves, incoming), torch.autograd.grad(expected, leaves, incoming))

    def test_the_block_does_not_matter(self) -> None:
        leaves = choose(tensors("ignored"), "linear_bias")
        expected = linear_cross_entropy(**leaves, block_rows=ROWS)
        gradients = torch.autograd.grad(expected, differentiable(leaves))
        for block_rows in (1, 2, 5, 100, None):
            loss = linear_cross_entropy(**leaves, block_rows=block_rows)
            assert_close(loss, expected)
            assert_close(torch.autograd.grad(loss, differentiable(leaves)), gradients)

    def test_ignore_index_none_is_minus_100(self) -> None:
        leaves = choose(tensors("ignored"))
        assert_close(linear_cross_entropy(**leaves, ignore_index=None), linear_cross_entropy(**leaves))

    @pytest.mark.parametrize("dtype", [torch.uint8, torch.int32, torch.int64])
    def test_every_integer_dtype(self, dtype: torch.dtype) -> None:
        leaves = choose(tensors())
        expected = linear_cross_entropy(**leaves)
        assert_close(linear_cross_entropy(**{**leaves, "target": leaves["target"].to(dtype)}), expected)

    def test_only_the_gradients_that_are_needed(self) -> None:
        whole = choose(tensors("probability"), "linear_bias", "weight", "sample_weight")
        truth = torch.autograd.grad(linear_cross_entropy(**whole), differentiable(whole))
        for position, name in enumerate(whole):
            alone = {other: leaf.detach().requires_grad_(other == name) for other, leaf in whole.items()}
            linear_cross_entropy(**alone, block_rows=BLOCK).backward()
            assert_close(alone[name].grad, truth[position])
            assert all(leaf.grad is None for other, leaf in alone.items() if other != name)

    def test_a_frozen_operand_costs_no_product(self) -> None:
        product = ROWS * FEATURES * CLASSES
        for frozen, count in (((), 3), (("input",), 2), (("linear_weight",), 2), (("input", "linear_weight"), 1)):
            leaves = choose(tensors(), *(["linear_bias"] if frozen else []))
            for name in frozen:
                leaves[name].requires_grad_(False)
            found = multiplications(lambda leaves=leaves: linear_cross_entropy(**leaves, block_rows=BLOCK).backward())
            assert found == count * product
        ignored = choose(tensors("ignored"))
        counted = int((ignored["target"] != -100).sum())
        found = multiplications(lambda: linear_cross_entropy(**ignored, block_rows=BLOCK).backward())
        assert found == 3 * product * counted // ROWS


def multiplications(call: Callable[[], object]) -> int:
    """How many numbers the matrix products multiplied, as the profiler saw their shapes."""
    with profile(activities=[ProfilerActivity.CPU], record_shapes=True) as profiler:
        call()
    total = 0
    for event in profiler.events() or []:
        if event.name in ("aten::mm", "aten::addmm", "aten::addmm_"):
            left, right = event.input_shapes[:2] if event.name == "aten::mm" else event.input_shapes[1:3]
            total += left[0] * left[1] * right[1]
    return total


@pytest.mark.usefixtures("each_backend")
class TestRowsThatDoNotCount:
    @reductions
    @pytest.mark.parametrize("create_graph", [False, True])
    def test_an_ignored_row_equals_a_removed_one_nan_and_all(self, reduction: str, create_graph: bool) -> None:
        drawn = tensors("ignored")
        kept = drawn["target"] != -100
        dirty, clean = choose(drawn, "linear_bias"), choose(drawn, "linear_bias")
        clean["input"], clean["target"] = clean["input"].detach()[kept].requires_grad_(), clean["target"][kept]
        with torch.no_grad():
            dirty["input"][~kept] = float("nan")
        self.check(dirty, clean, kept, create_graph, reduction=reduction, label_smoothing=0.1, z_loss=0.1)

    @pytest.mark.parametrize("kind", ["index", "probability"])
    @pytest.mark.parametrize("differentiated", [False, True])
    @pytest.mark.parametrize("create_graph", [False, True])
    @reductions
    def test_a_row_of_sample_weight_0_equals_a_removed_one(
        self, reduction: str, kind: str, differentiated: bool, create_graph: bool
    ) -> None:
        drawn = tensors(kind)
        kept = torch.arange(ROWS) % 3 != 1
        drawn["sample_weight"][~kept] = 0
        dirty, clean = choose(drawn, "linear_bias", "sample_weight"), choose(drawn, "linear_bias", "sample_weight")
        for name in ("input", "target", "sample_weight"):
            needs = clean[name].requires_grad
            clean[name] = clean[name].detach()[kept].requires_grad_(needs)
        for leaves in (dirty, clean):
            leaves["sample_weight"].requires_grad_(differentiated)
            leaves["target"].requires_grad_(False)
        with torch.no_grad():
            dirty["input"][~kept] = float("nan")
        self.check(dirty, clean, kept, create_graph, reduction=reduction, z_loss=0.1)

    @pytest.mark.parametrize("create_graph", [False, True])
    def test_a_row_whose_class_weighs_0_equals_a_removed_one(self, create_graph: bool) -> None:
        drawn = tensors()
        drawn["weight"][drawn["target"][0]] = 0
        kept = drawn["weight"][drawn["target"]] != 0
        dirty, clean = choose(drawn, "weight"), choose(drawn, "weight")
        clean["input"], clean["target"] = clean["input"].detach()[kept].requires_grad_(), clean["target"][kept]
        for leaves in (dirty, clean):
            leaves["weight"].requires_grad_(False)
        with torch.no_grad():
            dirty["input"][~kept] = float("inf")
        self.check(dirty, clean, kept, create_graph, z_loss=0.1)

    def check(
        self, dirty: dict[str, Any], clean: dict[str, Any], kept: Tensor, create_graph: bool, **options: Any
    ) -> None:
        ours, theirs = (linear_cross_entropy(**leaves, **options, block_rows=2) for leaves in (dirty, clean))
        if options.get("reduction") == "none":
            assert (ours[~kept] == 0).all()
            ours, theirs = ours.sum(), theirs.sum()
        assert_close(ours, theirs)
        found = torch.autograd.grad(ours, differentiable(dirty), create_graph=create_graph)
        truth = torch.autograd.grad(theirs, differentiable(clean), create_graph=create_graph)
        self.compare(found, truth, kept, mean=options.get("reduction", "mean") == "mean")
        if create_graph:
            found, truth = (
                torch.autograd.grad(
                    gradients[0].square().sum() + gradients[1].square().sum(),
                    differentiable(leaves)[:2],
                )
                for gradients, leaves in ((found, dirty), (truth, clean))
            )
            self.compare(found, truth, kept, mean=False)

    def compare(self, found: tuple[Tensor, ...], truth: tuple[Tensor, ...], kept: Tensor, mean: bool) -> None:
        for gradient, expected in zip(found, truth, strict=True):
            if len(gradient) == ROWS:
                # A mean's denominator knows a sample weight of 0; nothing else does.
                if not mean or gradient.dim() > 1:
                    assert (gradient[~kept] == 0).all()
                assert gradient.isfinite().all()
                gradient = gradient[kept]
            assert_close(gradient, expected)

    def test_the_derivative_by_a_sample_weight_of_0_is_the_loss(self) -> None:
        drawn = tensors()
        leaves = choose(drawn, "sample_weight")
        with torch.no_grad():
            leaves["sample_weight"][2] = 0
        check_against_textbook(leaves, reduction="sum")
        check_against_textbook(leaves, reduction="none")

    @pytest.mark.parametrize("differentiated", [False, True])
    @pytest.mark.parametrize("create_graph", [False, True])
    @pytest.mark.parametrize("kind", ["index", "probability"])
    @reductions
    def test_a_row_of_sample_weight_0_whose_logits_overflow_leaves_no_trace(
        self, reduction: Any, kind: str, differentiated: bool, create_graph: bool
    ) -> None:
        """Its features are finite, so that it cannot be told before the product."""
        drawn = tensors(kind)
        drawn["input"][2], drawn["linear_weight"] = 1e300, drawn["linear_weight"].abs() + 0.5
        drawn["linear_weight"][0] *= 1e10
        drawn["input"][[0, 1, 3, 4, 5, 6]] *= 1e-10
        drawn["sample_weight"][2] = 0
        leaves = choose(drawn, "sample_weight", *(["weight"] if kind == "index" else []))
        leaves["sample_weight"].requires_grad_(differentiated)
        loss, statistics = linear_cross_entropy(**leaves, reduction=reduction, block_rows=BLOCK, return_stats=True)
        kept = torch.arange(ROWS) != 2
        rest = {name: leaf[kept] if len(leaf) == ROWS else leaf for name, leaf in leaves.items()}
        expected = linear_cross_entropy(**rest, reduction=reduction, block_rows=BLOCK)
        assert_close(loss.sum(), expected.sum())
        assert not any(field[2] for field in statistics)
        found = torch.autograd.grad(loss.sum(), differentiable(leaves), create_graph=create_graph)
        truth = torch.autograd.grad(expected.sum(), differentiable(leaves))
        for leaf, gradient, correct in zip(differentiable(leaves), found, truth, strict=True):
            assert gradient.isfinite().all()
            # A mean's denominator knows a weight of 0.
            compared = kept if leaf is leaves["sample_weight"] else slice(None)
            assert_close(gradient.detach()[compared], correct[compared])

    @pytest.mark.parametrize("empty", ["nan", "zero"])
    @pytest.mark.parametrize("how", ["ignored", "sample_weight", "weight", "no rows", "no rows of probabilities"])
    @pytest.mark.parametrize("create_graph", [False, True])
    def test_a_mean_over_nothing(self, empty: Any, how: str, create_graph: bool) -> None:
        drawn = tensors("probability" if "probabilities" in how else "index", (0,) if "no rows" in how else (ROWS,))
        names = [how] if "weight" in how else []
        if names:
            drawn[how].zero_()
        elif how == "ignored":
            drawn["target"].fill_(-100)
        leaves = choose(drawn, *names)
        loss = linear_cross_entropy(**leaves, empty=empty)
        assert loss.isnan() if empty == "nan" else loss == 0
        for gradient in torch.autograd.grad(loss, differentiable(leaves), create_graph=create_graph):
            assert (gradient == 0).all()
        reductions: Any = (("sum", torch.zeros(())), ("none", torch.zeros(drawn["input"].shape[0])))
        for reduction, expected in reductions:
            assert_close(linear_cross_entropy(**leaves, reduction=reduction).float(), expected)

    @reductions
    @pytest.mark.parametrize("weighted", [False, True])
    def test_no_classes_and_no_features(self, reduction: Any, weighted: bool) -> None:
        sample_weight = torch.rand(3, dtype=torch.float64) if weighted else None
        cases = (
            (torch.zeros(3, FEATURES), torch.zeros(0, FEATURES), torch.zeros(3, 0)),
            (torch.zeros(3, FEATURES), torch.zeros(0, FEATURES), torch.full((3,), -100)),
            (torch.zeros(3, 0), torch.zeros(CLASSES, 0), torch.tensor([0, -100, 2])),
        )
        for given in cases:
            input, linear_weight, target = (x.double() if x.is_floating_point() else x for x in given)
            leaves = [input.requires_grad_(), linear_weight.requires_grad_()]
            options: dict[str, Any] = {"reduction": reduction, "sample_weight": sample_weight}
            loss = linear_cross_entropy(input, linear_weight, target, **options)
            losses = torch.full((3,), CLASSES, dtype=torch.float64).log() * (len(linear_weight) > 0)
            samples = torch.ones_like(losses) if sample_weight is None else sample_weight
            if target.dim() == 1:
                samples = samples.masked_fill(target == -100, 0)
            total, rows = (losses.nan_to_num() * samples).nan_to_num(), samples.sum() * (len(linear_weight) > 0)
            expected = {"none": total, "sum": total.sum(), "mean": total.sum() / rows}[reduction]
            assert_close(loss, expected, equal_nan=True)
            for leaf, gradient in zip(leaves, torch.autograd.grad(loss.sum(), leaves), strict=True):
                assert_close(gradient, torch.zeros_like(leaf))

    def test_an_empty_mean_over_something_stays_infinite(self) -> None:
        """The class weight of every target is 0, but smoothing gives the other classes a share."""
        drawn = tensors()
        drawn["target"].fill_(1)
        drawn["weight"][1] = 0
        leaves = choose(drawn, "weight")
        for empty in ("nan", "zero"):
            assert linear_cross_entropy(**leaves, label_smoothing=0.1, empty=empty).isinf()


@pytest.mark.usefixtures("each_backend")
class TestNormalizer:
    @kinds
    @pytest.mark.parametrize("weighted", [False, True])
    def test_parts_of_a_batch_add_up_to_the_batch(self, kind: str, weighted: bool) -> None:
        names = ("weight", "sample_weight", "linear_bias") if weighted else ("linear_bias",)
        leaves = choose(tensors(kind), *names)
        whole = linear_cross_entropy(**leaves, label_smoothing=0.1, z_loss=0.1)
        truth = torch.autograd.grad(whole, differentiable(leaves))
        target, samples = leaves["target"], leaves.get("sample_weight", torch.ones(ROWS, dtype=torch.float64))
        if kind == "probability":
            normalizer = samples.sum()
        else:
            of_classes = leaves["weight"][target.clamp(min=0)] if weighted else torch.ones(ROWS, dtype=torch.float64)
            normalizer = (of_classes * samples * (target != -100)).sum()
        total: Any = torch.zeros((), dtype=torch.float64)
        for part in (slice(0, 1), slice(1, 5), slice(5, None)):
            some = {name: leaf[part] if len(leaf) == ROWS else leaf for name, leaf in leaves.items()}
            total = total + linear_cross_entropy(**some, label_smoothing=0.1, z_loss=0.1, normalizer=normalizer)
        assert_close(total, whole)
        assert_close(torch.autograd.grad(total, differentiable(leaves)), truth)

    def test_a_number_a_tensor_and_its_gradient(self) -> None:
        leaves = choose(tensors())
        expected = linear_cross_entropy(**leaves, reduction="sum") / 3
        assert_close(linear_cross_entropy(**leaves, normalizer=3), expected)
        assert_close(linear_cross_entropy(**leaves, normalizer=torch.tensor(3)), expected)
        normalizer = torch.tensor(3.0, requires_grad=True)
        loss = linear_cross_entropy(**leaves, normalizer=normalizer)
        assert_close(torch.autograd.grad(loss, normalizer)[0], -(expected / 3).float())

    def test_of_0_is_an_empty_mean(self) -> None:
        leaves = choose(tensors())
        leaves["target"].fill_(-100)
        assert linear_cross_entropy(**leaves, normalizer=0).isnan()
        loss: Any = linear_cross_entropy(**leaves, normalizer=0.0, empty="zero")
        assert loss.item() == 0
        assert not torch.autograd.grad(loss, leaves["input"])[0].any()
        assert linear_cross_entropy(**leaves, normalizer=4.0) == 0

    @pytest.mark.parametrize("shape", [(), (3,), (2, 1), (1, 3), (2, 3)])
    def test_sample_weight_broadcasts(self, shape: tuple[int, ...]) -> None:
        leaves = choose(tensors(batch=(2, 3)))
        sample_weight = torch.rand(shape, dtype=torch.float64, requires_grad=True)
        check_against_textbook({**leaves, "sample_weight": sample_weight})

    def test_a_mask_as_sample_weight(self) -> None:
        leaves = choose(tensors())
        mask = torch.arange(ROWS) % 2 == 0
        kept = {name: leaf[mask] if len(leaf) == ROWS else leaf for name, leaf in leaves.items()}
        assert_close(linear_cross_entropy(**leaves, sample_weight=mask), linear_cross_entropy(**kept))


class TestStatistics:
    @pytest.mark.usefixtures("each_backend")
    @kinds
    @pytest.mark.parametrize("transformed", [False, True])
    def test_equal_the_definition(self, kind: str, transformed: bool) -> None:
        drawn = tensors(kind)
        leaves = choose(drawn, "linear_bias", "weight")

        def call(input: Tensor) -> Any:
            return linear_cross_entropy(
                **{**leaves, "input": input}, logit_softcap=2.0, return_stats=True, block_rows=BLOCK
            )

        if transformed:
            statistics = torch.func.grad(call, has_aux=True)(leaves["input"])[1]
        else:
            loss, statistics = call(leaves["input"])
            assert_close(loss, linear_cross_entropy(**leaves, logit_softcap=2.0))
        y = F.linear(drawn["input"], drawn["linear_weight"], drawn["linear_bias"])
        y = 2 * torch.tanh(y / 2)
        log_p = y.log_softmax(1)
        counted = torch.ones(ROWS, dtype=torch.bool)
        if kind == "probability":
            target_log_probability = (drawn["target"] * log_p).sum(1)
            correct = y.argmax(1) == drawn["target"].argmax(1)
        else:
            counted = drawn["target"] != -100
            index = drawn["target"].clamp(min=0)
            target_log_probability = log_p.gather(1, index.unsqueeze(1)).squeeze(1)
            correct = y.argmax(1) == index
        assert_close(statistics.log_sum_exp, y.logsumexp(1) * counted)
        assert_close(statistics.target_log_probability, target_log_probability * counted)
        assert_close(statistics.correct, correct & counted)
        assert_close(statistics.entropy, -(log_p.exp() * log_p).sum(1) * counted)
        assert statistics.correct.any()
        assert not any(field.requires_grad for field in statistics)

    @kinds
    def test_the_z_loss_is_what_it_adds_to_the_loss(self, kind: str) -> None:
        leaves = choose(tensors(kind), "linear_bias", "sample_weight")
        options: dict[str, Any] = {"reduction": "none", "block_rows": BLOCK, "return_stats": True}
        without, zeros = linear_cross_entropy(**leaves, **options)
        found, statistics = linear_cross_entropy(**leaves, **options, z_loss=0.1)
        assert_close(statistics.z_loss, (found - without).detach())
        assert statistics.z_loss.any()
        assert not zeros.z_loss.any()

    def test_shape_of_the_rows_and_rows_of_weight_0(self) -> None:
        leaves = choose(tensors(batch=(2, 3)))
        weight = torch.tensor([[1.0], [0.0]], dtype=torch.float64)
        for sample_weight in (weight, weight.clone().requires_grad_()):
            _, statistics = linear_cross_entropy(**leaves, sample_weight=sample_weight, return_stats=True)
            for field in statistics:
                assert field.shape == (2, 3)
                assert not field[1].any()
            assert statistics.entropy[0].all()

    @pytest.mark.parametrize("transformed", [False, True])
    def test_rows_that_leave_no_trace_have_none(self, transformed: bool) -> None:
        """As in `cross_entropy`: ignored rows, and rows whose class weighs 0."""
        drawn = tensors("ignored")
        drawn["weight"][drawn["target"][1]] = 0
        leaves = {name: leaf.detach() for name, leaf in choose(drawn, "weight").items()}

        def call(input: Tensor) -> Any:
            return linear_cross_entropy(**{**leaves, "input": input}, return_stats=True, block_rows=BLOCK)

        _, statistics = grad(call, has_aux=True)(leaves["input"]) if transformed else call(leaves["input"])
        y = F.linear(leaves["input"], leaves["linear_weight"])
        _, expected = torchlosses.cross_entropy(y, leaves["target"], leaves["weight"], return_stats=True)
        assert not expected.entropy.all()
        assert_close(tuple(statistics), tuple(expected))


class TestFeatureDimension:
    def drawn(self, kind: str, rows: tuple[int, ...], dim: int) -> tuple[dict[str, Any], dict[str, Any]]:
        """Arguments with the features last, and the same with them at `dim`."""
        last = tensors(kind, rows)
        moved = dict(last)
        for name in ("input", "target") if kind == "probability" else ("input",):
            moved[name] = last[name].movedim(-1, dim)
        return last, moved

    @pytest.mark.usefixtures("each_backend")
    @kinds
    @reductions
    @pytest.mark.parametrize(("rows", "dim"), [((2, 3, 4), 1), ((2, 3, 4), -2), ((6,), 0), ((2, 4), 0), ((), 0)])
    def test_equals_moving_it_to_the_end(self, kind: str, reduction: Any, rows: tuple[int, ...], dim: int) -> None:
        if kind == "ignored" and not rows:
            pytest.skip("the only row would be ignored")
        last, moved = self.drawn(kind, rows, dim)
        leaves = choose(moved, "linear_bias", "weight", "sample_weight")
        actual = linear_cross_entropy(**leaves, dim=dim, reduction=reduction, block_rows=BLOCK)
        copies = choose(last, "linear_bias", "weight", "sample_weight")
        expected = textbook(**copies, reduction=reduction)
        assert_close(actual, expected)
        incoming = torch.linspace(0.5, 2, expected.numel(), dtype=torch.float64).reshape(expected.shape)
        found = torch.autograd.grad(actual, differentiable(leaves), incoming)
        truth = torch.autograd.grad(expected, differentiable(copies), incoming)
        for (name, leaf), gradient, correct in zip(
            ((name, leaf) for name, leaf in leaves.items() if leaf.requires_grad), found, truth, strict=True
        ):
            assert gradient.shape == leaf.shape
            assert_close(gradient.movedim(dim, -1) if name in ("input", "target") else gradient, correct)

    @pytest.mark.parametrize("kind", ["ignored", "probability"])
    def test_of_pictures_equals_a_convolution(self, kind: str) -> None:
        last, moved = self.drawn(kind, (2, 3, 4), 1)
        kernel = last["linear_weight"][:, :, None, None]
        logits = F.conv2d(moved["input"], kernel, last["linear_bias"])
        arguments = (moved["input"], last["linear_weight"], moved["target"])
        loss = linear_cross_entropy(*arguments, linear_bias=last["linear_bias"], dim=1, return_stats=True)
        expected = torchlosses.cross_entropy(logits, moved["target"], return_stats=True)
        assert_close(loss[0], expected[0])
        assert_close(tuple(loss[1]), tuple(expected[1]))
        assert loss[1].entropy.shape == (2, 3, 4)

    @pytest.mark.parametrize("probabilities", [False, True])
    def test_places_stay_behind_the_rows(self, probabilities: bool) -> None:
        generator = torch.Generator().manual_seed(0)
        x = torch.randn(2, FEATURES, 3, generator=generator, dtype=torch.float64)
        weight = torch.randn(CLASSES, 6, FEATURES, generator=generator, dtype=torch.float64)
        y = torch.einsum("nfh,cdf->nchd", x, weight)
        if probabilities:
            target = torch.rand(2, CLASSES, 3, 6, generator=generator, dtype=torch.float64)
        else:
            target = torch.randint(CLASSES, (2, 3, 6), generator=generator)
        assert_close(
            linear_cross_entropy(x, weight, target, dim=1, reduction="none"),
            torchlosses.cross_entropy(y, target, reduction="none"),
        )

    @pytest.mark.parametrize("kind", ["index", "probability"])
    def test_derivatives_in_every_mode(self, kind: str) -> None:
        last, moved = self.drawn(kind, (2, 3), 1)

        def ours(input: Tensor, weight: Tensor) -> Tensor:
            return linear_cross_entropy(input, weight, moved["target"], dim=1, block_rows=2)

        def theirs(input: Tensor, weight: Tensor) -> Tensor:
            return textbook(input.movedim(1, -1), weight, last["target"])

        values = (moved["input"], moved["linear_weight"])
        for transform in (jacrev, jacfwd, hessian):
            assert_close(transform(ours, (0, 1))(*values), transform(theirs, (0, 1))(*values))
        leaves = tuple(value.clone().requires_grad_() for value in values)
        assert gradgradcheck(ours, leaves)

    @pytest.mark.parametrize("in_dim", [0, 1, -1])
    def test_counts_without_the_dimension_that_vmap_maps(self, in_dim: int) -> None:
        x = torch.randn(3, 2, FEATURES, 4, dtype=torch.float64)
        weight = torch.randn(CLASSES, FEATURES, dtype=torch.float64)
        target = torch.randint(CLASSES, (3, 2, 4))

        def each(x: Tensor, target: Tensor) -> Tensor:
            return linear_cross_entropy(x, weight, target, dim=1)

        expected = torch.stack([each(*arguments) for arguments in zip(x, target, strict=True)])
        assert_close(vmap(each, (in_dim, 0))(x.movedim(0, in_dim), target), expected)

    @pytest.mark.parametrize("kind", ["ignored", "probability"])
    def test_one_graph(self, kind: str) -> None:
        torch._dynamo.reset()
        _, moved = self.drawn(kind, (2, 3, 4), 1)
        leaves = choose(moved)

        def call(arguments: dict[str, Any]) -> Any:
            return linear_cross_entropy(**arguments, dim=1, block_rows=BLOCK)

        actual, expected = torch.compile(call, fullgraph=True, backend="aot_eager")(leaves), call(leaves)
        assert_close(actual, expected)
        found = torch.autograd.grad(actual, differentiable(leaves))
        assert_close(found, torch.autograd.grad(expected, differentiable(leaves)))

    def test_of_the_module(self) -> None:
        module = LinearCrossEntropyLoss(FEATURES, CLASSES, dim=1)
        x, target = torch.randn(2, FEATURES, 3), torch.randint(CLASSES, (2, 3))
        expected = linear_cross_entropy(x.movedim(1, -1), module.linear.weight, target)
        assert_close(module(x, target), expected)
        assert "label_smoothing=0.0, dim=1" in repr(module)
        assert_close(copy.deepcopy(module)(x, target), expected)

    def test_of_a_module_that_was_pickled_before_there_was_any(self) -> None:
        module = LinearCrossEntropyLoss(FEATURES, CLASSES)
        x, target = torch.randn(2, 3, FEATURES), torch.randint(CLASSES, (2, 3))
        expected = module(x, target)
        del module.__dict__["dim"]
        again = pickle.loads(pickle.dumps(module))
        assert again.dim == -1
        assert_close(again(x, target), expected)

    def test_that_is_none(self) -> None:
        x, weight, target = torch.randn(2, FEATURES, 3), torch.randn(CLASSES, FEATURES), torch.zeros(2, 3).long()
        for dim in (3, -4):
            with pytest.raises(
                IndexError, match=rf"linear_cross_entropy: dim={dim} is no dimension .* expected -3 to 2"
            ):
                linear_cross_entropy(x, weight, target, dim=dim)
        with pytest.raises(TypeError, match=r"dim must be an int, the dimension of the features, but got 1.5"):
            linear_cross_entropy(x, weight, target, dim=1.5)  # type: ignore[arg-type]
        with pytest.raises(TypeError, match="dim must be an int"):
            LinearCrossEntropyLoss(FEATURES, CLASSES, dim="1")  # type: ignore[arg-type]

    def test_that_does_not_fit(self) -> None:
        weight = torch.randn(CLASSES, FEATURES)
        with pytest.raises(
            RuntimeError, match=r"input has 3 features \(its last dimension\), .* expects 4.*`dim` says"
        ):
            linear_cross_entropy(torch.randn(2, FEATURES, 3), weight, torch.zeros(2, 3).long())
        with pytest.raises(RuntimeError, match=r"input has 2 features \(dimension 0\), but linear_weight expects 4"):
            linear_cross_entropy(torch.randn(2, FEATURES, 3), weight, torch.zeros(2, 3).long(), dim=0)
        with pytest.raises(RuntimeError, match=r"shape \[2, 3\] \(class indices\) or \[2, 5, 3\] \(class prob"):
            linear_cross_entropy(torch.randn(2, FEATURES, 3), weight, torch.rand(2, 3, CLASSES), dim=1)


def small(kind: str, *names: str) -> dict[str, Any]:
    generator = torch.Generator().manual_seed(1)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    drawn: dict[str, Any] = {"input": normal(3, 2), "linear_weight": normal(3, 2), "linear_bias": normal(3)}
    drawn["target"] = normal(3, 3).softmax(1) if kind == "probability" else torch.tensor([2, 0, 1])
    if kind == "ignored":
        drawn["target"][1] = -100
    drawn["weight"] = torch.rand(3, generator=generator, dtype=torch.float64) + 0.5
    drawn["sample_weight"] = torch.rand(3, generator=generator, dtype=torch.float64) + 0.5
    return choose(drawn, *names)


class TestDerivatives:
    @pytest.mark.parametrize(
        ("kind", "reduction", "names", "options"),
        in_turn(
            ("index", "probability", "ignored"),
            {
                "bias": ("mean", ("linear_bias",), {}),
                "weight": ("sum", ("weight",), {"label_smoothing": 0.2, "z_loss": 0.1}),
                "sample_weight": ("none", ("sample_weight",), {"logit_softcap": 1.5}),
                "all": (
                    "mean",
                    ("weight", "sample_weight"),
                    {"label_smoothing": 0.2, "z_loss": 0.1, "logit_softcap": 1.5},
                ),
            },
            # What each has alone, all have together.
            lambda reduction, names, options: len(names) > 1 or reduction == "none",
        ),
    )
    def test_gradcheck(self, kind: str, reduction: Any, names: tuple[str, ...], options: dict[str, Any]) -> None:
        leaves = small(kind, *names)
        inputs = [name for name, leaf in leaves.items() if leaf.requires_grad]

        def call(*values: Tensor) -> Tensor:
            arguments = {**leaves, **dict(zip(inputs, values, strict=True))}
            return linear_cross_entropy(**arguments, reduction=reduction, block_rows=2, **options)

        given = tuple(leaves[name] for name in inputs)
        assert gradcheck(
            call,
            given,
            check_forward_ad=True,
            check_batched_grad=True,
            check_batched_forward_grad=True,
            check_undefined_grad=True,
        )
        assert gradgradcheck(call, given, check_fwd_over_rev=True, check_rev_over_rev=True, check_batched_grad=True)

    @pytest.mark.parametrize(
        "transform",
        [
            hessian,
            lambda f: jacfwd(jacfwd(f)),
            lambda f: jacrev(jacrev(f)),
            lambda f: jacrev(jacfwd(f)),
            lambda f: jacfwd(jacfwd(grad(f))),
            lambda f: hessian(lambda x: grad(f)(x).square().sum()),
        ],
        ids=["hessian", "forward twice", "reverse twice", "reverse over forward", "third", "third by reverse"],
    )
    @pytest.mark.parametrize("argument", ["input", "linear_weight"])
    @pytest.mark.parametrize("options", [{}, {"z_loss": 0.1, "logit_softcap": 1.5, "label_smoothing": 0.1}])
    def test_nested_transforms(self, transform: Callable[..., Any], argument: str, options: dict[str, Any]) -> None:
        leaves = small("ignored", "linear_bias")

        def of(loss: Callable[..., Tensor], **more: Any) -> Callable[[Tensor], Tensor]:
            return lambda value: loss(**{**leaves, argument: value}, **options, **more)

        actual = transform(of(linear_cross_entropy, block_rows=2))(leaves[argument].detach())
        assert_close(actual, transform(of(textbook))(leaves[argument].detach()))

    @kinds
    def test_vmap_over_each_argument(self, kind: str) -> None:
        batch = [tensors(kind, seed=seed) for seed in range(3)]
        names = [name for name in batch[0] if name != "weight" or kind != "ignored"]
        for mapped, dimension in itertools.product((names, *([name] for name in names)), (0, -1)):
            stacked = [
                torch.stack([drawn[name] for drawn in batch], dimension) if name in mapped else batch[0][name]
                for name in names
            ]

            def loss(*values: Any) -> Tensor:
                return linear_cross_entropy(**dict(zip(names, values, strict=True)), block_rows=6)

            expected = [loss(*(drawn[n] if n in mapped else batch[0][n] for n in names)) for drawn in batch]
            in_dims = tuple(dimension if name in mapped else None for name in names)
            assert_close(vmap(loss, in_dims)(*stacked), torch.stack(expected))

    def test_per_sample_gradients(self) -> None:
        drawn = tensors()

        def loss(linear_weight: Tensor, x: Tensor, target: Tensor) -> Tensor:
            return linear_cross_entropy(x, linear_weight, target)

        each = vmap(grad(loss), (None, 0, 0))(drawn["linear_weight"], drawn["input"], drawn["target"])
        for row in range(ROWS):
            expected = grad(loss)(drawn["linear_weight"], drawn["input"][row], drawn["target"][row])
            assert_close(each[row], expected)
        assert_close(each.mean(0), grad(textbook, argnums=1)(drawn["input"], drawn["linear_weight"], drawn["target"]))

    def test_second_derivatives_in_blocks_through_the_whole(self) -> None:
        """A gradient penalty on a layer below, as it is trained with."""
        drawn = tensors("ignored")
        layer = nn.Linear(FEATURES, FEATURES).double()
        results = []
        for loss in (lambda *a: linear_cross_entropy(*a, block_rows=2), textbook):
            weight = drawn["linear_weight"].clone().requires_grad_()
            value = loss(layer(drawn["input"]), weight, drawn["target"])
            (first,) = torch.autograd.grad(value, weight, create_graph=True)
            results.append(torch.autograd.grad(value + first.square().sum(), [weight, *layer.parameters()]))
        assert_close(*results)


@pytest.mark.usefixtures("each_backend")
class TestGraph:
    def test_two_backwards_with_different_incoming_gradients(self) -> None:
        leaves = choose(tensors(), "linear_bias", "sample_weight")
        loss = linear_cross_entropy(**leaves, reduction="sum")
        first = torch.autograd.grad(loss, differentiable(leaves), retain_graph=True)
        kept = [gradient.clone() for gradient in first]
        second = torch.autograd.grad(loss, differentiable(leaves), torch.tensor(-3.0).double(), retain_graph=True)
        last = torch.autograd.grad(loss, differentiable(leaves))
        assert_close(list(first), kept, rtol=0, atol=0)
        assert_close(list(second), [-3 * gradient for gradient in kept])
        assert_close(list(last), kept, rtol=0, atol=0)
        with pytest.raises(RuntimeError, match="second time"):
            loss.backward()

    def test_a_gradient_that_was_handed_out_is_not_written_to_again(self) -> None:
        leaves = choose(tensors())
        for _ in range(2):
            linear_cross_entropy(**leaves).backward()
        weight = leaves["linear_weight"]
        once = torch.autograd.grad(linear_cross_entropy(**leaves), weight)[0]
        assert_close(weight.grad, 2 * once)

    def test_saved_tensors_go_through_the_hooks_unharmed(self) -> None:
        leaves = choose(tensors(), "linear_bias")
        expected = torch.autograd.grad(linear_cross_entropy(**leaves), differentiable(leaves))
        packed: list[tuple[Tensor, Tensor]] = []

        def pack(tensor: Tensor) -> Tensor:
            packed.append((tensor, tensor.detach().clone()))
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            actual = torch.autograd.grad(3 * linear_cross_entropy(**leaves), differentiable(leaves))
        assert_close(actual, tuple(3 * gradient for gradient in expected))
        assert len(packed) > 4
        for tensor, before in packed:
            assert_close(tensor.detach(), before, rtol=0, atol=0)
        with torch.autograd.graph.save_on_cpu():
            assert_close(torch.autograd.grad(linear_cross_entropy(**leaves), differentiable(leaves)), expected)

    @pytest.mark.parametrize("use_reentrant", [False, True])
    @pytest.mark.parametrize("reduction", ["mean", "none"])
    def test_checkpoint(self, use_reentrant: bool, reduction: Any) -> None:
        leaves = choose(tensors("ignored"), "linear_bias", "sample_weight")
        names = list(leaves)

        def loss(*values: Tensor) -> Tensor:
            arguments: dict[str, Any] = dict(zip(names, values, strict=True))
            return linear_cross_entropy(**arguments, reduction=reduction).sum()

        expected = torch.autograd.grad(3 * loss(*leaves.values()), differentiable(leaves))
        checkpointed: Any = checkpoint(loss, *leaves.values(), use_reentrant=use_reentrant)
        (3 * checkpointed).backward()
        assert_close([leaf.grad for leaf in differentiable(leaves)], list(expected))

    def test_a_changed_argument_is_noticed(self) -> None:
        for name in ("input", "linear_weight", "target"):
            leaves = choose(tensors())
            loss = linear_cross_entropy(**leaves)
            with torch.no_grad():
                leaves[name].copy_(leaves[name].flip(0))
            with pytest.raises(RuntimeError, match="modified by an inplace operation"):
                loss.backward()

    def test_arguments_are_left_alone(self) -> None:
        leaves = choose(tensors("ignored"), "linear_bias", "weight", "sample_weight")
        before = {name: leaf.detach().clone() for name, leaf in leaves.items()}
        linear_cross_entropy(**leaves, z_loss=0.1, logit_softcap=2.0).backward()
        for name, leaf in leaves.items():
            assert_close(leaf.detach(), before[name], rtol=0, atol=0)

    def test_forward_mode_in_a_dual_level(self) -> None:
        drawn = tensors("ignored")
        direction = torch.randn(CLASSES, FEATURES, dtype=torch.float64)
        with forward_ad.dual_level():
            dual = forward_ad.make_dual(drawn["linear_weight"], direction)
            loss = linear_cross_entropy(drawn["input"], dual, drawn["target"])
            tangent = forward_ad.unpack_dual(loss).tangent
        assert tangent is not None
        expected = grad(textbook, argnums=1)(drawn["input"], drawn["linear_weight"], drawn["target"])
        assert_close(tangent, (expected * direction).sum())

    def test_the_operator_of_an_exported_program_takes_a_gradient(self) -> None:
        x, target = tensors("ignored")["input"].float(), tensors("ignored")["target"]
        for strict in (False, True):
            module = LinearCrossEntropyLoss(FEATURES, CLASSES, bias=True, label_smoothing=0.1)
            exported = torch.export.export(module, (x, target), strict=strict)
            file = io.BytesIO()
            torch.export.save(exported, file)
            file.seek(0)
            program = torch.export.load(file).module()
            loss, expected = program(x, target), module(x, target)
            assert_close(loss, expected)
            parameters = [program.get_parameter(name) for name, _ in module.named_parameters()]
            first = torch.autograd.grad(loss, parameters, create_graph=True)
            truth = torch.autograd.grad(expected, list(module.parameters()), create_graph=True)
            assert_close(first, truth)
            assert_close(
                torch.autograd.grad(first[0].square().sum(), parameters[0]),
                torch.autograd.grad(truth[0].square().sum(), next(iter(module.parameters()))),
            )
            assert_close(torch.autograd.grad(program(x, target), parameters), truth)

    def test_exported_for_any_number_of_rows(self) -> None:
        module = LinearCrossEntropyLoss(FEATURES, CLASSES)
        rows = torch.export.Dim("rows", min=2)
        drawn, more = tensors(), tensors(batch=(11,))
        program = torch.export.export(
            module, (drawn["input"].float(), drawn["target"]), dynamic_shapes={"input": {0: rows}, "target": {0: rows}}
        )
        arguments = (more["input"].float(), more["target"])
        assert_close(program.module()(*arguments), module(*arguments))


class TestCompile:
    @pytest.mark.parametrize(
        ("kind", "options"),
        in_turn(
            ("probability", "ignored"),
            {
                "mean": ({},),
                "none": ({"reduction": "none", "logit_softcap": 2.0},),
                "statistics": ({"reduction": "sum", "return_stats": True, "z_loss": 0.1},),
            },
            bool,
        ),
    )
    def test_one_graph(self, kind: str, options: dict[str, Any]) -> None:
        torch._dynamo.reset()
        leaves = choose(tensors(kind), "linear_bias", "sample_weight")

        def call(arguments: dict[str, Any]) -> Any:
            return linear_cross_entropy(**arguments, **options, block_rows=BLOCK)

        actual = torch.compile(call, fullgraph=True, backend="aot_eager", dynamic=True)(leaves)
        expected = call(leaves)
        if options.get("return_stats"):
            assert_close(tuple(actual[1]), tuple(expected[1]))
            actual, expected = actual[0], expected[0]
        assert_close(actual, expected)
        incoming = torch.full_like(expected, 0.75)
        found = torch.autograd.grad(actual, differentiable(leaves), incoming)
        assert_close(found, torch.autograd.grad(expected, differentiable(leaves), incoming))

    def test_inductor_and_a_bad_target(self) -> None:
        torch._dynamo.reset()
        module = LinearCrossEntropyLoss(FEATURES, CLASSES)
        compiled = torch.compile(module, fullgraph=True)
        x, target = tensors()["input"].float(), tensors()["target"]
        loss = compiled(x, target)
        assert_close(loss, module(x, target))
        found = torch.autograd.grad(loss, list(module.parameters()))
        assert_close(found, torch.autograd.grad(module(x, target), list(module.parameters())))
        with pytest.raises(IndexError, match="Target 5 is out of bounds"):
            compiled(x, target.index_fill(0, torch.tensor([3]), 5))

    def test_a_second_derivative_is_right_where_nothing_but_the_graph_is_compiled(self) -> None:
        torch._dynamo.reset()
        leaves = choose(tensors())

        def penalty(loss: Callable[..., Tensor]) -> Tensor:
            value = loss(**leaves)
            (first,) = torch.autograd.grad(value, leaves["linear_weight"], create_graph=True)
            return torch.autograd.grad(first.square().sum(), leaves["linear_weight"])[0]

        compiled = torch.compile(linear_cross_entropy, fullgraph=True, backend="eager")
        assert_close(penalty(compiled), penalty(linear_cross_entropy))

    @pytest.mark.parametrize("loss", [linear_cross_entropy, torchs_linear_cross_entropy], ids=["ours", "torch"])
    def test_a_second_derivative_raises_whosever_the_loss(self, loss: Callable[..., Tensor]) -> None:
        """PyTorch's compiled backward has no derivative."""
        torch._dynamo.reset()
        leaves = choose(tensors())
        input, linear_weight = leaves["input"], leaves["linear_weight"]
        value = torch.compile(loss, fullgraph=True, backend="aot_eager")(**leaves)
        first = torch.autograd.grad(value, (input, linear_weight), create_graph=True)
        with pytest.raises(RuntimeError, match=r"double backward"):
            torch.autograd.grad(first[0].square().sum() + first[1].square().sum(), (input, linear_weight))

    def test_a_derivative_by_torch_func(self) -> None:
        """Inside of what is compiled it is right; of what is compiled, PyTorch has none."""
        torch._dynamo.reset()
        leaves = tensors()

        def loss(linear_weight: Tensor) -> Tensor:
            return linear_cross_entropy(leaves["input"], linear_weight, leaves["target"])

        def compiled(call: Callable[..., Any]) -> Callable[..., Any]:
            return torch.compile(call, fullgraph=True, backend="aot_eager")

        weight = leaves["linear_weight"].detach()
        assert_close(compiled(grad(loss))(weight), grad(loss)(weight))
        with pytest.raises(Unsupported, match="functorch"):
            grad(compiled(loss))(weight)


@pytest.mark.usefixtures("each_backend")
class TestPrecision:
    @pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
    @pytest.mark.parametrize("reduction", ["mean", "none"])
    def test_no_further_from_the_truth_than_torch(self, dtype: torch.dtype, reduction: Any) -> None:
        generator = torch.Generator().manual_seed(0)
        x, weight = torch.randn(512, 32, generator=generator), torch.randn(200, 32, generator=generator)
        target = torch.randint(200, (512,), generator=generator)
        errors = {}
        narrow = [tensor.to(dtype).requires_grad_() for tensor in (x, weight)]
        wide = [tensor.detach().double().requires_grad_() for tensor in narrow]
        for name, loss in (("ours", linear_cross_entropy), ("torch", torchs_linear_cross_entropy)):
            truth = textbook(wide[0], wide[1], target, reduction=reduction)
            incoming = torch.ones_like(truth) / (512 if reduction == "none" else 1)
            value = loss(narrow[0], narrow[1], target, reduction=reduction)
            assert value.dtype == dtype
            found = [value, *torch.autograd.grad(value, narrow, incoming.to(dtype))]
            expected = [truth, *torch.autograd.grad(truth, wide, incoming)]
            errors[name] = [
                float((a.double() - b).detach().abs().max() / b.detach().abs().max())
                for a, b in zip(found, expected, strict=True)
            ]
            assert [tensor.dtype for tensor in found[1:]] == [dtype, dtype]
        unit = torch.finfo(dtype).eps
        for ours, theirs in zip(errors["ours"], errors["torch"], strict=True):
            assert ours <= theirs + unit

    @pytest.mark.parametrize(
        ("dtype", "rows"), [(torch.bfloat16, 1024), pytest.param(torch.float16, 4096, marks=pytest.mark.thorough)]
    )
    def test_the_weight_gradient_is_summed_in_float32(self, dtype: torch.dtype, rows: int) -> None:
        """Many blocks of one row: in bfloat16, sums stop growing when a part is below half a unit in the last place."""
        x = torch.ones(rows, 1, dtype=dtype)
        weight = torch.zeros(2, 1, dtype=dtype, requires_grad=True)
        target = torch.zeros(rows, dtype=torch.int64)
        for block_rows, create_graph in ((1, False), (64, False), (4, True)):
            loss = linear_cross_entropy(x, weight, target, reduction="sum", block_rows=block_rows)
            (gradient,) = torch.autograd.grad(loss, weight, create_graph=create_graph)
            gradient = gradient.detach()
            assert_close(gradient.flatten().float(), torch.tensor([-rows / 2, rows / 2]), rtol=0, atol=0)

    @pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
    @pytest.mark.parametrize("create_graph", [False, True])
    def test_the_soft_cap_is_computed_in_float32(self, dtype: torch.dtype, create_graph: bool) -> None:
        """From the logits as the product rounds them: nothing else is rounded before the end."""
        drawn = tensors()
        x, weight = ((10 * drawn[name]).to(dtype).requires_grad_() for name in ("input", "linear_weight"))
        options: dict[str, Any] = {"reduction": "none", "logit_softcap": 30.0, "z_loss": 0.1}
        y = F.linear(x, weight).float().detach().requires_grad_()
        expected = torchlosses.cross_entropy(y, drawn["target"], **options)
        with torch.autocast("cpu", dtype=dtype):
            losses = linear_cross_entropy(x, weight, drawn["target"], **options)
        assert_close(losses, expected, rtol=1e-6, atol=0)
        found = torch.autograd.grad(losses.sum(), x, create_graph=create_graph)[0]
        (by_logits,) = torch.autograd.grad(expected.sum(), y)
        truth = by_logits.double() @ weight.detach().double()
        unit = torch.finfo(dtype).eps
        assert_close(found.detach().double(), truth, rtol=0, atol=2 * unit * float(truth.abs().max()))

    def test_confident_rows_keep_their_loss(self) -> None:
        x = torch.tensor([[20.0]], requires_grad=True)
        loss = linear_cross_entropy(x, torch.tensor([[1.0], [0.0]]), torch.tensor([0]))
        assert loss.item() == pytest.approx(2.0611536e-9, rel=1e-6)
        assert torch.autograd.grad(loss, x)[0].item() == pytest.approx(-2.0611536e-9, rel=1e-6)

    @pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
    @pytest.mark.parametrize("create_graph", [False, True])
    def test_autocast_casts_float32_like_a_linear_layer(self, dtype: torch.dtype, create_graph: bool) -> None:
        drawn = tensors("ignored")
        leaves = [drawn[name].float().requires_grad_() for name in ("input", "linear_weight", "linear_bias")]
        with torch.autocast("cpu", dtype=dtype):
            loss = linear_cross_entropy(leaves[0], leaves[1], drawn["target"], linear_bias=leaves[2])
            y = F.linear(*leaves)
            assert y.dtype == dtype
            expected = torchlosses.cross_entropy(y, drawn["target"])
        assert loss.dtype == torch.float32
        assert_close(loss, expected)
        found = torch.autograd.grad(loss, leaves, create_graph=create_graph)
        assert all(gradient.dtype == torch.float32 for gradient in found)
        unit = torch.finfo(dtype).eps
        assert_close(found, torch.autograd.grad(expected, leaves), rtol=4 * unit, atol=unit)

    @pytest.mark.parametrize("scale", [1.0, 65536.0])
    @pytest.mark.parametrize("function", [linear_cross_entropy, torchlosses.linear_kl_div])
    def test_gradients_of_one_of_many_rows_keep_their_digits_in_float16(self, function: Any, scale: float) -> None:
        """1e-6 (p - q) is next to nothing in float16; GradScaler's factor arrives with the backward only."""
        generator = torch.Generator().manual_seed(0)
        x, weight, teacher = (torch.randn(shape, generator=generator) for shape in ((5, 4), (64, 4), (5, 64)))

        def gradient(to: torch.dtype, loss: Any) -> Tensor:
            # A weight as it is trained under autocast.
            leaf = weight.half().to(to).requires_grad_()
            with torch.autocast("cpu", dtype=torch.float16, enabled=to == torch.float32):
                (found,) = torch.autograd.grad(loss(x.half().to(to), leaf) * scale, leaf)
            return found.double()

        def ours(x: Tensor, weight: Tensor) -> Tensor:
            if function is linear_cross_entropy:
                return linear_cross_entropy(x, weight, torch.arange(5), normalizer=1e6)
            return torchlosses.linear_kl_div(x, weight, teacher_logits=teacher, normalizer=1e6)

        def plain(x: Tensor, weight: Tensor) -> Tensor:
            log_p = (x @ weight.t()).log_softmax(1)
            if function is linear_cross_entropy:
                return F.nll_loss(log_p, torch.arange(5), reduction="sum") / 1e6
            return F.kl_div(log_p, teacher.double().softmax(1), reduction="sum") / 1e6

        truth = gradient(torch.float64, plain)
        assert (gradient(torch.float32, ours) - truth).abs().max() < 2e-3 * truth.abs().max()

    def test_autocast_with_mixed_operands(self) -> None:
        drawn = tensors()
        x, weight = drawn["input"].bfloat16(), drawn["linear_weight"].float().requires_grad_()
        with torch.autocast("cpu", dtype=torch.bfloat16):
            loss = linear_cross_entropy(x, weight, drawn["target"])
            assert linear_cross_entropy(x.double(), weight.double(), drawn["target"]).dtype == torch.float64
        assert (loss.dtype, torch.autograd.grad(loss, weight)[0].dtype) == (torch.float32, torch.float32)
        with pytest.raises(RuntimeError, match="input and linear_weight to have the same dtype"):
            linear_cross_entropy(x, weight, drawn["target"])


class TestMemory:
    @pytest.mark.parametrize("case", ["mean", "none", "second derivative", "forward mode", "statistics"])
    def test_never_all_logits(self, case: str) -> None:
        rows, features, classes, block_rows = 1024, 8, 4096, 32
        x = torch.randn(rows, features, requires_grad=True)
        weight = torch.randn(classes, features, requires_grad=True)
        target = torch.randint(classes, (rows,))
        options: dict[str, Any] = {"block_rows": block_rows}
        if case == "none":
            options["reduction"] = "none"
        if case == "statistics":
            options["return_stats"] = True

        def call() -> object:
            if case == "forward mode":
                loss = lambda w: linear_cross_entropy(x.detach(), w, target, **options)  # noqa: E731
                return torch.func.jvp(loss, (weight.detach(),), (weight.detach(),))
            loss = linear_cross_entropy(x, weight, target, **options)
            loss = loss[0] if case == "statistics" else loss.sum()
            first = torch.autograd.grad(loss, (x, weight), create_graph=case == "second derivative")
            return torch.autograd.grad(first[1].square().sum(), (x, weight)) if case == "second derivative" else first

        block, gradients, logits = 4 * block_rows * classes, 4 * (rows + classes) * features, 4 * rows * classes
        blocks = {"mean": 1, "second derivative": 20, "forward mode": 20, "statistics": 6}.get(case, 2)
        # The gradients of a mean exist once: the backward scales those that the forward has found.
        copies = 1 if case == "mean" else 8
        peak = peak_bytes(call)
        assert block <= peak <= blocks * block + copies * gradients + 64 * rows
        assert blocks * block + 8 * gradients + 64 * rows < logits


class TestModule:
    @against_torch
    def test_takes_the_state_of_torch(self) -> None:
        arguments: dict[str, Any] = {"out_features": (2,), "bias": True, "weight": torch.rand(CLASSES)}
        theirs = nn.LinearCrossEntropyLoss(FEATURES, CLASSES, **arguments, label_smoothing=0.1)
        ours = LinearCrossEntropyLoss(FEATURES, CLASSES, **arguments, label_smoothing=0.1)
        ours.load_state_dict(theirs.state_dict())
        assert list(ours.state_dict()) == list(theirs.state_dict())
        x, target = torch.randn(ROWS, FEATURES), torch.randint(CLASSES, (ROWS, 2))
        assert_close(ours(x, target), theirs(x, target))

    @against_torch
    def test_takes_the_options_of_torch(self) -> None:
        options = nn.LinearCrossEntropyOptions(batch_chunk_size=2)
        module = LinearCrossEntropyLoss(FEATURES, CLASSES, options=options)
        assert module.block_rows == 2
        with pytest.raises(TypeError, match=r"LinearCrossEntropyOptions or None, but got dict: use block_rows"):
            LinearCrossEntropyLoss(FEATURES, CLASSES, options={"batch_chunk_size": 2})

    def test_trains(self) -> None:
        torch.manual_seed(0)
        module = LinearCrossEntropyLoss(8, 6, bias=True)
        x = torch.randn(64, 8)
        target = x[:, :6].argmax(1)
        optimizer = torch.optim.SGD(module.parameters(), lr=1.0)
        losses = []
        for _ in range(30):
            loss = module(x, target)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
        assert losses[-1] < 0.5 * losses[0]

    def test_of_a_layer_with_several_places(self) -> None:
        layer = nn.Linear(FEATURES, 2 * CLASSES)
        module = LinearCrossEntropyLoss.of(layer, out_features=(2,))
        x, target = torch.randn(3, FEATURES), torch.randint(CLASSES, (3, 2))
        assert module.num_classes == CLASSES
        assert_close(module(x, target), F.cross_entropy(layer(x).unflatten(1, (CLASSES, 2)), target))
        with pytest.raises(ValueError, match=r"10 out_features is none for the out_features=\(3,\)"):
            LinearCrossEntropyLoss.of(layer, out_features=(3,))

    @pytest.mark.parametrize("kind", [LinearCrossEntropyLoss, torchlosses.LinearKLDivLoss])
    def test_of_what_is_no_layer(self, kind: Any) -> None:
        for other in (torch.ones(4, 2), nn.Conv2d(2, 4, 1)):
            with pytest.raises(
                TypeError, match=rf"{kind.__name__}.of: expected a torch.nn.Linear.*{type(other).__name__}"
            ):
                kind.of(other)

    def test_copies_and_speaks_for_itself(self) -> None:
        module = LinearCrossEntropyLoss(FEATURES, CLASSES, weight=torch.ones(CLASSES), z_loss=0.1, logit_softcap=5.0)
        x, target = torch.randn(2, 3, FEATURES), torch.randint(CLASSES, (2, 3))
        sample_weight = torch.rand(2, 3)
        arguments = {"normalizer": 7.0, "sample_weight": sample_weight}
        assert_close(copy.deepcopy(module)(x, target, **arguments), module(x, target, **arguments), rtol=0, atol=0)
        assert "in_features=4, num_classes=5" in repr(module)
        assert "z_loss=0.1, logit_softcap=5.0" in repr(module)


class TestErrors:
    @pytest.mark.parametrize(
        ("change", "error", "message"),
        [
            ({"reduction": "avg"}, ValueError, "'avg' is not a valid value for reduction"),
            ({"empty": "inf"}, ValueError, "'inf' is not a valid value for empty: expected one of 'nan', 'zero'"),
            ({"z_loss": -1.0}, ValueError, "z_loss must be finite and not negative, but got -1.0"),
            ({"z_loss": "a"}, TypeError, "z_loss must be a float"),
            ({"logit_softcap": 0.0}, ValueError, "logit_softcap must be positive and finite, but got 0.0; None leaves"),
            ({"label_smoothing": 1.5}, ValueError, "label_smoothing must be between"),
            ({"normalizer": 2.0, "reduction": "sum"}, ValueError, "normalizer is what reduction='mean' divides by"),
            ({"normalizer": -2.0}, ValueError, "normalizer must be finite and not negative, but got -2.0"),
            ({"normalizer": torch.ones(3)}, ValueError, r"one number, but got a tensor of shape \(3,\)"),
            ({"low_rank": torch.ones(3)}, TypeError, r"low_rank must be \(A, B, scale\) or None, but got Tensor"),
            ({"low_rank": 2}, TypeError, "low_rank must be .* but got int"),
            ({"low_rank": (torch.ones(1, 4), torch.ones(5, 1), INF)}, ValueError, "scale of low_rank must be finite"),
            ({"low_rank": (torch.ones(1, 4).long(), torch.ones(5, 1), 1.0)}, RuntimeError, "floating-point A of low_r"),
            ({"logit_scale": torch.ones((), requires_grad=True)}, TypeError, "got a tensor that requires grad"),
            ({"sample_weight": torch.ones(3)}, ValueError, r"sample_weight must broadcast to one weight a row, \(7,\)"),
            ({"sample_weight": torch.ones(2, 7)}, ValueError, "sample_weight must broadcast"),
            ({"block_rows": 0}, ValueError, "block_rows must be at least 1, but got 0"),
            ({"block_rows": 1.5}, TypeError, "block_rows must be an int or None"),
            ({"weight": torch.ones(3)}, RuntimeError, "for all 5 classes or no classes"),
            ({"weight": torch.ones(5)}, RuntimeError, "expected scalar type Double but found Float"),
            ({"linear_weight": torch.ones(5, 3).double()}, RuntimeError, "input has 4 features .* expects 3"),
            (
                {"linear_weight": torch.ones(5).double()},
                RuntimeError,
                r"expected linear_weight of shape \(classes, fea",
            ),
            ({"linear_bias": torch.ones(4).double()}, RuntimeError, r"expected linear_bias of shape \(5,\)"),
            ({"linear_bias": torch.ones(5)}, RuntimeError, "input and linear_bias to have the same dtype"),
            ({"input": torch.ones(7, 4, dtype=torch.int64)}, NotImplementedError, "Long input"),
            ({"input": [1.0]}, TypeError, "input must be a Tensor, but got list"),
            ({"target": torch.zeros(3).long()}, ValueError, r"batch_size \(7\) to match"),
            ({"target": torch.zeros(7, 2).long()}, RuntimeError, r"expected a target of shape \[7\] .* or \[7, 5\]"),
            ({"target": torch.zeros(7)}, RuntimeError, "expected target dtype to be Long"),
            ({"target": torch.zeros(7, 5).long()}, RuntimeError, "Expected floating point type for target"),
            ({"target": torch.full((7,), 5)}, IndexError, r"Target 5 is out of bounds. It stands at position \(0,\)"),
        ],
    )
    def test_name_what_was_given_and_what_was_expected(
        self, change: dict[str, Any], error: type[Exception], message: str
    ) -> None:
        drawn = tensors()
        arguments = {name: drawn[name] for name in ("input", "linear_weight", "target")}
        with pytest.raises(error, match=message):
            linear_cross_entropy(**{**arguments, **change})

    def test_ignore_index_and_probabilities(self) -> None:
        with pytest.raises(RuntimeError, match="ignore_index is not supported for floating point target"):
            linear_cross_entropy(**choose(tensors("probability")), ignore_index=2)

    def test_the_position_of_a_bad_target_is_that_in_the_batch(self) -> None:
        leaves = choose(tensors())
        leaves["target"][5] = -7
        with pytest.raises(IndexError, match=r"Target -7 is out of bounds. It stands at position \(5,\)"):
            linear_cross_entropy(**leaves, block_rows=2)

    @pytest.mark.parametrize("option", [{"z_loss": -1.0}, {"logit_softcap": -1.0}, {"empty": "x"}, {"reduction": "x"}])
    def test_of_the_module_come_when_it_is_made(self, option: dict[str, Any]) -> None:
        with pytest.raises(ValueError, match=next(iter(option))):
            LinearCrossEntropyLoss(FEATURES, CLASSES, **option)

    def test_a_tensor_subclass_may_take_over(self) -> None:
        class Marked(Tensor):
            @classmethod
            def __torch_function__(cls, function, types, args=(), kwargs=None):
                return function.__name__

        drawn = tensors()
        result = linear_cross_entropy(drawn["input"].as_subclass(Marked), drawn["linear_weight"], drawn["target"])
        assert result == "linear_cross_entropy"


class TestOnAnAccelerator:
    """The way there, taken on the CPU: nothing is looked at unless that is asked for."""

    @pytest.fixture(autouse=True)
    def no_look(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(linear, "looking_is_free", lambda tensor: False)

    @pytest.mark.parametrize("dropped", [False, True])
    @pytest.mark.parametrize("reduction", ["mean", "none"])
    def test_rows_without_a_trace(self, dropped: bool, reduction: Any) -> None:
        """Dropped, they are in no product; else they are hidden, nan and all."""
        generator = torch.Generator().manual_seed(0)
        x, weight, bias = (torch.randn(shape, generator=generator).double() for shape in ((9, 3), (5, 3), (5,)))
        a, b = torch.randn(2, 3, generator=generator).double(), torch.randn(5, 2, generator=generator).double()
        target = torch.tensor([0, -100, 1, 2, -100, 3, 4, 0, 1])
        samples = torch.tensor([1.0, 1, 1, 0, 1, 2, 1, 1, 1], dtype=torch.float64)
        counted = (target != -100) & (samples != 0)
        x[~counted] = torch.nan
        results = []
        for rows in (slice(None), counted):
            leaves = [tensor.clone().requires_grad_() for tensor in (x, weight, bias, a, b)]
            loss = linear_cross_entropy(
                leaves[0][rows], leaves[1], target[rows], linear_bias=leaves[2], sample_weight=samples[rows],
                low_rank=(leaves[3], leaves[4], 0.5), reduction=reduction, block_rows=2, drop_ignored=dropped,
            )  # fmt: skip
            gradients = torch.autograd.grad(loss, leaves, torch.ones_like(loss))
            results.append((loss[counted] if loss.shape == (9,) else loss, *gradients))
        for found, expected in zip(*results, strict=True):
            assert_close(found, expected)

    def test_how_many_rows_there_are_is_asked_for_only_with_the_option(self, monkeypatch: pytest.MonkeyPatch) -> None:
        asked = []
        nonzero = Tensor.nonzero
        monkeypatch.setattr(Tensor, "nonzero", lambda tensor: asked.append(tensor) or nonzero(tensor))
        x, weight, target = torch.randn(4, 3, requires_grad=True), torch.randn(5, 3), torch.tensor([0, -100, 1, 2])
        for dropped in (False, True):
            linear_cross_entropy(x, weight, target, drop_ignored=dropped).backward()
            assert len(asked) == dropped

    def test_sums_over_few_blocks(self) -> None:
        """In bfloat16 each block's part is rounded before the next one is added; in float32 only the sum is."""
        generator = torch.Generator().manual_seed(1)
        x, weight = (torch.randn(shape, generator=generator).bfloat16() for shape in ((64, 8), (6, 8)))
        target = torch.randint(6, (64,), generator=generator)
        leaf = weight.double().requires_grad_()
        F.cross_entropy((x.double() @ leaf.t()).bfloat16().double(), target, reduction="sum").backward()
        off = {}
        cases: dict[str, dict[str, Any]] = {"narrow": {"block_rows": 8}, "wide": {"block_rows": 8, "wide_sums": True}}
        # Up to torch 2.12 there are no such options.
        if torchs_options := getattr(nn, "LinearCrossEntropyOptions", None):
            cases["torch"] = {"options": torchs_options(batch_chunk_size=8, acc_policy="accurate")}
            assert LinearCrossEntropyLoss(8, 6, **cases["torch"]).wide_sums
        for name, given in cases.items():
            own = weight.clone().requires_grad_()
            linear_cross_entropy(x, own, target, reduction="sum", **given).backward()
            off[name] = float((own.grad.double() - leaf.grad).norm())  # type: ignore[union-attr]
        assert off["wide"] == off.get("torch", off["wide"]) < 0.8 * off["narrow"]
