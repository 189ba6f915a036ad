"""The admin API: HTTP with JSON on a unix socket that only root may use. The command line is its client."""

from __future__ import annotations

import logging
import os
import socket
from typing import TYPE_CHECKING, Any

import trio
from hypercorn.config import Config as HypercornConfig
from hypercorn.trio import serve as hypercorn_serve

from appliance.api.routes import application
from appliance.errors import HostError

if TYPE_CHECKING:
    from pathlib import Path

    from appliance.api.protocol import Appliance


async def serve(
    appliance: Appliance, path: Path, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED
) -> None:
    """Serve the API on a socket at `path` until cancelled. Started once it accepts. Raises HostError."""
    settings = HypercornConfig()
    settings.bind = [f"fd://{_listening(path).detach()}"]
    settings.accesslog = None
    settings.errorlog = logging.getLogger("hypercorn")  # see logs.configure
    settings.graceful_timeout = 1.0
    try:
        async with trio.open_nursery() as nursery:
            await nursery.start(_serve, application(appliance), settings)
            task_status.started()
    finally:
        path.unlink(missing_ok=True)  # noqa: ASYNC240 — one system call at the end of a life


async def _serve(app: Any, settings: HypercornConfig, *, task_status: trio.TaskStatus[list[str]]) -> None:
    await hypercorn_serve(app, settings, shutdown_trigger=trio.sleep_forever, task_status=task_status)


def _listening(path: Path) -> socket.socket:
    """Bind the socket so that nobody else can connect, not even for a moment."""
    listening = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    before = os.umask(0o177)
    try:
        path.unlink(missing_ok=True)
        listening.bind(str(path))
    except OSError as error:
        listening.close()
        raise HostError(f"cannot make the admin socket {path}: {error.strerror}") from error
    finally:
        os.umask(before)
    return listening
