"""The report card: its lines are run, its failures explained, its page says what was found."""

from __future__ import annotations

import doctest
import json
from datetime import date
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks.report_card import lines
from benchmarks.report_card.accelerator import Card, OnCard, card_of, on_card
from benchmarks.report_card.explanations import FINDINGS
from benchmarks.report_card.findings import Finding, NotReproducedError, reproduce
from benchmarks.report_card.subjects import SUBJECTS
from torchlosses.testing import CHECKS, Report, Result
from torchlosses.testing import Finding as KitFinding

DOCS = Path(__file__).parents[2] / "docs"
EXTRA = "not installed: it comes with the extra 'report-card', see `make report-card`"


def finding(lines: str = ">>> 1 + 1\n2", checks: tuple[str, ...] = ("values.reference",), **changes: str) -> Finding:
    words = {"subject": "torch.nn.MSELoss", "judgement": "limit", "title": "Title", "words": "Words.", **changes}
    return Finding(checks=checks, lines=lines, **words)


def test_lines_are_run() -> None:
    reproduce(
        finding("""
        >>> import torch
        >>> torch.zeros(2)
        tensor([0., 0.])
    """)
    )


@pytest.mark.parametrize("lines", [">>> 1 + 1\n3", ">>> undefined", "no lines"])
def test_lines_that_print_something_else_are_refused(lines: str) -> None:
    with pytest.raises(NotReproducedError, match="MSELoss"):
        reproduce(finding(lines))


def test_lines_share_nothing() -> None:
    reproduce(finding(">>> leftover = 1"))
    with pytest.raises(NotReproducedError, match="NameError"):
        reproduce(finding(">>> leftover\n1"))


def test_judgement_is_one_of_three() -> None:
    with pytest.raises(ValueError, match="'bad' is no judgement: expected one of error, limit, choice"):
        finding(judgement="bad")


def test_findings_name_losses_and_checks_that_exist() -> None:
    names = [subject.name for subject in SUBJECTS]
    assert len(set(names)) == len(names)
    assert {finding.subject for finding in FINDINGS} <= set(names)
    assert {check for finding in FINDINGS for check in finding.checks} <= CHECKS.keys()


def test_each_check_of_a_loss_is_explained_once() -> None:
    explained = [(finding.subject, check) for finding in FINDINGS for check in finding.checks]
    assert len(set(explained)) == len(explained)


@pytest.mark.parametrize("finding", FINDINGS, ids=lambda finding: f"{finding.subject}: {finding.title}")
def test_finding_is_reproduced(finding: Finding) -> None:
    if finding.missing:
        pytest.skip(f"{finding.missing} is {EXTRA if find_spec(finding.library) is None else 'of a newer torch'}")
    reproduce(finding)


def test_command_runs_the_lines_and_names_what_is_not_installed(capsys: pytest.CaptureFixture[str]) -> None:
    assert lines.main() == 0
    said = capsys.readouterr().out
    missing = {finding.library for finding in FINDINGS if find_spec(finding.library) is None}
    if not hasattr(torch.nn.functional, "linear_cross_entropy"):
        missing.add("torch.nn.functional.linear_cross_entropy")
    runnable = sum(missing.isdisjoint((finding.library, finding.subject)) for finding in FINDINGS)
    assert said.startswith(f"{runnable} of {len(FINDINGS)} findings are as described, 0 are not")
    assert all(library in said for library in missing)


def test_command_fails_where_lines_do_not_hold(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(lines, "FINDINGS", (finding(), finding(">>> 1 + 1\n3")))
    assert lines.main() == 1
    assert "1 of 2 findings are as described, 1 are not" in capsys.readouterr().out


def test_page_names_a_command_for_its_lines() -> None:
    page = (DOCS / "report-card.md").read_text(encoding="utf-8")
    assert f"`python -m {lines.__name__}`" in page


@pytest.mark.parametrize("subject", SUBJECTS, ids=lambda subject: subject.name)
def test_reference_runs(subject: Any) -> None:
    from torchlosses.testing.kinds import kind_named

    if subject.reference is None:
        pytest.skip("no reference")
    kind = kind_named(subject.kind)
    ran = 0
    for form in kind.forms:
        case = kind.draw(form)
        reference = subject.reference() if isinstance(subject.reference, type) else subject.reference
        if subject.distribution == "kornia" and form == "probabilities":
            continue
        loss = reference(*case.tensors.values())
        assert loss.isfinite().all()
        assert loss.dtype == torch.float64
        ran += 1
    assert ran


def test_committed_page_and_json_agree() -> None:
    page = (DOCS / "report-card.md").read_text(encoding="utf-8")
    data = json.loads((DOCS / "report-card.json").read_text(encoding="utf-8"))
    assert [loss["name"] for loss in data["losses"]] == [subject.name for subject in SUBJECTS]
    blocks = doctest.DocTestParser().get_examples(page)
    written = [example for loss in data["losses"] for f in loss["findings"] for example in examples(f["lines"])]
    assert [(block.source, block.want) for block in blocks] == [(line.source, line.want) for line in written]


def test_committed_page_claims_no_card_that_is_not_in_its_figures() -> None:
    page = (DOCS / "report-card.md").read_text(encoding="utf-8")
    card = json.loads((DOCS / "report-card.json").read_text(encoding="utf-8"))["gpu"]
    assert ("No GPU has run the checks yet" in page) == (card is None)
    assert card is None or card["card"] in page


@pytest.mark.thorough
def test_a_loss_is_audited_on_the_device_that_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """The CPU stands for a card."""
    subject = next(subject for subject in SUBJECTS if subject.name == "torch.nn.MSELoss")
    (found,) = on_card([subject], "cpu")
    assert found.name == "torch.nn.MSELoss"
    assert found.passed > 50
    assert found.failed == ("values.float16_range",)
    monkeypatch.setattr(torch.cpu, "get_device_name", lambda device: f"the {device}", raising=False)
    card = card_of("cpu", [found], date(2026, 1, 2))
    assert (card.card, card["torch.nn.MSELoss"], card["other"]) == ("the cpu", found, None)
    assert Card.from_dict(json.loads(json.dumps(card.to_dict()))) == card


def examples(lines: str) -> list[doctest.Example]:
    return doctest.DocTestParser().get_examples(lines + "\n")


class TestPage:
    """The page of a made-up audit; the template engine comes with the extras."""

    @pytest.fixture(autouse=True)
    def template_engine(self) -> None:
        pytest.importorskip("jinja2", reason=f"jinja2 is {EXTRA}")

    @staticmethod
    def grade(findings: tuple[Finding, ...], problems: tuple[str, ...] = ()) -> Any:
        from benchmarks.report_card.grading import Grade

        bad = KitFinding("it is wrong", "MSELoss()(x)", "1", "2", "a factor", "wrong value")
        results = (
            Result("values.reference", "Why.", "failed", finding=bad),
            Result("values.float32", "Why.", "passed"),
            Result("transforms.vmap", "Why.", "not supported", "it raises"),
        )
        report = Report("torch.nn.MSELoss", "regression", None, {}, {"torch": "2"}, (), results)
        subject = next(subject for subject in SUBJECTS if subject.name == "torch.nn.MSELoss")
        return Grade(subject, "2.0", report, findings, problems)

    def test_causes_are_counted_by_judgement(self) -> None:
        grade = self.grade((finding(),))
        assert (grade.causes("limit"), grade.causes("error"), grade.unexplained) == (1, 0, ())
        assert self.grade(()).unexplained == ("values.reference",)

    def test_page_shows_words_lines_and_numbers(self) -> None:
        from benchmarks.report_card.page import markdown

        page = markdown([self.grade((finding(words="Because of this."),))], date(2026, 1, 2))
        assert "as of 2026-01-02" in page
        assert "| [torch.nn.MSELoss](#torchnnmseloss) | 1 | 1 | 1 |  |  | 1 |  |  |" in page
        assert "No GPU has run the checks yet" in page
        assert "| torch.nn.MSELoss | 1/2 |" in page
        assert "Because of this." in page
        assert "```python\n>>> 1 + 1\n2\n\n```" in page
        assert "Not yet looked into" not in page

    def test_a_card_fills_its_column_and_stays_where_none_runs(self, tmp_path: Path) -> None:
        from benchmarks.report_card.page import write

        losses = (OnCard("torch.nn.MSELoss", 40, ("values.reference", "transforms.vmap")),)
        card = Card("NVIDIA H100", "2026-01-01", "2.14", losses)
        write([self.grade((finding(),))], tmp_path, date(2026, 1, 2), card)
        for _ in range(2):
            page = (tmp_path / "report-card.md").read_text(encoding="utf-8")
            assert "| 1 | 1 | 1 |  |  | 1 |  | 40 / 2 |" in page
            assert "The last column is of NVIDIA H100, as of 2026-01-01, with torch 2.14;" in page
            assert "On the GPU this fails too: `transforms.vmap`." in page
            assert "No GPU has run" not in page
            write([self.grade((finding(),))], tmp_path, date(2026, 1, 3))

    def test_page_does_not_hide_what_is_not_explained(self) -> None:
        from benchmarks.report_card.page import markdown

        page = markdown([self.grade(())], date(2026, 1, 2))
        assert "Not yet looked into" in page
        assert "MSELoss()(x)" in page

    def test_json_holds_every_result(self, tmp_path: Path) -> None:
        from benchmarks.report_card.page import write

        write([self.grade((finding(),))], tmp_path, date(2026, 1, 2))
        loss = json.loads((tmp_path / "report-card.json").read_text(encoding="utf-8"))["losses"][0]
        assert [result["status"] for result in loss["report"]["results"]] == ["failed", "passed", "not supported"]
        assert loss["findings"][0]["lines"] == ">>> 1 + 1\n2"
        assert sorted(path.name for path in tmp_path.iterdir()) == ["report-card.json", "report-card.md"]

    def test_explanation_of_a_check_that_passes_is_refused(self) -> None:
        from benchmarks.report_card.grading import stale

        report = self.grade(()).report
        assert [*stale(report, (finding(),))] == []
        assert "values.float32, which does not fail" in next(stale(report, (finding(checks=("values.float32",)),)))
