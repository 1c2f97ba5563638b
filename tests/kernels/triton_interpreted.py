"""The kernels in Triton, run by its interpreter on tensors of the CPU and compared with NumPy float64.

`tests/kernels/test_triton.py` runs this file in a process of its own, because Triton decides when it is imported.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from tests.kernels import triton_oracles as oracles
from tests.kernels.triton_oracles import Options, numbers
from torchlosses.kernels.triton import launch
from torchlosses.kernels.triton.cross_entropy import backward, forward

# NumPy speaks up where a GPU is silent: inf - inf in lanes whose result nobody takes.
pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning")

DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)


def rows(block: int, single: bool, prefetch: bool) -> Callable[..., launch.Rows]:
    """A table that gives tiles of so many vectors."""

    def choose(device: Any, count: int, classes: int, itemsize: int, *_: Any) -> launch.Rows:
        vectors = -(-classes * itemsize // launch.VECTOR) if single else block
        size = 1 << max(1, (vectors - 1).bit_length())
        return launch.Rows(size * launch.VECTOR // itemsize, 1, min(count, 2), single, prefetch)

    return choose


def tiles(single: bool) -> Callable[..., launch.Tiles]:
    def choose(device: Any, outer: int, inner: int, classes: int, *_: Any) -> launch.Tiles:
        size = 1 << max(0, (classes - 1).bit_length()) if single else 16
        return launch.Tiles(4, size, 1, 2, single)

    return choose


# Each kernel's ways through a batch. SHORT decides which kernel takes rows of neighbouring classes.
WAYS = {
    "rows, one tile": (0, {"rows": rows(0, True, False)}),
    "rows, prefetched": (0, {"rows": rows(4, False, True)}),
    "rows, not prefetched": (0, {"rows": rows(4, False, False)}),
    "tiles, all classes": (1 << 30, {"tiles": tiles(True)}),
    "tiles, some classes": (1 << 30, {"tiles": tiles(False)}),
}


@pytest.fixture(params=WAYS)
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    short, tables = WAYS[request.param]
    monkeypatch.setattr(launch, "SHORT", short)
    for name, table in tables.items():
        monkeypatch.setattr(launch, name, table)
    return request.param


@pytest.fixture(params=("one program", "many programs"))
def programs(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    if request.param == "many programs":
        monkeypatch.setattr(launch, "SMALL", -1)
    return request.param


def laid_out(values: Tensor, layout: str) -> Tensor:
    """The same numbers, otherwise in memory."""
    match layout:
        case "contiguous":
            return values.contiguous()
        case "offset":
            buffer = values.new_full((values.numel() + 3,), math.nan if values.is_floating_point() else 77)
            view = buffer[3:].view(values.shape)
        case "padded":
            buffer = values.new_full((*values.shape[:-1], values.shape[-1] + 5), math.nan)
            view = buffer[..., 2 : 2 + values.shape[-1]]
        case "transposed":
            view = values.new_empty((*values.shape[::-1],)).permute(*range(values.dim() - 1, -1, -1))
        case "channels last":
            view = values.new_empty((values.shape[0], *values.shape[2:], values.shape[1])).movedim(-1, 1)
        case _:
            raise ValueError(layout)
    view.copy_(values)
    return view


def precision(dtype: torch.dtype) -> float:
    """How far a number in that dtype may be from the truth, in parts of it: two roundings, and a little."""
    return {torch.float64: 1e-13, torch.float32: 3e-6, torch.bfloat16: 2.1 * 2**-9, torch.float16: 2.1 * 2**-12}[dtype]


def assert_close(found: Tensor, expected: Any, dtype: torch.dtype, scale: float | None = None) -> None:
    """Within the dtype's precision, of each number or of `scale` where sums cancel."""
    truth = np.asarray(expected, dtype=np.float64)
    value = found.double().numpy()
    assert value.shape == truth.shape
    size = np.abs(truth) if scale is None else np.maximum(np.abs(truth), scale)
    smallest = 6e-8 if dtype == torch.float16 else 1e-30
    np.testing.assert_array_equal(np.isnan(value), np.isnan(truth))
    with np.errstate(invalid="ignore"):
        off = np.where((value == truth) | np.isnan(truth), 0, np.abs(value - truth) - size * precision(dtype))
    assert (off <= smallest).all(), (value, truth)


def in_rows(tensor: Any) -> Any:
    """(N, C, M) as (N M, C)."""
    return tensor if tensor.ndim == 2 else np.moveaxis(tensor, 1, -1).reshape(-1, tensor.shape[1])


def check_cross_entropy(
    input: Tensor,
    target: Tensor,
    weight: Tensor | None = None,
    sample_weight: Tensor | None = None,
    normalizer: Tensor | None = None,
    reductions: tuple[str, ...] = ("mean", "sum", "none"),
    **fields: Any,
) -> None:
    """Values, gradients, state and statistics of every reduction, and every way to the gradient, against the definition."""
    wide = any(t is not None and t.dtype == torch.float64 for t in (input, target, weight, sample_weight))
    compute = torch.float64 if wide else torch.float32
    options = Options(dtype=compute, statistics=True, **fields)
    x = in_rows(numbers(input))
    t = in_rows(numbers(target)) if target.dim() == input.dim() else numbers(target).reshape(-1)
    s = None if sample_weight is None else numbers(sample_weight).reshape(-1)
    truth = oracles.cross_entropy(x, t, numbers(weight), s, options)
    shape = (input.shape[0], *input.shape[2:])

    def as_input(gradients: Any) -> Any:
        return gradients if input.dim() == 2 else np.moveaxis(gradients.reshape(*shape, -1), -1, 1)

    tensors = (input, target, weight, sample_weight, normalizer)
    for reduction in reductions:
        options = options._replace(reduction=reduction, gradients=int(reduction != "none"))
        loss, gradient, state = forward(*tensors, options)
        assert_close(state[2:].reshape(4, -1), truth.statistics, compute, 1.0)
        if reduction == "none":
            assert_close(loss.reshape(-1), truth.losses, compute, 1.0)
            assert gradient.shape == (0,)
            grad_output = torch.rand(shape, dtype=compute)
            factor = numbers(grad_output).reshape(-1, 1)
        else:
            divisor = 1.0
            if reduction == "mean":
                divisor = truth.counted.sum() if normalizer is None else float(normalizer)
            total = truth.losses.sum()
            assert_close(loss, total / divisor, compute, 1.0 / divisor)
            assert gradient.stride() == torch.empty_like(input).stride()
            assert_close(gradient, as_input(truth.gradients / divisor), input.dtype, 0.1 / divisor)
            ready = gradient.clone()
            backward(torch.ones((), dtype=compute), ready, *tensors, state, options)
            assert torch.equal(ready, gradient)
            grad_output = torch.tensor(-0.7, dtype=compute)
            factor = float(grad_output) / divisor
            # What was computed without the loss is the same to the bit.
            again = torch.full_like(gradient, math.nan)
            backward(torch.ones((), dtype=compute), again, *tensors, state, options._replace(gradients=0))
            assert torch.equal(again, gradient)
            backward(grad_output, ready, *tensors, state, options)
        written = torch.full_like(torch.empty_like(input), math.nan)
        backward(grad_output, written, *tensors, state, options._replace(gradients=0))
        assert_close(written, as_input(truth.gradients * factor), input.dtype, 0.1 * float(np.max(np.abs(factor))))
        if reduction != "none":
            assert torch.equal(ready, written)
        if torch.empty_like(input).stride() == input.stride():
            over = input.clone()
            backward(grad_output, over, over, *tensors[1:], state, options._replace(gradients=0))
            assert torch.equal(over, written)


def batch(
    shape: tuple[int, ...], dtype: torch.dtype = torch.float32, probabilities: bool = False, seed: int = 0
) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    input = (torch.randn(shape, generator=generator) * 3).to(dtype)
    if probabilities:
        target = torch.rand(shape, generator=generator).pow(4)
        return input, (target / target.sum(1, keepdim=True)).to(dtype)
    rows = (shape[0], *shape[2:])
    target = torch.randint(shape[1], rows, generator=generator)
    target.reshape(-1)[1::4] = -100
    return input, target


OPTIONS: dict[str, dict[str, Any]] = {
    "plain": {},
    "smoothing": {"label_smoothing": 0.1},
    "all smoothing": {"label_smoothing": 1.0},
    "z-loss": {"z_loss": 0.01},
    "soft cap": {"logit_softcap": 4.0},
    "scale": {"logit_scale": -1.3},
    "all": {"label_smoothing": 0.2, "z_loss": 0.02, "logit_softcap": 5.0, "logit_scale": 0.7},
}


@pytest.mark.parametrize("kind", ("indices", "probabilities"))
@pytest.mark.parametrize("name", OPTIONS)
def test_cross_entropy_options(way: str, name: str, kind: str) -> None:
    # Dtype, reduction, weights and the number of programs go round with the cases.
    turn = list(WAYS).index(way) + list(OPTIONS).index(name) + (kind == "indices")
    input, target = batch((3, 37), DTYPES[turn % 4], kind == "probabilities", turn)
    weight = sample_weight = normalizer = None
    if turn % 2 or name == "all":
        weight = torch.rand(37)
        weight[3::5] = 0
        sample_weight = torch.tensor([0.5, 0.0, 1.5])
        normalizer = torch.tensor(3.5)
    with pytest.MonkeyPatch.context() as patch:
        if turn // 2 % 2:
            patch.setattr(launch, "SMALL", -1)
        reduction = ("mean", "none", "sum")[turn % 3]
        check_cross_entropy(input, target, weight, sample_weight, normalizer, (reduction,), **OPTIONS[name])


@pytest.mark.parametrize("layout", ("contiguous", "offset", "padded", "transposed", "channels last"))
@pytest.mark.parametrize("shape", ((6, 40), (5, 3), (3, 1), (3, 33, 2), (2, 24, 5)), ids=str)
def test_cross_entropy_layouts(layout: str, shape: tuple[int, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    turn = sum(shape) + len(layout)
    monkeypatch.setattr(launch, "SHORT", 8 if turn % 2 else 64)
    monkeypatch.setattr(launch, "rows", rows(2, turn % 3 == 0, True))
    monkeypatch.setattr(launch, "tiles", tiles(turn % 5 < 3))
    monkeypatch.setattr(launch, "SMALL", -1 if turn % 7 < 3 else 1 << 15)
    probabilities = turn % 4 < 2
    input, target = batch(shape, DTYPES[turn % 3], probabilities)
    if probabilities:
        target = laid_out(target.to((torch.float32, torch.bfloat16)[turn % 2]), layout)
    elif layout == "transposed":
        target = laid_out(target, layout)
    sample_weight = torch.linspace(0.5, 2, shape[0]).reshape(-1, *[1] * (len(shape) - 2)).expand(shape[0], *shape[2:])
    reduction = ("mean", "none")[turn % 2]
    check_cross_entropy(laid_out(input, layout), target, None, sample_weight, reductions=(reduction,))
