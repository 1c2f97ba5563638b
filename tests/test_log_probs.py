"""Log-probability, entropy and top-1 hit, of logits and of a linear layer, against the plain formula."""

from __future__ import annotations

import math
import pickle
from collections.abc import Callable
from io import BytesIO
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd import gradcheck, gradgradcheck
from torch.testing import assert_close

import torchlosses
from torchlosses import LogProbs, cross_entropy, linear_log_probs, log_probs

ROWS, CLASSES, FEATURES = 6, 5, 4


def drawn(*shape: int, dtype: torch.dtype = torch.float64, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def indices(*shape: int, classes: int = CLASSES) -> Tensor:
    return torch.randint(classes, shape, generator=torch.Generator().manual_seed(1))


def plain(logits: Tensor, target: Tensor, ignore_index: int = -100) -> tuple[Tensor, Tensor, Tensor]:
    """log_softmax, gather, -Σ p log p."""
    log_p = logits.log_softmax(-1)
    counted = target != ignore_index
    log_probability = log_p.gather(-1, target.masked_fill(~counted, 0).unsqueeze(-1)).squeeze(-1)
    p = log_p.exp()
    entropy = -(p * log_p.masked_fill(p == 0, 0)).sum(-1)
    correct = (logits.argmax(-1) == target) & counted
    return log_probability.masked_fill(~counted, 0), entropy.masked_fill(~counted, 0), correct


def weighed(found: Any) -> Tensor:
    """One number, in which each row's log-probability and entropy have a factor of their own."""
    log_probability, entropy = found[0].flatten(), found[1].flatten()
    factors = torch.arange(1.0, 2 * len(entropy) + 1, dtype=entropy.dtype)
    return (log_probability * factors[::2]).sum() - (entropy * factors[1::2]).sum()


def compare(ours: Any, truth: Any, leaves: list[Tensor], **tolerance: Any) -> None:
    for field, expected in zip(ours, truth, strict=True):
        assert_close(field, expected, **tolerance)
    found = torch.autograd.grad(weighed(ours), leaves)
    for gradient, expected in zip(found, torch.autograd.grad(weighed(truth), leaves), strict=True):
        assert_close(gradient, expected, **tolerance)


class TestLogits:
    @pytest.mark.parametrize("shape", [(CLASSES,), (ROWS, CLASSES), (2, 3, CLASSES), (2, 1, 3, CLASSES)], ids=str)
    def test_any_number_of_dimensions(self, shape: tuple[int, ...]) -> None:
        logits, target = drawn(*shape).requires_grad_(), indices(*shape[:-1])
        if len(shape) > 1:
            target.view(-1)[1] = -100
        found = log_probs(logits, target)
        assert isinstance(found, LogProbs)
        assert [field.shape for field in found] == [target.shape] * 3
        assert found.correct.dtype == torch.bool
        assert not found.correct.requires_grad
        compare(found, plain(logits, target), [logits])

    @pytest.mark.parametrize("dim", [0, 1, 2, -2])
    def test_classes_anywhere(self, dim: int) -> None:
        logits = drawn(ROWS, 2, 3).movedim(0, dim).requires_grad_()
        target = indices(*(size for d, size in enumerate(logits.shape) if d != dim % 3), classes=ROWS)
        compare(log_probs(logits, target, dim=dim), plain(logits.movedim(dim, -1), target), [logits])

    @pytest.mark.parametrize(("scale", "cap"), [(0.5, None), (-2.0, None), (1.0, 1.5), (1.7, 2.0)])
    def test_scale_and_soft_cap(self, scale: float, cap: float | None) -> None:
        logits, target = (3 * drawn(ROWS, CLASSES)).requires_grad_(), indices(ROWS)
        y = scale * logits
        y = y if cap is None else cap * torch.tanh(y / cap)
        compare(log_probs(logits, target, logit_scale=scale, logit_softcap=cap), plain(y, target), [logits])

    @pytest.mark.parametrize("dtype", [torch.uint8, torch.int16, torch.int32])
    def test_every_integer_dtype(self, dtype: torch.dtype) -> None:
        logits, target = drawn(ROWS, CLASSES), indices(ROWS)
        assert_close(tuple(log_probs(logits, target.to(dtype))), tuple(log_probs(logits, target)))

    def test_blocks_make_no_difference(self) -> None:
        """More logits than the operator works on at a time, as rows and along further dimensions."""
        logits, target = drawn(40, 30000, dtype=torch.float32), indices(40, classes=30000)
        found = log_probs(logits, target)
        for field, expected in zip(found, plain(logits.double(), target), strict=True):
            assert_close(field, expected.to(field.dtype), rtol=1e-6, atol=1e-5)
        again = log_probs(logits.view(2, 20, 30000), target.view(2, 20))
        assert all(torch.equal(a.flatten(), b) for a, b in zip(again, found, strict=True))

    def test_derivatives_of_all_orders(self) -> None:
        logits, target = drawn(3, CLASSES).requires_grad_(), torch.tensor([1, -100, 2])

        def call(x: Tensor) -> tuple[Tensor, ...]:
            return log_probs(x, target, logit_scale=0.7, logit_softcap=2.0)[:2]

        assert gradcheck(call, logits, check_forward_ad=True, check_batched_grad=True)
        assert gradgradcheck(call, logits, check_fwd_over_rev=True)


def operands(dtype: torch.dtype = torch.float64, rows: int = ROWS) -> dict[str, Any]:
    return {
        "input": drawn(rows, FEATURES, dtype=dtype).requires_grad_(),
        "linear_weight": drawn(CLASSES, FEATURES, dtype=dtype, seed=1).requires_grad_(),
        "linear_bias": drawn(CLASSES, dtype=dtype, seed=2).requires_grad_(),
    }


class TestLinear:
    @pytest.mark.parametrize("block_rows", [None, 1, 4])
    @pytest.mark.parametrize("bias", [False, True])
    def test_equals_the_plain_formula(self, bias: bool, block_rows: int | None) -> None:
        tensors, target = operands(), indices(ROWS)
        target[2] = -100
        if not bias:
            del tensors["linear_bias"]
        logits = F.linear(tensors["input"], tensors["linear_weight"], tensors.get("linear_bias"))
        found = linear_log_probs(**tensors, target=target, block_rows=block_rows)
        compare(found, plain(logits, target), list(tensors.values()))

    def test_batches_scale_soft_cap_and_low_rank(self) -> None:
        tensors, target = operands(), indices(2, 3)
        a, b = drawn(2, FEATURES, seed=3).requires_grad_(), drawn(CLASSES, 2, seed=4).requires_grad_()
        x = tensors.pop("input").detach().view(2, 3, FEATURES).requires_grad_()
        weight = tensors["linear_weight"] + 0.3 * b @ a
        y = 1.5 * torch.tanh(0.8 * F.linear(x, weight, tensors["linear_bias"]) / 1.5)
        options: dict[str, Any] = {"logit_scale": 0.8, "logit_softcap": 1.5, "low_rank": (a, b, 0.3), "block_rows": 4}
        found = linear_log_probs(x, **tensors, target=target, **options)
        compare(found, plain(y, target), [x, *tensors.values(), a, b])

    def test_features_in_the_middle(self) -> None:
        x, w, target = drawn(2, FEATURES, 3).requires_grad_(), drawn(CLASSES, FEATURES), indices(2, 3)
        compare(linear_log_probs(x, w, target, dim=1), plain(x.movedim(1, -1) @ w.t(), target), [x])

    def test_several_places(self) -> None:
        x, w = drawn(ROWS, FEATURES).requires_grad_(), drawn(CLASSES, 2, FEATURES).requires_grad_()
        bias, target = drawn(CLASSES, 2), indices(ROWS, 2)
        y = torch.einsum("nf,cpf->npc", x, w) + bias.t()
        compare(linear_log_probs(x, w, target, linear_bias=bias), plain(y, target), [x, w])

    def test_only_what_is_asked_for(self) -> None:
        """Of one of the two, and by one of the operands."""
        for field in range(2):
            tensors, target = operands(), indices(ROWS)
            tensors["linear_weight"].requires_grad_(False)
            logits = F.linear(**{k.removeprefix("linear_"): t for k, t in tensors.items()})
            expected = torch.autograd.grad(plain(logits, target)[field].sum(), tensors["input"])
            found = linear_log_probs(**tensors, target=target)[field].sum()
            assert_close(torch.autograd.grad(found, tensors["input"]), expected)

    def test_derivatives_of_all_orders(self) -> None:
        tensors, target = operands(rows=3), torch.tensor([1, -100, 2])
        more = [drawn(1, FEATURES, seed=3).requires_grad_(), drawn(CLASSES, 1, seed=4).requires_grad_()]

        def call(x: Tensor, w: Tensor, bias: Tensor, a: Tensor, b: Tensor) -> tuple[Tensor, ...]:
            found = linear_log_probs(x, w, target, linear_bias=bias, low_rank=(a, b, 0.5), block_rows=2)
            return found[:2]

        leaves = (*tensors.values(), *more)
        assert gradcheck(call, leaves, check_forward_ad=True, check_batched_grad=True)
        assert gradgradcheck(call, leaves)

    def test_never_all_logits(self) -> None:
        """The largest tensor that the operators make is a block's."""
        rows, classes, block = 64, 512, 8
        x, w = drawn(rows, FEATURES, dtype=torch.float32).requires_grad_(), drawn(classes, FEATURES).float()
        target = indices(rows, classes=classes)
        profile = torch.profiler.profile(profile_memory=True, activities=[torch.profiler.ProfilerActivity.CPU])
        with profile:
            weighed(linear_log_probs(x, w.requires_grad_(), target, block_rows=block)).backward()
        largest = max(event.self_cpu_memory_usage / max(1, event.count) for event in profile.key_averages())
        assert 0 < largest <= 2 * block * classes * 8


class TestIgnoredRows:
    @pytest.mark.parametrize("value", [math.nan, math.inf])
    @pytest.mark.parametrize("create_graph", [False, True])
    def test_leave_no_trace(self, value: float, create_graph: bool) -> None:
        target = torch.tensor([1, -100, 0, -100, 2, 3])
        clean = operands()
        dirty = {name: tensor.detach().clone() for name, tensor in clean.items()}
        dirty["input"][1] = value
        dirty = {name: tensor.requires_grad_() for name, tensor in dirty.items()}
        found, expected = (linear_log_probs(**tensors, target=target, block_rows=4) for tensors in (dirty, clean))
        assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))
        assert not torch.stack([found.log_probability, found.entropy])[:, [1, 3]].any()
        results = [
            torch.autograd.grad(weighed(linear_log_probs(**tensors, target=target)), list(tensors.values()),
                                create_graph=create_graph)
            for tensors in (dirty, clean)
        ]  # fmt: skip
        assert_close(results[0], results[1])
        assert not results[0][0][[1, 3]].any()
        logits = drawn(ROWS, CLASSES)
        logits[1] = value
        logits.requires_grad_()
        found = log_probs(logits, target)
        (gradient,) = torch.autograd.grad(weighed(found), logits, create_graph=create_graph)
        assert gradient.isfinite().all()
        assert not gradient[[1, 3]].any()

    def test_all_of_them(self) -> None:
        tensors, target = operands(), torch.full((ROWS,), 7)
        found = linear_log_probs(**tensors, target=target, ignore_index=7)
        assert not any(field.any() for field in found)
        assert not any(g.any() for g in torch.autograd.grad(weighed(found), list(tensors.values())))

    def test_no_rows(self) -> None:
        tensors = {**operands(), "input": torch.zeros(0, FEATURES, dtype=torch.float64, requires_grad=True)}
        none = torch.zeros(0, dtype=torch.int64)
        found = linear_log_probs(**tensors, target=none)
        assert [field.shape for field in found] == [(0,)] * 3
        assert not any(g.any() for g in torch.autograd.grad(weighed(found), list(tensors.values())))
        assert log_probs(torch.zeros(0, CLASSES), none).entropy.shape == (0,)


class TestCorners:
    def test_a_ruled_out_class(self) -> None:
        logits = torch.tensor([[0.0, 1.0, -math.inf], [0.0, -math.inf, -math.inf]], dtype=torch.float64)
        logits.requires_grad_()
        target = torch.tensor([0, 0])
        truth = logits.detach()[:1, :2].clone().requires_grad_()
        found, expected = log_probs(logits, target), plain(truth, target[:1])
        assert_close(found.log_probability, torch.cat([expected[0], torch.zeros(1, dtype=torch.float64)]))
        assert_close(found.entropy, torch.cat([expected[1], torch.zeros(1, dtype=torch.float64)]))
        for create_graph in (False, True):
            (gradient,) = torch.autograd.grad(
                (2 * found.log_probability + 3 * found.entropy).sum(), logits, retain_graph=True,
                create_graph=create_graph,
            )  # fmt: skip
            assert gradient.isfinite().all()
            (by_rest,) = torch.autograd.grad(2 * expected[0].sum() + 3 * expected[1].sum(), truth, retain_graph=True)
            assert_close(gradient[:1, :2].detach(), by_rest)
            assert not gradient[:, 2].any()

    def test_the_target_is_ruled_out(self) -> None:
        logits = torch.tensor([[-math.inf, 0.0, 0.0]], requires_grad=True)
        found = log_probs(logits, torch.tensor([0]))
        assert found.log_probability.item() == -math.inf
        (gradient,) = torch.autograd.grad(found.log_probability.sum(), logits)
        assert gradient.tolist() == [[1.0, -0.5, -0.5]]

    @pytest.mark.parametrize("value", [math.nan, math.inf])
    def test_nothing_is_known_of_nan(self, value: float) -> None:
        found = log_probs(torch.full((1, 3), value), torch.tensor([0]))
        assert found.log_probability.isnan().all()
        assert found.entropy.isnan().all()
        assert not found.correct.any()

    @pytest.mark.parametrize("gap", [5.0, 20.0, 60.0])
    def test_a_confident_row_keeps_its_digits(self, gap: float) -> None:
        """Where the plain formula gives exactly 0, or has lost most digits; also in the gradients."""
        logits = torch.tensor([[gap, 0.0, -1.0], [0.0, gap, -1.0]])
        leaf, target = logits.clone().requires_grad_(), torch.tensor([0, 0])
        found = log_probs(leaf, target)
        rest = math.exp(-gap) + math.exp(-1 - gap)
        distance = (gap * math.exp(-gap) + (1 + gap) * math.exp(-1 - gap)) / (1 + rest)
        assert_close(found.log_probability[0].item(), -math.log1p(rest), rtol=3e-7, atol=0)
        assert_close(found.entropy[0].item(), math.log1p(rest) + distance, rtol=1e-6, atol=0)
        (of_log_probability,) = torch.autograd.grad(found.log_probability.sum(), leaf, retain_graph=True)
        assert_close(of_log_probability[0, 0].item(), rest / (1 + rest), rtol=1e-6, atol=0)
        (of_entropy,) = torch.autograd.grad(found.entropy.sum(), leaf)
        assert_close(of_entropy[0, 0].item(), -distance / (1 + rest), rtol=1e-6, atol=0)

    @pytest.mark.parametrize("size", [1.0, 10.0, 100.0])
    def test_no_further_from_the_truth_than_the_plain_formula(self, size: float) -> None:
        logits = (size * drawn(1000, 300)).float().requires_grad_()
        target = indices(1000, classes=300)
        wide = logits.detach().double().requires_grad_()
        results = []
        for found, leaf in (
            (log_probs(logits, target), logits),
            (plain(logits, target), logits),
            (plain(wide, target), wide),
        ):
            gradient = torch.autograd.grad(found[0].sum() + found[1].sum(), leaf)[0]
            results.append([found[0].detach().double(), found[1].detach().double(), gradient.double()])
        for ours, theirs, truth in zip(*results, strict=True):
            # Root mean squares: a single error is a matter of which number is rounded which way.
            assert (ours - truth).square().mean() <= 1.25 * (theirs - truth).square().mean()


class TestPrecision:
    @pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
    def test_results_are_float32(self, dtype: torch.dtype) -> None:
        logits, target = drawn(ROWS, CLASSES, dtype=dtype).requires_grad_(), indices(ROWS)
        found = log_probs(logits, target)
        assert found.log_probability.dtype == found.entropy.dtype == torch.float32
        compare(found, plain(logits.float(), target), [logits], rtol=1e-2, atol=2e-2)
        tensors = operands(dtype)
        logits = F.linear(**{k.removeprefix("linear_"): t for k, t in tensors.items()}).float()
        found = linear_log_probs(**tensors, target=target)
        assert found.log_probability.dtype == found.entropy.dtype == torch.float32
        compare(found, plain(logits, target), list(tensors.values()), rtol=3e-2, atol=1.0)

    def test_the_ratio_of_a_policy_with_itself_is_1(self) -> None:
        """Also of blocks of another size, and of the logits that the product gives."""
        x, w = drawn(70, 32, dtype=torch.bfloat16), drawn(3000, 32, dtype=torch.bfloat16, seed=1)
        target = indices(70, classes=3000)
        with torch.no_grad():
            old = linear_log_probs(x, w, target).log_probability
        for block_rows in (None, 7, 70):
            found = linear_log_probs(x.requires_grad_(), w.requires_grad_(), target, block_rows=block_rows)
            assert torch.equal(torch.exp(found.log_probability - found.log_probability.detach()), torch.ones(70))
            assert torch.equal(torch.exp(found.log_probability - old), torch.ones(70))
        assert torch.equal(log_probs(x.detach() @ w.detach().t(), target).log_probability, old)
        with torch.autocast("cpu", torch.bfloat16):
            found = linear_log_probs(x.detach().float(), w.detach().float(), target)
        assert torch.equal(found.log_probability, old)

    def test_agrees_with_the_cross_entropy(self) -> None:
        logits, target = drawn(ROWS, CLASSES, dtype=torch.float32), indices(ROWS)
        target[0] = -100
        loss, statistics = cross_entropy(logits, target, reduction="none", return_stats=True)
        found = log_probs(logits, target)
        assert_close(found.log_probability, -loss)
        assert_close(found.entropy, statistics.entropy)
        assert torch.equal(found.correct, statistics.correct)


class TestResult:
    def test_is_a_sequence_like_any_other(self) -> None:
        found = log_probs(drawn(ROWS, CLASSES), indices(ROWS))
        sequence: Any = type(found)
        doubled = sequence(field.double() for field in found)
        assert isinstance(doubled, LogProbs)
        assert_close(tuple(pickle.loads(pickle.dumps(found))), tuple(found))
        file = BytesIO()
        torch.save(found, file)
        file.seek(0)
        assert isinstance(torch.load(file, weights_only=True), LogProbs)

    @pytest.mark.parametrize("function", [log_probs, torchlosses.linear_log_probs])
    def test_one_compiled_graph(self, function: Callable[..., LogProbs]) -> None:
        tensors = operands()
        arguments = [tensors["input"], tensors["linear_weight"]]
        target = indices(ROWS, classes=FEATURES)
        if function is log_probs:
            del arguments[1]
        compiled = torch.compile(function, backend="aot_eager", fullgraph=True)
        found, expected = compiled(*arguments, target), function(*arguments, target)
        assert_close(tuple(found), tuple(expected))
        assert_close(
            torch.autograd.grad(weighed(found), arguments), torch.autograd.grad(weighed(expected), arguments)
        )  # fmt: skip


class TestErrors:
    @pytest.mark.parametrize(
        ("call", "error", "message"),
        [
            (lambda x, w, t: log_probs(x, t[:2]), ValueError, r"Expected input batch_size \(6\) .* \[6\] .* \[2\]"),
            (lambda x, w, t: log_probs(x, t + CLASSES), IndexError, "out of bounds"),
            (lambda x, w, t: log_probs(x, x), RuntimeError, "integer type for class indices"),
            (lambda x, w, t: log_probs(x, t, dim=2), IndexError, "dim=2 is no dimension of logits"),
            (lambda x, w, t: log_probs(x, t, logit_softcap=-1.0), ValueError, "logit_softcap"),
            (lambda x, w, t: log_probs(x.long(), t), NotImplementedError, "not implemented for Long input"),
            (lambda x, w, t: log_probs(x.sum(), t), RuntimeError, r"expected logits of shape \(\.\.\., C\)"),
            (lambda x, w, t: log_probs(x, t.tolist()), TypeError, "target must be a Tensor, but got list"),
            (lambda x, w, t: linear_log_probs(x, w.t(), t), RuntimeError, "input has 5 features"),
            (lambda x, w, t: linear_log_probs(x, w, t[:, None]), RuntimeError, r"expected a target of shape \[6\]"),
            (lambda x, w, t: linear_log_probs(x, w, t + 99), IndexError, "out of bounds"),
            (lambda x, w, t: linear_log_probs(x, w.float(), t), RuntimeError, "linear_weight"),
            (lambda x, w, t: log_probs(x, t.float()), RuntimeError, r"but got Float: call \.long\(\)\."),
            (lambda x, w, t: linear_log_probs(x, w, t, low_rank=x), TypeError, r"be \(A, B, scale\) .* got Tensor"),
            (lambda x, w, t: linear_log_probs(x, w, t, block_rows=0), ValueError, "block_rows must be at least 1"),
        ],
    )  # fmt: skip
    def test_say_what_was_given_and_what_was_expected(
        self, call: Callable[..., Any], error: type[Exception], message: str
    ) -> None:
        with pytest.raises(error, match=message):
            call(drawn(ROWS, CLASSES), drawn(7, CLASSES), indices(ROWS))

    def test_a_tensor_subclass_may_take_over(self) -> None:
        class Taking(Tensor):
            @classmethod
            def __torch_function__(cls, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
                return function, sorted(kwargs or {})

        taking = drawn(ROWS, CLASSES).as_subclass(Taking)
        found: Any = log_probs(taking, indices(ROWS))
        assert found[0] is log_probs
        found = linear_log_probs(taking, drawn(7, CLASSES), indices(ROWS))
        assert found[0] is linear_log_probs
        assert "low_rank" in found[1]
