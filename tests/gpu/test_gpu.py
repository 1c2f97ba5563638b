"""The kernels on a GPU: `make test-gpu`. Without one there is nothing to run.

Values are compared with float64 on the CPU, and errors with torch's own on the same GPU. The manners are CUDA graphs,
streams, other devices, torch.compile, and that nothing waits for the device.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import torchlosses
from torchlosses import kernels
from torchlosses.distributed import class_parallel_cross_entropy

if not torch.cuda.is_available():
    pytest.skip("needs a GPU", allow_module_level=True)
if kernels.GPU_BACKEND.name != "triton":
    pytest.skip("needs Triton", allow_module_level=True)

# The truth is computed on the CPU, of large batches too.
torch.set_num_threads(os.cpu_count() or 1)

pytestmark = [
    pytest.mark.filterwarnings("ignore:Synchronization debug mode is a prototype feature:UserWarning"),
    pytest.mark.filterwarnings("ignore:The AccumulateGrad node's stream does not match:UserWarning"),
]

DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
SIZES = (
    (64, 10),
    (4096, 1000),
    (512, 32000),
    (300, 50257),
    (64, 128256),
    (2, 1_000_000),
    (4, 21, 64, 64),
    (3, 1000, 200),
)
OPTIONS: tuple[dict[str, Any], ...] = (
    {},
    {"label_smoothing": 0.1},
    {"z_loss": 1e-4},
    {"logit_softcap": 30.0},
    {"label_smoothing": 0.1, "z_loss": 1e-4, "logit_softcap": 30.0, "reduction": "sum"},
)


def batch(shape: tuple[int, ...], dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    generator = torch.Generator("cuda").manual_seed(0)
    logits = (torch.randn(shape, device="cuda", generator=generator) * 3).to(dtype).requires_grad_()
    target = torch.randint(shape[1], (shape[0], *shape[2:]), device="cuda", generator=generator)
    target.view(-1)[::7] = -100
    return logits, target


def differentiated(
    function: Callable[..., Tensor], *tensors: Tensor, factor: float = 1.0, **options: Any
) -> list[Tensor]:
    """The loss, and the gradients of `factor` times it."""
    leaves = [t.detach().clone().requires_grad_() if t.requires_grad else t for t in tensors]
    loss = function(*leaves, **options)
    (factor * loss).sum().backward()
    return [loss.detach(), *(leaf.grad for leaf in leaves if leaf.grad is not None)]


def truth(function: Callable[..., Tensor], *tensors: Tensor, **options: Any) -> list[Tensor]:
    """In float64 on the CPU, with the operators in PyTorch."""
    wide = [
        t.detach().cpu().double().requires_grad_(t.requires_grad) if t.is_floating_point() else t.cpu() for t in tensors
    ]
    with kernels.use("eager"):
        return differentiated(function, *wide, **options)


def assert_as_good(found: Tensor, exact: Tensor, rival: Tensor | None = None) -> None:
    """Within rounding of the dtype, or as close to the truth as torch's own result is."""
    error = (found.cpu().double() - exact).abs().max()
    allowed = torch.finfo(found.dtype).eps * 4 * exact.abs().max() + 1e-12
    if rival is not None:
        allowed = torch.maximum(allowed, (rival.cpu().double() - exact).abs().max())
    assert error <= allowed, (float(error), float(allowed))


@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", SIZES, ids=str)
def test_cross_entropy(shape: tuple[int, ...], dtype: torch.dtype, options: dict[str, Any]) -> None:
    logits, target = batch(shape, dtype)
    exact, exact_gradient = truth(torchlosses.cross_entropy, logits, target, **options)
    for factor in (1.0, -0.3):
        loss, gradient = differentiated(torchlosses.cross_entropy, logits, target, factor=factor, **options)
        assert_as_good(loss, exact)
        assert_as_good(gradient, factor * exact_gradient)
        again = differentiated(torchlosses.cross_entropy, logits, target, factor=factor, **options)
        assert torch.equal(again[0], loss)
        assert torch.equal(again[1], gradient)
    if set(options) <= {"label_smoothing"}:
        rivals = differentiated(F.cross_entropy, logits, target, **options)
        ours = differentiated(torchlosses.cross_entropy, logits, target, **options)
        for mine, his, right in zip(ours, rivals, (exact, exact_gradient), strict=True):
            assert_as_good(mine, right, his)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("offset", range(8))
def test_rows_at_any_alignment(dtype: torch.dtype, offset: int) -> None:
    for classes in (1001, 20001):
        buffer = torch.randn(64 * classes + 8, device="cuda").to(dtype)
        logits = buffer[offset : offset + 64 * classes].view(64, classes).requires_grad_()
        target = torch.randint(classes, (64,), device="cuda")
        found = differentiated(torchlosses.cross_entropy, logits, target)
        for mine, right in zip(found, truth(torchlosses.cross_entropy, logits, target), strict=True):
            assert_as_good(mine, right)


@pytest.mark.parametrize("count", [640, 1 << 20, (1 << 20) + 3])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(
    ("ours", "builtin"),
    [
        (torchlosses.mse_loss, F.mse_loss),
        (torchlosses.huber_loss, F.huber_loss),
        (torchlosses.smooth_l1_loss, F.smooth_l1_loss),
        (torchlosses.binary_cross_entropy_with_logits, F.binary_cross_entropy_with_logits),
    ],
    ids=("mse", "huber", "smooth_l1", "binary_cross_entropy"),
)
def test_elementwise(ours: Any, builtin: Any, dtype: torch.dtype, count: int) -> None:
    input = torch.randn(count, device="cuda").to(dtype).requires_grad_()
    target = torch.rand(count, device="cuda").to(dtype)
    for mine, his, right in zip(
        differentiated(ours, input, target),
        differentiated(builtin, input, target),
        truth(builtin, input, target),
        strict=True,
    ):
        assert_as_good(mine, right, his)


def test_large_offsets() -> None:
    """Rows beyond 2^31 elements: 12 GiB."""
    if torch.cuda.get_device_properties(0).total_memory < 20 << 30:
        pytest.skip("needs a GPU with 20 GiB")
    logits = torch.zeros(70000, 32000, dtype=torch.bfloat16, device="cuda")
    logits[-1].copy_(torch.randn(32000, device="cuda"))
    row = logits[-1:].clone()
    target = torch.zeros(70000, dtype=torch.int64, device="cuda")
    losses = torchlosses.cross_entropy(logits, target, reduction="none")
    torch.testing.assert_close(losses[-1:], torchlosses.cross_entropy(row, target[:1], reduction="none"))
    torch.testing.assert_close(losses[:-1].float().mean().item(), math.log(32000), rtol=1e-2, atol=0)


def losses() -> list[tuple[str, Callable[[Tensor, Tensor], Tensor], tuple[int, ...]]]:
    return [
        ("cross_entropy", torchlosses.cross_entropy, (512, 1000)),
        ("small cross_entropy", torchlosses.cross_entropy, (64, 10)),
        ("smoothed", lambda x, t: torchlosses.cross_entropy(x, t, label_smoothing=0.1, z_loss=1e-4), (512, 1000)),
        ("textbook", lambda x, t: torchlosses.cee_loss(x.softmax(1), t.clamp(0), validate_args=False), (512, 1000)),
        ("mse", lambda x, t: torchlosses.mse_loss(x, x.detach() * 0.5), (512, 1000)),
        ("binary", lambda x, t: torchlosses.binary_cross_entropy_with_logits(x, x.detach().sigmoid()), (512, 1000)),
        ("linear", lambda x, t: torchlosses.linear_cross_entropy(x, torch.ones_like(x), t.clamp(0, 511)), (512, 64)),
        ("class parallel", lambda x, t: class_parallel_cross_entropy(x, t, label_smoothing=0.1), (512, 1000)),
        ("class parallel, statistics", lambda x, t: class_parallel_cross_entropy(x, t, return_stats=True)[0], (64, 10)),
    ]


@pytest.mark.parametrize(("name", "loss", "shape"), losses(), ids=lambda value: value if isinstance(value, str) else "")
def test_nothing_waits_and_graphs_replay(name: str, loss: Any, shape: tuple[int, ...]) -> None:
    static, target = batch(shape, torch.float32)
    target.clamp_(0, shape[1] - 1)

    def step() -> Tensor:
        static.grad = None
        result = loss(static, target)
        result.backward()
        return result

    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            step()
    torch.cuda.current_stream().wait_stream(stream)
    torch.cuda.set_sync_debug_mode("error")
    try:
        step()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    graph = torch.cuda.CUDAGraph()
    static.grad = None
    with torch.cuda.graph(graph):
        result = loss(static, target)
        result.backward()
    with torch.no_grad():
        static.copy_(torch.randn(shape, device="cuda"))
    graph.replay()
    replayed = result.clone(), static.grad.clone()  # type: ignore[union-attr]
    expected = step()
    torch.testing.assert_close(replayed[0], expected.detach())
    torch.testing.assert_close(replayed[1], static.grad)


@pytest.mark.parametrize("mode", ["default", "reduce-overhead"])
def test_compiled(mode: str) -> None:
    logits, target = batch((512, 1000), torch.float32)
    compiled = torch.compile(torchlosses.cross_entropy, fullgraph=True, mode=mode)
    for _ in range(3):
        for mine, his in zip(
            differentiated(compiled, logits, target),
            differentiated(torchlosses.cross_entropy, logits, target),
            strict=True,
        ):
            torch.testing.assert_close(mine, his)


def test_side_stream_and_other_device() -> None:
    logits, target = batch((512, 1000), torch.float32)
    expected = differentiated(torchlosses.cross_entropy, logits, target)
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        found = differentiated(torchlosses.cross_entropy, logits, target)
    stream.synchronize()
    for mine, his in zip(found, expected, strict=True):
        assert torch.equal(mine, his)
    if torch.cuda.device_count() > 1:
        moved = differentiated(
            torchlosses.cross_entropy, logits.detach().to("cuda:1").requires_grad_(), target.to("cuda:1")
        )
        for mine, his in zip(moved, expected, strict=True):
            torch.testing.assert_close(mine.cpu(), his.cpu())


@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("shape", [(64, 10), (300, 50257), (4, 21, 64, 64)], ids=str)
def test_local_parts_of_split_classes(shape: tuple[int, ...], options: dict[str, Any]) -> None:
    """One process has all classes: to the truth that the whole loss has."""
    for dtype in DTYPES:
        logits, target = batch(shape, dtype)
        found = differentiated(class_parallel_cross_entropy, logits, target, factor=-0.3, **options)
        exact = truth(torchlosses.cross_entropy, logits, target, factor=-0.3, **options)
        for mine, right in zip(found, exact, strict=True):
            assert_as_good(mine, right)


def test_statistics_are_those_of_the_cpu() -> None:
    logits, target = batch((64, 5000), torch.float32)
    _, found = torchlosses.cross_entropy(logits, target, return_stats=True)
    _, expected = torchlosses.cross_entropy(logits.detach().cpu(), target.cpu(), return_stats=True)
    for mine, his in zip(found, expected, strict=True):
        torch.testing.assert_close(mine.cpu(), his, rtol=2e-6, atol=2e-6)


def test_a_target_out_of_range_stops_the_process() -> None:
    """A device-side assertion ends the process's CUDA context, so it has a process of its own."""
    import subprocess
    import sys

    program = (
        "import torch, torchlosses; torchlosses.cross_entropy(torch.zeros(4, 5, device='cuda'), "
        "torch.tensor([0, 1, 7, 2], device='cuda')); torch.cuda.synchronize()"
    )
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert result.returncode != 0
    assert "torchlosses: cross_entropy" in result.stderr + result.stdout
