"""Hands out virtual IPs (one per name), proxy ports (one per destination), and addresses of callers.

- What was handed out stays as long as it is used.
- A new one is the hash of its name or destination, or the next free number after it. So every machine, and every
  restart, comes to the same.
- A freed address rests for a week, because clients keep addresses in caches. Its own name gets it back at once.
- The first sixteenth of `vip_range` is for callers (model/sources.py), the rest for names. An address on the wrong
  side, from before there were callers' addresses, is given up.
- A freed proxy port is not handed out in the same pass, because its listener is still open.
- Where a range is too small, every allocation stays, and the rest is handed out in order. `shortage` tells what goes
  without; everything else works.
"""

from __future__ import annotations

from hashlib import blake2b
from ipaddress import IPv4Address
from types import MappingProxyType
from typing import TYPE_CHECKING, TypeVar

from appliance.model.facts import Allocations
from appliance.model.names import Destination, Name
from appliance.model.sources import caller_step, callers_part

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence
    from collections.abc import Set as AbstractSet

    from appliance.model.facts import Settings
    from appliance.model.spec import Service

_Key = TypeVar("_Key", Name, Destination, str)
_Holder = TypeVar("_Holder", Name, str)
_Value = TypeVar("_Value", IPv4Address, int)

REST = 7 * 24 * 3600.0
"""Seconds for which a freed address is not handed out to another name."""
MOST_NAMED = 3
"""Most names or destinations that a shortage lists; it counts the others."""


def allocate(
    kept: Allocations,
    names: AbstractSet[Name],
    destinations: AbstractSet[Destination],
    settings: Settings,
    now: float,
    unusable_ports: frozenset[int] = frozenset(),
    callers: AbstractSet[str] = frozenset(),
    numbered: Mapping[str, str] = MappingProxyType({}),
) -> Allocations:
    """Return allocations for these names and destinations, as far as they fit; `kept` itself when nothing changes.

    `now` in seconds since the epoch. A destination whose name has no address gets no port. `callers` are keys of
    model/sources.py, and `numbered` says which container each of them is that has no number from elsewhere.
    """
    at = kept.freed_vips
    vips, freed, owners = _addresses(kept.vips, kept.freed_names, at, names, *_for_names(settings), now)
    sources, resting, leavers = _addresses(kept.callers, kept.freed_callers, at, callers, *_for_callers(settings), now)
    if vips.keys() != names:
        destinations = {d for d in destinations if d.name in vips}
    ports = _ports(kept.ports, destinations, settings.proxy_ports, unusable_ports)
    result = Allocations(
        vips=vips,
        ports=ports,
        freed_vips=freed | resting,
        freed_names=owners,
        callers=sources,
        freed_callers=leavers,
        numbered=numbered,
    )
    return kept if result == kept else result


def shortage(
    found: Allocations,
    names: AbstractSet[Name],
    destinations: AbstractSet[Destination],
    settings: Settings,
    unusable_ports: frozenset[int] = frozenset(),
) -> str:
    """Return which of these have no allocation and which option to widen, in words; empty when all have one."""
    words = []
    if len(found.vips) < len(names):
        lacking = sorted(names - found.vips.keys())
        size = len(_for_names(settings)[0])
        words.append(
            f"vip_range {settings.vip_range} has {size} addresses for {len(names)} names, none is left for"
            f" {_first(lacking)}: widen vip_range"
        )
    short = len(found.ports) < len(destinations)
    if short and (without := sorted(d for d in destinations - found.ports.keys() if d.name in found.vips)):
        first, last = settings.proxy_ports
        held = f" ({len(unusable_ports)} of them in use)" if unusable_ports else ""
        words.append(
            f"proxy_ports {first}-{last} has {last - first + 1} ports{held} for {len(destinations)} destinations, none"
            f" is left for {_first(without)}: widen proxy_ports"
        )
    return "; ".join(words)


def misfit(
    kept: Allocations,
    services: Iterable[Service],
    settings: Settings,
    now: float,
    unusable_ports: frozenset[int] = frozenset(),
) -> str:
    """Return what a host with these allocations would lack for these services, in words; empty when they fit.

    All of them are counted as served here, in place of what is deployed under their names.
    """
    offered = {
        Name(service=s.name, container=c.name): {(p.mesh, p.protocol) for p in c.ports}
        for s in services
        for c in s.containers
    }
    replaced = {name.service for name in offered}
    names = {name for name in kept.vips if name.service not in replaced} | offered.keys()
    destinations = {d for d in kept.ports if d.name.service not in replaced}
    destinations |= {Destination(name=n, port=port, protocol=p) for n, ports in offered.items() for port, p in ports}
    found = allocate(kept, names, destinations, settings, now, unusable_ports)
    return shortage(found, names, destinations, settings, unusable_ports)


def _first(lacking: Sequence[Name] | Sequence[Destination]) -> str:
    """List the first ones and count the others."""
    more = f" and {len(lacking) - MOST_NAMED} more" if len(lacking) > MOST_NAMED else ""
    return ", ".join(map(str, lacking[:MOST_NAMED])) + more


def _for_names(settings: Settings) -> tuple[range, range]:
    """Return the addresses of `vip_range` that names may have, as numbers, and those over which names are hashed.

    They are all behind the callers' part but the last. Names are hashed over that part as well, as they were before
    there was one: so a name has the address that it had.
    """
    first, last = int(settings.vip_range.network_address), int(settings.vip_range.broadcast_address)
    return range(first + callers_part(settings.vip_range).num_addresses, last), range(first + 1, last)


def _for_callers(settings: Settings) -> tuple[range, range]:
    """Return the same for the first addresses of callers. The very first of the range is nobody's own."""
    first = int(settings.vip_range.network_address)
    room = range(first + 1, first + (caller_step(settings.vip_range) or callers_part(settings.vip_range).num_addresses))
    return room, room


def _addresses(
    kept: Mapping[_Holder, IPv4Address],
    freed_to: Mapping[_Holder, IPv4Address],
    freed_at: Mapping[IPv4Address, float],
    wanted: AbstractSet[_Holder],
    room: range,
    hashed: range,
    now: float,
) -> tuple[dict[_Holder, IPv4Address], dict[IPv4Address, float], dict[_Holder, IPv4Address]]:
    """Return the addresses of what is wanted, when each resting address of `room` was freed, and who had it."""
    found = _unshared({holder: a for holder, a in kept.items() if holder in wanted and int(a) in room})
    taken = set(found.values())
    left = {holder: address for holder, address in kept.items() if holder not in wanted}
    owners = {**freed_to, **left}
    # A time that lies ahead comes from a clock that was wrong: count from now.
    freed = {address: min(when, now) for address, when in freed_at.items()} | dict.fromkeys(left.values(), now)
    freed = {a: when for a, when in freed.items() if now - when < REST and a not in taken and int(a) in room}
    for holder in sorted(wanted - found.keys())[: len(room) - len(found)]:
        address = owners.get(holder)
        if address not in freed:
            address = _free_address(str(holder), room, hashed, taken, freed)
        freed.pop(address, None)
        found[holder] = address
        taken.add(address)
    owners = {holder: address for holder, address in owners.items() if address in freed and holder not in found}
    return found, freed, owners


def _free_address(
    text: str, room: range, hashed: range, taken: set[IPv4Address], freed: Mapping[IPv4Address, float]
) -> IPv4Address:
    size = len(room)
    number = hashed[_hash(text, len(hashed))]
    start = number - room.start if number in room else _hash(f"{text} ", size)
    for step in range(min(size, len(taken) + len(freed) + 1)):
        address = IPv4Address(room[(start + step) % size])
        if address not in taken and address not in freed:
            return address
    # The range is full of resting addresses: the one that has rested longest does the least harm.
    usable = [a for a in freed if a not in taken]
    return min(usable, key=lambda a: (freed[a], a))


def _ports(
    kept: Mapping[Destination, int],
    destinations: AbstractSet[Destination],
    span: tuple[int, int],
    unusable: frozenset[int],
) -> dict[Destination, int]:
    first, last = span
    size = last - first + 1
    ports = _unshared({d: p for d, p in kept.items() if d in destinations and first <= p <= last and p not in unusable})
    wanted = sorted(destinations - ports.keys())
    if not wanted:
        return ports
    free = set(range(first, last + 1)) - unusable - set(ports.values())
    # Better a port whose listener closes in this very pass than none.
    closing = free.intersection(kept.values())
    free -= closing
    for destination in wanted:
        pool = free or closing
        if not pool:
            break
        start = _hash(str(destination), size)
        port = next(p for p in (first + (start + step) % size for step in range(size)) if p in pool)
        ports[destination] = port
        pool.remove(port)
    return ports


def _unshared(kept: dict[_Key, _Value]) -> dict[_Key, _Value]:
    """Leave out each value that an earlier entry also has: somebody may have edited the state file by hand."""
    if len(set(kept.values())) == len(kept):
        return kept
    return {key: value for value, key in {v: k for k, v in sorted(kept.items(), reverse=True)}.items()}


def _hash(text: str, size: int) -> int:
    return int.from_bytes(blake2b(text.encode(), digest_size=8).digest(), "big") % size
