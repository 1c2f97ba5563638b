"""A driver for Triton that starts nothing: kernels are compiled, and what they would start with is kept.

Tensors of the CPU stand for a GPU's; they have addresses, which tensors on `meta` do not.
"""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, NamedTuple

from tests.kernels.compiled import TARGETS


class Launch(NamedTuple):
    """What a kernel was started with; `arguments` has one for each of the function, constants too."""

    name: str
    programs: int
    device: int  # the current one
    stream: int
    arguments: tuple[Any, ...]


class Driver:
    """In the place of `triton.runtime.driver.active`."""

    def __init__(self) -> None:
        self.launches: list[Launch] = []
        self.device, self.stream = 0, 1
        self.utils = SimpleNamespace(
            get_device_properties=lambda device: {"max_shared_mem": 228 << 10},
            load_binary=lambda name, kernel, shared, device: (1, 2, 32, 0, 1024),
            unload_module=lambda module: None,
        )

    def get_current_device(self) -> int:
        return self.device

    def get_current_stream(self, device: int | None) -> int:
        return self.stream + 100 * (device or 0)

    def get_current_target(self) -> Any:
        return TARGETS["sm_90"]

    def launcher_cls(self, source: Any, metadata: Any) -> Any:
        """Triton's own launcher hands its arguments to the device."""

        def launch(
            x: int, y: int, z: int, stream: int, function: int, _: Any, about: Any, enter: Any, leave: Any, *rest: Any
        ) -> None:
            assert (y, z, function) == (1, 1, 2)
            if enter is not None:
                enter(about)
            self.launches.append(Launch(metadata.name, x, self.device, stream, rest))
            if leave is not None:
                leave(about)

        return launch
