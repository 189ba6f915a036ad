"""The helper process around libnftables: `python -m appliance.drivers.nfthelper`.

On standard input and output, frames of four octets of length (big endian) and that many of JSON. First the helper says
`{"fault": null}`, or why it cannot work; then it answers each `{"text": …, "dry": bool}` with
`{"code": int, "output": str, "error": str}`. It ends with its input. libnftables lives here because its 1.0.6 can
crash the process that it is in; it gets text only.
"""

from __future__ import annotations

import ctypes
import sys
from struct import Struct
from typing import TYPE_CHECKING, Any

import orjson

if TYPE_CHECKING:
    from typing import BinaryIO

LENGTH = Struct(">I")
"""The length in front of a frame."""


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


def _carry_out(text: str, *, dry: bool) -> dict[str, object]:
    import nftables  # noqa: PLC0415 — known to be there since the greeting

    # A context for each command: definitions outlive a command in its context, and cannot be made twice.
    context = nftables.Nftables()
    if dry:
        _set_dry_run(context)
    code, output, error = context.cmd(text)
    return {"code": code, "output": output, "error": error}


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
        stdout.write(frame(_carry_out(command["text"], dry=command["dry"])))
        stdout.flush()


if __name__ == "__main__":
    main()
