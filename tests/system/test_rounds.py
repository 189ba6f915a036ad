"""Deploying and removing again and again leaves nothing behind.

The command line runs in this process: a program of its own each time would take half of the test's time.
"""

from __future__ import annotations

import re
from collections import Counter
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from machine import IMAGE, wait_until

from appliance.cli import main

if TYPE_CHECKING:
    from machine import Machine

pytestmark = pytest.mark.system

ROUNDS = 50
WARM_UP = 10
SPEC = f"""
one = service("round", containers=[
    container("server", image="{IMAGE}", ports=[7000, "7000/udp"]),
    container("caller", image="{IMAGE}"),
])
"""
ALLOWANCE = 2 << 20
"""Bytes by which resident memory may differ after 40 rounds more: Python gets its memory in arenas of 1 MiB, and one
that still has an object in it stays. 50 KiB kept in each round would be seen."""
KEPT_CONNECTIONS = 4
"""Idle connections to Docker, kept for the next calls: from none to this many are open at any time."""


def namespaces(mesh: Machine) -> list[str]:
    """Return the namespaces that Docker holds; it removes the files of former ones once a minute."""
    places = [line.split()[1] for line in Path("/proc/self/mounts").read_text().splitlines()]
    return [place for place in places if place.startswith(f"{mesh.netns_dir}/") and not place.endswith("/default")]


def children(pid: int) -> Counter[str]:
    """Count a process's children: the helper around libnftables, which comes and goes as it is needed, and others."""
    found = Counter[str]()
    for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split():
        with suppress(FileNotFoundError):
            command = Path(f"/proc/{child}/cmdline").read_text()
            found["helper" if "nft.helper_main" in command else command.replace("\0", " ")] += 1
    return found


def open_files(pid: int) -> Counter[str]:
    """Count a process's open files by what they are, without the two pipes to its helper."""
    found = Counter[str]()
    for path in Path(f"/proc/{pid}/fd").iterdir():
        with suppress(FileNotFoundError):
            found[re.sub(r"\d+", "", str(path.readlink()))] += 1
    return found - Counter({"pipe:[]": 2 * children(pid)["helper"]})


def more_files(before: Counter[str], after: Counter[str]) -> Counter[str]:
    """Return what is open in addition, without connections that are kept on purpose."""
    return after - before - Counter({"socket:[]": KEPT_CONNECTIONS})


def holdings(mesh: Machine) -> dict[str, Any]:
    """Return everything that a round could leave behind."""
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
        "namespaces": namespaces(mesh),
        "processes": +(children(mesh.appliance.pid) - Counter(helper=1)),
    }


def at_rest(mesh: Machine) -> dict[str, Any]:
    """Return the holdings once the network is gone and nothing has moved for five looks."""
    wait_until(lambda: "meshbox" not in holdings(mesh)["networks"], "the network is gone", seconds=40)
    seen: list[dict[str, Any]] = []

    def resting() -> bool:
        seen.append(holdings(mesh))
        return len(seen) > 5 and all(look == seen[-1] for look in seen[-5:])

    wait_until(resting, "the appliance rests", seconds=100, pause=0.5)
    return seen[-1]


def memory(mesh: Machine) -> int:
    """Return the appliance's resident memory in bytes."""
    assert mesh.appliance is not None
    lines = Path(f"/proc/{mesh.appliance.pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmRSS")) << 10


def command(*words: str | Path) -> None:
    """Run the command line; where it finds the appliance is in the environment."""
    assert main([str(word) for word in words]) == 0


def one_round(mesh: Machine, spec: Path) -> None:
    """Deploy, use, remove, and wait until nothing of it is left."""
    command("deploy", spec)
    (caller,) = mesh.containers("label=meshbox.container=caller")
    results = mesh.client(caller, "dials", "tcp/server.round/7000/1", "udp/server.round/7000/1")
    assert all("answer" in result for (result,) in results.values()), results
    command("remove", "round")
    wait_until(lambda: not mesh.containers(), "all containers are gone", seconds=30)


@pytest.fixture
def spec(idle: Machine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The spec file, and the environment that the command line wants."""
    for key, value in idle.settings.items():
        monkeypatch.setenv(key, value)
    path = tmp_path / "round.py"
    path.write_text(SPEC)
    return path


@pytest.mark.timeout(500)
def test_fifty_rounds_leave_nothing(idle: Machine, spec: Path) -> None:
    """No file, port, rule, route, link, network, volume or container is left over, and memory is flat."""
    idle.start(drain="1")
    for _ in range(WARM_UP):
        one_round(idle, spec)
    before, before_memory = at_rest(idle), memory(idle)
    assert (before["containers"], before["namespaces"]) == ([], [])
    assert idle.appliance is not None
    before_files = open_files(idle.appliance.pid)
    for _ in range(ROUNDS - WARM_UP):
        one_round(idle, spec)
    after = at_rest(idle)
    assert {key: (before[key], after[key]) for key in before if after[key] != before[key]} == {}
    assert more_files(before_files, open_files(idle.appliance.pid)) == {}
    grown = memory(idle) - before_memory
    print(f"resident memory {before_memory >> 20} MB, grown by {grown >> 10} KB in {ROUNDS - WARM_UP} rounds")  # noqa: T201
    assert grown < ALLOWANCE


def test_stopping_leaves_containers_and_no_host_rules(idle: Machine, spec: Path) -> None:
    """With no service left, stopping the appliance leaves the host as it was."""
    tables = idle.exec("nft", "list", "tables").stdout
    idle.start()
    one_round(idle, spec)
    idle.stop()
    assert idle.exec("nft", "list", "tables").stdout == tables


def test_stopped_containers_of_others_hold_nothing_on_the_host(idle: Machine) -> None:
    """After `docker stop` and after `docker rm` the host is as it was; after `docker start` all is where it was.

    While somebody may still reach a stopped server, its listener says at once that nobody is there.
    """
    idle.start()
    assert idle.appliance is not None
    idle.run_container("bystander", IMAGE)  # Docker's bridge changes with its first container
    before = at_rest(idle)
    dockers_own = dict.fromkeys(("containers", "namespaces"))
    before_files = open_files(idle.appliance.pid)

    def as_before() -> bool:
        return {**holdings(idle), **dockers_own} == {**before, **dockers_own}

    def answered() -> bool:
        return all("answer" in result for (result,) in idle.client("caller", "dials", *dials).values())

    dials = ("tcp/server.gone/7000/1", "udp/server.gone/7000/1")
    idle.run_container("server", IMAGE, service="gone", container="server", ports="7000,7000/udp")
    idle.run_container("caller", IMAGE, service="near", container="caller", connect_to="server.gone")
    wait_until(answered, "the server answers")
    ports, address = (idle.proxy_ports("tcp"), idle.proxy_ports("udp")), idle.client("caller", "resolve", "server.gone")
    assert not as_before()
    idle.docker("stop", "--time=0", "server")
    ((refused,),) = idle.client("caller", "dials", dials[0]).values()
    assert refused["error"] in {"ECONNREFUSED", "ECONNRESET"}
    assert idle.client("caller", "resolve", "server.gone") == address
    idle.docker("stop", "--time=0", "caller")
    wait_until(as_before, "nothing of them is left on the host")
    idle.docker("start", "server", "caller")
    wait_until(answered, "the server answers again")
    assert (idle.proxy_ports("tcp"), idle.proxy_ports("udp")) == ports
    assert idle.client("caller", "resolve", "server.gone") == address
    idle.docker("rm", "--force", "server", "caller")
    wait_until(as_before, "nothing of them is left on the host")
    assert idle.containers() == ["bystander"]
    assert more_files(before_files, open_files(idle.appliance.pid)) == {}
