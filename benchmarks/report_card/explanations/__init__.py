"""The findings of the report card, one file a library."""

from __future__ import annotations

from benchmarks.report_card.explanations import (
    entmax,
    kornia,
    monai,
    segmentation_models,
    timm,
    torch_chunked,
    torch_nn,
    torchvision,
)
from benchmarks.report_card.findings import Finding

FINDINGS: tuple[Finding, ...] = (
    *torch_nn.FINDINGS,
    *torch_chunked.FINDINGS,
    *torchvision.FINDINGS,
    *timm.FINDINGS,
    *kornia.FINDINGS,
    *monai.FINDINGS,
    *segmentation_models.FINDINGS,
    *entmax.FINDINGS,
)
