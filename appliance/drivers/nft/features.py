"""What nft and the kernel of this host can do: our rulesets, tried in a dry run."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network
from typing import TYPE_CHECKING

import structlog

from appliance.drivers.process import run
from appliance.errors import HostError, InputError, RetryError
from appliance.model.names import Protocol
from appliance.model.network import HostRuleset, Netns, NetnsId, Route, VisitorRules, WorkloadRuleset
from appliance.model.numbers import parse_number
from appliance.render.ruleset import render_host, render_workload
from appliance.text import quoted

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

log = structlog.get_logger()

OLDEST = (0, 9, 6)
"""The oldest nft that works. Concatenated `addr . port` values in maps, which the redirect needs, came with 0.9.4;
0.9.6 corrects them."""

_TIMEOUT = 10.0
"""Seconds that `nft --version` may take."""


@dataclass(frozen=True, slots=True, kw_only=True)
class NftFeatures:
    """What the host's nft is and can do."""

    version: tuple[int, ...]
    doors: bool
    """Whether nft and the kernel accept the rules of doors, without which a host can do."""


async def probe(dry_run: Callable[[str], Awaitable[None]]) -> NftFeatures:
    """Try our rulesets with `dry_run`, which raises RetryError for one that nft or the kernel refuses.

    Raises HostError with what to install when nft is missing or too old, or when a ruleset that is needed is refused.
    """
    done = await run(["nft", "--version"], timeout=_TIMEOUT)
    version = parse_version(done.output)
    if version < OLDEST:
        raise HostError(
            f"nft is {quoted(done.output.strip())}, older than {'.'.join(map(str, OLDEST))}; apt-get install nftables"
        )
    for name, text in samples():
        try:
            await dry_run(text)
        except RetryError as error:
            raise HostError(f"this host cannot do the {name}: {error}; a kernel with nf_tables is needed") from error
    try:
        await dry_run(door_sample())
    except RetryError as error:
        log.debug("this kernel refuses the rules of doors; going on without doors", cause=str(error))
        return NftFeatures(version=version, doors=False)
    return NftFeatures(version=version, doors=True)


def parse_version(answer: str) -> tuple[int, ...]:
    """Return the three numbers in what `nft --version` prints; none where it names no version."""
    found = re.search(r"v([0-9]+)\.([0-9]+)(?:\.([0-9]+))?", answer)
    try:
        return tuple(parse_number(part or "0", 0, 999_999) for part in found.groups()) if found else ()
    except InputError:
        return ()


def _bare() -> WorkloadRuleset:
    return WorkloadRuleset(
        netns=Netns(id=NetnsId(device=0, inode=0), path=""),
        proxy=IPv4Address("192.0.2.1"),
        dns_port=53,
        vip_range=IPv4Network("240.0.0.0/4"),
        proxy_ports=(20000, 29999),
    )


def door_sample() -> str:
    """Return a ruleset with a door."""
    return render_workload(replace(_bare(), door=True))


def samples() -> tuple[tuple[str, str], ...]:
    """Return rulesets that use everything but doors, and ones that use as little as can be, by name."""
    a, n = IPv4Address, IPv4Network
    bare = _bare()
    vips, ports = bare.vip_range, bare.proxy_ports
    full = replace(
        bare,
        routes=frozenset(Route(vip=a("240.0.0.1"), port=80, protocol=p, proxy_port=20001) for p in Protocol),
        gateways=frozenset({a("192.0.2.1"), IPv6Address("2001:db8::1")}),
        hosts=frozenset({a("198.51.100.1")}),
        subnets=frozenset({n("192.0.2.0/24"), IPv6Network("2001:db8::/64")}),
        published=frozenset({(Protocol.TCP, 80)}),
    )
    some = frozenset({a("192.0.2.2")})
    host = HostRuleset(
        proxy_ports=ports,
        dns_port=53,
        workloads=some,
        published=frozenset({(a("192.0.2.2"), Protocol.TCP, 80)}),
        peers=some,
        machines=some,
        dns_addresses=some,
        subnets=frozenset({n("192.0.2.0/24")}),
        listening=frozenset({(Protocol.TCP, 20001)}),
    )
    route = Route(vip=a("240.0.0.1"), port=80, protocol=Protocol.TCP, proxy_port=20001)
    visiting = replace(
        host,
        visitors=VisitorRules(
            vip_range=vips, host_routes=frozenset({route}), guest_routes=frozenset({route}), guests=some
        ),
    )
    return (
        ("rules of workloads", render_workload(full)),
        ("rules of workloads without routes", render_workload(bare)),
        ("rules of the host", render_host(host)),
        ("rules of the host with visitors", render_host(visiting)),
        ("rules of the host without workloads", render_host(HostRuleset(proxy_ports=ports, dns_port=53))),
    )
