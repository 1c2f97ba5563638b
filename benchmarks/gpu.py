"""The command that measures on a GPU: `python -m benchmarks.gpu`, also `make bench-gpu`.

Every time stands beside its limit, which is measured in the same run: the copy of the logits for a cross-entropy with
its gradient, half of that for the loss alone, reading and writing the tensors for elementwise losses, the three matrix
products for the linear loss. It writes benchmarks/results/gpu.json, and docs/gpu.md from that.
"""

# pyright: reportArgumentType=false, reportUnusedExpression=false

from __future__ import annotations

import importlib.util
import json
import sys
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any

import torch
import torch.nn.functional as F
import tyro
from torch import Tensor

import torchlosses
from torchlosses import kernels
from training.files import write_text_atomically

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results" / "gpu.json"
PAGE = ROOT / "docs" / "gpu.md"


@dataclass(frozen=True)
class Measured:
    """One implementation of one case: milliseconds, peak MiB beside the inputs, and how often the limit it takes."""

    case: str
    implementation: str
    milliseconds: float
    mebibytes: float
    of_limit: float
    goal: float | None


@dataclass(frozen=True)
class TableRow:
    """What is measured, beside what limit (ms, measured in the same run), and how often the limit it may take."""

    name: str
    limit: Callable[[], Any]
    limit_factor: float
    goal: float | None
    implementations: dict[str, Callable[[], Any]]


def milliseconds(call: Callable[[], Any]) -> float:
    """The median of a call."""
    from triton.testing import do_bench

    return float(do_bench(call, warmup=50, rep=300, return_mode="median"))


def peak(call: Callable[[], Any]) -> float:
    """MiB beside what is there before."""
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    call()
    torch.cuda.synchronize()
    return (torch.cuda.max_memory_allocated() - before) / 2**20


def step(loss: Callable[..., Tensor], leaves: tuple[Tensor, ...], *arguments: Any, factor: float | None = None) -> Any:
    """Forward and backward, the gradients forgotten."""

    def call() -> None:
        for leaf in leaves:
            leaf.grad = None
        result = loss(*arguments)
        (result if factor is None else factor * result).sum().backward()

    return call


def rivals(logits: Tensor, target: Tensor) -> dict[str, Callable[[], Any]]:
    """Torch, compiled torch, and the libraries that are installed."""
    found = {
        "torch": step(F.cross_entropy, (logits,), logits, target),
        "torch.compile": step(torch.compile(F.cross_entropy, dynamic=False), (logits,), logits, target),
    }
    if importlib.util.find_spec("liger_kernel"):
        from liger_kernel.transformers.functional import liger_cross_entropy  # type: ignore[import-not-found]

        found["Liger"] = step(lambda x, t: liger_cross_entropy(x.clone(), t), (logits,), logits, target)
    if importlib.util.find_spec("quack"):
        from quack import cross_entropy as quack_cross_entropy  # type: ignore[import-not-found]

        found["quack"] = step(lambda x, t: quack_cross_entropy(x, t).mean(), (logits,), logits, target)
    return found


def cross_entropy_cases() -> Iterator[TableRow]:
    """Sizes of language models, of images and of a classifier, and every option of one of them."""
    for shape, dtype, goal in (
        ((8192, 32000), torch.bfloat16, 1.12),
        ((4096, 50257), torch.float32, 1.2),
        ((8192, 50257), torch.bfloat16, 1.25),
        ((8192, 128256), torch.bfloat16, 1.2),
        ((4096, 256000), torch.bfloat16, 1.45),
        ((65536, 1000), torch.float32, 1.25),
        ((8, 21, 512, 512), torch.float32, 1.5),
    ):
        logits = torch.randn(shape, device="cuda").to(dtype).requires_grad_()
        target = torch.randint(shape[1], (shape[0], *shape[2:]), device="cuda")
        name = f"cross_entropy {'×'.join(map(str, shape))} {str(dtype).removeprefix('torch.')}"
        detached = logits.detach()
        ours = {"torchlosses": step(torchlosses.cross_entropy, (logits,), logits, target)}
        yield TableRow(name, detached.clone, 1.0, goal, {**ours, **rivals(logits, target)})
        alone = {
            "torchlosses": lambda x=detached, t=target: torchlosses.cross_entropy(x, t),
            "torch": lambda x=detached, t=target: F.cross_entropy(x, t),
        }
        yield TableRow(f"{name}, forward alone", detached.clone, 0.5, 1.12, alone)
        if shape != (8192, 32000):
            continue
        plain = ours["torchlosses"]
        for option, fields in (
            ("class weights", {"weight": torch.rand(shape[1], device="cuda")}),
            ("smoothing", {"label_smoothing": 0.1}),
            ("z-loss", {"z_loss": 1e-4}),
            ("soft cap", {"logit_softcap": 30.0}),
            ("statistics", {"return_stats": True}),
        ):

            def loss(x: Tensor, t: Tensor, fields: dict[str, Any] = fields) -> Tensor:
                result = torchlosses.cross_entropy(x, t, **fields)
                return result[0] if isinstance(result, tuple) else result

            yield TableRow(
                f"{name}, {option}, beside plain",
                plain,
                1.0,
                1.1,
                {"torchlosses": step(loss, (logits,), logits, target)},
            )
        probabilities = torch.softmax(torch.randn(shape, device="cuda"), 1).to(dtype)
        yield TableRow(
            f"{name}, probabilities", detached.clone, 1.5, 1.2,
            {
                "torchlosses": step(torchlosses.cross_entropy, (logits,), logits, probabilities),
                "torch": step(F.cross_entropy, (logits,), logits, probabilities),
            },
        )  # fmt: skip

        def rows(x: Tensor, t: Tensor) -> Tensor:
            return torchlosses.cross_entropy(x, t, reduction="none")

        yield TableRow(
            f"{name}, none", detached.clone, 1.0, 1.6, {"torchlosses": step(rows, (logits,), logits, target)}
        )
        other = step(torchlosses.cross_entropy, (logits,), logits, target, factor=0.5)
        yield TableRow(f"{name}, incoming gradient 0.5", detached.clone, 1.0, 2.2, {"torchlosses": other})


def elementwise_cases() -> Iterator[TableRow]:
    """Beside a sum that reads as much, and an addition that reads and writes as much."""
    count = 1 << 26
    input = torch.randn(count, device="cuda", requires_grad=True)
    target = torch.rand(count, device="cuda")
    detached = input.detach()
    double = torch.randn(2 * count, device="cuda")
    out = torch.empty_like(target)
    for name in ("mse_loss", "huber_loss", "smooth_l1_loss", "binary_cross_entropy_with_logits"):
        ours, builtin = getattr(torchlosses, name), getattr(F, name)
        compiled = torch.compile(builtin)
        yield TableRow(
            f"{name} 64 Mi float32, forward alone", double.sum, 1.0, 1.08,
            {
                "torchlosses": lambda ours=ours: ours(detached, target),
                "torch": lambda builtin=builtin: builtin(detached, target),
                "torch.compile": lambda compiled=compiled: compiled(detached, target),
            },
        )  # fmt: skip
        yield TableRow(
            f"{name} 64 Mi float32", lambda: torch.add(detached, target, out=out), 1.0, 1.08,
            {
                "torchlosses": step(ours, (input,), input, target),
                "torch": step(builtin, (input,), input, target),
                "torch.compile": step(compiled, (input,), input, target),
            },
        )  # fmt: skip


def small_cases() -> Iterator[TableRow]:
    """64×10: torch's own time is the limit."""
    logits = torch.randn(64, 10, device="cuda", requires_grad=True)
    target = torch.randint(10, (64,), device="cuda")
    values = torch.rand(64, 10, device="cuda")
    for name in ("cross_entropy", "mse_loss", "huber_loss", "smooth_l1_loss", "binary_cross_entropy_with_logits"):
        second = target if name == "cross_entropy" else values
        ours = step(getattr(torchlosses, name), (logits,), logits, second)
        builtin = step(getattr(F, name), (logits,), logits, second)
        yield TableRow(f"{name} 64×10, beside torch", builtin, 1.0, 1.0, {"torchlosses": ours})


def linear_cases() -> Iterator[TableRow]:
    """Beside the products alone."""
    for rows, features, classes, goal in (
        (8192, 4096, 128256, 1.08),
        (32768, 4096, 128256, 1.05),
        (8192, 2304, 256000, None),
    ):
        hidden = torch.randn(rows, features, device="cuda").to(torch.bfloat16).requires_grad_()
        weight = (torch.randn(classes, features, device="cuda") * 0.02).to(torch.bfloat16).requires_grad_()
        target = torch.randint(classes, (rows,), device="cuda")

        def products(x: Tensor = hidden, w: Tensor = weight) -> None:
            x, w = x.detach(), w.detach()
            for start in range(0, len(x), 4096):
                logits = x[start : start + 4096] @ w.t()
                logits @ w
                logits.t() @ x[start : start + 4096]

        def plain(x: Tensor, w: Tensor, t: Tensor) -> Tensor:
            return F.cross_entropy(F.linear(x, w), t)

        found = {"torchlosses": step(torchlosses.linear_cross_entropy, (hidden, weight), hidden, weight, target)}
        if rows == 8192:
            found["torch"] = step(plain, (hidden, weight), hidden, weight, target)
            found["torch.compile"] = step(torch.compile(plain), (hidden, weight), hidden, weight, target)
        if importlib.util.find_spec("cut_cross_entropy"):
            from cut_cross_entropy import linear_cross_entropy  # type: ignore[import-not-found]

            found["CCE"] = step(linear_cross_entropy, (hidden, weight), hidden, weight, target)
        if importlib.util.find_spec("liger_kernel"):
            from liger_kernel.transformers.functional import (  # type: ignore[import-not-found]
                liger_fused_linear_cross_entropy,
            )

            found["Liger"] = step(
                lambda x, w, t: liger_fused_linear_cross_entropy(x, w, t), (hidden, weight), hidden, weight, target
            )
        yield TableRow(f"linear_cross_entropy {rows}×{features}×{classes} bfloat16", products, 1.0, goal, found)


def measure(case: TableRow) -> list[Measured]:
    """The limit first, then each implementation."""
    limit = milliseconds(case.limit) * case.limit_factor
    found = [Measured(case.name, "limit", limit, 0.0, 1.0, None)]
    for name, call in case.implementations.items():
        time = milliseconds(call)
        goal = case.goal if name == "torchlosses" else None
        found.append(Measured(case.name, name, time, peak(call), time / limit, goal))
        print(f"{case.name:60} {name:14} {time:9.3f} ms {time / limit:6.2f} of the limit", flush=True)
    return found


def page(results: dict[str, Any]) -> str:
    """docs/gpu.md: every figure, and the card that it comes from."""
    lines = [
        "# On a GPU",
        "",
        f"Measured on one {results['device']}, torch {results['torch']}, Triton {results['triton']}: medians of",
        "`triton.testing.do_bench`, forward and backward unless said. The limit is measured in the same run; goals are",
        "in parts of it. Memory is the peak beside the inputs.",
        "",
        "| case | implementation | ms | MiB | of the limit | goal |",
        "| --- | --- | ---: | ---: | ---: | ---: |",
    ]
    for row in results["measured"]:
        goal = "" if row["goal"] is None else f"{row['goal']:.2f}"
        lines.append(
            f"| {row['case']} | {row['implementation']} | {row['milliseconds']:.3f} | {row['mebibytes']:.0f} "
            f"| {row['of_limit']:.2f} | {goal} |"
        )
    return "\n".join(lines) + "\n"


@dataclass(frozen=True)
class Options:
    """Measure the losses on a GPU beside their limits, torch and the libraries that are installed."""

    only: Annotated[str, tyro.conf.arg(metavar="TEXT")] = ""
    """Cases whose name contains this; nothing is written then."""
    out: Annotated[Path, tyro.conf.arg(metavar="FILE")] = RESULTS
    """Where the figures go."""


def main() -> int:
    """Measure, write and say which goals were missed."""
    options = tyro.cli(Options, prog="python -m benchmarks.gpu")
    if not torch.cuda.is_available() or kernels.GPU_BACKEND.name != "triton":
        print(f"No GPU that Triton serves is at hand ({kernels.GPU_BACKEND.reason}).", file=sys.stderr)
        return 2
    import triton

    measured: list[Measured] = []
    for cases in (cross_entropy_cases, elementwise_cases, small_cases, linear_cases):
        for case in cases():
            if options.only in case.name:
                measured += measure(case)
                # What was compiled for one size says nothing of the next.
                torch.compiler.reset()
        torch.cuda.empty_cache()
    results = {
        "device": torch.cuda.get_device_name(),
        "torch": torch.__version__,
        "triton": triton.__version__,
        "measured": [asdict(one) for one in measured],
    }
    if not options.only:
        write_text_atomically(options.out, json.dumps(results, indent=1) + "\n")
        write_text_atomically(PAGE, page(results))
    missed = [one for one in measured if one.goal is not None and one.of_limit > one.goal]
    for one in missed:
        print(f"missed: {one.case}: {one.of_limit:.2f} of the limit, goal {one.goal:.2f}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
