"""The helper process around libnftables: `python -m appliance.drivers.nft.helper_main`.

On standard input and output, frames of four octets of length (big endian) and that many of JSON. First the helper says
`{"fault": null}`, or why it cannot work; then it answers each `{"text": …, "dry": bool, "netns": path or null}` with
`{"code": int, "output": str, "error": str}`. Without a path a command is carried out in the helper's own
namespace. The helper ends when its input ends. libnftables runs here because version 1.0.6 can crash its process; it
is given text only.
"""

from __future__ import annotations

import ctypes
import os
import sys
from contextlib import suppress
from functools import partial
from struct import Struct
from threading import Thread
from typing import TYPE_CHECKING, Any

import orjson

from appliance.drivers.netns import netlink

if TYPE_CHECKING:
    from typing import BinaryIO

LENGTH = Struct(">I")
"""The length in front of a frame."""

_POLL = 0.0002
"""Seconds between checks of our port: a close frees it at once, but the thread that closes may not have run yet."""

_closing: list[tuple[str | None, Thread]] = []
"""Threads that close the sockets of former commands."""


def frame(value: object) -> bytes:
    """Return a value as a frame."""
    body = orjson.dumps(value)
    return LENGTH.pack(len(body)) + body


def _read(stream: BinaryIO) -> Any:
    head = stream.read(LENGTH.size)
    if len(head) < LENGTH.size:
        return None
    (length,) = LENGTH.unpack(head)
    body = stream.read(length)
    return orjson.loads(body) if len(body) == length else None


def _fault() -> str | None:
    """Return why libnftables cannot be used."""
    try:
        import nftables  # noqa: PLC0415 — its absence is an answer, not a traceback
    except ImportError as error:
        return f"the Python binding of libnftables is missing ({error}); pip install pip-nftables"
    try:
        nftables.Nftables()
    except OSError as error:
        return f"libnftables cannot be loaded ({error}); apt-get install libnftables1"
    return None


def _answer(text: str, *, dry: bool, netns: str | None) -> dict[str, object]:
    """Carry out a command in a namespace, or in the one that this process is in."""
    carry_out = partial(_carry_out, text, dry=dry, netns=netns)
    try:
        answer, kept = carry_out() if netns is None else netlink.entered(netns, carry_out)
    except OSError as error:
        return {"code": -1, "output": "", "error": str(error.strerror)}
    if kept:
        thread = Thread(target=_close, args=(kept,))
        thread.start()
        _closing[:] = [*((where, each) for where, each in _closing if each.is_alive()), (netns, thread)]
    return answer


def _carry_out(text: str, *, dry: bool, netns: str | None) -> tuple[dict[str, object], list[int]]:
    """Return the answer, and descriptors to close later, off the way of the next command.

    After a deletion, closing the socket takes 15 ms, because the kernel first frees what was deleted. A duplicate of
    the descriptor lets the context close at once. The socket's port, by which commits.py knows us, is free at once.
    """
    import nftables  # noqa: PLC0415 — the greeting has checked that it is installed

    for where, thread in _closing:
        while where == netns and thread.is_alive() and _is_port_taken():  # each namespace has ports of its own
            thread.join(_POLL)
    others = _sockets()
    # A context for each command: definitions outlive a command in its context, and cannot be made twice.
    context = nftables.Nftables()
    if dry:
        _set_dry_run(context)
    with os.fdopen(os.memfd_create("transaction"), "wb", buffering=0) as file:
        file.write(text.encode())
        # For a file, an error names its line; for a command it always shows the first line.
        code, output, error = context.cmd(f'include "/proc/self/fd/{file.fileno()}"')
    kept = []
    if "delete" in text:
        now = _sockets()
        kept = [os.dup(now[socket]) for socket in now.keys() - others.keys()]
    return {"code": code, "output": output, "error": error}, kept


def _is_port_taken() -> bool:
    """Return whether a socket of this namespace still has our port, so that a new one would get an arbitrary port."""
    own = [str(netlink.NETLINK_NETFILTER), str(os.getpid())]
    with open("/proc/thread-self/net/netlink", encoding="ascii") as sockets:  # noqa: PTH123 — for many commands
        return any(line.split()[1:3] == own for line in sockets)


def _sockets() -> dict[str, int]:
    """Return this process's sockets, of which only libnftables makes any, and a descriptor of each."""
    found = {}
    for name in os.listdir("/proc/self/fd"):  # noqa: PTH208 — for each command
        with suppress(FileNotFoundError):  # that of the listing itself, or just closed
            found[os.readlink(f"/proc/self/fd/{name}")] = int(name)  # noqa: PTH115 — as above
    return {link: descriptor for link, descriptor in found.items() if link.startswith("socket:")}


def _close(descriptors: list[int]) -> None:
    for descriptor in descriptors:
        os.close(descriptor)


def _set_dry_run(context: Any) -> None:
    """Let a context check without applying: a function of the library that pip-nftables 1.0.2 does not bind."""
    set_dry_run = ctypes.CDLL("libnftables.so.1").nft_ctx_set_dry_run
    set_dry_run.argtypes = [ctypes.c_void_p, ctypes.c_bool]
    set_dry_run.restype = None
    set_dry_run(context._Nftables__ctx, True)  # noqa: SLF001 — the binding has no other way to its context


def main() -> None:
    """Serve until the input ends."""
    stdin, stdout = sys.stdin.buffer, sys.stdout.buffer
    stdout.write(frame({"fault": _fault()}))
    stdout.flush()
    while (command := _read(stdin)) is not None:
        stdout.write(frame(_answer(**command)))
        stdout.flush()


if __name__ == "__main__":
    main()
