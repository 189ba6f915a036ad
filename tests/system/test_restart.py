"""The appliance and Docker come and go; containers, addresses and rules stay."""

from __future__ import annotations

import signal
import threading
import time
from typing import TYPE_CHECKING, Any

import pytest
from machine import IMAGE, wait_until

if TYPE_CHECKING:
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


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_appliance_ends_and_starts(served: Machine, number: int) -> None:
    """Same virtual addresses, same ports, containers untouched, and at once usable when it is ready again."""
    before = picture(served)
    status = served.stop(number)
    assert status == (0 if number == signal.SIGTERM else -signal.SIGKILL)
    assert served.proxy_ports() == []
    (result,) = served.client("client", "tcp", before["address"]["addresses"][0], "7000", "1")
    assert result["error"] in {"ECONNREFUSED", "ECONNRESET"}
    served.start()
    (result,) = served.client("client", "tcp", "server.far", "7000", "1")
    assert result.get("answer")
    assert result["ms"] < 1000
    assert picture(served) == before


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
    """A state file that is no JSON is kept under another name and reported; labels keep the containers in the mesh."""
    served.stop()
    state = served.root / "state"
    for path in state.glob("*.json"):
        path.write_text("{ this is no")
    served.start()
    assert "aside" in served.log(50) or "damaged" in served.log(50)
    assert len(list(state.iterdir())) >= 2
    assert_answers(served)


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
