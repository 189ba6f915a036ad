"""Rules are in place and names work when a container's program begins, whatever Docker and the machine do meanwhile."""

from __future__ import annotations

import os
import signal
import subprocess
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING

import pytest
from lateengine import LateEngine
from machine import IMAGE, Machine, wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = pytest.mark.system

STARTS = 30
AT_ONCE = 10
IN_TIME = "meshbox_containers_before_first_instruction_total"
LATE = "meshbox_containers_after_first_instruction_total"

# bash begins within a few ms, dials what the mesh refuses, and then asks for a name
FIRST_ACTS = """
if (exec 3<>/dev/tcp/{own}/7000) 2>/dev/null; then direct=open; else direct=refused; fi
if exec 3<>/dev/tcp/server.far/7000 && read -r -t 10 -d ' ' line <&3; then name=found; else name=failed; fi
echo "$direct $name"
"""


@pytest.fixture(params=["prompt", "late"])
def storm(request: pytest.FixtureRequest, idle: Machine) -> Iterator[Machine]:
    """A machine whose server may be called, with the engine as it is and with one that answers late."""
    with ExitStack() as undo:
        undo.callback(idle.clear)
        settings = {}
        if request.param == "late":
            late = undo.enter_context(LateEngine(idle.root / "late.sock", idle.socket))
            settings["docker_socket"] = str(late.path)
        undo.callback(idle.stop)
        idle.start(**settings)
        idle.run_container("server", IMAGE, service="far", container="server", ports="7000")
        wait_until(lambda: all(row["ready"] for row in idle.show("workloads")), "the server is ready")
        yield idle
        if request.param == "late":
            assert late.slow > STARTS, "the engine answered late"


@contextmanager
def busy(cores: int) -> Iterator[None]:
    """Let something else keep cores busy."""
    with ExitStack() as undo:
        for _ in range(cores):
            loop = undo.enter_context(subprocess.Popen(["timeout", "120", "sh", "-c", "while :; do :; done"]))
            undo.callback(loop.terminate)
        yield


def test_first_acts_of_many_that_start_at_once(storm: Machine) -> None:
    """Ten at a time on the default bridge, beside two busy cores: all find a name, none gets to an own address."""
    script = FIRST_ACTS.format(own=storm.address_of("server"))
    mark = {"service": "near", "connect_to": "server.far"}
    counted = storm.metric(IN_TIME), storm.metric(LATE)

    def start(number: int) -> None:
        storm.run_container(f"storm{number}", IMAGE, "bash", "-c", script, container=f"storm{number}", **mark)

    with busy(len(os.sched_getaffinity(0))), ThreadPoolExecutor(AT_ONCE) as starting:
        list(starting.map(start, range(STARTS)))
        names = [f"storm{number}" for number in range(STARTS)]
        storm.docker("wait", *names)
    said = Counter(storm.docker("logs", name) for name in names)
    assert said == {"refused found": STARTS}, storm.log(60)
    wait_until(lambda: storm.metric(IN_TIME) + storm.metric(LATE) >= sum(counted) + STARTS, "all are counted")
    assert (storm.metric(IN_TIME), storm.metric(LATE)) == (counted[0] + STARTS, counted[1])


def test_what_was_late_does_not_count_as_in_time(mesh: Machine) -> None:
    """While the appliance stands still a program begins without rules; one that starts afterwards has them."""
    assert mesh.appliance is not None
    counted = mesh.metric(IN_TIME), mesh.metric(LATE)
    os.kill(mesh.appliance.pid, signal.SIGSTOP)
    try:
        mesh.run_container("late", IMAGE, service="near", container="late")
        mesh.docker("exec", "late", "true")
    finally:
        os.kill(mesh.appliance.pid, signal.SIGCONT)
    wait_until(lambda: mesh.metric(LATE) == counted[1] + 1, "it is late")
    mesh.run_container("early", IMAGE, service="near", container="early")
    wait_until(lambda: mesh.metric(IN_TIME) == counted[0] + 1, "it is in time")
    assert mesh.metric(LATE) == counted[1] + 1
