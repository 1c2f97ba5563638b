"""The results of the sweep over Transformers' language models as they are stored, and the table made from them."""

from __future__ import annotations

from benchmarks.results import Record


class Model(Record):
    """One type of model: what its loss is computed from, and how far its numbers are from its own, relatively."""

    name: str
    head: str
    scale: float
    soft_cap: float | None
    fallbacks: dict[str, str]
    loss: float
    gradient: float
    logits: float


class Sweep(Record):
    """All that were built, and why the others were not."""

    transformers: str
    models: list[Model]
    skipped: dict[str, str]


def table(sweep: Sweep) -> str:
    """The document's part."""
    models = sweep.models
    lines = [
        f"Transformers {sweep.transformers}: {len(models)} types were built and agree, "
        f"{sum(not model.fallbacks for model in models)} of them without logits. The largest difference of a loss is "
        f"{max(model.loss for model in models):.0e}, that of a gradient {max(model.gradient for model in models):.0e}.",
        "",
        "| model | head | scale | soft cap | fused |",
        "| --- | --- | --- | --- | --- |",
    ]
    for model in models:
        why = "; ".join(f"{name}: {why}" for name, why in model.fallbacks.items()) or "yes"
        factor = "" if model.scale == 1.0 else f"{model.scale:.4g}"
        cap = "" if model.soft_cap is None else f"{model.soft_cap:g}"
        lines.append(f"| {model.name} | `{model.head}` | {factor} | {cap} | {why} |")
    if sweep.skipped:
        lines += ["", "Not built tiny, or not run on words alone:", ""]
        lines += [f"- {name}: {reason}" for name, reason in sweep.skipped.items()]
    return "\n".join(lines)
