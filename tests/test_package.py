"""The sdist of the tracked files and the wheel that it builds: what they contain, and that the wheel works."""

from __future__ import annotations

import email.message
import email.parser
import os
import re
import shutil
import stat
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest
from build import ProjectBuilder
from filelock import FileLock

ROOT = Path(__file__).resolve().parent.parent
DISTRIBUTION = "hand-derived-losses"
LIBRARY = "torchlosses/lib/libtorchlosses.so"
# What the oldest Linux that torch's own wheels run on has.
OLDEST = {"GLIBC": (2, 28), "GLIBCXX": (3, 4, 24), "CXXABI": (1, 3, 11), "GCC": (7, 0, 0)}


def tracked_files() -> list[str]:
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    return [name for name in listed.split("\0") if name and (ROOT / name).is_file()]


def build(source: Path, out: Path, *arguments: str, **environment: str) -> str:
    """Build without an environment of its own, which would ask a registry, and say what was printed."""
    command = [sys.executable, "-m", "build", "--no-isolation", "--outdir", str(out), *arguments]
    done = subprocess.run(
        command, cwd=source, capture_output=True, text=True, check=False, env={**os.environ, **environment}
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


@pytest.fixture(scope="module")
def clone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the tracked files alone, as a fresh clone."""
    if shutil.which("git") is None or not (ROOT / ".git").exists():
        pytest.skip("needs the git checkout, to know which files belong to it")
    clone = tmp_path_factory.mktemp("clone")
    for name in tracked_files():
        (clone / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(ROOT / name, clone / name)
    return clone


@pytest.fixture(scope="module", params=["-O0", pytest.param("", marks=pytest.mark.thorough, id="optimised")])
def built(request: pytest.FixtureRequest, clone: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The sdist of the clone, and the wheel that was built from it; in `make test` with what compiles fastest.

    Processes that share these tests share it: the first one that asks builds.
    """
    own = tmp_path_factory.getbasetemp()
    shared = own if os.environ.get("PYTEST_XDIST_WORKER") is None else own.parent
    out = shared / f"built{request.param}"
    with FileLock(f"{out}.lock"):
        if not out.exists():
            build(clone, out, CXXFLAGS=f"{os.environ.get('CXXFLAGS', '')} {request.param}")
    return out


@pytest.fixture(scope="module")
def sdist(built: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The sdist, unpacked."""
    (archive,) = built.glob("*.tar.gz")
    target = tmp_path_factory.mktemp("sdist")
    with tarfile.open(archive) as file:
        file.extractall(target, filter="data")
    (folder,) = target.iterdir()
    return folder


@pytest.fixture(scope="module")
def wheel(built: Path) -> Path:
    (wheel,) = built.glob("*.whl")
    return wheel


@pytest.fixture(scope="module")
def names(wheel: Path) -> list[str]:
    with zipfile.ZipFile(wheel) as archive:
        return archive.namelist()


@pytest.fixture(scope="module")
def metadata(wheel: Path, names: list[str]) -> email.message.Message:
    (name,) = [name for name in names if name.endswith(".dist-info/METADATA")]
    with zipfile.ZipFile(wheel) as archive:
        return email.parser.Parser().parsestr(archive.read(name).decode())


@pytest.fixture(scope="module")
def site(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    target = tmp_path_factory.mktemp("site")
    install = [sys.executable, "-m", "pip", "install", "--no-deps", "--no-index", "--quiet"]
    install += ["--disable-pip-version-check", "--target", str(target), str(wheel)]
    done = subprocess.run(install, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return target


def run_in(directory: Path, site: Path, code: str) -> str:
    """Run Python somewhere else, with the installed wheel in front of any other copy of the package."""
    command = [sys.executable, "-I", "-W", "error", "-c", f"import sys; sys.path.insert(0, {str(site)!r})\n{code}"]
    done = subprocess.run(command, cwd=directory, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


class TestWheel:
    def test_contains_the_package_and_nothing_else(self, names: list[str]) -> None:
        top = {name.split("/")[0] for name in names}
        assert {part for part in top if not part.endswith(".dist-info")} == {"torchlosses"}

    def test_contains_every_module_of_the_package(self, names: list[str]) -> None:
        modules = {name for name in tracked_files() if name.startswith("torchlosses/") and name.endswith(".py")}
        assert "torchlosses/kernels/eager.py" in modules
        assert modules <= set(names)

    def test_is_typed(self, names: list[str]) -> None:
        assert "torchlosses/py.typed" in names

    def test_carries_the_licence(self, wheel: Path, names: list[str]) -> None:
        with zipfile.ZipFile(wheel) as archive:
            for licence in ("LICENSE", "third_party/torch/LICENSE"):
                (name,) = [name for name in names if name.endswith(f"/licenses/{licence}")]
                assert archive.read(name).decode() == (ROOT / licence).read_text(encoding="utf-8")

    def test_is_free_of_what_running_leaves_behind(self, names: list[str]) -> None:
        assert not [name for name in names if "__pycache__" in name or name.endswith((".pyc", ".orig", ".log"))]

    def test_has_the_library_where_no_module_is_looked_for(self, names: list[str]) -> None:
        assert [name for name in names if name.endswith(".so")] == [LIBRARY]

    @pytest.mark.skipif(sys.platform != "linux" or shutil.which("nm") is None, reason="needs Linux and nm")
    def test_its_library_asks_no_newer_linux_than_torch_does(self, wheel: Path, tmp_path: Path) -> None:
        with zipfile.ZipFile(wheel) as archive:
            library = archive.extract(LIBRARY, tmp_path)
        command = ["nm", "--dynamic", "--undefined-only", "--with-symbol-versions", library]
        symbols = subprocess.run(command, capture_output=True, text=True, check=True).stdout
        versions = re.findall(r"(\w+)@{1,2}(GLIBC|GLIBCXX|CXXABI|GCC)_([\d.]+)", symbols)
        assert {kind for _, kind, _ in versions} == set(OLDEST)
        newer = [found for found in versions if tuple(map(int, found[2].split("."))) > OLDEST[found[1]]]
        assert not newer

    def test_its_library_exports_what_python_calls_and_nothing_else(self, wheel: Path, tmp_path: Path) -> None:
        with zipfile.ZipFile(wheel) as archive:
            library = archive.extract(LIBRARY, tmp_path)
        command = ["nm", "--dynamic", "--defined-only", library]
        exported = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()[2::3]
        assert exported
        assert all(name.startswith("torchlosses_") for name in exported)


class TestSourceDistribution:
    def test_has_every_tracked_file(self, sdist: Path) -> None:
        files = {path.relative_to(sdist).as_posix() for path in sdist.rglob("*") if path.is_file()}
        assert {name for name in tracked_files() if name != ".gitignore"} <= files

    def test_has_nothing_else(self, sdist: Path) -> None:
        files = {path.relative_to(sdist).as_posix() for path in sdist.rglob("*") if path.is_file()}
        made = {name for name in files if name in ("PKG-INFO", "setup.cfg") or ".egg-info/" in name}
        assert files - made <= set(tracked_files())

    @pytest.mark.parametrize(
        "chosen", [["tests/test_textbook.py"], pytest.param(["-k", "test_textbook"], marks=pytest.mark.thorough)]
    )
    def test_its_tests_run(self, sdist: Path, chosen: list[str]) -> None:
        """A few; to choose them by name all are collected, so that none lacks a file."""
        command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-n0", *chosen]
        done = subprocess.run(command, cwd=sdist, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
        assert re.search(r"\d+ passed", done.stdout)


def fake(path: Path, body: str) -> Path:
    """A command of our own."""
    path.write_text(f"#!/bin/sh\n{body}\n", encoding="utf-8")
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return path


class TestBuild:
    """With a compiler that only writes what it is told, which takes no time."""

    @pytest.fixture
    def library(self, clone: Path) -> Path:
        return clone / LIBRARY

    def run(self, clone: Path, **environment: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "setup.py", "--quiet", "build_ext", "--inplace"]
        known = {name: value for name, value in os.environ.items() if name not in ("CXX", "TORCHLOSSES_BUILD")}
        return subprocess.run(
            command, cwd=clone, capture_output=True, text=True, check=False, env={**known, **environment}
        )

    def test_uses_the_whole_command_of_the_compiler(self, clone: Path, library: Path, tmp_path: Path) -> None:
        compiler = fake(tmp_path / "compiler", 'while [ "$1" != -o ]; do shift; done; echo built > "$2"')
        cache = fake(tmp_path / "cache", f'echo "$@" >> {tmp_path}/log; exec "$@"')
        done = self.run(clone, CXX=f"{cache} {compiler}", CXXFLAGS="-DA='1 2'", TORCHLOSSES_BUILD="native")
        assert done.returncode == 0, done.stderr
        assert library.read_text() == "built\n"
        calls = (tmp_path / "log").read_text().splitlines()
        assert all(call.startswith(f"{compiler} ") for call in calls)
        assert sum("-DA=1 2" in call for call in calls) == len(calls) - ("soname" in " ".join(calls))
        compiled = [call.split(" -c ")[1].split()[0] for call in calls if " -c " in call]
        sources = {path.relative_to(clone).as_posix() for path in (clone / "torchlosses/kernels/csrc").rglob("*.cpp")}
        assert set(compiled) == sources
        for call in calls:
            kernels = re.search(r"-c torchlosses/kernels/csrc/kernels[./]", call)
            assert kernels or "-DINSTRUCTION_SET=avx" not in call

    @pytest.mark.parametrize(
        ("compiler", "reason"),
        [
            ("no-such-cache c++", "'no-such-cache', which was not found"),
            pytest.param("false", "failed with status 1", marks=pytest.mark.thorough),
        ],
    )
    def test_an_install_that_falls_back_says_so_when_it_is_imported(
        self, clone: Path, library: Path, compiler: str, reason: str
    ) -> None:
        library.parent.mkdir(exist_ok=True)
        library.write_text("of an earlier build")
        done = self.run(clone, CXX=compiler)
        assert done.returncode == 0, done.stderr
        assert not library.exists()
        imported = self.import_from(clone)
        assert "was installed without its compiled operators" in imported.stderr
        assert reason in imported.stderr
        assert imported.stdout.startswith("eager")
        assert reason in imported.stdout
        assert not self.import_from(clone, TORCHLOSSES_BACKEND="eager").stderr

    def import_from(self, clone: Path, **environment: str) -> subprocess.CompletedProcess[str]:
        code = "from torchlosses import kernels; print(*kernels.BACKEND)"
        known = {name: value for name, value in os.environ.items() if name != "TORCHLOSSES_BACKEND"}
        done = subprocess.run(
            [sys.executable, "-c", code],
            cwd=clone,
            capture_output=True,
            text=True,
            check=False,
            env={**known, **environment},
        )
        assert done.returncode == 0, done.stderr
        return done

    def test_native_makes_the_failure_an_error(self, clone: Path) -> None:
        done = self.run(clone, CXX="false", TORCHLOSSES_BUILD="native")
        assert done.returncode != 0
        assert "failed with status 1" in done.stderr

    def test_eager_builds_nothing_and_removes_what_was_there(self, clone: Path, library: Path) -> None:
        library.parent.mkdir(exist_ok=True)
        library.write_text("of an earlier build")
        done = self.run(clone, CXX="false", TORCHLOSSES_BUILD="eager")
        assert done.returncode == 0, done.stderr
        assert not list(library.parent.iterdir())
        assert not self.import_from(clone).stderr

    def test_an_unknown_way_to_build_is_named(self, clone: Path) -> None:
        done = self.run(clone, TORCHLOSSES_BUILD="fast")
        assert done.returncode != 0
        assert "TORCHLOSSES_BUILD='fast'" in done.stderr

    def test_needs_no_torch(self, clone: Path) -> None:
        builder = ProjectBuilder(clone)
        needed = builder.build_system_requires | builder.get_requires_for_build("wheel")
        assert {re.split(r"[^\w-]", requirement)[0] for requirement in needed} == {"setuptools"}

    @pytest.mark.skipif(shutil.which("c++") is None, reason="needs a C++ compiler")
    def test_the_headers_it_needs_are_the_ones_that_come_with_it(self) -> None:
        """`make headers` copies one that is missing."""
        sources = sorted(str(path) for path in (ROOT / "torchlosses/kernels/csrc").rglob("*.cpp"))
        options = ["-std=c++17", "-DTORCH_TARGET_VERSION=0x020a000000000000", "-DINSTRUCTION_SET=baseline"]
        folders = ["-isystem", str(ROOT / "third_party/torch/include")]
        done = subprocess.run(["c++", "-M", *options, *folders, *sources], capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        needed = {Path(word) for word in done.stdout.split() if "/torch/include/" in word}
        present = {path for path in (ROOT / "third_party/torch/include").rglob("*") if path.is_file()}
        assert needed == present


class TestMetadata:
    def test_needs_torch_and_numpy_and_what_torch_needs(self, metadata: email.message.Message) -> None:
        requirements = metadata.get_all("Requires-Dist") or []
        needed = [requirement for requirement in requirements if "extra ==" not in requirement]
        assert {re.split(r"[^\w-]", requirement)[0] for requirement in needed} == {
            "numpy",
            "torch",
            "typing-extensions",
        }

    def test_extras(self, metadata: email.message.Message) -> None:
        assert {"training", "dev"} <= set(metadata.get_all("Provides-Extra") or [])

    def test_name_licence_and_description(self, metadata: email.message.Message) -> None:
        assert metadata["Name"] == DISTRIBUTION
        assert metadata["License-Expression"] == "BSD-3-Clause"
        assert metadata["Description-Content-Type"] == "text/markdown"
        assert metadata["Summary"]


class TestInstalled:
    def test_is_imported_from_where_it_was_installed_with_its_compiled_operators(
        self, site: Path, tmp_path: Path
    ) -> None:
        code = f"""
import importlib.metadata, torchlosses
from torchlosses import kernels
version = importlib.metadata.version({DISTRIBUTION!r})
assert torchlosses.__version__ == version
with kernels.use("native"):
    print(torchlosses.__file__, version, kernels.INSTRUCTION_SET)
"""
        location, version, instruction_set = run_in(tmp_path, site, code).split()
        assert Path(location).is_relative_to(site)
        assert instruction_set != "None"
        assert re.fullmatch(r"\d+\.\d+\.\d+", version)

    @pytest.mark.thorough
    def test_every_module_can_be_imported(self, site: Path, tmp_path: Path) -> None:
        code = """
import importlib, pkgutil, torchlosses
names = [module.name for module in pkgutil.walk_packages(torchlosses.__path__, "torchlosses.")]
for name in names:
    importlib.import_module(name)
print("walked", *names)
"""
        walked = run_in(tmp_path, site, code).split("walked")[1].split()
        package = ROOT / "torchlosses"
        modules = {path.relative_to(ROOT).with_suffix("").parts for path in package.rglob("*.py")}
        expected = {".".join(parts[:-1] if parts[-1] == "__init__" else parts) for parts in modules}
        assert set(walked) | {"torchlosses"} == expected

    def test_its_examples_run(self, site: Path, tmp_path: Path) -> None:
        code = """
import doctest, importlib
options = doctest.NORMALIZE_WHITESPACE | doctest.ELLIPSIS
for name in ("mse", "cross_entropy", "cee", "reference"):
    module = importlib.import_module("torchlosses." + name)
    failed, attempted = doctest.testmod(module, optionflags=options)
    assert attempted and not failed, name
print("done")
"""
        assert run_in(tmp_path, site, code).strip().endswith("done")

    @pytest.mark.thorough
    def test_trains_without_the_checkout(self, site: Path, tmp_path: Path) -> None:
        code = """
import torch, torchlosses
torch.manual_seed(0)
model = torch.nn.Linear(2, 2)
x = torch.randn(64, 2)
target = (x[:, 0] > x[:, 1]).long()
optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
losses = []
for _ in range(50):
    loss = torchlosses.CrossEntropyLoss()(model(x), target)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    losses.append(loss.item())
assert losses[-1] < 0.5 * losses[0], losses
"""
        run_in(tmp_path, site, code)
