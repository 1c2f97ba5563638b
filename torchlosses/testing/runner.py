"""Run the checks, shrink what fails, and report."""

from __future__ import annotations

import platform
import time
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import torch

import torchlosses
import torchlosses.testing.checks
from torchlosses.testing.audit import Audit, short
from torchlosses.testing.environment import undisturbed
from torchlosses.testing.kinds import Case, Kind
from torchlosses.testing.loading import name_of
from torchlosses.testing.outcomes import SEVERITIES, CannotRun, Failure, NotApplicable
from torchlosses.testing.registry import CHECKS, Check
from torchlosses.testing.report import Finding, Report, Result
from torchlosses.testing.shrinking import shrink


def check_loss(
    loss: Any,
    *,
    kind: str | Kind,
    reference: Any = None,
    skip: Iterable[str] | Mapping[str, str] = (),
    only: Iterable[str] | None = None,
    options: Mapping[str, Any] | None = None,
    rename: Mapping[str, str] | None = None,
    device: str | torch.device = "cpu",
    dtypes: Iterable[str | torch.dtype] | None = None,
    fail_on: Iterable[str] = tuple(SEVERITIES),
) -> Report:
    """Put a loss through all checks.

    Args:
        loss: A function, a Module class, or a Module with its options fixed.
        kind: 'regression', 'binary', 'classification', 'probabilities', 'language modelling', 'linear classification',
            or a `Kind`.
        reference: A loss of the same kind that is right; without one, the loss in float64 is its own measure.
        skip: Names of checks to leave out, or a mapping from the names to the reasons. 'laws' stands for 'laws.*'.
        only: Names of the checks to run, in the same form; the others are left out of the report.
        options: Options that the loss is always given, at its call or construction.
        rename: What the loss calls the usual options, such as {'label_smoothing': 'smoothing'}.
        device: Where the inputs are; a Module, its buffers and a reference go there too.
        dtypes: What the loss claims to compute in, of 'float64', 'float32', 'bfloat16' and 'float16' (or torch's
            dtypes); it is audited in these only, and in the widest of them where one is enough. Without it a loss is
            audited in all, float64 first where it takes it, and is free to compute float64 in float32: derivatives,
            laws and other comparisons are held to the rounding of the dtype that it is found to compute in, which the
            report states.
        fail_on: Of `SEVERITIES`, the failures that make the report not `ok`; the others are reported all the same.

    Raises:
        ValueError: `kind`, `skip`, `only`, `dtypes` or `fail_on` names nothing, or there is no such device.
        TypeError: `loss` cannot be called, or one name was given in place of several.

    Example:
        >>> import torch
        >>> from torchlosses.testing import check_loss
        >>> report = check_loss(torch.nn.MSELoss, kind="regression", only=["gradients"])
        >>> report.ok
        True
    """
    skips = skipped_checks(skip)
    chosen = CHECKS.keys() if only is None else skipped_checks(only)
    counted = severities(fail_on)
    audit = Audit(loss, kind, reference, options, rename, device, dtypes)
    results = []
    for check in CHECKS.values():
        if check.name not in chosen:
            continue
        if check.name in skips:
            results.append(Result(check.name, check.why, "skipped", skips[check.name]))
        else:
            results.append(run_check(check, audit))
    with undisturbed(audit.device):
        computes_in = short(audit.computes_in)
    return Report(
        loss=audit.name,
        kind=audit.kind.name,
        reference=None if reference is None else name_of(reference),
        options={name: repr(value) for name, value in (options or {}).items()},
        versions={
            "python": platform.python_version(),
            "torch": torch.__version__,
            "numpy": np.__version__,
            "torchlosses": torchlosses.__version__,
        },
        notes=audit.notes,
        results=tuple(results),
        device=str(audit.device),
        dtypes=tuple(map(short, audit.claimed)),
        computes_in=computes_in,
        fail_on=counted,
    )


def assert_loss(loss: Any, **arguments: Any) -> Report:
    """`check_loss` with the same arguments, for a test.

    Raises:
        AssertionError: A check failed, or none passed; the message holds every finding.
    """
    report = check_loss(loss, **arguments)
    if not report.ok:
        raise AssertionError(str(report))
    return report


def skipped_checks(skip: Iterable[str] | Mapping[str, str]) -> dict[str, str]:
    """The names of checks that `skip` stands for, each with the reason."""
    if isinstance(skip, str):
        raise TypeError(f"expected several names of checks, but got {skip!r}: write [{skip!r}].")
    reasons = skip if isinstance(skip, Mapping) else dict.fromkeys(skip, "left out by the caller")
    found = {}
    for pattern, reason in reasons.items():
        names = [name for name in CHECKS if name == pattern or name.startswith(pattern.removesuffix(".*") + ".")]
        if not names:
            raise ValueError(f"{pattern!r} is not a check: expected one of {', '.join(CHECKS)}.")
        found.update(dict.fromkeys(names, reason))
    return found


def severities(fail_on: Iterable[str]) -> tuple[str, ...]:
    """The severities of these names, in which '-' and '_' may stand for a space."""
    if isinstance(fail_on, str):
        raise TypeError(f"expected several severities, but got {fail_on!r}: write [{fail_on!r}].")
    names = [name.replace("-", " ").replace("_", " ") for name in fail_on]
    for name in names:
        if name not in SEVERITIES:
            raise ValueError(f"{name!r} is not a severity: expected some of {', '.join(SEVERITIES)}.")
    return tuple(name for name in SEVERITIES if name in names)


def run_check(check: Check, audit: Audit) -> Result:
    """Run one check on all of its cases; the first failure is shrunk and ends it."""
    start = time.perf_counter()
    passed, refusals, measurements = 0, [], {}

    def result(status: str, reason: str = "", finding: Finding | None = None) -> Result:
        seconds = time.perf_counter() - start
        cases = passed + (finding is not None)
        return Result(check.name, check.why, status, reason, cases, seconds, finding, measurements)

    try:
        _require_a_form(check, audit)
        for case in _cases(check, audit):
            try:
                measurements.update(_attempt(check, audit, case) or {})
            except Failure as failure:
                small, failure = shrink(
                    lambda other: _attempt(check, audit, other), case, failure, audit.kind, audit.droppable
                )
                return result("failed", "", _finding(failure, check, audit.call_text(small)))
            except CannotRun as refusal:
                refusals.append((case, refusal))
            else:
                passed += 1
    except NotApplicable as refusal:
        return result(refusal.status, str(refusal))
    except Failure as failure:
        return result("failed", "", _finding(failure, check, audit.name))
    if passed:
        status = "measured" if measurements else "passed"
        return result(status, _partly_refused(refusals))
    if refusals:
        # A refusal by the loss says more than a case that the check does not apply to.
        worst = max((refusal for _, refusal in refusals), key=lambda refusal: refusal.status != "not applicable")
        return result(worst.status, str(worst))
    return result("not applicable", "there is no input to ask this question on")


def _finding(failure: Failure, check: Check, call: str) -> Finding:
    severity = failure.severity or check.severity
    return Finding(failure.summary, failure.call or call, failure.got, failure.expected, failure.cause, severity)


def _require_a_form(check: Check, audit: Audit) -> None:
    """Where the loss runs on nothing, one check says so; the others have nothing to say."""
    with undisturbed(audit.device):
        runs = bool(audit.forms)
    if not runs and check.name != "values.runs":
        raise NotApplicable("the loss runs on no input of this kind: see values.runs")


def _cases(check: Check, audit: Audit) -> list[Case]:
    try:
        with undisturbed(audit.device):
            return list(check.cases(audit))
    except (Failure, CannotRun):
        raise
    except Exception as error:
        raise NotApplicable(f"its inputs cannot be made from those of kind {audit.kind.name}: {error}") from error


def _partly_refused(refusals: list[tuple[Case, CannotRun]]) -> str:
    """For what inputs the loss refused what it does for others: one example of each reason."""
    reasons: dict[str, list[Case]] = {}
    for case, refusal in refusals:
        if refusal.status != "not applicable":
            reasons.setdefault(str(refusal), []).append(case)
    texts = [f"{len(cases)} inputs, such as {cases[0].label}: {reason}" for reason, cases in reasons.items()]
    return "not supported for " + "; ".join(texts) if texts else ""


def _attempt(check: Check, audit: Audit, case: Case) -> Mapping[str, float] | None:
    try:
        with undisturbed(audit.device):
            return check.function(audit, case)
    except (Failure, CannotRun):
        raise
    except Exception as error:
        raise audit.verdict_on(error) from error
