"""What the Consul agent of this machine says of itself: where agents listen, who they are, whether strangers get in.

Any container that reaches these ports can become a member of the cluster, and a member may write everything that
appliances read. The host's rules keep containers out (nft/consul.nft); here is found out where. While the agent does
not say, or may not be asked, the ports that Consul has by default count.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from ipaddress import AddressValueError, IPv4Address
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import structlog
import trio

from appliance.drivers.consul.transport import ConsulError
from appliance.errors import InputError
from appliance.heartbeat import UNWATCHED
from appliance.model.facts import RegistryPorts
from appliance.model.names import Protocol, check_port

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from appliance.config.options import Consul as ConsulSettings
    from appliance.drivers.consul.api import ConsulApi
    from appliance.heartbeat import Heartbeat

log = structlog.get_logger()

PERIOD = 60.0
"""Seconds between questions to the agent. Its new members are guarded that late."""
AGAIN = 2.0
"""Seconds until it is asked again after it did not answer."""
MAX_MEMBERS = 4096
"""Members whose addresses are kept."""

_BOTH = (Protocol.TCP, Protocol.UDP)
_FIELDS: Mapping[str, tuple[tuple[str, tuple[Protocol, ...], int], ...]] = {
    "gossip": (("SerfPortLAN", _BOTH, 8301), ("SerfPortWAN", _BOTH, 8302)),
    "rpc": (("ServerPort", (Protocol.TCP,), 8300),),
    "grpc": (("GRPCPort", (Protocol.TCP,), 8502), ("GRPCTLSPort", (Protocol.TCP,), 8503)),
    "http": (("HTTPPort", (Protocol.TCP,), 8500), ("HTTPSPort", (Protocol.TCP,), 8501)),
    "dns": (("DNSPort", _BOTH, 8600),),
}
"""By word of the option `consul.refuse`: fields of `DebugConfig` in `/v1/agent/self`, with Consul's own default
(Consul's documentation, "Required ports")."""

ACLS = "Consul's ACLs do not deny by default: whoever reaches Consul may write there, and so is root on all machines"
ACLS_REMEDY = (
    'set acl { enabled = true, default_policy = "deny" } for all agents; see the page "Consul\'s access rules"'
)
GOSSIP = "Consul's gossip has no key: whoever reaches an agent's port may join the cluster"
GOSSIP_REMEDY = "set encrypt to the same key for all agents (consul keygen makes one)"


@dataclass(frozen=True, slots=True, kw_only=True)
class AgentFacts:
    """What an agent says. A question that it did not answer is None."""

    ports: Mapping[str, int | None] = field(default_factory=dict)
    """By field of `DebugConfig`; None where nothing listens."""
    address: IPv4Address | None = None
    denies: bool | None = None
    """Whether a request without a token is refused."""
    encrypted: bool | None = None
    """Whether only who has the key may gossip."""

    @property
    def complaints(self) -> tuple[tuple[str, str], ...]:
        """What lets strangers in, each with what to do."""
        found = ((self.denies, ACLS, ACLS_REMEDY), (self.encrypted, GOSSIP, GOSSIP_REMEDY))
        return tuple((words, remedy) for good, words, remedy in found if good is False)


def parse_agent(answer: Mapping[str, Any]) -> AgentFacts:
    """Read `/v1/agent/self`. What is missing there is not known; Consul promises nothing about most of it."""
    debug = _mapping(answer.get("DebugConfig"))
    acls = _mapping(debug.get("ACLResolverSettings"))  # from Consul 1.10 on
    policy = debug.get("ACLDefaultPolicy", acls.get("ACLDefaultPolicy"))
    enabled = debug.get("ACLsEnabled", acls.get("ACLsEnabled"))
    serf = _mapping(_mapping(answer.get("Stats")).get("serf_lan"))
    return AgentFacts(
        ports=dict(_ports(debug)),
        address=_address(_mapping(answer.get("Member")).get("Addr")),
        denies=None if enabled is None and policy is None else enabled is not False and policy == "deny",
        encrypted=None if "encrypted" not in serf else serf["encrypted"] == "true",
    )


def _ports(debug: Mapping[str, Any]) -> Iterator[tuple[str, int | None]]:
    for name, _, _ in (one for fields in _FIELDS.values() for one in fields):
        if isinstance(found := debug.get(name), int):
            try:
                yield name, check_port(found)
            except InputError:  # -1: nothing listens
                yield name, None


def parse_members(answer: object) -> frozenset[IPv4Address]:
    """Read the addresses in `/v1/agent/members`; one that cannot be read is passed over."""
    entries = answer if isinstance(answer, list) else []
    return frozenset(a for one in entries[:MAX_MEMBERS] if (a := _address(_mapping(one).get("Addr"))) is not None)


def refused_ports(refuse: frozenset[str | tuple[Protocol, int]], known: AgentFacts) -> frozenset[tuple[Protocol, int]]:
    """Return the ports that the option `consul.refuse` means, with the numbers that the agent says."""
    found: set[tuple[Protocol, int]] = set()
    for one in refuse:
        if not isinstance(one, str):
            found.add(one)
            continue
        for name, protocols, default in _FIELDS[one]:
            port = known.ports.get(name, None if known.ports else default)
            found |= {(protocol, port) for protocol in protocols if port is not None}
    return frozenset(found)


class Agent:
    """The agent, asked now and then."""

    def __init__(self, api: ConsulApi, settings: ConsulSettings, *, changed: Callable[[], None]) -> None:
        """Ask nothing yet. `changed` is called when `ports` has another value."""
        self._api = api
        self._refuse = settings.refuse
        self._changed = changed
        self._facts = AgentFacts()
        self._said: frozenset[str] = frozenset()
        self.asked = trio.Event()
        """Set once it was asked for the first time, whatever it said."""
        asked = _address(urlsplit(settings.address).hostname)
        self._asked = frozenset() if asked is None else frozenset({asked})
        self.ports = RegistryPorts(
            ports=refused_ports(self._refuse, self._facts), advertised=self._asked, exempt=settings.agents
        )
        """What the rules of this host are told."""

    async def run(
        self, beat: Heartbeat = UNWATCHED, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED
    ) -> None:
        """Ask until cancelled."""
        task_status.started()
        while True:
            pause = PERIOD
            try:
                await self._ask()
            except ConsulError as error:
                log.debug("the Consul agent does not say where it listens", cause=str(error))
                pause = PERIOD if error.refused else AGAIN
            self.asked.set()
            await beat.sleep(pause)

    async def _ask(self) -> None:
        self._facts = parse_agent(await self._api.agent())
        self._complain()
        advertised = self._asked | ({self._facts.address} if self._facts.address is not None else frozenset())
        self._take(replace(self.ports, ports=refused_ports(self._refuse, self._facts), advertised=advertised))
        self._take(replace(self.ports, hosts=parse_members(await self._api.members())))

    def _take(self, ports: RegistryPorts) -> None:
        if ports != self.ports:
            self.ports = ports
            self._changed()

    def _complain(self) -> None:
        """Say once what lets strangers in, and again when it has been mended and come back."""
        for words, remedy in self._facts.complaints:
            if words not in self._said:
                log.warning(words, remedy=remedy)
        self._said = frozenset(words for words, _ in self._facts.complaints)


def _mapping(value: object) -> Mapping[str, Any]:
    return value if isinstance(value, dict) else {}


def _address(text: object) -> IPv4Address | None:
    try:
        return IPv4Address(text) if isinstance(text, str) else None
    except AddressValueError:
        return None
