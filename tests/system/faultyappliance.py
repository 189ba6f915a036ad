"""`meshbox run` whose parts fail or hang when they are told to: `python faultyappliance.py SOCKET SECONDS`.

A datagram at SOCKET is a word, `raise` or `hang`, and the name of a part. No part may show nothing for over SECONDS;
queries and streams wait for a third of that. Everything else is the appliance as it is.
"""

from __future__ import annotations

import socket
import sys
import threading
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING

import trio

from appliance import cli
from appliance.app import parts
from appliance.control.supervisor import Supervisor
from appliance.drivers.consul import api, watch
from appliance.drivers.docker import client

if TYPE_CHECKING:
    from appliance.heartbeat import Heartbeat, Part

PLACE, SECONDS = sys.argv[1], float(sys.argv[2])
TOLD: dict[str, trio.MemorySendChannel[str]] = {}


class FaultySupervisor(Supervisor):
    """Tells parts what they are told at the socket."""

    async def keep(self, part: Part, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Keep a part that may be told to fail."""
        if not TOLD:
            threading.Thread(target=_listen, args=(trio.lowlevel.current_trio_token(),), daemon=True).start()
        TOLD[part.name], told = trio.open_memory_channel[str](1)
        run = partial(_run, part, told)
        await super().keep(
            replace(part, run=run, silence=min(part.silence, SECONDS)),  # type: ignore[arg-type]
            task_status=task_status,
        )


async def _run(
    part: Part, told: trio.MemoryReceiveChannel[str], beat: Heartbeat, *, task_status: trio.TaskStatus[None]
) -> None:
    """Do what the part does, until it is told something else."""
    words: list[str] = []
    async with trio.open_nursery() as nursery:

        async def hear() -> None:
            words.append(await told.receive())
            nursery.cancel_scope.cancel()

        nursery.start_soon(hear)
        await part.run(beat, task_status=task_status)
        nursery.cancel_scope.cancel()
    if words == ["raise"]:
        raise RuntimeError(f"{part.name} was told to fail")
    if words == ["hang"]:
        await trio.sleep_forever()


def _listen(token: trio.lowlevel.TrioToken) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as heard:
        heard.bind(PLACE)
        while True:
            word, _, name = heard.recv(1000).decode().partition(" ")
            trio.from_thread.run_sync(TOLD[name].send_nowait, word, trio_token=token)


if __name__ == "__main__":
    parts.Supervisor = FaultySupervisor  # type: ignore[misc]
    api.WAIT = watch.WAIT = max(1, round(SECONDS / 3))  # type: ignore[misc]
    client.EVENTS_SILENCE = SECONDS / 3
    sys.exit(cli.main(["run"]))
