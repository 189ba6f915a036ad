"""The appliance and Docker come and go; containers, addresses and rules stay."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import threading
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Self

import orjson
import pytest
from machine import IMAGE, MESHBOX, wait_until

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from machine import Machine

pytestmark = pytest.mark.system

SPEC = f"""
far = service("far", count=2, containers=[container("server", image="{IMAGE}", ports=[7000, "7000/udp", "80:7004"])])
"""


@pytest.fixture
def served(mesh: Machine) -> Machine:
    """A deployed service and a client with labels."""
    mesh.deploy(SPEC)
    mesh.run_container("client", IMAGE, service="near", container="client", connect_to="server.far")
    assert_answers(mesh)
    return mesh


def assert_answers(mesh: Machine, count: int = 10) -> None:
    """Check that the client reaches the service by name."""
    results = mesh.client("client", "tcp", "server.far", "7000", str(count))
    assert all(one.get("answer") for one in results), results


def picture(mesh: Machine) -> dict[str, Any]:
    """Return what must stay the same."""
    return {
        "address": mesh.client("client", "resolve", "server.far"),
        "ports": (mesh.proxy_ports("tcp"), mesh.proxy_ports("udp")),
        "containers": {name: mesh.inspect(name)["State"]["StartedAt"] for name in mesh.containers()},
    }


@contextmanager
def ready_at(path: Path, monkeypatch: pytest.MonkeyPatch, then: Callable[[], None]) -> Iterator[list[float]]:
    """Be the service manager of the appliance that is started meanwhile; note when it is ready, and do `then`."""
    times: list[float] = []
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(str(path))
        manager.settimeout(20)
        monkeypatch.setenv("NOTIFY_SOCKET", str(path))

        def listen() -> None:
            while b"READY=1" not in manager.recv(4096):
                pass
            times.append(time.monotonic())
            then()

        listener = threading.Thread(target=listen)
        listener.start()
        try:
            yield times
        finally:
            listener.join()
            monkeypatch.delenv("NOTIFY_SOCKET")


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_appliance_ends_and_starts(
    served: Machine, number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Same virtual addresses and ports, containers untouched; by name it is reached within 1 s of being ready."""
    before = picture(served)
    status = served.stop(number)
    assert status == (0 if number == signal.SIGTERM else -signal.SIGKILL)
    assert served.proxy_ports() == []
    (result,) = served.client("client", "tcp", before["address"]["addresses"][0], "7000", "1")
    assert result["error"] in {"ECONNREFUSED", "ECONNRESET"}
    # It begins to ask for the name then, and not before: the kernel refuses only the first few questions in a row to a
    # server that is not there (icmp_ratelimit in icmp(7)), and a resolver waits 5 s for the others.
    command = ("docker", "--host", f"unix://{served.socket}", "exec", "--interactive", "client", "python3")
    command += ("/srv/client.py", "until", "server.far", "7000", "30")
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as client:
        assert client.stdin is not None
        assert client.stdout is not None
        with ready_at(tmp_path / "notify", monkeypatch, client.stdin.close) as ready:
            served.start()
        first = orjson.loads(client.stdout.read())
    assert first["at"] - ready[0] < 1.0
    assert picture(served) == before


class Events:
    """Docker's events of a kind, as they come."""

    def __init__(self, mesh: Machine, kind: str) -> None:
        words = (f"--since={time.time()}", f"--filter=event={kind}", "--filter=type=container", "--format={{.ID}}")
        self._process = subprocess.Popen(
            ["docker", "--host", f"unix://{mesh.socket}", "events", *words], stdout=subprocess.PIPE, text=True
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.communicate()

    def next(self) -> str:
        """Wait for one and return the container's id."""
        assert self._process.stdout is not None
        return self._process.stdout.readline().strip()


FRESH = f"""
fresh = service("fresh", count=3, containers=[container("web", image="{IMAGE}", ports=[7000])])
"""


@pytest.mark.timeout(240)
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_appliance_ends_during_a_deploy(served: Machine, number: int) -> None:
    """The next start finishes it and knows the spec: it brings replicas back, takes another count, and removes it."""
    before = picture(served)
    path = served.root / "fresh.py"
    path.write_text(FRESH)
    command = ["nsenter", f"--net=/run/netns/{served.netns}", str(MESHBOX), "deploy", str(path)]
    with Events(served, "create") as created:
        deploy = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env={**os.environ, **served.settings})
        assert created.next()
        assert served.stop(number) == (0 if number == signal.SIGTERM else -number)
    (line,) = deploy.communicate()[1].splitlines()
    assert deploy.returncode == 1
    assert "meshbox " in line
    half_way = served.containers("label=meshbox.service=fresh", "status=running")
    assert len(half_way) < 3, "it was cut off too late for this test"
    served.start()
    wait_until(lambda: ready(served) == 3, "the deploy is finished", seconds=40)
    assert len(served.containers("label=meshbox.service=fresh")) == 3
    victim = served.containers("label=meshbox.service=fresh")[0]
    served.docker("rm", "--force", victim)
    wait_until(lambda: ready(served) == 3, "the replica is back", seconds=40)
    served.deploy(FRESH.replace("count=3", "count=1"))
    wait_until(lambda: len(served.containers("label=meshbox.service=fresh")) == 1, "one replica is left", seconds=40)
    served.meshbox("remove", "fresh")
    wait_until(lambda: picture(served) == before, "all is as it was", seconds=40)
    assert [path.name for path in (served.root / "state").iterdir() if path.suffix == ".new"] == []


def ready(mesh: Machine) -> int:
    """Return how many replicas of `fresh` are ready."""
    return sum(row["ready"] for row in mesh.show("workloads") if row["name"] == "web.fresh")


def test_sigterm_lets_connections_end(served: Machine) -> None:
    """A conversation that is under way when the appliance is told to end is carried to its end."""
    found: dict[str, Any] = {}
    length = 400 << 20
    load = threading.Thread(
        target=lambda: found.update(served.client("client", "get", "server.far", "80", str(length)))
    )
    load.start()
    wait_until(lambda: served.show("connections"), "the download is under way")
    assert served.stop() == 0
    load.join()
    assert found["length"] == length
    assert found["sha"] == found["wanted"]


def test_dockerd_restarts(served: Machine) -> None:
    """The appliance reconnects, and the containers that Docker starts again are in the mesh again."""
    address = served.client("client", "resolve", "server.far")
    served.stop_docker()
    served.start_docker()
    served.docker("start", "client")
    wait_until(
        lambda: len(served.containers("label=meshbox.service=far", "status=running")) == 2, "replicas", seconds=60
    )

    def healed() -> bool:
        return all("answer" in one for one in served.client("client", "tcp", "server.far", "7000", "5"))

    wait_until(healed, "the mesh works again", seconds=60)
    assert served.client("client", "resolve", "server.far") == address


def test_dockerd_restarts_while_the_appliance_is_away(served: Machine) -> None:
    """All namespaces are new when it comes back; it repairs what it finds."""
    served.stop(signal.SIGKILL)
    served.stop_docker()
    served.start_docker()
    served.docker("start", "client")
    served.start()
    wait_until(
        lambda: "answer" in served.client("client", "tcp", "server.far", "7000", "1")[0], "the mesh works", seconds=60
    )


def test_damaged_state_is_put_aside(served: Machine) -> None:
    """A state file that is no JSON is kept under another name and reported; labels keep containers and addresses."""
    before = picture(served)
    served.stop()
    path = served.root / "state" / "state.json"
    path.write_text("{ this is no")
    served.start()
    (told,) = [line for line in served.log(20).splitlines() if ".damaged-" in line]
    moved = served.root / "state" / orjson.loads(told)["moved_to"]
    assert moved.read_text() == "{ this is no"
    assert_answers(served)
    after = picture(served)
    assert (after["address"], after["containers"]) == (before["address"], before["containers"])
    moved.unlink()


def test_second_appliance_is_refused(served: Machine) -> None:
    """One line, exit status 1, and the first one goes on."""
    begin = time.monotonic()
    assert served.appliance is not None
    for settings in ({}, {"run_dir": str(served.root / "another"), "state_dir": str(served.root / "another")}):
        for command in ("run", "cleanup"):
            done = served.meshbox(command, check=False, **settings)
            assert done.returncode == 1
            assert len(done.stderr.strip().splitlines()) == 1
            assert f"another meshbox (pid {served.appliance.pid})" in done.stderr, begin
    assert_answers(served)
