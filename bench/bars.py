"""The bars: what meshbox must reach against its peers, as ratios of medians of one run."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from bench.works.shares import BESIDE

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from bench.figures import Result


@dataclass(frozen=True, slots=True, kw_only=True)
class Bar:
    """The limit of a ratio: `contender`'s figure divided by `against`'s. Without `against`, of the figure itself."""

    work: str
    figure: str
    limit: float
    at_least: bool
    against: str | None
    minus: str | None = None
    """Its figure is subtracted from both first: the time of the round trip without a proxy."""
    never: bool = False
    """The worst round counts, not the median."""
    contender: str = "meshbox"


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """A bar, and what was reached (None: not measured)."""

    bar: Bar
    reached: float | None

    @property
    def met(self) -> bool:
        """Whether the bar was reached; False where nothing was measured."""
        if self.reached is None:
            return False
        return self.reached >= self.bar.limit if self.bar.at_least else self.reached <= self.bar.limit

    @property
    def word(self) -> str:
        """`met`, `missed` or `not measured`."""
        return "not measured" if self.reached is None else "met" if self.met else "missed"


def _stall(work: str, figure: str, contender: str) -> Bar:
    """Return the bar that the data plane never stalls for more than 5 ms."""
    return Bar(work=work, figure=figure, limit=5, at_least=False, against=None, contender=contender, never=True)


BARS = (
    Bar(work="keepalive-32", figure="per second", limit=1.0, at_least=True, against="haproxy"),
    Bar(work="keepalive-32", figure="CPU µs", limit=1.0, at_least=False, against="haproxy"),
    Bar(work="connections", figure="per second", limit=0.95, at_least=True, against="haproxy"),
    Bar(work="connections", figure="CPU µs", limit=1.1, at_least=False, against="haproxy"),
    *(
        Bar(
            work=work,
            figure="per second",
            limit=1.0,
            at_least=True,
            against="haproxy nbthread=2",
            contender="meshbox workers=2",
        )
        for work in ("two-keepalive", "two-connections")
    ),
    *(
        Bar(work=f"bulk-{streams}-{way}", figure="Gb/s", limit=limit, at_least=True, against=against)
        for streams in (1, 8)
        for way in ("up", "down", "both")
        for against, limit in (("haproxy splice", 1.15), ("direct", 0.75))
    ),
    Bar(work="echo", figure="p50 µs", limit=1.15, at_least=False, against="haproxy", minus="direct"),
    Bar(work="udp-echo", figure="p50 µs", limit=1.1, at_least=False, against="nginx"),
    Bar(work="idle", figure="resident MiB", limit=1.5, at_least=False, against="haproxy"),
    Bar(work="dns-one", figure="per second", limit=1.0, at_least=True, against="dnsmasq"),
    Bar(work="dns-known", figure="per second", limit=1.0, at_least=True, against="dnsmasq"),
    Bar(work="ruleset", figure="one route more ms", limit=50, at_least=False, against=None, contender="10,000 routes"),
    *(
        bar
        for contender in ("workers=0", "workers=1")
        for bar in (
            Bar(work="control", figure="backend ms", limit=100, at_least=False, against=None, contender=contender),
            _stall("control", "backend stall ms", contender),
            _stall("control", "service stall ms", contender),
        )
    ),
    *(
        Bar(work=work, figure=figure, limit=limit, at_least=False, against=None)
        for work, figure, limit in (
            ("appliance", "95th percentile ms", 250),
            ("appliance", "idle: resident MiB", 64),
            ("appliance", "idle: % of a core", 0.5),
            ("mesh", "95th percentile ms", 500),
        )
    ),
    *(
        bar
        for work in ("churn", "churn-worker")
        for bar in (
            Bar(work=work, figure="p99 µs", limit=1.5, at_least=False, against="at rest", contender="changing"),
            _stall(work, "stall ms", "changing"),
        )
    ),
    *(
        bar
        for row, beside in BESIDE.items()
        for bar in (
            Bar(work="shares", figure="p99 ms", limit=2, at_least=False, against=f"{row}: {beside}", contender=row),
            Bar(work="shares", figure="failed", limit=0, at_least=False, against=None, contender=row, never=True),
        )
    ),
)


def verdicts(results: Iterable[Result]) -> Iterator[Verdict]:
    """Yield what was reached for each bar whose work was measured in full size."""
    by_name = {result.work.name: result for result in results if not result.smaller}
    for bar in BARS:
        result = by_name.get(bar.work)
        if result is None:
            continue
        if bar.never:
            reached = result.worst(bar.contender, bar.figure)
        elif bar.against is None:
            reached = result.median(bar.contender, bar.figure)
        else:
            reached = result.ratio(bar.contender, bar.figure, bar.against, bar.minus)
        yield Verdict(bar=bar, reached=reached)
