"""What a work measures: samples by contender, and their medians, spreads and ratios."""

from __future__ import annotations

from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from statistics import median
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from bench.lab import Lab


@dataclass(frozen=True, slots=True, kw_only=True)
class Figure:
    """One quantity that is measured. `better` is `higher` or `lower`."""

    name: str
    better: str = "higher"
    digits: int = 0


Sample = dict[str, float]
"""Values by the name of their figure."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Work:
    """The same task for several contenders.

    `open` sets everything up in a lab and yields for each contender a function that does the work once.
    """

    name: str
    title: str
    figures: tuple[Figure, ...]
    open: Callable[[Lab], AbstractContextManager[Mapping[str, Callable[[], Sample]]]]
    reference: str = "haproxy"
    """Ratios are against this contender."""
    quick_title: str = ""
    """The title with --quick, if that does less. Bars are not judged then."""
    note: str = ""
    """A remark in the report."""


@dataclass(slots=True, kw_only=True)
class Result:
    """All samples of one work."""

    work: Work
    samples: dict[str, list[Sample]] = field(default_factory=dict)
    run: str = ""
    """When it was measured, how often, and what."""
    error: str = ""
    """Why there are no figures."""
    quick: bool = False
    """Whether it ran with --quick."""

    @property
    def smaller(self) -> bool:
        """Whether less was done than the work's bars require."""
        return self.quick and bool(self.work.quick_title)

    @property
    def title(self) -> str:
        """What was done."""
        return f"{self.work.quick_title if self.smaller else self.work.title}{' (quick)' * self.quick}"

    def values(self, contender: str, figure: str) -> list[float]:
        """Return what was measured, one value per round."""
        return [sample[figure] for sample in self.samples.get(contender, []) if figure in sample]

    def median(self, contender: str, figure: str) -> float | None:
        """Return the median over the rounds, None where nothing was measured."""
        values = self.values(contender, figure)
        return median(values) if values else None

    def worst(self, contender: str, figure: str) -> float | None:
        """Return the largest of the rounds, None where nothing was measured."""
        return max(self.values(contender, figure), default=None)

    def spread(self, contender: str, figure: str) -> float:
        """Return (largest - smallest) / median."""
        values = self.values(contender, figure)
        middle = median(values) if values else 0.0
        return (max(values) - min(values)) / middle if middle else 0.0

    def ratios(self, contender: str, figure: str, against: str) -> list[float]:
        """Return the ratios of two contenders, one for each round in which the other measured more than nothing."""
        pairs = zip(self.values(contender, figure), self.values(against, figure), strict=False)
        return [ours / theirs for ours, theirs in pairs if theirs]

    def ratio(self, contender: str, figure: str, against: str, minus: str | None = None) -> float | None:
        """Return the ratio of medians, after taking off that of `minus` on both sides."""
        ours, theirs = self.median(contender, figure), self.median(against, figure)
        if ours is None or theirs is None:
            return None
        base = self.median(minus, figure) or 0.0 if minus else 0.0
        return (ours - base) / (theirs - base) if theirs != base else None
