"""The documents: from results, without measuring anything."""

from __future__ import annotations

import re
import struct
from pathlib import Path

import pytest

from benchmarks import report
from benchmarks.curves import CLASSES, DRAWN, ROWS
from benchmarks.goals import GOALS, MEMORY_GOALS, Goal, MemoryGoal
from benchmarks.lookup import Lookup
from benchmarks.results import ImportTimes, Measured, PeakMemory, Results, Timing, TrainingCurves, write_results
from benchmarks.tables import duration, tables, times_as_fast
from benchmarks.transformers_table import Model, Sweep

from .synthetic_results import results, timing

ROOT = Path(__file__).parents[2]
PLOTS = ("speed", "memory")


@pytest.fixture
def documents(tmp_path: Path) -> Path:
    """A copy of the documents, beside results."""
    for name in report.DOCUMENTS:
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_text((ROOT / name).read_text(encoding="utf-8"), encoding="utf-8")
    write_results(results(), tmp_path / "results.json")
    return tmp_path


def arguments(folder: Path) -> list[str]:
    return ["--results", str(folder / "results.json"), "--root", str(folder)]


def test_every_place_is_filled_and_every_plot_drawn(documents: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert report.main(arguments(documents)) == 0
    written = capsys.readouterr().out.splitlines()
    assert written == [
        str(documents / name) for name in (*report.DOCUMENTS, *(f"docs/images/benchmark-{plot}.png" for plot in PLOTS))
    ]
    made = report.passages(documents / "results.json")
    for name in report.DOCUMENTS:
        text = (documents / name).read_text(encoding="utf-8")
        places = re.findall(r"<!-- benchmark: ([\w-]+) -->\n(.*?)<!-- end of benchmark -->", text, re.DOTALL)
        assert places
        for place, content in places:
            assert content == f"{made[place]}\n"
        for image in re.findall(r"\((?:docs/)?images/(benchmark-[\w-]+\.png)\)", text):
            header = (documents / "docs" / "images" / image).read_bytes()[:24]
            assert header[1:4] == b"PNG"
            width, height = struct.unpack(">II", header[16:24])
            assert 800 < width < 1600
            assert 300 < height < 1600


def test_filling_again_changes_nothing(documents: Path) -> None:
    report.main(arguments(documents))
    before = {path: path.read_bytes() for path in documents.rglob("*") if path.is_file()}
    report.main(arguments(documents))
    assert {path: path.read_bytes() for path in documents.rglob("*") if path.is_file()} == before


def test_check_names_a_document_that_says_something_else(documents: Path, capsys: pytest.CaptureFixture[str]) -> None:
    report.main(arguments(documents))
    capsys.readouterr()
    assert report.main([*arguments(documents), "--check"]) == 0
    page = documents / "docs" / "performance.md"
    text = page.read_text(encoding="utf-8")
    # A digit more in a table, and no other file is touched.
    page.write_text(text.replace(" ms |", "1 ms |", 1), encoding="utf-8")
    before = {path: path.read_bytes() for path in documents.rglob("*") if path.is_file()}
    assert report.main([*arguments(documents), "--check"]) == report.DIFFERS
    assert capsys.readouterr().out == f"{page} differs from its results: `python -m benchmarks.report` fills it in\n"
    assert {path: path.read_bytes() for path in documents.rglob("*") if path.is_file()} == before


def test_what_lies_beside_the_results_is_put_into_the_documents(documents: Path) -> None:
    """Growth, import times, memory by argument, the example's curves, Transformers' models: each file its passage."""
    known = results()
    growing = [
        timing(loss=loss, shape=shape, passes="forward+backward", implementation=name, median=0.01)
        for loss in ("mse_loss", "cross_entropy")
        for shape in ((ROWS, 2), (ROWS, 1024), (1, CLASSES), (8, CLASSES))
        for name in DRAWN[:4]
    ]
    write_results(known.model_copy(update={"timings": growing, "memory": []}), documents / "curves.json")
    some = PeakMemory.model_validate(
        {
            **timing(loss="mse_loss(x, t)").model_dump(include=set(Measured.model_fields)),
            "extra_bytes": 5_000_000,
            "unit_bytes": 4_000_000,
        }
    )
    write_results(known.model_copy(update={"memory": [some]}), documents / "arguments.json")
    environment = known.environment
    imports = ImportTimes(
        started="2025-01-01",
        command="import it",
        environment=environment,
        torch=[1.0, 1.2, 1.1],
        torchlosses=[0.03, 0.05, 0.04],
    )
    write_results(imports, documents / "import_time.json")
    curves = TrainingCurves(
        started="2025-01-01", command="", torch_version="2.10", plain=[3.0, 2.0], lean=[3.0, 2.0], naive=[3.0, 2.5]
    )
    write_results(curves, documents / "normalizer.json")
    model = Model(
        name="Llama", head="lm_head", scale=1.0, soft_cap=30.0, fallbacks={}, loss=2e-7, gradient=3e-6, logits=0.0
    )
    write_results(Sweep(transformers="5.1", models=[model], skipped={}), documents / "transformers.json")
    assert report.main(arguments(documents)) == 0
    page = (documents / "docs" / "performance.md").read_text(encoding="utf-8")
    assert "| `import torchlosses` after it | 40 ms | 35 to 45 ms |" in page
    assert "| `mse_loss(x, t)` | 1.2 | — |" in page
    for loss in ("mse_loss", "cross_entropy"):
        assert f"(images/growth-{loss}.png)" in page
        assert (documents / "docs" / "images" / f"growth-{loss}.png").stat().st_size > 10_000
    assert "growth-huber_loss" not in page
    assert "| 2 | 2.000000000 | 2.000000000 | 0 | 2.500000000 | 5.0e-01 |" in (
        documents / "docs" / "normalizer.md"
    ).read_text(encoding="utf-8")
    assert "| Llama | `lm_head` |  | 30 | yes |" in (documents / "docs" / "language_models.md").read_text(
        encoding="utf-8"
    )


def test_results_with_gaps_still_make_a_report(documents: Path) -> None:
    some = results().model_copy(update={"timings": [timing()], "memory": []})
    write_results(some, documents / "results.json")
    assert report.main(arguments(documents)) == 0
    assert not (documents / "docs" / "images").exists()


def test_a_document_without_its_places_is_not_touched(documents: Path, capsys: pytest.CaptureFixture[str]) -> None:
    page = documents / "docs" / "performance.md"
    for content, complaint in (
        ("nothing", "performance.md has no place for a table"),
        (
            "<!-- benchmark: weather -->\n<!-- end of benchmark -->",
            "performance.md has a place for 'weather'; there are",
        ),
    ):
        page.write_text(content)
        before = (documents / "README.md").read_bytes()
        assert report.main(arguments(documents)) == 2
        assert complaint in capsys.readouterr().err
        assert page.read_text() == content
        assert (documents / "README.md").read_bytes() == before


def test_files_that_are_missing_are_named(documents: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert report.main(["--results", str(documents / "no.json"), "--root", str(documents)]) == 2
    assert "no.json cannot be read (No such file or directory)" in capsys.readouterr().err
    assert report.main(["--results", str(documents / "results.json"), "--root", str(documents / "docs")]) == 2
    assert "README.md cannot be read (No such file or directory); --root names" in capsys.readouterr().err


def with_medians(**medians: float) -> Lookup:
    timings = [
        timing(implementation=name, median=median, lower_quartile=median, upper_quartile=median)
        for name, median in medians.items()
    ]
    empty: Results = results()
    return Lookup(empty.model_copy(update={"timings": timings}))


def test_a_figure_is_reached_at_its_bound_and_not_below() -> None:
    goal = Goal("cross_entropy", (1024, 32000), "forward", torch=6, compiled=6, limit=("exp", 0.75))
    at = goal.measured(with_medians(native=0.5, torch=3.0, compiled=2.9, exp=0.625))
    assert [found and found.reached for found in at] == [True, False, False]
    assert [found and found.ratio for found in at] == pytest.approx([6, 5.8, 0.8])
    below = goal.measured(with_medians(native=0.5, torch=2.99, exp=0.68))
    assert [found and found.reached for found in below] == [False, False, True]
    assert below[1] is not None
    assert below[1].ratio is None


def test_memory_is_counted_in_tensors() -> None:
    found = Lookup(results())
    for units, implementation, reached in ((1.0, "native", True), (3.0, "torch", False)):
        goal = MemoryGoal("cross_entropy", (1024, 32000), "forward+backward", 1.01, "one", implementation)
        assert goal.measured(found).ratio == units
        assert goal.measured(found).reached is reached


def test_every_figure_to_reach_is_about_something_that_is_measured() -> None:
    found = Lookup(results())
    for goal in GOALS:
        measured = [bound for bound in goal.measured(found) if bound is not None]
        assert measured
        assert all(bound.ratio is not None for bound in measured), goal
    assert all(goal.measured(found).ratio is not None for goal in MEMORY_GOALS)


def test_figures_are_rounded_and_carry_their_unit() -> None:
    spread = timing(median=0.0284, lower_quartile=0.02711, upper_quartile=0.1301)
    assert duration(spread) == "28.4 ms"
    assert duration(spread, spread=True) == "28.4 ms (27.1 to 130)"
    assert duration(timing(median=9.996e-4)) == "1000 µs"
    assert duration(timing(median=1.2345e-6)) == "1.23 µs"
    assert duration(timing(median=1.5)) == "1.50 s"
    assert [times_as_fast(ratio) for ratio in (0.284, 0.996, 6.84, 9.96, 23.4, None)] == [
        *("0.28×", "1.0×", "6.8×", "10×", "23×"),
        "—",
    ]


def test_what_a_missed_figure_would_take_and_the_least() -> None:
    """By hand: 32.8 ms, where a sixth of the compiled one's 163.8 ms would be 27.3, and reading takes 14.7."""
    (row,) = (row for row in tables(results())["missed"].splitlines() if "1024×32000, forward |" in row)
    cells = [cell.strip() for cell in row.strip("|").split("|")]
    assert [cells[0], *cells[2:4], cells[5]] == ["cross_entropy 1024×32000, forward", "32.8 ms", "27.3 ms", "2.22"]
    assert cells[4].startswith("14.7 ms: ")
    # One that is reached, or was not measured, has no row.
    assert "in place" not in tables(results())["missed"]
    nothing = results().model_copy(update={"timings": []})
    assert tables(nothing)["missed"] == "Every figure that was measured is reached."


def test_tables_are_rectangular() -> None:
    for name, text in tables(results()).items():
        for table in text.split("\n\n"):
            widths = {len(re.findall(r"(?<!\\)\|", line)) for line in table.splitlines()}
            assert len(widths) == 1, name


def test_an_implementation_that_is_new_appears_everywhere(documents: Path) -> None:
    known = results()
    native = [record for record in (*known.timings, *known.memory) if record.implementation == "native"]
    new = [record.model_copy(update={"implementation": "chunked"}) for record in native]
    more = known.model_copy(
        update={
            "implementations": {**known.implementations, "chunked": "torch, chunked"},
            "timings": [*known.timings, *(record for record in new if isinstance(record, Timing))],
            "memory": [*known.memory, *(record for record in new if isinstance(record, PeakMemory))],
        }
    )
    made = tables(more)
    for name in ("times-all", "times-single", "times-pages", "memory"):
        assert "torch, chunked" in made[name].splitlines()[0]
    write_results(more, documents / "results.json")
    assert report.main(arguments(documents)) == 0
