"""Are the numbers right: against a reference, in low precision, and at the edges of the input."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator

import torch
from torch import Tensor
from torch.nn.functional import one_hot

from torchlosses.testing.audit import Audit, Subject
from torchlosses.testing.comparing import expect, expect_close, expect_finite
from torchlosses.testing.kinds import Case
from torchlosses.testing.registry import Failure, NotApplicable, check


def with_trait(trait: str, reason: str, cases: Callable[[Audit], list[Case]]) -> Callable[[Audit], list[Case]]:
    """The cases of a kind that has a property; for others the check does not apply, for the reason."""

    def select(audit: Audit) -> list[Case]:
        if trait not in audit.kind.traits:
            raise NotApplicable(f"a loss of kind {audit.kind.name}: {reason}")
        return cases(audit)

    return select


def truth_of(audit: Audit, case: Case, names: list[str]) -> tuple[Tensor, tuple[Tensor, ...]]:
    """Loss and gradients in float64: of the reference where it takes the case, else of the loss itself."""
    return audit.value_and_gradients(case.to(torch.float64), _judge(audit, case), names)


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


@check("values.runs", _runnable)
def runs(audit: Audit, case: Case) -> None:
    """A loss must give a floating-point tensor for the inputs of its kind before anything else can be said of it."""
    loss = audit.loss(case)
    expect(loss.dtype == case.dtype, "another dtype came out", loss.dtype, case.dtype, "a constant of another dtype")
    expect(not loss.requires_grad, "the loss of constants requires grad", True, False, "the loss has parameters")
    if loss.dim():
        expect(case.options.get("reduction") not in ("mean", "sum"), "not reduced", loss, "one number", "the reduction")


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
    expect_close(
        audit.loss(case), expected, "the value differs from the reference's", "the formula, or how an option enters it"
    )


@check("values.reference_gradients", _against_reference)
def gradients_equal_reference(audit: Audit, case: Case) -> None:
    """Training follows the gradient, not the value."""
    _reference_value(audit, case)
    names = _names(audit, case)
    _, expected = audit.value_and_gradients(case, audit.reference, names)
    _, got = audit.value_and_gradients(case, names=names)
    for name, mine, theirs in zip(names, got, expected, strict=True):
        summary = f"the gradient by {name} differs from the reference's"
        expect_close(mine, theirs, summary, "the backward, or a missing factor in it")


def _in_dtype(dtype: torch.dtype, rows: int, classes: int) -> Callable[[Audit], list[Case]]:
    return lambda audit: [case.to(dtype) for case in audit.cases(rows=rows, classes=classes, few=True)]


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
        expect_finite(got, f"{name}: not finite in {case.dtype}", "an overflow, or a logarithm of 0, in a narrow type")
        smallest = torch.finfo(case.dtype).tiny * torch.finfo(case.dtype).eps
        allowed = tolerance * float(expected.abs().max()) + 2 * smallest
        if reference is not None:
            allowed = max(allowed, 1.1 * float((reference[position].double() - expected).abs().max()))
        what = name if not position else f"the gradient by {name}"
        summary = f"{what} is off by more than rounding in {case.dtype}"
        expect_close(got, expected, summary, "sums or differences taken in a narrow type", rtol=0, atol=allowed)


def _outcome(audit: Audit, case: Case, names: list[str]) -> tuple[Tensor, ...] | None:
    """What the reference gives in the dtype of the case; None where it cannot run in it."""
    try:
        value, gradients = audit.value_and_gradients(case, audit.reference, names)
    except Exception:
        return None
    every = (value, *gradients)
    return every if all(tensor.isfinite().all() for tensor in every) else None


def _large_float16(audit: Audit) -> Iterator[Case]:
    if audit.kind.name not in ("regression", "binary", "classification"):
        raise NotApplicable("no input with a large intermediate step is known for this kind")
    wide = audit.cases(reductions=("mean", None), without=("weight", "ignore_index", "linear_bias"), rows=4)
    for case in wide:
        spread = torch.zeros_like(case.tensors[audit.kind.primary])
        if "elementwise" in audit.kind.traits:
            spread[0, 0] = 300
        else:
            spread += 4e4 * (2.0 * _target_share(audit, case, audit.kind.primary) - 1).sign()
        yield case.with_tensors(**{audit.kind.primary: spread}).to(torch.float16)
    if "logits" in audit.kind.traits:
        for case in audit.cases(reductions=("mean", None), without=("weight", "ignore_index"), rows=2, classes=4000):
            flat = torch.full_like(case.tensors[audit.kind.primary], 5)
            yield case.with_tensors(**{audit.kind.primary: flat}).to(torch.float16)


def _target_share(audit: Audit, case: Case, like: str) -> Tensor:
    """1 where the target is most probable, else 0, in the shape of the logits."""
    target = case.tensors["target"]
    index = target.argmax(1) if target.is_floating_point() else target
    return one_hot(index, case.tensors[like].shape[1]).double()


@check(
    "values.float16_range",
    with_trait("free", "its input has no wide range", lambda audit: list(_large_float16(audit))),
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
    largest = max(1e-3, float(expected_gradient.abs().max()))
    summary = "the gradient leaves the range of float16"
    expect_close(gradient, expected_gradient, summary, cause, rtol=0.01, atol=0.01 * largest)


def _scaled(audit: Audit) -> list[Case]:
    name = audit.kind.primary
    plain = audit.cases(few=True)
    # Both signs: what the one is right about, the other is wrong about.
    found = [case.with_tensors(**{name: case.tensors[name] * scale}) for case in plain for scale in (1e4, -1e4)]
    return [case.to(dtype) for case in found for dtype in (torch.float32, torch.float64)]


@check("values.extreme_inputs", with_trait("free", "its inputs are bounded", _scaled))
def extreme_inputs_are_finite(audit: Audit, case: Case) -> None:
    """Logits of 1e4 occur in training; one nan ends it."""
    names = [audit.kind.primary]
    value, (gradient,) = audit.value_and_gradients(case, names=names)
    cause = "exp overflows, or log of a probability that is 0: take log_softmax, or subtract the maximum first"
    expect_finite(value, "finite inputs of about 1e4 give a loss that is not finite", cause)
    expect_finite(gradient, "finite inputs of about 1e4 give a gradient that is not finite", cause)
    if _judge(audit, case) is audit.reference:
        expected, (expected_gradient,) = truth_of(audit, case, names)
        summary = "extreme inputs: the value differs from the reference's"
        rtol, largest = 1e-5, float(expected.abs().max())
        expect_close(value, expected, summary, cause, rtol=rtol, atol=rtol * largest)
        summary = "extreme inputs: the gradient differs from the reference's"
        # A difference of two logits of 1e4 is rounded to 1e-3 in float32, and an exponential carries that over.
        expect_close(gradient, expected_gradient, summary, cause, rtol=5e-3, atol=5e-3)


def _confident(audit: Audit, margin: float, forms: tuple[str, ...] = ("indices", "labels")) -> list[Case]:
    """Inputs that are sure by `margin`: of the target where it is positive, against it where it is negative."""
    found = []
    plain = audit.cases(without=("weight", "ignore_index", "label_smoothing"), reductions=("sum", "mean", None))
    for case in plain:
        name = audit.kind.primary
        if case.form in forms and audit.kind.has_indices(case):
            sure = margin * _target_share(audit, case, name)
        elif case.form in forms:
            sure = margin * (case.tensors["target"] - 0.5)
        else:
            continue
        found.append(case.with_tensors(**{name: sure}))
    if not found:
        raise NotApplicable("the loss takes no hard targets")
    return found


def _has_scores(audit: Audit) -> None:
    if audit.kind.name not in ("classification", "binary"):
        raise NotApplicable("the input holds no scores of classes")


def _mistaken(audit: Audit) -> list[Case]:
    _has_scores(audit)
    return [case.to(torch.float32) for case in _confident(audit, -100.0)]


@check("values.confident_mistake", _mistaken)
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
    expect(bool(audit.loss(farther) > value * 1.2), summary, audit.loss(farther), f"well above {float(value):g}", cause)


def _right(audit: Audit) -> list[Case]:
    _has_scores(audit)
    return [case.to(torch.float32) for margin in (8.0, 20.0) for case in _confident(audit, margin)]


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
    expect_close(gradient, expected_gradient, summary, cause, rtol=1e-3, atol=1e-37)


def _with_masked_class(audit: Audit) -> list[Case]:
    found = []
    for case in audit.cases(without=("label_smoothing",)):
        column = torch.full((audit.kind.size(case), 1), -math.inf, dtype=torch.float64)
        tensors = {"input": torch.cat([case.tensors["input"], column], 1)}
        if case.tensors["target"].is_floating_point():
            tensors["target"] = torch.cat([case.tensors["target"], torch.zeros_like(column)], 1)
        masked = case.with_tensors(**tensors)
        if "weight" in case.options:
            masked = masked.with_options(weight=torch.cat([case.options["weight"], torch.ones(1).double()]))
        found.append(masked)
    return found


@check("values.masked_classes", with_trait("logits", "there are no logits to mask", _with_masked_class))
def masked_classes_count_for_nothing(audit: Audit, case: Case) -> None:
    """A class is masked out by a logit of -inf: then the loss is that of the other classes, and not nan."""
    masked = case.tensors["input"].isinf().all(0)
    if not masked.any() or masked.all():
        raise NotApplicable("needs a masked class and others")
    rest = audit.kind.take_classes(case, torch.nonzero(~masked).flatten())
    names = ["input"]
    value, (gradient,) = audit.value_and_gradients(case, names=names)
    if value.dim() > 1:
        raise NotApplicable("'none' does not give one loss a row")
    expected, (expected_gradient,) = audit.value_and_gradients(rest, names=names)
    cause = "0 · inf, or inf - inf, for the masked class"
    expect_close(value, expected, "a masked class changes the loss", cause)
    expect_close(gradient[:, ~masked], expected_gradient, "a masked class changes the gradient of the others", cause)
    zero = torch.zeros_like(gradient[:, masked])
    expect_close(gradient[:, masked], zero, "a masked class gets a gradient", cause, atol=1e-12)


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
    expect_finite(gradient, "one class gives a gradient that is not finite", "a division by C - 1")
    if _judge(audit, case) is audit.reference:
        expected, _ = truth_of(audit, case, names)
        expect_close(value, expected, "one class: the value differs from the reference's", "a special case", atol=1e-12)


def _many_classes(audit: Audit) -> list[Case]:
    _has_classes(audit)
    return [case.to(torch.float32) for case in audit.cases(rows=2, classes=20_000, few=True)]


@check("values.many_classes", _many_classes)
def many_classes_are_accurate(audit: Audit, case: Case) -> None:
    """Vocabularies have 1e5 classes: sums over them must not lose what a few classes keep."""
    _is_accurate(audit, case, 1e-4)


def _with_nan(audit: Audit) -> list[Case]:
    found = []
    for case in audit.cases(without=("ignore_index",), few=True):
        spoilt = case.tensors[audit.kind.primary].clone()
        spoilt.view(-1)[-1] = math.nan
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
