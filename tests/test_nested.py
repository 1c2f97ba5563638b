"""Jagged tensors: what torch's losses take, and the other losses alike; everything else is refused in words."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.testing import assert_close

import torchlosses

LENGTHS = (3, 1, 4)
CLASSES = 5
# torch says of each of them that it is new.
pytestmark = pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors:UserWarning")


def jagged(draw: Callable[..., Tensor], *behind: int, like: Any = None) -> Any:
    """Samples of LENGTHS; with the structure of another where one is given."""
    samples = [draw(length, *behind) for length in LENGTHS]
    if like is None:
        return torch.nested.nested_tensor(samples, layout=torch.jagged)
    return torch.nested.nested_tensor_from_jagged(torch.cat(samples), like.offsets())


def normal(*shape: int) -> Tensor:
    return torch.randn(shape, dtype=torch.float64)


def uniform(*shape: int) -> Tensor:
    return torch.rand(shape, dtype=torch.float64) + 0.1


def classes(*shape: int) -> Tensor:
    return torch.randint(CLASSES, shape)


def shares(*shape: int) -> Tensor:
    return normal(*shape).softmax(1)


def probabilities(*shape: int) -> Tensor:
    return normal(*shape).softmax(1)


def textbook(input: Tensor, target: Tensor, **options: Any) -> Tensor:
    return F.nll_loss(torch.log(input + 1e-7), target, **options)


# Ours, torch's on one sample, input, target, whether the classes are dimension 1, options.
CASES: dict[str, tuple[Any, Any, Any, Any, bool, dict[str, Any]]] = {
    "mse_loss": (torchlosses.mse_loss, F.mse_loss, normal, uniform, False, {}),
    "huber_loss": (torchlosses.huber_loss, F.huber_loss, normal, uniform, False, {"delta": 0.7}),
    "smooth_l1_loss": (torchlosses.smooth_l1_loss, F.smooth_l1_loss, normal, uniform, False, {"beta": 0.7}),
    "binary_cross_entropy_with_logits": (
        torchlosses.binary_cross_entropy_with_logits,
        F.binary_cross_entropy_with_logits,
        normal,
        uniform,
        False,
        {"pos_weight": torch.linspace(0.5, 2, CLASSES, dtype=torch.float64)},
    ),
    "cross_entropy-indices": (
        torchlosses.cross_entropy,
        F.cross_entropy,
        normal,
        classes,
        True,
        {"weight": torch.linspace(0.5, 2, CLASSES, dtype=torch.float64)},
    ),
    "cross_entropy-probabilities": (
        torchlosses.cross_entropy,
        F.cross_entropy,
        normal,
        shares,
        True,
        {"label_smoothing": 0.1},
    ),
    "cee_loss": (torchlosses.cee_loss, textbook, probabilities, classes, True, {}),
}


@pytest.mark.parametrize("holes", [False, True], ids=["whole", "narrowed"])
@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("name", CASES)
def test_the_loss_is_that_of_the_samples(name: str, reduction: str, holes: bool) -> None:
    """Value and gradient are torch's own on the samples one behind the other, and 'none' has their structure."""
    ours, builtin, draw_input, draw_target, of_classes, options = CASES[name]
    torch.manual_seed(0)
    behind = () if draw_target is classes else (CLASSES,)
    if holes:
        leaf = draw_input(len(LENGTHS) * 6, CLASSES).unflatten(0, (len(LENGTHS), 6)).requires_grad_()
        starts, lengths = torch.tensor([0, 2, 1]), torch.tensor(LENGTHS)
        input: Any = torch.nested.narrow(leaf, 1, starts, lengths, layout=torch.jagged)
        targets = draw_target(len(LENGTHS) * 6, *behind).unflatten(0, (len(LENGTHS), 6))
        target = torch.nested.nested_tensor_from_jagged(targets.flatten(0, 1), input.offsets(), input.lengths())
        spans = [slice(int(start), int(start + length)) for start, length in zip(starts, lengths, strict=True)]
        dense = torch.cat([sample[span] for sample, span in zip(leaf, spans, strict=True)])
        dense_target = torch.cat([sample[span] for sample, span in zip(targets, spans, strict=True)])
    else:
        leaf = input = jagged(draw_input, CLASSES).detach().requires_grad_()
        target = jagged(draw_target, *behind, like=input)
        dense, dense_target = leaf.values(), target.values()
    if of_classes:
        input = input.transpose(1, 2)
        target = target if draw_target is classes else target.transpose(1, 2)
    loss = ours(input, target, reduction=reduction, **options)
    expected = builtin(dense, dense_target, reduction=reduction, **options)
    if reduction == "none":
        assert loss.is_nested
        assert [len(sample) for sample in loss.unbind()] == list(LENGTHS)
        assert_close(loss.values(), expected)
        loss, expected = loss.values(), expected
    else:
        assert_close(loss, expected)
    incoming = torch.linspace(1, 2, expected.numel(), dtype=torch.float64).reshape(expected.shape)
    found, right = (torch.autograd.grad(value, leaf, incoming)[0] for value in (loss, expected))
    if not holes:
        assert found.is_nested
        found, right = found.values(), right.values()
    assert_close(found, right)


def weighted(loss: Any, of: Callable[[Any], Tensor]) -> tuple[Tensor, Tensor]:
    """The loss and its gradient, of tensors that are always the same."""
    torch.manual_seed(1)
    input = jagged(normal, CLASSES).detach().requires_grad_()
    target, weight = jagged(normal, 1, like=input).expand_as(input), jagged(uniform, CLASSES, like=input)
    found = loss(of(input), of(target), weight=of(weight))
    return found.detach(), torch.autograd.grad(found, input)[0].values()


def test_weights_of_elements() -> None:
    ours = weighted(torchlosses.mse_loss, lambda tensor: tensor)
    torchs: Any = F.mse_loss
    assert_close(ours, weighted(torchs, lambda tensor: tensor.values()))
    if torch.__version__ < "2.15":
        assert_close(ours, weighted(torchs, lambda tensor: tensor))
    else:
        with pytest.raises(RuntimeError, match="NYI"):
            weighted(torchs, lambda tensor: tensor)


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_what_torch_takes(reduction: Any) -> None:
    torch.manual_seed(0)
    logits = jagged(normal, CLASSES)
    target = jagged(shares, CLASSES, like=logits)
    logits, target = logits.transpose(1, 2), target.transpose(1, 2)
    found = torchlosses.cross_entropy(logits, target, reduction=reduction)
    ours = found.values() if found.is_nested else found
    # The values have the classes second, as a batch has.
    assert_close(ours, F.cross_entropy(logits.values().mT, target.values().mT, reduction=reduction))
    if torch.__version__ < "2.13":
        with pytest.raises(RuntimeError, match=r"aten\.size"):
            F.cross_entropy(logits, target, reduction=reduction)
        return
    expected: Any = F.cross_entropy(logits, target, reduction=reduction)
    assert found.is_nested == expected.is_nested
    assert_close(ours, expected.values() if expected.is_nested else expected)


def test_statistics_have_the_structure_of_the_rows() -> None:
    logits = jagged(normal, CLASSES)
    target = jagged(classes, like=logits)
    loss, found = torchlosses.cross_entropy(logits, target, dim=-1, return_stats=True)
    expected, of_values = torchlosses.cross_entropy(logits.values(), target.values(), return_stats=True)
    assert_close(loss, expected)
    for field, right in zip(found, of_values, strict=True):
        assert [len(sample) for sample in field.unbind()] == list(LENGTHS)
        assert_close(field.values(), right)


def test_a_sample_weight_hides_rows() -> None:
    logits = jagged(normal, CLASSES)
    target = jagged(classes, like=logits)
    weight = torch.nested.nested_tensor_from_jagged(torch.tensor([1.0, 0, 1, 0, 0, 1, 1, 0]), logits.offsets())
    loss = torchlosses.cross_entropy(logits, target, dim=2, sample_weight=weight)
    kept = weight.values() == 1
    assert_close(loss, F.cross_entropy(logits.values()[kept], target.values()[kept]))


class TestRefused:
    """Each with a sentence that says what to give; of a type that torch raises too."""

    @pytest.mark.parametrize("name", CASES)
    @pytest.mark.parametrize("which", ["input", "target", "both"])
    def test_the_strided_layout(self, name: str, which: str) -> None:
        ours, builtin, draw_input, draw_target, _, _ = CASES[name]
        behind = () if draw_target is classes else (CLASSES,)
        input: Any = torch.nested.nested_tensor([draw_input(length, CLASSES) for length in LENGTHS])
        target: Any = torch.nested.nested_tensor([draw_target(length, *behind) for length in LENGTHS])
        if which == "input":
            target = draw_target(len(LENGTHS), *behind)
        if which == "target":
            input = draw_input(len(LENGTHS), CLASSES)
        with pytest.raises(RuntimeError) as raised:
            builtin(input, target)
        with pytest.raises(type(raised.value), match=r"strided layout.*layout=torch\.jagged"):
            ours(input, target)

    @pytest.mark.parametrize("name", ["mse_loss", "cross_entropy-indices"])
    def test_samples_of_other_sizes(self, name: str) -> None:
        ours, _, draw_input, draw_target, of_classes, _ = CASES[name]
        input = jagged(draw_input, CLASSES)
        target = jagged(draw_target, *(() if of_classes else (CLASSES,)))
        with pytest.raises(RuntimeError, match=r"differ in size.*share their offsets"):
            ours(input.transpose(1, 2) if of_classes else input, target)

    def test_one_of_two(self) -> None:
        input = jagged(normal, CLASSES)
        with pytest.raises(RuntimeError, match=r"target is a plain one.*nested_tensor_from_jagged"):
            torchlosses.mse_loss(input, normal(3, 4, CLASSES))
        with pytest.raises(RuntimeError, match=r"target is a nested tensor, but input is not"):
            torchlosses.mse_loss(normal(3, 4, CLASSES), input)
        with pytest.raises(RuntimeError, match=r"weight is a plain one"):
            torchlosses.binary_cross_entropy_with_logits(input, input, weight=normal(3, 1, CLASSES))

    def test_classes_that_are_ragged(self) -> None:
        input = jagged(normal, CLASSES)
        with pytest.raises(RuntimeError, match=r"classes are dimension 1 of input.*transpose"):
            torchlosses.cross_entropy(input, jagged(classes, like=input))

    @pytest.mark.parametrize("layout", [torch.jagged, torch.strided])
    def test_losses_that_take_the_values_only(self, layout: torch.layout) -> None:
        input = torch.nested.nested_tensor([normal(length, 2) for length in LENGTHS], layout=layout)
        match = r"input\.values\(\)|logits\.values\(\)" if layout is torch.jagged else "strided layout"
        weight, target = normal(CLASSES, 2), classes(8)
        calls = (
            lambda: torchlosses.linear_cross_entropy(input, weight, target),
            lambda: torchlosses.linear_log_probs(input, weight, target),
            lambda: torchlosses.log_probs(input, target),
            lambda: torchlosses.linear_kl_div(input, weight, teacher_logits=normal(8, CLASSES)),
        )
        for call in calls:
            with pytest.raises(NotImplementedError, match=match):
                call()
