"""The operators' own steps on tensors without memory, which stand for those of a GPU."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from torchlosses import kernels
from torchlosses._declare import Loss


class Steps(TorchDispatchMode):
    """The operators take their steps, those of a backend or in PyTorch operations, in place of giving a shape."""

    def __init__(self) -> None:
        super().__init__()
        self.kernels = {name: kernel for loss in declared() for name, kernel in in_python(loss).items()}
        self.taken: set[str] = set()
        self.named: set[str] = set()  # by kernels that assert something
        self.launched: list[str] = []

    def start(self, kernel: Any, *launched: Any) -> None:
        """In place of starting a kernel."""
        self.named.add(launched[-1].get("NAME", ""))
        self.launched.append(kernel.__name__)

    @contextmanager
    def in_triton(self, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
        """Take the steps of Triton's backend, as on a GPU; its kernels are not started."""
        from torchlosses.kernels.triton import launch

        monkeypatch.setattr(kernels, "_TRITON_KEYS", ("META",))
        monkeypatch.setattr(kernels, "_TRITON_DEVICES", {"meta"})
        monkeypatch.setattr(kernels, "_triton_runs", True)
        for loss in declared():
            self.kernels |= {f"{loss.name}{suffix}": kernel for suffix, _, kernel in kernels._in_triton(loss)}
        with launch.rehearsing(launch.Rehearsal(self.start, launch.Device(132, 32))), self:
            yield

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        library, _, name = func._schema.name.partition("::")
        if library != "torchlosses" or name not in self.kernels:
            return func(*args, **(kwargs or {}))
        self.taken.add(name)
        with self:
            return self.kernels[name](*args)


def declared(loss: type[Loss] = Loss) -> Iterator[type[Loss]]:
    for kind in loss.__subclasses__():
        yield from declared(kind)
        if hasattr(kind, "name"):
            yield kind


def in_python(loss: Any) -> dict[str, Callable[..., Any]]:
    """The operators of a loss as every device has them."""
    n, m, make, steps = loss.count, loss.count + loss.keeps, loss.options, loss.kernels
    return {
        loss.name: lambda *a: steps.forward(loss, a[:n], make(*a[n:])),
        f"{loss.name}_backward": lambda g, *a: steps.backward(loss, g, a[:n], make(*a[m:]), *a[n:m]),
        f"{loss.name}_backward_": lambda g, out, *a: steps.backward_(loss, g, out, a[:n], make(*a[m:]), *a[n:m]),
    }


class Memory(TorchDispatchMode):
    """The bytes that the tensors made in this block take together, and the most that they took."""

    def __init__(self) -> None:
        super().__init__()
        self.bytes = self.peak = 0
        self._seen: set[int] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        given = {id(leaf.untyped_storage()) for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)}
        result = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            if isinstance(tensor, Tensor) and id(storage := tensor.untyped_storage()) not in self._seen | given:
                self._seen.add(id(storage))
                self.bytes += storage.nbytes()
                weakref.finalize(storage, self._freed, id(storage), storage.nbytes())
        self.peak = max(self.peak, self.bytes)
        return result

    def _freed(self, storage: int, size: int) -> None:
        self._seen.discard(storage)
        self.bytes -= size
