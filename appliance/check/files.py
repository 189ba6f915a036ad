"""What the appliance needs of files: its state, a folder for socket and lock, a watch on Docker's namespaces.

Nothing is written or made: a check leaves no trace.
"""

from __future__ import annotations

import os
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from appliance.drivers.local import statefile
from appliance.drivers.local.statefile import DamagedError
from appliance.drivers.netns import directory
from appliance.errors import HostError
from appliance.lock import only_one
from appliance.model.finding import Finding, failed, ok, warning

if TYPE_CHECKING:
    from appliance.config.options import Config


def state(config: Config) -> Finding:
    """Check whether this version can read the state, and whether it can be written."""
    folder = Path(config.state_dir)
    path = folder / "state.json"
    try:
        statefile.load(path.read_bytes(), str(path))
    except FileNotFoundError:
        pass  # nothing has been deployed yet
    except DamagedError as error:
        return warning("state_dir", str(error), "it will be moved aside; then deploy again what is missing")
    except HostError as error:
        return failed("state_dir", error.words, error.remedy)
    except OSError as error:
        return failed("state_dir", f"cannot read {path}: {error.strerror}", "check its owner and the disk")
    if not _writable(folder):
        return warning(
            "state_dir",
            f"{folder} cannot be written",
            "nothing can be deployed: let root write there, or set state_dir",
        )
    return ok("state_dir", f"{folder} can be written")


def run_dir(config: Config) -> Finding:
    """Check whether the folder of admin socket and lock can be written."""
    folder = Path(config.run_dir)
    if not _writable(folder):
        return failed("run_dir", f"cannot write {folder}", "let root write there, or set run_dir to another folder")
    return ok("run_dir", f"{folder} can be written")


def lock(config: Config) -> list[Finding]:
    """Check, when no appliance answers, whether one still holds the lock: it hangs, or has another run_dir."""
    folder = Path(config.run_dir)
    try:
        with (
            tempfile.TemporaryDirectory() as nowhere,
            only_one(folder if (folder / "lock").exists() else Path(nowhere)),
        ):
            return []
    except HostError as error:
        remedy = "look at its log; end it, or use its run_dir"
        return [failed("appliance", f"{error.words} and does not answer on {config.admin_socket}", remedy)]


async def watch(config: Config) -> Finding:
    """Check whether the kernel lets us watch Docker's folder of namespaces, which may not be there yet."""
    try:
        with directory.watch_directory(config.netns_dir):
            return ok("netns_dir", f"{config.netns_dir} can be watched")
    except HostError as error:
        return failed("netns_dir", error.words, f"{error.remedy} (sysctl)")


def _writable(folder: Path) -> bool:
    """Whether the folder can be written or made. Root is asked too, since a mount may be read-only."""
    there = next(path for path in (folder, *folder.parents) if path.exists())
    return there.is_dir() and os.access(there, os.W_OK | os.X_OK)
