"""The whole appliance with its data plane in two worker processes."""

from __future__ import annotations

import os
import signal
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from machine import IMAGE, wait_until

if TYPE_CHECKING:
    from machine import Machine

pytestmark = pytest.mark.system

SPEC = f"""
far = service("far", count=2, containers=[container("server", image="{IMAGE}", ports=[7000, "7000/udp", "80:7004"])])
"""


def workers(machine: Machine) -> list[int]:
    """Return the pids of the appliance's workers."""
    assert machine.appliance is not None
    children = Path(f"/proc/{machine.appliance.pid}/task").glob("*/children")
    pids = [int(pid) for path in children for pid in path.read_text().split()]
    return sorted(pid for pid in pids if b"appliance.app.worker" in Path(f"/proc/{pid}/cmdline").read_bytes())


@pytest.fixture
def served(idle: Machine) -> Machine:
    """A deployed service, a client with labels, and two workers between them."""
    idle.start(workers="2")
    idle.deploy(SPEC)
    idle.run_container("client", IMAGE, service="near", container="client", connect_to="server.far")
    assert_answers(idle)
    return idle


def assert_answers(mesh: Machine) -> None:
    """Check that the client reaches the service by name, over both protocols."""
    for protocol in ("tcp", "udp"):
        results = mesh.client("client", protocol, "server.far", "7000", "10")
        assert all(one.get("answer") for one in results), results


def counters(mesh: Machine) -> dict[str, Any]:
    """Return what `meshbox routes` has counted for the service over TCP."""
    (route,) = [one for one in mesh.show("routes") if one["destination"] == "server.far:7000/tcp"]
    return route


def test_killed_worker_is_replaced_under_load(served: Machine) -> None:
    """New connections are served, what was counted stays so; the log says once why it ended, metrics how often."""
    before = counters(served)["accepted"]
    assert served.metric("meshbox_workers_restarted_total") == 0
    found: list[Any] = []
    load = threading.Thread(target=lambda: found.extend(served.client("client", "tcp", "server.far", "7000", "3000")))
    load.start()
    for turn in (1, 2):
        pids = workers(served)
        assert len(pids) == 2
        os.kill(pids[0], signal.SIGKILL)
        wait_until(lambda pids=pids: len(workers(served)) == 2 and workers(served) != pids, "it is replaced")
        wait_until(lambda turn=turn: served.log().count("killed by SIGKILL") == turn, "its death is logged")
        assert served.metric("meshbox_workers_restarted_total") == turn
    load.join()
    errors = [one["error"] for one in found if "error" in one]
    assert len(found) == 3000
    assert "ECONNREFUSED" not in errors
    assert len(errors) <= 2, errors  # those that were in the hands of a worker when it died
    assert counters(served)["accepted"] >= before
    assert_answers(served)


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_appliance_with_workers_ends_and_starts(served: Machine, number: int) -> None:
    """No worker outlives it, and the next one has the same ports and works at once."""
    ports, pids = served.proxy_ports("tcp"), workers(served)
    status = served.stop(number)
    assert status == (0 if number == signal.SIGTERM else -signal.SIGKILL)
    wait_until(lambda: not any(Path(f"/proc/{pid}").exists() for pid in pids), "the workers have ended")
    assert served.proxy_ports() == []
    served.start(workers="2")
    assert_answers(served)
    assert served.proxy_ports("tcp") == ports


def test_rollout_drains_through_workers(served: Machine) -> None:
    """A download from a replica that is replaced is carried to its end, whichever worker has it."""
    found: dict[str, Any] = {}
    length = 200 << 20
    load = threading.Thread(
        target=lambda: found.update(served.client("client", "get", "server.far", "80", str(length)))
    )
    load.start()
    wait_until(lambda: served.show("connections"), "the download is under way")
    served.deploy(SPEC.replace("ports=[", 'env={"NEW": "1"}, ports=['))
    load.join()
    assert found["length"] == length
    assert found["sha"] == found["wanted"]
