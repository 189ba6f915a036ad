"""Parts of the control plane at work in a test, where nothing watches them or starts them again."""

from __future__ import annotations

from typing import TYPE_CHECKING

import trio

from appliance.heartbeat import UNWATCHED

if TYPE_CHECKING:
    from appliance.drivers.registry import Registry
    from appliance.heartbeat import Part


async def run_together(
    parts: tuple[Part, ...], *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED
) -> None:
    """Run parts until cancelled, or until one fails. Started once all have, in their order."""
    async with trio.open_nursery() as nursery:
        for part in parts:
            await nursery.start(part.run, UNWATCHED)
        task_status.started()


async def run_registry(registry: Registry, *, task_status: trio.TaskStatus[None]) -> None:
    """Run a registry until cancelled, and close it then."""
    try:
        await run_together(registry.parts, task_status=task_status)
    finally:
        await registry.close()


async def run_again(
    part: Part,
    scopes: dict[str, trio.CancelScope],
    *,
    task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Run a part, and again whenever its scope in `scopes` is cancelled, as its supervisor does after a failure."""
    while True:
        with trio.CancelScope() as scopes[part.name]:
            await part.run(UNWATCHED, task_status=task_status)
        if not scopes[part.name].cancelled_caught:
            return
        task_status = trio.TASK_STATUS_IGNORED
