"""Compiles the kernels of a call for a GPU that is not there, and reads what came out."""

from __future__ import annotations

import re
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import torch
import triton
from triton._C.libtriton import ir
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource, make_backend
from triton.runtime.jit import create_function_from_signature

from torchlosses.kernels.triton.launch import Device, Rehearsal, rehearsing

TARGETS = {
    "sm_80": GPUTarget("cuda", 80, 32),
    "sm_90": GPUTarget("cuda", 90, 32),
    "sm_100": GPUTarget("cuda", 100, 32),
    "gfx942": GPUTarget("hip", "gfx942", 64),
}


class Compiled(NamedTuple):
    """A kernel as it was compiled."""

    name: str
    constants: dict[str, Any]
    warps: int
    assembly: str
    binary: bytes

    @property
    def loads(self) -> list[str]:
        """The types of its loads from global memory in PTX, such as 'v4.b32'; inside of loops or not."""
        return [
            re.sub(r"^.*?((v\d\.)?\w\d+)$", r"\1", load) for load in re.findall(r"ld\.global(\.\S+)", self.assembly)
        ]

    @property
    def stores(self) -> list[str]:
        """The types of its stores."""
        return [
            re.sub(r"^.*?((v\d\.)?\w\d+)$", r"\1", store) for store in re.findall(r"st\.global(\.\S+)", self.assembly)
        ]

    def spilled(self) -> int:
        """Bytes of a thread's stack on an NVIDIA GPU: registers that did not fit."""
        with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
            file.write(self.binary)
            file.flush()
            tool = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
            usage = subprocess.run([tool, "-res-usage", file.name], capture_output=True, text=True, check=True).stdout
        return int(re.findall(r"STACK:(\d+)", usage)[-1])


@contextmanager
def compiling(target: str, only_parsed: bool = False) -> Iterator[list[Compiled]]:
    """Calls in this block compile their kernels, or as far as types are checked; tensors stand on the device `meta`."""
    found: list[Compiled] = []
    gpu = TARGETS[target]
    backend = make_backend(gpu)

    def start(
        kernel: Any,
        device: torch.device,
        programs: int,
        warps: int,
        arguments: tuple[Any, ...],
        constants: dict[str, Any],
    ) -> None:
        options = {**constants, "num_warps": warps}
        bind = create_function_from_signature(kernel.signature, kernel.params, backend)
        bound, specialization, rest = bind(*arguments, **options)
        parsed, signature, constexprs, attributes = kernel._pack_args(backend, options, bound, specialization, rest)
        source = ASTSource(kernel, signature, constexprs, attributes)
        if only_parsed:
            context = ir.context()
            ir.load_dialects(context)
            backend.load_dialects(context)
            make: Any = backend
            source.make_ir(gpu, parsed, make.get_codegen_implementation(parsed), make.get_module_map(), context)
            found.append(Compiled(kernel.__name__, constants, warps, "", b""))
            return
        result = triton.compile(source, target=gpu, options=parsed.__dict__)
        nvidia = gpu.backend == "cuda"
        assembly, binary = result.asm["ptx" if nvidia else "amdgcn"], result.asm["cubin" if nvidia else "hsaco"]
        found.append(Compiled(kernel.__name__, constants, warps, str(assembly), binary))

    with rehearsing(Rehearsal(start, Device(132, 1024 // gpu.warp_size))):
        yield found
