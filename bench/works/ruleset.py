"""One namespace's rules: the whole table, and one more route, and the time that nft alone takes for the same text."""

from __future__ import annotations

from contextlib import contextmanager
from functools import partial
from ipaddress import IPv4Address, IPv4Network
from itertools import pairwise
from time import perf_counter
from typing import TYPE_CHECKING

import trio

from appliance.drivers.nft.client import Nft
from appliance.model.names import Protocol
from appliance.model.network import Netns, NetnsId, Route, WorkloadRuleset
from appliance.render.ruleset import change_workload, render_workload
from bench.errors import BenchError
from bench.figures import Figure, Sample, Work
from bench.lab import run

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from bench.lab import Lab

NETNS = "mbb-rules"
PATH = f"/run/netns/{NETNS}"
SIZES = (10, 1_000, 10_000)
MORE = 10
"""Single routes added in one measurement; their mean counts."""


@contextmanager
def _open(_lab: Lab) -> Iterator[Mapping[str, Callable[[], Sample]]]:
    run(["ip", "netns", "add", NETNS])
    try:
        yield {f"{size:,} routes": partial(_measure, size) for size in SIZES}
    finally:
        run(["ip", "netns", "del", NETNS])


def _measure(size: int) -> Sample:
    rules = [_ruleset(size + more) for more in range(MORE + 1)]
    sample = trio.run(_push_all, rules)
    listed = run(["nsenter", f"--net={PATH}", "nft", "list", "table", "inet", "meshbox"])
    if str(_vip(size + MORE - 1)) not in listed:
        raise BenchError("the route that was added last is not in the namespace's table")
    run(["nsenter", f"--net={PATH}", "nft", "delete", "table", "inet", "meshbox"])
    whole = render_workload(rules[0])
    sample["nft alone, whole ms"] = _nft_alone(whole)
    steps = [change_workload(a, b) for a, b in pairwise(rules)]
    sample["nft alone, one more ms"] = sum(map(_nft_alone, steps)) / MORE
    return sample


async def _push_all(rules: list[WorkloadRuleset]) -> Sample:
    nft = Nft()
    run(["nsenter", f"--net={PATH}", "nft", "flush", "ruleset"])
    start = perf_counter()
    await nft.push(PATH, change_workload(None, rules[0]))
    whole = perf_counter() - start
    start = perf_counter()
    for before, after in pairwise(rules):
        await nft.push(PATH, change_workload(before, after))
    return {"first push ms": whole * 1000, "one route more ms": (perf_counter() - start) / MORE * 1000}


def _nft_alone(text: str) -> float:
    start = perf_counter()
    run(["nsenter", f"--net={PATH}", "nft", "-f", "-"], text=text)
    return (perf_counter() - start) * 1000


def _ruleset(size: int) -> WorkloadRuleset:
    return WorkloadRuleset(
        netns=Netns(id=NetnsId(device=0, inode=0), path=""),
        proxy=IPv4Address("172.18.0.1"),
        dns_port=53,
        vip_range=IPv4Network("240.0.0.0/4"),
        proxy_ports=(20000, 40000),
        routes=frozenset(
            Route(vip=_vip(number), port=8080, protocol=Protocol.TCP, proxy_port=20000 + number)
            for number in range(size)
        ),
        gateways=frozenset((IPv4Address("172.18.0.1"),)),
        hosts=frozenset((IPv4Address("192.0.2.1"),)),
        subnets=frozenset((IPv4Network("172.18.0.0/16"),)),
        door=True,
    )


def _vip(number: int) -> IPv4Address:
    return IPv4Address("241.0.0.1") + number


WORKS = (
    Work(
        name="ruleset",
        title="One namespace's rules",
        figures=tuple(
            Figure(name=name, better="lower", digits=1)
            for name in ("first push ms", "nft alone, whole ms", "one route more ms", "nft alone, one more ms")
        ),
        note="Nothing is pinned.",
        open=_open,
        reference="10 routes",
    ),
)
