"""The kit itself: what it reports, how small its findings are, and that nothing passes by accident."""

from __future__ import annotations

import functools
import json
import re
import subprocess
import sys
import textwrap
from graphlib import TopologicalSorter
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd import Function
from torch.autograd.function import once_differentiable

import torchlosses.testing
from tests.testing.shaped import next_token
from tests.testing.zoo import CHECKED, ZOO
from tests.torchs_losses import torchs_linear_cross_entropy
from torchlosses.testing import CHECKS, KINDS, SEVERITIES, STATUSES, Kind, assert_loss, bound_checks, check_loss
from torchlosses.testing.__main__ import main
from torchlosses.testing.rendering import page

SUBJECTS = tuple(sorted({name.partition(".")[0] for name in CHECKS} - {"cost"}))


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

    @pytest.mark.parametrize("kind", ["regression", pytest.param("classification", marks=pytest.mark.thorough)])
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


class TestSeverities:
    @pytest.mark.parametrize(
        ("name", "severity"),
        [
            ("half_the_square-values.reference", "wrong value"),
            ("gradient_without_its_two-values.reference_gradients", "wrong gradient"),
            ("zero_tangent-derivatives.no_silent_zero_tangent", "wrong gradient"),
            ("branches_on_the_data-integration.compile", "unsupported"),
            ("spreads_over_the_others-values.one_class", "unsupported"),
            ("any_other_reduction_is_sum-errors.reduction", "manners"),
            ("always_float32-values.runs", "manners"),
            ("samples_rows-integration.deterministic", "wrong value"),
        ],
    )
    def test_of_a_failure(self, name: str, severity: str) -> None:
        broken = ZOO[name]
        report = check_loss(broken.loss, kind=broken.kind, reference=broken.reference, only=[broken.check])
        finding = report[broken.check].finding
        assert finding is not None
        assert finding.severity == severity
        assert report.severities == {**dict.fromkeys(SEVERITIES, 0), severity: 1}
        assert f"{broken.check}  FAILED ({severity})" in str(report)

    def test_one_check_may_find_either(self) -> None:
        """laws.weights_of_one_are_no_weights compares values and gradients."""

        def value(input: Tensor, target: Tensor, weight: Tensor | None = None) -> Tensor:
            return F.mse_loss(input, target) * (1 if weight is None else 2)

        class Halved(Function):
            @staticmethod
            def forward(ctx: Any, x: Tensor) -> Tensor:
                return x.clone()

            @staticmethod
            def backward(ctx: Any, grad: Tensor) -> Tensor:  # type: ignore[override]
                return grad / 2

        def gradient(input: Tensor, target: Tensor, weight: Tensor | None = None) -> Tensor:
            halved: Any = input if weight is None else Halved.apply(input)
            return F.mse_loss(halved, target)

        only = ["laws.weights_of_one_are_no_weights"]
        found = [check_loss(loss, kind="regression", only=only).severities for loss in (value, gradient)]
        assert [[name for name, number in one.items() if number] for one in found] == [
            ["wrong value"],
            ["wrong gradient"],
        ]

    def test_what_is_not_counted_is_reported_and_does_not_fail(self) -> None:
        def broken(input: Tensor, target: Tensor) -> Tensor:
            return (input - target.detach()).square().mean()

        report = check_loss(broken, kind="regression", only=["gradients"], fail_on=["manners", "wrong_value"])
        assert report.ok
        assert report.fail_on == ("wrong value", "manners")
        assert [result.check for result in report.failures] == ["gradients.by_targets"]
        assert report.counted_failures == ()
        assert not check_loss(broken, kind="regression", only=["gradients"], fail_on=["wrong gradient"]).ok
        with pytest.raises(TypeError, match=r"write \['manners'\]"):
            check_loss(broken, kind="regression", fail_on="manners")

    def test_nothing_counted_is_still_not_ok_where_nothing_passed(self) -> None:
        report = check_loss(F.triplet_margin_loss, kind="classification", only=["values"], fail_on=["manners"])
        assert not report.ok


def in_float32(input: Tensor, target: Tensor, reduction: str = "mean") -> Tensor:
    """A kernel that converts what it loads, and what it stores."""
    if not input.is_floating_point():
        raise TypeError(f"expected a floating-point input, but got {input.dtype}")
    return F.mse_loss(input.float(), target.float(), reduction=reduction).to(input.dtype)


def of_narrow_dtypes(input: Tensor, target: Tensor, reduction: str = "mean") -> Tensor:
    """A kernel that was not compiled for float64."""
    if input.dtype == torch.float64:
        raise TypeError("expected float32, bfloat16 or float16, but got float64")
    return in_float32(input, target, reduction)


def with_a_float32_result(input: Tensor, target: Tensor, reduction: str = "mean") -> Tensor:
    return F.mse_loss(input.double(), target.double(), reduction=reduction).float()


class TestDtypes:
    SOUND: tuple[tuple[Any, str, str], ...] = (
        (F.mse_loss, "regression", "float64"),
        (F.l1_loss, "regression", "float64"),
        (F.huber_loss, "regression", "float64"),
        (F.cross_entropy, "classification", "float64"),
        (F.binary_cross_entropy_with_logits, "binary", "float64"),
        (torchs_linear_cross_entropy, "linear classification", "float64"),
        (in_float32, "regression", "float32"),
        (of_narrow_dtypes, "regression", "float32"),
        (with_a_float32_result, "regression", "float32"),
    )

    @pytest.mark.parametrize(("loss", "kind", "computes_in"), SOUND)
    def test_what_a_loss_computes_in(self, loss: Any, kind: str, computes_in: str) -> None:
        assert check_loss(loss, kind=kind, only=["inputs.empty"]).computes_in == computes_in

    @pytest.mark.parametrize("reduction", CHECKED)
    def test_reductions_tell_the_same(self, reduction: str) -> None:
        def one(input: Tensor, target: Tensor) -> Tensor:
            return in_float32(input, target, reduction)

        def other(input: Tensor, target: Tensor) -> Tensor:
            return F.l1_loss(input, target, reduction=reduction)

        found = [check_loss(loss, kind="regression", only=["inputs.empty"]).computes_in for loss in (one, other)]
        assert found == ["float32", "float64"]

    def test_a_float32_loss_passes_a_float64_audit_that_it_never_claimed(self) -> None:
        report = assert_loss(in_float32, kind="regression", reference=F.mse_loss)
        assert report["derivatives.gradcheck"].status == "passed"
        assert report["derivatives.gradgradcheck"].status == "passed"
        assert report["values.float32"].status == "passed"
        assert report["values.float64"].status == "not applicable"
        assert "it computes in float32, and the tolerances follow that" in str(report)
        assert "it computes in float32, and the tolerances follow that" in page(report)

    def test_a_claim_is_held(self) -> None:
        report = check_loss(in_float32, kind="regression", reference=F.mse_loss, dtypes=["float64", "float32"])
        assert [result.check for result in report.failures] == ["values.float64"]
        assert assert_loss(F.mse_loss, kind="regression", dtypes=[torch.float64], only=["values"]).dtypes == (
            "float64",
        )

    @pytest.mark.parametrize("dtypes", [None, ("float32", "bfloat16", "float16")])
    def test_a_loss_without_float64(self, dtypes: tuple[str, ...] | None) -> None:
        report = assert_loss(of_narrow_dtypes, kind="regression", reference=F.mse_loss, dtypes=dtypes)
        assert report["derivatives.gradgradcheck"].status == "passed"
        assert report["values.float16"].status == "passed"
        assert (report.notes == ("the widest dtype that it runs in is float32",)) == (dtypes is None)

    def test_only_what_is_claimed_is_tried(self) -> None:
        seen = set()

        def loss(input: Tensor, target: Tensor, reduction: str = "mean") -> Tensor:
            seen.update({input.dtype, target.dtype} if input.is_floating_point() else ())
            return F.mse_loss(input, target, reduction=reduction)

        report = assert_loss(loss, kind="regression", dtypes=["float32"])
        assert seen == {torch.float32}
        for name in ("values.float64", "values.bfloat16", "values.float16", "integration.autocast"):
            assert report[name].status == "not applicable", report[name]

    def test_without_anything_wider_there_is_nothing_to_measure_by(self) -> None:
        only = ["values.float32", "derivatives.gradcheck"]
        alone = check_loss(F.mse_loss, kind="regression", dtypes=["float32"], only=only)
        assert [result.status for result in alone.results] == ["not applicable", "passed"]
        assert "give a reference" in alone["values.float32"].reason
        judged = check_loss(F.mse_loss, kind="regression", reference=F.mse_loss, dtypes=["float32"], only=only)
        assert [result.status for result in judged.results] == ["passed", "passed"]

    def test_finite_differences_say_nothing_in_bfloat16(self) -> None:
        report = assert_loss(F.mse_loss, kind="regression", dtypes=["bfloat16"], only=["derivatives", "laws"])
        assert report["derivatives.gradcheck"].reason.startswith("finite differences say nothing of a loss that")

    def test_dtypes_are_named(self) -> None:
        with pytest.raises(TypeError, match=r"write \['float32'\]"):
            check_loss(sound, kind="regression", dtypes="float32")
        with pytest.raises(ValueError, match="nothing is not a dtype"):
            check_loss(sound, kind="regression", dtypes=[])


class TestDevice:
    @pytest.mark.parametrize(
        ("loss", "kind", "only"),
        [
            (nn.MSELoss, "regression", SUBJECTS),
            (nn.CrossEntropyLoss, "classification", ("inputs", "gradients", "errors")),
            *(
                pytest.param(loss, kind, SUBJECTS, marks=pytest.mark.thorough)
                for loss, kind in (
                    (nn.CrossEntropyLoss, "classification"),
                    (F.binary_cross_entropy_with_logits, "binary"),
                    (torchs_linear_cross_entropy, "linear classification"),
                    (next_token(F.cross_entropy), "language modelling"),
                )
            ),
        ],
    )
    def test_every_tensor_of_a_check_is_put_on_the_device(self, loss: Any, kind: str, only: tuple[str, ...]) -> None:
        """What is not would be on the default device: on one without numbers, nothing would come out of a check."""
        skip = ["integration.compile", "integration.export"]
        expected = check_loss(loss, kind=kind, device="cpu", only=only, skip=skip)
        with torch.device("meta"):
            report = check_loss(loss, kind=kind, device="cpu", only=only, skip=skip)
        for got, here in zip(report.results, expected.results, strict=True):
            if torch.__version__ < "2.13" and "(aten::detach_)" in got.reason:
                # With another default device than the tensors', torch.func itself raises.
                assert got.check.startswith("transforms.")
                continue
            assert (got.status, got.reason, got.cases) == (here.status, here.reason, here.cases), got

    def test_no_such_device(self) -> None:
        with pytest.raises(ValueError, match="there is no device 'nowhere' here"):
            check_loss(sound, kind="regression", device="nowhere")


class TestLanguageModelling:
    PART = (
        *("values.float16", "values.float16_range", "values.confident_tail", "laws.labels_are_shifted", "errors"),
        *("laws.ignored_row_may_hold_anything", "laws.reductions_agree", "transforms.per_sample_gradients"),
    )

    @pytest.mark.parametrize("only", [PART, pytest.param(None, marks=pytest.mark.thorough)])
    def test_a_sound_loss(self, only: tuple[str, ...] | None) -> None:
        """What fails is what fails of torch's cross-entropy on any rows."""
        report = check_loss(next_token(F.cross_entropy), kind="language modelling", only=only)
        found = {result.check for result in report.failures}
        assert found == {
            "values.float16",
            "values.float16_range",
            "values.confident_tail",
            "laws.ignored_row_may_hold_anything",
            "errors.label_smoothing",
        }
        for name in ("laws.labels_are_shifted", "laws.reductions_agree", "transforms.per_sample_gradients"):
            assert report[name].status == "passed", report[name]

    def test_losses_may_be_laid_out_as_the_labels_are(self) -> None:
        def by_sequence(input: Tensor, target: Tensor, ignore_index: int = -100, reduction: str = "mean") -> Tensor:
            loss = next_token(F.cross_entropy)(input, target, ignore_index=ignore_index, reduction=reduction)
            return loss if loss.dim() == 0 else loss.unflatten(0, (len(target), -1))

        report = check_loss(by_sequence, kind="language-modelling", only=["laws"])
        assert [result.check for result in report.failures] == ["laws.ignored_row_may_hold_anything"]

    def test_shifted_the_other_way(self) -> None:
        def backwards(input: Tensor, target: Tensor) -> Tensor:
            return F.cross_entropy(input[:, 1:].flatten(0, 1), target[:, :-1].flatten())

        report = check_loss(backwards, kind="language modelling", only=["laws.labels_are_shifted"])
        assert not report.ok


class TestCommand:
    ARGUMENTS = ("torch.nn:MSELoss", "--kind", "regression", "--reference", "torch.nn:MSELoss", "--only", "gradients")

    def test_passes(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        code = main([*self.ARGUMENTS, "--json", str(tmp_path / "a.json"), "--html", str(tmp_path / "a.html")])
        assert code == 0
        shown = capsys.readouterr().out
        assert re.search(r"^gradients\.retain_graph +ok$", shown, re.MULTILINE)
        data = json.loads((tmp_path / "a.json").read_text())
        assert data["reference"] == "torch.nn.modules.loss.MSELoss"
        html = (tmp_path / "a.html").read_text()
        assert html.startswith("<!DOCTYPE html>")
        assert "gradients.retain_graph" in html
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
            (["torch.nn:MSELoss"], f"--kind is needed: one of {', '.join(KINDS)}"),
            (["torch.nn:MSELoss", "--kind"], f"--kind is needed: one of {', '.join(KINDS)}"),
            (["torch.nn:MSELoss", "--kind", "regresion"], f"expected one of {', '.join(KINDS)}"),
            (["--kind", "regression"], "a loss is needed"),
            (["torch.nn:MSELoss", "--kind", "regression", "--device", "nowhere"], "there is no device 'nowhere' here"),
            (["torch.nn:MSELoss", "--kind", "regression", "--device", "meta"], "there is no device 'meta' here"),
            (
                ["torch.nn:MSELoss", "--kind", "regression", "--dtypes", "float32,int8"],
                "'int8' is not a dtype that a loss is audited for: expected some of float64, float32, bfloat16",
            ),
            (
                ["torch.nn:MSELoss", "--kind", "regression", "--fail-on", "wrong"],
                "'wrong' is not a severity: expected some of wrong value, wrong gradient, unsupported, manners",
            ),
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

    def test_counts_only_what_is_asked_for(self, capsys: pytest.CaptureFixture[str]) -> None:
        arguments = ["tests.testing.zoo:detached_target", "--kind", "regression", "--only", "gradients"]
        assert main([*arguments, "--fail-on", "wrong-value,manners"]) == 0
        shown = capsys.readouterr().out
        assert "gradients.by_targets: failed, wrong gradient" in shown
        assert "1 failed (1 wrong gradient), 3 not applicable, 1 of the failures not counted" in shown
        assert main([*arguments, "--fail-on", "wrong-gradient"]) == 1

    def test_costs_alone_are_enough(self) -> None:
        assert main(["torch.nn:MSELoss", "--kind", "regression", "--only", "cost"]) == 0

    def test_device_and_dtypes(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        file = tmp_path / "report.json"
        arguments = ["--only", "derivatives", "--device", "cpu", "--dtypes", "bfloat16, float32", "--json", str(file)]
        assert main(["torch.nn:MSELoss", "--kind", "regression", *arguments]) == 0
        data = json.loads(file.read_text())
        assert (data["device"], data["dtypes"], data["computes_in"]) == ("cpu", ["float32", "bfloat16"], "float32")
        said = "On cpu, for float32, bfloat16; it computes in float32, and the tolerances follow that."
        assert said in capsys.readouterr().out

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

            LATER = dict.fromkeys(("values", "integration", "cost", "derivatives", "transforms", "inputs"), "later")

            @parametrize(mine, kind="regression", skip=LATER)
            def test_mine(check):
                check()

            @parametrize(mine, kind="regression", fail_on=["wrong value"], skip=[*LATER, "laws", "errors"])
            def test_its_values(check):
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
    assert re.search(r"XFAIL \S*test_its_values\[gradients\.by_targets\] - wrong gradient, which is not", run.stdout)
    assert not re.search(r"FAILED \S*test_its_values", run.stdout)
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


def test_every_import_goes_one_way() -> None:
    """No file of the kit imports, at whatever remove, one that imports it."""
    folder = Path(torchlosses.testing.__file__).parent
    imports = {
        ".".join(path.relative_to(folder).with_suffix("").parts): set(
            re.findall(r"^\s*from torchlosses\.testing\.([\w.]+) import", path.read_text(), re.MULTILINE)
        )
        for path in folder.rglob("*.py")
        if path.name != "__init__.py"
    }
    assert "outcomes" in imports["comparing"]
    order = list(TopologicalSorter(imports).static_order())
    assert set(imports) <= set(order)
