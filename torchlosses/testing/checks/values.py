"""Are the numbers right: against a reference, in low precision, and at the edges of the input."""

from __future__ import annotations

from torchlosses.testing.audit import Audit
from torchlosses.testing.comparing import expect
from torchlosses.testing.kinds import Case
from torchlosses.testing.registry import check


@check(
    "values.runs",
    lambda audit: audit.cases(few=True),
)
def runs(audit: Audit, case: Case) -> None:
    """A loss must give a floating-point tensor for the inputs of its kind before anything else can be said of it."""
    loss = audit.loss(case)
    expect(
        loss.requires_grad is False, "the loss of constants requires grad", "requires_grad=True", "False", "parameters"
    )
