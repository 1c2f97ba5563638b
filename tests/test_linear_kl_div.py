"""Distillation without logits: equal to the plain formula for every teacher, divergence, order and mode; and small."""

from __future__ import annotations

import copy
import itertools
import math
import pickle
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd import gradcheck, gradgradcheck
from torch.testing import assert_close
from torch.utils.flop_counter import FlopCounterMode

import torchlosses
from tests.test_linear_cross_entropy import multiplications
from tests.turns import in_turn
from torchlosses import LinearKLDivLoss, linear_kl_div
from torchlosses.linear_kl_div import Divergence, LinearKLDivergence, Options, TopKRest
from torchlosses.testing.checks.cost import peak_bytes

ROWS, FEATURES, TEACHER_FEATURES, CLASSES, K = 7, 4, 3, 6, 2
DIVERGENCES: tuple[Divergence, ...] = ("forward", "reverse", "jensen-shannon")
TEACHERS = ("features", "logits", "merge", "renormalize")
STUDENT = ("student_input", "student_weight", "student_bias")
IGNORED = torch.tensor([1, -100, 2, 0, -100, 3, 5])
INF = math.inf


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def student(seed: int = 0) -> dict[str, Any]:
    shapes = ((ROWS, FEATURES), (CLASSES, FEATURES), (CLASSES,))
    return {name: normal(*shape, seed=seed + i) for i, (name, shape) in enumerate(zip(STUDENT, shapes, strict=True))}


def teacher(kind: str) -> dict[str, Any]:
    if kind == "features":
        names = ("teacher_input", "teacher_weight", "teacher_bias")
        shapes = ((ROWS, TEACHER_FEATURES), (CLASSES, TEACHER_FEATURES), (CLASSES,))
        return {name: normal(*shape, seed=9 + i) for i, (name, shape) in enumerate(zip(names, shapes, strict=True))}
    logits = normal(ROWS, CLASSES, seed=9)
    if kind == "logits":
        return {"teacher_logits": logits}
    return {"teacher_top_k": tuple(logits.log_softmax(1).topk(K, 1)), "top_k_rest": kind}


def leaves(tensors: dict[str, Any]) -> dict[str, Any]:
    return {name: tensor.clone().requires_grad_() for name, tensor in tensors.items()}


def divergence_of(p: Tensor, q: Tensor, divergence: str, beta: float) -> Tensor:
    def kl(of: Tensor, to: Tensor) -> Tensor:
        return (torch.xlogy(of, of) - torch.xlogy(of, to)).sum(-1)

    mixture = beta * q + (1 - beta) * p
    return {
        "forward": lambda: kl(q, p),
        "reverse": lambda: kl(p, q),
        "jensen-shannon": lambda: beta * kl(q, mixture) + (1 - beta) * kl(p, mixture),
    }[divergence]()


def textbook(
    student_input: Tensor,
    student_weight: Tensor,
    teacher_input: Tensor | None = None,
    teacher_weight: Tensor | None = None,
    *,
    student_bias: Tensor | None = None,
    teacher_bias: Tensor | None = None,
    teacher_logits: Tensor | None = None,
    teacher_top_k: Any = None,
    top_k_rest: str | None = None,
    divergence: str = "forward",
    beta: float = 0.5,
    temperature: float = 1.0,
    temperature_squared: bool = False,
    target: Tensor | None = None,
    ignore_index: int = -100,
    sample_weight: Tensor | None = None,
    reduction: str = "mean",
    normalizer: Tensor | float | None = None,
    student_logit_scale: float = 1.0,
    student_logit_softcap: float | None = None,
    teacher_logit_scale: float = 1.0,
    teacher_logit_softcap: float | None = None,
) -> Tensor:
    """The definition, on all logits and probabilities at once."""

    def logits(x: Tensor, weight: Tensor, bias: Tensor | None, scale: float, cap: float | None) -> Tensor:
        y = F.linear(x, weight, bias) * scale
        return y if cap is None else cap * torch.tanh(y / cap)

    y = logits(student_input, student_weight, student_bias, student_logit_scale, student_logit_softcap)
    p = (y / temperature).softmax(-1)
    if teacher_top_k is not None:
        values, indices = teacher_top_k
        if top_k_rest == "renormalize":
            q = torch.zeros_like(p).scatter(-1, indices, (values / temperature).softmax(-1))
        else:
            listed = p.gather(-1, indices)
            p = torch.cat([listed, 1 - listed.sum(-1, keepdim=True)], -1)
            q = torch.cat([values.exp(), 1 - values.exp().sum(-1, keepdim=True)], -1)
    else:
        if teacher_input is not None:
            assert teacher_weight is not None
            given = (teacher_input, teacher_weight, teacher_bias)
            teacher_logits = logits(*given, teacher_logit_scale, teacher_logit_softcap)
        assert teacher_logits is not None
        q = (teacher_logits / temperature).softmax(-1)
    losses = divergence_of(p, q, divergence, beta)
    losses = losses * temperature**2 if temperature_squared else losses
    weights = torch.ones_like(losses) if sample_weight is None else sample_weight.expand(losses.shape)
    weights = weights if target is None else weights * (target != ignore_index)
    if reduction == "none":
        return weights * losses
    total = (weights * losses).sum()
    return total if reduction == "sum" else total / (weights.sum() if normalizer is None else normalizer)


def number(losses: Tensor) -> Tensor:
    """One number, of 'none' with another factor for each loss."""
    return (losses * torch.arange(1, losses.numel() + 1, dtype=losses.dtype).reshape(losses.shape)).sum()


def compare(tensors: dict[str, Any], rtol: float = 1e-9, **options: Any) -> None:
    ours, theirs = leaves(tensors), leaves(tensors)
    given = {name: value for name, value in options.items() if name not in ("block_rows", "gradient")}
    loss, truth = linear_kl_div(**ours, **options), textbook(**theirs, **given)
    assert_close(loss, truth, rtol=rtol, atol=1e-12)
    found = torch.autograd.grad(number(loss), list(ours.values()))
    expected = torch.autograd.grad(number(truth), list(theirs.values()))
    assert_close(found, expected, rtol=rtol, atol=1e-12)


def possible(kind: str, divergence: str, temperature: float) -> bool:
    if kind == "renormalize":
        return divergence != "reverse"
    return kind != "merge" or temperature == 1


GRID = [
    pytest.param(divergence, kind, temperature, id=f"{divergence}-{kind}-{temperature}")
    for divergence, kind, temperature in itertools.product(DIVERGENCES, TEACHERS, (1.0, 2.5, 0.4))
    if possible(kind, divergence, temperature)
]


class TestAgainstThePlainFormula:
    @pytest.mark.parametrize(("divergence", "kind", "temperature"), GRID)
    def test_value_and_gradients(self, divergence: Divergence, kind: str, temperature: float) -> None:
        options = {"divergence": divergence, "temperature": temperature, **teacher(kind)}
        if divergence == "jensen-shannon":
            options["beta"] = 0.3
        weight = torch.linspace(0.2, 1.4, ROWS, dtype=torch.float64)
        for reduction, squared, gradient in itertools.product(
            ("mean", "sum", "none"), (False, True), ("forward", "backward")
        ):
            more = {"reduction": reduction, "temperature_squared": squared, "gradient": gradient, "block_rows": 3}
            compare(student(), **options, **more)
            compare({**student(), "sample_weight": weight}, **options, **more, target=IGNORED)

    @pytest.mark.parametrize("divergence", DIVERGENCES)
    def test_scale_and_soft_cap_of_each(self, divergence: Divergence) -> None:
        of_student = {"student_logit_scale": 0.7, "student_logit_softcap": 1.5}
        of_teacher = {"teacher_logit_scale": -1.3, "teacher_logit_softcap": 2.0}
        options = {"divergence": divergence, "temperature": 1.5}
        compare(student(), **options, **of_student, **of_teacher, **teacher("features"))
        compare(student(), **options, **of_student, **teacher("logits"))

    def test_a_normalizer(self) -> None:
        normalizer = torch.tensor(3.5, dtype=torch.float64)
        compare({**student(), "normalizer": normalizer}, **teacher("features"), target=IGNORED)

    def test_any_number_of_dimensions(self) -> None:
        tensors = student()
        logits, weight = normal(ROWS, CLASSES, seed=9), torch.rand(7, 1, dtype=torch.float64)
        x = tensors["student_input"]
        flat = linear_kl_div(**tensors, teacher_logits=logits, reduction="none")
        for shape in ((7, 1), (1, 7), (1, 7, 1)):
            found = linear_kl_div(
                x.reshape(*shape, FEATURES),
                tensors["student_weight"],
                student_bias=tensors["student_bias"],
                teacher_logits=logits.reshape(*shape, CLASSES),
                reduction="none",
            )
            assert_close(found, flat.reshape(shape))
        one = linear_kl_div(
            x[0], tensors["student_weight"], teacher_logits=logits[0], student_bias=tensors["student_bias"]
        )
        assert_close(one, flat[0])
        compare({**tensors, "sample_weight": weight.squeeze(1)}, teacher_logits=logits, reduction="none")

    def test_against_torch_where_torch_has_it(self) -> None:
        tensors, logits = student(), normal(ROWS, CLASSES, seed=9)
        log_p = F.linear(*tensors.values()).log_softmax(1)
        pairs: tuple[tuple[Any, str], ...] = (("mean", "batchmean"), ("sum", "sum"))
        for reduction, theirs in pairs:
            truth = F.kl_div(log_p, logits.log_softmax(1), reduction=theirs, log_target=True)
            assert_close(linear_kl_div(**tensors, teacher_logits=logits, reduction=reduction), truth)

    @pytest.mark.parametrize(("divergence", "kind"), in_turn(DIVERGENCES, {kind: (kind,) for kind in TEACHERS}))
    def test_derivatives_of_two_orders(self, divergence: Divergence, kind: str) -> None:
        if not possible(kind, divergence, 1.0):
            return
        tensors = {name: tensor.narrow(0, 0, 3)[..., :3] for name, tensor in student().items()}
        given = teacher(kind)
        if kind == "features":
            given = {name: value[:3] for name, value in given.items()}
        elif kind == "logits":
            given = {"teacher_logits": given["teacher_logits"][:3, :3]}
        else:
            given["teacher_top_k"] = (given["teacher_top_k"][0][:3], torch.tensor([[0, 2], [1, 0], [2, 1]]))
        tensors["sample_weight"] = torch.tensor([1.0, 0.7, 0.3], dtype=torch.float64)

        def loss(*values: Tensor) -> Tensor:
            named = dict(zip(tensors, values, strict=True))
            return linear_kl_div(**named, **given, divergence=divergence, block_rows=2)

        at = tuple(leaves(tensors).values())
        assert gradcheck(loss, at, check_forward_ad=True)
        assert gradgradcheck(loss, at)

    @pytest.mark.parametrize("divergence", DIVERGENCES)
    def test_second_derivative_where_both_are_equal(self, divergence: Divergence) -> None:
        """There the loss takes another branch on each side."""
        weight = normal(3, 2, seed=1)

        def ours(w: Tensor) -> Tensor:
            return linear_kl_div(torch.eye(2).double(), w, teacher_logits=weight.t().clone(), divergence=divergence)

        def plain(w: Tensor) -> Tensor:
            return divergence_of(w.t().softmax(1), weight.t().softmax(1), divergence, 0.5).mean()

        found, truth = torch.func.hessian(ours)(weight), torch.func.hessian(plain)(weight)
        assert found.abs().max() > 0.01
        assert_close(found, truth)


class TestDivergences:
    def test_beta_is_the_share_of_the_teacher(self) -> None:
        """By hand: q = (1, 0), p = (1/2, 1/2), m = β q + (1 - β) p."""
        beta = 0.25
        m = (beta + (1 - beta) / 2, (1 - beta) / 2)
        expected = beta * math.log(1 / m[0]) + (1 - beta) * (0.5 * math.log(0.5 / m[0]) + 0.5 * math.log(0.5 / m[1]))
        x, weight = torch.ones(1, 1).double(), torch.zeros(2, 1).double()
        logits = torch.tensor([[0.0, -INF]]).double()
        found = linear_kl_div(x, weight, teacher_logits=logits, divergence="jensen-shannon", beta=beta)
        assert found.item() == pytest.approx(expected, rel=1e-12)

    def test_its_limits_are_the_others(self) -> None:
        tensors, given = student(), teacher("features")
        limits: tuple[tuple[float, Divergence], ...] = ((1e-6, "forward"), (1 - 1e-6, "reverse"))
        for beta, limit in limits:
            found = linear_kl_div(**tensors, **given, divergence="jensen-shannon", beta=beta) / 1e-6
            assert_close(found, linear_kl_div(**tensors, **given, divergence=limit), rtol=1e-3, atol=0)

    def test_what_is_symmetric(self) -> None:
        a, b = student(0), student(5)

        def loss(one: dict[str, Any], other: dict[str, Any], **options: Any) -> Tensor:
            return linear_kl_div(
                *(one["student_input"], one["student_weight"], other["student_input"], other["student_weight"]),
                student_bias=one["student_bias"],
                teacher_bias=other["student_bias"],
                **options,
            )

        assert_close(loss(a, b, divergence="jensen-shannon"), loss(b, a, divergence="jensen-shannon"))
        assert_close(loss(a, b, divergence="forward"), loss(b, a, divergence="reverse"))

    def test_at_a_high_temperature_logits_are_matched(self) -> None:
        """Hinton et al., equation 4: with T² the gradient tends to that of a mean square of centred logits."""
        tensors, logits = leaves(student()), normal(ROWS, CLASSES, seed=9)
        loss = linear_kl_div(**tensors, teacher_logits=logits, temperature=1e4, temperature_squared=True)
        y = F.linear(*tensors.values())
        centred = (y - y.mean(1, keepdim=True)) - (logits - logits.mean(1, keepdim=True))
        expected = centred.square().sum(1).mean() / (2 * CLASSES)
        assert_close(loss, expected, rtol=1e-3, atol=0)
        found = torch.autograd.grad(loss, list(tensors.values()))
        assert_close(found, torch.autograd.grad(expected, list(tensors.values())), rtol=1e-3, atol=1e-4)


class TestTopK:
    @pytest.mark.parametrize("divergence", DIVERGENCES)
    @pytest.mark.parametrize("rest", ["merge", "renormalize"])
    def test_of_all_classes_is_the_whole(self, divergence: Divergence, rest: TopKRest) -> None:
        if not possible(rest, divergence, 1.0):
            return
        logits = normal(ROWS, CLASSES, seed=9)
        ours, theirs = leaves(student()), leaves(student())
        pair = logits.log_softmax(1).topk(CLASSES, 1)
        loss = linear_kl_div(**ours, teacher_top_k=(pair.values, pair.indices), top_k_rest=rest, divergence=divergence)
        truth = linear_kl_div(**theirs, teacher_logits=logits, divergence=divergence)
        # What 14 digits of the teacher's probabilities leave of 1.
        tolerance: dict[str, Any] = (
            {"rtol": 1e-9, "atol": 1e-11} if rest == "renormalize" else {"rtol": 1e-6, "atol": 1e-9}
        )
        if divergence != "reverse":
            assert_close(loss, truth, **tolerance)
            found = torch.autograd.grad(loss, list(ours.values()))
            assert_close(found, torch.autograd.grad(truth, list(theirs.values())), **tolerance)
        assert torch.isfinite(loss)

    def test_of_k_plus_1_classes_is_at_most_that_of_all(self) -> None:
        logits = normal(ROWS, CLASSES, seed=9)
        for divergence in DIVERGENCES:
            whole = linear_kl_div(**student(), teacher_logits=logits, divergence=divergence, reduction="none")
            before = torch.zeros(())
            for k in range(1, CLASSES):
                pair = logits.log_softmax(1).topk(k, 1)
                found = linear_kl_div(
                    **student(), teacher_top_k=(pair.values, pair.indices), divergence=divergence, reduction="none"
                )
                assert (found >= before - 1e-12).all()
                assert (found <= whole + 1e-12).all()
                before = found

    @pytest.mark.parametrize("rest", ["merge", "renormalize"])
    def test_entries_of_minus_infinity_are_none(self, rest: TopKRest) -> None:
        values, indices = normal(ROWS, CLASSES, seed=9).log_softmax(1).topk(K, 1)
        longer = (F.pad(values, (1, 2), value=-INF), F.pad(indices, (1, 2), value=-1))
        again = (longer[0], longer[1].masked_fill(longer[1] == -1, int(indices[0, 0])))
        for order in (1, 2):
            expected = None
            for pair in ((values, indices), longer, again):
                tensors = leaves(student())
                loss = linear_kl_div(**tensors, teacher_top_k=pair, top_k_rest=rest, divergence="jensen-shannon")
                found = torch.autograd.grad(loss, list(tensors.values()), create_graph=order == 2)
                if order == 2:
                    found = torch.autograd.grad(found[1].square().sum(), list(tensors.values()))
                expected = expected or (loss, found)
                assert_close((loss, found), expected)

    def test_a_student_that_is_sure_keeps_its_digits(self) -> None:
        """What the student gives to all other classes is summed, not the difference from 1."""
        x, weight = torch.ones(1, 1), torch.tensor([[60.0], [0.0], [1.0], [2.0]], requires_grad=True)
        top = (torch.tensor([[math.log(0.5)]]), torch.tensor([[0]]))
        loss = linear_kl_div(x, weight, teacher_top_k=top)
        others = np.exp(np.array([0.0, 1.0, 2.0]) - 60)
        p = others.sum() / (1 + others.sum())
        assert loss.item() == pytest.approx(0.5 * math.log(0.5) + 0.5 * math.log(0.5 / p), rel=1e-6)
        (gradient,) = torch.autograd.grad(loss, weight)
        assert_close(gradient[1:, 0], torch.from_numpy(-0.5 * others / others.sum()).float())
        assert gradient[0].item() == pytest.approx(0.5)


class TestEqualDistributions:
    @pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
    @pytest.mark.parametrize("divergence", DIVERGENCES)
    @pytest.mark.parametrize("temperature", [1.0, 3.0])
    def test_exactly_nothing(self, dtype: torch.dtype, divergence: Divergence, temperature: float) -> None:
        x, weight, bias = (tensor.to(dtype) for tensor in student().values())
        for create_graph in (False, True):
            own = [x.clone().requires_grad_(), weight.clone().requires_grad_(), bias.clone().requires_grad_()]
            loss = linear_kl_div(
                own[0],
                own[1],
                *(x, weight),
                student_bias=own[2],
                teacher_bias=bias,
                divergence=divergence,
                temperature=temperature,
            )
            assert loss.item() == 0
            assert not any(g.any() for g in torch.autograd.grad(loss, own, create_graph=create_graph))

    @pytest.mark.parametrize("divergence", DIVERGENCES)
    def test_close_ones_keep_their_digits(self, divergence: Divergence) -> None:
        """The plain formula's rounding is of first order in the difference, the loss of second."""
        classes = 500
        z = 3 * normal(20, classes).float()
        y = z + 1e-3 * normal(20, classes, seed=1).float()
        log_p, log_q = y.log_softmax(1), z.log_softmax(1)
        truth = divergence_of(y.double().softmax(1), z.double().softmax(1), divergence, 0.5)
        found = linear_kl_div(y, torch.eye(classes), teacher_logits=z, divergence=divergence, reduction="none")
        error = ((found - truth) / truth).abs().max()
        assert error < 2e-3
        if divergence == "forward":
            plain = (log_q.exp() * (log_q - log_p)).sum(1)
            assert ((plain - truth) / truth).abs().max() > 20 * error

    @pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
    def test_never_negative(self, dtype: torch.dtype) -> None:
        classes = 300
        for seed, size, divergence in itertools.product(range(3), (1.0, 1e-2, 1e-4), DIVERGENCES):
            z = normal(50, classes, seed=seed).to(dtype)
            y = (z.float() + size * normal(50, classes, seed=seed + 9)).to(dtype)
            found = linear_kl_div(
                y,
                torch.eye(classes, dtype=dtype),
                teacher_logits=z,
                divergence=divergence,
                reduction="none",
                loss_dtype=torch.float32,
            )
            assert (found >= -1e-3 * size * 2**-24).all()


def rows_of_logits(y: list[float], z: list[float], divergence: Divergence) -> tuple[float, list[float], list[float]]:
    """Loss and gradient of one row of logits, by the kernels and as a function that is derived again."""
    x, weight = torch.ones(1, 1).double(), torch.tensor(y).double().unsqueeze(1).requires_grad_()
    logits = torch.tensor([z]).double()
    loss = linear_kl_div(x, weight, teacher_logits=logits, divergence=divergence)
    (gradient,) = torch.autograd.grad(loss, weight)
    again = linear_kl_div(x, weight, teacher_logits=logits, divergence=divergence)
    (followed,) = torch.autograd.grad(again, weight, create_graph=True)
    return loss.item(), gradient.flatten().tolist(), followed.detach().flatten().tolist()


class TestCorners:
    @pytest.mark.parametrize("divergence", DIVERGENCES)
    def test_a_class_that_both_rule_out_is_as_if_absent(self, divergence: Divergence) -> None:
        loss, gradient, followed = rows_of_logits([1.0, -INF, 0.0], [0.5, -INF, 2.0], divergence)
        expected = rows_of_logits([1.0, 0.0], [0.5, 2.0], divergence)
        assert loss == pytest.approx(expected[0], rel=1e-12)
        for found in (gradient, followed):
            assert [found[0], found[2]] == pytest.approx(expected[1], rel=1e-12)
            assert found[1] == 0

    def test_a_class_that_only_the_student_rules_out(self) -> None:
        y, z = [1.0, -INF, 0.0], [0.5, 1.0, 2.0]
        p, q = torch.tensor(y).double().softmax(0), torch.tensor(z).double().softmax(0)
        loss, *gradients = rows_of_logits(y, z, "forward")
        assert loss == INF
        for gradient in gradients:
            assert gradient == pytest.approx((p - q).tolist(), rel=1e-12)
        for divergence in ("reverse", "jensen-shannon"):
            loss, *gradients = rows_of_logits(y, z, divergence)
            assert loss == pytest.approx(divergence_of(p, q, divergence, 0.5).item(), rel=1e-12)
            assert all(gradient[1] == 0 and all(map(math.isfinite, gradient)) for gradient in gradients)

    def test_a_class_that_only_the_teacher_rules_out(self) -> None:
        y, z = [1.0, 0.3, 0.0], [0.5, -INF, 2.0]
        p, q = torch.tensor(y).double().softmax(0), torch.tensor(z).double().softmax(0)
        for divergence in ("forward", "jensen-shannon"):
            loss, *gradients = rows_of_logits(y, z, divergence)
            logits = torch.tensor(y).double().requires_grad_()
            truth = divergence_of(logits.softmax(0), q, divergence, 0.5)
            assert loss == pytest.approx(truth.item(), rel=1e-12)
            (expected,) = torch.autograd.grad(truth, logits)
            for gradient in gradients:
                assert gradient == pytest.approx(expected.tolist(), rel=1e-12)
        loss, gradient, _ = rows_of_logits(y, z, "reverse")
        assert loss == INF
        assert math.isnan(gradient[1])
        assert torch.isinf(divergence_of(p, q, "reverse", 0.5))

    @pytest.mark.parametrize("value", [math.nan, INF])
    @pytest.mark.parametrize("divergence", DIVERGENCES)
    def test_what_is_no_number_stays_none(self, value: float, divergence: Divergence) -> None:
        for y, z in (([1.0, value], [0.0, 1.0]), ([0.0, 1.0], [1.0, value])):
            loss, gradient, _ = rows_of_logits(y, z, divergence)
            assert math.isnan(loss)
            assert all(map(math.isnan, gradient))

    @pytest.mark.parametrize(
        ("way", "divergence", "kind", "bad"),
        in_turn(
            ("target", "sample_weight", "mask"),
            {
                f"{divergence}-{kind}-{bad}": (divergence, kind, bad)
                for divergence, kind, bad in itertools.product(DIVERGENCES, TEACHERS, (math.nan, INF))
            },
        ),
    )
    def test_ignored_rows_leave_no_trace(self, divergence: Divergence, kind: str, way: str, bad: float) -> None:
        if not possible(kind, divergence, 1.0):
            return
        ignored = IGNORED == -100
        given = teacher(kind)
        rows = {"teacher_input", "teacher_logits"} & set(given)
        tensors = student()
        kept_student = {**tensors, "student_input": tensors["student_input"][~ignored]}
        if rows:
            kept = {name: value[~ignored] if name in rows else value for name, value in given.items()}
            spoilt = {name: value.clone() for name, value in given.items()}
            for name in rows:
                spoilt[name][ignored] = bad
        else:
            values, indices = (value.clone() for value in given["teacher_top_k"])
            kept = {**given, "teacher_top_k": (values[~ignored], indices[~ignored])}
            values[ignored], indices[ignored] = bad, 10**6
            spoilt = {**given, "teacher_top_k": (values, indices)}
        marks: dict[str, Any] = {
            "target": {"target": IGNORED},
            "sample_weight": {"sample_weight": (~ignored).double()},
            "mask": {"sample_weight": ~ignored},
        }[way]
        tensors["student_input"][ignored] = bad
        for reduction, order in itertools.product(("mean", "sum", "none"), (1, 2)):
            options = {"divergence": divergence, "reduction": reduction, "block_rows": 2}
            ours, theirs = leaves(tensors), leaves(kept_student)
            loss = linear_kl_div(**ours, **spoilt, **marks, **options)
            truth = linear_kl_div(**theirs, **kept, **options)
            if reduction == "none":
                assert not loss[ignored].any()
                assert_close(loss[~ignored], truth)
            else:
                assert_close(loss, truth)
            found = torch.autograd.grad(loss.sum(), list(ours.values()), create_graph=order == 2)
            expected = torch.autograd.grad(truth.sum(), list(theirs.values()))
            assert not found[0][ignored].any()
            assert_close((found[0][~ignored], *found[1:]), expected)
            if order == 2:
                again = torch.autograd.grad(found[1].square().sum(), list(ours.values()))
                assert all(gradient.isfinite().all() for gradient in again)

    def test_a_weight_of_0_has_the_loss_as_its_derivative(self) -> None:
        weight = torch.tensor([1.0, 0, 2, 0, 1, 1, 1], dtype=torch.float64)
        compare({**student(), "sample_weight": weight}, **teacher("logits"), reduction="sum")

    @pytest.mark.parametrize("rows", [0, ROWS])
    def test_nothing_to_average_over(self, rows: int) -> None:
        target = torch.full((rows,), -100)
        for empty, reduction in itertools.product(("nan", "zero"), ("mean", "sum", "none")):
            tensors = leaves({**student(), "student_input": student()["student_input"][:rows]})
            given = {"teacher_logits": normal(rows, CLASSES), "target": target, "empty": empty, "reduction": reduction}
            loss = linear_kl_div(**tensors, **given)
            if reduction == "mean":
                assert math.isnan(loss.item()) == (empty == "nan")
            else:
                assert not loss.any()
            assert not any(g.any() for g in torch.autograd.grad(loss.sum(), list(tensors.values())))

    @pytest.mark.parametrize("divergence", DIVERGENCES)
    @pytest.mark.parametrize("temperature", [1e-3, 30.0, 300.0])
    def test_extreme_temperatures_in_float32(self, divergence: Divergence, temperature: float) -> None:
        y, z = normal(20, 50), normal(20, 50, seed=1)
        truth = divergence_of((y / temperature).softmax(1), (z / temperature).softmax(1), divergence, 0.5)
        if temperature < 1:
            # As the plain formula has it of probabilities that are too small for a float64.
            log_p, log_q = (y / temperature).log_softmax(1), (z / temperature).log_softmax(1)
            p, q = log_p.exp(), log_q.exp()
            if divergence != "jensen-shannon":
                of, log_of, log_to = (q, log_q, log_p) if divergence == "forward" else (p, log_p, log_q)
                truth = (of * (log_of - log_to)).sum(1)
        found = linear_kl_div(
            y.float(),
            torch.eye(50),
            teacher_logits=z.float(),
            divergence=divergence,
            temperature=temperature,
            reduction="none",
        )
        assert_close(found.double(), truth, rtol=1e-3 if temperature > 1 else 1e-4, atol=0)
        weight = torch.eye(50).requires_grad_()
        loss = linear_kl_div(
            y.float(), weight, teacher_logits=z.float(), divergence=divergence, temperature=temperature
        )
        assert torch.autograd.grad(loss, weight)[0].isfinite().all()


class TestTeacher:
    @pytest.mark.parametrize("kind", TEACHERS)
    def test_is_a_constant(self, kind: str) -> None:
        given = teacher(kind)
        if kind in ("merge", "renormalize"):
            values, indices = given["teacher_top_k"]
            followed = [values.requires_grad_()]
            given["teacher_top_k"] = (values, indices)
        else:
            followed = [value.requires_grad_() for value in given.values()]
        for gradient in ("forward", "backward"):
            tensors = leaves(student())
            linear_kl_div(**tensors, **given, gradient=gradient).backward()
            assert all(tensor.grad is None for tensor in followed)
            assert all(tensor.grad is not None for tensor in tensors.values())
        assert not linear_kl_div(**student(), **given).requires_grad

    def test_that_shares_the_weight_gives_it_the_students_gradient_only(self) -> None:
        tensors = leaves(student())
        weight, x = tensors["student_weight"], tensors["student_input"]
        loss = linear_kl_div(x, weight, x + 1, weight)
        other = linear_kl_div(x, weight, x + 1, weight.detach().clone())
        assert_close(torch.autograd.grad(loss, (x, weight)), torch.autograd.grad(other, (x, weight)))

    @pytest.mark.parametrize("kind", ["features", "logits"])
    def test_may_have_another_dtype(self, kind: str) -> None:
        given = {name: value.bfloat16() for name, value in teacher(kind).items()}
        tensors = {name: tensor.float() for name, tensor in student().items()}
        wide: dict[str, Any] = {name: value.double() for name, value in given.items()}
        if kind == "features":
            wide = {"teacher_logits": F.linear(*given.values()).double()}
        found, truth = linear_kl_div(**tensors, **given), textbook(**student(), **wide)
        assert found.dtype == torch.float32
        assert_close(found.double(), truth, rtol=1e-5, atol=0)

    def test_in_float64_is_compared_in_float64(self) -> None:
        x, weight = torch.tensor([[1.0]]), torch.tensor([[1.0], [0.0]])
        logits = torch.tensor([[1.0 + 1e-12, 0.0]], dtype=torch.float64)
        loss = linear_kl_div(x, weight, teacher_logits=logits)
        assert loss.dtype == torch.float32
        assert loss.item() == pytest.approx(0.5 * 1e-24 * 0.7310586 * 0.2689414, rel=1e-3)


class TestPrecision:
    @pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
    @pytest.mark.parametrize("divergence", DIVERGENCES)
    def test_no_further_from_the_truth_than_the_plain_formula(self, dtype: torch.dtype, divergence: Divergence) -> None:
        x, weight, z = (
            normal(64, 32).to(dtype),
            (0.3 * normal(200, 32, seed=1)).to(dtype),
            normal(64, 200, seed=2).to(dtype),
        )

        def plain(x: Tensor, weight: Tensor, z: Tensor) -> Tensor:
            """Of the logits in float32, as trainers write it."""
            log_p, log_q = (x @ weight.t()).float().log_softmax(1), z.float().log_softmax(1)
            if x.dtype == torch.float64:
                log_p, log_q = (x @ weight.t()).log_softmax(1), z.log_softmax(1)
            if divergence == "jensen-shannon":
                log_m = torch.logaddexp(log_p, log_q) - math.log(2)
                both = (log_p.exp() * (log_p - log_m) + log_q.exp() * (log_q - log_m)) / 2
                return both.sum(1).mean()
            of, to = (log_q, log_p) if divergence == "forward" else (log_p, log_q)
            return (of.exp() * (of - to)).sum(1).mean()

        def ours(x: Tensor, weight: Tensor, z: Tensor) -> Tensor:
            return linear_kl_div(
                x, weight, teacher_logits=z, divergence=divergence, block_rows=16, loss_dtype=torch.float32
            )

        def run(loss: Callable[..., Tensor], to: torch.dtype) -> tuple[Tensor, ...]:
            own = (x.to(to).requires_grad_(), weight.to(to).requires_grad_())
            found = loss(*own, z.to(to))
            return found.detach().double(), *(g.double() for g in torch.autograd.grad(found, own))

        truth = run(plain, torch.float64)
        for found, theirs, true in zip(run(ours, dtype), run(plain, dtype), truth, strict=True):
            unit = torch.finfo(dtype).eps * true.abs().max()
            assert (found - true).abs().max() <= 1.1 * (theirs - true).abs().max() + 0.25 * unit

    def test_the_gradient_of_one_of_many_rows_is_no_zero_in_float16(self) -> None:
        """Features are large enough for the product; what is multiplied with them, 1e-6 (p - q), is none of float16."""
        x, weight = torch.full((1, 1), 1e4).half(), torch.zeros(64, 1).half().requires_grad_()
        z = normal(1, 64).half()
        loss = linear_kl_div(x, weight, teacher_logits=z, normalizer=1e6, loss_dtype=torch.float32)
        (found,) = torch.autograd.grad(loss, weight)
        expected = 1e-2 * (1 / 64 - z.double().softmax(1))
        assert_close(found.double(), expected.t(), rtol=2e-3, atol=1e-7)

    def test_autocast(self) -> None:
        tensors = {name: tensor.float() for name, tensor in leaves(student()).items()}
        given = {name: value.float() for name, value in teacher("features").items()}
        with torch.autocast("cpu", torch.bfloat16):
            loss = linear_kl_div(**tensors, **given)
            y = F.linear(*tensors.values())
            z = F.linear(given["teacher_input"], given["teacher_weight"], given["teacher_bias"])
        assert loss.dtype == torch.float32
        assert y.dtype == torch.bfloat16
        truth = divergence_of(y.double().softmax(1), z.double().softmax(1), "forward", 0.5).mean()
        assert_close(loss.double(), truth, rtol=1e-5, atol=0)

    def test_gradients_have_the_same_bits_by_either_way(self) -> None:
        tensors = {name: tensor.bfloat16() for name, tensor in student().items()}
        found = []
        for gradient in ("forward", "backward"):
            own = leaves(tensors)
            loss = linear_kl_div(**own, teacher_logits=normal(ROWS, CLASSES), gradient=gradient, block_rows=3)
            found.append(torch.autograd.grad(0.3 * loss, list(own.values())))
        assert_close(found[0], found[1], rtol=0, atol=0)


class TestCost:
    @pytest.mark.parametrize(
        "case", ["mean", "teacher's features", "k largest", "none", "second derivative", "forward mode"]
    )
    def test_never_all_logits(self, case: str) -> None:
        rows, features, classes, block_rows = 1024, 8, 4096, 32
        x = torch.randn(rows, features, requires_grad=True)
        weight = torch.randn(classes, features, requires_grad=True)
        given: dict[str, Any] = {"teacher_input": torch.randn(rows, 4), "teacher_weight": torch.randn(classes, 4)}
        if case == "k largest":
            values, indices = torch.randn(rows, 16).log_softmax(1), torch.rand(rows, classes).topk(16, 1).indices
            given = {"teacher_top_k": (values, indices)}
        options: dict[str, Any] = {"block_rows": block_rows, "divergence": "jensen-shannon", **given}
        if case == "none":
            options["reduction"] = "none"

        def call() -> object:
            if case == "forward mode":
                loss = lambda w: linear_kl_div(x.detach(), w, **options)  # noqa: E731
                return torch.func.jvp(loss, (weight.detach(),), (weight.detach(),))
            loss = linear_kl_div(x, weight, **options).sum()
            first = torch.autograd.grad(loss, (x, weight), create_graph=case == "second derivative")
            return torch.autograd.grad(first[1].square().sum(), (x, weight)) if case == "second derivative" else first

        block, gradients, logits = 4 * block_rows * classes, 4 * (rows + classes) * features, 4 * rows * classes
        peak = peak_bytes(call)
        few = case in ("second derivative", "forward mode")
        assert block <= peak <= (0.95 * logits if few else 16 * block + 8 * gradients)
        assert 16 * block + 8 * gradients < 0.6 * logits

    def test_products_that_nobody_asked_for_are_left_out(self) -> None:
        of_student, of_teacher = ROWS * FEATURES * CLASSES, ROWS * TEACHER_FEATURES * CLASSES
        given = teacher("features")
        for wanted, count in ((STUDENT, 3), (STUDENT[:1], 2), (STUDENT[1:2], 2), (STUDENT[2:], 1), ((), 1)):
            tensors = {name: tensor.requires_grad_(name in wanted) for name, tensor in student().items()}
            for one, also in ((given, of_teacher), (teacher("logits"), 0)):

                def call(tensors: Any = tensors, one: Any = one, wanted: Any = wanted) -> None:
                    loss = linear_kl_div(**tensors, **one, block_rows=3)
                    if wanted:
                        loss.backward()

                assert multiplications(call) == count * of_student + also, wanted
        counted = int((IGNORED != -100).sum())
        found = multiplications(lambda: linear_kl_div(**leaves(student()), **given, target=IGNORED).backward())
        assert found == (3 * of_student + of_teacher) * counted // ROWS

    @pytest.mark.parametrize("kind", ["features", "logits"])
    def test_the_operations_it_names_are_those_of_its_products(self, kind: str) -> None:
        given, tensors = teacher(kind), student()
        tensors.pop("student_bias")
        given.pop("teacher_bias", None)
        order = ("teacher_input", "teacher_logits", "teacher_weight")
        shapes = [tuple(t.shape) for t in tensors.values()] + [None] * 3
        shapes += [tuple(given[name].shape) for name in order if name in given] + [None] * 4
        for wanted in ((), STUDENT[:1], STUDENT[:2]):
            own = {name: tensor.requires_grad_(name in wanted) for name, tensor in student().items() if name in tensors}
            options = Options(gradients=sum(1 << STUDENT.index(name) for name in wanted))
            loss: list[Tensor] = []
            found = multiplications(lambda own=own, loss=loss: loss.append(linear_kl_div(**own, **given)))
            assert LinearKLDivergence.flops(shapes, options) == 2 * found, wanted

    def test_the_counter_of_operations_knows_them(self) -> None:
        of_student, of_teacher = ROWS * FEATURES * CLASSES, ROWS * TEACHER_FEATURES * CLASSES
        with FlopCounterMode(display=False) as counter:
            loss = linear_kl_div(**leaves(student()), **teacher("features"))
        assert counter.get_total_flops() == 2 * (of_student + of_teacher)
        with FlopCounterMode(display=False) as counter:
            loss.backward()
        # A mode that looks on has no gradients come along with the loss: the logits of both again, and two products.
        assert counter.get_total_flops() == 2 * (3 * of_student + of_teacher)


class TestModes:
    def test_training_compiled(self) -> None:
        tensors, given = student(), teacher("features")
        torch.compiler.reset()

        def step(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
            return linear_kl_div(x, weight, **given, student_bias=bias, temperature=2.0, block_rows=3)

        ours, theirs = leaves(tensors), leaves(tensors)
        loss = torch.compile(step, fullgraph=True, backend="aot_eager")(*ours.values())
        truth = textbook(**theirs, **given, temperature=2.0)
        assert_close(loss, truth)
        found = torch.autograd.grad(loss, list(ours.values()))
        assert_close(found, torch.autograd.grad(truth, list(theirs.values())))
        torch.compiler.reset()

    @pytest.mark.parametrize("kind", ["features", "merge"])
    def test_exported_with_a_batch_of_any_size(self, kind: str) -> None:
        given = teacher(kind)
        row_tensors = given.pop("teacher_top_k", None) or (given.pop("teacher_input"),)

        class Distilled(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.loss = LinearKLDivLoss(FEATURES, CLASSES, dtype=torch.float64)
                self.teacher_weight = given.get("teacher_weight")

            def forward(self, x: Tensor, *rows: Tensor) -> Tensor:
                if kind == "merge":
                    return self.loss(x, teacher_top_k=rows)
                return self.loss(x, rows[0], self.teacher_weight)

        module, x = Distilled(), student()["student_input"]
        dynamic = tuple({0: torch.export.Dim.AUTO} for _ in range(1 + len(row_tensors)))
        arguments = (x, *row_tensors)
        program = torch.export.export(module, arguments, dynamic_shapes=(dynamic[0], dynamic[1:]), strict=False)
        doubled = tuple(torch.cat([tensor, tensor.flip(0)]) for tensor in arguments)
        exported = program.module()
        assert_close(exported(*doubled), module(*doubled))
        found = torch.autograd.grad(exported(*doubled), list(exported.parameters()))
        assert_close(found, torch.autograd.grad(module(*doubled), list(module.parameters())))

    def test_mapped_over_rows_of_both(self) -> None:
        tensors, logits = student(), normal(3, ROWS, CLASSES, seed=9)
        x = normal(3, ROWS, FEATURES, seed=8)
        pair = logits.log_softmax(-1).topk(K, -1)
        rows: tuple[Any, ...]
        for rows in ((logits,), (pair.values, pair.indices)):

            def given(*teacher: Any) -> dict[str, Any]:
                return {"teacher_logits": teacher[0]} if len(teacher) == 1 else {"teacher_top_k": teacher}

            def one(x: Tensor, *teacher: Any, given: Any = given) -> Tensor:
                return linear_kl_div(x, tensors["student_weight"], **given(*teacher))

            found = torch.func.vmap(torch.func.grad_and_value(one))(x, *rows)
            for i in range(3):
                leaf = x[i].clone().requires_grad_()
                truth = textbook(leaf, tensors["student_weight"], **given(*(of_rows[i] for of_rows in rows)))
                assert_close(found[1][i], truth)
                assert_close(found[0][i], torch.autograd.grad(truth, leaf)[0])


class TestModule:
    def test_of_an_existing_layer_shares_it(self) -> None:
        layer = nn.Linear(FEATURES, CLASSES, dtype=torch.float64)
        module = LinearKLDivLoss.of(layer, divergence="reverse", temperature=2.0)
        assert module.linear is layer
        x, given = student()["student_input"], teacher("features")
        expected = textbook(x, layer.weight, **given, student_bias=layer.bias, divergence="reverse", temperature=2.0)
        assert_close(module(x, **given), expected)

    def test_takes_what_the_function_takes(self) -> None:
        module = LinearKLDivLoss(FEATURES, CLASSES, bias=True, dtype=torch.float64, ignore_index=3)
        x, weight = student()["student_input"], torch.rand(ROWS, dtype=torch.float64)
        layer = (x, module.linear.weight)
        for kind in ("logits", "merge"):
            given = {name: value for name, value in teacher(kind).items() if name != "top_k_rest"}
            more = {"target": IGNORED, "sample_weight": weight, "normalizer": 2.5}
            expected = textbook(*layer, **given, **more, ignore_index=3, student_bias=module.linear.bias)
            assert_close(module(x, **given, **more), expected)

    def test_copies_and_speaks_for_itself(self) -> None:
        module = LinearKLDivLoss(
            FEATURES, CLASSES, divergence="jensen-shannon", beta=0.1, temperature=2, student_logit_softcap=5.0
        ).double()
        x, given = student()["student_input"], teacher("features")
        for other in (copy.deepcopy(module), pickle.loads(pickle.dumps(module))):
            assert_close(other(x, **given), module(x, **given), rtol=0, atol=0)
        assert list(module.state_dict()) == ["linear.weight"]
        assert repr(module).splitlines()[1].strip() == (
            "in_features=4, num_classes=6, bias=False, divergence='jensen-shannon', beta=0.1, temperature=2.0, "
            "reduction='mean', student_logit_softcap=5.0"
        )

    def test_trains(self) -> None:
        torch.manual_seed(0)
        teacher_layer = nn.Linear(12, 20)
        module = LinearKLDivLoss(8, 20, bias=True, temperature=2.0, temperature_squared=True)
        x = torch.randn(64, 12)
        optimizer = torch.optim.SGD(module.parameters(), lr=1.0)
        losses = []
        for _ in range(60):
            loss = module(x[:, :8], x, teacher_layer.weight, teacher_bias=teacher_layer.bias)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
        assert losses[-1] < 0.6 * losses[0]
        assert teacher_layer.weight.grad is None

    @pytest.mark.parametrize(
        "option",
        [
            {"reduction": "batchmean"},
            {"divergence": "x"},
            {"beta": 0.2},
            {"temperature": 0.0},
            {"student_logit_softcap": -1.0},
            {"teacher_logit_scale": INF},
            {"block_rows": 0},
            {"empty": "x"},
        ],
    )
    def test_errors_come_when_it_is_made(self, option: dict[str, Any]) -> None:
        with pytest.raises(ValueError, match=next(iter(option))):
            LinearKLDivLoss(FEATURES, CLASSES, **option)


TOP = (torch.full((7, 2), -1.0).double(), torch.tensor([[0, 1]] * 7))
LOGITS: dict[str, Any] = {"teacher_logits": torch.zeros(7, 6).double()}
BOTH: dict[str, Any] = {"teacher_input": torch.zeros(7, 3).double(), "teacher_weight": torch.zeros(6, 3).double()}


class TestErrors:
    @pytest.mark.parametrize(
        ("change", "error", "message"),
        [
            ({}, ValueError, "expected one of teacher_input, teacher_logits, teacher_top_k, but got none"),
            ({**LOGITS, **BOTH}, ValueError, "but got teacher_input and teacher_logits"),
            ({**LOGITS, "teacher_top_k": TOP}, ValueError, "but got teacher_logits and teacher_top_k"),
            ({"teacher_input": BOTH["teacher_input"]}, ValueError, "teacher_input needs teacher_weight"),
            (
                {**LOGITS, "teacher_weight": BOTH["teacher_weight"]},
                ValueError,
                "teacher_weight belong to teacher_input, but the teacher was given as teacher_logits",
            ),
            ({**LOGITS, "teacher_logit_scale": 2.0}, ValueError, "teacher_logit_scale belong to teacher_input"),
            ({**LOGITS, "top_k_rest": "merge"}, ValueError, "top_k_rest='merge' belongs to teacher_top_k"),
            (
                {"teacher_top_k": TOP, "temperature": 2.0},
                ValueError,
                r"not how much at temperature=2.0: give them as log_softmax\(logits / temperature\)",
            ),
            (
                {"teacher_top_k": TOP, "top_k_rest": "renormalize", "divergence": "reverse"},
                ValueError,
                "divergence='reverse' is infinite: use top_k_rest='merge'",
            ),
            ({"teacher_top_k": TOP, "top_k_rest": "drop"}, ValueError, "'drop' is not a valid value for top_k_rest"),
            ({"teacher_top_k": TOP[0]}, TypeError, r"must be a pair \(values, indices\), but got Tensor"),
            ({"teacher_top_k": (TOP[0], TOP[0])}, RuntimeError, "expected integer indices in teacher_top_k"),
            ({"teacher_top_k": (TOP[0], TOP[1][:, :1])}, ValueError, r"one shape, but got \(7, 2\) and \(7, 1\)"),
            (
                {"teacher_top_k": (TOP[0][:3], TOP[1][:3])},
                ValueError,
                r"teacher_top_k of shape \(7, k\), with a row for",
            ),
            (
                {"teacher_top_k": (TOP[0] + 2, TOP[1])},
                ValueError,
                r"log-probabilities, whose exponentials sum to at most 1, but in a row they sum to 5\.4",
            ),
            ({"teacher_top_k": (TOP[0], TOP[1] * 0)}, ValueError, "index 0 stands more than once in row 0"),
            (
                {"teacher_top_k": (TOP[0], TOP[1] + 5)},
                IndexError,
                "index 6 at entry 1 of row 0 of teacher_top_k is out",
            ),
            ({**LOGITS, "divergence": "kl"}, ValueError, "'kl' is not a valid value for divergence: expected one of"),
            ({**LOGITS, "beta": 0.3}, ValueError, "beta=0.3 is the teacher's share .* but divergence is 'forward'"),
            (
                {**LOGITS, "beta": 1.0, "divergence": "jensen-shannon"},
                ValueError,
                "beta must be between 0 and 1, both excluded, but got 1.0",
            ),
            (
                {**LOGITS, "reduction": "batchmean"},
                ValueError,
                "reduction='mean' divides the sum by the number of rows",
            ),
            ({**LOGITS, "reduction": "avg"}, ValueError, "'avg' is not a valid value for reduction"),
            ({**LOGITS, "temperature": 0.0}, ValueError, "temperature must be positive and finite, but got 0.0"),
            ({**LOGITS, "temperature": "a"}, TypeError, "temperature must be a float"),
            ({**LOGITS, "student_logit_softcap": 0.0}, ValueError, "student_logit_softcap must be positive and finite"),
            ({**LOGITS, "normalizer": 2.0, "reduction": "sum"}, ValueError, "normalizer is what reduction='mean'"),
            ({**LOGITS, "block_rows": 0}, ValueError, "block_rows must be at least 1, but got 0"),
            ({**LOGITS, "empty": "inf"}, ValueError, "'inf' is not a valid value for empty"),
            ({**LOGITS, "sample_weight": 2.0}, TypeError, "sample_weight must be a Tensor, but got float"),
            ({**LOGITS, "sample_weight": torch.ones(3)}, ValueError, r"sample_weight must broadcast to .* \(7,\)"),
            ({**LOGITS, "target": torch.ones(3).long()}, ValueError, r"expected a target of shape \(7,\)"),
            ({**LOGITS, "target": torch.ones(7)}, RuntimeError, "of an integer dtype, but got Float; a mask goes"),
            ({"teacher_logits": torch.zeros(7, 5)}, ValueError, r"teacher_logits of shape \(7, 6\), .* one vocabulary"),
            (
                {"teacher_logits": torch.zeros(5, 6)},
                ValueError,
                r"teacher_logits of shape \(7, 6\), with a row for each",
            ),
            ({"teacher_logits": torch.zeros(7, 6).long()}, RuntimeError, "floating-point teacher_logits, but got Long"),
            ({"teacher_logits": [0.0]}, TypeError, "teacher_logits must be a Tensor, but got list"),
            (
                {**BOTH, "teacher_weight": torch.zeros(5, 3).double()},
                ValueError,
                "teacher_weight to have the 6 classes of student_weight, but it has 5. Where one vocabulary is padded",
            ),
            (
                {**BOTH, "teacher_weight": torch.zeros(6, 4).double()},
                RuntimeError,
                r"teacher_input of shape \(..., 4\)",
            ),
            (
                {**BOTH, "teacher_weight": torch.zeros(6, 3)},
                RuntimeError,
                "teacher_input and teacher_weight to have the",
            ),
            ({**BOTH, "teacher_bias": torch.zeros(3).double()}, RuntimeError, r"teacher_bias of shape \(6,\)"),
            (
                {**BOTH, "teacher_input": torch.zeros(5, 3).double()},
                ValueError,
                r"teacher_input of shape \(7, features\)",
            ),
            (
                {**LOGITS, "student_weight": torch.zeros(6, 3).double()},
                RuntimeError,
                r"student_input of shape \(..., 3\)",
            ),
            ({**LOGITS, "student_weight": torch.zeros(6, 4)}, RuntimeError, "student_input and student_weight to have"),
            (
                {**LOGITS, "student_weight": torch.zeros(6).double()},
                RuntimeError,
                r"student_weight of shape \(classes, f",
            ),
            ({**LOGITS, "student_bias": torch.zeros(5).double()}, RuntimeError, r"student_bias of shape \(6,\)"),
            ({**LOGITS, "student_input": torch.zeros(7, 4).long()}, NotImplementedError, "Long student_input"),
            ({**LOGITS, "student_input": None}, TypeError, "student_input must be a Tensor, but got NoneType"),
        ],
    )
    def test_name_what_was_given_and_what_was_expected(
        self, change: dict[str, Any], error: type[Exception], message: str
    ) -> None:
        with pytest.raises(error, match=message):
            linear_kl_div(**{**student(), **change})

    def test_a_tensor_subclass_may_take_over(self) -> None:
        class Marked(Tensor):
            @classmethod
            def __torch_function__(cls, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
                return function.__name__, sorted(kwargs)[:2]

        logits = normal(ROWS, CLASSES).as_subclass(Marked)
        found = linear_kl_div(**student(), teacher_logits=logits)
        assert found == ("linear_kl_div", ["beta", "block_rows"])
        assert torchlosses.functional.linear_kl_div is linear_kl_div
