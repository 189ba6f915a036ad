"""A container whose very first act is to connect, started with `python3 -I -S` so that it is quick about it.

first.py HOST PORT HOST PORT: dials one after the other and prints one line of JSON:
[[connected | refused | …, time when it began, time when that was known], …]
"""

from __future__ import annotations

import socket
import sys
import time

found = []
for place in range(1, len(sys.argv), 2):
    begin = time.time()
    try:
        with socket.create_connection((sys.argv[place], int(sys.argv[place + 1])), 10) as connection:
            connection.recv(100)
        result = "connected"
    except ConnectionRefusedError:
        result = "refused"
    except OSError as error:
        result = type(error).__name__
    found.append([result, begin, time.time()])
print(str(found).replace("'", '"'))  # noqa: T201 — its answer
