"""What holds for every loss of a kind, whatever its formula."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from torchlosses.testing.audit import Audit, direction, supported
from torchlosses.testing.checks.values import with_trait
from torchlosses.testing.comparing import expect, expect_equal, expect_finite, largest
from torchlosses.testing.kinds import IGNORED, Case
from torchlosses.testing.outcomes import WRONG_GRADIENT, NotApplicable
from torchlosses.testing.registry import check


def _reduced(audit: Audit) -> list[Case]:
    if "none" not in audit.reductions or len(audit.reductions) == 1:
        raise NotApplicable("the loss has no reduction 'none' beside another one")
    return audit.cases(reductions=("mean", "sum"))


@check("laws.reductions_agree", _reduced)
def reductions_agree(audit: Audit, case: Case) -> None:
    """sum is the sum of none, and mean its sum over the number, or the weight, of the rows that count."""
    losses = audit.loss(case.with_options(reduction="none"))
    if case.options.get("reduction") == "sum":
        audit.expect_close(
            audit.loss(case), losses.sum(), "'sum' is not the sum of 'none'", "a factor, or a row left out"
        )
        return
    count = audit.denominator(case, losses)
    if not count:
        raise NotApplicable("no row counts")
    expected = losses.sum() / count
    cause = "the mean divides by the wrong count: of all rows, ignored ones too, or of rows where weights count"
    audit.expect_close(audit.loss(case), expected, "'mean' is not the sum of 'none' over what counts", cause)


def _with_ignored_rows(audit: Audit) -> list[Case]:
    cases = audit.cases(needs=("ignore_index",))
    # The ignored number may be that of a class.
    name = audit.kind.indices[0]
    others = []
    for case in cases:
        target = case.tensors[name].masked_fill(case.tensors[name] == IGNORED, 1)
        others.append(case.with_tensors(**{name: target}).with_options(ignore_index=1))
    return cases + others


def _ignored(audit: Audit, case: Case) -> Tensor:
    """Which rows are ignored; there must be some, and others."""
    if "ignore_index" not in case.options:
        raise NotApplicable("no row is ignored")
    ignored = audit.kind.ignored_rows(case)
    if not ignored.any() or ignored.all():
        raise NotApplicable("needs ignored rows and others")
    return ignored


@check("laws.ignored_row_is_a_removed_row", _with_ignored_rows)
def ignored_row_is_a_removed_row(audit: Audit, case: Case) -> None:
    """Padding must not train: a batch with ignored rows has the loss and gradient of the batch without them."""
    ignored = _ignored(audit, case)
    _rows_count_for_nothing(audit, case, ignored, "an ignored row", "the mask misses a term or the count")


def _rows_count_for_nothing(audit: Audit, case: Case, without: Tensor, what: str, cause: str) -> None:
    removed = audit.kind.take_rows(case, torch.nonzero(~without).flatten())
    names = [audit.kind.primary]
    value, (gradient,) = audit.value_and_gradients(case, names=names)
    expected, (expected_gradient,) = audit.value_and_gradients(removed, names=names)
    if value.dim():
        losses = audit.kind.by_row(case, value)
        others = audit.kind.by_row(removed, expected)
        zero = torch.zeros_like(losses[without])
        audit.expect_close(losses[without], zero, f"{what} has a loss", cause, atol=1e-12)
        audit.expect_close(losses[~without], others, f"{what} changes the losses of others", cause)
        return
    audit.expect_close(value, expected, f"{what} changes the loss", cause, atol=1e-14)
    summary = f"{what} changes the gradient of others"
    audit.expect_gradient(gradient[~without], expected_gradient, summary, cause, atol=1e-14)
    zero = torch.zeros_like(gradient[without])
    audit.expect_gradient(gradient[without], zero, f"{what} has a gradient", cause, atol=1e-14)


def _poisoned(audit: Audit) -> list[Case]:
    found = []
    for case in audit.cases(needs=("ignore_index",), few=True):
        for poison in (math.nan, math.inf):
            spoilt = case.tensors[audit.kind.primary].clone()
            spoilt[_ignored(audit, case)] = poison
            found.append(case.with_tensors(**{audit.kind.primary: spoilt}))
    return found


@check("laws.ignored_row_may_hold_anything", _poisoned)
def ignored_row_may_hold_anything(audit: Audit, case: Case) -> None:
    """Padding rows hold garbage, nan and inf too: 0 · nan is nan, so they must be left out and not multiplied away."""
    ignored = _ignored(audit, case)
    if case.tensors[audit.kind.primary][ignored].isfinite().all():
        raise NotApplicable("the ignored rows are finite")
    cause = "the ignored row is multiplied by 0, and not left out"
    _rows_count_for_nothing(audit, case, ignored, "an ignored row that holds nan or inf", cause)


def _all_ignored(audit: Audit) -> list[Case]:
    name = audit.kind.indices[0] if audit.kind.indices else ""
    cases = audit.cases(needs=("ignore_index",))
    return [case.with_tensors(**{name: torch.full_like(case.tensors[name], IGNORED)}) for case in cases]


@check("laws.all_rows_ignored", _all_ignored)
def all_rows_ignored(audit: Audit, case: Case) -> None:
    """A batch of padding alone: its sum is 0, its mean nan or 0, and its gradient 0, or the weights become nan."""
    if "ignore_index" not in case.options:
        raise NotApplicable("no row is ignored")
    value, (gradient,) = audit.value_and_gradients(case, names=[audit.kind.primary])
    cause = "0/0 in the mean reaches the gradient"
    if case.options.get("reduction") in ("sum", "none"):
        audit.expect_close(value, torch.zeros_like(value), "rows that are all ignored have a loss", cause, atol=1e-12)
    zero = torch.zeros_like(gradient)
    audit.expect_gradient(gradient, zero, "rows that are all ignored have a gradient that is not 0", cause, atol=1e-12)


def _weightless(audit: Audit) -> list[Case]:
    found = []
    for case in audit.cases(needs=("weight",), without=("label_smoothing", "ignore_index")):
        weight = case.options["weight"].clone()
        if "elementwise" in audit.kind.traits:
            weight[:1] = 0
        elif audit.kind.has_indices(case):
            weight[audit.kind.judged(case)[0]] = 0
        else:
            continue
        found.append(case.with_options(weight=weight))
    if not found:
        raise NotApplicable("the loss has no weight for rows or for class indices")
    return found


@check("laws.weight_zero_is_a_removed_row", _weightless)
def weight_zero_is_a_removed_row(audit: Audit, case: Case) -> None:
    """A weight of 0 takes rows out, of the sum and of what the mean divides by."""
    weight = case.options.get("weight")
    if weight is None:
        raise NotApplicable("there is no weight")
    if "elementwise" in audit.kind.traits:
        without = (weight == 0).all(1)
        if case.options.get("reduction") == "mean" and not audit.divides_by_weights:
            raise NotApplicable("the mean divides by the number of elements")
    else:
        judged = weight[audit.kind.judged(case)]
        without = (judged == 0).reshape(len(judged), -1).all(1)
    if not without.any() or without.all():
        raise NotApplicable("needs rows of weight 0 and others")
    _rows_count_for_nothing(audit, case, without, "a row of weight 0", "the mean counts rows and not their weights")


def _unit_weight(audit: Audit) -> list[Case]:
    found = []
    for name in audit.weights or ["weight"]:
        cases = audit.cases(needs=(name,))
        found += [case.with_options(**{name: torch.ones_like(case.options[name])}) for case in cases]
    return found


@check("laws.weights_of_one_are_no_weights", _unit_weight)
def weights_of_one_are_no_weights(audit: Audit, case: Case) -> None:
    """Weights that are all 1 must change nothing, under any other option."""
    ones = [name for name in audit.weights if name in case.options and bool((case.options[name] == 1).all())]
    if not ones:
        raise NotApplicable("there is no weight")
    cause = "the weighted branch has another formula or another denominator"
    for name in ones:
        _equal(audit, case, case.without_option(name), f"a {name} of ones changes", cause)


def _with_positive_weight(audit: Audit) -> list[Case]:
    return audit.cases(needs=("pos_weight",), without=("label_smoothing",), reductions=("none",))


@check("laws.pos_weight_scales_the_positives", _with_positive_weight)
def pos_weight_scales_the_positives(audit: Audit, case: Case) -> None:
    """Rare positives are made to count: by pos_weight times the share of the positive label, the rest by 1."""
    positive_weight = case.options.get("pos_weight")
    if positive_weight is None:
        raise NotApplicable("there is no pos_weight")
    plain, target = case.without_option("pos_weight"), case.tensors["target"]
    positive = audit.loss(plain.with_tensors(target=torch.ones_like(target)))
    negative = audit.loss(plain.with_tensors(target=torch.zeros_like(target)))
    expected = positive_weight * target * positive + (1 - target) * negative
    cause = "the weight enters the negative term too, or the target that it multiplies is another one"
    audit.expect_close(audit.loss(case), expected, "pos_weight does not scale the positive term", cause, atol=1e-12)


def _equal(audit: Audit, case: Case, other: Case, summary: str, cause: str) -> None:
    names = [audit.kind.primary]
    value, (gradient,) = audit.value_and_gradients(case, names=names)
    expected, (expected_gradient,) = audit.value_and_gradients(other, names=names)
    audit.expect_close(value, expected, f"{summary} the loss", cause, atol=1e-12)
    audit.expect_gradient(gradient, expected_gradient, f"{summary} the gradient", cause, atol=1e-12)


def _with_rows(audit: Audit) -> list[Case]:
    if not audit.kind.rows:
        raise NotApplicable("the kind has no rows")
    return audit.cases(rows=6)


@check("laws.micro_batches_add_up", _with_rows)
def micro_batches_add_up(audit: Audit, case: Case) -> None:
    """Gradient accumulation splits a batch: the parts, weighted by what each mean divides by, make the whole."""
    reduction = case.options.get("reduction") or _default_reduction(audit, case)
    rows = torch.arange(audit.kind.size(case), device=audit.device)
    if len(rows) < 3:
        raise NotApplicable("too few rows to split")
    parts = [audit.kind.take_rows(case, some) for some in (rows[:2], rows[2:])]
    values, gradients = [], []
    for part in (case, *parts):
        call, (leaf,) = audit.function(part, names=[audit.kind.primary])
        loss = call(leaf)
        count = _count(audit, part) if reduction == "mean" else loss.new_ones(())
        if not count.isfinite() or not count:
            raise NotApplicable("a part has no row that counts")
        total = loss * count if reduction == "mean" else loss
        values.append(total.detach())
        gradients.append(torch.autograd.grad(total.sum(), leaf)[0])
    cause = "rows influence each other, or the mean divides by something else than the rows that count"
    whole = torch.cat(values[1:]) if values[0].dim() else values[1] + values[2]
    audit.expect_close(whole, values[0], "micro-batches do not add up to the batch", cause, atol=1e-12)
    if audit.kind.primary in audit.kind.rows:
        parts_gradient = torch.cat(gradients[1:])
        summary = "the gradients of micro-batches do not add up"
        audit.expect_gradient(parts_gradient, gradients[0], summary, cause, atol=1e-12)


def _count(audit: Audit, case: Case) -> Tensor:
    if "reduction" in case.options and "none" in audit.reductions:
        losses = audit.loss(case.with_options(reduction="none"))
    else:
        losses = case.tensors[audit.kind.primary].new_zeros(audit.kind.size(case))
    return audit.denominator(case, losses)


def _default_reduction(audit: Audit, case: Case) -> str:
    """What a loss without the option does, judged by a batch that is repeated."""
    value = audit.loss(case)
    if value.dim():
        return "none"
    rows = torch.arange(audit.kind.size(case), device=audit.device)
    repeated = audit.loss(audit.kind.take_rows(case, torch.cat([rows, rows])))
    for reduction, factor in (("mean", 1.0), ("sum", 2.0)):
        if torch.allclose(repeated, factor * value, rtol=max(1e-6, 16 * audit.eps)):
            return reduction
    raise NotApplicable("the loss of a batch is neither the mean nor the sum of its rows' losses")


@check("laws.rows_may_be_permuted", _with_rows)
def rows_may_be_permuted(audit: Audit, case: Case) -> None:
    """The order of the samples in a batch means nothing."""
    order = torch.arange(audit.kind.size(case), device=audit.device).flip(0)
    permuted = audit.kind.take_rows(case, order)
    names = [audit.kind.primary]
    value, (gradient,) = audit.value_and_gradients(case, names=names)
    other, (other_gradient,) = audit.value_and_gradients(permuted, names=names)
    cause = "a row is treated by its position"
    if value.dim():
        losses, others = audit.kind.by_row(case, value), audit.kind.by_row(permuted, other)
        audit.expect_close(others, losses[order], "permuting the rows does not permute the losses", cause)
        return
    audit.expect_close(other, value, "permuting the rows changes the loss", cause)
    expected = gradient[order] if audit.kind.primary in audit.kind.rows else gradient
    summary = "permuting the rows does not permute the gradient"
    audit.expect_gradient(other_gradient, expected, summary, cause, atol=1e-12)


@check(
    "laws.classes_may_be_permuted",
    with_trait("symmetric", "its columns are not alike", lambda audit: audit.cases(without=("ignore_index",))),
)
def classes_may_be_permuted(audit: Audit, case: Case) -> None:
    """The numbering of the classes means nothing, as long as weights and targets follow it."""
    order = torch.arange(audit.kind.number_of_classes(case), device=audit.device).roll(1)
    permuted = audit.kind.take_classes(case, order)
    value = audit.loss(case)
    if value.dim() > 1 and value.shape[-1] == audit.kind.number_of_classes(case):
        raise NotApplicable("'none' gives a loss for each class")
    cause = "a class is treated by its number, or a weight is looked up by position"
    audit.expect_close(audit.loss(permuted), value, "permuting the classes changes the loss", cause)


@check(
    "laws.logits_may_be_shifted",
    with_trait("logits", "there are no unnormalised scores", lambda audit: audit.cases(few=True)),
)
def logits_may_be_shifted(audit: Audit, case: Case) -> None:
    """Softmax does not see a number that is added to a whole row: a loss on logits must not either, however large."""
    cause = "the maximum is not subtracted first, or the input is no logit"
    for shift in (5.0, -1000.0, 1000.0):
        shifted = case.with_tensors(input=case.tensors["input"] + shift)
        value = audit.loss(shifted)
        expect_finite(value, "a shift of the logits makes the loss infinite or nan", cause)
        # A large logit is rounded to more than a small one.
        atol = max(1e-10, 8 * abs(shift) * audit.eps)
        summary = "a shift of the logits changes the loss"
        audit.expect_close(value, audit.loss(case), summary, cause, rtol=1e-9, atol=atol)


@check("laws.one_hot_is_an_index", lambda audit: audit.cases(without=("ignore_index",)))
def one_hot_is_an_index(audit: Audit, case: Case) -> None:
    """A class index is a probability of 1: both forms of a target must give one loss and one gradient."""
    if not audit.kind.indices or not audit.kind.has_indices(case) or len(audit.forms) < 2:
        raise NotApplicable("the loss does not take both class indices and class probabilities")
    if case.options.get("reduction") == "mean" and "weight" in case.options:
        raise NotApplicable("the mean divides by weights for indices, and by rows for probabilities")
    name = audit.kind.indices[0]
    target = torch.nn.functional.one_hot(case.tensors[name], audit.kind.number_of_classes(case)).to(case.dtype)
    other = case.with_tensors(**{name: target})
    _equal(audit, other, case, "one-hot in place of an index changes", "the two branches have different formulas")


def _smoothed(audit: Audit) -> list[Case]:
    return audit.cases(needs=("label_smoothing",))


@check("laws.smoothing_of_zero_is_none", _smoothed)
def smoothing_of_zero_is_none(audit: Audit, case: Case) -> None:
    """label_smoothing=0 is the loss without it."""
    if "label_smoothing" not in case.options:
        raise NotApplicable("there is no smoothing")
    if audit.loss.default("label_smoothing"):
        raise NotApplicable("the loss smooths by default")
    cause = "the smoothed branch has another formula, mask or denominator"
    without, zero = case.without_option("label_smoothing"), case.with_options(label_smoothing=0.0)
    _equal(audit, zero, without, "label_smoothing=0 changes", cause)


@check(
    "laws.smoothing_of_one_forgets_the_target",
    lambda audit: audit.cases(needs=("label_smoothing",), without=("weight",)),
)
def smoothing_of_one_forgets_the_target(audit: Audit, case: Case) -> None:
    """label_smoothing=1 makes every class equally right: the target must not matter."""
    if "label_smoothing" not in case.options or audit.kind.number_of_classes(case) < 2:
        raise NotApplicable("there is no smoothing, or one class only")
    name = audit.kind.indices[0] if audit.kind.indices else "target"
    target = case.tensors[name]
    ignored = target == case.options.get("ignore_index", IGNORED)
    if target.is_floating_point():
        other = target.roll(1, 1) if target.dim() > 1 else target
    else:
        other = torch.where(ignored, target, (target + 1) % audit.kind.number_of_classes(case))
        if (other[~ignored] == case.options.get("ignore_index", IGNORED)).any():
            raise NotApplicable("the other target is ignored")
    one = case.with_options(label_smoothing=1.0)
    supported(lambda: audit.loss(one))
    cause = "smoothing is spread over the other classes only, or the target keeps a share"
    _equal(audit, one.with_tensors(**{name: other}), one, "with label_smoothing=1, another target changes", cause)


@check("laws.smoothing_interpolates", _smoothed)
def smoothing_interpolates(audit: Audit, case: Case) -> None:
    """Smoothing by ε is 1 - ε of the plain loss and ε of the fully smoothed one, weights and ignored rows included."""
    if "label_smoothing" not in case.options:
        raise NotApplicable("there is no smoothing")
    epsilon = case.options["label_smoothing"]
    plain = audit.loss(case.with_options(label_smoothing=0.0))
    full = supported(lambda: audit.loss(case.with_options(label_smoothing=1.0)))
    cause = "an option enters the smoothed term and the plain one differently"
    expected = (1 - epsilon) * plain + epsilon * full
    audit.expect_close(audit.loss(case), expected, "smoothing does not interpolate", cause, atol=1e-12)


def _optimal(audit: Audit) -> list[Case]:
    optimum: Callable[[Case], Case] | None = audit.kind.optimum
    if optimum is None:
        raise NotApplicable("no optimum is known for this kind")
    return [optimum(case) for case in audit.cases(without=("label_smoothing", "ignore_index"), few=True)]


@check("laws.gradient_vanishes_at_the_optimum", _optimal, WRONG_GRADIENT)
def gradient_vanishes_at_the_optimum(audit: Audit, case: Case) -> None:
    """Where the prediction is the target there is nothing left to learn."""
    if "weight" in case.options and "elementwise" not in audit.kind.traits and not audit.kind.has_indices(case):
        raise NotApplicable("class weights move the optimum of a soft target")
    name, at = audit.kind.primary, audit.kind.optimum
    if at is None or not torch.equal(at(case).tensors[name], case.tensors[name]):
        raise NotApplicable("the prediction is not the target")
    _, (gradient,) = audit.value_and_gradients(case, names=[name])
    if "unit sum" in audit.kind.traits:
        if audit.kind.has_indices(case):
            raise NotApplicable("class indices have their optimum at the border of what probabilities can be")
        gradient = gradient - gradient.mean(1, keepdim=True)
    cause = "an offset in the formula, or a target that is changed on the way"
    vanishes = bool(gradient.isfinite().all()) and largest(gradient) < max(1e-5, 16 * audit.eps)
    expect(vanishes, "the gradient at the optimum is not 0", gradient, 0, cause)


@check(
    "laws.labels_are_shifted",
    with_trait(
        "shifted",
        "its labels belong to the positions they are at",
        lambda audit: audit.cases(without=("ignore_index",), reductions=("mean", "sum", None), few=True),
    ),
)
def labels_are_shifted(audit: Audit, case: Case) -> None:
    """Position t predicts label t + 1: a label that is off by one trains a model to copy, with a fine loss."""
    name, target = audit.kind.primary, case.tensors[audit.kind.indices[0]]
    level = case.with_tensors(**{name: torch.zeros_like(case.tensors[name])})
    _, (gradient,) = audit.value_and_gradients(level, names=[name])
    if audit.loss(level).dim() or target.shape[1] < 2 or audit.kind.number_of_classes(case) < 2:
        raise NotApplicable("needs one loss of two positions and two classes")
    gradient = gradient * float(direction(audit.loss(level)).sign())
    cause = "the labels are shifted by another number of positions, to the other side, or not at all"
    last = gradient[:, -1]
    expect_equal(last, torch.zeros_like(last), "the last position has a gradient", cause, WRONG_GRADIENT)
    favoured = gradient[:, :-1].argmin(-1)
    expect_equal(favoured, target[:, 1:], "a position is drawn to another label than the next", cause, WRONG_GRADIENT)
    first = target.clone()
    first[:, 0] = (first[:, 0] + 1) % audit.kind.number_of_classes(case)
    other = audit.loss(case.with_tensors(**{audit.kind.indices[0]: first}))
    audit.expect_close(other, audit.loss(case), "the first label changes the loss", cause)


def _several_draws(audit: Audit) -> list[Case]:
    return [case for seed in range(4) for case in audit.cases(rows=2, seed=seed, few=True)]


@check("laws.nonnegative", with_trait("nonnegative", "it may be negative", _several_draws))
def nonnegative(audit: Audit, case: Case) -> None:
    """A loss that falls below 0 where 0 means perfect hides a sign error or a missing term."""
    value = audit.loss(case)
    expect(bool((value >= 0).all()), "the loss is negative or nan", value, "at least 0", "a sign, or a missing term")
