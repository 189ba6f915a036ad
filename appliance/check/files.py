"""What the appliance needs of files: its state, a folder for socket and lock, a watch on Docker's namespaces.

Nothing is written or made: a check leaves no trace.
"""

from __future__ import annotations

import os
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from appliance import files
from appliance.drivers.local import statefile
from appliance.drivers.local.statefile import DamagedError
from appliance.drivers.netns import directory
from appliance.errors import HostError
from appliance.files import UnsafeError
from appliance.lock import TakenError, only_one, squatted
from appliance.model.finding import Finding, failed, ok, warning

if TYPE_CHECKING:
    from appliance.config.options import Config


def state(config: Config) -> Finding:
    """Check whether this version can read the state, and whether it can be written."""
    folder = Path(config.state_dir)
    path = folder / "state.json"
    unsafe = _unsafe(folder)
    if unsafe is not None:
        return failed("state_dir", unsafe.why, unsafe.remedy)
    try:
        statefile.load(files.read(path), str(path))
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
    unsafe = _unsafe(folder)
    if unsafe is not None:
        return failed("run_dir", unsafe.why, unsafe.remedy)
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
            words, _, remedy = squatted().rpartition(": ")
            return [warning("lock", words, remedy)] if words else []
    except TakenError as error:
        remedy = "look at its log; end it, or use its run_dir"
        return [failed("appliance", f"{error.words} and does not answer on {config.admin_socket}", remedy)]
    except HostError as error:
        return [failed("lock", error.words, error.remedy)]


async def watch(config: Config) -> Finding:
    """Check whether the kernel lets us watch Docker's folder of namespaces, which may not be there yet."""
    try:
        with directory.watch_directory(config.netns_dir):
            return ok("netns_dir", f"{config.netns_dir} can be watched")
    except HostError as error:
        return failed("netns_dir", error.words, f"{error.remedy} (sysctl)")


def _unsafe(folder: Path) -> UnsafeError | None:
    """Return what is wrong with a folder that another user could change."""
    try:
        with files.open_folder(folder):
            return None
    except UnsafeError as error:
        return error
    except OSError:  # it is not there yet, or cannot be used at all
        return None


def _writable(folder: Path) -> bool:
    """Whether the folder can be written or made. Root is asked too, since a mount may be read-only."""
    there = next(path for path in (folder, *folder.parents) if path.exists())
    return there.is_dir() and os.access(there, os.W_OK | os.X_OK)
