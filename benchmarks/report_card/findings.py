"""What the failures of the report card mean: a judgement, fair words, and lines that anyone can run.

The lines are doctests without torchlosses: they run with the library alone, by `python -m benchmarks.report_card.lines`
too, and `make report-card` runs them all.
"""

from __future__ import annotations

import doctest
import importlib
import textwrap
from dataclasses import dataclass
from importlib.util import find_spec

JUDGEMENTS = {
    "error": "contradicts the library's own documentation or formula, or gives a wrong number without an error",
    "limit": "accuracy, range or a use of PyTorch that is lost, where nothing else was promised",
    "choice": "another convention than torch.nn's, documented or evidently meant",
}


@dataclass(frozen=True)
class Finding:
    """Why some checks fail on one loss.

    Args:
        subject: The name of the loss.
        checks: The checks of the kit that fail for this reason; none for what the kit does not ask.
        judgement: One of `JUDGEMENTS`.
        title: In a few words.
        words: What the library documents, what it does, and what follows.
        lines: A doctest.
    """

    subject: str
    checks: tuple[str, ...]
    judgement: str
    title: str
    words: str
    lines: str

    def __post_init__(self) -> None:
        if self.judgement not in JUDGEMENTS:
            raise ValueError(f"{self.judgement!r} is no judgement: expected one of {', '.join(JUDGEMENTS)}.")
        for name in ("words", "lines"):
            object.__setattr__(self, name, textwrap.dedent(getattr(self, name)).strip())

    @property
    def library(self) -> str:
        """The package that the lines import."""
        return self.subject.partition(".")[0]

    @property
    def missing(self) -> str:
        """What the lines need and is not there: the library, or a loss that an older torch has not; '' for nothing."""
        if find_spec(self.library) is None:
            return self.library
        module, _, loss = self.subject.rpartition(".")
        there = self.library != "torch" or hasattr(importlib.import_module(module), loss)
        return "" if there else self.subject


class NotReproducedError(Exception):
    """The lines of a finding do not print what they say."""


def reproduce(finding: Finding) -> None:
    """Run the lines of a finding, in a namespace of their own.

    Raises:
        NotReproducedError: They print something else; the message shows what.
    """
    name = f"{finding.subject}: {finding.title}"
    test = doctest.DocTestParser().get_doctest(finding.lines + "\n", {}, name, None, None)
    if not test.examples:
        raise NotReproducedError(f"{name}: there is nothing to run")
    printed: list[str] = []
    flags = doctest.NORMALIZE_WHITESPACE | doctest.ELLIPSIS
    outcome = doctest.DocTestRunner(optionflags=flags, verbose=False).run(test, out=printed.append)
    if outcome.failed:
        raise NotReproducedError("".join(printed))
