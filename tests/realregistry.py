"""A real image registry for tests: Debian's docker-registry in a machine's namespace, behind a gate.

Docker trusts a registry on a loopback address without certificates. The gate is a relay in front of it that stops in
the middle of an image until it is opened, so that a test can look at a pull for as long as it likes.
"""

from __future__ import annotations

import os
import signal
import sys
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

import orjson
from machine import ROOT, Program, wait_until
from realconsul import debian_package

if TYPE_CHECKING:
    from typing import Self

    from machine import Machine

SUITE = "bookworm"
INSIDE = "127.0.0.1:5001"


class Registry:
    """Serves images at `address` of a machine. Use as a context manager."""

    address = "127.0.0.1:5000"

    def __init__(self, machine: Machine, folder: Path) -> None:
        self._machine = machine
        self._folder = folder
        self._undo = ExitStack()

    def __enter__(self) -> Self:
        binary = debian_package("docker-registry", SUITE) / "usr" / "bin" / "docker-registry"
        settings = self._folder / "registry.json"
        storage = {"filesystem": {"rootdirectory": str(self._folder / "images")}}
        settings.write_bytes(orjson.dumps({"version": 0.1, "storage": storage, "http": {"addr": INSIDE}}))
        with ExitStack() as undo:
            self._start(undo, binary, "serve", settings)
            self._gate = self._start(undo, sys.executable, ROOT / "tests/images/gate.py", self.address, INSIDE)
            wait_until(self._answers, "the registry answers")
            self._undo = undo.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._undo.close()

    def push(self, image: str, name: str) -> str:
        """Put a machine's image there under a name such as `thing:1`; return the name to pull it by."""
        self._machine.docker("tag", image, f"{INSIDE}/{name}")
        self._machine.docker("push", f"{INSIDE}/{name}")
        self._machine.docker("rmi", f"{INSIDE}/{name}")
        return f"{self.address}/{name}"

    def open_gate(self) -> None:
        """Let all through."""
        os.kill(self._gate.pid, signal.SIGUSR1)

    def close_gate(self) -> None:
        """Let only the next 2 MiB through, in all."""
        os.kill(self._gate.pid, signal.SIGUSR2)

    def _start(self, undo: ExitStack, *command: str | Path) -> Program:
        program = Program(self._machine.netns, command, self._folder / f"{Path(command[0]).name}.log")
        undo.callback(program.stop)
        return program

    def _answers(self) -> bool:
        done = self._machine.exec("bash", "-c", f"exec 3<>/dev/tcp/{self.address.replace(':', '/')}", check=False)
        inside = self._machine.exec("bash", "-c", f"exec 3<>/dev/tcp/{INSIDE.replace(':', '/')}", check=False)
        return done.returncode == 0 == inside.returncode
