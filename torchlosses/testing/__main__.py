"""The audit from the command line: python -m torchlosses.testing package.module:Loss --kind classification.

The exit code is 0 where no check failed that counts, 1 where one did, and 2 where the audit could not be made.
"""

from __future__ import annotations

import argparse
import ast
import json
import os
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torchlosses.testing import CHECKS, KINDS, SEVERITIES, check_loss
from torchlosses.testing.loading import load
from torchlosses.testing.rendering import page
from torchlosses.testing.report import Report


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m torchlosses.testing", description="Put a PyTorch loss through an audit."
    )
    parser.add_argument("loss", nargs="?", metavar="package.module:Loss", help="a function, a Module class or a Module")
    kinds = ", ".join(KINDS)
    parser.add_argument(
        "--kind", nargs="?", metavar="KIND", help=f"{kinds}; or package.module:kind for a Kind of your own"
    )
    parser.add_argument("--reference", metavar="package.module:Loss", help="a loss of the same kind that is right")
    parser.add_argument(
        "--option", action="append", default=[], metavar="NAME=VALUE", help="an option that is always given"
    )
    parser.add_argument(
        "--rename", action="append", default=[], metavar="USUAL=NAME", help="what the loss calls an option"
    )
    parser.add_argument("--device", default="cpu", metavar="DEVICE", help="where the inputs are, such as cuda")
    parser.add_argument(
        "--dtypes",
        type=_several,
        metavar="DTYPE,...",
        help="what the loss claims to compute in, of float64, float32, bfloat16 and float16",
    )
    parser.add_argument(
        "--fail-on",
        type=_several,
        default=tuple(SEVERITIES),
        metavar="SEVERITY,...",
        help=f"the failures that the exit code counts, of {', '.join(SEVERITIES)} (all)",
    )
    parser.add_argument(
        "--only", action="append", metavar="CHECK", help="run this check, or this subject, such as laws"
    )
    parser.add_argument("--skip", action="append", default=[], metavar="CHECK", help="leave this check or subject out")
    parser.add_argument(
        "--json", type=Path, metavar="FILE", help="also write the report as JSON; - for standard output"
    )
    parser.add_argument("--html", type=Path, metavar="FILE", help="also write the report as one HTML page")
    parser.add_argument("--list", action="store_true", help="list the checks and why each matters")
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command, and return its exit code."""
    parser = _parser()
    given = parser.parse_args(arguments)
    if given.list:
        print("\n".join(f"{check.name}: {check.why}" for check in CHECKS.values()))
        return 0
    if given.loss is None:
        parser.error("a loss is needed, such as torch.nn:CrossEntropyLoss")
    if given.kind is None:
        parser.error(f"--kind is needed: one of {', '.join(KINDS)}, or package.module:kind for a Kind of your own")
    # The loss is often a file beside the caller, who starts a module and not a script.
    sys.path.insert(0, os.getcwd())  # noqa: PTH109
    try:
        report = _audit(given)
    except (ValueError, TypeError) as error:
        parser.error(str(error))
    _write(report, given)
    return 0 if report.ok else 1


def _audit(given: argparse.Namespace) -> Report:
    return check_loss(
        load(given.loss),
        kind=load(given.kind) if ":" in given.kind else given.kind,
        reference=None if given.reference is None else load(given.reference),
        skip=given.skip,
        only=given.only,
        options={name: _value(value) for name, value in map(_pair, given.option)},
        rename=dict(map(_pair, given.rename)),
        device=given.device,
        dtypes=given.dtypes,
        fail_on=given.fail_on,
    )


def _several(text: str) -> tuple[str, ...]:
    return tuple(name.strip() for name in text.split(","))


def _pair(text: str) -> tuple[str, str]:
    name, equals, value = text.partition("=")
    if not (name and equals):
        raise ValueError(f"{text!r} is not of the form NAME=VALUE.")
    return name, value


def _value(text: str) -> Any:
    """A Python literal, or the text itself."""
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return text


def _write(report: Report, given: argparse.Namespace) -> None:
    data = json.dumps(report.to_dict(), indent=1)
    if given.json is not None and str(given.json) == "-":
        print(data)
    else:
        print(report)
        if given.json is not None:
            _write_whole(given.json, data + "\n")
    if given.html is not None:
        _write_whole(given.html, page(report))


def _write_whole(path: Path, text: str) -> None:
    """Write a file that is whole or, where something fails, not there."""
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    temporary = Path(name)
    try:
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            file.write(text)
        temporary.chmod(0o644)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


if __name__ == "__main__":
    sys.exit(main())
