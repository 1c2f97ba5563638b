"""The kit bites: each broken loss of the zoo is caught by the check named for it, and for the reason it is broken."""

from __future__ import annotations

import pytest

from tests.testing.zoo import ZOO
from torchlosses.testing import CHECKS, check_loss


@pytest.mark.parametrize("name", ZOO)
def test_caught_by_its_check(name: str) -> None:
    broken = ZOO[name]
    report = check_loss(broken.loss, kind=broken.kind, reference=broken.reference, only=[broken.check])
    result = report[broken.check]
    assert result.status == "failed", result
    assert result.finding is not None
    assert broken.says in result.finding.summary, result
    assert broken.loss.__name__ in result.finding.call
    assert result.finding.got != result.finding.expected


def test_every_check_can_fail() -> None:
    """But for the costs, which are measured only."""
    caught = {broken.check for broken in ZOO.values()}
    assert caught == {name for name in CHECKS if not name.startswith("cost.")}
    assert len({broken.loss for broken in ZOO.values()}) >= 25
