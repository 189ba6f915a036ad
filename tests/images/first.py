"""A container whose very first act is to connect, started with `python3 -I -S` so that it is quick about it.

first.py HOST PORT …: dials all at once, so that none has a moment to wait for, and prints one line of JSON:
[[HOST, connected | refused | …, time when that was known], …]
"""

from __future__ import annotations

import socket
import sys
import time
from threading import Thread

found = []


def dial(host: str, port: str) -> None:
    """Connect, and note what came of it."""
    try:
        with socket.create_connection((host, int(port)), 10) as connection:
            connection.recv(100)
        result = "connected"
    except ConnectionRefusedError:
        result = "refused"
    except OSError as error:
        result = type(error).__name__
    found.append([host, result, time.time()])


dials = [Thread(target=dial, args=target) for target in zip(sys.argv[1::2], sys.argv[2::2], strict=True)]
for each in dials:
    each.start()
for each in dials:
    each.join()
print(str(found).replace("'", '"'))  # noqa: T201 — its answer
