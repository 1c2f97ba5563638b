"""The results as tables, in Markdown for the documents and on the terminal."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Iterable, Sequence

from rich.console import Console
from rich.table import Table

from benchmarks.cases import SETTINGS
from benchmarks.curves import LOSSES
from benchmarks.figures import growth_name
from benchmarks.goals import GOALS, MEMORY_GOALS, Goal, MemoryGoal, Reached
from benchmarks.implementations import OF_PAIRS
from benchmarks.lookup import Lookup, Subject
from benchmarks.results import ImportTimes, Results, Timing, TrainingCurves

NOTHING = "—"
MEGABYTE = 1e6
# The limit that says most about each call.
NEAREST_LIMIT = {
    ("mse_loss", "forward"): "dot",
    ("cross_entropy", "forward"): "exp",
    ("cee_loss", "forward"): "copy",
    ("linear_cross_entropy", "forward+backward"): "products",
}


# The steps of the machine that a loss cannot do without: each a setting and a limit. The gradient of a large input goes
# to fresh memory, which costs least in huge pages; that of a batch that fits the cache costs less than the calls.
LEAST = {
    ("cross_entropy", "forward"): (("all", "read"),),
    ("cross_entropy", "forward+backward"): (("pages", "clone"),),
    ("mse_loss", "forward"): (("all", "dot"),),
    **dict.fromkeys(((loss, "forward+backward") for loss in OF_PAIRS), (("all", "read"), ("pages", "clone"))),
    ("linear_cross_entropy", "forward+backward"): (("all", "products"),),
}
LEAST_OF_SMALL = (("all", "function"),)


def tables(results: Results) -> dict[str, str]:
    """Every table of the documents, by the name of its place."""
    lookup = Lookup(results)
    made = {
        "environment": _environment(results),
        "goals": _goals(lookup),
        "missed": _missed(lookup),
        "memory": _memory(lookup),
        "summary": _summary(lookup),
    }
    for setting in SETTINGS:
        made[f"times-{setting}"] = _times(lookup, setting)
    made["limits"] = _limits(lookup)
    return made


def print_results(results: Results, console: Console) -> None:
    """The most important times and the figures to reach, for a terminal."""
    lookup = Lookup(results)
    for setting in results.settings:
        table = Table(title=f"torch {results.environment.torch}, {setting.title}")
        for column in ("case", "passes", "torchlosses", "against torch", "against torch.compile", "of the limit"):
            table.add_column(column, justify="left" if column in ("case", "passes") else "right")
        for subject in lookup.timed(setting.name):
            limit = NEAREST_LIMIT.get((subject.loss, subject.passes), "clone")
            ratios = (lookup.ratio(setting.name, subject, "native", against) for against in ("torch", "compiled"))
            of_limit = lookup.ratio(setting.name, subject, limit, "native")
            table.add_row(
                subject.title,
                subject.passes,
                duration(lookup.timing(setting.name, subject, "native")),
                *map(times_as_fast, ratios),
                NOTHING if of_limit is None else f"{of_limit:.2f} {limit}",
            )
        console.print(table)
    judged = [reached for goal in GOALS for reached in goal.measured(lookup) if reached is not None]
    judged += [goal.measured(lookup) for goal in MEMORY_GOALS]
    measured = [reached for reached in judged if reached.ratio is not None]
    console.print(
        f"{sum(reached.reached for reached in measured)} of {len(measured)} figures to reach that were measured "
        f"are reached; {len(judged) - len(measured)} were not measured."
    )


def duration(timing: Timing | None, *, spread: bool = False) -> str:
    """The median of a time with its unit, and if asked for the quartiles."""
    if timing is None:
        return NOTHING
    text = seconds(timing.median)
    if spread:
        factor = _unit(timing.median)[1]
        text += f" ({_digits(timing.lower_quartile * factor)} to {_digits(timing.upper_quartile * factor)})"
    return text


def seconds(time: float) -> str:
    """A time with its unit."""
    unit, factor = _unit(time)
    return f"{_digits(time * factor)} {unit}"


def _unit(time: float) -> tuple[str, float]:
    return ("s", 1.0) if time >= 1 else ("ms", 1e3) if time >= 1e-3 else ("µs", 1e6)


def times_as_fast(ratio: float | None) -> str:
    """A ratio of times, such as 6.8×."""
    return NOTHING if ratio is None else f"{_digits(ratio, 2)}×"


def _digits(value: float, significant: int = 3) -> str:
    """So many significant digits, and all that are before the point."""
    rounded = float(f"{value:.{significant}g}")
    decimals = max(0, significant - 1 - math.floor(math.log10(rounded)))
    return f"{value:.{decimals}f}"


def _markdown(columns: Sequence[str], rows: Iterable[Sequence[str]], *, left: int = 1) -> str:
    """A table; the first `left` columns hold text, the others numbers."""
    rule = ["---"] * left + ["---:"] * (len(columns) - left)
    return "\n".join(f"| {' | '.join(row)} |" for row in (columns, rule, *rows))


def _environment(results: Results) -> str:
    environment = results.environment
    commit = environment.commit[:12] if environment.commit else "not known"
    rows = {
        "date": results.started[:10],
        "commit": commit + (" and changes" if environment.dirty else ""),
        "torch": environment.torch,
        "backend": f"{environment.backend}, {environment.instruction_set}",
        "processor": f"{environment.processor}, {environment.cores} cores",
        "system": f"{environment.platform}, {environment.libc}, Python {environment.python}",
        "allocator": ", ".join(f"{name}={value}" for name, value in environment.allocator.items()) or "default",
        "transparent huge pages": environment.transparent_huge_pages or "not known",
        "load before": "not known" if environment.load is None else f"{environment.load:.2f}",
        "settings": "; ".join(setting.title for setting in results.settings),
        "command": f"`{results.command}`, {results.seconds:.0f} s",
    }
    return _markdown(("what", "value"), rows.items(), left=2)


def _goals(lookup: Lookup) -> str:
    rows = [
        (_goal_title(goal, lookup.results), *(_judgement(reached, lookup.results) for reached in goal.measured(lookup)))
        for goal in GOALS
    ]
    speed = _markdown(("case", "against torch", "against torch.compile", "against the limit"), rows)
    return f"{speed}\n\n{_memory_goals(lookup)}"


def _missed(lookup: Lookup) -> str:
    """Of the figures that are not reached: the time that each would need, and the least that the machine allows."""
    rows = []
    for goal in GOALS:
        own = lookup.timing(goal.setting, goal.subject, goal.implementation)
        for reached in goal.measured(lookup):
            if own is None or reached is None or reached.ratio is None or reached.reached:
                continue
            least, steps = _least(lookup, goal)
            needed = own.median * reached.ratio / (reached.bound.at_least or 1)
            if reached.bound.at_most is not None:
                needed = own.median * reached.bound.at_most / reached.ratio
            rows.append(
                (
                    _goal_title(goal, lookup.results),
                    f"{reached.bound.at_least:g}× {lookup.results.title(reached.bound.against)}"
                    if reached.bound.at_least is not None
                    else f"{reached.bound.at_most:g} of {lookup.results.title(reached.bound.against)}",
                    seconds(own.median),
                    seconds(needed),
                    NOTHING if least is None else f"{seconds(least)}: {steps}",
                    NOTHING if least is None else f"{own.median / least:.2f}",
                )
            )
    if not rows:
        return "Every figure that was measured is reached."
    columns = ("case", "to reach", "time", "it would take", "the least", "time / least")
    return _markdown(columns, rows, left=2)


def _least(lookup: Lookup, goal: Goal) -> tuple[float | None, str]:
    """The time of the steps that the goal's case cannot do without, and their names."""
    subject = goal.subject
    wanted = LEAST.get((subject.loss, subject.passes), ())
    if lookup.timing("all", subject, "function") is not None and subject.passes == "forward+backward":
        wanted = LEAST_OF_SMALL
    total, names = 0.0, []
    for setting, name in wanted:
        found = lookup.timing(setting, subject, name)
        if found is None:
            # A block that the allocator keeps is warm.
            setting, name = "all", "copy"
            found = lookup.timing(setting, subject, name)
        if found is None:
            return None, ""
        total += found.median
        names.append(lookup.results.title(name) + (" in huge pages" if setting == "pages" else ""))
    return (total or None), " + ".join(names)


def _goal_title(goal: Goal, results: Results) -> str:
    notes = [goal.passes]
    if goal.implementation != "native":
        notes.append(results.title(goal.implementation).removeprefix("torchlosses, "))
    if goal.setting == "pages":
        notes.append("THP_MEM_ALLOC_ENABLE=1")
    return f"{goal.subject.title}, {', '.join(notes)}"


def _judgement(reached: Reached | None, results: Results) -> str:
    if reached is None:
        return ""
    bound = reached.bound
    if bound.at_least is not None:
        return f"≥ {bound.at_least:g}×: {_mark(reached, times_as_fast(reached.ratio))}"
    share = NOTHING if reached.ratio is None else f"{reached.ratio:.2f}"
    return f"≤ {bound.at_most:g} of {results.title(bound.against)}: {_mark(reached, share)}"


def _mark(reached: Reached, figure: str) -> str:
    if reached.ratio is None:
        return "not measured"
    return f"**{figure}**" if reached.reached else f"{figure}, not reached"


def _memory_goals(lookup: Lookup) -> str:
    def row(goal: MemoryGoal) -> tuple[str, str, str, str]:
        reached, torch = goal.measured(lookup), lookup.memory("all", goal.subject, "torch")
        title = f"{goal.subject.title}, {goal.subject.passes}" + (
            ", in place" if goal.implementation == "inplace" else ""
        )
        share = NOTHING if reached.ratio is None else f"{reached.ratio:.2f}"
        return title, goal.words, _mark(reached, share), NOTHING if torch is None else f"{torch.units:.2f}"

    columns = ("peak extra memory, in tensors of (rows, classes)", "to reach", "torchlosses", "torch")
    return _markdown(columns, map(row, MEMORY_GOALS), left=2)


def _summary(lookup: Lookup) -> str:
    """The short table: forward and backward, with all threads, of the cases that have a figure to reach."""
    subjects = dict.fromkeys(goal.subject for goal in GOALS if goal.passes == "forward+backward")
    rows = []
    for subject in subjects:
        found = lookup.timing("all", subject, "native")
        if found is None:
            continue
        memory = (lookup.memory("all", subject, name) for name in ("native", "torch"))
        units = [NOTHING if peak is None else f"{peak.units:.1f}" for peak in memory]
        ratios = (lookup.ratio("all", subject, "native", against) for against in ("torch", "compiled"))
        rows.append(
            (
                subject.title,
                duration(found),
                *map(times_as_fast, ratios),
                NOTHING if NOTHING in units else " / ".join(units),
            )
        )
    if not rows:
        return "Not measured."
    columns = ("forward and backward", "time", "against torch", "against torch.compile", "memory, ours / torch's")
    return _markdown(columns, rows)


def _times(lookup: Lookup, setting: str) -> str:
    return _matrix(
        lookup,
        lookup.timed(setting),
        lookup.results.implementations,
        lambda subject, name: duration(lookup.timing(setting, subject, name), spread=True),
    )


def arguments_table(results: Results) -> str:
    """What a call holds beyond its inputs, by what is asked of it."""
    lookup = Lookup(results)
    rows = [
        (
            f"`{subject.loss}`",
            *(
                NOTHING if (peak := lookup.memory("all", subject, name)) is None else f"{peak.units:.1f}"
                for name in ("native", "torch")
            ),
        )
        for subject in lookup.weighed()
    ]
    shape = "×".join(map(str, lookup.weighed()[0].shape))
    return _markdown((f"forward and backward, {shape} float32", "torchlosses", "torch"), rows)


def growth(results: Results) -> str:
    """The pictures of the losses that have any point, and what they were measured with."""
    measured = {timing.loss for timing in results.timings}
    pictures = [f"![Time of {loss} by its size](images/{growth_name(loss)})" for loss in LOSSES if loss in measured]
    made = f"{results.started[:10]}, commit {(results.environment.commit or 'not known')[:12]}"
    return "\n\n".join([*pictures, f"Measured with `{results.command}`, {made}, {results.settings[0].title}."])


def import_table(found: ImportTimes) -> str:
    """What an import costs, beside torch's own."""
    rows = []
    for name, samples in (("`import torch`", found.torch), ("`import torchlosses` after it", found.torchlosses)):
        lower, median, upper = statistics.quantiles(samples, n=4, method="inclusive")
        rows.append((name, f"{median * 1e3:.0f} ms", f"{lower * 1e3:.0f} to {upper * 1e3:.0f} ms"))
    made = f"{found.started[:10]}, commit {(found.environment.commit or 'not known')[:12]}"
    table = _markdown(("", "median", "quartiles"), rows)
    return f"{table}\n\n`{found.command}`, {made}, {len(found.torch)} processes one after the other."


def training_curves_table(found: TrainingCurves) -> str:
    """The loss of a training with and without the normaliser, beside that of one process."""
    steps = len(found.plain)
    shown = sorted({*range(0, steps, max(1, steps // 5)), steps - 1})
    rows = []
    for step in shown:
        cells = [f"{step + 1}", f"{found.plain[step]:.9f}"]
        for curve in (found.lean, found.naive):
            difference = abs(found.plain[step] - curve[step])
            cells += [f"{curve[step]:.9f}", "0" if difference == 0 else f"{difference:.1e}"]
        rows.append(cells)
    columns = ("step", "one process", "with `normalizer=`", "difference", "naive (`--naive`)", "difference")
    return _markdown(columns, rows, left=0)


def _limits(lookup: Lookup) -> str:
    # The limits do not depend on the passes; those beside the forward and backward stand for both.
    subjects = [subject for subject in lookup.timed("all") if subject.passes == "forward+backward"]
    return _matrix(
        lookup, subjects, lookup.results.limits, lambda subject, name: duration(lookup.timing("all", subject, name))
    )


def _memory(lookup: Lookup) -> str:
    def cell(subject: Subject, name: str) -> str:
        peak = lookup.memory("all", subject, name)
        return NOTHING if peak is None else f"{peak.units:.2f} ({peak.extra_bytes / MEGABYTE:.0f} MB)"

    return _matrix(lookup, lookup.weighed(), (*lookup.results.implementations, "clone"), cell)


def _matrix(
    lookup: Lookup, subjects: Sequence[Subject], names: Iterable[str], cell: Callable[[Subject, str], str]
) -> str:
    """A row a subject and a column a name; columns without anything measured are left out."""
    columns = {name: [cell(subject, name) for subject in subjects] for name in names}
    columns = {lookup.results.title(name): cells for name, cells in columns.items() if set(cells) - {NOTHING}}
    if not columns:
        return "Not measured."
    about = [[subject.title for subject in subjects], [subject.passes for subject in subjects]]
    return _markdown(("case", "passes", *columns), zip(*about, *columns.values(), strict=True), left=2)
