"""The supervisor of the helper process around libnftables (helper_main.py): starts it, feeds it, and lets it end."""

from __future__ import annotations

import subprocess
import sys
from typing import TYPE_CHECKING, Any

import orjson
import structlog
import trio

from appliance.drivers.nft.commits import OWN, refused
from appliance.drivers.nft.helper_main import LENGTH, frame
from appliance.errors import HostError, RetryError
from appliance.heartbeat import UNWATCHED
from appliance.retry import Schedule

if TYPE_CHECKING:
    from appliance.heartbeat import Heartbeat

log = structlog.get_logger()

TIMEOUT = 10.0
"""Seconds that one transaction may take; 10,000 routes take 0.15."""

IDLE = 30.0
"""Seconds without a command after which the helper is ended until the next one: it holds 17 MB and starts in 0.1 s."""

HELPER = (sys.executable, "-P", "-m", "appliance.drivers.nft.helper_main")
"""The command that starts the helper. Never from the working directory (-P): its owner would be root here."""

RESTART = Schedule((0.1, 0.5, 2.0, 5.0))
"""Seconds until the helper is started again, by the number of its deaths since a command went through."""


class NftHelper:
    """Text commands, carried out one after another by a helper process."""

    def __init__(self, *, timeout: float = TIMEOUT, idle: float = IDLE) -> None:
        self._timeout = timeout
        self._idle = idle
        self._turn = trio.Lock()
        self._process: trio.Process | None = None
        self._used = 0.0
        """When the last command began or ended, on Trio's clock."""
        self._awake = trio.Event()
        """Set while a helper runs, or should."""
        self._started = trio.Event()
        self._fault: str | None = None
        """Why libnftables cannot be used, in the helper's words."""
        self._deaths = 0
        self.restarts = 0
        """How often the helper has died and was started again."""

    async def run(
        self, beat: Heartbeat = UNWATCHED, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED
    ) -> None:
        """Keep the helper running while it is used. Started once it works, or has said why it cannot."""
        while True:
            self._awake.set()
            try:
                idle = await self._serve(beat, task_status)
            finally:
                self._process = None
            task_status = trio.TASK_STATUS_IGNORED
            if idle:
                await beat.wait(self._awake)
                continue
            self._deaths += 1
            pause = RESTART.after(self._deaths)
            self.restarts += 1
            log.warning("the helper around libnftables has died; starting it again", seconds=pause)
            await beat.sleep(pause)

    async def _serve(self, beat: Heartbeat, task_status: trio.TaskStatus[None]) -> bool:
        """Start a helper and wait until it has ended (False) or was idle for long enough (True). Raises HostError."""
        try:
            process = await trio.lowlevel.open_process(HELPER, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        except OSError as error:
            raise HostError(f"cannot start the helper around libnftables: {error.strerror}") from error
        OWN.add(process.pid)
        try:
            greeting = await _receive(process)
            self._fault = None if greeting is None else greeting["fault"]
            self._process = process
            self._used = trio.current_time()
            self._started.set()
            task_status.started()
            while not self._is_idle():
                end = max(self._used, trio.current_time() - self._idle / 2) + self._idle
                with trio.move_on_at(min(end, beat.slice_end(trio.current_time()))):
                    await process.wait()
                    return False
                beat()
            self._awake = trio.Event()
            return True
        finally:
            self._started = trio.Event()
            with trio.CancelScope(shield=True):
                await _kill(process)

    @property
    def pid(self) -> int | None:
        """Return the process id of the helper that a command would find; None if there is none that works."""
        if self._process is None or self._fault is not None or not self._awake.is_set():
            return None
        return self._process.pid

    def _is_idle(self) -> bool:
        return not self._turn.locked() and trio.current_time() >= self._used + self._idle

    async def command(self, text: str, netns_path: str | None = None) -> str:
        """Carry out a transaction and return what it prints; an empty one is nothing to do.

        In the host's namespace, or in another one that has a path. Raises RetryError with nft's own message, or when
        the helper has died or hangs; HostError when the binding or the library is missing.
        """
        return await self._ask(text, netns_path, dry=False) if text else ""

    async def dry_run(self, text: str) -> None:
        """Let nft and the kernel check a transaction, not apply it, in the host's namespace. Raises as `command`."""
        await self._ask(text, None, dry=True)

    async def _ask(self, text: str, netns_path: str | None, *, dry: bool) -> str:
        async with self._turn:
            if not self._awake.is_set():
                self._awake.set()
                with trio.move_on_after(self._timeout):
                    await self._started.wait()
            process = self._process
            if self._fault is not None:
                raise HostError(self._fault)
            if process is None or process.stdin is None:
                raise RetryError("the helper around libnftables is being started again")
            OWN.add(process.pid)
            answer = None
            try:
                with trio.move_on_after(self._timeout):
                    await process.stdin.send_all(frame({"text": text, "dry": dry, "netns": netns_path}))
                    answer = await _receive(process)
            except (trio.BrokenResourceError, trio.ClosedResourceError):
                pass  # reported below, as when it dies later
            finally:
                if answer is None:
                    self._process = None
                    process.kill()  # cancelled, hung or dead: its answer must not reach the next command
            if answer is None:
                raise RetryError("the helper around libnftables died or hung; it is started again")
            self._used = trio.current_time()
        self._deaths = 0
        if answer["code"] != 0:
            raise refused(netns_path, answer["error"])
        return str(answer["output"])


async def _receive(process: trio.Process) -> Any:
    """Return the next frame from the helper; None at its end."""
    stdout = process.stdout
    data = bytearray()
    while stdout is not None and (chunk := await stdout.receive_some()):
        data += chunk
        if len(data) >= LENGTH.size and len(data) == LENGTH.size + LENGTH.unpack_from(data)[0]:
            return orjson.loads(memoryview(data)[LENGTH.size :])
    return None


async def _kill(process: trio.Process) -> None:
    if process.returncode is None:
        process.kill()
    await process.wait()
    for stream in (process.stdin, process.stdout):
        if stream is not None:
            await stream.aclose()
