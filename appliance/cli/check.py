"""`meshbox check`: what is found on this host, and the faults of a running appliance."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import trio

from appliance.check import consul, files, host
from appliance.cli import tables
from appliance.cli.client import AdminClient
from appliance.errors import HostError

if TYPE_CHECKING:
    from appliance.config.options import Config
    from appliance.model.finding import Finding

PATIENCE = 5.0
"""Seconds until an appliance that does not answer counts as one that hangs."""


def check(config: Config) -> list[dict[str, Any]]:
    """Return the findings as rows."""
    running = _running(config)
    with tables.console(stderr=True).status("checking this host"):  # a Docker that hangs takes 10 s
        found = trio.run(_look, config, running)
    rows = [asdict(finding) for finding in found]
    if running is not None:
        since = f"running with pid {running['pid']} for {running['uptime']:.0f} s, version {running['version']}"
        rows.append({"subject": "appliance", "level": "ok", "words": since, "remedy": ""})
        rows += [
            {
                "subject": "fault",
                "level": "warning",
                "words": f"{fault['what']} ({key}, {fault['count']} times): {fault['cause']}",
                "remedy": "meshbox tries again; see its log",
            }
            for key, fault in running["faults"].items()
        ]
        rows += [_share(one) for one in running.get("shares", ())]
        rows += [{"subject": "name", "level": "warning", **one} for one in running.get("names", ())]
    return rows


def _share(one: dict[str, Any]) -> dict[str, Any]:
    """Return the row of a caller that holds, or held, more than its share."""
    memory = f", {one['stuck'] >> 20} MiB in those that it does not read" if one["stuck"] else ""
    gave_way = f"; {one['given_up']} were reset, the last one {one['ago']:.0f} s ago" if one["given_up"] else ""
    return {
        "subject": "share",
        "level": "warning",
        "words": f"{one['caller']} holds {one['held']} connections{memory}{gave_way}",
        "remedy": "end it, or have it close what it does not use (see meshbox connections)",
    }


async def _look(config: Config, running: dict[str, Any] | None) -> list[Finding]:
    open_files = running["open_files"] if running else None
    found = [
        *await host.examine(config, running=running is not None, open_files=open_files),
        *await consul.consul(config),
    ]
    return found if running else [*found, *files.lock(config)]


def _running(config: Config) -> dict[str, Any] | None:
    """Return the status of the appliance that runs here, if one does."""
    try:
        with AdminClient(config, timeout=PATIENCE, expected=False) as client:
            status: dict[str, Any] = client.get("status")
            return status
    except HostError:
        return None
