"""`meshbox run` whose parts fail or hang when they are told to: `python faultyappliance.py SOCKET SECONDS`.

A datagram at SOCKET is `raise` or `hang` and the name of a part, or `harm` and a number by which an await is chosen. No
part may show nothing for over SECONDS; queries and streams wait for a third of that. All else is the appliance as
it is.
"""

from __future__ import annotations

import random
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
            work = partial(_harm, int(name)) if word == "harm" else partial(TOLD[name].send_nowait, word)
            trio.from_thread.run_sync(work, trio_token=token)


def _harm(seed: int) -> None:
    """Let the await of some task of the control plane raise, or never return: that of any task but the main one."""
    chance = random.Random(seed)
    main = next(one for one in _below(trio.lowlevel.current_root_task()) if "guest" in one.name)
    tasks = [one for one in _below(main) if one is not main and one._abort_func is not None and not _rests(one)]
    if not tasks:  # all are about to run
        return
    task = chance.choice(tasks)
    at = [frame.f_code.co_name for frame, _ in task.iter_await_frames()]
    word = "throw" if "_nested_child_finished" in at else chance.choice(["throw", "freeze"])
    sys.stderr.write(f"{word}: {' '.join(at)}\n")
    if word == "throw":
        task._attempt_abort(_raise)
    elif task._abort_func(lambda: None) is trio.lowlevel.Abort.SUCCEEDED:
        task._abort_func = lambda _: trio.lowlevel.Abort.SUCCEEDED


def _raise() -> None:
    raise RuntimeError("this await was told to fail")


def _rests(task: trio.lowlevel.Task) -> bool:
    return any(frame.f_code.co_name in {"_rest", "hear"} for frame, _ in task.iter_await_frames())


def _below(task: trio.lowlevel.Task) -> list[trio.lowlevel.Task]:
    below = [one for nursery in task.child_nurseries for child in nursery.child_tasks for one in _below(child)]
    return [task, *below]


if __name__ == "__main__":
    parts.Supervisor = FaultySupervisor  # type: ignore[misc]
    api.WAIT = watch.WAIT = max(1, round(SECONDS / 3))  # type: ignore[misc]
    client.EVENTS_SILENCE = SECONDS / 3
    sys.exit(cli.main(["run"]))
