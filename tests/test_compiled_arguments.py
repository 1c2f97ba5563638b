"""Arguments that torch.compile treats apart: Python numbers that change from call to call, and Tensor subclasses."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, TypeAlias

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch._dynamo.exc import FailOnRecompileLimitHit, Unsupported
from torch._dynamo.testing import CompileCounterWithBackend
from torch.testing import assert_close

import torchlosses
from tests.turns import in_turn

X, Y = torch.linspace(-2, 2, 12).reshape(4, 3), torch.linspace(0.1, 0.9, 12).reshape(4, 3)
INDICES = torch.tensor([0, 2, 1, 1])
W = torch.linspace(-1, 1, 15).reshape(5, 3)
LEAF = Y.clone().requires_grad_()
NUMBERS = [0.1 + 0.07 * i for i in range(12)]

Of: TypeAlias = Callable[[float], Tensor]
NORMALIZED: dict[str, Of] = {
    "mse_loss": lambda v: torchlosses.mse_loss(X, Y, normalizer=v),
    "huber_loss": lambda v: torchlosses.huber_loss(X, Y, normalizer=v),
    "smooth_l1_loss": lambda v: torchlosses.smooth_l1_loss(X, Y, normalizer=v),
    "binary_cross_entropy": lambda v: torchlosses.binary_cross_entropy_with_logits(X, Y, normalizer=v),
    "cee_loss": lambda v: torchlosses.cee_loss(Y, INDICES, normalizer=v),
    "cross_entropy": lambda v: torchlosses.cross_entropy(X, INDICES, normalizer=v),
    "linear_cross_entropy": lambda v: torchlosses.linear_cross_entropy(X, Y, INDICES, normalizer=v),
}
OPTIONS: dict[str, Callable[[Tensor, float], Tensor]] = {
    "huber_loss": lambda x, v: torchlosses.huber_loss(x, Y, delta=v),
    "smooth_l1_loss": lambda x, v: torchlosses.smooth_l1_loss(x, Y, beta=v),
    "cee_loss": lambda x, v: torchlosses.cee_loss(x.sigmoid(), INDICES, delta=v),
    "binary_cross_entropy": lambda x, v: torchlosses.binary_cross_entropy_with_logits(x, Y, label_smoothing=v),
    "label_smoothing": lambda x, v: torchlosses.cross_entropy(x, INDICES, label_smoothing=v),
    "z_loss": lambda x, v: torchlosses.cross_entropy(x, INDICES, z_loss=v, return_stats=True)[0],
    "logit_scale and logit_softcap": lambda x, v: torchlosses.cross_entropy(x, Y, logit_scale=v, logit_softcap=2 * v),
    "linear_cross_entropy": lambda x, v: torchlosses.linear_cross_entropy(x, W, INDICES, logit_scale=v),
    "low_rank": lambda x, v: torchlosses.linear_cross_entropy(x, W, INDICES, low_rank=(W[:2], W[:, :2], v)),
    "log_probs": lambda x, v: torchlosses.log_probs(x, INDICES, logit_softcap=v)[0].sum(),
    "linear_log_probs": lambda x, v: torchlosses.linear_log_probs(x, W, INDICES, logit_scale=v)[0].sum(),
    "temperature": lambda x, v: torchlosses.linear_kl_div(x, W, Y, W, temperature=v, student_logit_scale=v / 2),
    "beta": lambda x, v: torchlosses.linear_kl_div(x, W, Y, W, divergence="jensen-shannon", beta=v),
    "a module's": lambda x, v: with_delta(v)(x, Y),
}
# Their way is that of others.
ALIKE = ("smooth_l1_loss", "log_probs", "linear_log_probs", "beta", "binary_cross_entropy", "low_rank", "z_loss")
INTEGERS: dict[str, Callable[[Tensor, int], Tensor]] = {
    "binary_cross_entropy": lambda x, i: torchlosses.binary_cross_entropy_with_logits(x, 1.0 * (x > 0), ignore_index=i),
    "cross_entropy": lambda x, i: torchlosses.cross_entropy(x, INDICES, ignore_index=i),
    "linear_cross_entropy": lambda x, i: torchlosses.linear_cross_entropy(x, W, INDICES, ignore_index=i),
    "block_rows": lambda x, i: torchlosses.linear_cross_entropy(x, W, INDICES, block_rows=2 + i),
    "log_probs": lambda x, i: torchlosses.log_probs(x, INDICES, ignore_index=i)[0].sum(),
    "linear_kl_div": lambda x, i: torchlosses.linear_kl_div(x, W, Y, W, target=INDICES, ignore_index=i),
}
MODULE = torchlosses.HuberLoss()


def with_delta(value: float) -> torchlosses.HuberLoss:
    MODULE.delta = value
    return MODULE


@pytest.fixture(autouse=True)
def nothing_compiled() -> Iterator[None]:
    torch.compiler.reset()
    yield
    torch.compiler.reset()


@pytest.mark.parametrize(("backend", "name"), in_turn(("eager", "aot_eager"), {name: (name,) for name in NORMALIZED}))
def test_a_normalizer_takes_two_graphs(name: str, backend: str) -> None:
    """One for the first number, one for all others."""
    counted = CompileCounterWithBackend(backend)
    compiled: Any = torch.compile(NORMALIZED[name], backend=counted, fullgraph=True)
    for number in NUMBERS:
        assert_close(compiled(number), NORMALIZED[name](number))
    assert counted.frame_count == 2


def loss_and_gradient(function: Callable[[Tensor, Any], Tensor], value: Any) -> tuple[Tensor, Tensor]:
    leaf = X.clone().requires_grad_()
    loss = function(leaf, value)
    return loss.detach(), torch.autograd.grad(loss, leaf)[0]


@pytest.mark.parametrize(
    ("backend", "name"),
    in_turn(("aot_eager", "eager"), {name: (name,) for name in OPTIONS}, lambda name: name not in ALIKE),
)
def test_a_number_among_the_options_takes_two_graphs(name: str, backend: str) -> None:
    """One for the first value, one for all others, of the gradient too."""
    counted = CompileCounterWithBackend(backend)
    compiled: Any = torch.compile(OPTIONS[name], backend=counted, fullgraph=True)
    for number in NUMBERS:
        assert_close(loss_and_gradient(compiled, number), loss_and_gradient(OPTIONS[name], number))
    assert counted.frame_count == 2


@pytest.mark.parametrize(
    "name",
    [pytest.param(n, marks=() if n in ("cross_entropy", "block_rows") else pytest.mark.thorough) for n in INTEGERS],
)
def test_an_integer_takes_two_graphs(name: str) -> None:
    counted = CompileCounterWithBackend("aot_eager")
    compiled: Any = torch.compile(INTEGERS[name], backend=counted, fullgraph=True)
    for number in (3, 2, 0, 1, 7, 5):
        assert_close(loss_and_gradient(compiled, number), loss_and_gradient(INTEGERS[name], number))
    assert counted.frame_count == 2


def test_numbers_in_generated_code() -> None:
    """Several of one call, some of which come to be what leaves out a part of the loss."""

    def smoothed(x: Tensor, v: float) -> Tensor:
        return torchlosses.cross_entropy(x, INDICES, label_smoothing=v, z_loss=0.5 * v, logit_softcap=3.0)

    counted = CompileCounterWithBackend("inductor")
    compiled: Any = torch.compile(smoothed, backend=counted, fullgraph=True)
    for number in (0.1, 0.2, 0.3, 0.0, 0.4, 1.0, 0.5, 0.0, 1.0):
        assert_close(loss_and_gradient(compiled, number), loss_and_gradient(smoothed, number))
    # A constant, a number, and a graph each for 0 and 1, which the compiler makes constants.
    assert counted.frame_count <= 6


def test_second_derivatives_by_changing_numbers() -> None:
    """A graph that is run as it was recorded can be differentiated again."""
    compiled: Any = torch.compile(OPTIONS["z_loss"], backend="eager", fullgraph=True)
    for number in NUMBERS[:4]:
        found = []
        for function in (compiled, OPTIONS["z_loss"]):
            leaf = X.clone().requires_grad_()
            (gradient,) = torch.autograd.grad(function(leaf, number), leaf, create_graph=True)
            found.append(torch.autograd.grad(gradient.square().sum(), leaf)[0])
        assert_close(*found)


CONSTANTS: dict[str, Of] = {
    "torch's huber_loss": lambda v: F.huber_loss(X, Y, delta=v),
    "torch's cross_entropy": lambda v: F.cross_entropy(X, INDICES, label_smoothing=v),
    "of weights that take a gradient": lambda v: torchlosses.huber_loss(X, Y, weight=LEAF, delta=v),
    "under torch.func": lambda v: torch.func.grad(OPTIONS["huber_loss"])(X, v),
}


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=pytest.mark.thorough if n == "torch's huber_loss" else ()) for n in CONSTANTS]
)
@torch._dynamo.config.patch(recompile_limit=3)
def test_numbers_that_are_constants_of_a_graph(name: str) -> None:
    """Beyond the limit fullgraph raises, without it further values run eagerly."""
    compiled: Any = torch.compile(CONSTANTS[name], backend="eager", fullgraph=True)
    for number in NUMBERS[:3]:
        assert_close(compiled(number), CONSTANTS[name](number))
    with pytest.raises(FailOnRecompileLimitHit):
        compiled(NUMBERS[3])
    torch.compiler.reset()
    compiled = torch.compile(CONSTANTS[name], backend="eager")
    for number in NUMBERS[:5]:
        assert_close(compiled(number), CONSTANTS[name](number))


def compiled_whole(function: Any, backend: str, *arguments: Tensor) -> Any:
    """Compiled with fullgraph and called; the compiler of torch 2.10 knows no locals(), and runs that part eagerly."""
    whole: Any = torch.compile(function, backend=backend, fullgraph=True)
    if not torch.__version__.startswith("2.10.") or not function.__module__.startswith("torchlosses"):
        return whole(*arguments)
    with pytest.raises(Unsupported, match="`locals`"):
        whole(*arguments)
    torch.compiler.reset()
    compiled: Any = torch.compile(function, backend=backend)
    return compiled(*arguments)


class Subclass(Tensor):
    pass


def plain(tensor: Tensor) -> Tensor:
    return tensor


def subclass(tensor: Tensor) -> Tensor:
    return tensor.as_subclass(Subclass)


@pytest.mark.parametrize(
    ("which", "name", "target"),
    in_turn(
        ("input", "target", "both"),
        {
            "mse_loss": ("mse_loss", Y),
            "huber_loss": ("huber_loss", Y),
            "smooth_l1_loss": ("smooth_l1_loss", Y),
            "binary_cross_entropy_with_logits": ("binary_cross_entropy_with_logits", Y),
            "cross_entropy": ("cross_entropy", INDICES),
            "cross_entropy-probabilities": ("cross_entropy", Y),
        },
    ),
)
def test_a_subclass(which: str, name: str, target: Tensor) -> None:
    """Value, type and gradient are those of torch's loss."""
    of_input, of_target = (subclass if which in (one, "both") else plain for one in ("input", "target"))
    found = []
    for module in (torchlosses, F):
        leaf = of_input(X.clone()).requires_grad_()
        loss = compiled_whole(getattr(module, name), "eager", leaf, of_target(target))
        (gradient,) = torch.autograd.grad(loss, leaf)
        found.append((type(loss), loss.as_subclass(Tensor), gradient.as_subclass(Tensor)))
    assert found[0][0] is found[1][0]
    assert_close(found[0][1:], found[1][1:])


@pytest.mark.parametrize(
    ("name", "target"), [("cross_entropy", INDICES), pytest.param("mse_loss", Y, marks=pytest.mark.thorough)]
)
def test_a_subclass_in_generated_code(name: str, target: Tensor) -> None:
    """PyTorch watches the first run of generated code, and refuses subclasses in operators that are not its own."""
    leaf = subclass(X.clone()).requires_grad_()
    loss = compiled_whole(getattr(torchlosses, name), "inductor", leaf, target)
    expected = getattr(F, name)(leaf, target)
    gradients = [torch.autograd.grad(result, leaf)[0].as_subclass(Tensor) for result in (loss, expected)]
    assert type(loss) is type(expected)
    assert_close(loss.as_subclass(Tensor), expected.as_subclass(Tensor))
    assert_close(*gradients)


@pytest.mark.parametrize("backend", ["eager", "inductor"])
def test_a_mask_of_torchvision(backend: str) -> None:
    tv_tensors = pytest.importorskip("torchvision.tv_tensors")
    mask = tv_tensors.Mask(torch.arange(32).reshape(2, 4, 4) % 3)
    logits = torch.linspace(-1, 1, 96).reshape(2, 3, 4, 4).requires_grad_()
    loss = compiled_whole(torchlosses.cross_entropy, backend, logits, mask)
    expected = F.cross_entropy(logits, mask)
    assert_close(loss, expected)
    assert_close(torch.autograd.grad(loss, logits), torch.autograd.grad(expected, logits))
