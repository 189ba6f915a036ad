"""Every part of the control plane fails and hangs, under traffic: nobody notices, and the part is back in time.

The parts are those that the appliance itself names, so one that is added is tried as well.
"""

from __future__ import annotations

import resource
import time
from typing import TYPE_CHECKING

import pytest
from cluster import Kept
from faultyworld import BACK, FOUND_OUT, Traffic
from machine import IMAGE, wait_until

if TYPE_CHECKING:
    from collections.abc import Callable

    from faultyworld import Faulty

pytestmark = pytest.mark.system


def test_a_part_that_raises_is_back_and_nobody_notices(
    faulty: Faulty, record_property: Callable[[str, object], None]
) -> None:
    """Each in turn, with an exception that nobody has foreseen; it is counted, and told with its traceback."""
    names = faulty.lasting()
    assert len(names) > 20
    late = {}
    with Traffic(faulty):
        for name in names:
            before = wait_until(faulty.parts, "the admin API answers")
            began = time.monotonic()
            faulty.tell("raise", name)
            wait_until(lambda name=name, before=before: faulty.back(before, name), f"{name} is back", pause=0.02)
            late[name] = time.monotonic() - began
            assert faulty.registered, name
    record_property("seconds until a part is back", sorted(late.values()))
    assert {name: seconds for name, seconds in late.items() if seconds > BACK} == {}
    log = faulty.machine.log()
    assert [name for name in names if f"RuntimeError: {name} was told to fail" not in log] == []
    assert "Traceback" in log
    check = faulty.machine.meshbox("check", check=False, consul="http://127.0.0.1:8500").stdout
    assert "deployer was told to fail" in check
    assert 'meshbox_part_restarts_total{part="reconciler"} ' in faulty.metrics()


def test_parts_that_hang_are_back_and_nobody_notices(
    faulty: Faulty, record_property: Callable[[str, object], None]
) -> None:
    """All at once: none needs another to be found out. A container that starts meanwhile gets what it should have."""
    machine, names, before = faulty.machine, faulty.lasting(), faulty.parts()
    with Traffic(faulty):
        began = time.monotonic()
        for name in names:
            faulty.tell("hang", name)
        machine.run_container("late", IMAGE, service="near", container="late", connect_to="server.pair")
        wait_until(lambda: faulty.back(before, *names), "all are back", seconds=40, pause=0.1)
        took = time.monotonic() - began
        record_property("seconds until all that hang are back", took)
        assert took <= FOUND_OUT + BACK
        assert faulty.registered
        wait_until(lambda: faulty.serves("late"), "the new one is served", seconds=10)
    machine.docker("rm", "--force", "late")
    wait_until(lambda: len(faulty.ask("workloads") or range(9)) == 3, "it is forgotten")


def test_without_a_descriptor_left_it_goes_on(faulty: Faulty) -> None:
    """What is open stays open; a container that starts meanwhile gets its rules once there are descriptors again."""
    machine = faulty.machine
    assert machine.appliance is not None
    pid = machine.appliance.pid
    with Kept(machine, "client", "server.pair", "7000", tcp=4, udp=1) as kept:
        soft, hard = resource.prlimit(pid, resource.RLIMIT_NOFILE)
        try:
            resource.prlimit(pid, resource.RLIMIT_NOFILE, (3, hard))
            machine.run_container("late", IMAGE, service="near", container="late", connect_to="server.pair")
            wait_until(lambda: "Too many open files" in machine.log(), "it has met the limit")
            assert machine.appliance.running
        finally:
            resource.prlimit(pid, resource.RLIMIT_NOFILE, (soft, hard))
        wait_until(lambda: faulty.serves("late"), "the new one is served", seconds=40)
    assert kept.broken() == []
    machine.docker("rm", "--force", "late")
