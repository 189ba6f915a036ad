"""nft text from rulesets: a prelude of definitions in front of the fixed rules of nft/*.nft.

Every function returns one transaction for `nft -f -`: it applies as a whole or not at all. Only `ipaddress` and `int`
objects are written, because nft looks up anything else in the DNS. Each list ends with a newline before its brace, as
nft 1.0.6 demands; it accepts an empty definition, but no empty list of elements.
Names of interfaces come from the kernel; only those are written that mean themselves.
"""

from __future__ import annotations

import re
from dataclasses import replace
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, collapse_addresses
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from appliance.model.mac import format_mac
from appliance.model.names import Protocol
from appliance.model.network import DATAGRAM_DOORS

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping
    from collections.abc import Set as AbstractSet

    from appliance.model.network import BridgeRuleset, HostRuleset, RegistryGuard, Route, VisitorRules, WorkloadRuleset

TABLE = "inet meshbox"
"""Family and name of our table, in workloads' namespaces as in the host's."""

REMOVE = f"add table {TABLE}\ndelete table {TABLE}\n"
"""Removes our table whether or not it exists. nft 1.0.6 has no `destroy`."""

BRIDGE_TABLE = "bridge meshbox"
"""The same of the table of the host's bridges."""

REMOVE_BRIDGE = f"add table {BRIDGE_TABLE}\ndelete table {BRIDGE_TABLE}\n"
"""Removes that table whether or not it exists."""

LEASE = 60
"""Seconds for which port claims hold unless they are renewed: what is in force while the appliance is away."""

LEASED = ("host", "broadcast", "multicast", "other")
"""The kinds of frames that are held to port claims: all there are (`pkttype` of nft(8))."""

END_LEASE = f"flush set {BRIDGE_TABLE} lease\n"
"""Ends the port claims at once; nft refuses it where there is no table."""

DOOR_PORT = 4
"""Where the data plane listens inside a workload's namespace, at all addresses. That keeps other programs from the
port, so it is one that nothing uses (unassigned in IANA's registry)."""

DNS_DOOR_PORT = 6
"""Where it answers DNS there, at every address; as unused as the other."""

LEAD_DNS = f"flush set {TABLE} dns_outside\nadd element {TABLE} dns_inside {{ 53 }}\n"
"""Leads a workload's questions to the door for DNS; nft refuses it where the rules have no door."""
LEAVE_DNS = f"flush set {TABLE} dns_inside\nadd element {TABLE} dns_outside {{ 53 }}\n"
"""Leads them to the host again."""

RANGES = ("subnets", "subnets6")
"""Sets of ranges. Overlapping ranges cannot be exchanged element by element: a change replaces the whole table."""

_T = TypeVar("_T")
_Sets = dict[str, frozenset[str]]
"""The elements of each set or map, as nft writes them."""


def _template(name: str) -> str:
    """Read a file of nft/: inside the package when installed, beside it in a checkout."""
    package = Path(__file__).resolve().parent.parent
    folder = next(f for f in (package / "nft", package.parent / "nft") if f.is_dir())
    return (folder / name).read_text()


_WORKLOAD = _template("workload.nft")
_HOST = _template("host.nft")
_VISITORS = _template("visitors.nft")
_CONSUL = _template("consul.nft")
_DOOR = _template("door.nft")
_DNS = _template("dns.nft")
_BRIDGE = _template("bridge.nft")
_PORT = re.compile(r"[A-Za-z0-9_.-]{1,15}")
"""A name of an interface that means itself in nft, which reads `*` at its end as any other characters."""


def render_workload(r: WorkloadRuleset, *, dns_inside: bool = False) -> str:
    """Return the text that replaces the table in a workload's namespace, whatever was there.

    With `dns_inside` questions are led to the door for DNS, which is open.
    """
    port = frozenset({"53"})
    inside = r.door and dns_inside
    sets = _route_sets(r, r.routes) | _workload_sets(r) | {"dns_outside": frozenset() if inside else port}
    if not r.door:
        return _render(_workload_values(r), sets, _WORKLOAD)
    sets |= {"dns_inside": port if inside else frozenset()}
    return _render(_workload_values(r), sets, f"{_WORKLOAD}\n{_DOOR}\n{_DNS}")


def render_host(r: HostRuleset) -> str:
    """Return the text that replaces the table in the host's namespace, whatever was there."""
    parts = [_HOST]
    parts += [] if r.visitors is None else [_VISITORS]
    parts += [] if r.registry is None else [_CONSUL]
    return _render(_host_values(r), _host_sets(r), "\n".join(parts))


def render_bridge(r: BridgeRuleset) -> str:
    """Return the text that replaces the table of the host's bridges, whatever was there, with a new lease."""
    values = {"vip_range": str(r.vip_range), "lease": _braces(frozenset(f"{k} timeout {LEASE}s" for k in LEASED))}
    return _render(values, _written(_claims(r)), _BRIDGE)


def change_bridge(before: BridgeRuleset | None, after: BridgeRuleset) -> str:
    """Return the text that brings the table of the host's bridges from `before` to `after`, as `change_workload` does.

    The lease stays as it is, unless the whole table is replaced.
    """
    if before is None or before.vip_range != after.vip_range:
        return render_bridge(after)
    old, new = _claims(before), _claims(after)
    gone = _written({name: old[name] - new[name] for name in old})
    return _change(gone, _written({name: new[name] - old[name] for name in new}), BRIDGE_TABLE)


def change_workload(before: WorkloadRuleset | None, after: WorkloadRuleset, *, dns_inside: bool = False) -> str:
    """Return the text that brings the table from `before` to `after`: empty when they are the same.

    Whether questions are led to the door for DNS stays as it is; `dns_inside` says so.

    It exchanges elements where that suffices, and replaces the whole table otherwise. The cost of the former depends
    on what changed, not on how many routes there are. When nft refuses the text, the table was not `before`: render
    the whole table then. No two destinations may have the same proxy port.
    """
    if before is None or _workload_values(before) != _workload_values(after):
        return render_workload(after, dns_inside=dns_inside)
    old, new = _workload_sets(before), _workload_sets(after)
    if _ranges_differ(old, new):
        return render_workload(after, dns_inside=dns_inside)
    # compares the many equal routes once, not twice
    differing = (before.routes ^ after.routes) | (before.closed ^ after.closed)
    gone = _route_sets(before, before.routes & differing)
    come = _route_sets(after, after.routes & differing)
    return _change(_minus(gone, come) | _minus(old, new), _minus(come, gone) | _minus(new, old))


def change_host(before: HostRuleset | None, after: HostRuleset) -> str:
    """Return the text that brings the host's table from `before` to `after`, as `change_workload` does."""
    if before is not None and replace(before, closed=after.closed, closed_to_peers=after.closed_to_peers) == after:
        old, new = _closed_sets(before), _closed_sets(after)  # readiness alone has changed: the rest is not written
        return _change(_minus(old, new), _minus(new, old))
    if before is None or _host_values(before) != _host_values(after):
        return render_host(after)
    old, new = _host_sets(before), _host_sets(after)
    if old.keys() != new.keys() or _ranges_differ(old, new):
        return render_host(after)
    return _change(_minus(old, new), _minus(new, old))


def _workload_values(r: WorkloadRuleset) -> dict[str, str]:
    values = {
        "proxy": str(r.proxy),
        "dns_port": str(int(r.dns_port)),
        "vip_range": str(r.vip_range),
        "proxy_ports": _port_range(r.proxy_ports),
        "dns_door_port": str(DNS_DOOR_PORT),
    }
    if not r.door:
        return values
    return values | {
        "door_port": str(DOOR_PORT),
        "doors": str(DATAGRAM_DOORS),
        "dialler": str(r.dialler),
    }


def _route_sets(ruleset: WorkloadRuleset, routes: Iterable[Route]) -> _Sets:
    to, allowed, inside, datagrams, vips, ports, closed = [], [], [], [], [], [], []
    for r in routes:
        dialled = f"{r.vip} . {r.protocol.value} . "
        to.append(f"{dialled}{int(r.port)} : {ruleset.proxy} . {int(r.proxy_port)}")
        allowed.append(f"{dialled}{int(r.proxy_port)}")
        if not ruleset.door:
            continue
        at = f"{r.vip} . {int(r.port)}"
        door = DATAGRAM_DOORS.network_address + int(r.proxy_port)
        if r.protocol is Protocol.UDP:
            vips.append(f"{door} : {r.vip}")
            ports.append(f"{door} : {int(r.port)}")
        if r in ruleset.closed:
            closed.append(f"{dialled}{int(r.port)}")
        elif r.protocol is Protocol.UDP:
            datagrams.append(f"{at} : {door}")
        else:
            inside.append(at)
    sets = {"routes": to, "allowed": allowed, "inside": inside, "closed": closed}
    if ruleset.door:
        sets |= {"datagrams": datagrams, "vips": vips, "ports": ports}
    return {name: frozenset(elements) for name, elements in sets.items()}


def _workload_sets(r: WorkloadRuleset) -> _Sets:
    """Return all sets except those of the routes, which are by far the longest."""
    gateways = _addresses(a for a in r.gateways if isinstance(a, IPv4Address)) | {str(r.proxy)}
    return {
        "hosts": _addresses(r.hosts) | gateways,
        "gateways": gateways,
        "gateways6": _addresses(a for a in r.gateways if isinstance(a, IPv6Address)),
        "subnets": _networks(n for n in r.subnets if isinstance(n, IPv4Network)),
        "subnets6": _networks(n for n in r.subnets if isinstance(n, IPv6Network)),
        "published": frozenset(f"{protocol.value} . {int(port)}" for protocol, port in r.published),
    }


def _host_values(r: HostRuleset) -> dict[str, str]:
    values = {"proxy_ports": _port_range(r.proxy_ports), "dns_port": str(int(r.dns_port))}
    return values if r.visitors is None else values | {"vip_range": str(r.visitors.vip_range)}


def _host_sets(r: HostRuleset) -> _Sets:
    sets = {
        "workloads": _addresses(r.workloads),
        "from_bridges": _at_ports(r.from_bridges, str),
        "from_anywhere": _addresses(r.from_anywhere),
        "published": frozenset(f"{a} . {protocol.value} . {int(port)}" for a, protocol, port in r.published),
        "peers": _addresses(r.peers),
        "machines": _addresses(r.machines),
        "dns_addresses": _addresses(r.dns_addresses),
        "subnets": _networks(r.subnets),
        "listening": frozenset(f"{protocol.value} . {int(port)}" for protocol, port in r.listening),
    }
    sets |= _closed_sets(r)
    sets |= {} if r.visitors is None else _visitor_sets(r.visitors)
    return sets if r.registry is None else sets | _registry_sets(r.registry)


def _closed_sets(r: HostRuleset) -> _Sets:
    sets = {"closed": r.closed, "closed_to_peers": r.closed_to_peers}
    return {
        name: frozenset(f"{protocol.value} . {int(port)}" for protocol, port in ports) for name, ports in sets.items()
    }


def _registry_sets(g: RegistryGuard) -> _Sets:
    return {
        "consul_ports": frozenset(f"{protocol.value} . {int(port)}" for protocol, port in g.ports),
        "consul_hosts": _addresses(g.hosts),
        "consul_agents": _addresses(g.agents),
        "bridges": frozenset(f'"{name}"' for name in g.bridges if _PORT.fullmatch(name)),
    }


def _claims(r: BridgeRuleset) -> dict[str, AbstractSet[Any]]:
    """Return the elements of each set of port claims, before they are written: there may be thousands."""
    addresses6 = r.host_addresses6 | {address for _, address in r.addresses6}
    return {
        "macs": r.host_macs | {mac for _, mac in r.macs},
        "addresses": r.host_addresses | {address for _, address in r.addresses},
        "addresses6": addresses6,
        "targets": addresses6,
        "port_macs": r.macs,
        "port_addresses": r.addresses,
        "port_addresses6": r.addresses6,
        "port_targets": r.addresses6,
    }


def _target(address: IPv6Address) -> str:
    """Return an address as a number: so nft writes what it reads from a packet by place and length."""
    return f"0x{int(address):032x}"


_FORMS: Mapping[str, Callable[[Any], str]] = {
    "macs": format_mac,
    "addresses": str,
    "addresses6": str,
    "targets": _target,
    "port_macs": format_mac,
    "port_addresses": str,
    "port_addresses6": str,
    "port_targets": _target,
}
"""How the elements of port claims are written, behind their port if they have one."""


def _written(claims: Mapping[str, AbstractSet[Any]]) -> _Sets:
    return {
        name: _at_ports(values, _FORMS[name]) if name.startswith("port_") else frozenset(map(_FORMS[name], values))
        for name, values in claims.items()
    }


def _at_ports(claims: Iterable[tuple[str, _T]], form: Callable[[_T], str]) -> frozenset[str]:
    """Return what comes from where; a name that nft would read as something else is passed over."""
    return frozenset(f'"{port}" . {form(value)}' for port, value in claims if _PORT.fullmatch(port))


def _visitor_sets(v: VisitorRules) -> _Sets:
    def elements(routes: Iterable[Route], proxy: str) -> frozenset[str]:
        return frozenset(f"{r.vip} . {r.protocol.value} . {int(r.port)} : {proxy}{int(r.proxy_port)}" for r in routes)

    return {
        "host_routes": elements(v.host_routes, "127.0.0.1 . "),
        "guest_routes": elements(v.guest_routes, ""),
        "guests": _addresses(v.guests),
    }


def _port_range(ports: tuple[int, int]) -> str:
    """Return a range as nft writes it; nft refuses a range of one port."""
    first, last = ports
    return str(int(first)) if first == last else f"{int(first)}-{int(last)}"


def _addresses(addresses: Iterable[IPv4Address | IPv6Address]) -> frozenset[str]:
    return frozenset(str(a) for a in addresses)


def _networks(networks: Iterable[IPv4Network] | Iterable[IPv6Network]) -> frozenset[str]:
    """Merge overlapping networks: a set of ranges refuses them."""
    return frozenset(str(n) for n in collapse_addresses(networks))  # type: ignore[type-var]


def _render(values: Mapping[str, str], sets: _Sets, rules: str) -> str:
    parts = [f"define {name} = {value}\n" for name, value in values.items()]
    parts += [f"define {name} = {_braces(elements)}\n" for name, elements in sets.items()]
    return "".join([*parts, "\n", rules])


def _braces(elements: frozenset[str]) -> str:
    """Return a list of elements, sorted so that equal rulesets are equal texts. nft ignores the order."""
    return "{\n\t" + ",\n\t".join(sorted(elements)) + "\n}" if elements else "{}"


def _ranges_differ(a: _Sets, b: _Sets) -> bool:
    return any(a[name] != b[name] for name in RANGES if name in a)


def _minus(a: _Sets, b: _Sets) -> _Sets:
    return {name: elements - b[name] for name, elements in a.items()}


def _change(gone: _Sets, come: _Sets, table: str = TABLE) -> str:
    """Return the commands that exchange elements.

    Removals come first: an element of a map that gets another value is removed and added.
    """
    commands = [(verb, name, sets[name]) for verb, sets in (("delete", gone), ("add", come)) for name in sets]
    return "".join(f"{verb} element {table} {name} {_braces(e)}\n" for verb, name, e in commands if e)
