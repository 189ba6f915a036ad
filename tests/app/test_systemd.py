from __future__ import annotations

import os
import socket
from contextlib import contextmanager

import pytest
import trio
import trio.testing

from appliance.app.systemd import Notifier


@contextmanager
def manager(address):
    """A service manager's socket."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as receiver:
        receiver.bind(address)
        receiver.settimeout(5)
        yield receiver


def heard(receiver):
    """Return what has been said so far."""
    receiver.setblocking(False)
    found = []
    while True:
        try:
            found.append(receiver.recv(1000).decode())
        except BlockingIOError:
            return found


@pytest.mark.parametrize("abstract", [False, True])
def test_life_is_told(tmp_path, abstract):
    """Ready and stopping are one datagram each, on a socket in the file system or an abstract one ("@…")."""
    name = f"{tmp_path}/notify"
    with manager(f"\0{name}" if abstract else name) as receiver:
        notifier = Notifier({"NOTIFY_SOCKET": f"@{name}" if abstract else name})
        notifier.ready()
        notifier.stopping(10)
        assert heard(receiver) == ["READY=1", "STOPPING=1\nEXTEND_TIMEOUT_USEC=25000000"]


def test_signs_of_life_come_twice_as_often_as_they_must(tmp_path):
    """WATCHDOG=1 is said at once and then at half of WATCHDOG_USEC."""
    name = f"{tmp_path}/notify"
    clock = trio.testing.MockClock()

    async def live(notifier):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(notifier.watchdog)
            await trio.testing.wait_all_tasks_blocked()
            for _ in range(3):
                clock.jump(5.0)
                await trio.testing.wait_all_tasks_blocked()
            clock.jump(4.9)
            await trio.testing.wait_all_tasks_blocked()
            nursery.cancel_scope.cancel()

    with manager(name) as receiver:
        notifier = Notifier(
            {"NOTIFY_SOCKET": name, "WATCHDOG_USEC": "10000000", "WATCHDOG_PID": str(os.getpid())},
        )
        trio.run(live, notifier, clock=clock)
        assert heard(receiver) == ["WATCHDOG=1"] * 4


@pytest.mark.parametrize(
    "environment",
    [
        {},
        {"WATCHDOG_USEC": "10000000"},
        {"NOTIFY_SOCKET": "/run/x"},
        {"NOTIFY_SOCKET": "/run/x", "WATCHDOG_USEC": "0"},
        {"NOTIFY_SOCKET": "/run/x", "WATCHDOG_USEC": "10000000", "WATCHDOG_PID": "1"},
    ],
)
def test_no_watchdog_without_a_request(environment):
    """Where nobody waits for signs of life, or they are another process's to give, the task ends at once."""
    notifier = Notifier(environment)
    assert notifier.interval is None
    trio.run(notifier.watchdog)


def test_an_absent_manager_is_no_fault(tmp_path, capsys):
    """A socket that is not there, or none at all, stops nothing; the former is said."""
    Notifier({}).ready()
    assert capsys.readouterr() == ("", "")
    Notifier({"NOTIFY_SOCKET": f"{tmp_path}/nobody"}).ready()
    assert "cannot notify systemd" in "".join(capsys.readouterr())
