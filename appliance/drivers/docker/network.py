"""Docker's networks: where containers are attached, and the network that meshbox makes. Pure."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from appliance.drivers.docker.types import ICC, MANAGED
from appliance.model.facts import Attachment, DockerNetwork
from appliance.model.finding import Finding, warning

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from ipaddress import IPv4Address, IPv4Network, IPv6Address


def is_bridge(network: DockerNetwork | None) -> bool:
    """Return whether this is a network whose containers the host, and so the proxy, can reach."""
    return network is not None and network.driver == "bridge"


def bridge_address(network: DockerNetwork | None) -> IPv4Address | None:
    """Return the host's IPv4 address on a network, None where it has none."""
    gateways: Iterable[IPv4Address | IPv6Address] = network.gateways if network else ()
    for gateway in gateways:
        if gateway.version == 4:
            return gateway
    return None


def attach_by_name(names: Iterable[str], networks: Mapping[str, DockerNetwork]) -> tuple[Attachment, ...]:
    """Return the places on those of these networks that are bridges, without addresses."""
    known = [networks[name] for name in names if name in networks]
    return tuple(Attachment(network=n.name, address=None, gateway=bridge_address(n)) for n in known if is_bridge(n))


def attach_by_address(
    addresses: Iterable[IPv4Address], networks: Iterable[DockerNetwork]
) -> tuple[tuple[Attachment, ...], tuple[IPv4Address, ...]]:
    """Return the bridge networks that addresses of a namespace lie in, and the addresses that lie in no network."""
    known = tuple(networks)
    found: list[Attachment] = []
    foreign: list[IPv4Address] = []
    for address in addresses:
        network = next((n for n in known if any(address in s for s in n.subnets if s.version == 4)), None)
        if network is None:
            foreign.append(address)
        elif is_bridge(network):
            found.append(Attachment(network=network.name, address=address, gateway=bridge_address(network)))
    return tuple(found), tuple(foreign)


def creation_body(name: str, subnet: IPv4Network | None) -> dict[str, Any]:
    """Return the body of `POST /networks/create` for a bridge on which no container reaches another directly.

    Without `subnet` Docker chooses one that overlaps neither its other networks nor the host's routes.
    """
    body: dict[str, Any] = {
        "Name": name,
        "CheckDuplicate": True,
        "Driver": "bridge",
        "Options": {ICC: "false"},
        "Labels": {MANAGED: "true"},
    }
    if subnet is not None:
        body["IPAM"] = {"Driver": "default", "Config": [{"Subnet": str(subnet)}]}
    return body


def own_network(networks: Iterable[DockerNetwork], name: str) -> list[Finding]:
    """Check whether the network for deployed containers, if it is there, is as meshbox makes it."""
    network = next((n for n in networks if n.name == name), None)
    if network is None or (network.ours and network.apart):
        return []
    faults = [] if network.ours else ["was not made by meshbox, which will leave it behind"]
    faults += [] if network.apart else ["lets containers reach each other wherever no rules of theirs refuse it"]
    return [
        warning(
            "network",
            f'the Docker network "{name}" for deployed containers {", and ".join(faults)}',
            f"docker network rm {name}, and the next deploy makes it again; or name another one with docker_network",
        )
    ]
