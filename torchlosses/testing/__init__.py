"""The conformance kit: put any PyTorch loss through an audit of its values, derivatives, laws and manners.

    report = check_loss(MyLoss, kind="classification", reference=torch.nn.CrossEntropyLoss)
    print(report)                                   # a table, and each failure with its smallest input
    assert_loss(MyLoss, kind="classification")      # AssertionError where a check fails

    python -m torchlosses.testing package.module:MyLoss --kind classification --reference torch.nn:CrossEntropyLoss

In pytest each check is a test with its own name:

    @parametrize(MyLoss, kind="classification")
    def test_my_loss(check):
        check()

On a GPU, and for the dtypes that a kernel claims, with an exit code that counts wrong numbers only:

    python -m torchlosses.testing ... --device cuda --dtypes float32,bfloat16 --fail-on wrong-value,wrong-gradient

What may be checked:
    A function `loss(input, target, **options)`, a Module class (its options go to the constructor), or a Module with
    its options fixed. The usual options (`reduction`, `weight`, `ignore_index`, `label_smoothing`, `linear_bias`,
    `pos_weight`) are found in the signature and checked where they are there; `rename` says what a loss calls them,
    `options` fixes others.

What comes back:
    A `Report`: one `Result` a check, in the order of `CHECKS`, each with a status: 'passed'; 'failed', with a `Finding`
    (the smallest failing input, what was got, what was expected, the likely cause); 'not applicable', 'not supported'
    (the loss refuses with an error, which is honest, where a silent zero would be a failure), 'too large' and
    'skipped', each with the reason; and 'measured' for the costs, which neither pass nor fail. A failure has one of
    the `SEVERITIES`. `Report.to_dict()` is the JSON; its keys are stable: schema, loss, kind, reference, options,
    versions, device, dtypes, computes_in, fail_on, counts, severities, notes, results; of a result: check, subject,
    why, status, reason, cases, seconds, finding, measurements; and of a finding: summary, call, got, expected, cause,
    severity.
"""

from torchlosses.testing.kinds import KINDS, Case, Kind
from torchlosses.testing.outcomes import SEVERITIES
from torchlosses.testing.pytest_support import BoundCheck, bound_checks, parametrize
from torchlosses.testing.registry import CHECKS, Check
from torchlosses.testing.report import STATUSES, Finding, Report, Result
from torchlosses.testing.runner import assert_loss, check_loss

__all__ = [
    "CHECKS",
    "KINDS",
    "SEVERITIES",
    "STATUSES",
    "BoundCheck",
    "Case",
    "Check",
    "Finding",
    "Kind",
    "Report",
    "Result",
    "assert_loss",
    "bound_checks",
    "check_loss",
    "parametrize",
]
