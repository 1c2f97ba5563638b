"""Run the lines of the report card: `python -m benchmarks.report_card.lines`. It needs nothing but PyTorch.

The lines of what is not installed are left out, and it is named.
"""

from __future__ import annotations

import sys

from benchmarks.report_card.explanations import FINDINGS
from benchmarks.report_card.findings import NotReproducedError, reproduce


def main() -> int:
    """Run the command; 1 where lines do not print what they say."""
    missing = {finding.missing for finding in FINDINGS if finding.missing}
    runnable = [finding for finding in FINDINGS if not finding.missing]
    failed = 0
    for finding in runnable:
        try:
            reproduce(finding)
        except NotReproducedError as error:
            failed += 1
            print(error)
    left_out = f"; not installed: {', '.join(sorted(missing))}" if missing else ""
    print(f"{len(runnable) - failed} of {len(FINDINGS)} findings are as described, {failed} are not{left_out}")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
