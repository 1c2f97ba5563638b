"""What is shown while a run works."""

from __future__ import annotations

import re
from io import StringIO

from rich.console import Console

from training.progress import Display


def show(*, terminal: bool, quiet: bool = False) -> str:
    screen = StringIO()
    with Display(Console(file=screen, force_terminal=terminal, width=120), quiet=quiet) as display:
        display.now("reading the images")
        display.done()
        display.expect(100)
        display.now("digit · cross-entropy · seed 0 · epoch 1/3", 40)
        display.advance(25, 0.5)
        display.note("a line")
    return re.sub(r"\x1b\[[\d;?]*[a-zA-Z]", "", screen.getvalue())


def test_a_terminal_shows_what_is_running_its_loss_and_the_time_left() -> None:
    lines = show(terminal=True).splitlines()
    assert "a line" in [line.strip() for line in lines]
    whole = next(line for line in reversed(lines) if line.startswith("everything"))
    part = next(line for line in reversed(lines) if line.startswith("digit"))
    assert re.search(r"25%.*left", whole)
    assert re.search(r"digit · cross-entropy · seed 0 · epoch 1/3 .*62%.*loss 0\.5000.*left", part)
    assert "reading" not in lines[-1]


def test_elsewhere_there_are_only_lines_with_the_time_left() -> None:
    assert re.fullmatch(r"a line · \d+:\d\d left\n", show(terminal=False))


def test_a_quiet_display_shows_nothing() -> None:
    assert show(terminal=False, quiet=True) == ""
    assert "a line" not in show(terminal=True, quiet=True)
