"""Deploying and removing again and again leaves nothing behind."""

from __future__ import annotations

import re
from collections import Counter
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from machine import IMAGE, wait_until

if TYPE_CHECKING:
    from collections.abc import Callable

    from machine import Machine

pytestmark = pytest.mark.system

ROUNDS = 50
WARM_UP = 5
SPEC = f"""
one = service("round", containers=[
    container("server", image="{IMAGE}", ports=[7000, "7000/udp"]),
    container("caller", image="{IMAGE}"),
])
"""
ALLOWANCE = 8 << 20
"""Bytes by which resident memory may differ: one more arena of the allocator."""
KEPT_CONNECTIONS = 4
"""Idle connections to Docker, kept for the next calls: from none to this many are open at any time."""


def namespaces(mesh: Machine) -> set[str]:
    """Return the namespaces that Docker keeps, without the one that stands for the host's own."""
    there = mesh.netns_dir.iterdir() if mesh.netns_dir.exists() else ()  # Docker makes it with the first container
    return {path.name for path in there if path.name != "default"}


def open_files(pid: int) -> Counter[str]:
    """Count a process's open files by what they are."""
    found = Counter[str]()
    for path in Path(f"/proc/{pid}/fd").iterdir():
        with suppress(FileNotFoundError):
            found[re.sub(r"\d+", "", str(path.readlink()))] += 1
    return found


def more_files(before: Counter[str], after: Counter[str]) -> Counter[str]:
    """Return what is open in addition, without connections that are kept on purpose."""
    return after - before - Counter({"socket:[]": KEPT_CONNECTIONS})


def holdings(mesh: Machine, stale: set[str]) -> dict[str, Any]:
    """Return everything that a round could leave behind; `stale` namespaces are those of earlier tests."""
    assert mesh.appliance is not None
    return {
        "containers": mesh.containers(),
        "networks": mesh.docker("network", "ls", "--format", "{{.Name}}").split(),
        "volumes": mesh.docker("volume", "ls", "--quiet"),
        "tcp": mesh.proxy_ports("tcp"),
        "udp": mesh.proxy_ports("udp"),
        "rules": mesh.exec("nft", "list", "ruleset").stdout.count("\n"),
        "routes": mesh.exec("ip", "route", "show", "table", "all").stdout,
        "links": len(mesh.exec("ip", "-brief", "link").stdout.splitlines()),
        "namespaces": namespaces(mesh) - stale,
        "processes": Path(f"/proc/{mesh.appliance.pid}/task/{mesh.appliance.pid}/children").read_text().count(" "),
    }


def at_rest(mesh: Machine, stale: set[str], idle: Callable[[dict[str, Any]], bool]) -> dict[str, Any]:
    """Return the holdings once the network is gone, they are `idle`, and nothing has moved for five looks."""
    wait_until(lambda: "meshbox" not in holdings(mesh, stale)["networks"], "the network is gone", seconds=40)
    seen: list[dict[str, Any]] = []

    def resting() -> bool:
        seen.append(holdings(mesh, stale))
        return idle(seen[-1]) and len(seen) > 5 and all(look == seen[-1] for look in seen[-5:])

    wait_until(resting, "the appliance rests", seconds=100, pause=1)
    return seen[-1]


def is_idle(held: dict[str, Any]) -> bool:
    """Whether Docker has cleared its old namespaces away (every minute), and the helper has ended for lack of work."""
    return not held["namespaces"] and not held["processes"]


def memory(mesh: Machine) -> int:
    """Return the appliance's resident memory in bytes."""
    assert mesh.appliance is not None
    lines = Path(f"/proc/{mesh.appliance.pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmRSS")) << 10


def one_round(mesh: Machine) -> None:
    """Deploy, use, remove, and wait until nothing of it is left."""
    mesh.deploy(SPEC)
    caller = mesh.containers("label=meshbox.container=caller")[0]
    (result,) = mesh.client(caller, "tcp", "server.round", "7000", "1")
    assert result.get("answer"), result
    (result,) = mesh.client(caller, "udp", "server.round", "7000", "1")
    assert result.get("answer"), result
    mesh.meshbox("remove", "round")
    wait_until(lambda: not mesh.containers(), "all containers are gone", seconds=30)


@pytest.mark.timeout(500)
def test_fifty_rounds_leave_nothing(idle: Machine) -> None:
    """No file, port, rule, route, link, network, volume or container is left over, and memory is flat."""
    stale = namespaces(idle)  # a dockerd that ended left them; the next one does not know them
    idle.start(drain="1")
    for _ in range(WARM_UP):
        one_round(idle)
    before, before_memory = at_rest(idle, stale, lambda held: not held["processes"]), memory(idle)
    before["namespaces"] = set()
    assert idle.appliance is not None
    before_files = open_files(idle.appliance.pid)
    for _ in range(ROUNDS - WARM_UP):
        one_round(idle)
    after = at_rest(idle, stale, is_idle)
    assert {key: (before[key], after[key]) for key in before if after[key] != before[key]} == {}
    assert more_files(before_files, open_files(idle.appliance.pid)) == {}
    grown = memory(idle) - before_memory
    print(f"resident memory {before_memory >> 20} MB, grown by {grown >> 10} KB in {ROUNDS - WARM_UP} rounds")  # noqa: T201
    assert grown < ALLOWANCE


def test_stopping_leaves_containers_and_no_host_rules(idle: Machine) -> None:
    """With no service left, stopping the appliance leaves the host as it was."""
    tables = idle.exec("nft", "list", "tables").stdout
    idle.start()
    one_round(idle)
    idle.stop()
    assert idle.exec("nft", "list", "tables").stdout == tables
