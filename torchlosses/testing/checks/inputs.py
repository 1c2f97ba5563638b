"""What a loss does to its inputs, and how it takes those that are not plain contiguous matrices."""

from __future__ import annotations

import warnings
from collections.abc import Callable

import torch
from torch import Tensor

from torchlosses.testing.audit import Audit, direction, supported
from torchlosses.testing.comparing import expect, expect_equal, shown
from torchlosses.testing.kinds import Case
from torchlosses.testing.outcomes import MANNERS, WRONG_GRADIENT, NotApplicable
from torchlosses.testing.registry import check


@check("inputs.unmodified", lambda audit: audit.cases(), MANNERS)
def inputs_are_unmodified(audit: Audit, case: Case) -> None:
    """The logits are often used again, for metrics or a second loss: a loss must not write into them."""
    given = case.map(lambda tensor: tensor.clone())
    leaves = {name: given.everything()[name].requires_grad_() for name in audit.differentiable(given)}
    # Not leaves: PyTorch stops whoever writes into those.
    used = given.with_everything({**given.everything(), **{name: leaf.clone() for name, leaf in leaves.items()}})
    versions = {name: tensor._version for name, tensor in used.everything().items()}
    loss = audit.loss(used)
    torch.autograd.grad(loss, list(leaves.values()), direction(loss))
    for name, tensor in used.everything().items():
        cause = "an in-place operation, such as sub_ or masked_fill_, on the caller's tensor"
        expect_equal(tensor, case.everything()[name], f"{name} was modified", cause)
        expect(tensor._version == versions[name], f"{name} was written to", "a new version", "none", cause)


@check("inputs.changes_are_noticed", lambda audit: audit.cases(few=True), WRONG_GRADIENT)
def changes_between_forward_and_backward_are_noticed(audit: Audit, case: Case) -> None:
    """A tensor that changes between forward and backward makes the gradient wrong; autograd can say so."""
    _, expected = audit.value_and_gradients(case, names=[audit.kind.primary])
    for name in case.tensors:
        given = case.map(lambda tensor: tensor.clone())
        leaf = given.tensors[audit.kind.primary].requires_grad_()
        used = given.with_tensors(**{audit.kind.primary: leaf.clone()})
        loss = audit.loss(used)
        with torch.no_grad():
            used.tensors[name].copy_(used.tensors[name].flip(0))
        try:
            (got,) = torch.autograd.grad(loss, leaf, direction(loss))
        except RuntimeError as error:
            expect("modified by an inplace operation" in str(error), "another error", error, "one on versions", "?")
            continue
        cause = "tensors are kept on ctx, and not with save_for_backward"
        audit.expect_close(
            got, expected[0], f"a change of {name} before backward makes the gradient wrong", cause, atol=1e-12
        )


def _same(audit: Audit, case: Case, other: Case, summary: str, cause: str) -> None:
    """The two cases hold the same numbers: the same value and gradients must come out."""
    names = audit.differentiable(case)
    value, gradients = audit.value_and_gradients(case, names=names)
    call, _ = audit.function(other, names=names)
    leaves = tuple(other.everything()[name].detach().requires_grad_() for name in names)
    loss = call(*leaves)
    audit.expect_close(loss, value, f"{summary}: the value differs", cause)
    for name, got, expected in zip(names, torch.autograd.grad(loss, leaves, direction(loss)), gradients, strict=True):
        audit.expect_gradient(got, expected, f"{summary}: the gradient by {name} differs", cause, atol=1e-14)


@check("inputs.non_contiguous", lambda audit: audit.cases(few=True))
def non_contiguous_inputs(audit: Audit, case: Case) -> None:
    """Transposed and sliced tensors hold the same numbers as their copies, and give the same loss."""
    cause = "view, data_ptr or a kernel that takes the tensor for contiguous"
    x = case.tensors[audit.kind.primary]
    transposed = x.t().contiguous().t() if x.dim() == 2 else torch.stack([x, x], -1)[..., 0]
    _same(audit, case, case.with_tensors(**{audit.kind.primary: transposed}), "transposed inputs", cause)
    _same(audit, case, case.map(lambda t: torch.cat([t, t]).reshape(2, *t.shape)[1]), "inputs at an offset", cause)
    sliced = case.map(lambda t: torch.stack([t, t], 1).flatten(0, 1)[::2] if t.dim() else t)
    _same(audit, case, sliced, "sliced inputs", cause)


@check("inputs.expanded", lambda audit: audit.cases(few=True))
def expanded_inputs(audit: Audit, case: Case) -> None:
    """Expanded tensors have rows that share memory: writing to one writes to all."""
    name = audit.kind.primary
    expanded = case.tensors[name][:1].expand_as(case.tensors[name])
    copied = case.with_tensors(**{name: expanded.clone()})
    value, (gradient,) = audit.value_and_gradients(copied, names=[name])
    leaf = case.tensors[name][:1].clone().requires_grad_()
    loss = audit.loss(case.with_tensors(**{name: leaf.expand_as(case.tensors[name])}))
    cause = "a stride of 0 is taken for a full tensor"
    audit.expect_close(loss, value, "expanded inputs: the value differs", cause)
    (got,) = torch.autograd.grad(loss, leaf, direction(loss))
    summary = "expanded inputs: the gradient differs"
    audit.expect_gradient(got, gradient.sum(0, keepdim=True), summary, cause, atol=1e-12)


def _spatial(audit: Audit, case: Case) -> tuple[Case, Callable[[Tensor], Tensor]]:
    """Eight rows as two images of 2x2, classes in dimension 1; and the way back for losses."""
    if audit.kind.size(case) != 8:
        raise NotApplicable("needs eight rows")

    def images(tensor: Tensor) -> Tensor:
        shaped = tensor.reshape(2, 2, 2, *tensor.shape[1:])
        return shaped.movedim(-1, 1).contiguous() if tensor.dim() > 1 else shaped

    def rows(loss: Tensor) -> Tensor:
        return loss.movedim(1, -1).reshape(8, -1) if loss.dim() == 4 else loss.reshape(8)

    every = case.everything()
    return case.with_everything({n: images(every[n]) for n in audit.kind.row_tensors(case)}), rows


def _eight_rows(audit: Audit) -> list[Case]:
    if audit.kind.classes.get(audit.kind.primary) != 1:
        raise NotApplicable("the kind has no dimensions behind the classes")
    # It follows the last dimension, not the classes.
    return audit.cases(rows=8, few=True, without=("pos_weight",))


@check("inputs.images", _eight_rows)
def images_are_rows(audit: Audit, case: Case) -> None:
    """Segmentation has (N, C, H, W): each pixel is a row, and the loss is that of all rows."""
    images, rows = _spatial(audit, case)
    names = [audit.kind.primary]
    value, (gradient,) = supported(lambda: audit.value_and_gradients(images, names=names))
    expected = audit.loss(case)
    cause = "classes are looked for in the last dimension, or the mean divides by N alone"
    if value.dim():
        value = rows(value) if value.numel() == expected.numel() else value
    audit.expect_close(value, expected, "(N, C, d1, d2) is not the loss of its rows", cause)
    shape = images.tensors[names[0]].shape
    expect(gradient.shape == shape, "another shape", gradient, "that of the input", cause, WRONG_GRADIENT)


@check("inputs.channels_last", _eight_rows)
def channels_last(audit: Audit, case: Case) -> None:
    """Convolutional models hand over channels-last tensors; only the memory layout differs."""
    images, _ = _spatial(audit, case)
    supported(lambda: audit.loss(images))
    last = images.tensors[audit.kind.primary].to(memory_format=torch.channels_last)
    _same(
        audit,
        images,
        images.with_tensors(**{audit.kind.primary: last}),
        "channels-last inputs",
        "a kernel that takes the tensor for contiguous",
    )


@check("inputs.unbatched", lambda audit: audit.cases(rows=1, few=True, without=("ignore_index",)))
def unbatched(audit: Audit, case: Case) -> None:
    """One sample without a batch dimension is a batch of one."""
    if not audit.kind.rows or "shifted" in audit.kind.traits:
        raise NotApplicable("the kind has no rows that stand alone")
    every = case.everything()
    single = case.with_everything({name: every[name][0] for name in audit.kind.row_tensors(case)})
    value = supported(lambda: audit.loss(single))
    expected = audit.loss(case)
    cause = "dimension 1 or -1 is taken for the classes in either case"
    audit.expect_close(value.reshape(-1), expected.reshape(-1), "a single sample is not a batch of one", cause)


@check("inputs.empty", lambda audit: audit.cases(few=True, without=("ignore_index",)))
def empty_batch(audit: Audit, case: Case) -> None:
    """The last batch of a shard can be empty: its sum is 0, its losses are none, and nothing crashes."""
    if not audit.kind.rows:
        raise NotApplicable("the kind has no rows")
    empty = audit.kind.take_rows(case, torch.arange(0, device=audit.device))
    value, gradients = supported(lambda: audit.value_and_gradients(empty))
    cause = "a maximum or a division over nothing"
    if case.options.get("reduction") == "sum":
        expect_equal(value, torch.zeros_like(value), "an empty sum is not 0", cause)
    if case.options.get("reduction") == "none":
        expect(value.numel() == 0, "an empty batch has losses", value, "no loss", cause)
    for name, gradient in zip(audit.differentiable(empty), gradients, strict=True):
        if name in audit.kind.row_tensors(empty):
            summary = f"the gradient by {name} is not empty"
            expect(gradient.numel() == 0, summary, gradient, "no number", cause, WRONG_GRADIENT)


@check("inputs.broadcasting", lambda audit: audit.cases(few=True, without=("weight", "pos_weight")), MANNERS)
def broadcasting_is_refused_or_warned_of(audit: Audit, case: Case) -> None:
    """(N, 1) against (N,) compares N·N pairs: the commonest silent mistake with a regression head."""
    if "elementwise" not in audit.kind.traits:
        raise NotApplicable("input and target need not have one shape")
    column = case.with_tensors(input=case.tensors["input"][:, :1], target=case.tensors["target"][:, 0])
    if column.tensors["input"].shape[0] == 1:
        raise NotApplicable("one row has only one pair")
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            value = audit.loss(column)
        except Exception:
            return
    if caught:
        return
    with_columns = case.with_tensors(input=case.tensors["input"][:, :1], target=case.tensors["target"][:, :1])
    expected = audit.loss(with_columns)
    if value.shape == expected.shape and torch.allclose(value, expected):
        return
    cause = "shapes are not compared before input - target broadcasts"
    expect(False, "shapes that differ broadcast in silence", value, f"an error, a warning or {shown(expected)}", cause)
