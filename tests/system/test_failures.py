"""Replicas die and containers start; nobody who may connect notices, and nobody else gets a moment's chance."""

from __future__ import annotations

import re
import threading
import time
from collections import Counter
from datetime import datetime
from typing import TYPE_CHECKING, Any

import orjson
import pytest
from cluster import Kept
from machine import IMAGE, MESHBOX, Program, wait_until

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from machine import Machine

pytestmark = pytest.mark.system

PAIR = f"""
pair = service("pair", count=2, containers=[container("server", image="{IMAGE}", ports=[7000, "7000/udp"])])
"""
CLIENTS = 16
"""As many connect at once, and as many ask by UDP, each from a socket that it keeps."""


def under_load(mesh: Machine, act: Callable[[], None], seconds: int) -> tuple[dict[str, Any], dict[str, Any]]:
    """Let `client` connect to server.pair, and ask it by UDP, while `act` happens; return what it met."""
    met: dict[str, dict[str, Any]] = {}

    def load(verb: str) -> None:
        met[verb] = mesh.client("client", "crowd", verb, "server.pair", "7000", str(seconds), str(CLIENTS))

    loads = [threading.Thread(target=load, args=(verb,)) for verb in ("loop", "ask")]
    for one in loads:
        one.start()
    wait_until(lambda: opened(mesh) >= CLIENTS, "the load is there")
    act()
    for one in loads:
        one.join()
    for found in met.values():
        assert found["clients"] == CLIENTS
        assert sum(found["counts"]) > 100, found
    return met["loop"], met["ask"]


def opened(mesh: Machine) -> int:
    """Return how many connections to server.pair's replicas were opened so far, of the protocol with fewer."""
    routes = [row for row in mesh.show("routes") if row["destination"].startswith("server.pair:")]
    return min((sum(backend["opened"] for backend in row["backends"]) for row in routes), default=0)


def in_vain(mesh: Machine) -> int:
    """Return how many connections to server.pair no replica accepted so far."""
    routes = mesh.show("routes")
    (failed,) = [row["failed"] for row in routes if row["destination"] == "server.pair:7000/tcp"]
    return int(failed)


@pytest.fixture
def replicas(mesh: Machine) -> Machine:
    """Two replicas and a client that may reach them."""
    mesh.deploy(PAIR)
    mesh.run_container("client", IMAGE, service="near", container="client", connect_to="server.pair")
    return mesh


def death(mesh: Machine, container: str, begin: float) -> float:
    """Return when, on the monotonic clock, this container ended; where it is gone, when Docker told of it."""
    if container in mesh.docker("ps", "--all", "--quiet", "--no-trunc").split():
        ended = mesh.inspect(container)["State"]["FinishedAt"][:26].rstrip("Z")
        return datetime.fromisoformat(f"{ended}+00:00").timestamp() - time.time() + time.monotonic()
    words = (f"--since={begin}", f"--until={time.time()}", "--filter=event=die", "--format={{.TimeNano}}")
    return int(mesh.docker("events", *words)) / 1e9 - time.time() + time.monotonic()


@pytest.mark.parametrize("word", ["kill", "restart", "rm"])
def test_losing_a_replica_fails_no_new_connection(replicas: Machine, word: str) -> None:
    """What was in flight at that moment may be cut; what begins later works, by TCP and UDP; the replica comes back."""
    (name,) = replicas.containers("label=meshbox.replica=0", "label=meshbox.service=pair")
    victim = replicas.inspect(name)["Id"]
    arguments = {"kill": (), "restart": ("--time=0",), "rm": ("--force",)}[word]
    begin, before = time.time(), in_vain(replicas)
    tcp, udp = under_load(replicas, lambda: replicas.docker(word, *arguments, victim) and None, 6)
    died = death(replicas, victim, begin)
    assert in_vain(replicas) == before, "what dialled the dead one in that moment went on to the other one"
    assert [one for one in tcp["failures"] if one["begin"] > died] == []
    assert {one["error"] for one in tcp["failures"]} <= {"read ECONNRESET", "connect ECONNRESET"}, "cut in their midst"
    assert {one["error"] for one in udp["failures"]} <= {"timeout"}, "the one datagram that found out"
    for met in (tcp, udp):
        assert len(met["failures"]) <= CLIENTS, met["failures"]
        assert len(met["answers"]) >= 2

    def back() -> bool:
        names = replicas.containers("label=meshbox.replica=0", "label=meshbox.service=pair", "status=running")
        return bool(names)

    wait_until(back, "the replica runs again", seconds=40)

    def served() -> bool:
        answers = {one.get("answer") for one in replicas.client("client", "tcp", "server.pair", "7000", "40")}
        return len(answers - {None}) == 2

    wait_until(served, "both replicas answer again", seconds=40)


def test_count_goes_down_without_a_failure(replicas: Machine) -> None:
    """A replica that is taken away drains first."""
    for met in under_load(replicas, lambda: replicas.deploy(PAIR.replace("count=2", "count=1")) and None, 8):
        assert met["failures"] == []
    wait_until(lambda: len(replicas.containers("label=meshbox.service=pair")) == 1, "one replica is left", seconds=40)


def test_removal_tells_of_its_drain(replicas: Machine) -> None:
    """`meshbox remove` says how many connections it still waits for; these go on, and it ends when they have."""
    with Kept(replicas, "client", "server.pair", "7000", tcp=6) as kept:
        wait_until(lambda: len(replicas.show("connections")) == 6, "all are open")
        command = (MESHBOX, "remove", "pair")
        removing = Program(replicas.netns, command, replicas.root / "remove.log", replicas.settings)
        told, each = re.compile(r": draining (\d) connections?$", re.MULTILINE), sorted(Counter(kept.opened).values())
        wait_until(lambda: sorted(map(int, told.findall(removing.tail()))) == each, "it tells of all that are open")
        assert removing.running
    assert kept.broken() == []
    assert removing.stop(0) == 0
    assert removing.tail().splitlines()[-1] == "removed: pair"


def test_new_version_rolls_out_without_a_failure(replicas: Machine) -> None:
    """Every container is replaced under load, and no connection fails."""
    before = set(replicas.containers("label=meshbox.service=pair"))
    changed = PAIR.replace("ports=", "env={'VERSION': '2'}, ports=")
    for met in under_load(replicas, lambda: replicas.deploy(changed) and None, 12):
        assert met["failures"] == []

    def replaced() -> bool:
        now = set(replicas.containers("label=meshbox.service=pair"))
        return len(now) == 2 and not now & before

    wait_until(replaced, "two new containers and no former one", seconds=40)


def test_broken_version_leaves_the_former_one_serving(replicas: Machine) -> None:
    """A version that never listens is reported by deploy and takes nobody's place."""
    broken = PAIR.replace("ports=", "command=['sleep', '1000'], ports=")
    (replicas.root / "broken.py").write_text(broken)
    done = replicas.meshbox("deploy", replicas.root / "broken.py", "--timeout", "5", check=False)
    assert done.returncode == 1
    assert "7000" in done.stdout + done.stderr
    results = replicas.client("client", "tcp", "server.pair", "7000", "50")
    assert all(one.get("answer") for one in results)


STARTS = 5
"""Of each kind of container: the first one, and four restarts."""
MOST = 250
"""Milliseconds from the start event to the first connection, in the median; the 95th percentile is judged by bench/."""


@pytest.fixture
def quarters(mesh: Machine) -> Iterator[Machine]:
    """Services that may be reached and that may not, on the network `meshbox`, and two networks more."""
    mesh.deploy(
        f"""far = service("far", containers=[
            container(name, image="{IMAGE}", ports=[7000]) for name in ("open", "shut")])"""
    )
    mesh.run_container("neighbour", IMAGE)
    networks = ("quarter1", "quarter2")
    try:
        for network in networks:
            mesh.docker("network", "create", network)
        for network in (*networks, "meshbox"):
            mesh.docker("network", "connect", network, "neighbour")
        yield mesh
    finally:
        mesh.clear()
        mesh.docker("network", "rm", *networks)


def first_acts(mesh: Machine, command: Sequence[str], *networks: str) -> tuple[list[Any], list[float]]:
    """Start a container on these networks again and again; return what it met each time, and when it was started."""
    labels = [f"--label=meshbox.{word}" for word in ("service=near", "container=first", "connect_to=open.far")]
    begin = time.time()
    if networks == ("meshbox",):
        mesh.deploy(
            f"""near = service("near", containers=[
                container("first", image="{IMAGE}", command={list(command)}, connect_to=["open.far"])])""",
            "--detach",
        )
        (name,) = wait_until(lambda: mesh.containers("label=meshbox.service=near"), "it is created")
        wait_until(lambda: len(mesh.docker("logs", name).splitlines()) >= STARTS, "Docker restarted it", seconds=40)
    else:
        name = "first"
        mesh.docker("create", f"--name={name}", f"--network={networks[0]}", *labels, IMAGE, *command)
        for network in networks[1:]:
            mesh.docker("network", "connect", network, name)
        for _ in range(STARTS):
            mesh.docker("start", "--attach", name)
    said = [orjson.loads(line) for line in mesh.docker("logs", name).splitlines()[:STARTS]]
    words = (f"--since={begin}", f"--until={time.time()}", f"--filter=container={name}", "--filter=event=start")
    times = mesh.docker("events", *words, "--format={{.TimeNano}}").split()
    mesh.docker("rm", "--force", name)
    return said, [int(nanoseconds) / 1e9 for nanoseconds in times[:STARTS]]


def test_first_act_of_a_container(quarters: Machine, record_property: Callable[[str, object], None]) -> None:
    """Twenty starts and restarts, each with all dials first: only what was declared is ever reached, and always.

    By containers of others on the default bridge, on a network of their own and on several, and by deployed ones.
    """
    mesh = quarters
    vips = {c["name"]: c["vip"] for row in mesh.show("services") for c in row["containers"]}
    delays = []
    for networks in (("bridge",), ("quarter1",), ("quarter1", "quarter2"), ("meshbox",)):
        places = mesh.inspect("neighbour")["NetworkSettings"]["Networks"]
        expected = {
            "open.far": "connected",
            vips["shut.far"]: "refused",
            **{places[network]["IPAddress"]: "refused" for network in networks},
            "shut.far": "gaierror",
        }
        command = ["python3", "-I", "-S", "/srv/first.py", *(word for host in expected for word in (host, "7000"))]
        said, started = first_acts(mesh, command, *networks)
        assert len(said) == len(started) == STARTS
        for met, start in zip(said, started, strict=True):
            assert {host: result for host, result, _ in met} == expected, (networks, met)
            delays.extend(known - start for host, _, known in met if host == "open.far")
    delays.sort()
    figures = {"median_ms": round(delays[10] * 1000), "p95_ms": round(delays[18] * 1000)}
    record_property("start event to first connection", figures)
    assert figures["median_ms"] <= MOST, figures
