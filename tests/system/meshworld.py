"""One service on all machines of a cluster, and what can be seen of it."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

import orjson
from machine import IMAGE, wait_until

if TYPE_CHECKING:
    from cluster import Cluster, Member

TRIO = f"""
trio = service("trio", count=3, containers=[container("server", image="{IMAGE}", ports=[7000, "7000/udp"])])
"""
WHERE = ("server.trio", "7000")
MANY = tuple(f"server.zone{number:02}" for number in range(70))
"""Names that nothing serves: with them a machine has more services of interest than it may have queries."""
SLACK = 3.0
"""Seconds beyond the TTL in which what Consul has found is carried out: its own spreading and a pass of the loop."""
STAYS = "--restart=unless-stopped"
REACH = "server.trio,server.late,server.uneven,server.pinned"


def populate(cluster: Cluster) -> None:
    """Put a replica of `trio` on each machine, a client that may reach it and more, and one that may reach nothing."""
    one = cluster.machines[0]
    one.deploy(TRIO)
    for machine in cluster:
        reach = ",".join((REACH, *MANY)) if machine is one else REACH
        if not machine.containers("name=^client$"):
            machine.run_container(
                "client", IMAGE, options=(STAYS,), service="near", container="client", connect_to=reach
            )
        if not machine.containers("name=^stranger$"):
            machine.run_container("stranger", IMAGE, options=(STAYS,), service="far", container="stranger")
    wait_until(lambda: spread(cluster) == [1] * len(cluster.machines), "one replica on each machine", seconds=40)
    replicas = names(*cluster)
    wait_until(lambda: heard(one).keys() == replicas, "all answer, and nobody else", seconds=40)


def spread(cluster: Cluster) -> list[int]:
    """Return how many replicas of `trio` run on each machine that has power."""
    return [
        len(machine.containers("label=meshbox.service=trio", "status=running"))
        for machine in cluster
        if machine.appliance is not None
    ]


def heard(machine: Member, count: int = 30, client: str = "client", host: str = "server.trio") -> Counter[str]:
    """Return who answers how many of so many connections; failures count by their names."""
    return Counter(one.get("answer") or one["error"] for one in machine.client(client, "tcp", host, "7000", str(count)))


def names(*machines: Member, service: str = "trio") -> set[str]:
    """Return what the replicas that run on these machines answer with."""
    filters = (f"--filter=label=meshbox.service={service}", "--filter=status=running")
    return {name for machine in machines for name in machine.docker("ps", "--format={{.ID}}", *filters).split()}


def name_of(machine: Member) -> str:
    """Return what the replica on this machine answers with."""
    (name,) = names(machine)
    return name


def agreed(cluster: Cluster) -> bool:
    """Whether every machine knows all machines, the others with what they serve, and holds nothing."""
    for machine in cluster:
        found = machine.peers
        serving = {one["node"] for one in found["machines"] if "server.trio:7000/tcp" in one["destinations"]}
        others = {other.node for other in cluster if other is not machine}
        if not others <= serving or found["held_since"] is not None:
            return False
    return cluster.complete()


def wait_until_agreed(cluster: Cluster, seconds: float = 40.0) -> None:
    """Wait until they do. Raises AssertionError with what each of them believes."""
    try:
        wait_until(lambda: agreed(cluster), "they agree", seconds=seconds)
    except AssertionError as error:
        raise AssertionError("\n".join([str(error), *(f"{one.node}: {one.peers}" for one in cluster)])) from None


def peers(machine: Member) -> set[str]:
    """Return the other machines that the host's own table lets to the proxy."""
    found = orjson.loads(machine.exec("nft", "--json", "list", "set", "inet", "meshbox", "peers").stdout)
    return {address for one in found["nftables"] if "set" in one for address in one["set"].get("elem", ())}


def allowed(machine: Member) -> set[str]:
    """Return the other machines that the proxy itself lets in, wherever it serves something."""
    return {address for row in machine.ask("routes") for address in row["peers"]}


def routes(machine: Member) -> str:
    """Return all that is said of where connections go."""
    return str(machine.ask("routes"))
