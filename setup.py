"""Builds the compiled operators. Everything else about the package stands in pyproject.toml.

They are one shared library behind LibTorch's stable ABI: it knows no Python and no version of torch, so the wheel
carries no Python tag, and building needs neither torch nor its headers: those it uses lie in third_party/. Without a
C++ compiler the package is installed without the library, and runs on PyTorch operations; it then says so, and why,
when it is imported.
TORCHLOSSES_BUILD=auto|native|eager decides: native makes a failure to build an error, eager builds nothing.
CXX is the compiler's whole command ("ccache g++"), CXXFLAGS are its last options.
"""

from __future__ import annotations

import os
import platform
import shlex
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build_ext import build_ext

# The address of the repository, once it has one: the package's URLs and the site's links are made of it.
REPOSITORY = ""
VARIABLE = "TORCHLOSSES_BUILD"
SOURCES = Path("torchlosses") / "kernels" / "csrc"
HEADERS = Path("third_party") / "torch" / "include"
# In a folder that is no package, and so no module for whoever lists the modules of the package.
LIBRARY = "torchlosses.lib.libtorchlosses"
# Stands where the library is missing, and says why; torchlosses.kernels.backend reads it.
NOTICE = "not-built.txt"
# 2.10: the oldest LibTorch that the library runs on.
DEFINITIONS = ["-DTORCH_TARGET_VERSION=0x020a000000000000"]
OPTIONS = ["-std=c++17", "-fPIC", "-ffp-contract=off", "-fvisibility=hidden", "-g0", "-Wno-psabi"]
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


def compiler() -> list[str]:
    """The command of the C++ compiler: $CXX, or the first that is found.

    Raises:
        RuntimeError: There is none.
    """
    asked = shlex.split(os.environ.get("CXX", ""))
    if asked and shutil.which(asked[0]) is None:
        raise RuntimeError(f"CXX={os.environ['CXX']!r} asks for {asked[0]!r}, which was not found")
    found = next(filter(shutil.which, ["c++", "g++", "clang++"]), None)
    if os.name == "nt" or not (asked or found):
        raise RuntimeError("no C++ compiler (GCC or Clang) was found")
    return asked or [str(found)]


def execute(command: list[str]) -> None:
    """Run a command of the compiler.

    Raises:
        RuntimeError: It failed; the message has the command and the beginning of what it said.
    """
    print(shlex.join(command), flush=True)
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False)
    if done.returncode:
        print(done.stdout, flush=True)
        said = "\n".join(done.stdout.splitlines()[:20])
        raise RuntimeError(f"`{shlex.join(command)}` failed with status {done.returncode}:\n{said}")


def units() -> list[tuple[Path, str, list[str]]]:
    """Each source, an instruction set and the options for it: all sets for kernels, the baseline for all else."""
    sets = INSTRUCTION_SETS if IS_X86 else {"baseline": []}
    kernels, others = [], []
    for source in sorted(SOURCES.rglob("*.cpp")):
        if source.relative_to(SOURCES).parts[0] in ("kernels", "kernels.cpp"):
            kernels += [(source, name, ["-O3", *options]) for name, options in sets.items()]
        else:
            others.append((source, "baseline", ["-O2"]))
    return kernels + others


class BuildLibrary(build_ext):
    """Compiles the kernels once for each instruction set, and links them with the operators."""

    def build_extension(self, ext: Extension) -> None:
        """Build the library, or say why the package runs without it."""
        target = Path(self.get_ext_fullpath(ext.name))
        notice = target.with_name(NOTICE)
        target.parent.mkdir(parents=True, exist_ok=True)
        if choice() == "eager":
            target.unlink(missing_ok=True)
            notice.unlink(missing_ok=True)
            return
        try:
            self._build(target)
        except RuntimeError as error:
            if choice() == "native":
                raise
            self.warn(f"torchlosses is installed without its compiled operators: {error}")
            target.unlink(missing_ok=True)
            notice.write_text(f"{error}\n", encoding="utf-8")
        else:
            notice.unlink(missing_ok=True)

    def _build(self, target: Path) -> None:
        command, folder = compiler(), Path(self.build_temp)
        extra = shlex.split(os.environ.get("CXXFLAGS", ""))
        options = [*OPTIONS, *DEFINITIONS, f"-I{SOURCES}", "-isystem", str(HEADERS)]
        options += ["-include", str(SOURCES / "older_linux.h")]
        if IS_X86:
            options.append("-DTORCHLOSSES_X86")

        def compile_unit(unit: tuple[Path, str, list[str]]) -> str:
            source, name, own = unit
            compiled = (folder / name / source.relative_to(SOURCES)).with_suffix(".o")
            compiled.parent.mkdir(parents=True, exist_ok=True)
            execute(
                [*command, *options, f"-DINSTRUCTION_SET={name}", *own, *extra, "-c", str(source), "-o", str(compiled)]
            )
            return str(compiled)

        with ThreadPoolExecutor(os.cpu_count()) as pool:
            compiled = list(pool.map(compile_unit, units()))
        # Built beside its place, and then moved there, so that a process which has the old one loaded keeps it.
        temporary = target.with_name(f".{target.name}")
        execute([*command, "-shared", *compiled, *self._link_options(command, folder), *extra, "-o", str(temporary)])
        temporary.replace(target)

    def _link_options(self, command: list[str], folder: Path) -> list[str]:
        """LibTorch by its name only: at run time it is the one that torch has loaded, and here an empty one will do."""
        if sys.platform == "darwin":
            return ["-Wl,-undefined,dynamic_lookup"]
        empty, exported = folder / "empty.cpp", folder / "exported.map"
        empty.write_text("")
        exported.write_text("{ global: torchlosses_*; local: *; };\n")
        name = "libtorch_cpu.so"
        execute([*command, "-shared", "-fPIC", str(empty), f"-Wl,-soname,{name}", "-o", str(folder / name)])
        return [f"-L{folder}", "-Wl,--no-as-needed", "-ltorch_cpu", f"-Wl,--version-script={exported}"]

    def get_ext_filename(self, fullname: str) -> str:
        """No Python tag: the library is the same for all."""
        return str(Path(*fullname.split("."))) + ".so"

    def _built(self) -> list[Path]:
        """Places of the library or of the notice in the package, where there is one."""
        place = Path(self.get_ext_filename(LIBRARY))
        return [path for path in (place, place.with_name(NOTICE)) if Path(self.build_lib, path).exists()]

    def copy_extensions_to_source(self) -> None:
        """For an editable install: what was built, and not what an earlier build left."""
        place = Path(self.get_ext_filename(LIBRARY))
        place.parent.mkdir(exist_ok=True)
        for path in (place, place.with_name(NOTICE)):
            path.unlink(missing_ok=True)
        for path in self._built():
            self.copy_file(str(Path(self.build_lib, path)), str(path))

    def get_outputs(self) -> list[str]:
        """What was built."""
        return [str(path if self.inplace else Path(self.build_lib, path)) for path in self._built()]

    def get_output_mapping(self) -> dict[str, str]:
        """What an editable install has in the source folder."""
        return {str(Path(self.build_lib, path)): str(path) for path in self._built()} if self.inplace else {}


class Wheel(bdist_wheel):
    """A wheel for every Python: on this platform, or without the library on any."""

    def finalize_options(self) -> None:
        """A wheel without the library is for every platform."""
        super().finalize_options()
        self.root_is_pure = choice() == "eager"

    def get_tag(self) -> tuple[str, str, str]:
        """The platform only."""
        *_, tag = super().get_tag()
        return "py3", "none", tag


URLS = {
    "Repository": REPOSITORY,
    "Issues": f"{REPOSITORY}/issues",
    "Changelog": f"{REPOSITORY}/blob/main/CHANGELOG.md",
}
setup(
    project_urls=URLS if REPOSITORY else {},
    ext_modules=[Extension(LIBRARY, sorted({str(source) for source, *_ in units()}))],
    cmdclass={"build_ext": BuildLibrary, "bdist_wheel": Wheel},
)
