"""A machine without Docker, which serves as a gateway: whom it serves, and what adds the rest."""

from __future__ import annotations

from typing import TYPE_CHECKING

from appliance import image
from appliance.check.container import NO_HOST_NETWORK, has_own_network
from appliance.model.finding import Finding, ok, warning

if TYPE_CHECKING:
    from appliance.config.options import Config


def gateway(config: Config) -> list[Finding]:
    """Say what a machine without Docker serves, with which Consul, and which options add the rest."""
    serves = "DNS and proxy for this host and its guests"
    another = ""
    if config.registry == "consul":
        serves += f", for every name in Consul at {config.consul.address}"
        another = "; for another Consul, -e MESHBOX_CONSUL=http://ADDRESS:8500"
    if config.gateway == "yes":
        found = [ok("Docker", f'not asked, since gateway is "yes": {serves}')]
    else:
        found = [
            warning(
                "Docker",
                f"there is no {config.docker_socket}, so this is a gateway: {serves}",
                f"for its containers too, add {image.RUN_OPTIONS}{another}",
            )
        ]
    if config.registry == "local":
        found.append(
            warning(
                "registry",
                "without Docker and with registry = local there is nothing to serve",
                "name a Consul, -e MESHBOX_CONSUL=http://127.0.0.1:8500",
            )
        )
    if not config.guests and has_own_network():
        found.append(NO_HOST_NETWORK)
    return found
