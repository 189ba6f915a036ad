"""DNS at full speed: `python -m bench.attackers.dns KIND SECONDS SERVER [PORT [RATE]]`.

Kinds, each with what Docker gives to every container:

- foreign   ever new names of others
- ours      ever new names under the suffix mesh.internal
- same      one name, again and again
- made-up   in the name of addresses that nobody has, of the server's /24 (CAP_NET_RAW)
- tcp       as many connections as can be had, with a question on each now and then

It ends by itself after SECONDS. RATE is questions a second; 0, the default, is as many as go.
"""

from __future__ import annotations

import socket
import sys
import time
from contextlib import suppress
from itertools import count

IP_TRANSPARENT = 19
"""From linux/in.h: send from addresses that are not this container's (ip(7))."""
MADE_UP = 60
CONNECTIONS = 300


def question(kind: str, number: int) -> bytes:
    """Return a question as it goes over UDP."""
    if kind == "same":
        labels = [b"www", b"example"]
    elif kind == "foreign":
        labels = [b"r%08x" % number, b"blackhole", b"example"]
    else:
        labels = [b"x%08x" % number, b"c", b"mesh", b"internal"]
    name = b"".join(bytes([len(label)]) + label for label in labels)
    return (number & 65535).to_bytes(2) + b"\1\0\0\1\0\0\0\0\0\0" + name + b"\0\0\1\0\1"


def datagrams(kind: str, until: float, server: str, port: int, rate: int) -> None:
    """Ask by UDP, and read no answer."""
    socks = []
    for number in range(MADE_UP if kind == "made-up" else 1):
        sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
        if kind == "made-up":
            sock.setsockopt(socket.IPPROTO_IP, IP_TRANSPARENT, 1)
            sock.bind((f"{server.rpartition('.')[0]}.{number + 150}", 0))
        sock.connect((server, port))
        socks.append(sock)
    begin = time.monotonic()
    for number in count():
        with suppress(OSError):
            socks[number % len(socks)].send(question(kind, number))
        if number % 20 == 0:
            now = time.monotonic()
            if now > until:
                return
            if rate and number / rate > now - begin:
                time.sleep(number / rate - (now - begin))  # noqa: TID251 — it waits for nothing but the time


def connections(until: float, server: str, port: int) -> None:
    """Hold connections, and open another one for each that ends."""
    held: list[socket.socket] = []
    message = question("ours", 1)
    while time.monotonic() < until:
        while len(held) < CONNECTIONS:
            sock = socket.socket()
            sock.settimeout(0.2)
            try:
                sock.connect((server, port))
            except OSError:
                sock.close()
                break
            held.append(sock)
        for sock in list(held):
            try:
                sock.send(len(message).to_bytes(2) + message)
                if not sock.recv(4096):
                    raise ConnectionResetError
            except OSError:
                sock.close()
                held.remove(sock)


def attack(kind: str, until: float, server: str, port: int, rate: int = 0) -> None:
    """Ask without end, until that time of the monotonic clock."""
    if kind == "tcp":
        connections(until, server, port)
    else:
        datagrams(kind, until, server, port, rate)


def main(kind: str, seconds: str, server: str, port: str = "53", rate: str = "0") -> None:
    """Attack."""
    attack(kind, time.monotonic() + float(seconds), server, int(port), int(rate))


if __name__ == "__main__":
    main(*sys.argv[1:])
