"""What one container may do to all others, at full speed: `python -m bench.attacks NAME SECONDS ADDRESS PORT`.

Run it inside a network namespace that the test or work has made, and nowhere else. Each ends by itself after SECONDS.
"""

from __future__ import annotations

import resource
import select
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from functools import partial

from bench.attackers import dns, sessions

HELD = 9500
"""Connections that are held at once, or tried to be: more than an appliance with 20,000 open files can have."""
UNREAD = 4000
"""Connections that are not read: at 4.7 MB each, 19 GB."""
NEVER = threading.Event()
ELEMENTS = 10_000
"""Elements of each commit of a flood."""


def hold(until: float, address: str, port: int, most: int = HELD) -> None:
    """Hold as many connections as can be had; open another one for each that ends."""
    _, files = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (files, files))
    most = min(most, files - 100)
    open_ones: dict[int, socket.socket] = {}
    poll = select.epoll()
    while time.monotonic() < until:
        for _ in range(50):
            if len(open_ones) >= most:
                break
            sock = socket.socket()
            sock.setblocking(False)
            sock.connect_ex((address, port))
            open_ones[sock.fileno()] = sock
            poll.register(sock, 0)
        for fd, events in poll.poll(0.001, 1000):
            if events & (select.EPOLLHUP | select.EPOLLERR):
                open_ones.pop(fd).close()


def unread(until: float, address: str, port: int) -> None:
    """Read nothing on many connections of a server that sends without end."""
    hold(until, address, port, UNREAD)


def floods(until: float, *_: object) -> None:
    """Commit 10,000 elements to a table of its own, again and again."""
    elements = ", ".join(str(number) for number in range(1, ELEMENTS + 1))
    made = f"table ip flood {{ set s {{ type inet_service\nelements = {{ {elements} }}\n}}\n}}"
    text = f"add table ip flood\ndelete table ip flood\n{made}"
    while time.monotonic() < until:
        subprocess.run(["nft", "-f", "-"], input=text.encode(), check=False, stderr=subprocess.DEVNULL)


def quarrel(until: float, *_: object) -> None:
    """Delete the table of meshbox, again and again."""
    while time.monotonic() < until:
        text = b"add table inet meshbox\ndelete table inet meshbox\nadd table inet meshbox\n"
        subprocess.run(["nft", "-f", "-"], input=text, check=False, stderr=subprocess.DEVNULL)


def burn(until: float, part: float) -> None:
    """Compute for a part of the time, in slices of 10 ms."""
    while (now := time.monotonic()) < until:
        while time.monotonic() < now + 0.01 * part:
            pass
        NEVER.wait(0.01 * (1 - part))


ATTACKS: dict[str, Callable[[float, str, int], None]] = {
    "connections": hold,
    "memory": unread,
    "nft events": floods,
    "quarrel": quarrel,
    "dns foreign": partial(dns.attack, "foreign"),
    "dns made-up": partial(dns.attack, "made-up"),
    "dns tcp": partial(dns.attack, "tcp"),
    "udp sessions": sessions.attack,
}
"""By name. `bench/works/shares.py` makes a case of each."""


def main(name: str, seconds: str, *more: str) -> None:
    """Attack, or burn as much CPU."""
    until = time.monotonic() + float(seconds)
    if name == "burn":
        burn(until, float(more[0]))
    else:
        ATTACKS[name](until, more[0], int(more[1]))


if __name__ == "__main__":
    main(*sys.argv[1:])
