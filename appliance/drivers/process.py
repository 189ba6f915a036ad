"""Short-lived programs: fed, waited for with a deadline, and never left behind."""

from __future__ import annotations

import os
import subprocess
from typing import TYPE_CHECKING, NamedTuple

import trio

from appliance.errors import HostError, RetryError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

_KEPT = 64 * 1024 * 1024
"""Most octets of output that are kept; a namespace with 10,000 routes lists as 1 MB."""


class Finished(NamedTuple):
    """What a program left: its exit code, its output, and its standard error without the ends' white space."""

    code: int
    output: str
    error: str


async def run(
    command: Sequence[str],
    *,
    stdin: bytes = b"",
    timeout: float,  # noqa: ASYNC109 — a limit of the program's, told in the error
    began: Callable[[int], object] | None = None,
) -> Finished:
    """Run a program with `stdin` and return what it left. `began` gets its process id before it gets its input.

    Raises HostError when it is not installed, RetryError when it cannot be started, or has not ended after `timeout`
    seconds (it is killed).
    """
    env = {**os.environ, "LC_ALL": "C"}
    try:
        process = await trio.lowlevel.open_process(
            list(command), stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=env
        )
    except FileNotFoundError:
        raise HostError(
            f"{command[0]} is not installed; apt-get install {_PACKAGES.get(command[0], command[0])}"
        ) from None
    except OSError as refusal:
        raise RetryError(f"cannot start {command[0]}: {refusal.strerror}") from refusal
    if began is not None:
        began(process.pid)
    output, error = bytearray(), bytearray()
    try:
        with trio.move_on_after(timeout) as limit:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(_feed, process.stdin, stdin)
                nursery.start_soon(_collect, process.stdout, output)
                nursery.start_soon(_collect, process.stderr, error)
            await process.wait()
    finally:
        if process.returncode is None:
            process.kill()
            with trio.CancelScope(shield=True):
                await process.wait()
    if limit.cancelled_caught:
        raise RetryError(f"{' '.join(command)} did not end within {timeout:g} s")
    return Finished(process.returncode or 0, output.decode(errors="replace"), error.decode(errors="replace").strip())


_PACKAGES = {"nsenter": "util-linux", "ip": "iproute2", "nft": "nftables"}


async def _feed(stream: trio.abc.SendStream | None, data: bytes) -> None:
    assert stream is not None  # noqa: S101 — asked for as a pipe
    async with stream:
        try:
            await stream.send_all(data)
        except trio.BrokenResourceError:
            return  # it ended without reading everything; its exit code and standard error say why


async def _collect(stream: trio.abc.ReceiveStream | None, into: bytearray) -> None:
    assert stream is not None  # noqa: S101 — asked for as a pipe
    async with stream:
        async for chunk in stream:
            if len(into) < _KEPT:
                into += chunk
