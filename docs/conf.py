"""The site: Sphinx reads the pages (Markdown, by MyST) and the docstrings. `make docs` builds it without a network."""

from importlib.metadata import PackageNotFoundError, metadata
from typing import Any

from sphinx.application import Sphinx

import torchlosses

project = "torchlosses"
author = "the torchlosses authors"
copyright = author
release = version = torchlosses.__version__

extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx.ext.viewcode",
    "sphinx_copybutton",
    "sphinx-mathjax-offline",  # MathJax and its fonts, from the package
]
exclude_patterns = ["_build"]
nitpicky = True
nitpick_ignore_regex = [
    ("py:obj", ".*"),
    ("py:.*", r"(torch|numpy|np|collections|pytest|_pytest|typing)\b.*"),
    ("py:.*", ".* .*|.*\\.|Errors"),  # a sentence where a name might stand
]
# Docstrings put names between single backticks: a link where the name is one of the reference, code elsewhere.
default_role = "py:obj"
add_module_names = False
autodoc_member_order = "bysource"
autodoc_typehints = "none"  # The docstrings say more of shapes, dtypes and values.
napoleon_use_ivar = True
napoleon_custom_sections = ["Returns"]  # sentences, in which a colon does not set off a type

myst_enable_extensions = ["amsmath", "dollarmath"]
myst_heading_anchors = 3

html_theme = "furo"
html_title = "torchlosses"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_copy_source = False
html_show_sphinx = False

copybutton_prompt_text = ">>> |\\.\\.\\. |\\$ "
copybutton_prompt_is_regexp = True

try:
    _urls = dict(url.split(", ", 1) for url in metadata("hand-derived-losses").get_all("Project-URL") or [])
except PackageNotFoundError:
    _urls = {}
if "Repository" in _urls:
    html_theme_options = {
        "source_repository": _urls["Repository"],
        "source_branch": "main",
        "source_directory": "docs/",
    }


def leave_out_module_docstring(
    app: Sphinx, what: str, name: str, obj: object, options: object, lines: list[str]
) -> None:
    """The pages of the reference have introductions of their own."""
    if what == "module":
        lines.clear()


def skip_member(app: Sphinx, what: str, name: str, obj: Any, skip: bool, options: object) -> bool | None:
    """Leave out what says nothing: fields of tuples, which the class lists, and the text that repr shows."""
    return True if type(obj).__name__ == "_tuplegetter" or name == "extra_repr" else None


def setup(app: Sphinx) -> None:
    """Called by Sphinx."""
    app.connect("autodoc-process-docstring", leave_out_module_docstring)
    app.connect("autodoc-skip-member", skip_member)
