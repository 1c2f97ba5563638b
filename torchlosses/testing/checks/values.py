"""Are the numbers right: against a reference, in low precision, and at the edges of the input."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from torchlosses.testing.audit import SETTINGS, Audit, Subject, short
from torchlosses.testing.comparing import expect, expect_close, expect_finite, largest
from torchlosses.testing.kinds import Case
from torchlosses.testing.outcomes import MANNERS, UNSUPPORTED, WRONG_GRADIENT, WRONG_VALUE, Failure, NotApplicable
from torchlosses.testing.registry import check


def with_trait(trait: str, reason: str, cases: Callable[[Audit], list[Case]]) -> Callable[[Audit], list[Case]]:
    """The cases of a kind that has a property; for others the check does not apply, for the reason."""

    def select(audit: Audit) -> list[Case]:
        if trait not in audit.kind.traits:
            raise NotApplicable(f"a loss of kind {audit.kind.name}: {reason}")
        return cases(audit)

    return select


def truth_of(audit: Audit, case: Case, names: list[str]) -> tuple[Tensor, tuple[Tensor, ...]]:
    """Loss and gradients in float64: of the reference where it takes the case, else of the loss itself.

    Raises:
        NotApplicable: There is no such reference, and the loss computes in nothing wider than the case.
    """
    judge = _judge(audit, case)
    if judge is audit.reference:
        return audit.value_and_gradients(case.to(torch.float64), judge, names)
    if audit.eps >= torch.finfo(case.dtype).eps:
        raise NotApplicable(f"there is nothing wider to measure {short(case.dtype)} by: give a reference")
    return audit.value_and_gradients(case.to(audit.dtype), judge, names)


def _judge(audit: Audit, case: Case) -> Subject:
    if audit.reference is None:
        return audit.loss
    try:
        audit.reference(case.to(torch.float64))
    except Exception:
        return audit.loss
    return audit.reference


def _names(audit: Audit, case: Case) -> list[str]:
    """The primary argument and a floating-point target: what every reference can be differentiated by."""
    return [name for name in audit.differentiable(case) if name not in case.options]


def _runnable(audit: Audit) -> list[Case]:
    if audit.forms:
        return audit.cases(few=True)
    case = audit.kind.draw(next(iter(audit.kind.forms)))
    cause = "the kind does not fit the loss: name another one, or describe it with torchlosses.testing.Kind"
    summary, got = "the loss runs on no input of its kind", "; ".join(audit.notes)
    raise Failure(summary, got, "a floating-point tensor", cause, audit.call_text(case))


@check("values.runs", _runnable, UNSUPPORTED)
def runs(audit: Audit, case: Case) -> None:
    """A loss must give a floating-point tensor for the inputs of its kind before anything else can be said of it."""
    loss = audit.loss(case)
    cause = "a constant of another dtype, or a kernel that knows no other"
    expect(loss.dtype == case.dtype, "another dtype came out", loss.dtype, case.dtype, cause, MANNERS)
    cause = "the loss has parameters"
    expect(not loss.requires_grad, "the loss of constants requires grad", True, False, cause, MANNERS)
    if loss.dim():
        one = case.options.get("reduction") not in ("mean", "sum")
        expect(one, "not reduced", loss, "one number", "the reduction", WRONG_VALUE)


def _against_reference(audit: Audit) -> list[Case]:
    if audit.reference is None:
        raise NotApplicable("no reference was given")
    return audit.cases(tried=False)


def _reference_value(audit: Audit, case: Case) -> Tensor:
    assert audit.reference is not None
    try:
        return audit.reference(case)
    except Exception as error:
        raise NotApplicable(f"the reference refuses this: {error}") from error


@check("values.reference", _against_reference)
def equals_reference(audit: Audit, case: Case) -> None:
    """A replacement has to compute what it replaces, with every combination of options."""
    expected = _reference_value(audit, case)
    cause = "the formula, or how an option enters it"
    audit.expect_close(audit.loss(case), expected, "the value differs from the reference's", cause)


@check("values.reference_gradients", _against_reference, WRONG_GRADIENT)
def gradients_equal_reference(audit: Audit, case: Case) -> None:
    """Training follows the gradient, not the value."""
    _reference_value(audit, case)
    names = _names(audit, case)
    _, expected = audit.value_and_gradients(case, audit.reference, names)
    _, got = audit.value_and_gradients(case, names=names)
    for name, mine, theirs in zip(names, got, expected, strict=True):
        summary = f"the gradient by {name} differs from the reference's"
        audit.expect_gradient(mine, theirs, summary, "the backward, or a missing factor in it")


def _in_dtype(dtype: torch.dtype, rows: int, classes: int) -> Callable[[Audit], list[Case]]:
    return lambda audit: audit.in_dtype(audit.cases(rows=rows, classes=classes, few=True), dtype)


def _in_float64(audit: Audit) -> list[Case]:
    if torch.float64 not in audit.claimed:
        raise NotApplicable("float64 is not claimed: name it among the dtypes to hold the loss to it")
    return audit.cases(few=True)


@check("values.float64", _in_float64)
def float64_is_computed_in_float64(audit: Audit, case: Case) -> None:
    """Gradients are checked in float64: a loss that computes it in float32 has lost what it was asked for."""
    cause = "the input is cast, or a constant, a buffer or a kernel is in another dtype"
    got, expected = short(audit.computes_in), "float64"
    expect(got == expected, "float64 is computed in a narrower dtype", got, expected, cause)


@check("values.float32", _in_dtype(torch.float32, 16, 11))
def float32_is_accurate(audit: Audit, case: Case) -> None:
    """float32 is what nearly everyone trains in; its error must be that of rounding."""
    _is_accurate(audit, case, 64 * torch.finfo(torch.float32).eps)


@check("values.bfloat16", _in_dtype(torch.bfloat16, 512, 20))
def bfloat16_is_accurate(audit: Audit, case: Case) -> None:
    """bfloat16 has 8 bits: a loss that adds up in it is off by percents, and nobody notices."""
    _is_accurate(audit, case, 2 * torch.finfo(torch.bfloat16).eps)


@check("values.float16", _in_dtype(torch.float16, 512, 20))
def float16_is_accurate(audit: Audit, case: Case) -> None:
    """float16 has 11 bits and ends at 65504: sums belong into a wider type."""
    _is_accurate(audit, case, 2 * torch.finfo(torch.float16).eps)


def _is_accurate(audit: Audit, case: Case, tolerance: float) -> None:
    """The error is at most a few roundings, or that of the reference in the same dtype."""
    names = _names(audit, case)
    value, gradients = audit.value_and_gradients(case, names=names)
    truth = truth_of(audit, case, names)
    reference = None
    if audit.reference is not None and _judge(audit, case) is audit.reference:
        reference = _outcome(audit, case, names)
    for position, (name, got, expected) in enumerate(
        zip(["the loss", *names], (value, *gradients), (truth[0], *truth[1]), strict=True)
    ):
        severity = WRONG_GRADIENT if position else WRONG_VALUE
        cause = "an overflow, or a logarithm of 0, in a narrow type"
        expect_finite(got, f"{name}: not finite in {case.dtype}", cause, severity)
        smallest = torch.finfo(case.dtype).tiny * torch.finfo(case.dtype).eps
        allowed = tolerance * float(expected.abs().max()) + 2 * smallest
        if reference is not None:
            allowed = max(allowed, 1.1 * float((reference[position].double() - expected.double()).abs().max()))
        what = name if not position else f"the gradient by {name}"
        summary = f"{what} is off by more than rounding in {case.dtype}"
        cause = "sums or differences taken in a narrow type"
        expect_close(got, expected, summary, cause, rtol=0, atol=allowed, severity=severity)


def _outcome(audit: Audit, case: Case, names: list[str]) -> tuple[Tensor, ...] | None:
    """What the reference gives in the dtype of the case; None where it cannot run in it."""
    try:
        value, gradients = audit.value_and_gradients(case, audit.reference, names)
    except Exception:
        return None
    every = (value, *gradients)
    return every if all(tensor.isfinite().all() for tensor in every) else None


def _large_float16(audit: Audit) -> Iterator[Case]:
    if audit.kind.name not in ("regression", "binary", "classification", "language modelling"):
        raise NotApplicable("no input with a large intermediate step is known for this kind")
    name = audit.kind.primary
    without = tuple(option for option in SETTINGS if option != "label_smoothing")
    for case in audit.cases(reductions=("mean", None), without=without, rows=4):
        spread = torch.zeros_like(case.tensors[name])
        if "elementwise" in audit.kind.traits:
            spread[0, 0] = 300
        else:
            spread += 4e4 * (2.0 * audit.kind.target_share(case) - 1).sign()
        yield case.with_tensors(**{name: spread})
    if "logits" in audit.kind.traits:
        for case in audit.cases(reductions=("mean", None), without=without, rows=2, classes=4000):
            yield case.with_tensors(**{name: torch.full_like(case.tensors[name], 5)})


@check(
    "values.float16_range",
    with_trait(
        "free", "its input has no wide range", lambda audit: audit.in_dtype(_large_float16(audit), torch.float16)
    ),
)
def float16_does_not_overflow(audit: Audit, case: Case) -> None:
    """Where the inputs and the loss fit into float16, a step in between that does not makes it inf or nan."""
    names = [audit.kind.primary]
    value, (gradient,) = audit.value_and_gradients(case, names=names)
    expected, (expected_gradient,) = truth_of(audit, case, names)
    if not float(expected) < 6e4:
        raise NotApplicable("the loss itself is beyond float16")
    cause = "squares, differences or exponentials are kept in float16"
    expect_close(value, expected, "the loss leaves the range of float16", cause, rtol=0.01, atol=1e-3)
    atol = 0.01 * max(1e-3, largest(expected_gradient))
    summary = "the gradient leaves the range of float16"
    expect_close(gradient, expected_gradient, summary, cause, rtol=0.01, atol=atol, severity=WRONG_GRADIENT)


def _scaled(audit: Audit) -> list[Case]:
    name = audit.kind.primary
    plain = audit.cases(few=True)
    # Both signs: what the one is right about, the other is wrong about.
    found = [case.with_tensors(**{name: case.tensors[name] * scale}) for case in plain for scale in (1e4, -1e4)]
    return [*audit.in_training_dtype(found), *found]


@check("values.extreme_inputs", with_trait("free", "its inputs are bounded", _scaled))
def extreme_inputs_are_finite(audit: Audit, case: Case) -> None:
    """Logits of 1e4 occur in training; one nan ends it."""
    names = [audit.kind.primary]
    value, (gradient,) = audit.value_and_gradients(case, names=names)
    cause = "exp overflows, or log of a probability that is 0: take log_softmax, or subtract the maximum first"
    expect_finite(value, "finite inputs of about 1e4 give a loss that is not finite", cause)
    summary = "finite inputs of about 1e4 give a gradient that is not finite"
    expect_finite(gradient, summary, cause, WRONG_GRADIENT)
    if _judge(audit, case) is audit.reference:
        expected, (expected_gradient,) = truth_of(audit, case, names)
        summary = "extreme inputs: the value differs from the reference's"
        audit.expect_close(value, expected, summary, cause, rtol=1e-5, atol=1e-5 * largest(expected))
        summary = "extreme inputs: the gradient differs from the reference's"
        # A difference of two logits of 1e4 is rounded to 1e-3 in float32, and an exponential carries that over.
        severity = WRONG_GRADIENT
        audit.expect_close(gradient, expected_gradient, summary, cause, rtol=5e-3, atol=5e-3, severity=severity)


def _confident(audit: Audit, margin: float, forms: tuple[str, ...] = ("indices", "labels")) -> list[Case]:
    """Inputs that are sure by `margin`: of the target where it is positive, against it where it is negative."""
    found = []
    plain = audit.cases(without=SETTINGS, reductions=("sum", "mean", None))
    for case in plain:
        name = audit.kind.primary
        if case.form in forms and audit.kind.has_indices(case):
            sure = margin * audit.kind.target_share(case)
        elif case.form in forms:
            sure = margin * (case.tensors["target"] - 0.5)
        else:
            continue
        found.append(case.with_tensors(**{name: sure}))
    if not found:
        raise NotApplicable("the loss takes no hard targets")
    return found


def _has_scores(audit: Audit) -> None:
    if audit.kind.name not in ("classification", "binary", "language modelling"):
        raise NotApplicable("the input holds no scores of classes")


def _mistaken(audit: Audit) -> list[Case]:
    _has_scores(audit)
    return audit.in_training_dtype(_confident(audit, -100.0))


@check("values.confident_mistake", _mistaken, WRONG_GRADIENT)
def confident_mistakes_get_a_gradient(audit: Audit, case: Case) -> None:
    """A row that is confidently wrong is the one that has to be learnt from; a vanishing gradient leaves it wrong."""
    name = audit.kind.primary
    value, (gradient,) = audit.value_and_gradients(case, names=[name])
    cause = "the probability underflows before the logarithm: log(softmax + δ), or a square of a probability"
    expect_finite(gradient, "the gradient of a confident mistake is not finite", cause)
    summary = "the gradient of a confident mistake vanishes"
    expect(float(gradient.abs().max()) > 1e-4, summary, gradient, "a gradient of about 1 at the target", cause)
    farther = case.with_tensors(**{name: 2 * case.tensors[name]})
    summary = "the loss does not grow with the size of a mistake"
    grown = audit.loss(farther)
    expect(bool(grown > value * 1.2), summary, grown, f"well above {float(value):g}", cause, WRONG_VALUE)


def _right(audit: Audit) -> list[Case]:
    _has_scores(audit)
    return audit.in_dtype([case for margin in (8.0, 20.0) for case in _confident(audit, margin)], torch.float32)


@check("values.confident_tail", _right)
def confident_tail_keeps_digits(audit: Audit, case: Case) -> None:
    """Where a model is right and sure the loss is tiny, and 0 in its place means no gradient and no ranking of rows."""
    name = audit.kind.primary
    value, (gradient,) = audit.value_and_gradients(case, names=[name])
    expected, (expected_gradient,) = truth_of(audit, case, [name])
    if not float(expected) > 1e-37:
        raise NotApplicable("the loss is exactly 0 here")
    cause = "1 + tiny or 1 - p is rounded to 1 or 0: log1p and expm1 keep the digits"
    expect_close(value, expected, "the small loss of a confident row is lost", cause, rtol=1e-3, atol=0)
    summary = "the small gradient of a confident row is lost"
    severity = WRONG_GRADIENT
    expect_close(gradient, expected_gradient, summary, cause, rtol=1e-3, atol=1e-37, severity=severity)


def _with_masked_class(audit: Audit) -> list[Case]:
    found = []
    for case in audit.cases(without=("label_smoothing",)):
        changed = {}
        for name, dimension in audit.kind.class_dimensions(case).items():
            tensor = case.everything()[name]
            fill = {"input": -math.inf, "weight": 1.0}.get(name, 0.0)
            column = torch.full_like(tensor.narrow(dimension, 0, 1), fill)
            changed[name] = torch.cat([tensor, column], dimension)
        found.append(case.with_everything(changed))
    return found


@check("values.masked_classes", with_trait("logits", "there are no logits to mask", _with_masked_class))
def masked_classes_count_for_nothing(audit: Audit, case: Case) -> None:
    """A class is masked out by a logit of -inf: then the loss is that of the other classes, and not nan."""
    masked = case.tensors["input"].isinf().movedim(audit.kind.classes["input"], -1).flatten(0, -2).all(0)
    if not masked.any() or masked.all():
        raise NotApplicable("needs a masked class and others")
    rest = audit.kind.take_classes(case, torch.nonzero(~masked).flatten())
    names = ["input"]
    value, (gradient,) = audit.value_and_gradients(case, names=names)
    if value.dim() and value.numel() == case.tensors["input"].numel():
        raise NotApplicable("'none' gives a loss for each class")
    expected, (expected_gradient,) = audit.value_and_gradients(rest, names=names)
    cause = "0 · inf, or inf - inf, for the masked class"
    audit.expect_close(value, expected, "a masked class changes the loss", cause)
    by_class = gradient.movedim(audit.kind.classes["input"], -1)
    expected_by_class = expected_gradient.movedim(audit.kind.classes["input"], -1)
    summary = "a masked class changes the gradient of the others"
    audit.expect_gradient(by_class[..., ~masked], expected_by_class, summary, cause)
    of_masked = by_class[..., masked]
    summary = "a masked class gets a gradient"
    audit.expect_gradient(of_masked, torch.zeros_like(of_masked), summary, cause, atol=1e-12)


def _has_classes(audit: Audit) -> None:
    if not audit.kind.classes or "elementwise" in audit.kind.traits:
        raise NotApplicable("the kind has no classes")


def _one_class(audit: Audit) -> list[Case]:
    _has_classes(audit)
    return audit.cases(classes=1, few=True)


@check("values.one_class", _one_class)
def one_class_is_finite(audit: Audit, case: Case) -> None:
    """One class is the smallest problem, and the one that shapes are squeezed away in."""
    names = [audit.kind.primary]
    value, (gradient,) = audit.value_and_gradients(case, names=names)
    expect_finite(value, "one class gives a loss that is not finite", "a division by C - 1, or a squeezed dimension")
    expect_finite(gradient, "one class gives a gradient that is not finite", "a division by C - 1", WRONG_GRADIENT)
    if _judge(audit, case) is audit.reference:
        expected, _ = truth_of(audit, case, names)
        summary = "one class: the value differs from the reference's"
        audit.expect_close(value, expected, summary, "a special case", atol=1e-12)


def _many_classes(audit: Audit) -> list[Case]:
    _has_classes(audit)
    return audit.in_dtype(audit.cases(rows=2, classes=20_000, few=True), torch.float32)


@check("values.many_classes", _many_classes)
def many_classes_are_accurate(audit: Audit, case: Case) -> None:
    """Vocabularies have 1e5 classes: sums over them must not lose what a few classes keep."""
    _is_accurate(audit, case, 1e-4)


def _with_nan(audit: Audit) -> list[Case]:
    found = []
    for case in audit.cases(without=("ignore_index",), few=True):
        spoilt = case.tensors[audit.kind.primary].clone()
        spoilt.view(-1)[0] = math.nan
        found.append(case.with_tensors(**{audit.kind.primary: spoilt}))
    return found


@check("values.nan_is_shown", _with_nan)
def nan_is_shown(audit: Audit, case: Case) -> None:
    """A nan in the input says that the model is broken: a loss that hides it lets training go on."""
    if not case.tensors[audit.kind.primary].isnan().any():
        raise NotApplicable("the input holds no nan")
    try:
        value = audit.loss(case)
    except Exception:
        return  # An error shows it too.
    cause = "nan_to_num, clamp or a comparison hides it"
    expect(bool(value.isnan().any()), "a nan in the input is hidden", value, "nan", cause)
