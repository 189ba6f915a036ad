"""One appliance per host: the lock in run_dir, which also keeps `meshbox cleanup` and the appliance apart."""

from __future__ import annotations

import fcntl
import os
from contextlib import contextmanager
from typing import TYPE_CHECKING

from appliance.errors import HostError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


@contextmanager
def only_one(run_dir: Path) -> Iterator[None]:
    """Hold the lock of this host; it ends with the process, however that ends. Raises HostError when it is taken."""
    try:
        run_dir.mkdir(parents=True, exist_ok=True, mode=0o755)
        handle = (run_dir / "lock").open("a+")
    except OSError as error:
        raise HostError(f"cannot write {run_dir}: {error.strerror}; run meshbox as root") from error
    with handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            handle.seek(0)
            holder = handle.read().strip() or "unknown"
            raise HostError(
                f"another meshbox (pid {holder}) runs on this host: stop it first; one appliance serves all containers"
            ) from None
        handle.truncate(0)
        handle.write(str(os.getpid()))
        handle.flush()
        yield
