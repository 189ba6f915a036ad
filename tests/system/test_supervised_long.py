"""Any await of the control plane fails, or never returns, amid whatever it is part of, and nobody notices."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

import pytest
from faultyworld import Traffic
from machine import IMAGE, wait_until

if TYPE_CHECKING:
    from faultyworld import Faulty

pytestmark = pytest.mark.system

NEVER = threading.Event()
TIMES = 600
"""How often some task is harmed."""
PAUSE = 0.06
"""Seconds between."""


def test_any_await_may_fail_or_hang(faulty: Faulty) -> None:
    """Of any task, while containers start and end; afterwards all parts are at work and all containers are served."""
    machine = faulty.machine
    machine.run_container("other", IMAGE, service="near", container="other", connect_to="server.pair")
    with Traffic(faulty):
        for seed in range(TIMES):
            faulty.tell("harm", str(seed))
            if not seed % 50:
                machine.docker("restart", "--time=0", "other")
            NEVER.wait(PAUSE)
        wait_until(faulty.well, "all parts are at work", seconds=60)
        wait_until(lambda: faulty.serves("other"), "it is served", seconds=40)
    machine.docker("rm", "--force", "other")
    wait_until(lambda: len(faulty.ask("workloads") or range(9)) == 3, "it is forgotten", seconds=40)
    assert faulty.registered
