"""The same checks on a GPU: what passed and failed there, with the name of the card that ran them."""

from __future__ import annotations

import multiprocessing
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from datetime import date
from functools import partial
from typing import Any

import torch

from benchmarks.report_card.grading import audit
from benchmarks.report_card.subjects import Subject


@dataclass(frozen=True)
class OnCard:
    """How the checks of one loss ended on the card."""

    name: str
    passed: int
    failed: tuple[str, ...]


@dataclass(frozen=True)
class Card:
    """What a card ran: its name, the day, the version of torch, and each loss."""

    card: str
    made: str
    torch: str
    losses: tuple[OnCard, ...]

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> Card:
        """What `to_dict` gave."""
        losses = tuple(OnCard(loss["name"], loss["passed"], tuple(loss["failed"])) for loss in data["losses"])
        return cls(data["card"], data["made"], data["torch"], losses)

    def to_dict(self) -> dict[str, Any]:
        """As JSON types."""
        return asdict(self)

    def __getitem__(self, name: str) -> OnCard | None:
        return next((loss for loss in self.losses if loss.name == name), None)


def on_card(subjects: Sequence[Subject], device: str, jobs: int = 1) -> Iterator[OnCard]:
    """The subjects on a device, in their order, each in a process of its own."""
    with multiprocessing.get_context("spawn").Pool(jobs, maxtasksperchild=1) as pool:
        yield from pool.imap(partial(_on_card, device=device), subjects)


def _on_card(subject: Subject, device: str) -> OnCard:
    report = audit(subject, device)
    return OnCard(subject.name, report.counts["passed"], tuple(result.check for result in report.failures))


def card_of(device: str, losses: Sequence[OnCard], made: date) -> Card:
    """The losses with the name of the card."""
    name = torch.get_device_module(device).get_device_name(device)
    return Card(name, made.isoformat(), torch.__version__, tuple(losses))
