"""The slot of a worker: a process, and the next one when that ends. The processes here are no workers."""

from __future__ import annotations

import asyncio
import sys
from typing import TYPE_CHECKING, Any

import pytest
import uvloop
from structlog.testing import capture_logs

from appliance.dataplane import api
from appliance.dataplane.workers import process as module
from appliance.dataplane.workers.process import WorkerProcess
from appliance.retry import Schedule

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

DEADLINE = 20.0
READS = "import socket, sys; socket.socket(fileno=int(sys.argv[1])).recv(1)"
"""Ends when the other end closes."""
SAYS = """
import socket, sys
from appliance.dataplane.workers.channel import HEADER
import pickle
sock = socket.socket(fileno=int(sys.argv[1]))
body = pickle.dumps(["hello"])
sock.send(HEADER.pack(len(body), 0) + body)
sock.recv(1)
"""
STAYS = "import signal; signal.pause()"


class Slot:
    """A loop with one WorkerProcess, and what that reported."""

    def __init__(self, program: str) -> None:
        self.loop = uvloop.new_event_loop()
        self.started: list[int | None] = []
        self.said: list[Any] = []
        self.ended = 0
        self.worker = WorkerProcess(
            self.loop,
            3,
            [sys.executable, "-c", program],
            on_start=lambda worker: self.started.append(worker.pid),
            on_message=lambda _, message: self.said.append(message),
            on_exit=lambda _: setattr(self, "ended", self.ended + 1),
        )
        self.worker.start()

    def until(self, condition: Callable[[], object]) -> None:
        """Run the loop until the condition holds."""

        async def poll() -> None:
            while not condition():
                await asyncio.sleep(0.01)

        self.loop.run_until_complete(asyncio.wait_for(poll(), DEADLINE))

    def close(self) -> None:
        """End it."""
        self.worker.close()
        self.worker.finish()
        self.loop.close()


@pytest.fixture
def start() -> Iterator[Callable[[str], Slot]]:
    """Start a program in a slot; it has ended at the end."""
    made: list[Slot] = []

    def start(program: str) -> Slot:
        made.append(Slot(program))
        return made[-1]

    yield start
    for slot in made:
        slot.close()
        assert slot.worker.pid is None


def test_it_is_told_of_each_new_process_and_of_what_that_sends(start: Callable[[str], Slot]) -> None:
    """`on_start` comes before anything that the process may say."""
    slot = start(SAYS)
    assert slot.started == [slot.worker.pid]
    slot.until(lambda: slot.said)
    assert slot.said == [["hello"]]
    assert slot.ended == 0


def test_a_process_that_ends_is_replaced_after_a_growing_while(
    start: Callable[[str], Slot], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The log says why it ended, and when the next one comes."""
    monkeypatch.setattr(module, "AGAIN", Schedule((0.0, 0.02, 3600.0)))
    with capture_logs() as logs:
        slot = start("raise SystemExit(7)")
        slot.until(lambda: slot.ended == 3)
    assert len(set(slot.started)) == len(slot.started) == 3
    assert slot.worker.pid is None
    assert [(entry["worker"], entry["cause"], entry["seconds"]) for entry in logs] == [
        (3, "exit status 7", 0.0),
        (3, "exit status 7", 0.02),
        (3, "exit status 7", 3600.0),
    ]


def test_after_a_steady_life_an_end_is_the_first_again(
    start: Callable[[str], Slot], monkeypatch: pytest.MonkeyPatch
) -> None:
    """One that ran for long did not end because of how it began."""
    monkeypatch.setattr(module, "AGAIN", Schedule((0.0, 3600.0)))
    monkeypatch.setattr(module, "STEADY", 0.0)
    slot = start("import os, signal; os.kill(os.getpid(), signal.SIGKILL)")
    with capture_logs() as logs:
        slot.until(lambda: slot.ended >= 3)
    assert {(entry["cause"], entry["seconds"]) for entry in logs} == {("killed by SIGKILL", 0.0)}


def test_what_is_sent_while_there_is_none_is_for_the_next_ones_start(
    start: Callable[[str], Slot], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The next process is told everything anyway."""
    monkeypatch.setattr(module, "AGAIN", Schedule((3600.0,)))
    slot = start("")
    slot.until(lambda: slot.ended)
    slot.worker.send(["lost"])
    assert slot.worker.pid is None


def test_one_that_cannot_be_started_is_tried_again(
    start: Callable[[str], Slot], monkeypatch: pytest.MonkeyPatch
) -> None:
    """For want of memory or processes, for example; that is logged."""
    monkeypatch.setattr(module, "AGAIN", Schedule((0.0,)))
    slot = start(READS)
    command, slot.worker._command = slot.worker._command, ("/nowhere/python",)
    slot.worker._process.kill()
    with capture_logs() as logs:
        slot.until(lambda: any("cannot be started" in entry["event"] for entry in logs))
    slot.worker._command = command
    slot.until(lambda: len(slot.started) == 2)


def test_closing_ends_it_by_its_channel(start: Callable[[str], Slot]) -> None:
    """That is no death to report."""
    slot = start(READS)
    slot.worker.close()
    slot.worker.finish()
    assert (slot.worker.pid, slot.ended) == (None, 0)


def test_one_that_does_not_end_is_killed(start: Callable[[str], Slot], monkeypatch: pytest.MonkeyPatch) -> None:
    """After END_SECONDS."""
    monkeypatch.setattr(module, "END_SECONDS", 0.05)
    slot = start(STAYS)
    slot.worker.close()
    with capture_logs() as logs:
        slot.worker.finish()
    assert slot.worker.pid is None
    assert "killing it" in logs[0]["event"]


def test_only_counters_are_remembered(start: Callable[[str], Slot]) -> None:
    """They count on when the worker is gone."""
    slot = start(READS)
    slot.worker.remember(api.DNS_STATS, {"questions": 4})
    slot.worker.remember(api.LEFT, 5)
    slot.worker.remember(api.STATS, ())
    assert (slot.worker.dns_stats, slot.worker.stats) == ({"questions": 4}, {})
