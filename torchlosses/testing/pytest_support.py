"""Each check of a loss as a pytest test of its own."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch

from torchlosses.testing.audit import Audit
from torchlosses.testing.kinds import Kind
from torchlosses.testing.outcomes import SEVERITIES
from torchlosses.testing.registry import CHECKS, Check
from torchlosses.testing.report import Result
from torchlosses.testing.runner import run_check, severities, skipped_checks


class BoundCheck:
    """One check of one loss: called in a test, it fails or skips the test; `run` gives the result.

    A failure that is not counted is an expected failure of the test.
    """

    def __init__(self, check: Check, audit: Callable[[], Audit], skip: str | None, fail_on: tuple[str, ...]) -> None:
        self.name = check.name
        self._check, self._audit, self._skip, self._fail_on = check, audit, skip, fail_on

    def run(self) -> Result:
        """Run the check."""
        if self._skip is not None:
            return Result(self._check.name, self._check.why, "skipped", self._skip)
        return run_check(self._check, self._audit())

    def __call__(self) -> Result:
        """Run the check as a test."""
        import pytest

        result = self.run()
        if result.finding is not None:
            if result.finding.severity not in self._fail_on:
                pytest.xfail(f"{result.finding.severity}, which is not counted: {result.finding.summary}")
            pytest.fail(str(result), pytrace=False)
        if result.status not in ("passed", "measured"):
            pytest.skip(f"{result.status}: {result.reason}")
        return result


def bound_checks(
    loss: Any,
    *,
    kind: str | Kind,
    reference: Any = None,
    skip: Iterable[str] | Mapping[str, str] = (),
    options: Mapping[str, Any] | None = None,
    rename: Mapping[str, str] | None = None,
    device: str | torch.device = "cpu",
    dtypes: Iterable[str | torch.dtype] | None = None,
    fail_on: Iterable[str] = tuple(SEVERITIES),
) -> list[BoundCheck]:
    """The checks of one loss, arguments as `check_loss`; the loss is first called when the first of them runs."""
    skips, counted = skipped_checks(skip), severities(fail_on)
    audit = functools.cache(lambda: Audit(loss, kind, reference, options, rename, device, dtypes))
    return [BoundCheck(check, audit, skips.get(check.name), counted) for check in CHECKS.values()]


def parametrize(loss: Any, **arguments: Any) -> Any:
    """A decorator that runs a test `def test_my_loss(check): check()` once for each check; arguments as `check_loss`.

    Example:
        >>> import torch
        >>> from torchlosses.testing import parametrize
        >>> @parametrize(torch.nn.MSELoss, kind="regression")
        ... def test_mse(check):
        ...     check()
    """
    import pytest

    return pytest.mark.parametrize(
        "check", [pytest.param(check, id=check.name) for check in bound_checks(loss, **arguments)]
    )
