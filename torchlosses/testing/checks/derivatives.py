"""Derivatives against finite differences: first and second, reverse and forward, and none of them silently absent."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.autograd.gradcheck import GradcheckError, gradcheck, gradgradcheck

from torchlosses.testing.audit import Audit, direction, supported
from torchlosses.testing.kinds import Case
from torchlosses.testing.outcomes import Failure, NotSupported
from torchlosses.testing.registry import check


def _small(audit: Audit) -> list[Case]:
    return audit.cases(rows=3)


def _few(audit: Audit) -> list[Case]:
    return audit.cases(rows=3, few=True)


def _run(audit: Audit, case: Case, test: Callable[..., bool], cause: str, **options: Any) -> None:
    """Run PyTorch's own check, and put a mismatch into the form of a finding."""
    call, leaves = audit.function(case)
    names = audit.differentiable(case)
    rtol, atol = audit.derivative_tolerances
    # A backward that is not the same twice is another check's subject.
    tolerances = {"eps": audit.step, "rtol": rtol, "atol": atol, "nondet_tol": atol}
    # Random ones may be so small that they hide a wrong derivative in the tolerance.
    incoming = {"grad_outputs": direction(call(*leaves)).requires_grad_()} if test is gradgradcheck else {}
    try:
        test(call, leaves, **incoming, **tolerances, **options)
    except GradcheckError as error:
        if re.search(r"not implemented|must implement|not support", str(error)):
            raise NotSupported(str(error).strip().splitlines()[0]) from error
        raise _finding(str(error), names, cause) from error


def _finding(message: str, names: list[str], cause: str) -> Failure:
    found = re.search(r"with respect to input (\d+),?\s*numerical:(.*?)analytical:(.*)", message, re.DOTALL)
    if found is None:
        return Failure("the derivative is wrong", " ".join(message.split())[:400], "no complaint of gradcheck", cause)
    position, numerical, analytical = found.groups()
    name = names[int(position)] if int(position) < len(names) else "the incoming gradient"
    got, expected = (" ".join(text.split())[:300] for text in (analytical, numerical))
    return Failure(f"the derivative by {name} is not that of finite differences", got, expected, cause)


@check("derivatives.gradcheck", _small)
def first_derivative(audit: Audit, case: Case) -> None:
    """The gradient must be the derivative of the value, by every differentiable argument, under every option."""
    _run(audit, case, gradcheck, "the backward is not the derivative of the forward", check_undefined_grad=True)


@check("derivatives.ties", _few)
def derivative_at_ties(audit: Audit, case: Case) -> None:
    """At ties, such as equal logits, max and sort choose one of several; the gradient must not depend on which."""
    name = audit.kind.primary
    tensor = case.tensors[name]
    target = case.tensors.get("target")
    free = "free" in audit.kind.traits and "elementwise" not in audit.kind.traits
    if free:
        tied = torch.zeros_like(tensor)
    elif "unit sum" in audit.kind.traits:
        tied = torch.full_like(tensor, 1 / tensor.shape[audit.kind.classes[name]])
    else:
        tied = target.clone() if target is not None and target.shape == tensor.shape else tensor[:1].expand_as(tensor)
    _run(audit, case.with_tensors(**{name: tied}), gradcheck, "the gradient of max, sort or a comparison at a tie")


@check("derivatives.gradgradcheck", _small)
def second_derivative(audit: Audit, case: Case) -> None:
    """Gradient penalties, meta-learning and second-order optimisers differentiate the gradient."""
    _run(audit, case, gradgradcheck, "the backward is not differentiated as what it computes")


@check("derivatives.forward_ad", _small)
def forward_mode(audit: Audit, case: Case) -> None:
    """Directional derivatives in forward mode cost one forward, and must agree with the gradient."""
    call, leaves = audit.function(case)
    supported(lambda: _tangent(call, leaves))
    _run(audit, case, gradcheck, "the jvp rule", check_forward_ad=True, check_backward_ad=False)


@check("derivatives.batched_gradient", _few)
def batched_gradient(audit: Audit, case: Case) -> None:
    """Whole Jacobians come from a backward that is vectorised over incoming gradients."""
    call, leaves = audit.function(case)
    loss = call(*leaves)
    incoming = torch.stack([direction(loss), torch.ones_like(loss), -2 * direction(loss) + 0.5])
    batched = supported(lambda: torch.autograd.grad(loss, leaves, incoming, retain_graph=True, is_grads_batched=True))
    for name, got, position in zip(audit.differentiable(case), batched, range(len(leaves)), strict=True):
        each = [torch.autograd.grad(loss, leaves, one, retain_graph=True)[position] for one in incoming]
        summary = f"the batched gradient by {name} is not that of a loop"
        audit.expect_close(got, torch.stack(each), summary, "the vmap rule of the backward")


@check("derivatives.forward_over_reverse", _small)
def forward_over_reverse(audit: Audit, case: Case) -> None:
    """Hessian-vector products are cheapest as a forward derivative of the gradient."""
    call, leaves = audit.function(case)
    supported(lambda: _tangent_of_gradient(call, leaves))
    options = {"check_fwd_over_rev": True, "check_rev_over_rev": False, "check_undefined_grad": False}
    _run(audit, case, gradgradcheck, "the jvp of the backward", **options)


def _tangent(call: Callable[..., Tensor], leaves: tuple[Tensor, ...]) -> Tensor:
    """The derivative along `_directions` in forward mode; zeros where PyTorch gives none."""
    with forward_ad.dual_level():
        # Detached, as torch.func.jvp has them: a Function that is not recorded is not asked for its jvp.
        duals = (forward_ad.make_dual(x.detach(), d) for x, d in zip(leaves, _directions(leaves), strict=True))
        loss = call(*duals)
        primal, tangent = forward_ad.unpack_dual(loss)
        return torch.zeros_like(primal) if tangent is None else tangent.clone()


def _tangent_of_gradient(call: Callable[..., Tensor], leaves: tuple[Tensor, ...]) -> None:
    with forward_ad.dual_level():
        duals = [forward_ad.make_dual(x, d) for x, d in zip(leaves, _directions(leaves), strict=True)]
        loss = call(*duals)
        torch.autograd.grad(loss, duals, torch.ones_like(loss), allow_unused=True)


def _directions(leaves: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    generator = torch.Generator().manual_seed(3)
    return tuple(torch.randn(x.shape, generator=generator, dtype=x.dtype, device="cpu").to(x.device) for x in leaves)


def _moved(leaves: tuple[Tensor, ...], step: float) -> tuple[Tensor, ...]:
    return tuple((x + step * d).detach().requires_grad_() for x, d in zip(leaves, _directions(leaves), strict=True))


@check("derivatives.no_silent_zero_tangent", _few)
def no_silent_zero_tangent(audit: Audit, case: Case) -> None:
    """A loss without a forward-mode rule must say so; a tangent of 0 trains on nothing, without an error."""
    call, leaves = audit.function(case)
    tangent = supported(lambda: _tangent(call, leaves))
    with torch.no_grad():
        expected = (call(*_moved(leaves, audit.step)) - call(*_moved(leaves, -audit.step))) / (2 * audit.step)
    summary, cause = "the tangent is silently dropped or wrong", "detach, .data, or no jvp in a part of the loss"
    audit.expect_derivative(tangent, expected, summary, cause)


@check("derivatives.no_dropped_second_derivative", _few)
def no_dropped_second_derivative(audit: Audit, case: Case) -> None:
    """A gradient that is treated as a constant makes second derivatives 0, or lacks a term, without an error."""
    call, leaves = audit.function(case)

    def gradients(tensors: tuple[Tensor, ...], create_graph: bool) -> tuple[Tensor, ...]:
        loss = call(*tensors)
        found = torch.autograd.grad(loss, tensors, direction(loss), create_graph=create_graph, allow_unused=True)
        return tuple(torch.zeros_like(x) if g is None else g for x, g in zip(tensors, found, strict=True))

    def hessian_times_direction() -> tuple[Tensor, ...]:
        first = gradients(leaves, True)
        product = torch.stack([(g * d).sum() for g, d in zip(first, _directions(leaves), strict=True)]).sum()
        zeros = tuple(torch.zeros_like(x) for x in leaves)
        if not product.requires_grad:
            return zeros
        second = torch.autograd.grad(product, leaves, allow_unused=True)
        return tuple(z if h is None else h for z, h in zip(zeros, second, strict=True))

    got = supported(hessian_times_direction)
    forward, backward = (gradients(_moved(leaves, step), False) for step in (audit.step, -audit.step))
    for name, h, f, b in zip(audit.differentiable(case), got, forward, backward, strict=True):
        summary = f"the second derivative by {name} is silently dropped or wrong"
        cause = (
            "the backward works on detached tensors, takes a saved softmax or log-sum-exp as a constant, or is "
            "@once_differentiable, which raises nothing where the incoming gradient is a constant"
        )
        audit.expect_derivative(h, (f - b) / (2 * audit.step), summary, cause)
