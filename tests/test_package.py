"""The wheel that is built from the tracked files: what it contains, and that it works where it is installed."""

from __future__ import annotations

import email.message
import email.parser
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent


def tracked_files() -> list[str]:
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    return [name for name in listed.split("\0") if name and (ROOT / name).is_file()]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built from a copy of the tracked files alone, as from a fresh clone."""
    if shutil.which("git") is None or not (ROOT / ".git").exists():
        pytest.skip("needs the git checkout, to know which files belong to it")
    clone, out = tmp_path_factory.mktemp("clone"), tmp_path_factory.mktemp("wheel")
    for name in tracked_files():
        (clone / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(ROOT / name, clone / name)
    build = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(out)]
    done = subprocess.run(build, cwd=clone, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    (built,) = out.glob("*.whl")
    return built


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
        (name,) = [name for name in names if name.endswith("/LICENSE")]
        with zipfile.ZipFile(wheel) as archive:
            assert archive.read(name).decode() == (ROOT / "LICENSE").read_text(encoding="utf-8")

    def test_is_free_of_what_running_leaves_behind(self, names: list[str]) -> None:
        assert not [name for name in names if "__pycache__" in name or name.endswith((".pyc", ".orig", ".log"))]


class TestMetadata:
    def test_needs_numpy_and_torch_only(self, metadata: email.message.Message) -> None:
        requirements = metadata.get_all("Requires-Dist") or []
        needed = [requirement for requirement in requirements if "extra ==" not in requirement]
        assert {re.split(r"[^\w-]", requirement)[0] for requirement in needed} == {"numpy", "torch"}

    def test_extras(self, metadata: email.message.Message) -> None:
        assert {"training", "dev"} <= set(metadata.get_all("Provides-Extra") or [])

    def test_name_licence_and_description(self, metadata: email.message.Message) -> None:
        assert metadata["Name"] == "torchlosses"
        assert metadata["License-Expression"] == "BSD-3-Clause"
        assert metadata["Description-Content-Type"] == "text/markdown"
        assert metadata["Summary"]


class TestInstalled:
    def test_is_imported_from_where_it_was_installed(self, site: Path, tmp_path: Path) -> None:
        code = "import torchlosses, importlib.metadata as m; print(torchlosses.__file__, m.version('torchlosses'))"
        location, version = run_in(
            tmp_path, site, code + "; assert torchlosses.__version__ == m.version('torchlosses')"
        ).split()
        assert Path(location).is_relative_to(site)
        assert re.fullmatch(r"\d+\.\d+\.\d+", version)

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
