"""The site that `make docs` builds: complete, without a network, and as a browser shows it, on a telephone too."""

from __future__ import annotations

import functools
import http.server
import importlib
import inspect
import json
import re
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

import torchlosses
import torchlosses.functional as F
from tests.browser import measured, needs_browser

ROOT = Path(__file__).resolve().parent.parent
DOCS = ROOT / "docs"
WITH_FORMULAS = (
    "mse",
    "cross_entropy",
    "linear_cross_entropy",
    "linear_kl_div",
    "log_probs",
    "cee",
    "normalizer",
    "reference/losses",
)

pytest.importorskip("sphinx", reason="the site is built by the extra 'docs'")
pytest.importorskip("myst_parser", reason="the site is built by the extra 'docs'")


def build(source: Path, site: Path) -> subprocess.CompletedProcess[str]:
    """What `make docs` runs."""
    command = [sys.executable, "-m", "sphinx", "--quiet", "--fail-on-warning", "--keep-going", "--builder", "html"]
    return subprocess.run([*command, str(source), str(site)], cwd=ROOT, capture_output=True, text=True, check=False)


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    target = tmp_path_factory.mktemp("site")
    done = build(DOCS, target)
    assert done.returncode == 0, done.stdout + done.stderr
    return target


def pages(site: Path) -> list[str]:
    return sorted(
        path.relative_to(site).as_posix()
        for path in site.rglob("*.html")
        if "_static" not in path.parts and "_modules" not in path.parts and path.name != "frame.html"
    )


def test_make_docs_runs_what_is_tested_here() -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    assert "-m sphinx --quiet --fail-on-warning --keep-going --builder html docs build/docs" in makefile


@pytest.mark.thorough
def test_a_warning_is_an_error(tmp_path: Path) -> None:
    shutil.copytree(DOCS, tmp_path / "docs", ignore=shutil.ignore_patterns("reference", "*.md", "images"))
    (tmp_path / "docs" / "index.md").write_text("# Page\n\n[nowhere](nowhere.md)\n", encoding="utf-8")
    done = build(tmp_path / "docs", tmp_path / "site")
    assert done.returncode != 0
    assert "nowhere.md" in done.stderr


def test_every_page_of_the_folder_is_on_the_site(site: Path) -> None:
    expected = {path.relative_to(DOCS).with_suffix(".html").as_posix() for path in DOCS.rglob("*.md")}
    assert expected <= set(pages(site))


def public_names(module: str) -> set[str]:
    """Those in `__all__`, or the functions that are defined there."""
    imported = importlib.import_module(module)
    functions = inspect.getmembers(imported, inspect.isfunction)
    defined = {name for name, member in functions if member.__module__ == module and not name.startswith("_")}
    return set(getattr(imported, "__all__", defined)) - {"functional"}


@pytest.mark.parametrize(
    ("page", "module"),
    [
        ("losses", "torchlosses"),
        ("distributed", "torchlosses.distributed"),
        ("testing", "torchlosses.testing"),
        ("kernels", "torchlosses.kernels"),
        ("numpy", "torchlosses.reference"),
    ],
)
def test_the_reference_has_every_public_name(site: Path, page: str, module: str) -> None:
    text = (site / "reference" / f"{page}.html").read_text(encoding="utf-8")
    public = public_names(module)
    assert len(public) >= 2
    assert public <= set(re.findall(rf'id="{re.escape(module)}\.(\w+)"', text))


def test_functional_has_no_name_that_the_reference_lacks(site: Path) -> None:
    text = (site / "reference" / "losses.html").read_text(encoding="utf-8")
    assert all(f'id="torchlosses.{name}"' in text for name in F.__all__)


def test_nothing_is_loaded_from_elsewhere(site: Path) -> None:
    for page in pages(site):
        text = (site / page).read_text(encoding="utf-8")
        for tag in re.findall(r"<(?:script|img|iframe|source)\b[^>]*>|<link\b[^>]*>", text):
            assert not re.search(r'\b(?:src|href)="(?:https?:)?//', tag), (page, tag)
    for sheet in (site / "_static").rglob("*.css"):
        assert not re.search(r"url\([\"']?(?:https?:)?//|@import", sheet.read_text(encoding="utf-8")), sheet


def test_the_tables_for_newcomers_name_what_exists() -> None:
    """Each call and keyword in the right column of docs/coming-from.md."""
    functions = {name: getattr(F, name) for name in F.__all__}
    modules = {name: getattr(torchlosses, name) for name in torchlosses.__all__ if name.endswith("Loss")}
    keywords = {
        name for member in (*functions.values(), *modules.values()) for name in inspect.signature(member).parameters
    }
    rows = re.findall(r"^\|.*\| (.+?) \|$", (DOCS / "coming-from.md").read_text(encoding="utf-8"), re.MULTILINE)
    cells = " ".join(cell for row in rows for cell in re.findall(r"`([^`]+)`", row) if "torch." not in cell)
    called = set(re.findall(r"\b(\w+)\(", cells))
    assert {"cross_entropy", "LinearCrossEntropyLoss", "CEELoss", "mse_loss"} <= called
    assert called <= {*functions, *modules}
    named = set(re.findall(r"\b(\w+)=", cells))
    assert {"z_loss", "logit_softcap", "ignore_index", "normalizer", "sample_weight", "dim"} <= named
    assert named <= keywords


# Loads one page after the other in a frame, because a browser's own window is never narrower than 500 pixels.
FRAME = """<!doctype html><pre id="measured"></pre><iframe style="border: 0; height: 1000px"></iframe>
<script>
const frame = document.querySelector("iframe");
const load = (page, width) => new Promise((resolve) => {
  frame.style.width = width + "px";
  frame.onload = async () => {
    const inside = frame.contentWindow;
    if (inside.MathJax) await inside.MathJax.startup.promise;
    const root = inside.document;
    const prose = root.querySelector("article").cloneNode(true);
    prose.querySelectorAll("pre, code, mjx-container").forEach((element) => element.remove());
    resolve({
      page, width,
      wide: inside.innerWidth,
      document: root.documentElement.scrollWidth,
      formulas: root.querySelectorAll("mjx-container").length,
      failed: root.querySelectorAll("mjx-merror").length,
      raw: (prose.textContent.match(/\\$\\$|\\\\\\(|\\\\frac|\\\\sum/g) || []),
      images: [...root.images].filter((image) => image.complete && !image.naturalWidth).map((image) => image.src),
      elsewhere: inside.performance.getEntriesByType("resource").map((entry) => entry.name)
        .filter((name) => !name.startsWith(location.origin) && !name.startsWith("data:")),
    });
  };
  frame.src = page;
});
(async () => {
  const measured = [];
  for (const width of [400, 1280]) for (const page of PAGES) measured.push(await load(page, width));
  document.getElementById("measured").textContent = JSON.stringify(measured);
})();
</script>"""


class Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture
def address(site: Path) -> Iterator[str]:
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=str(site)))
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


@needs_browser
@pytest.mark.parametrize("every", [False, pytest.param(True, marks=pytest.mark.thorough)])
def test_the_pages_fit_a_telephone_and_a_screen(site: Path, address: str, tmp_path: Path, every: bool) -> None:
    listed = pages(site) if every else ["index.html", f"{WITH_FORMULAS[0]}.html"]
    (site / "frame.html").write_text(FRAME.replace("PAGES", json.dumps(listed)), encoding="utf-8")
    results = measured(f"{address}/frame.html", tmp_path / "profile", seconds=200)
    assert len(results) == 2 * len(listed)
    for result in results:
        assert result["wide"] == result["width"]
        assert result["document"] <= result["width"], result
        assert not [result[kind] for kind in ("failed", "raw", "images", "elsewhere") if result[kind]], result
        if result["page"].removesuffix(".html") in WITH_FORMULAS:
            assert result["formulas"] >= 3, result
