"""What a measurement reports: numbers with their unit, their spread and what they count."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any


@dataclass(frozen=True)
class Figure:
    """One number.

    Attributes:
        name: what was measured.
        value: the median, or None where it could not be measured here.
        unit: of value, low and high.
        counts: what the number counts, in words.
        low, high: the least and the greatest of the rounds; None for what is derived or counted.
    """

    name: str
    value: float | None
    unit: str
    counts: str
    low: float | None = None
    high: float | None = None


@dataclass
class Report:
    """The figures of one part of `spatialvla-ft bench`.

    Attributes:
        part: predict, train-logits, train-step, codec, depth, data or video.
        settings: sizes, device and dtype that the figures belong to.
        figures: in the order of showing.
        notes: what a reader must know before believing a figure.
    """

    part: str
    settings: dict[str, Any]
    figures: list[Figure] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def add(self, name: str, value: float | None, unit: str, counts: str) -> None:
        """A figure that is counted or derived, or that is unmeasured here (None)."""
        self.figures.append(Figure(name, value, unit, counts))

    def __getitem__(self, name: str) -> Figure:
        """The figure of this name."""
        return next(figure for figure in self.figures if figure.name == name)

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)
