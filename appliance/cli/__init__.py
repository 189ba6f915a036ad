"""The command `meshbox`. Nouns show and never change anything, verbs change.

Exit codes: 0 done, 1 failed, 2 wrong usage. Errors are one line on standard error. Each command imports only what it
needs: the appliance itself runs without the libraries that draw tables.
"""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING

from appliance.errors import InputError, MeshboxError

if TYPE_CHECKING:
    from collections.abc import Sequence


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    try:
        if words[:1] == ["run"] and not {"-h", "--help"} & set(words):
            from appliance.cli.run import start  # noqa: PLC0415 — the appliance must not load the rest

            return start(words[1:])
        from appliance.cli.commands import invoke  # noqa: PLC0415

        return invoke(words)
    except MeshboxError as error:
        line = " ".join(str(error).split())
        sys.stderr.write(f"{line}\n" if line.startswith("meshbox ") else f"meshbox: {line}\n")
        return 2 if isinstance(error, InputError) else 1
    except BrokenPipeError:  # `meshbox workloads | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except KeyboardInterrupt:
        return 130
