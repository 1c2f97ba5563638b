"""CONTRIBUTING.md as a newcomer walks it: every command, in a fresh clone, and a loss added by the recipe."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "CONTRIBUTING.md"
FENCE = re.compile(
    r"(?:^ *<!-- (?P<kind>file|import): (?P<path>\S+) -->\n)?^(?P<indent> *)```(?P<language>\w+)\n(?P<body>.*?)^ *```$",
    re.DOTALL | re.MULTILINE,
)


class Step(NamedTuple):
    """Commands to run, a file to write, or an import to add to one."""

    kind: str
    path: str
    body: str


def steps() -> list[Step]:
    found = []
    for block in FENCE.finditer(PAGE.read_text(encoding="utf-8")):
        kind = block["kind"] or {"bash": "commands"}[block["language"]]
        found.append(Step(kind, block["path"] or "", textwrap.dedent(block["body"])))
    return found


def commands() -> list[str]:
    return [line for step in steps() if step.kind == "commands" for line in step.body.splitlines()]


def targets() -> set[str]:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    phony = re.search(r"^\.PHONY: (.*)$", makefile, re.MULTILINE)
    assert phony is not None
    named = set(phony[1].split())
    assert named == set(re.findall(r"^([a-z][\w-]*):(?!=)", makefile, re.MULTILINE))
    return named


def make_calls(text: str) -> set[str]:
    return set(re.findall(r"\bmake ([a-z][\w-]*)", text))


def test_every_target_that_is_named_exists() -> None:
    text = PAGE.read_text(encoding="utf-8")
    quoted = "\n".join(re.findall(r"`[^`\n]+`", text)) + "\n".join(commands())
    assert {"setup", "lint", "test", "test-all", "test-torch", "docs", "wheel", "headers"} <= make_calls(quoted)
    assert make_calls(quoted) <= targets()


def test_continuous_integration_calls_the_same_targets() -> None:
    script = make_calls((ROOT / ".ci" / "run").read_text(encoding="utf-8"))
    (workflow,) = (ROOT / ".github" / "workflows").glob("*.yml")
    assert script == {"lint", "test"}
    assert ".ci/run" in workflow.read_text(encoding="utf-8") or make_calls(workflow.read_text()) >= script


def test_each_file_that_the_page_speaks_of_exists() -> None:
    made = {step.path for step in steps() if step.kind == "file"}
    for name in re.findall(r"`([\w./]+/[\w.-]+)`", PAGE.read_text(encoding="utf-8")):
        if name not in made and not name.startswith(("build/", "torch.")):
            assert (ROOT / name).exists(), name


def test_the_citation_is_of_this_version() -> None:
    project = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    citation = dict(re.findall(r"^([\w-]+): (.+)$", (ROOT / "CITATION.cff").read_text(encoding="utf-8"), re.MULTILINE))
    for field in ("version", "license"):
        assert f'\n{field} = "{citation[field]}"\n' in project
    # The address of the repository has one place; once it is filled in, the citation names it too.
    (repository,) = re.findall(r'^REPOSITORY = "(.*)"$', (ROOT / "setup.py").read_text(encoding="utf-8"), re.MULTILINE)
    assert citation.get("repository-code", "") == repository


@pytest.fixture
def origin(tmp_path: Path) -> Path:
    """The tracked files as a repository to clone."""
    if shutil.which("git") is None or not (ROOT / ".git").exists():
        pytest.skip("needs the git checkout, to know which files belong to it")
    origin = tmp_path / "origin"
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    for name in listed.split("\0"):
        if name and (ROOT / name).is_file():
            (origin / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, origin / name)
    author = ["-c", "user.name=tests", "-c", "user.email=tests@example.com"]
    for arguments in (["init", "-q"], ["add", "--all"], [*author, "commit", "-qm", "All files"]):
        subprocess.run(["git", *arguments], cwd=origin, check=True, capture_output=True)
    return origin


def borrow_environment(clone: Path) -> None:
    """A virtual environment that has what the running one has, so that nothing is fetched from a registry."""
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", clone / ".venv"], check=True)
    (site,) = (clone / ".venv").glob("lib/python*/site-packages")
    borrowed = [path for path in sys.path if Path(path).name == "site-packages"]
    (site / "borrowed.pth").write_text("\n".join(borrowed) + "\n", encoding="utf-8")


def add_import(file: Path, line: str) -> None:
    """An import behind the others of the package, and its names in `__all__`."""
    text = file.read_text(encoding="utf-8")
    lines = text.splitlines()
    imports = [place for place, existing in enumerate(lines) if existing.startswith("from torchlosses")]
    names = line.split(" import ")[1].split(", ")
    place = next((place for place in imports if lines[place] > line), imports[-1] + 1)
    text = "\n".join([*lines[:place], line, *lines[place:]]) + "\n"
    listed = re.search(r"__all__ = (\[.*?\])", text, re.DOTALL)
    assert listed is not None
    public = sorted([*re.findall(r'"(\w+)"', listed[1]), *names], key=lambda name: (name.islower(), name))
    text = text.replace(listed[1], "[\n" + "".join(f'    "{name}",\n' for name in public) + "]")
    file.write_text(text, encoding="utf-8")
    subprocess.run([sys.executable, "-m", "ruff", "format", "--quiet", str(file)], check=True)


@pytest.mark.thorough
def test_the_walk(origin: Path, tmp_path: Path) -> None:
    """The commands as they stand; `make test` without arguments takes one file, for it is what runs this test."""
    folder = tmp_path / "newcomer"
    folder.mkdir()
    outside = {name: value for name, value in os.environ.items() if not name.startswith(("TORCHLOSSES_", "PYTEST_"))}
    # What compiles fastest will do.
    environment = {**outside, "REPOSITORY": str(origin), "PIP_NO_INDEX": "1", "CXXFLAGS": "-O0"}
    walked = []
    for step in steps():
        if step.kind == "file":
            (folder / step.path).write_text(step.body, encoding="utf-8")
            if step.path.startswith("docs/"):
                index = folder / "docs" / "index.md"
                text = index.read_text(encoding="utf-8")
                assert "\ncee\n" in text
                index.write_text(text.replace("\ncee\n", f"\ncee\n{Path(step.path).stem}\n"), encoding="utf-8")
            continue
        if step.kind == "import":
            add_import(folder / step.path, step.body.strip())
            continue
        for command in step.body.splitlines():
            narrowed = {"PYTEST_ADDOPTS": "-k test_textbook"} if command == "make test" else {}
            done = subprocess.run(
                ["bash", "-euc", command],
                cwd=folder,
                capture_output=True,
                text=True,
                check=False,
                env={**environment, **narrowed},
            )
            assert done.returncode == 0, f"{command}\n{done.stdout[-4000:]}\n{done.stderr[-4000:]}"
            walked.append((command, done.stdout))
            if command.startswith("cd "):
                folder = folder / command.removeprefix("cd ")
            if command.startswith("git clone"):
                borrow_environment(folder / "torchlosses")
    said = dict(walked)
    assert [command for command, _ in walked] == commands()
    assert "backend: native" in said["make setup"]
    assert re.search(r"\d+ passed", said["make test"])
    assert re.search(r"\d+ passed", said['make test ARGS="tests/test_log_cosh.py"'])
    audited = said[next(command for command in commands() if "torchlosses:log_cosh_loss" in command)]
    assert re.search(r"^[1-9]\d+ passed, \d+ not applicable", audited, re.MULTILINE)
    page = (folder / "build" / "docs" / "reference" / "losses.html").read_text(encoding="utf-8")
    assert 'id="torchlosses.log_cosh_loss"' in page
    assert (folder / "build" / "docs" / "log_cosh.html").exists()
