"""The kit itself: what it reports, how small its findings are, and that nothing passes by accident."""

from __future__ import annotations

import functools
import json
import re
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd import Function
from torch.autograd.function import once_differentiable

import torchlosses.testing
from tests.testing.zoo import ZOO
from torchlosses.testing import CHECKS, STATUSES, Kind, assert_loss, bound_checks, check_loss
from torchlosses.testing.__main__ import main


def sound(input: Tensor, target: Tensor, reduction: str = "mean") -> Tensor:
    return F.mse_loss(input, target, reduction=reduction)


class TestNothingPassesByAccident:
    SUBJECTS = ("values", "derivatives", "transforms", "gradients", "inputs", "laws", "integration")
    # What a loss of nan does get right: it shows nan, leaves its inputs alone, and raises no error.
    RIGHT = {  # noqa: RUF012
        "values.runs",
        "values.nan_is_shown",
        "inputs.unmodified",
        "integration.repr",
        "integration.export",
        "integration.threads",
        "inputs.broadcasting",
        "inputs.empty",
    }

    @pytest.mark.parametrize("kind", ["regression", "classification"])
    def test_nan_is_equal_to_nothing(self, kind: str) -> None:
        """The reference is nan too: two nan are no agreement."""

        def undefined(input: Tensor, target: Tensor, reduction: str = "mean") -> Tensor:
            losses = input * float("nan") if kind == "regression" else input.sum(1) * float("nan")
            return losses if reduction == "none" else losses.sum()

        report = check_loss(undefined, kind=kind, reference=undefined, only=self.SUBJECTS, skip=["integration.compile"])
        passed = {result.check for result in report.results if result.status == "passed"}
        assert passed <= self.RIGHT
        assert len(report.failures) > 25

    def test_no_check_passes_without_a_case(self) -> None:
        for result in check_loss(sound, kind="regression", only=["values", "laws", "gradients"]).results:
            assert (result.status in ("passed", "failed")) == (result.cases > 0), result

    def test_a_loss_that_does_not_run_passes_nothing(self) -> None:
        report = check_loss(F.triplet_margin_loss, kind="classification", only=["values", "laws"])
        assert not report.ok
        assert [result.check for result in report.failures] == ["values.runs"]
        assert report.counts["passed"] == 0
        finding = report["values.runs"].finding
        assert finding is not None
        assert "kind does not fit" in finding.cause

    def test_nothing_chosen_is_not_ok(self) -> None:
        assert not check_loss(sound, kind="regression", only=["laws.ignored_row_is_a_removed_row"]).ok


class TestWhatCannotRun:
    def test_a_refusal_is_not_a_failure(self) -> None:
        class Once(Function):
            @staticmethod
            def forward(ctx: Any, input: Tensor) -> Tensor:
                ctx.save_for_backward(input)
                return input.square().mean()

            @staticmethod
            @once_differentiable
            def backward(ctx: Any, grad: Tensor) -> Tensor:  # type: ignore[override]
                (input,) = ctx.saved_tensors
                return 2 * grad * input / input.numel()

        def once(input: Tensor, target: Tensor) -> Tensor:
            return Once.apply(input - target)  # type: ignore[return-value]

        report = check_loss(once, kind="regression", only=["derivatives", "transforms.grad"])
        assert report["derivatives.gradcheck"].status == "passed"
        for name in ("derivatives.forward_ad", "derivatives.no_silent_zero_tangent", "transforms.grad"):
            assert report[name].status == "not supported", report[name]
            assert report[name].reason
        # With a constant incoming gradient, once_differentiable hands out a constant and raises nothing.
        assert report["derivatives.no_dropped_second_derivative"].status == "failed"

    def test_too_large(self) -> None:
        def huge(input: Tensor, target: Tensor) -> Tensor:
            if input.shape[1] > 1000:
                torch.empty(1 << 60)
            return F.cross_entropy(input, target)

        result = check_loss(huge, kind="classification", only=["values.many_classes"])["values.many_classes"]
        assert result.status == "too large"
        assert "memory" in result.reason

    def test_an_option_that_is_missing_is_named(self) -> None:
        report = check_loss(sound, kind="regression", only=["laws.weights_of_one_are_no_weights"])
        (result,) = report.results
        assert (result.status, result.reason) == ("not applicable", "the loss has no option weight")

    def test_skipped_with_the_reason(self) -> None:
        report = check_loss(sound, kind="regression", only=["errors"], skip={"errors.rows": "broadcasting is wanted"})
        assert report["errors.rows"].status == "skipped"
        assert report["errors.rows"].reason == "broadcasting is wanted"
        assert report["errors.input_dtype"].status == "passed"

    def test_names_that_are_none(self) -> None:
        with pytest.raises(ValueError, match=r"'laws\.none' is not a check: expected one of values\.runs"):
            check_loss(sound, kind="regression", skip=["laws.none"])
        with pytest.raises(TypeError, match=r"write \['laws'\]"):
            check_loss(sound, kind="regression", skip="laws")
        with pytest.raises(ValueError, match="'ranking' is not a kind: expected one of regression"):
            check_loss(sound, kind="ranking")
        with pytest.raises(TypeError, match="a loss must be a function"):
            check_loss(3, kind="regression")
        with pytest.raises(ValueError, match=r"unknown traits \['shiny'\]"):
            Kind("mine", {}, traits=frozenset({"shiny"}))


class TestFindings:
    def test_the_input_is_small(self) -> None:
        """Wrong where a row of class 2 is weighted: what is left has that row, that class and that option."""

        def wrong(input: Tensor, target: Tensor, weight: Tensor | None = None, reduction: str = "mean") -> Tensor:
            loss = F.cross_entropy(input, target, weight, reduction=reduction)
            return loss if weight is None or not (target == 2).any() else loss * 1.5

        result = check_loss(wrong, kind="classification", reference=F.cross_entropy, only=["values.reference"])
        finding = result["values.reference"].finding
        assert finding is not None
        assert finding.call.startswith(
            "wrong(torch.tensor([[0.0, 0.0, 0.0]], dtype=torch.float64), torch.tensor([2]), "
        )
        assert "weight=" in finding.call
        assert "reduction" not in finding.call

    @pytest.mark.parametrize(
        "name",
        [
            "half_the_square-values.reference",
            "forgets_to_normalise-laws.nonnegative",
            "zero_times_infinity-values.masked_classes",
        ],
    )
    def test_the_call_is_python_that_shows_it(self, name: str) -> None:
        broken = ZOO[name]
        report = check_loss(broken.loss, kind=broken.kind, reference=broken.reference, only=[broken.check])
        finding = report[broken.check].finding
        assert finding is not None
        again = eval(finding.call, {"torch": torch, broken.loss.__name__: broken.loss})
        assert f"{again.item():.9g}" == finding.got

    def test_every_check_says_why_in_one_sentence(self) -> None:
        for check in CHECKS.values():
            assert 20 < len(check.why) < 160, check
            assert check.why.endswith(".")
            assert ". " not in check.why

    def test_a_check_changes_nothing_around_it(self) -> None:
        torch.manual_seed(7)
        before = (torch.get_rng_state(), torch.get_num_threads(), torch.get_default_dtype())
        check_loss(sound, kind="regression", only=["integration"], skip=["integration.export"])
        assert torch.equal(torch.get_rng_state(), before[0])
        assert (torch.get_num_threads(), torch.get_default_dtype()) == before[1:]


class TestLosses:
    def test_functions_classes_and_instances(self) -> None:
        only = ["values.runs", "laws.reductions_agree", "integration.pickle"]
        statuses = {
            what: [result.status for result in check_loss(loss, kind="regression", only=only).results]
            for what, loss in {
                "function": F.l1_loss,
                "class": nn.L1Loss,
                "instance": nn.L1Loss(reduction="sum"),
            }.items()
        }
        assert statuses["function"] == ["passed", "passed", "not applicable"]
        assert statuses["class"] == ["passed", "passed", "passed"]
        # The options of an instance are fixed.
        assert statuses["instance"] == ["passed", "not applicable", "passed"]

    def test_an_instance_is_left_as_it_is(self) -> None:
        module = nn.CrossEntropyLoss(torch.ones(3))
        check_loss(module, kind="classification", only=["values.runs", "values.bfloat16"])
        weight = module.get_buffer("weight")
        assert weight.dtype == torch.float32
        with pytest.raises(TypeError, match="as it is an instance"):
            check_loss(module, kind="classification", options={"reduction": "sum"})

    def test_fixed_and_renamed_options(self) -> None:
        def smoothed(input: Tensor, target: Tensor, smoothing: float = 0.0, *, scale: float) -> Tensor:
            return scale * F.cross_entropy(input, target, label_smoothing=smoothing)

        report = check_loss(
            smoothed,
            kind="classification",
            options={"scale": 2.0},
            rename={"label_smoothing": "smoothing"},
            only=["laws.smoothing_interpolates"],
        )
        assert report.ok
        assert dict(report.options) == {"scale": "2.0"}

    def test_a_partial(self) -> None:
        loss = functools.partial(F.cross_entropy, label_smoothing=0.1)
        assert check_loss(loss, kind="classification", only=["laws.ignored_row_is_a_removed_row"]).ok

    def test_a_kind_of_ones_own(self) -> None:
        def pairs(generator: torch.Generator, rows: int, classes: int) -> dict[str, Tensor]:
            first, second = (torch.randn(rows, 2, generator=generator, dtype=torch.float64) for _ in range(2))
            return {"first": first, "second": second}

        def distance(first: Tensor, second: Tensor) -> Tensor:
            return (first - second).square().sum(1).mean()

        def signed(first: Tensor, second: Tensor) -> Tensor:
            return (first - second).sum(1).mean()

        kind = Kind(
            "pairs", {"points": pairs}, ("first", "second"), rows=("first", "second"), traits=frozenset({"nonnegative"})
        )
        assert_loss(distance, kind=kind)
        report = check_loss(signed, kind=kind, only=["laws", "gradients"])
        assert [result.check for result in report.failures] == ["laws.nonnegative"]

    def test_linear_classification(self) -> None:
        def linear(input: Tensor, linear_weight: Tensor, target: Tensor, reduction: str = "mean") -> Tensor:
            return F.cross_entropy(input @ linear_weight.t().detach(), target, reduction=reduction)

        report = check_loss(linear, kind="linear classification", only=["gradients.by_targets"])
        finding = report["gradients.by_targets"].finding
        assert finding is not None
        assert "linear_weight is silently dropped" in finding.summary


class TestReport:
    def test_json(self) -> None:
        report = check_loss(sound, kind="regression", only=["gradients", "errors", "cost"])
        data = json.loads(json.dumps(report.to_dict(), allow_nan=False))
        assert data["schema"] == 1
        assert data["loss"].endswith("sound")
        assert set(data["counts"]) == set(STATUSES)
        assert sum(data["counts"].values()) == len(data["results"])
        cost = next(result for result in data["results"] if result["subject"] == "cost")
        assert cost["status"] == "measured"
        assert all(value >= 0 for value in cost["measurements"].values())

    def test_costs_beside_the_reference(self) -> None:
        report = check_loss(sound, kind="regression", reference=F.mse_loss, only=["cost"])
        (result,) = report.results
        assert result.status == "measured"
        assert {name.partition(" ")[0] for name in result.measurements} == {"loss", "reference"}
        # The gradient has the input's size.
        assert result.measurements["loss peak memory, MB"] >= result.measurements["loss input, MB"]

    def test_assert_loss_shows_every_finding(self) -> None:
        def broken(input: Tensor, target: Tensor) -> Tensor:
            return (input - target.detach()).square().mean() + 1e-3 * input.mean()

        with pytest.raises(AssertionError) as caught:
            assert_loss(
                broken, kind="regression", only=["gradients.by_targets", "laws.gradient_vanishes_at_the_optimum"]
            )
        assert "gradients.by_targets: failed" in str(caught.value)
        assert "laws.gradient_vanishes_at_the_optimum: failed" in str(caught.value)
        assert "likely cause" in str(caught.value)
        assert assert_loss(sound, kind="regression", only=["gradients"]).ok


class TestCommand:
    ARGUMENTS = ("torch.nn:MSELoss", "--kind", "regression", "--reference", "torch.nn:MSELoss", "--only", "gradients")

    def test_passes(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        code = main([*self.ARGUMENTS, "--json", str(tmp_path / "a.json"), "--html", str(tmp_path / "a.html")])
        assert code == 0
        shown = capsys.readouterr().out
        assert re.search(r"^gradients\.retain_graph +ok$", shown, re.MULTILINE)
        data = json.loads((tmp_path / "a.json").read_text())
        assert data["reference"] == "torch.nn.modules.loss.MSELoss"
        page = (tmp_path / "a.html").read_text()
        assert page.startswith("<!DOCTYPE html>")
        assert "gradients.retain_graph" in page
        assert [path.name for path in sorted(tmp_path.iterdir())] == ["a.html", "a.json"]

    def test_fails(self, capsys: pytest.CaptureFixture[str]) -> None:
        arguments = ["tests.testing.zoo:detached_target", "--kind", "regression", "--only", "gradients.by_targets"]
        assert main([*arguments, "--json", "-"]) == 1
        data = json.loads(capsys.readouterr().out)
        assert data["results"][0]["finding"]["call"].startswith("detached_target(torch.tensor(")

    @pytest.mark.parametrize(
        ("arguments", "said"),
        [
            (["torch.nn:Nothing", "--kind", "regression"], "cannot load 'torch.nn:Nothing'"),
            (["torch.nn.MSELoss", "--kind", "regression"], "no path of the form package.module:Name"),
            (["torch.nn:MSELoss", "--kind", "none"], "'none' is not a kind"),
            (["torch.nn:MSELoss"], "--kind are needed"),
            (["torch.nn:MSELoss", "--kind", "regression", "--option", "x"], "not of the form NAME=VALUE"),
        ],
    )
    def test_cannot_be_made(self, arguments: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
        with pytest.raises(SystemExit) as stopped:
            main(arguments)
        assert stopped.value.code == 2
        assert said in capsys.readouterr().err

    def test_options(self) -> None:
        arguments = [
            "torchlosses:CEELoss",
            "--kind",
            "probabilities",
            "--option",
            "delta=0.001",
            "--option",
            "reduction=sum",
        ]
        assert main([*arguments, "--only", "values.runs", "--only", "errors.rows", "--skip", "errors"]) == 0

    def test_list(self, capsys: pytest.CaptureFixture[str]) -> None:
        assert main(["--list"]) == 0
        assert len(capsys.readouterr().out.splitlines()) == len(CHECKS)


def test_pytest_helper(tmp_path: Path) -> None:
    """Each check is a test with its own name, which passes, fails or is skipped."""
    (tmp_path / "test_mine.py").write_text(
        textwrap.dedent(
            """
            import torch
            from torchlosses.testing import parametrize

            def mine(input, target):
                return (input - target.detach()).square().mean()

            @parametrize(mine, kind="regression", skip={"values": "later", "integration": "later", "cost": "later"})
            def test_mine(check):
                check()
            """
        )
    )
    command = [sys.executable, "-m", "pytest", "-q", "-rA", "-p", "no:cacheprovider", "-c", "/dev/null", str(tmp_path)]
    run = subprocess.run(command, capture_output=True, text=True, check=False)
    assert run.returncode == 1, run.stdout
    assert "PASSED" in run.stdout
    assert re.search(r"FAILED \S*test_mine\[gradients\.by_targets\]", run.stdout)
    assert re.search(r"PASSED \S*test_mine\[gradients\.retain_graph\]", run.stdout)
    assert "not applicable: the loss has no option weight" in run.stdout
    assert "the gradient by target is silently dropped" in run.stdout


def test_bound_checks_are_named_as_the_checks() -> None:
    assert [check.name for check in bound_checks(sound, kind="regression")] == list(CHECKS)


def test_uses_the_public_interface_only_and_needs_torch_and_numpy_only() -> None:
    folder = Path(torchlosses.testing.__file__).parent
    for path in folder.rglob("*.py"):
        imports = re.findall(r"^\s*(?:from|import) (torchlosses[\w.]*)", path.read_text(), re.MULTILINE)
        assert all(name == "torchlosses" or name.startswith("torchlosses.testing") for name in imports), path
    program = (
        "import sys, torchlosses.testing; print([m for m in ('pytest', 'rich', 'jinja2', 'tyro') if m in sys.modules])"
    )
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "[]"
