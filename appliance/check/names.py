"""How names are resolved: those of the mesh by this host itself, and all others by the resolvers upstream."""

from __future__ import annotations

from ipaddress import IPv4Address
from typing import TYPE_CHECKING

from appliance.drivers.host.resolvconf import ResolverSettings, choose_server
from appliance.drivers.host.resolvers import RESOLV_CONF
from appliance.model.finding import Finding, failed, ok, warning

if TYPE_CHECKING:
    from collections.abc import Sequence

    from appliance.config.options import Config

DNS_PORT = 53
"""The only port that resolv.conf(5) knows."""


def host_names(config: Config) -> Finding:
    """Check how processes of this host resolve names of the mesh."""
    settings = ResolverSettings(resolv_conf=config.resolv_conf, vip_range=config.vip_range)
    server = choose_server(config.dns_listen)
    if not config.resolv_conf:
        return warning("host names", "no resolver file is changed", f"name {server} first in the host's resolv.conf")
    if config.dns_port != DNS_PORT and not settings.uses_resolved:
        return failed(
            "host names",
            f"{config.resolv_conf} can only name servers on port {DNS_PORT}, and dns_port is {config.dns_port}",
            f"set dns_port to {DNS_PORT}, or resolv_conf to nothing",
        )
    return ok("host names", f"{server} through {'systemd-resolved' if settings.uses_resolved else config.resolv_conf}")


def resolvers(found: Sequence[tuple[str, int]], *, doors: bool) -> Finding:
    """Check where questions about names outside the mesh go; with `doors` Docker's resolver is not in the way."""
    if not found:
        return warning(
            "resolvers", f"{RESOLV_CONF} names no IPv4 resolver", "names outside the mesh fail; set dns_upstreams"
        )
    servers = ", ".join(f"{address}:{port}" for address, port in found)
    if not doors and all(IPv4Address(address).is_loopback for address, _ in found):
        return warning(
            "resolvers",
            f"{servers}: only loopback",
            "containers on user-defined networks that meshbox did not create see no mesh names, since Docker asks for"
            ' them; put "dns": ["172.17.0.1"] into /etc/docker/daemon.json: any address that is not loopback will do,'
            " as the appliance answers for it; or set doors = true",
        )
    return ok("resolvers", servers)
