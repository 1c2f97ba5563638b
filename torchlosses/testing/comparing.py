"""Comparisons that fail with a finding; nan is equal to nothing, unless the check asks for nan."""

from __future__ import annotations

import torch
from torch import Tensor

from torchlosses.testing.outcomes import Failure

SHOWN = 12


def shown(value: object, digits: int = 9) -> str:
    """A tensor in one line, with nine digits and at most a dozen numbers."""
    if isinstance(value, (tuple, list)):
        return "(" + ", ".join(shown(item, digits) for item in value) + ")"
    if not isinstance(value, Tensor):
        return str(value)
    value = value.detach()
    if value.device.type == "meta":
        return f"a tensor of shape {tuple(value.shape)}"
    if value.numel() > SHOWN:
        first = _nested(value.flatten()[:SHOWN].tolist(), digits)[1:-1]
        return f"[{first}, ...] of shape {tuple(value.shape)}"
    return _nested(value.tolist(), digits)


def _nested(value: object, digits: int) -> str:
    if isinstance(value, list):
        return "[" + ", ".join(_nested(item, digits) for item in value) + "]"
    return f"{value:.{digits}g}" if isinstance(value, float) else str(value)


def largest(value: Tensor) -> float:
    """The size of the largest finite number; 0 where there is none."""
    finite = value.detach()[value.isfinite()].abs()
    return float(finite.max()) if finite.numel() else 0.0


def expect(
    condition: object, summary: str, got: object, expected: object, cause: str, severity: str | None = None
) -> None:
    """Fail unless the condition holds."""
    if condition:
        return
    # Two numbers that differ are never shown alike.
    digits = 9 if shown(got) != shown(expected) else 17
    raise Failure(summary, shown(got, digits), shown(expected, digits), cause, severity=severity)


def expect_close(
    got: Tensor | None,
    expected: Tensor,
    summary: str,
    cause: str,
    rtol: float | None = None,
    atol: float | None = None,
    severity: str | None = None,
) -> None:
    """Fail unless `got` has the shape and, to rounding, the values of `expected`; nan fails on either side.

    By default a few hundred units of the last place of the narrower dtype, relative and to the largest number.
    """
    expect(got is not None, summary, "no tensor", expected, cause, severity)
    assert got is not None
    got, expected = got.detach().cpu(), expected.detach().cpu()
    shapes = f"shape {tuple(got.shape)}", f"shape {tuple(expected.shape)}"
    expect(got.shape == expected.shape, summary, *shapes, cause, severity)
    if not got.numel():
        return
    narrow = max((torch.finfo(t.dtype).eps for t in (got, expected) if t.is_floating_point()), default=0.0)
    wide_got, wide_expected = got.double(), expected.double()
    tolerance = 256 * narrow if narrow < 1e-10 else 16 * narrow
    rtol = tolerance if rtol is None else rtol
    atol = tolerance * largest(wide_expected) + 1e-300 if atol is None else atol
    close = torch.allclose(wide_got, wide_expected, rtol=rtol, atol=atol, equal_nan=False)
    expect(close, summary, got, expected, cause, severity)


def expect_equal(got: Tensor, expected: Tensor, summary: str, cause: str, severity: str | None = None) -> None:
    """Fail unless the two are the same to the last bit; nan fails."""
    same = got.shape == expected.shape and got.dtype == expected.dtype and bool((got == expected).all())
    expect(same, summary, got, expected, cause, severity)


def expect_finite(value: Tensor, summary: str, cause: str, severity: str | None = None) -> None:
    """Fail where a number is nan or infinite."""
    expect(bool(value.isfinite().all()), summary, value, "finite numbers", cause, severity)
