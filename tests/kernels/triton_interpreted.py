# pyright: reportOptionalMemberAccess=false, reportPossiblyUnboundVariable=false, reportArgumentType=false, reportCallIssue=false
"""The kernels in Triton, run by its interpreter on tensors of the CPU and compared with NumPy float64.

`tests/kernels/test_triton.py` runs this file in a process of its own, because Triton decides when it is imported.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import torchlosses
from tests.kernels import triton_oracles as oracles
from tests.kernels.triton_oracles import Options, numbers
from tests.turns import in_turn
from torchlosses import kernels
from torchlosses.distributed import class_parallel_cross_entropy, class_parallel_linear_cross_entropy
from torchlosses.distributed._split import SplitCrossEntropy
from torchlosses.kernels.triton import LOSSES, launch, plan
from torchlosses.kernels.triton.cross_entropy import backward, forward, forward_over

DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)


def rows(block: int, single: bool, prefetch: bool) -> Callable[..., launch.Rows]:
    """A table that gives tiles of so many vectors."""

    def choose(device: Any, count: int, classes: int, itemsize: int, *_: Any) -> launch.Rows:
        vectors = -(-classes * itemsize // launch.VECTOR) if single else block
        size = 1 << max(1, (vectors - 1).bit_length())
        return launch.Rows(size * launch.VECTOR // itemsize, 1, max(1, min(count, 2)), single, prefetch)

    return choose


def tiles(single: bool) -> Callable[..., launch.Tiles]:
    def choose(device: Any, outer: int, inner: int, classes: int, *_: Any) -> launch.Tiles:
        size = 1 << max(0, (classes - 1).bit_length()) if single else 16
        return launch.Tiles(4, size, 1, 2, single)

    return choose


def thorough(*values: Any) -> list[Any]:
    """Values of a parameter for `make test-all` only."""
    return [pytest.param(value, marks=pytest.mark.thorough) for value in values]


# Each kernel's ways through a batch. SHORT decides which kernel takes rows of neighbouring classes.
WAYS = {
    "rows, one tile": (0, {"rows": rows(0, True, False)}),
    "rows, prefetched": (0, {"rows": rows(4, False, True)}),
    "rows, not prefetched": (0, {"rows": rows(4, False, False)}),
    "tiles, all classes": (1 << 30, {"tiles": tiles(True)}),
    "tiles, some classes": (1 << 30, {"tiles": tiles(False)}),
}


@pytest.fixture(autouse=True)
def no_plans() -> Iterator[None]:
    """Those of another test were made with other tables."""
    yield
    plan.forget()


def change(monkeypatch: pytest.MonkeyPatch, name: str, table: Any) -> None:
    """Launch by another table."""
    monkeypatch.setattr(launch, name, table)
    plan.forget()


def take(way: str, monkeypatch: pytest.MonkeyPatch) -> None:
    short, tables = WAYS[way]
    change(monkeypatch, "SHORT", short)
    for name, table in tables.items():
        change(monkeypatch, name, table)


# The others are like one of these: with or without what is fetched ahead, and with one tile or several.
SOME = ("rows, one tile", "rows, prefetched", "tiles, some classes")


# Of these, a corner is tried in those that have most in them.
@pytest.fixture(params=[pytest.param(way, marks=() if way in SOME[1:] else pytest.mark.thorough) for way in WAYS])
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    take(request.param, monkeypatch)
    return request.param


PROGRAMS = ("one program", "many programs")


@pytest.fixture(params=PROGRAMS)
def programs(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    if request.param == "many programs":
        change(monkeypatch, "SMALL", -1)
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
    return {torch.float64: 1e-13, torch.float32: 3e-6, torch.bfloat16: 2.1 * 2**-8, torch.float16: 2.1 * 2**-11}[dtype]


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
    return tensor if tensor.ndim == 2 else tensor.swapaxes(1, -1).reshape(-1, tensor.shape[1])


def check_cross_entropy(
    input: Tensor,
    target: Tensor,
    weight: Tensor | None = None,
    sample_weight: Tensor | None = None,
    normalizer: Tensor | None = None,
    reductions: tuple[str, ...] = ("mean", "sum", "none"),
    **fields: Any,
) -> None:
    """Values, statistics and gradients of each reduction, by every way to them, against the definition."""
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
    ready = None
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
        if ready is not None and reduction != "none":
            assert torch.equal(ready, written)
        if torch.empty_like(input).stride() == input.stride():
            over = input.clone()
            backward(grad_output, over, over, *tensors[1:], state, options._replace(gradients=0))
            assert torch.equal(over, written)
            if reduction == "none":
                over = input.clone()
                losses, found = forward_over(grad_output, over, *tensors[1:4], options)
                assert torch.equal(losses, loss)
                assert torch.equal(found, state)
                assert torch.equal(over, written)


@pytest.mark.parametrize("dtype", [torch.bfloat16, *thorough(torch.float32, torch.float64)], ids=str)
def test_a_soft_cap_keeps_its_digits(way: str, dtype: torch.dtype) -> None:
    """The slope next to the cap, where 1 - tanh² is a difference of two numbers close to 1, and what is capped."""
    cap, classes = 2.0, 202
    order = torch.randperm(classes, generator=torch.Generator().manual_seed(0))
    input = torch.stack([torch.linspace(-24, 24, classes)[order.roll(turn)] for turn in range(3)]).to(dtype)
    target = torch.tensor([5, 100, 201])
    compute = torch.promote_types(dtype, torch.float32)
    options = Options(dtype=compute, statistics=True, logit_softcap=cap, reduction="sum", gradients=1)
    _, gradient, state = forward(input, target, None, None, None, options)
    u = numbers(input) / cap
    y = cap * np.tanh(u)
    p = np.exp(y) / np.exp(y).sum(1, keepdims=True)
    expected = (p - np.eye(classes)[target]) / np.cosh(u) ** 2
    # exp(-2 u) carries the rounding of its argument.
    most = (6 + 2 * 12) * torch.finfo(compute).eps + torch.finfo(dtype).eps
    assert (np.abs(numbers(gradient) - expected) <= most * np.abs(expected)).all()
    unit = torch.finfo(compute).eps
    assert (np.abs(numbers(state[2]) - np.log(np.exp(y).sum(1))) <= 6 * unit).all()
    at_target = numbers(state[2] + state[3])
    assert (np.abs(at_target - y[np.arange(3), target]) <= 8 * unit).all()


@pytest.mark.parametrize("dtype", [torch.float32, *thorough(torch.bfloat16)], ids=str)
def test_a_scale_of_0_makes_all_classes_equal(way: str, dtype: torch.dtype) -> None:
    """What stands beside a row that starts between two vectors has no part in it."""
    input = torch.linspace(-5, 5, 403 * 2).to(dtype)[3:].view(-1)[:802].view(2, 401)
    for fields in ({}, {"logit_softcap": 3.0}):
        options = Options(logit_scale=0.0, reduction="sum", statistics=True, gradients=1, **fields)
        loss, gradient, state = forward(input, torch.tensor([0, 400]), None, None, None, options)
        assert loss.item() == pytest.approx(2 * math.log(401), rel=1e-6)
        assert torch.equal(gradient, torch.zeros_like(gradient))
        assert_close(state[2], [math.log(401)] * 2, torch.float32)


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


# What a way has in common with another.
FEW = {("rows, not prefetched", "probabilities"), ("rows, prefetched", "indices")}

OPTIONS: dict[str, dict[str, Any]] = {
    "plain": {},
    "smoothing": {"label_smoothing": 0.1},
    "all smoothing": {"label_smoothing": 1.0},
    "z-loss": {"z_loss": 0.01},
    "soft cap": {"logit_softcap": 4.0},
    "scale": {"logit_scale": -1.3},
    "all": {"label_smoothing": 0.2, "z_loss": 0.02, "logit_softcap": 5.0, "logit_scale": 0.7},
}


def ways_and_options() -> list[Any]:
    """Each way with all options at once, and each option alone with a fifth of the ways; the rest is `thorough`."""
    ways = [(way, kind) for way in WAYS for kind in ("indices", "probabilities") if (way, kind) not in FEW]
    cases = []
    for (place, way), (turn, name) in itertools.product(enumerate(ways), enumerate(OPTIONS)):
        marks = () if name == "all" or (place + turn) % 5 == 0 else (pytest.mark.thorough,)
        cases.append(pytest.param(*way, name, marks=marks))
    return cases


@pytest.mark.parametrize(("way", "kind", "name"), ways_and_options())
def test_cross_entropy_options(monkeypatch: pytest.MonkeyPatch, way: str, name: str, kind: str) -> None:
    take(way, monkeypatch)
    # Dtype, reduction, weights and the number of programs go round with the cases.
    turn = list(WAYS).index(way) + list(OPTIONS).index(name) + (kind == "indices")
    input, target = batch((3, 37), DTYPES[turn % 4], kind == "probabilities", turn)
    weight = sample_weight = normalizer = None
    if turn % 2 or name == "all":
        weight = torch.rand(37)
        weight[3::5] = 0
        sample_weight = torch.tensor([0.5, 0.0, 1.5])
        normalizer = torch.tensor(3.5)
    if turn // 2 % 2:
        change(monkeypatch, "SMALL", -1)
    reduction = ("mean", "none", "sum")[turn % 3]
    check_cross_entropy(input, target, weight, sample_weight, normalizer, (reduction,), **OPTIONS[name])


@pytest.mark.parametrize(
    ("layout", "shape"),
    in_turn(
        ("contiguous", "offset", "padded", "transposed", "channels last"),
        {str(shape): (shape,) for shape in ((6, 40), (5, 3), (3, 1), (3, 33, 2), (2, 24, 5))},
        count=2,
    ),
)
def test_cross_entropy_layouts(layout: str, shape: tuple[int, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    turn = sum(shape) + len(layout)
    change(monkeypatch, "SHORT", 8 if turn % 2 else 64)
    change(monkeypatch, "rows", rows(2, turn % 3 == 0, True))
    change(monkeypatch, "tiles", tiles(turn % 5 < 3))
    change(monkeypatch, "SMALL", -1 if turn % 7 < 3 else 1 << 15)
    probabilities = turn % 4 < 2
    input, target = batch(shape, DTYPES[turn % 3], probabilities)
    if probabilities:
        target = laid_out(target.to((torch.float32, torch.bfloat16)[turn % 2]), layout)
    elif layout == "transposed":
        target = laid_out(target, layout)
    sample_weight = torch.linspace(0.5, 2, shape[0]).reshape(-1, *[1] * (len(shape) - 2)).expand(shape[0], *shape[2:])
    reduction = ("mean", "none")[turn % 2]
    check_cross_entropy(laid_out(input, layout), target, None, sample_weight, reductions=(reduction,))


@pytest.mark.parametrize(
    ("single", "probabilities"), in_turn((True, False), {"indices": (False,), "probabilities": (True,)})
)
def test_whole_vectors_of_rows(single: bool, probabilities: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where classes lie apart and rows side by side, vectors are read whatever their rows hold."""
    change(monkeypatch, "tiles", tiles(single))
    for turn, (shape, layout) in enumerate((((2, 20, 16), "contiguous"), ((16, 20), "transposed"))):
        for dtype in DTYPES[turn + single :: 2]:
            input, target = batch(shape, dtype, probabilities)
            sample_weight = torch.ones(shape[0], *shape[2:])
            hidden = (0, slice(None), 3) if len(shape) == 3 else (3,)
            input[hidden] = math.nan
            if probabilities:
                sample_weight.view(-1)[3] = 0
            else:
                target.view(-1)[3] = -100
            reduction = ("mean", "none")[(turn + single) % 2]
            check_cross_entropy(
                laid_out(input, layout), laid_out(target, layout), None, sample_weight, reductions=(reduction,)
            )


def cross_entropy(
    input: Tensor, target: Tensor, *others: Tensor | None, **fields: Any
) -> tuple[Tensor, Tensor, Tensor]:
    weight, sample_weight, normalizer, *_ = (*others, None, None, None)
    return forward(input, target, weight, sample_weight, normalizer, Options(**fields))


def test_confident_rows_keep_their_digits(way: str) -> None:
    """The largest logit's own 1 is left out of the sum: [20, 0] costs 2.06e-9, where torch gives 0."""
    classes = 37
    input = torch.zeros(3, classes)
    input[0, 0], input[1, classes - 1], input[2, 1] = 20, 60, 12.5
    input[2, 0] = 12.5 - 1e-3
    target = torch.tensor([0, classes - 1, 1])
    for values in (input, (input + 100).bfloat16()):
        check_cross_entropy(values, target, reductions=("none",))
        truth = oracles.cross_entropy(numbers(values), target.numpy(), None, None, Options())
        loss, _, _ = cross_entropy(values, target, reduction="none", gradients=0)
        np.testing.assert_allclose(loss.numpy(), truth.losses, rtol=1e-6)
        _, gradient, _ = cross_entropy(values.float(), target, reduction="sum")
        np.testing.assert_allclose(gradient.numpy(), truth.gradients, rtol=2e-6)


def test_infinite_and_missing_logits(way: str) -> None:
    inf = math.inf
    input = torch.full((5, 37), -inf)
    # Nothing but -inf, beside the target and in the first tiles.
    input[0, 30:] = torch.arange(7.0)
    input[1, 2] = 1.0
    input[2, 5:] = torch.linspace(-3, 3, 32)
    input[3] = torch.linspace(-1, 1, 37)
    input[3, 4] = inf
    target = torch.tensor([31, 2, 1, 3, 0])
    loss, gradient, _ = cross_entropy(input, target, reduction="sum")
    rows, _, state = cross_entropy(input, target, reduction="none", gradients=0, statistics=True)
    expected = torch.nn.functional.cross_entropy(input, target, reduction="none")
    assert loss.isnan()
    torch.testing.assert_close(rows, expected, equal_nan=True)
    assert gradient[0, :30].eq(0).all()
    assert gradient[1].eq(0).all()
    # A target of probability 0 costs inf, and its gradient is finite.
    assert rows[2] == inf
    assert gradient[2, 1] == -1
    assert gradient[3:].isnan().any(1).all()
    assert state[4, 3:].eq(0).all()
    # A class without a share has no effect whatever its logit.
    small = torch.tensor([[-inf, 0.0, 1.0, 2.0]])
    weight = torch.tensor([0.0, 1.0, 1.0, 1.0])
    loss, gradient, _ = cross_entropy(small, torch.tensor([0]), weight, reduction="sum", label_smoothing=0.3)
    truth = oracles.cross_entropy(
        small.double().numpy(), np.array([0]), weight.numpy(), None, Options(label_smoothing=0.3)
    )
    np.testing.assert_allclose(loss, truth.losses[0], rtol=1e-6)
    np.testing.assert_allclose(loss, 0.3167, atol=5e-5)
    np.testing.assert_allclose(gradient.numpy(), truth.gradients, atol=1e-7)
    loss, gradient, _ = cross_entropy(small, torch.tensor([2]), reduction="sum", label_smoothing=0.2)
    assert loss == inf
    np.testing.assert_allclose(gradient[0], [-0.05, *(small[0, 1:].softmax(0) - torch.tensor([0.05, 0.85, 0.05]))])
    loss, gradient, _ = cross_entropy(small, torch.tensor([[0.0, 0.5, 0.5, 0.0]]), reduction="sum")
    assert loss.isfinite()
    assert gradient.isfinite().all()


def test_rows_without_part_leave_no_trace(way: str) -> None:
    """Ignored rows, and those of weight 0, may hold anything, and an incoming gradient may be anything."""
    nan = math.nan
    input, target = batch((4, 37))
    target = target.abs() % 37
    target[1], target[2] = -1, 7
    weight = torch.ones(37)
    weight[7] = 0
    target[0], target[3] = 3, 4
    sample_weight = torch.tensor([1.0, 1.0, 1.0, 0.0])
    input[1:] = torch.tensor([nan, math.inf, -math.inf])[:, None]
    fields = {"ignore_index": -1, "z_loss": 0.1}
    for reduction in ("mean", "sum"):
        loss, gradient, state = cross_entropy(
            input, target, weight, sample_weight, torch.tensor(2), reduction=reduction, statistics=True, **fields
        )
        only, first, _ = cross_entropy(
            input[:1], target[:1], weight, None, torch.tensor(2), reduction=reduction, **fields
        )
        assert torch.equal(loss, only)
        assert torch.equal(gradient[:1], first)
        assert gradient[1:].eq(0).all()
        assert state[:, 1:].eq(0).all()
        for factor in (nan, math.inf, -2.0):
            written = gradient.clone()
            options = Options(reduction=reduction, **fields)
            tensors = (input, target, weight, sample_weight, torch.tensor(2))
            backward(torch.tensor(factor), written, *tensors, state[:2], options)
            assert written[1:].eq(0).all()
            assert torch.equal(written[0].isfinite(), torch.full((37,), math.isfinite(factor)))
            again = torch.full_like(gradient, nan)
            backward(torch.tensor(factor), again, *tensors, state[:2], options._replace(gradients=0))
            assert torch.equal(again.nan_to_num(7.0), written.nan_to_num(7.0))
    assert written.shape == input.shape


def test_means_over_nothing(way: str, programs: str) -> None:
    empty = 0.0 if way.startswith("tiles") else math.nan
    input, _ = batch((3, 37))
    input[0] = math.nan
    target = torch.full((3,), -100)
    loss, gradient, _ = cross_entropy(input, target, empty=empty)
    assert torch.equal(loss.isnan(), torch.tensor(math.isnan(empty)))
    assert gradient.eq(0).all()
    for rows in (0, 3):
        loss, gradient, state = cross_entropy(input[:rows], target[:rows], reduction="sum")
        assert loss == 0
        assert state.shape == (2, rows)
    loss, gradient, _ = cross_entropy(input[:0], target[:0], empty=empty)
    assert torch.equal(loss.isnan(), torch.tensor(math.isnan(empty)))
    assert gradient.shape == (0, 37)
    # Something over nothing is infinite, and has no gradient.
    full, indices = batch((3, 37), seed=3)
    loss, gradient, _ = cross_entropy(full, indices, None, None, torch.tensor(0), empty=empty)
    assert loss.isinf()
    assert gradient.eq(0).all()
    full[1, 3] = math.nan
    _, gradient, _ = cross_entropy(full, indices, None, None, torch.tensor(0), empty=empty)
    assert gradient.eq(0).all()
    shares = torch.rand(3, 37)
    loss, gradient, _ = cross_entropy(full[:, :0], shares[:, :0], empty=empty)
    assert torch.equal(loss.isnan(), torch.tensor(math.isnan(empty)))
    assert gradient.shape == (3, 0)


@pytest.mark.parametrize("index", [-1, 37, 1 << 40])
def test_targets_out_of_range_are_refused(way: str, index: int) -> None:
    input, target = batch((3, 37))
    target[2] = index
    with pytest.raises(Exception, match=r"torchlosses: cross_entropy: a target is no class index"):
        cross_entropy(input, target)


@pytest.mark.parametrize(
    ("dtype", "name"), list(zip((torch.uint8, torch.int8, torch.int16, torch.int32), WAYS, strict=False)), ids=str
)
def test_targets_of_every_integer_dtype(monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype, name: str) -> None:
    take(name, monkeypatch)
    input, target = batch((4, 37))
    target = target.masked_fill(target == -100, 5)
    loss, gradient, _ = cross_entropy(input, target.to(dtype), ignore_index=-100)
    expected, wanted, _ = cross_entropy(input, target)
    assert torch.equal(loss, expected)
    assert torch.equal(gradient, wanted)
    loss, _, _ = cross_entropy(input, target.to(dtype), ignore_index=5)
    expected, _, _ = cross_entropy(input, target, ignore_index=5)
    assert torch.equal(loss, expected)


def test_loss_dtype_and_normalizers() -> None:
    input, target = batch((4, 37))
    exact = oracles.cross_entropy(numbers(input), target.numpy(), None, None, Options()).losses.sum()
    for dtype in DTYPES:
        loss, _, _ = cross_entropy(input, target, reduction="sum", dtype=dtype)
        assert loss.dtype == dtype
        assert_close(loss, exact, torch.float32 if dtype == torch.float64 else dtype)
        rows, _, _ = cross_entropy(input, target, reduction="none", gradients=0, dtype=dtype)
        assert rows.dtype == dtype
    for dtype in (torch.int64, torch.uint8, torch.float16, torch.bfloat16, torch.float64):
        loss, _, _ = cross_entropy(input, target, None, None, torch.tensor(8, dtype=dtype))
        assert_close(loss, exact / 8, torch.float32)


def test_many_programs_find_what_one_finds(monkeypatch: pytest.MonkeyPatch, way: str) -> None:
    input, target = batch((9, 37))
    one = cross_entropy(input, target, z_loss=0.1)
    change(monkeypatch, "SMALL", -1)
    many = cross_entropy(input, target, z_loss=0.1)
    again = cross_entropy(input, target, z_loss=0.1)
    torch.testing.assert_close(one[0], many[0], rtol=2e-7, atol=0)
    assert torch.equal(one[1], many[1])
    for first, second in zip(many, again, strict=True):
        assert torch.equal(first, second)


def test_rows_at_every_alignment() -> None:
    """Each place of a row in a vector, from one class on, by the tables as they are."""
    buffer = torch.full((4096,), math.nan)
    for start, classes in [(0, 130), (1, 131), (2, 129), (3, 133), (1, 400), (3, 1030)]:
        row = buffer[start + 4 : start + 4 + 2 * classes].view(2, classes)
        row.copy_(batch((2, classes))[0])
        check_cross_entropy(row, torch.tensor([0, classes - 1]), reductions=("mean",))
        buffer.fill_(math.nan)


# The elementwise losses.

FORMULAS = {
    "mse_loss": (oracles.squared_error, {}),
    "huber_loss": (oracles.huber, {"delta": 0.7}),
    "smooth_l1_loss": (oracles.smooth_l1, {"beta": 0.6}),
    "binary_cross_entropy_with_logits": (oracles.binary_cross_entropy, {"label_smoothing": 0.1, "ignore_index": 2}),
}


def check_elements(name: str, input: Tensor, target: Tensor, weighted: bool, reduction: str, **fields: Any) -> None:
    formula, own = FORMULAS[name]
    compute = torch.float64 if input.dtype == torch.float64 else torch.float32
    binary = name == "binary_cross_entropy_with_logits"
    options = Options(**{"ignore_index": None, "dtype": compute, **own, **fields, "reduction": reduction})
    options = options._replace(gradients=int(reduction != "none"))
    weight = sample_weight = pos_weight = normalizer = None
    if weighted:
        weight = torch.linspace(0, 2, input.shape[-1]).expand(input.shape)
        sample_weight = torch.tensor([0.0, 2.0, 0.5]).repeat(input.shape[0])[: input.shape[0]]
        sample_weight = sample_weight.reshape(-1, *[1] * (input.dim() - 1)).expand(input.shape)
        normalizer = torch.tensor(11.0)
    if binary and weighted:
        pos_weight = torch.full(input.shape[-1:], 1.7).expand(input.shape)
    x, t = numbers(input), numbers(target)
    w, s, q = (1.0 if other is None else numbers(other) for other in (weight, sample_weight, pos_weight))
    losses, slopes = formula(x, t, q, options)
    counted = np.ones(x.shape, dtype=bool) if options.ignore_index is None else t != options.ignore_index
    losses, slopes = losses * w * s * counted, slopes * w * s * counted
    tensors = (input, target, weight, sample_weight, *((pos_weight,) if binary else ()), normalizer)
    loss, gradient = LOSSES[name].forward(*tensors, options)
    ready = None
    if reduction == "none":
        assert_close(loss, losses, compute, 0.3)
        grad_output = torch.linspace(-1, 1, input.numel(), dtype=compute).reshape(input.shape)
        factor = numbers(grad_output)
    else:
        divisor = 1.0 if reduction == "sum" else float(counted.sum()) if normalizer is None else 11.0
        assert_close(loss, losses.sum() / divisor, compute)
        assert_close(gradient, slopes / divisor, input.dtype, 0.3 / divisor)
        grad_output = torch.tensor(1.9, dtype=compute)
        factor = 1.9 / divisor
        ready = gradient.clone()
        LOSSES[name].backward(torch.ones((), dtype=compute), ready, *tensors, options)
        assert torch.equal(ready, gradient)
        LOSSES[name].backward(grad_output, ready, *tensors, options)
    written = torch.full_like(torch.empty_like(input), math.nan)
    LOSSES[name].backward(grad_output, written, *tensors, options._replace(gradients=0))
    assert_close(written, slopes * factor, input.dtype, 0.3 * float(np.max(np.abs(factor))))
    if ready is not None:
        assert torch.equal(ready, written)


@pytest.mark.parametrize(
    ("programs", "name", "layout"),
    in_turn(
        PROGRAMS,
        {
            f"{name}-{layout}": (name, layout)
            for name, layout in itertools.product(FORMULAS, ("contiguous", "offset", "padded", "transposed", "mixed"))
        },
    ),
    indirect=["programs"],
)
def test_elementwise(name: str, layout: str, programs: str) -> None:
    turn = list(FORMULAS).index(name) + len(layout) + len(programs)
    dtype = DTYPES[turn % 4]
    generator = torch.Generator().manual_seed(turn)
    input = (2 * torch.randn((3, 5, 7), generator=generator)).to(dtype)
    target = torch.rand((3, 5, 7), generator=generator).to(dtype)
    target[0, 1, ::3] = 2 if name.startswith("binary") else -1
    if layout == "mixed":
        input, target = laid_out(input, "transposed"), target[:, :1].expand(3, 5, 7)
    else:
        input, target = laid_out(input, layout), laid_out(target, layout)
    for step, reduction in enumerate(("mean", "none", "sum")):
        if (step + turn) % 3:
            check_elements(name, input, target, (turn + step) % 2 == 0, reduction)


def test_elementwise_of_more_dimensions_than_the_kernel_knows() -> None:
    values = torch.randn(2, 3, 2, 3, 2, 3)
    input = values[:, :, ::1].permute(5, 1, 3, 0, 2, 4)
    target = torch.rand(3, 3, 3, 2, 2, 2).transpose(0, 2)[:, :, :, :, :1].expand(3, 3, 3, 2, 2, 2)
    for reduction in ("mean", "none"):
        check_elements("mse_loss", input, target, True, reduction)


def test_tails_of_binary_cross_entropy() -> None:
    """Exact in both tails, and no nan where a side without a share is infinite."""
    inf = math.inf
    input = torch.tensor([40.0, -40.0, inf, -inf, 0.0, 100.0])
    target = torch.tensor([1.0, 0.0, 1.0, 0.0, 0.5, 0.0])
    options = Options(reduction="none", gradients=0, ignore_index=None)
    binary = LOSSES["binary_cross_entropy_with_logits"]
    loss, _ = binary.forward(input, target, None, None, None, None, options)
    np.testing.assert_allclose(loss, [4.248354e-18, 4.248354e-18, 0, 0, math.log(2), 100], rtol=1e-6)
    gradient = torch.empty_like(input)
    binary.backward(torch.ones(()).expand(6), gradient, input, target, None, None, None, None, options)
    np.testing.assert_allclose(gradient, [-4.248354e-18, 4.248354e-18, 0, 0, 0, 1], rtol=1e-6)
    # Neither side has a share.
    nothing, x = torch.zeros(3), torch.tensor([math.nan, inf, -inf])
    loss, _ = binary.forward(x, torch.ones(3), None, None, nothing, None, options)
    np.testing.assert_array_equal(loss, [math.nan, 0, 0])


@pytest.mark.parametrize("scale", [0.01, 1.0])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_binary_cross_entropy_is_as_good_as_torchs(dtype: torch.dtype, scale: float) -> None:
    """Around 0 too, where torch's own is good to half a unit in the last place of log(2)."""
    generator = torch.Generator().manual_seed(0)
    input, target = (
        (torch.randn(3000, generator=generator) * scale).to(dtype),
        torch.rand(3000, generator=generator).to(dtype),
    )
    options = Options(reduction="none", dtype=dtype, gradients=0, ignore_index=None)
    found, _ = LOSSES["binary_cross_entropy_with_logits"].forward(input, target, None, None, None, None, options)
    # In numbers that are wider than the dtype.
    x, t = (numbers(tensor).astype(np.longdouble) for tensor in (input, target))
    truth = np.maximum(x, 0) - x * t + np.log1p(np.exp(-abs(x)))
    ours, theirs = (
        np.max(abs(loss.numpy() - truth))
        for loss in (found, torch.nn.functional.binary_cross_entropy_with_logits(input, target, reduction="none"))
    )
    assert ours <= theirs + torch.finfo(dtype).eps / 2 * np.max(truth)


def test_elements_without_part_leave_no_trace() -> None:
    input = torch.tensor([math.nan, 1.0, math.inf, 2.0])
    target = torch.tensor([0.0, 0.0, 1.0, 1.0])
    sample_weight = torch.tensor([0.0, 1.0, 0.0, 1.0])
    for name in ("mse_loss", "huber_loss", "smooth_l1_loss"):
        loss, gradient = LOSSES[name].forward(input, target, None, sample_weight, torch.tensor(2.0), Options())
        assert loss.isfinite()
        assert gradient[::2].eq(0).all()
        written = gradient.clone()
        LOSSES[name].backward(
            torch.tensor(math.inf), written, input, target, None, sample_weight, torch.tensor(2.0), Options()
        )
        assert written[::2].eq(0).all()
        assert written[1::2].isinf().all()
        # nan that counts is not hidden.
        loss, _ = LOSSES[name].forward(input, target, None, None, None, Options())
        assert loss.isnan()
    beta = Options(beta=0.0, reduction="sum")
    loss, gradient = LOSSES["smooth_l1_loss"].forward(target, sample_weight, None, None, None, beta)
    assert loss == 2
    assert gradient.tolist() == [0.0, -1.0, 1.0, 0.0]


def test_a_mean_over_no_elements() -> None:
    for empty in (math.nan, 0.0):
        for name in ("mse_loss", "huber_loss"):
            nothing = torch.empty(0, 3)
            loss, gradient = LOSSES[name].forward(nothing, nothing, None, None, None, Options(empty=empty))
            assert torch.equal(loss.isnan(), torch.tensor(math.isnan(empty)))
            assert gradient.shape == (0, 3)


# The textbook's cross-entropy error.


@pytest.mark.parametrize("layout", ["contiguous", "offset", "transposed"])
@pytest.mark.parametrize("kind", ["indices", "probabilities", "one-hot"])
def test_textbook(kind: str, layout: str, programs: str) -> None:
    turn = len(kind) + len(layout) + len(programs)
    for shape in ((4, 9), (2, 300, 3)):
        generator = torch.Generator().manual_seed(turn)
        input = laid_out(torch.rand(shape, generator=generator).softmax(1).to(DTYPES[turn % 4]), layout)
        rows = (shape[0], *shape[2:])
        target = torch.randint(shape[1], rows, generator=generator)
        if kind == "one-hot":
            target = torch.nn.functional.one_hot(target, shape[1]).movedim(-1, 1)
            target = target.bool() if turn % 2 else target
        elif kind == "probabilities":
            target = laid_out(torch.rand(shape, generator=generator).softmax(1).to(DTYPES[turn % 3]), layout)
        sample_weight = torch.linspace(0, 1, math.prod(rows)).view(rows)
        compute = torch.float64 if torch.float64 in (input.dtype, target.dtype) else torch.float32
        reduction = ("mean", "none", "sum")[turn % 3]
        options = Options(reduction=reduction, gradients=int(reduction != "none"), delta=1e-7, dtype=compute)
        t = in_rows(numbers(target)) if kind != "indices" else target.numpy().reshape(-1)
        losses, slopes = oracles.textbook(in_rows(numbers(input)), t, numbers(sample_weight).reshape(-1), options)
        if len(shape) == 3:
            slopes = np.moveaxis(slopes.reshape(*rows, -1), -1, 1)
        tensors = (input, target, sample_weight, None)
        loss, gradient = LOSSES["cee_loss"].forward(*tensors, options)
        written = torch.full_like(torch.empty_like(input), math.nan)
        if reduction == "none":
            assert_close(loss.reshape(-1), losses, compute, 0.1)
            grad_output, factor = torch.tensor(1.5, dtype=compute).expand(rows), 1.5
        else:
            divisor = math.prod(rows) if reduction == "mean" else 1.0
            assert_close(loss, losses.sum() / divisor, compute)
            assert_close(gradient, slopes / divisor, input.dtype)
            grad_output, factor = torch.tensor(1.5, dtype=compute), 1.5 / divisor
            LOSSES["cee_loss"].backward(grad_output, gradient, *tensors, options)
        LOSSES["cee_loss"].backward(grad_output, written, *tensors, options._replace(gradients=0))
        assert_close(written, slopes * factor, input.dtype)
        if reduction != "none":
            assert torch.equal(gradient, written)


def test_textbook_corners() -> None:
    textbook = LOSSES["cee_loss"]
    p = torch.tensor([[1.0, 0.0], [0.5, 0.5]])
    # Next to 1 the logarithm keeps its digits; without delta a class without a share counts for nothing.
    loss, _ = textbook.forward(p[:1], torch.tensor([0]), None, None, Options(delta=1e-7, reduction="sum"))
    np.testing.assert_allclose(loss, -math.log1p(1e-7), rtol=1e-6)
    loss, gradient = textbook.forward(
        p, torch.tensor([[1.0, 0.0], [0.0, 1.0]]), None, None, Options(delta=0.0, reduction="sum")
    )
    np.testing.assert_allclose(loss, math.log(2), rtol=1e-6)
    assert gradient.tolist() == [[-1.0, 0.0], [0.0, -2.0]]
    with pytest.raises(Exception, match="torchlosses: cee_loss: a target is no class index"):
        textbook.forward(p, torch.tensor([0, 2]), None, None, Options(delta=0.0))
    with pytest.raises(ValueError, match="probabilities"):
        textbook.forward(p * 3, torch.tensor([0, 1]), None, None, Options(delta=0.0, validate_args=True))
    sample_weight = torch.tensor([1.0, 0.0])
    one_hot = torch.tensor([[1, 0], [0, 7]])
    for values, target in ((p * torch.tensor([[1.0], [9.0]]), torch.tensor([0, 1])), (p, one_hot)):
        textbook.forward(values, target, sample_weight, None, Options(delta=1e-7, validate_args=True))
        with pytest.raises(ValueError, match=r"probabilities|one-hot"):
            textbook.forward(values, target, None, None, Options(delta=1e-7, validate_args=True))
    p[1] = math.nan
    loss, gradient = textbook.forward(p, torch.tensor([0, 1]), sample_weight, None, Options(delta=1e-7))
    assert loss.isfinite()
    assert gradient[1].eq(0).all()


# Log-probabilities and entropy.


def check_log_probs(input: Tensor, target: Tensor, compute: torch.dtype, **fields: Any) -> None:
    """Values, state and gradients against the definition; in place too."""
    options = Options(reduction="none", gradients=0, dtype=compute, **fields)
    log_probs = LOSSES["log_probs"]
    shape = (input.shape[0], *input.shape[2:])
    log_probability, entropy, correct, of_log_probability, of_entropy = oracles.log_probs(
        in_rows(numbers(input)), target.numpy().reshape(-1), options
    )
    values, gradient, state = log_probs.forward(input, target, None, options)
    assert gradient.shape == (0,)
    assert values.shape == (shape[0], 2, *shape[1:])
    assert_close(values[:, 0].reshape(-1), log_probability, compute, 1.0)
    assert_close(values[:, 1].reshape(-1), entropy, compute, 1.0)
    assert_close(state[3].reshape(-1), correct, compute)
    grad_output = torch.randn(values.shape, generator=torch.Generator().manual_seed(0), dtype=compute)
    g, h = (numbers(grad_output[:, field]).reshape(-1, 1) for field in range(2))
    expected = g * of_log_probability + h * of_entropy
    if input.dim() == 3:
        expected = np.moveaxis(expected.reshape(*shape, -1), -1, 1)
    written = torch.full_like(input, math.nan)
    log_probs.backward(grad_output, written, input, target, None, state, options)
    assert_close(written, expected, input.dtype, 0.3)
    over = torch.empty_like(input).copy_(input)
    log_probs.backward(grad_output, over, over, target, None, state, options)
    assert_close(over, expected, input.dtype, 0.3)


@pytest.mark.parametrize(
    ("tile", "layout"),
    in_turn(
        ("one tile", "several tiles"),
        {layout: (layout,) for layout in ("contiguous", "offset", "padded", "transposed", "channels last")},
        lambda layout: layout not in ("transposed", "padded"),
    ),
)
def test_log_probs(tile: str, layout: str, monkeypatch: pytest.MonkeyPatch) -> None:
    change(monkeypatch, "rows", rows(4, tile == "one tile", False))
    for turn, shape in enumerate(((5, 9), (3, 230), (2, 77, 3))):
        dtype = DTYPES[(turn + len(layout)) % 4]
        input, target = batch(shape, dtype)
        fields = ({}, {"logit_scale": -0.7}, {"logit_softcap": 2.0, "logit_scale": 1.5})[turn]
        compute = torch.float64 if dtype == torch.float64 else torch.float32
        check_log_probs(laid_out(input, layout), target, compute, **fields)


@pytest.mark.parametrize("tile", ["one tile", "several tiles"])
def test_log_probs_in_the_corners(tile: str, monkeypatch: pytest.MonkeyPatch) -> None:
    change(monkeypatch, "rows", rows(2, tile == "one tile", False))
    logits = torch.full((6, 101), -math.inf)
    logits[0, 3], logits[0, 90] = 0.0, -20.0  # all but sure
    logits[1, :5] = 1.0  # many classes are ruled out
    logits[2] = math.nan  # ignored
    logits[3, 50:] = 0.0  # the target is ruled out
    logits[4, 7] = math.nan
    logits[5] = 0.0
    target = torch.tensor([3, 4, -100, 1, 0, 0])
    options = Options(reduction="none")
    values, _, state = LOSSES["log_probs"].forward(logits, target, None, options)
    rest = math.exp(-20)
    truth = [
        [-math.log1p(rest), math.log1p(rest) + rest / (1 + rest) * 20],
        [-math.log(5), math.log(5)],
        [0, 0],
        [-math.inf, math.log(51)],
        [math.nan, math.nan],
        [-math.log(101), math.log(101)],
    ]
    np.testing.assert_allclose(values, truth, rtol=1e-6)
    assert state[3].tolist() == [1, 0, 0, 0, 0, 1]
    gradient = torch.empty_like(logits)
    LOSSES["log_probs"].backward(torch.ones(6, 2), gradient, logits, target, None, state, options)
    assert gradient[[0, 1, 2, 3, 5]].isfinite().all()
    assert not gradient[2].any()
    # g (1 - p) - h p (log p + H)
    np.testing.assert_allclose(gradient[0, 3], rest - rest * 20, rtol=1e-5)
    with pytest.raises(Exception, match="torchlosses: log_probs: a target is no class index"):
        LOSSES["log_probs"].forward(logits, target + 101, None, options)
    empty = LOSSES["log_probs"].forward(logits[:0], target[:0], None, options)[0]
    assert empty.shape == (0, 2)


def test_a_row_without_a_share_leaves_no_trace(way: str) -> None:
    input, _ = batch((4, 30))
    options = Options(statistics=True, reduction="none", z_loss=0.1)
    loss, _, state = forward(input, torch.zeros(4, 30), None, None, None, options)
    assert not loss.any()
    assert not state[2:].any()
    # Nor does it have a loss or a gradient, whatever its logits are.
    input[0, 3], input[1], input[2, 4] = math.nan, -math.inf, math.inf
    for fields in ({}, {"z_loss": 0.1}, {"logit_softcap": 3.0}):
        for tensors in (
            (input, torch.zeros(4, 30), None, None, None),
            (input, torch.zeros(4, dtype=torch.int64), torch.zeros(30), None, None),
        ):
            options = Options(reduction="sum", label_smoothing=0.1 * (tensors[2] is not None), **fields)
            loss, gradient, state = forward(*tensors, options)
            assert loss == 0
            assert not gradient.any()
            backward(torch.tensor(2.0), gradient, *tensors, state, options._replace(gradients=0))
            assert not gradient.any()


# Classes that are split over processes; here one process has them all. tests/distributed_cases.py has several.


def check_split(
    input: Tensor,
    target: Tensor,
    weight: Tensor | None = None,
    sample_weight: Tensor | None = None,
    normalizer: Tensor | None = None,
    reduction: str = "mean",
    gradient: str = "forward",
    **fields: Any,
) -> None:
    """Value, statistics and gradients against the definition; twice to the same bits."""
    wide = any(t is not None and t.dtype == torch.float64 for t in (input, target, weight))
    compute = torch.float64 if wide else torch.float32
    of_oracle = Options(**fields)
    x = in_rows(numbers(input))
    t = in_rows(numbers(target)) if target.dim() == input.dim() else numbers(target).reshape(-1)
    s = None if sample_weight is None else numbers(sample_weight).reshape(-1)
    truth = oracles.cross_entropy(x, t, numbers(weight), s, of_oracle)
    rows = (input.shape[0], *input.shape[2:])
    divisor = 1.0
    if reduction == "mean":
        divisor = float(truth.counted.sum() if normalizer is None else normalizer)
    leaf = laid_out_like(input).requires_grad_()
    calls = [
        class_parallel_cross_entropy(
            leaf, target, weight, sample_weight=sample_weight, normalizer=normalizer, reduction=reduction,
            loss_dtype=compute, return_stats=True, gradient=gradient, **fields,
        )
        for _ in range(2)
    ]  # fmt: skip
    (loss, statistics), (other, _) = calls
    assert torch.equal(loss, other)
    for field, expected in zip(statistics, truth.statistics, strict=False):
        assert_close(field.to(compute).reshape(-1), expected, compute, 1.0)
    if reduction == "none":
        assert_close(loss.detach().reshape(-1), truth.losses, compute, 1.0)
        incoming = torch.linspace(0.5, -2, loss.numel(), dtype=compute).reshape(rows)
        factor: Any = numbers(incoming).reshape(-1, 1)
    else:
        assert_close(loss.detach(), truth.losses.sum() / divisor, compute, 1.0 / divisor)
        incoming, factor = torch.tensor(-0.7, dtype=compute), -0.7 / divisor
        # Along with the loss, and for 1 it is handed over.
        (unit,) = torch.autograd.grad(loss, leaf, retain_graph=True)
        assert_close(in_rows(unit), truth.gradients / divisor, input.dtype, 0.1 / divisor)
    # What is made of it for another, and what is computed anew.
    (written,) = torch.autograd.grad(other, leaf, incoming)
    (anew,) = torch.autograd.grad(loss, leaf, incoming)
    assert_close(in_rows(anew), truth.gradients * factor, input.dtype, 0.1 * float(np.max(np.abs(factor))))
    assert torch.equal(written, anew)


def laid_out_like(values: Tensor) -> Tensor:
    """The same numbers in memory of their own, as they lie."""
    copy = values.new_full((values.untyped_storage().nbytes() // values.element_size(),), math.nan)
    return copy.as_strided(values.shape, values.stride(), values.storage_offset()).copy_(values)


@pytest.mark.parametrize(
    ("kind", "name", "way"),
    [
        pytest.param(kind, name, way, marks=() if (3 * place + turn) % 10 == 6 else pytest.mark.thorough)
        for kind in ("indices", "probabilities")
        for (place, way), (turn, name) in itertools.product(enumerate(WAYS), enumerate(OPTIONS))
    ],
)
def test_split_options(monkeypatch: pytest.MonkeyPatch, way: str, name: str, kind: str) -> None:
    take(way, monkeypatch)
    turn = list(WAYS).index(way) + list(OPTIONS).index(name) + (kind == "probabilities")
    input, target = batch((3, 37), DTYPES[turn % 4], kind == "probabilities", turn)
    weight = sample_weight = normalizer = None
    reduction = ("none", "mean", "sum")[turn % 3]
    if turn % 2 or name == "all":
        weight = torch.rand(37, dtype=input.dtype if kind == "indices" else torch.float32)
        weight[3::5] = 0
        sample_weight = torch.tensor([0.5, 0.0, 1.5])
        normalizer = torch.tensor(3.5) if reduction == "mean" else None
    if turn // 2 % 2:
        change(monkeypatch, "SMALL", -1)
    gradient = ("backward", "forward", "forward")[turn // 3 % 3]
    check_split(input, target, weight, sample_weight, normalizer, reduction, gradient, **OPTIONS[name])


@pytest.mark.parametrize(
    "layout",
    ["offset", *thorough("channels last", "padded", "transposed")],
)
def test_split_layouts(layout: str, monkeypatch: pytest.MonkeyPatch) -> None:
    change(monkeypatch, "SHORT", 32)
    for turn, shape in enumerate(((4, 9), (2, 33, 2), (2, 41))):
        change(monkeypatch, "rows", rows(2, turn == 0, True))
        change(monkeypatch, "tiles", tiles(turn != 0))
        change(monkeypatch, "SMALL", -1)
        input, target = batch(shape, DTYPES[(turn + len(layout)) % 4], len(layout) % 2 == turn % 2)
        target = laid_out(target, layout) if target.dim() == len(shape) else target
        check_split(laid_out(input, layout), target, reduction=("mean", "none")[turn % 2])


@pytest.mark.parametrize(
    "name",
    [
        "tiles, some classes",
        *(pytest.param(f"rows, {way}", marks=pytest.mark.thorough) for way in ("one tile", "prefetched")),
    ],
)
def test_split_corners(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """nan, infinities and rows without part, as the steps in PyTorch have them."""
    take(name, monkeypatch)
    inf, nan = math.inf, math.nan
    input = torch.randn(9, 37, generator=torch.Generator().manual_seed(1))
    input[0, 3:], input[1, 2], input[2, 5], input[3] = -inf, nan, inf, -inf
    input[4], input[5, 7], input[6, 1] = nan, -inf, 40.0
    target = torch.tensor([1, 0, 0, 0, -100, 7, 1, 2, 3])
    shares = torch.rand(9, 37, generator=torch.Generator().manual_seed(2))
    shares[0, 3:], shares[4], shares[5, 7], shares[8] = 0, 0, 0, 0
    # They cancel each other.
    shares[8, 1], shares[8, 3] = 0.5, -0.5
    sample_weight = torch.ones(9)
    sample_weight[7], input[7] = 0, nan
    weight = torch.ones(37)
    weight[7] = 0
    for given in (
        {"target": target},
        {"target": target, "weight": weight},
        {"target": shares, "weight": weight},
        {"target": target, "label_smoothing": 0.1, "z_loss": 0.1},
        {"target": shares, "logit_softcap": 3.0, "z_loss": 0.1},
    ):
        results = []
        for name in ("triton", "eager"):
            with kernels.use(name):
                leaf = input.clone().requires_grad_()
                losses, statistics = class_parallel_cross_entropy(
                    leaf, **given, sample_weight=sample_weight, reduction="none", return_stats=True
                )
                losses.backward(torch.ones(9))
            results.append((losses.detach(), leaf.grad, *statistics))
        for found, expected in zip(*results, strict=True):
            torch.testing.assert_close(found, expected, rtol=2e-6, atol=2e-6, equal_nan=True)
    # A state is what it is whoever made it.
    leaf = input.clone().requires_grad_()
    losses = class_parallel_cross_entropy(leaf, **given, sample_weight=sample_weight, reduction="none")
    with kernels.use("eager"):
        losses.backward(torch.ones(9))
    torch.testing.assert_close(leaf.grad, results[1][1], rtol=2e-6, atol=2e-6, equal_nan=True)


def test_a_gradient_over_split_logits() -> None:
    """As the blocks of the linear loss have it: in place, for one number a row."""
    input, target = batch((5, 37), torch.bfloat16)
    x, weight = torch.randn(5, 8).bfloat16(), torch.randn(37, 8).bfloat16()
    split = SplitCrossEntropy.options(*Options(reduction="none", gradients=0)[:11], "", 0, 37, False)
    state = SplitCrossEntropy.operator(input, target, None, None, None, *split)[2]
    grad = torch.rand(5)
    expected = SplitCrossEntropy.backward_operator(grad, input, target, None, None, None, state, *split)
    SplitCrossEntropy.backward_operator_(grad, input, input, target, None, None, None, state, *split)
    assert torch.equal(input, expected)
    found, truth = ([t.clone().requires_grad_() for t in (x, weight)] for _ in range(2))
    class_parallel_linear_cross_entropy(*found, target, block_rows=2).backward()
    torch.nn.functional.cross_entropy((truth[0].float() @ truth[1].float().t()).bfloat16().float(), target).backward()
    for ours, right in zip(found, truth, strict=True):
        torch.testing.assert_close(ours.grad, right.grad, rtol=0.03, atol=0.01)


SMALL_BATCHES: dict[str, tuple[Callable[..., Tensor], Callable[[], Tensor]]] = {
    "cross_entropy": (torchlosses.cross_entropy, lambda: torch.randint(5, (8,))),
    "cross_entropy, probabilities": (torchlosses.cross_entropy, lambda: torch.rand(8, 5)),
    "cee_loss": (partial(torchlosses.cee_loss, validate_args=False), lambda: torch.rand(8, 5)),
    **{
        name: (getattr(torchlosses, name), lambda: torch.rand(8, 5))
        for name in ("mse_loss", "huber_loss", "smooth_l1_loss", "binary_cross_entropy_with_logits")
    },
}


def shares(dtype: torch.dtype = torch.float32) -> Tensor:
    """A batch between 0 and 1, which every loss takes."""
    return torch.rand(8, 5).to(dtype).requires_grad_()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("name", SMALL_BATCHES)
def test_a_small_batch_is_one_launch_in_all(name: str, dtype: torch.dtype) -> None:
    """Forward and backward, with the mean and the gradient, weighted or not."""
    function, make = SMALL_BATCHES[name]
    target = make()
    if target.is_floating_point():
        target = target.to(dtype)
    for options in ({}, {"reduction": "sum"}, {"sample_weight": torch.rand(8)}, {"normalizer": 3.0}):
        input = shares(dtype)
        started: list[Any] = []
        with launch.rehearsing(launch.Rehearsal(lambda *launched, to=started: to.append(launched))):
            loss = function(input, target, **options)
            assert len(started) == 1
            loss.backward(torch.tensor(0.5, dtype=loss.dtype))
            assert len(started) == 1
            function(input.detach(), target, **options)
            assert len(started) == 2


@pytest.mark.parametrize("name", SMALL_BATCHES)
def test_small_batches_one_after_the_other(name: str) -> None:
    """By one plan: each has its own loss and gradient, and what was given out stays what it is."""
    function, target = SMALL_BATCHES[name]
    batches = [(shares(), target(), torch.tensor(factor)) for factor in (1.0, -0.7, 3.0)]
    found = [function(input, of) for input, of, _ in batches]
    for (input, _, factor), loss in zip(batches, found, strict=True):
        loss.backward(factor, retain_graph=True)
        first = input.grad.clone()
        loss.backward(factor)
        torch.testing.assert_close(input.grad, 2 * first)
    for (input, of, factor), loss in zip(batches, found, strict=True):
        with kernels.use("eager"):
            leaf = input.detach().clone().requires_grad_()
            expected = function(leaf, of)
            expected.backward(2 * factor)
        torch.testing.assert_close(loss, expected)
        torch.testing.assert_close(input.grad, leaf.grad)
        # Through the dispatcher, where a profile shows it.
        leaf = input.detach().clone().requires_grad_()
        with torch.autograd.profiler.profile() as profile:
            again = function(leaf, of)
            again.backward(2 * factor)
        assert any(event.key.startswith("torchlosses::") for event in profile.key_averages())
        assert torch.equal(again, loss)
        torch.testing.assert_close(leaf.grad, input.grad)


@pytest.mark.parametrize("name", SMALL_BATCHES)
def test_small_batches_are_differentiated_again(name: str) -> None:
    function, target = SMALL_BATCHES[name]
    of = target()
    results = []
    for backend in ("triton", "eager"):
        with kernels.use(backend):
            leaf = shares().detach().copy_(torch.linspace(0.1, 0.9, 40).view(8, 5)).requires_grad_()
            (gradient,) = torch.autograd.grad(function(leaf, of), leaf, torch.tensor(2.0), create_graph=True)
            (second,) = torch.autograd.grad(gradient.square().sum(), leaf)
            results.append((gradient.detach(), second))
    for found, expected in zip(*results, strict=True):
        torch.testing.assert_close(found, expected)


def test_ignored_elements_stay_zero_whatever_comes_in() -> None:
    logits = torch.randn(8, 5, requires_grad=True)
    target = torch.tensor([0, -100, 1, -100, 2, 3, 4, -100])
    loss = torchlosses.cross_entropy(logits, target)
    (gradient,) = torch.autograd.grad(loss, logits, torch.tensor(math.inf))
    assert torch.equal(gradient[target == -100], torch.zeros(3, 5))
    assert not gradient[target != -100].isfinite().any()


def test_small_batches_that_the_dispatcher_has_to_look_at() -> None:
    """Of negated memory, of none, and of a transform that is over."""
    input = torch.rand(8, 5)
    kept: list[Tensor] = []
    torch.func.grad(lambda x: kept.append(x.cos()) or x.sum())(input)
    targets = {
        "negated": torch.view_as_complex(torch.rand(8, 5, 2)).conj().imag,
        "zeros": torch._efficientzerotensor(8, 5),  # type: ignore[attr-defined]
        "left behind": kept[0],
    }
    for target in targets.values():
        plain = target.resolve_neg() + 0.0
        leaves = [input.clone().requires_grad_() for _ in range(2)]
        found, expected = (torchlosses.mse_loss(leaf, t) for leaf, t in zip(leaves, (target, plain), strict=True))
        torch.testing.assert_close(found, expected)
        found.backward()
        expected.backward()
        torch.testing.assert_close(leaves[0].grad, leaves[1].grad)
