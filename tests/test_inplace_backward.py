"""`inplace_backward=True`: the gradient takes the memory of the logits, and nobody gets the wrong numbers for it."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.autograd import forward_ad

from tests.cases import CASES, ComparedLoss
from tests.turns import in_turn
from torchlosses import CrossEntropyLoss, cross_entropy
from torchlosses.kernels import eager
from torchlosses.testing.checks.cost import peak_bytes

pytestmark = pytest.mark.usefixtures("each_backend")

OF_CROSS_ENTROPY = [case for case in CASES if case.ours is cross_entropy]


def logits_and_target(rows: int = 6, classes: int = 5) -> tuple[Tensor, Tensor]:
    """Logits that a layer has made, and class indices."""
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(rows, classes, generator=generator).requires_grad_()
    return weight * 2, torch.randint(classes, (rows,), generator=generator)


@pytest.mark.parametrize(
    ("dtype", "case"),
    in_turn((torch.float64, torch.float32, torch.bfloat16), {case.name: (case,) for case in OF_CROSS_ENTROPY}),
)
def test_the_gradient_is_the_same(case: ComparedLoss, dtype: torch.dtype) -> None:
    tensors = case.tensors(dtype)
    gradients = []
    for inplace_backward in (False, True):
        leaves = {name: tensors[name].clone().requires_grad_() for name in case.differentiable}
        logits = leaves["input"] * 1
        arguments = {**tensors, **leaves, "input": logits, "inplace_backward": inplace_backward}
        losses = cross_entropy(**arguments, **case.options)
        gradients.append(torch.autograd.grad(losses.sum() * 0.5, tuple(leaves.values())))
        assert torch.equal(logits, leaves["input"]) is not inplace_backward
    torch.testing.assert_close(gradients[1], gradients[0], rtol=0, atol=0)


@pytest.mark.parametrize("transform", [lambda x: x.t().contiguous().t(), lambda x: x[:, ::2], lambda x: x[1:4]])
def test_layouts(transform: Any) -> None:
    """Of a slice, only the elements that it shows are written over."""
    gradients = []
    for inplace_backward in (False, True):
        leaf = torch.arange(48.0).reshape(6, 8).sin().requires_grad_()
        logits = transform(leaf * 1)
        target = torch.arange(len(logits)) % logits.shape[1]
        loss = cross_entropy(logits, target, inplace_backward=inplace_backward)
        gradients.append(torch.autograd.grad(loss, leaf)[0])
    torch.testing.assert_close(gradients[1], gradients[0], rtol=0, atol=0)


def test_a_training_step_is_the_same() -> None:
    weights = []
    for inplace_backward in (False, True):
        torch.manual_seed(0)
        network = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 5))
        optimizer = torch.optim.SGD(network.parameters(), lr=0.5)
        criterion = CrossEntropyLoss(label_smoothing=0.1, inplace_backward=inplace_backward)
        for _ in range(3):
            optimizer.zero_grad()
            criterion(network(torch.ones(6, 4)), torch.arange(6) % 5).backward()
            optimizer.step()
        weights.append([parameter.detach() for parameter in network.parameters()])
    torch.testing.assert_close(weights[1], weights[0], rtol=0, atol=0)


def test_no_memory_of_the_size_of_the_logits(each_backend: str) -> None:
    logits, target = logits_and_target(2048, 16384)
    logits = logits.detach()
    gradient: list[Tensor] = []

    class Layer(torch.autograd.Function):
        """Hands the logits on as they are, and takes the gradient from them without a copy."""

        @staticmethod
        def forward(ctx: Any, leaf: Tensor, logits: Tensor) -> Tensor:
            return logits.view_as(logits)

        @staticmethod
        def backward(ctx: Any, grad_output: Tensor) -> tuple[None, None]:  # type: ignore[override]
            gradient.append(grad_output)
            return None, None

    def step() -> None:
        output = Layer.apply(torch.zeros((), requires_grad=True), logits)
        cross_entropy(output, target, inplace_backward=True).backward()

    # The eager backend works in blocks, a few of which are in memory at a time.
    allowance = 8 * eager.BLOCK * 4 if each_backend == "eager" else 64 * len(logits)
    assert peak_bytes(step) <= allowance
    assert gradient[0].data_ptr() == logits.data_ptr()


class TestLogitsThatAreNeededAgain:
    def test_a_leaf(self) -> None:
        logits, target = logits_and_target()
        leaf = logits.detach().requires_grad_()
        for input in (leaf, leaf.view(5, 6).view(6, 5), leaf[:, :4]):
            with pytest.raises(RuntimeError, match="leaf that requires grad"):
                cross_entropy(input, target.clamp(max=3), inplace_backward=True)

    def test_elements_that_share_memory(self) -> None:
        logits, target = logits_and_target()
        for input in (logits[:1].expand(6, 5), logits.as_strided((6, 5), (2, 1))):
            with pytest.raises(RuntimeError, match="share memory"):
                cross_entropy(input, target, inplace_backward=True)

    def test_a_second_backward(self) -> None:
        logits, target = logits_and_target()
        loss = cross_entropy(logits, target, inplace_backward=True)
        loss.backward(retain_graph=True)
        with pytest.raises(RuntimeError, match="modified by an inplace operation"):
            loss.backward()

    def test_another_loss_of_the_same_logits(self) -> None:
        """The later loss comes first in the backward: an earlier one finds the logits changed, a later one does not."""
        logits, target = logits_and_target()
        other = logits.exp().mul(logits).mean()
        loss = cross_entropy(logits, target, inplace_backward=True) + other
        with pytest.raises(RuntimeError, match="modified by an inplace operation"):
            loss.backward()
        gradients = []
        for inplace_backward in (False, True):
            logits, target = logits_and_target()
            loss = cross_entropy(logits, target, inplace_backward=inplace_backward)
            loss = loss + logits.exp().mul(logits).mean()
            gradients.append(torch.autograd.grad(loss, logits)[0])
        torch.testing.assert_close(gradients[1], gradients[0])

    def test_a_second_derivative(self) -> None:
        logits, target = logits_and_target()
        loss = cross_entropy(logits, target, inplace_backward=True)
        with pytest.raises(RuntimeError, match="cannot be differentiated again"):
            loss.backward(create_graph=True)

    def test_functional_transforms(self) -> None:
        logits, target = logits_and_target()
        with pytest.raises(RuntimeError, match=r"transform of torch\.func"):
            torch.func.grad(lambda x: cross_entropy(x * 1, target, inplace_backward=True))(logits.detach())

    def test_forward_mode(self) -> None:
        logits, target = logits_and_target()
        with forward_ad.dual_level():
            dual = forward_ad.make_dual(logits, torch.ones_like(logits))
            with pytest.raises(RuntimeError, match="forward-mode AD"):
                cross_entropy(dual, target, inplace_backward=True)


def test_without_a_backward_the_logits_stay() -> None:
    logits, target = logits_and_target()
    before = logits.detach().clone()
    with torch.no_grad():
        cross_entropy(logits, target, inplace_backward=True)
    cross_entropy(logits.detach(), target, inplace_backward=True)
    loss = cross_entropy(logits, target, inplace_backward=True)
    assert torch.equal(logits, before)
    loss.backward()
    assert not torch.equal(logits, before)


def test_the_version_is_counted_up() -> None:
    logits, target = logits_and_target()
    before = logits._version
    cross_entropy(logits, target, inplace_backward=True).backward()
    assert logits._version > before


def test_compiled_code_keeps_the_logits() -> None:
    """Memory is the compiler's business there; the gradient is right all the same."""
    leaf = torch.arange(30.0).reshape(6, 5).sin().requires_grad_()
    target = torch.arange(6) % 5

    @torch.compile(fullgraph=True, backend="aot_eager")
    def loss(x: Tensor) -> Tensor:
        return cross_entropy(x * 2, target, inplace_backward=True)

    (gradient,) = torch.autograd.grad(loss(leaf), leaf)
    torch.testing.assert_close(gradient, torch.autograd.grad(cross_entropy(leaf * 2, target), leaf)[0])


def test_the_module_says_so() -> None:
    assert "inplace_backward=True" in repr(CrossEntropyLoss(inplace_backward=True))
    assert "inplace" not in repr(CrossEntropyLoss())
