"""Blocks of rows on an accelerator: how many there are, and what they take. No memory is needed to know."""

from __future__ import annotations

import math
from collections import Counter
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

pytest.importorskip("triton")

from tests.kernels.on_meta import Memory, Steps
from torchlosses import linear_cross_entropy
from torchlosses.kernels.linear import ACCELERATOR_ROWS, FEW_BLOCKS, default_block_rows, rows_at_a_time

MEBIBYTE = 1 << 20


def sizes(count: int, block_rows: int, device: str = "cuda") -> list[int]:
    size = rows_at_a_time(count, block_rows, device)
    return [min(size, count - start) for start in range(0, count, size)]


@pytest.mark.parametrize("classes", [10, 32000, 128256, 256000, 1 << 20])
def test_blocks_have_many_rows_where_there_are_so_many(classes: int) -> None:
    for count in (1, 2047, 2048, 2049, 3000, 4095, 4096, 4097, 6143, 8192, 10000, 16384, 20000, 32768, 32769, 10**6):
        for known in (count, None):
            block_rows = default_block_rows(classes, 2, "cuda", known)
            blocks = sizes(count, block_rows)
            assert sum(blocks) == count
            assert max(blocks) <= block_rows <= 4096
            assert all(rows >= min(count, ACCELERATOR_ROWS) for rows in blocks[:-1])
            # No more of them than can be summed narrowly, if blocks may be large enough.
            if known is not None and classes <= 256000 and count <= FEW_BLOCKS * 4096:
                assert len(blocks) <= FEW_BLOCKS
                # What is left over has not fallen to a block of its own.
                assert blocks[-1] > min(count, ACCELERATOR_ROWS) - len(blocks)


def test_what_was_asked_for_is_what_is_taken_at_most() -> None:
    for device in ("cpu", "cuda"):
        for count in (1, 7, 100, 3000, 5000):
            for block_rows in (1, 3, 64, 1000, 2100, 4096):
                blocks = sizes(count, block_rows, device)
                assert sum(blocks) == count
                assert max(blocks) <= block_rows
                assert len(blocks) == math.ceil(count / block_rows)
                if device == "cpu" or block_rows < ACCELERATOR_ROWS:
                    assert blocks[0] - blocks[-1] < len(blocks)


def peak(rows: int, features: int, classes: int, gradients: bool = True) -> float:
    """MiB beside the inputs, of forward and backward or of the forward alone."""
    input, weight = (
        torch.empty(shape, dtype=torch.bfloat16, device="meta", requires_grad=gradients)
        for shape in ((rows, features), (classes, features))
    )
    target = torch.empty(rows, dtype=torch.int64, device="meta")
    with pytest.MonkeyPatch.context() as monkeypatch, Memory() as memory, Steps().in_triton(monkeypatch):
        loss = linear_cross_entropy(input, weight, target)
        if gradients:
            loss.backward()
    return memory.peak / MEBIBYTE


@pytest.mark.parametrize(("rows", "most"), [(8192, 1.7 * 1024), (32768, 2.4 * 1024)])
def test_a_large_loss_takes_its_gradients_and_one_block(rows: int, most: float) -> None:
    found, of_block = peak(rows, 4096, 128256), default_block_rows(128256, 2, "cuda", rows)
    # The last is a block's input without what ignored rows hold.
    expected = (rows * 4096 + 128256 * 4096 + of_block * 128256 + of_block * 4096) * 2 / MEBIBYTE
    assert expected <= found <= expected + 2
    assert found <= most


class Passes(TorchDispatchMode):
    """How often operations of PyTorch read or write a tensor of so many bytes or more, by their names."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.size, self.found = size, Counter[str]()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        large = {
            id(leaf.untyped_storage())
            for leaf in tree_leaves((args, kwargs, result))
            if isinstance(leaf, Tensor) and leaf.numel() * leaf.element_size() >= self.size
        }
        name = func._schema.name.removeprefix("aten::")
        if large and not func.is_view and not name.startswith(("empty", "new_empty", "torchlosses::")):
            self.found[name] += len(large)
        return result


@pytest.mark.parametrize("options", [{}, {"reduction": "none", "z_loss": 0.1}, {"label_smoothing": 0.1}])
def test_a_block_is_three_products_and_one_launch(options: dict[str, Any]) -> None:
    """The kernel finds the losses and writes the gradient over the logits; nothing else passes over these."""
    rows, features, classes, blocks = 8192, 64, 128256, 4
    input, weight = (
        torch.empty(shape, dtype=torch.bfloat16, device="meta", requires_grad=True)
        for shape in ((rows, features), (classes, features))
    )
    target, steps = torch.empty(rows, dtype=torch.int64, device="meta"), Steps()
    with pytest.MonkeyPatch.context() as monkeypatch, Passes(weight.nbytes) as passes, steps.in_triton(monkeypatch):
        loss = linear_cross_entropy(input, weight, target, **options)
        # Each product with the weight and the logits.
        assert steps.launched == ["rows_kernel"] * blocks
        assert passes.found == {"mm": 2 * blocks}
        steps.launched.clear()
        passes.found.clear()
        # Below a mode the gradients wait for the backward, which computes the logits again.
        loss.backward(torch.empty_like(loss))
    assert steps.launched == ["rows_kernel"] * blocks
    # The third is added to the weight's gradient, which the incoming gradient passes over at the end.
    products = {"mm": 2 * blocks + 2 * blocks + 2, "addmm_": 2 * (blocks - 1)}
    assert passes.found == products | ({} if options.get("reduction") == "none" else {"mul_": 1})


def test_without_gradients_the_peak_is_one_block() -> None:
    expected = 2048 * 128256 * 2 / MEBIBYTE
    assert expected <= peak(8192, 4096, 128256, gradients=False) <= expected + 2
