"""A stand-in for a Docker Engine that answers late, in front of a real one.

A real engine that has run for a while does not describe a network while it joins a container to it, nor a container
while it starts that. Here both take LATE seconds, whatever the engine does; all else passes as it is.
"""

from __future__ import annotations

import re
import socket
import threading
from contextlib import suppress
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path
    from typing import Self

LATE = 1.0
_SLOW = re.compile(rb"GET (/v[0-9.]+)?/(networks|containers)/[^/?]+(/json)?[? ]")
_LISTS = re.compile(rb"GET (/v[0-9.]+)?/containers/json[? ]")


class LateEngine:
    """Listens at `path` for the engine at `engine`."""

    def __init__(self, path: Path, engine: Path) -> None:
        self.path = path
        self.slow = 0
        """How many answers were late."""
        self._engine = engine
        self._listener = socket.socket(socket.AF_UNIX)
        self._open: list[socket.socket] = []
        self._ended = threading.Event()

    def __enter__(self) -> Self:
        self.path.unlink(missing_ok=True)
        self._listener.bind(str(self.path))
        self._listener.listen(128)
        threading.Thread(target=self._accept, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        for one in (self._listener, *self._open):
            with suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)
            one.close()
        self.path.unlink(missing_ok=True)

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                client, _ = self._listener.accept()
                engine = socket.socket(socket.AF_UNIX)
                self._open += [client, engine]
                engine.connect(str(self._engine))
                threading.Thread(target=self._ask, args=(client, engine), daemon=True).start()
                threading.Thread(target=self._carry, args=(engine, client), daemon=True).start()

    def _ask(self, client: socket.socket, engine: socket.socket) -> None:
        """Carry requests, each of which comes in one piece: the ones that are late have no body."""
        with suppress(OSError):
            while data := client.recv(1 << 16):
                if _SLOW.match(data) and not _LISTS.match(data):
                    self.slow += 1
                    self._ended.wait(LATE)
                engine.sendall(data)
            engine.shutdown(socket.SHUT_WR)

    @staticmethod
    def _carry(engine: socket.socket, client: socket.socket) -> None:
        with suppress(OSError):
            while data := engine.recv(1 << 16):
                client.sendall(data)
            client.shutdown(socket.SHUT_WR)
