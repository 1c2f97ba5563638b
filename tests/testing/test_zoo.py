"""The kit bites: each broken loss of the zoo is caught by the check named for it, and for the reason it is broken."""

from __future__ import annotations

import pytest

from tests.testing.zoo import ZOO
from torchlosses.testing import CHECKS, check_loss

# What is asked in other dtypes only, and what has nothing wider than float32 to be measured by.
NOT_IN_FLOAT32 = {
    "values.float64",
    "values.bfloat16",
    "values.float16",
    "values.float16_range",
    "values.confident_tail",
    "integration.autocast",
}
# Every other loss of the zoo, but for one that is right in float32, is caught by the tolerances of float32 too.
AUDITS = [(name, broken.dtypes) for name, broken in ZOO.items()]
AUDITS += [(name, ("float32",)) for name, broken in ZOO.items() if broken.check not in NOT_IN_FLOAT32]
AUDITS.remove(("always_float32-values.runs", ("float32",)))
# Of 20,000 classes: most of the time of all of them, to find a small case.
SLOW = ("leaves_the_last_block_of_classes_out-values.many_classes", ("float32",))


@pytest.mark.parametrize(
    ("name", "dtypes"),
    [pytest.param(*audit, marks=pytest.mark.thorough if audit == SLOW else ()) for audit in AUDITS],
)
def test_caught_by_its_check(name: str, dtypes: tuple[str, ...] | None) -> None:
    broken = ZOO[name]
    report = check_loss(broken.loss, kind=broken.kind, reference=broken.reference, dtypes=dtypes, only=[broken.check])
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
