"""The documents say what the stored results say."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from training.errors import StudyError
from training.publish import DOCUMENTS, PICTURES, ROOT, STORED, Options, fill, main, passages, publish
from training.results import read_results, write_results

from .synthetic_results import build_results


@pytest.fixture(scope="module")
def made() -> dict[str, str]:
    return passages(read_results(ROOT / STORED))


@pytest.mark.parametrize("name", DOCUMENTS, ids=str)
def test_every_number_of_a_document_comes_from_the_stored_results(name: Path, made: dict[str, str]) -> None:
    text = (ROOT / name).read_text(encoding="utf-8")
    assert fill(text, made, name.name) == text


def test_the_stored_run_is_whole_and_used_the_tuned_rates() -> None:
    results = read_results(ROOT / STORED)
    assert results.complete
    assert {item.rate_source for item in results.objectives} == {"tuned"}
    assert {item.task for item in results.objectives} == {"digit", "angle"}
    assert len({run.seed for run in results.runs}) >= 6
    for name in PICTURES:
        assert (ROOT / "docs" / "images" / f"{name}.png").stat().st_size > 10_000


def test_a_run_is_put_into_the_documents(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in DOCUMENTS:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        shutil.copyfile(ROOT / name, tmp_path / name)
    (tmp_path / "docs" / "images").mkdir()
    (tmp_path / "run").mkdir()
    results = build_results()
    write_results(results, tmp_path / "run" / "results.json")
    publish(Options(run=tmp_path / "run", root=tmp_path))
    assert read_results(tmp_path / STORED).model_dump_json() == results.model_dump_json()
    text = (tmp_path / "README.md").read_text(encoding="utf-8")
    assert "| regression head, MSE | 71.9 % (69.9 to 73.8)" in text
    assert "python -m training.compare --seeds 3" in text
    assert {path.stem for path in (tmp_path / "docs" / "images").iterdir()} == set(PICTURES)
    write_results(results.model_copy(update={"complete": False}), tmp_path / "run" / "results.json")
    assert main(["--run", str(tmp_path / "run"), "--root", str(tmp_path)]) == 2
    assert "not complete" in capsys.readouterr().err


def test_a_place_without_a_passage_and_a_document_without_a_place_are_refused(made: dict[str, str]) -> None:
    with pytest.raises(StudyError, match="a place for 'weather'"):
        fill("<!-- study: weather -->\n<!-- end of study -->", made, "x.md")
    with pytest.raises(StudyError, match="no place"):
        fill("nothing", made, "x.md")
