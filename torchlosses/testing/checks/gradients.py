"""The backward as a citizen of autograd: the incoming gradient, repeated calls, and every tensor that wants one."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import torch
from torch import Tensor

from torchlosses.testing.audit import NUMBERS, Audit, direction, supported
from torchlosses.testing.comparing import expect_equal
from torchlosses.testing.kinds import Case
from torchlosses.testing.outcomes import NotApplicable
from torchlosses.testing.registry import check


@check("gradients.scale_with_the_incoming_one", lambda audit: audit.cases())
def scale_with_the_incoming_gradient(audit: Audit, case: Case) -> None:
    """What follows the loss, such as a GradScaler or a sum of losses, arrives as the gradient given to backward."""
    call, leaves = audit.function(case)
    loss = call(*leaves)
    ones = torch.ones_like(loss)
    once = torch.autograd.grad(loss, leaves, ones, retain_graph=True)
    for factor in (3.5, -2.0, 0.0):
        scaled = torch.autograd.grad(loss, leaves, factor * ones, retain_graph=True)
        for name, got, one in zip(audit.differentiable(case), scaled, once, strict=True):
            summary = f"{factor} times the incoming gradient is not {factor} times the gradient by {name}"
            audit.expect_close(got, factor * one, summary, "backward ignores grad_output, or a part of it", atol=1e-12)


@check("gradients.one_for_each_loss", lambda audit: audit.cases(reductions=("none", None)))
def one_incoming_gradient_for_each_loss(audit: Audit, case: Case) -> None:
    """With 'none' each row is weighted by the caller: each row's gradient must be scaled by its own number."""
    call, leaves = audit.function(case)
    loss = call(*leaves)
    if loss.dim() == 0:
        raise NotApplicable("the loss is one number")
    got = torch.autograd.grad(loss, leaves, direction(loss))
    for name, gradient, leaf in zip(audit.differentiable(case), got, leaves, strict=True):
        expected = _by_differences(audit.function(case, names=[name])[0], leaf, audit.step)
        summary = f"the gradient by {name} does not follow an incoming gradient that differs from row to row"
        cause = "backward sums or averages grad_output"
        audit.expect_derivative(gradient, expected, summary, cause)


def _by_differences(call: Callable[[Tensor], Tensor], leaf: Tensor, size: float) -> Tensor:
    """The derivative of the losses along the fixed direction, by finite differences."""
    expected, point = torch.zeros_like(leaf), leaf.detach()
    for place in range(leaf.numel()):
        step = torch.zeros_like(point)
        step.view(-1)[place] = size
        with torch.no_grad():
            difference = (call(point + step) - call(point - step)) / (2 * size)
        expected.view(-1)[place] = (difference * direction(difference)).sum()
    return expected.detach()


@check("gradients.retain_graph", lambda audit: audit.cases(few=True))
def two_backwards(audit: Audit, case: Case) -> None:
    """A second backward over a retained graph must give its own gradient, and leave the first one's alone."""
    call, leaves = audit.function(case)
    loss = call(*leaves)
    incoming = direction(loss)
    first = torch.autograd.grad(loss, leaves, incoming, retain_graph=True)
    kept = [gradient.clone() for gradient in first]
    second = torch.autograd.grad(loss, leaves, -3 * incoming, retain_graph=True)
    cause = "backward writes into a saved tensor, or into a buffer that it hands out again"
    for one, before, other in zip(first, kept, second, strict=True):
        expect_equal(one, before, "a second backward changes the gradient of the first", cause)
        audit.expect_close(other, -3 * before, "a second backward over a retained graph is wrong", cause, atol=1e-12)


@check("gradients.of_some_arguments", lambda audit: audit.cases(few=True))
def any_part_of_the_arguments(audit: Audit, case: Case) -> None:
    """Which other arguments require grad must not change a gradient."""
    names = audit.differentiable(case)
    if len(names) == 1:
        raise NotApplicable("only one argument takes a gradient")
    _, whole = audit.value_and_gradients(case)
    for size in range(1, len(names)):
        for some in itertools.combinations(names, size):
            _, gradients = audit.value_and_gradients(case, names=some)
            for name, got in zip(some, gradients, strict=True):
                summary = f"the gradient by {name} changes with what else requires grad"
                audit.expect_close(got, whole[names.index(name)], summary, "needs_input_grad is misread", atol=1e-14)


def _others(audit: Audit) -> list[Case]:
    if len(audit.kind.differentiable) == 1:
        raise NotApplicable("losses of this kind are functions of one argument")
    return audit.cases(few=True)


def _options(audit: Audit) -> list[Case]:
    options = [name for name in NUMBERS if name in audit.loss.options]
    if not options:
        raise NotApplicable("the loss has no option that is a tensor")
    found = [case for case in audit.cases() if set(options) & case.options.keys()]
    if not found:
        raise NotApplicable("the loss runs with no option that is a tensor")
    return found


@check("gradients.by_targets", _others)
def gradients_by_targets(audit: Audit, case: Case) -> None:
    """Distillation differentiates by the target: a loss gives that gradient, or refuses, but does not drop it."""
    _gives_or_refuses(audit, case, audit.kind.differentiable[1:])


@check("gradients.by_weights", _options)
def gradients_by_weights(audit: Audit, case: Case) -> None:
    """Learnt class weights need a gradient that follows the mean's denominator too, or a refusal."""
    _gives_or_refuses(audit, case, NUMBERS)


def _gives_or_refuses(audit: Audit, case: Case, names: tuple[str, ...]) -> None:
    every = case.everything()
    asked = [name for name in names if name in every and every[name].is_floating_point()]
    if not asked:
        raise NotApplicable("no such argument is floating-point here")
    for name in asked:
        call, (leaf,) = audit.function(case, names=[name])
        loss = supported(lambda c=call, x=leaf: c(x))
        got = torch.zeros_like(leaf)
        if loss.requires_grad:
            (found,) = torch.autograd.grad(loss, leaf, direction(loss), allow_unused=True)
            got = got if found is None else found
        expected = _by_differences(call, leaf, audit.step)
        summary = f"the gradient by {name} is silently dropped or wrong"
        audit.expect_derivative(got, expected, summary, f"{name} is detached, or treated as a constant")
