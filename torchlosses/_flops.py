"""What `torch.utils.flop_counter` is told of the operators.

The counter looks at operators from outside and knows a formula for each: the products inside of ours are for us to
count. Its module imports Triton, half a second; so the formulas wait until somebody else has loaded it.
"""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable, Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

_COUNTER = "torch.utils.flop_counter"
_waiting: list[tuple[Any, Callable[..., int]]] = []


def register(operator: Any, formula: Callable[..., int]) -> None:
    """Have the counter use `formula`, of the operator's arguments with shapes in place of tensors."""
    if _COUNTER in sys.modules:
        _tell(operator, formula)
        return
    if not _waiting:
        sys.meta_path.insert(0, _Watch())
    _waiting.append((operator, formula))


def _tell(operator: Any, formula: Callable[..., int]) -> None:
    counter = sys.modules[_COUNTER]
    # Operators of the same names are there where the package is imported a second time in one process.
    counter.flop_registry.pop(operator, None)
    counter.register_flop_formula(operator)(formula)


class _Watch(MetaPathFinder):
    """Passes on what was waiting when the counter is loaded, and is gone."""

    def find_spec(self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None) -> Any:
        if fullname != _COUNTER:
            return None
        sys.meta_path.remove(self)
        spec: ModuleSpec | None = importlib.util.find_spec(fullname)
        loader: Any = None if spec is None else spec.loader
        if loader is None:
            return spec
        execute = loader.exec_module

        def exec_module(module: ModuleType) -> None:
            execute(module)
            for operator, formula in _waiting:
                _tell(operator, formula)
            _waiting.clear()

        loader.exec_module = exec_module
        return spec
