"""A relay that can stop in the middle: gate.py ADDRESS:PORT ADDRESS:PORT (where it listens, where it leads).

At first all goes through. After SIGUSR2 only 2 MiB more come back from there, in all, until SIGUSR1.
"""

from __future__ import annotations

import asyncio
import signal
import sys

ALLOWED = 2 << 20


class Gate:
    """How much may still come through."""

    def __init__(self) -> None:
        self._opened = asyncio.Event()
        self._opened.set()
        self._left = 0

    def open(self) -> None:
        """Let all through."""
        self._opened.set()

    def close(self) -> None:
        """Let only so much through."""
        self._opened.clear()
        self._left = ALLOWED

    async def passed(self, length: int) -> None:
        """Wait until these bytes may pass."""
        self._left -= length
        if self._left < 0:
            await self._opened.wait()


async def relay(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, gate: Gate | None = None) -> None:
    """Carry one direction to its end."""
    try:
        while data := await reader.read(1 << 16):
            if gate is not None:
                await gate.passed(len(data))
            writer.write(data)
            await writer.drain()
    except ConnectionError:
        pass
    finally:
        writer.close()


async def main(here: str, there: str) -> None:
    """Relay for ever."""
    gate = Gate()
    loop = asyncio.get_running_loop()
    loop.add_signal_handler(signal.SIGUSR1, gate.open)
    loop.add_signal_handler(signal.SIGUSR2, gate.close)

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        far_reader, far_writer = await asyncio.open_connection(*there.split(":"))
        await asyncio.gather(relay(reader, far_writer), relay(far_reader, writer, gate))

    address, port = here.split(":")
    async with await asyncio.start_server(serve, address, int(port)) as server:
        await server.serve_forever()


asyncio.run(main(*sys.argv[1:]))
