"""`meshbox cleanup`: cleans up, and prints what was done as lines for people or as JSON for scripts."""

from __future__ import annotations

import sys
from dataclasses import asdict
from typing import TYPE_CHECKING

import orjson
import trio

from appliance.check import cleanup
from appliance.cli import tables
from appliance.text import MOST_LINE, plain, plain_tree

if TYPE_CHECKING:
    from appliance.config.options import Config


def clean(config: Config, *, state: bool, as_json: bool) -> bool:
    """Clean up and print what was done. Return False when something could not be removed."""
    with tables.console(stderr=True).status("cleaning up"):
        report = trio.run(lambda: cleanup.clean(config, state=state))
    if as_json:
        sys.stdout.buffer.write(
            orjson.dumps(plain_tree(asdict(report)), option=orjson.OPT_INDENT_2 | orjson.OPT_APPEND_NEWLINE)
        )
    else:
        for head, lines in (("removed", report.done), ("left", report.left), ("failed", report.failed)):
            for line in lines:
                sys.stdout.write(f"{head}: {plain(line, MOST_LINE)}\n")
    return not report.failed
