"""Builds the compiled operators. Everything else about the package stands in pyproject.toml.

They are one shared library behind LibTorch's stable ABI: it knows no Python and no version of torch, so the wheel
carries no Python tag. Without a C++ compiler or torch's headers the package is installed without it and runs on PyTorch
operations.
TORCHLOSSES_BUILD=auto|native|eager decides: native makes a failure to build an error, eager builds nothing.
"""

from __future__ import annotations

import importlib.util
import os
import platform
import shutil
import sys
import sysconfig
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build_ext import build_ext

VARIABLE = "TORCHLOSSES_BUILD"
SOURCES = Path("torchlosses") / "kernels" / "csrc"
LIBRARY = "torchlosses.kernels._native"
# 2.10: the oldest LibTorch that the library runs on.
DEFINITIONS = ["-DTORCH_TARGET_VERSION=0x020a000000000000"]
OPTIONS = ["-std=c++17", "-O3", "-fPIC", "-ffp-contract=off", "-fvisibility=hidden", "-g0", "-Wno-psabi"]
INSTRUCTION_SETS = {
    "baseline": [],
    "avx2": ["-mavx2", "-mfma", "-mf16c"],
    "avx512": ["-mavx512f", "-mavx512bw", "-mavx512dq", "-mavx512vl", "-mavx2", "-mfma", "-mf16c"],
}
IS_X86 = platform.machine().lower() in ("x86_64", "amd64")


def choice() -> str:
    """What TORCHLOSSES_BUILD asks for."""
    value = os.environ.get(VARIABLE, "auto")
    if value not in ("auto", "native", "eager"):
        sys.exit(f"{VARIABLE}={value!r} is no way to build: expected auto, native or eager.")
    return value


def torch_headers() -> Path | None:
    """The include directory of torch: of the build environment, or of the environment that is installed into.

    pip builds apart from the environment; a torch of several gigabytes is not worth fetching twice for its headers.
    """
    spec = importlib.util.find_spec("torch")
    roots = [] if spec is None or spec.origin is None else [Path(spec.origin).parent]
    roots += [Path(sysconfig.get_path(name)) / "torch" for name in ("platlib", "purelib")]
    for root in roots:
        if (root / "include" / "torch" / "csrc" / "stable" / "library.h").is_file():
            return root / "include"
    return None


def compiler() -> str | None:
    """The C++ compiler: $CXX, or the first that is found."""
    asked = os.environ.get("CXX")
    names = [asked.split()[0]] if asked else ["c++", "g++", "clang++"]
    return next((found for found in map(shutil.which, names) if found), None)


class BuildKernels(build_ext):
    """Compiles the kernels once for each instruction set, and links them with the operators."""

    def build_extension(self, ext: Extension) -> None:
        """Build the library, or say why the package runs without it."""
        try:
            self._build(ext)
        except Exception as error:
            if choice() == "native":
                raise
            self.announce_eager(str(error))

    def _build(self, ext: Extension) -> None:
        headers, command = torch_headers(), compiler()
        if command is None or os.name == "nt":
            raise RuntimeError("no C++ compiler (GCC or Clang) was found")
        if headers is None:
            raise RuntimeError("torch's headers were not found; install torch first, or use --no-build-isolation")
        if self.compiler is None:
            raise RuntimeError("no compiler was set up")
        self.compiler.set_executables(
            compiler_so=[command], compiler_so_cxx=[command], linker_so_cxx=[command, "-shared"]
        )
        extra = os.environ.get("CXXFLAGS", "").split()
        objects = []
        host = ["-O2", *(["-DTORCHLOSSES_X86"] if IS_X86 else [])]
        units = [(path.name, "baseline", host) for path in sorted(SOURCES.glob("*.cpp")) if path.name != "kernels.cpp"]
        sets = INSTRUCTION_SETS if IS_X86 else {"baseline": []}
        units += [("kernels.cpp", name, options) for name, options in sets.items()]
        for source, name, options in units:
            objects += self.compiler.compile(
                [str(SOURCES / source)],
                output_dir=str(Path(self.build_temp) / name),
                extra_preargs=[*OPTIONS, *DEFINITIONS, f"-DINSTRUCTION_SET={name}", *options, "-isystem", str(headers)],
                extra_postargs=extra,
                depends=ext.depends,
            )
        target = Path(self.get_ext_fullpath(ext.name))
        target.parent.mkdir(parents=True, exist_ok=True)
        # By its name only: at run time it is the LibTorch that torch has loaded. Built beside its place, and then moved
        # there, so that a process which has the old one loaded keeps it.
        libraries = [f"-L{headers.parent / 'lib'}", "-ltorch_cpu"]
        temporary = target.with_name(f".{target.name}")
        self.spawn([command, "-shared", *objects, *libraries, *extra, "-o", str(temporary)])
        temporary.replace(target)

    def announce_eager(self, reason: str) -> None:
        """Once, in the log of the build."""
        self.warn(f"torchlosses is installed without its compiled operators and runs on PyTorch operations: {reason}.")

    def get_ext_filename(self, fullname: str) -> str:
        """No Python tag: the library is the same for all."""
        return str(Path(*fullname.split("."))) + ".so"

    def copy_extensions_to_source(self) -> None:
        """For an editable install; there is nothing to copy if nothing was built."""
        if any(Path(output).exists() for output in super().get_outputs()):
            super().copy_extensions_to_source()

    def get_outputs(self) -> list[str]:
        """What was built."""
        return [output for output in super().get_outputs() if Path(output).exists()]


class Wheel(bdist_wheel):
    """A wheel for every Python on this platform."""

    def get_tag(self) -> tuple[str, str, str]:
        """The platform only."""
        *_, tag = super().get_tag()
        return "py3", "none", tag


wanted = choice() != "eager"
headers_missing = wanted and compiler() is not None and torch_headers() is None
setup(
    ext_modules=[
        Extension(
            LIBRARY,
            [str(path) for path in sorted(SOURCES.glob("*.cpp"))],
            depends=[str(path) for path in sorted(SOURCES.glob("*.h"))],
        )
    ]
    if wanted
    else [],
    # Only where the environment has no torch yet; pip then has it in its cache for the environment itself.
    setup_requires=["torch>=2.10"] if headers_missing else [],
    cmdclass={"build_ext": BuildKernels, "bdist_wheel": Wheel},
)
