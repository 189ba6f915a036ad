"""The mesh's own names: how each asker's question is answered, from the Zone alone.

A name is recognised in this order:

1. `<container>.<service>`, exactly, if the zone has it.
2. Everything at or under the suffix (`mesh.internal`), whether it exists or not.
3. Reverse names of `vip_range`, those of the addresses included from which a backend sees its callers come.
4. Everything below a name of 1: there is nothing.

Any other name goes upstream: a service may be named like a real top-level domain. Each exact name is a zone of its own,
so its SOA record bears the name itself.
"""

from __future__ import annotations

from ipaddress import IPv4Address, IPv4Network
from typing import TYPE_CHECKING, Any

from dnslib import PTR, QTYPE, RR, SOA, A, DNSLabel

from appliance.model.names import Name
from appliance.model.sources import callers_part, first_address
from appliance.render.dnsmessage import EDE_PROHIBITED, NXDOMAIN, Ede, Reply

if TYPE_CHECKING:
    from appliance.model.network import Zone
    from appliance.render.dnsmessage import Query

TTL = 5
"""Seconds that an asker may keep an address. A name's virtual IP hardly ever changes. When a service is removed and
deployed again, no client dials the former address for longer than this. An answer costs microseconds."""

NEGATIVE_TTL = 1
"""Seconds that an asker may keep "no such name": once the missing `connect_to` is added, the name works that soon."""

_ANY = 255
_REVERSE = (b"in-addr", b"arpa")


class ZoneAnswers:
    """Answers questions from one Zone. An asker is any address that has a view: a container, the host, a guest."""

    def __init__(self, zone: Zone) -> None:
        self.zone = zone
        self._suffix = tuple(label.encode() for label in zone.suffix.lower().split(".") if label)
        self._reverse: dict[IPv4Address, Name] | None = None
        self._callers: dict[IPv4Address, IPv4Address] = {}
        """Callers of which a backend may see the address, by the first of those addresses."""

    def knows(self, asker: IPv4Address) -> bool:
        """Whether this asker has a view."""
        return asker in self.zone.views

    def expects(self, asker: IPv4Address) -> bool:
        """Whether this asker may get a view soon: it is on a network of containers."""
        return any(asker in subnet for subnet in self.zone.subnets)

    def answer(self, asker: IPv4Address, query: Query) -> Reply | None:
        """Return the answer for an asker that has a view, or None for a name that is not the mesh's."""
        name = query.name
        known = _name(name[-2:]) if len(name) >= 2 else None
        if known not in self.zone.names:
            known = None
        if known is not None and len(name) == 2:
            return self._forward(asker, query, known, zone_labels=2)
        if self._suffix and name[-len(self._suffix) :] == self._suffix:
            return self._suffixed(asker, query)
        if name[-2:] == _REVERSE:
            return self._backward(asker, query)
        if known is not None:
            return self._below(asker, query, known, zone_labels=2)
        return None

    def _forward(self, asker: IPv4Address, query: Query, name: Name, zone_labels: int) -> Reply:
        if name not in self.zone.views[asker]:
            return self._undeclared(asker, query, name, zone_labels)
        if query.qtype not in (QTYPE.A, _ANY):
            return _negative(query, zone_labels)
        # ANY gets the one kind of record that there is (RFC 8482 §4.1).
        return _positive(query, QTYPE.A, A(str(self.zone.names[name])))

    def _below(self, asker: IPv4Address, query: Query, name: Name, zone_labels: int) -> Reply:
        """Answer for what is asked below a name, as `_grpc_config` or `_http._tcp`: there is nothing, at once."""
        if name not in self.zone.views[asker]:
            return self._undeclared(asker, query, name, zone_labels)
        return _negative(query, zone_labels, NXDOMAIN)

    def _suffixed(self, asker: IPv4Address, query: Query) -> Reply:
        labels = query.name[: -len(self._suffix)]
        if len(labels) >= 2:
            known = _name(labels[-2:])
            if known in self.zone.names:
                answer = self._forward if len(labels) == 2 else self._below
                return answer(asker, query, known, len(self._suffix))
        if not labels:
            if query.qtype in (QTYPE.SOA, _ANY):
                return _positive(query, QTYPE.SOA, _soa(TTL))
            return _negative(query, len(self._suffix))
        if len(labels) == 1 and any(labels[0] == n.service.encode() for n in self.zone.views[asker]):
            # Names exist below it, so it exists as well, without records (RFC 8020 §2).
            return _negative(query, len(self._suffix))
        return _negative(query, len(self._suffix), NXDOMAIN)

    def _backward(self, asker: IPv4Address, query: Query) -> Reply | None:
        octets = _octets(query.name[-3::-1])
        if not octets:
            return None
        packed = bytes(octets) + bytes(4 - len(octets))
        network = IPv4Network((packed, 8 * len(octets)))
        if not network.subnet_of(self.zone.vip_range):
            return None
        if len(octets) < len(query.name) - 2:
            return _negative(query, 2 + len(octets), NXDOMAIN)
        if len(octets) < 4:
            return _negative(query, len(query.name))
        if self._reverse is None:
            self._reverse = {address: name for name, address in self.zone.names.items()}
            sources = self.zone.sources.addresses
            self._callers = {sources[caller]: caller for caller in self.zone.askers if caller in sources}
        name = self._reverse.get(network.network_address)
        if name is None:
            name = self._caller(asker, network.network_address)
        elif name not in self.zone.views[asker]:
            name = None
        if name is None:
            # As if it were nobody's: whoever asks for all addresses in turn must not learn all names.
            return _negative(query, len(query.name), NXDOMAIN)
        if query.qtype not in (QTYPE.PTR, _ANY):
            return _negative(query, len(query.name))
        return _positive(query, QTYPE.PTR, PTR(DNSLabel(_labels(name))))

    def _caller(self, asker: IPv4Address, address: IPv4Address) -> Name | None:
        """Return whose connections come from an address, if the asker may know: it reaches that one, or is called."""
        zone = self.zone
        caller = self._callers.get(first_address(address, zone.vip_range))
        name = None if caller is None else zone.askers[caller]
        if caller is None or address not in callers_part(zone.vip_range):
            return None
        known = name in zone.views[asker] or zone.askers.get(asker) in zone.views.get(caller, ())
        return name if known else None

    def _undeclared(self, asker: IPv4Address, query: Query, name: Name, zone_labels: int) -> Reply:
        option = self.zone.visitors.get(asker)
        text = f"{name} is not in {option or f'connect_to of {self.zone.askers.get(asker, asker)}'}"
        return _negative(query, zone_labels, NXDOMAIN, Ede(code=EDE_PROHIBITED, text=text))


def _positive(query: Query, rtype: int, data: Any) -> Reply:
    record = RR(DNSLabel(query.labels), rtype, ttl=TTL, rdata=data)
    return Reply(answer=(record,), authoritative=True)


def _negative(query: Query, zone_labels: int, rcode: int = 0, ede: Ede | None = None) -> Reply:
    """Return "no such name" or "no such record"; the zone is the last `zone_labels` labels of the name."""
    ttl = NEGATIVE_TTL if rcode else TTL
    soa = RR(DNSLabel(query.labels[-zone_labels:]), QTYPE.SOA, ttl=ttl, rdata=_soa(ttl))
    return Reply(rcode=rcode, authority=(soa,), authoritative=True, ede=ede)


def _soa(minimum: int) -> Any:
    """Return the SOA data of all zones here. Zones are not transferred, so only the last number has a meaning."""
    return SOA(DNSLabel([b"meshbox"]), DNSLabel([b"hostmaster", b"meshbox"]), (1, 3600, 600, 86400, minimum))


def _name(labels: tuple[bytes, ...]) -> Name:
    """Return the Name that two labels spell. No Name has bytes beyond ASCII."""
    container, service = labels
    return Name(service=service.decode("latin-1"), container=container.decode("latin-1"))


def _labels(name: Name) -> list[bytes]:
    return [name.container.encode(), name.service.encode()]


def _octets(labels: tuple[bytes, ...]) -> list[int]:
    """Return the leading labels that are canonical octets, four at most."""
    octets: list[int] = []
    for label in labels[:4]:
        if not label.isdigit() or len(label) > 3 or int(label) > 255 or str(int(label)).encode() != label:
            break
        octets.append(int(label))
    return octets
