"""One slot among the workers, and the process that fills it at present."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
from time import monotonic
from typing import TYPE_CHECKING, Any

import structlog

from appliance.dataplane import api
from appliance.dataplane.workers.channel import Channel
from appliance.retry import Schedule

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable, Mapping, Sequence
    from io import FileIO
    from socket import SocketType

    from appliance.dataplane.api import Question
    from appliance.model.names import Destination
    from appliance.model.stats import ListenerStats

log = structlog.get_logger()

AGAIN = Schedule((0.0, 0.2, 0.5, 1.0, 2.0, 5.0))
"""Seconds until a worker that has ended is replaced."""
STEADY = 60.0
"""Seconds of life after which an end counts as the 1st again."""
END_SECONDS = 5.0
"""Seconds for a worker to end after its parent has closed the channel; then it is killed."""


class WorkerProcess:
    """A worker's slot."""

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        slot: int,
        command: Sequence[str],
        *,
        on_start: Callable[[WorkerProcess], None],
        on_message: Callable[[WorkerProcess, Any], None],
        on_exit: Callable[[WorkerProcess], None],
    ) -> None:
        """Call `on_start` for each new process, `on_message` with what it sends, `on_exit` if it ends by itself."""
        self._loop = loop
        self._command = tuple(command)
        self._on_start = on_start
        self._on_message = on_message
        self._on_exit = on_exit
        self.slot = slot
        self.asked: dict[int, Callable[[Any], None]] = {}
        """What to call with each answer, by number."""
        self.stats: dict[Destination, ListenerStats] = {}
        self.dns_stats: Mapping[str, int] = {}
        """What it reported last; the same for `stats`."""
        self._process: subprocess.Popen[bytes] | None = None
        self._channel: Channel | None = None
        self._watch = -1
        self._began = 0.0
        self._ends = 0
        self._again: asyncio.TimerHandle | None = None

    @property
    def pid(self) -> int | None:
        """Its process, None while there is none."""
        return self._process.pid if self._process is not None else None

    def start(self) -> None:
        """Start the process. Raises OSError."""
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            number = theirs.fileno()
            self._process = subprocess.Popen([*self._command, str(number)], pass_fds=[number], stdin=subprocess.DEVNULL)
            self._watch = os.pidfd_open(self._process.pid)
        except OSError:
            ours.close()
            raise
        finally:
            theirs.close()
        self._began = monotonic()
        self._loop.add_reader(self._watch, self._on_end)
        self._channel = Channel(
            self._loop, ours, take=lambda message, _: self._on_message(self, message), ended=lambda: None
        )
        self._on_start(self)

    def send(self, message: object, sockets: Sequence[SocketType | FileIO] = ()) -> None:
        """Send a message. If there is no process at present, `on_start` must tell the next one."""
        if self._channel is not None:
            self._channel.send(message, sockets)

    def remember(self, question: Question[Any], value: Any) -> None:
        """Keep the counters that it reported."""
        if question == api.STATS:
            self.stats = {stats.destination: stats for stats in value}
        elif question == api.DNS_STATS:
            self.dns_stats = value

    def close(self) -> None:
        """Let the process end; `finish` waits for that."""
        if self._again is not None:
            self._again.cancel()
        if self._channel is not None:
            self._channel.close()
            self._channel = None
        self._unwatch()

    def finish(self) -> None:
        """Wait until the process has ended after `close`, and kill it if it does not."""
        if self._process is None:
            return
        try:
            self._process.wait(END_SECONDS)
        except subprocess.TimeoutExpired:
            log.warning("a worker of the data plane does not end; killing it", pid=self._process.pid)
            self._process.kill()
            self._process.wait()
        self._process = None

    def _on_end(self) -> None:
        process, channel = self._process, self._channel
        if process is None or channel is None:
            return
        code = process.wait()
        self._unwatch()
        channel.close()
        self._process = self._channel = None
        self._ends = 1 if monotonic() - self._began > STEADY else self._ends + 1
        delay = AGAIN.after(self._ends)
        cause = f"exit status {code}" if code >= 0 else f"killed by {signal.Signals(-code).name}"
        log.warning(
            "a worker of the data plane ended, and its connections with it; starting another",
            worker=self.slot,
            pid=process.pid,
            cause=cause,
            seconds=delay,
        )
        self._on_exit(self)
        self._again = self._loop.call_later(delay, self._restart)

    def _restart(self) -> None:
        try:
            self.start()
        except OSError as error:
            log.warning("a worker of the data plane cannot be started; will try again", cause=str(error))
            self._again = self._loop.call_later(AGAIN[-1], self._restart)

    def _unwatch(self) -> None:
        if self._watch >= 0:
            self._loop.remove_reader(self._watch)
            os.close(self._watch)
            self._watch = -1
