"""`torch.utils.flop_counter` counts the matrix products of the linear losses, as many as are made."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from torchlosses import linear_cross_entropy, linear_log_probs
from torchlosses.distributed import class_parallel_linear_cross_entropy
from torchlosses.distributed._split import SplitLinearCrossEntropy
from torchlosses.kernels import linear
from torchlosses.linear_cross_entropy import LinearCrossEntropy
from torchlosses.log_probs import LinearLogProbabilities

N, D, C, R = 6, 4, 5, 3
PRODUCT = 2 * N * D * C
LOSSES: dict[str, tuple[Any, Callable[..., Tensor]]] = {
    "linear_cross_entropy": (LinearCrossEntropy, linear_cross_entropy),
    "linear_log_probs": (LinearLogProbabilities, lambda *a, **o: linear_log_probs(*a, **o).log_probability.sum()),
    "class_parallel": (SplitLinearCrossEntropy, class_parallel_linear_cross_entropy),
}
every_loss = pytest.mark.parametrize("name", LOSSES)


class Recording(TorchDispatchMode):
    """The calls of this package's operators, and the operations of the products that are made outside of them."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple[str, tuple[Any, ...]]] = []
        self.operations = 0

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if function.namespace == "torchlosses":
            self.calls.append((function._schema.name, args))
        if function.overloadpacket in (torch.ops.aten.mm, torch.ops.aten.addmm, torch.ops.aten.addmm_):
            a, b = args[-2:]
            self.operations += 2 * a.shape[0] * a.shape[1] * b.shape[1]
        return function(*args, **(kwargs or {}))


def made(loss: Any, operator: str, arguments: tuple[Any, ...]) -> int:
    """The operations of the products inside of an operator."""
    n, m = loss.count, loss.count + loss.keeps
    with Recording() as recording:
        if operator.endswith("_backward"):
            linear.backward(loss, arguments[0], arguments[1 : 1 + n], loss.options(*arguments[1 + m :]))
        else:
            linear.forward(loss, arguments[:n], loss.options(*arguments[n:]))
    return recording.operations


def counted(call: Callable[[], Any]) -> int:
    with FlopCounterMode(display=False) as counter:
        call()
    return counter.get_total_flops()


def problem(low_rank: bool) -> tuple[list[Tensor], Tensor, dict[str, Any]]:
    generator = torch.Generator().manual_seed(0)
    x, w, a, b = (torch.randn(s, generator=generator).requires_grad_() for s in ((N, D), (C, D), (R, D), (C, R)))
    leaves = [x, w, a, b] if low_rank else [x, w]
    return leaves, torch.randint(C, (N,), generator=generator), {"low_rank": (a, b, 0.5)} if low_rank else {}


@every_loss
@pytest.mark.usefixtures("each_backend")
def test_forward_and_backward(name: str) -> None:
    """One product in the forward; in the backward the logits again, and the two of the gradients."""
    _, function = LOSSES[name]
    (x, w), target, _ = problem(low_rank=False)
    losses: list[Tensor] = []
    assert counted(lambda: losses.append(function(x, w, target))) == PRODUCT
    assert counted(losses[0].backward) == 3 * PRODUCT
    with torch.no_grad():
        assert counted(lambda: function(x, w, target)) == PRODUCT


@every_loss
@pytest.mark.parametrize("low_rank", [False, True])
@pytest.mark.usefixtures("each_backend")
def test_as_many_as_are_made(name: str, low_rank: bool) -> None:
    loss, function = LOSSES[name]
    leaves, target, options = problem(low_rank)
    for wanted in ([0], [1], list(range(len(leaves)))):
        for place, leaf in enumerate(leaves):
            leaf.requires_grad_(place in wanted)
        with Recording() as recording:
            function(*leaves[:2], target, **options).backward()
        forward, backward = [made(loss, *call) for call in recording.calls]
        losses: list[Tensor] = []
        assert counted(lambda: losses.append(function(*leaves[:2], target, **options))) == forward  # noqa: B023
        assert counted(losses[0].backward) == backward
        assert forward >= PRODUCT
        assert backward >= 2 * PRODUCT


def test_gradients_that_come_along_with_the_loss() -> None:
    """An operator that is asked for them makes all three products."""
    (x, w), target, _ = problem(low_rank=False)
    with Recording() as recording:
        linear_cross_entropy(x, w, target)
    ((_, arguments),) = recording.calls
    n = LinearCrossEntropy.count
    options = LinearCrossEntropy.options(*arguments[n:])._replace(gradients=3)
    operator = torch.ops.torchlosses.linear_cross_entropy
    assert counted(lambda: operator(*arguments[:n], *options)) == 3 * PRODUCT
    assert made(LinearCrossEntropy, "linear_cross_entropy", (*arguments[:n], *options)) == 3 * PRODUCT


@pytest.mark.parametrize("first", ["torchlosses", pytest.param("torch.utils.flop_counter", marks=pytest.mark.thorough)])
def test_whichever_is_imported_first(first: str) -> None:
    """And `import torchlosses` does not wait for the counter, which imports Triton, nor for DTensors."""
    program = f"""
import sys, importlib
import torch
importlib.import_module({first!r})
if {first!r} == "torchlosses":
    assert not sys.modules.keys() & {{"torch.utils.flop_counter", "triton", "torch.distributed.tensor"}}
import torchlosses
from torch.utils.flop_counter import FlopCounterMode
assert not any(type(hook).__module__.startswith("torchlosses") for hook in sys.meta_path)
x, w = torch.randn(6, 4), torch.randn(5, 4)
with FlopCounterMode(display=False) as counter:
    torchlosses.linear_cross_entropy(x, w, torch.zeros(6, dtype=torch.int64))
assert counter.get_total_flops() == 240, counter.get_flop_counts()
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
