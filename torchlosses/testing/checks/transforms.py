"""torch.func: every transform of the loss equals what plain autograd or a loop gives."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.func import functional_call, grad, hessian, jacfwd, jacrev, jvp, vjp, vmap

from torchlosses.testing.audit import Audit, supported
from torchlosses.testing.kinds import Case
from torchlosses.testing.outcomes import WRONG_VALUE, NotApplicable
from torchlosses.testing.registry import check


def _few(audit: Audit) -> list[Case]:
    return audit.cases(few=True, rows=3)


def _scalar(audit: Audit, case: Case) -> tuple[Callable[[Tensor], Tensor], Tensor]:
    """The loss as a scalar function of its primary argument: where it gives several numbers, a weighted sum."""
    call, (x,) = audit.function(case, names=[audit.kind.primary])

    def scalar(tensor: Tensor) -> Tensor:
        loss = call(tensor)
        if not loss.dim():
            return loss
        return (loss * torch.arange(1, loss.numel() + 1, device=loss.device).reshape(loss.shape)).sum()

    return scalar, x.detach()


@check("transforms.grad", _few)
def grad_equals_autograd(audit: Audit, case: Case) -> None:
    """torch.func.grad is how functional code differentiates a loss."""
    scalar, x = _scalar(audit, case)
    leaf = x.clone().requires_grad_()
    (expected,) = torch.autograd.grad(scalar(leaf), leaf)
    audit.expect_close(
        supported(lambda: grad(scalar)(x)), expected, "torch.func.grad differs from autograd", "setup_context"
    )


@check("transforms.jvp_equals_vjp", lambda audit: audit.cases(rows=3))
def jvp_equals_vjp(audit: Audit, case: Case) -> None:
    """<v, J u> computed forward equals <J'v, u> computed backward: two rules for one derivative."""
    call, leaves = audit.function(case)
    primals = tuple(leaf.detach() for leaf in leaves)
    generator = torch.Generator().manual_seed(3)
    tangents = tuple(
        torch.randn(x.shape, generator=generator, dtype=x.dtype, device="cpu").to(x.device) for x in primals
    )
    value, forward = supported(lambda: jvp(call, primals, tangents))
    incoming = torch.randn(value.shape, generator=generator, dtype=value.dtype, device="cpu").to(value.device)
    backward = supported(lambda: vjp(call, *primals)[1](incoming))
    expected = torch.stack([(g * t).sum() for g, t in zip(backward, tangents, strict=True)]).sum()
    cause = "jvp and backward are rules for different functions"
    audit.expect_close(
        (incoming * forward).sum(), expected, "forward and reverse mode disagree", cause, rtol=1e-9, atol=1e-12
    )


@check("transforms.hessian", _few)
def hessian_is_the_jacobian_of_the_gradient(audit: Audit, case: Case) -> None:
    """torch.func.hessian composes forward over reverse mode; the result must be the derivative of the gradient."""
    scalar, x = _scalar(audit, case)
    got = supported(lambda: hessian(scalar)(x))
    _expect_hessian(audit, got, scalar, x, "torch.func.hessian is not the derivative of the gradient")


@check("transforms.reverse_over_reverse", _few)
def nested_reverse_mode(audit: Audit, case: Case) -> None:
    """jacrev of jacrev is the way to a Hessian for losses without a forward-mode rule."""
    scalar, x = _scalar(audit, case)
    got = supported(lambda: jacrev(jacrev(scalar))(x))
    _expect_hessian(audit, got, scalar, x, "jacrev of jacrev is not the derivative of the gradient")


@check("transforms.forward_over_forward", _few)
def nested_forward_mode(audit: Audit, case: Case) -> None:
    """PyTorch switches forward mode off inside a jvp rule, so that nested forward mode easily comes out as 0."""
    scalar, x = _scalar(audit, case)
    got = supported(lambda: jacfwd(jacfwd(scalar))(x))
    _expect_hessian(audit, got, scalar, x, "jacfwd of jacfwd is not the derivative of the gradient")


def _expect_hessian(audit: Audit, got: Tensor, scalar: Callable[[Tensor], Tensor], x: Tensor, summary: str) -> None:
    expected, step = x.new_zeros(*x.shape, x.numel()), audit.step
    for position in range(x.numel()):
        unit = torch.zeros_like(x)
        unit.view(-1)[position] = step
        forward, backward = ((x + sign * unit).requires_grad_() for sign in (1, -1))
        difference = (
            torch.autograd.grad(scalar(forward), forward)[0] - torch.autograd.grad(scalar(backward), backward)[0]
        )
        expected[..., position] = difference / (2 * step)
    expected = expected.reshape((*x.shape, *x.shape))
    audit.expect_derivative(got, expected, summary, "the rule of one mode is not differentiable in the other")


@check("transforms.vmap", lambda audit: audit.cases(), WRONG_VALUE)
def vmap_equals_a_loop(audit: Audit, case: Case) -> None:
    """torch.vmap over each tensor alone and over all of them, along the first and the last dimension."""
    names = list(case.everything())
    others = [audit.kind.draw(case.form, audit.kind.size(case) if audit.kind.rows else 4, seed=s) for s in (1, 2)]
    others = [other.to(audit.dtype, audit.device) for other in others]
    batch = [case, *(_with_other_options(case.with_everything(other.tensors)) for other in others)]
    if any(b.tensors[n].shape != t.shape for b in batch for n, t in case.tensors.items()):
        raise NotApplicable("the case is too small to be drawn again")

    def loss(*tensors: Tensor) -> Tensor:
        return audit.loss(case.with_everything(dict(zip(names, tensors, strict=True))))

    for mapped in (names, *([name] for name in names)):
        for place in (0, -1):
            stacked = {n: torch.stack([b.everything()[n] for b in batch], place) for n in mapped}
            arguments = tuple({**case.everything(), **stacked}[n] for n in names)
            in_dims = tuple(place if n in mapped else None for n in names)
            got = supported(lambda a=arguments, d=in_dims: vmap(loss, d)(*a))
            each = [loss(*(b.everything()[n] if n in mapped else case.everything()[n] for n in names)) for b in batch]
            summary = f"vmap over {', '.join(mapped)} is not a loop"
            audit.expect_close(got, torch.stack(each), summary, "the vmap rule, or sums over the mapped dimension")


def _with_other_options(case: Case) -> Case:
    return case.with_options(
        **{k: v.flip(0) + 0.5 for k, v in case.options.items() if isinstance(v, Tensor) and v.dim()}
    )


@check("transforms.per_sample_gradients", _few)
def per_sample_gradients(audit: Audit, case: Case) -> None:
    """Differential privacy and influence functions take one gradient a sample: vmap of grad through a model."""
    name = audit.kind.primary
    last = audit.kind.classes.get(name, 1) == case.tensors[name].dim() - 1
    if not audit.kind.rows or case.options.get("reduction") == "none" or not last:
        raise NotApplicable("needs rows, a model in front of them and a scalar loss")
    if "weight" in audit.kind.row_tensors(case):
        raise NotApplicable("an elementwise weight belongs to its rows")
    torch.manual_seed(0)
    columns = case.tensors[name].shape[-1]
    model = torch.nn.Sequential(torch.nn.Linear(columns, columns, device=audit.device, dtype=case.dtype))
    if "unit sum" in audit.kind.traits:
        model.append(torch.nn.Softmax(1))
    parameters = {key: parameter.detach() for key, parameter in model.named_parameters()}
    rows = {key: case.tensors[key] for key in audit.kind.rows}

    def loss(parameters: dict[str, Tensor], sample: dict[str, Tensor]) -> Tensor:
        one = {key: tensor.unsqueeze(0) for key, tensor in sample.items()}
        one[name] = functional_call(model, parameters, (one[name],))
        value = audit.loss(case.with_tensors(**one))
        return value if not value.dim() else value.sum()

    got = supported(lambda: vmap(grad(loss), in_dims=(None, 0))(parameters, rows))
    # A mean over ignored rows alone would divide by 0.
    counted = [position for position, ignored in enumerate(audit.kind.ignored_rows(case).tolist()) if not ignored]
    if not counted:
        raise NotApplicable("every sample is ignored")
    for position in counted:
        leaves = {key: value.clone().requires_grad_() for key, value in parameters.items()}
        value = loss(leaves, {key: tensor[position] for key, tensor in rows.items()})
        for key, expected in zip(leaves, torch.autograd.grad(value, list(leaves.values())), strict=True):
            summary = "per-sample gradients are not those of a loop"
            audit.expect_close(got[key][position], expected, summary, "the vmap rule", atol=1e-12)
