"""`meshbox run`: parses the flags, one for each option of the configuration, and starts the appliance."""

from __future__ import annotations

import argparse
import sys
from typing import TYPE_CHECKING, Any, NoReturn

from appliance.config import options as config
from appliance.errors import InputError, did_you_mean

if TYPE_CHECKING:
    from collections.abc import Sequence


def start(arguments: Sequence[str]) -> int:
    """Parse the flags and run the appliance until it ends; return the exit code. Raises MeshboxError."""
    file, flags = parse(arguments)
    return run(file, flags)


def run(file: str | None, flags: dict[str, str]) -> int:
    """Run the appliance with these flags, by dotted key."""
    chosen = config.load(file, flags=flags)
    sys.modules.setdefault("rich", None)  # type: ignore[arg-type] # structlog would load it for nothing: 3 MB
    from appliance.app import main  # noqa: PLC0415 — a wrong flag is refused before all of it is loaded

    return main.run(chosen)


def parse(arguments: Sequence[str]) -> tuple[str | None, dict[str, str]]:
    """Return the configuration file, if one is named, and the options that are set. Raises InputError."""
    parser = _Parser(prog="meshbox run", add_help=False, allow_abbrev=False)
    parser.add_argument("--config")
    for option in config.options():
        parser.add_argument(option.flag, dest=option.key)
    found, unknown = parser.parse_known_args(arguments)
    if unknown:
        near = did_you_mean(unknown[0], ["--config", *(option.flag for option in config.options())])
        raise InputError(f'unknown argument "{unknown[0]}"{near or "; see meshbox run --help"}')
    flags: dict[str, Any] = vars(found)
    file = flags.pop("config")
    return file, {key: value for key, value in flags.items() if value is not None}


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise InputError(f"{message}; see meshbox run --help")
