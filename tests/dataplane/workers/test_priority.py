"""What the process that carries traffic asks of the scheduler."""

from __future__ import annotations

import os
import threading

import pytest
from structlog.testing import capture_logs

from appliance.dataplane.workers import priority


def niceness() -> int:
    """Raise the priority of a thread; return the nice value that it has then."""
    told: list[int] = []

    def run() -> None:
        priority.raise_own()
        told.append(os.getpriority(os.PRIO_PROCESS, threading.get_native_id()))

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    return told[0]


def test_only_the_thread_that_asks_gets_it() -> None:
    """As far as the system grants it; nothing fails where it does not."""
    own = os.getpriority(os.PRIO_PROCESS, 0)
    assert niceness() in (own, priority.NICE)
    if os.geteuid() == 0:
        assert niceness() == priority.NICE
    assert os.getpriority(os.PRIO_PROCESS, 0) == own


def test_an_unknown_architecture_is_no_error(monkeypatch: pytest.MonkeyPatch) -> None:
    """The number of the system call is not known there."""
    monkeypatch.setattr(priority.platform, "machine", lambda: "vax")
    own = os.getpriority(os.PRIO_PROCESS, 0)
    with capture_logs() as logs:
        assert niceness() == own
    assert [(entry["log_level"], entry["machine"]) for entry in logs] == [("debug", "vax")]
