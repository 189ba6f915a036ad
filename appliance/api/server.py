"""The admin API: HTTP with JSON on a unix socket that only root may use. The command line is its client.

Each connection is served by itself: whatever a client sends, or leaves unsent, ends that one connection at most.
"""

from __future__ import annotations

import logging
import os
import socket
from typing import TYPE_CHECKING

import structlog
import trio
from hypercorn.app_wrappers import ASGIWrapper
from hypercorn.config import Config as HypercornConfig
from hypercorn.trio.tcp_server import TCPServer
from hypercorn.trio.worker_context import WorkerContext
from hypercorn.typing import ConnectionState

from appliance.api.routes import application
from appliance.errors import HostError, cause
from appliance.heartbeat import UNWATCHED

if TYPE_CHECKING:
    from pathlib import Path

    from appliance.api.protocol import Appliance
    from appliance.faults import Faults
    from appliance.heartbeat import Heartbeat

log = structlog.get_logger()

PAUSE = 0.5
"""Seconds until the next attempt after accepting failed, as it does while no descriptor is left."""
BACKLOG = 100
"""Connections that wait to be accepted."""


async def serve(
    appliance: Appliance,
    path: Path,
    beat: Heartbeat = UNWATCHED,
    *,
    task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Serve the API on a socket at `path` until cancelled. Started once it accepts. Raises HostError."""
    server = _Server(appliance)
    with trio.socket.from_stdlib_socket(_listening(path)) as listening:
        try:
            task_status.started()
            await server.accept(listening, beat)
        finally:
            path.unlink(missing_ok=True)  # noqa: ASYNC240 — one system call at the end of a life


class _Server:
    """The connections of one admin socket."""

    def __init__(self, appliance: Appliance) -> None:
        self._faults: Faults = appliance.faults
        self._settings = HypercornConfig()
        self._settings.accesslog = None
        self._settings.errorlog = logging.getLogger("hypercorn")  # see logs.configure
        self._application = ASGIWrapper(application(appliance))  # type: ignore[arg-type] # each has its own types of ASGI
        self._context = WorkerContext(None)
        self._open: set[trio.SocketStream] = set()

    async def accept(self, listening: trio.socket.SocketType, beat: Heartbeat) -> None:
        """Serve all that connect, until cancelled."""
        async with trio.open_nursery() as nursery:
            try:
                while True:
                    try:
                        connection, _ = await beat.until(listening.accept)
                    except OSError as error:
                        self._faults.report(
                            "admin accept", "the admin API accepts no connection; will try again", error
                        )
                        await beat.sleep(PAUSE)
                        continue
                    self._faults.over("admin accept")
                    nursery.start_soon(self._converse, trio.SocketStream(connection))
            finally:
                for stream in self._open:  # hypercorn shields what it sends, also to a client that does not read
                    stream.socket.close()

    async def _converse(self, stream: trio.SocketStream) -> None:
        """Serve one connection. Whatever happens to it is its own problem."""
        self._open.add(stream)
        try:
            await TCPServer(self._application, self._settings, self._context, ConnectionState({}), stream)  # type: ignore[arg-type]
        except* trio.BusyResourceError:
            pass  # the client has gone while it was being answered
        except* Exception as error:
            self._faults.total += 1
            log.warning("a connection to the admin API has failed", cause=cause(error), exc_info=error)
        finally:
            self._open.discard(stream)
            stream.socket.close()


def _listening(path: Path) -> socket.socket:
    """Listen so that nobody else can connect, not even for a moment."""
    listening = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    before = os.umask(0o177)
    try:
        path.unlink(missing_ok=True)
        listening.bind(str(path))
        listening.listen(BACKLOG)
    except OSError as error:
        listening.close()
        raise HostError(f"cannot make the admin socket {path}: {error.strerror}") from error
    finally:
        os.umask(before)
    return listening
