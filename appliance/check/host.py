"""Whether this host is fit to run the appliance, and how to mend it: the order of all checks.

`meshbox check` makes them, and `meshbox run` before it starts. A check only looks: it changes nothing and leaves no
trace. Each file beside this one is about one subject.
"""

from __future__ import annotations

from ipaddress import IPv4Address
from typing import TYPE_CHECKING

from appliance.check import container, docker, files, firewall, gateway, kernel, names, ports, ranges, system
from appliance.drivers.docker.network import own_network
from appliance.drivers.host.resolvers import HostResolvers
from appliance.drivers.netns import addresses, identity
from appliance.model.finding import Finding, Level

if TYPE_CHECKING:
    from appliance.config.options import Config
    from appliance.model.facts import DockerNetwork


async def examine(config: Config, *, running: bool = False, open_files: int | None = None) -> tuple[Finding, ...]:
    """Make all checks. `running`: an appliance runs here, so that its own ports and lock are as they should be.

    `open_files` is its limit of open files, where it is not this process.
    """
    findings = [system.privileges(), kernel.nft(), *system.programs()]
    if all(finding.level is not Level.FAILED for finding in findings):
        findings.append(await kernel.rules(doors=config.doors))
    findings += [files.state(config), files.run_dir(config)]
    networks: tuple[DockerNetwork, ...] = ()
    if config.is_gateway:
        findings += gateway.gateway(config)
    else:
        answer = await docker.ask(config.docker_socket)
        networks = answer.networks
        findings.append(answer.finding)
        findings += container.host_network(networks, await addresses.read(identity.HOST) if networks else ())
        findings += own_network(networks, config.docker_network)
        findings += container.mounts(config)
        findings += docker.namespaces(config, answer.sandbox) or [await files.watch(config)]
        findings += kernel.sockets()
    findings += firewall.firewall(networks, config.dns_port, config.proxy_ports)
    routes = ranges.routes()
    findings.append(ranges.vip_range(config.vip_range, networks, routes))
    if not config.is_gateway:
        findings += ranges.docker_subnet(config, networks, routes)
    visitors = config.visitors(gateway=config.is_gateway)
    if not running:
        bridges = [g for n in networks for g in n.gateways if isinstance(g, IPv4Address)]
        findings.append(ports.dns_port(config.dns_port, [*bridges, *sorted(visitors.dns_listen)]))
        findings.append(ports.proxy_ports(*config.proxy_ports, taken=ports.listening_ports()))
    if visitors:
        findings += ports.dns_listen(visitors.dns_listen)
    if visitors.host is not None:
        findings.append(names.host_names(config))
    own = [(str(address), config.dns_port) for address in config.dns_listen]
    upstreams = HostResolvers(fixed=config.dns_upstreams, own=own)
    answered = names.resolvers(upstreams(), doors=config.doors)
    findings += [answered, system.open_files(open_files), *kernel.tracking(), system.clock()]
    return tuple(findings)
