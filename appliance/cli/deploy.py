"""`meshbox deploy`, `plan` and `remove`: send what is wanted, show the progress, and wait until it is done.

A deploy first has the images pulled that this machine needs. If one cannot be pulled, nothing is changed. With
`--detach` the spec is stored at once, and each machine pulls by itself, again and again until it succeeds. A deploy
waits for the replicas on all machines; a removal waits for the containers of this one.
"""

from __future__ import annotations

import re
import sys
import threading
import time
from collections import Counter
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.live import Live
from rich.table import Table

from appliance.cli import tables
from appliance.cli.client import in_image
from appliance.errors import HostError, InputError
from appliance.spec import dsl
from appliance.spec.parse import service_to_raw
from appliance.text import MOST_MESSAGE, plain

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from appliance.cli.client import AdminClient
    from appliance.model.spec import Service

    Rows = list[dict[str, Any]]
    Show = Callable[[Rows], None]

POLL = 0.2
"""Seconds between requests for the progress."""
PATIENCE = 5.0
"""Seconds for which a failure may last before it ends the wait: many pass by themselves."""

_NEVER = threading.Event()


def plan(client: AdminClient, file: str) -> dict[str, Any]:
    """Return what deploying the file would change. Raises MeshboxError."""
    return _send(client, "plan", file, *_load(file))


def deploy(client: AdminClient, file: str, *, detach: bool, timeout: float) -> None:
    """Deploy a file and wait until every replica is ready. `timeout` in seconds. Raises MeshboxError."""
    services, local = _load(file)
    deadline = time.monotonic() + timeout
    if not detach:
        _pull(client, file, services, deadline)
    answer = _send(client, "deploy", file, services, local)
    names = [service.name for service in services]
    tables.changes(answer["changes"])
    if detach:
        return
    _wait(lambda: client.get("progress", service=names), deadline, timeout, "ready")
    everything = client.get("progress", service=names)
    unchanged = all(change["kind"] == "same" for change in answer["changes"])
    ready = ", ".join(_counted(name, [row for row in everything if row["service"] == name]) for name in names)
    sys.stdout.write(f"{'nothing changed; ' if unchanged else ''}ready: {ready}\n")


def remove(client: AdminClient, names: Sequence[str], *, detach: bool, timeout: float) -> None:
    """Remove services and wait until their containers are gone. Raises MeshboxError."""
    tables.changes(client.delete("services", service=list(names))["changes"])
    if not detach:
        _wait(lambda: _leftovers(client, names), time.monotonic() + timeout, timeout, "gone")
        sys.stdout.write(f"removed: {', '.join(dict.fromkeys(names))}\n")


def _load(file: str) -> tuple[tuple[Service, ...], tuple[str, ...]]:
    try:
        return dsl.load(file)
    except InputError as error:
        if not in_image() or Path(file).exists():
            raise
        words = "this container does not see the host's files: write /dev/stdin <"
        raise InputError(f"{error}; {words} {file}") from None


def _counted(name: str, rows: Rows) -> str:
    """Return a service with the number of its replicas, by machine if there are several machines."""
    machines = Counter(machine for machine, _ in {(row["machine"], row["replica"]) for row in rows})
    if len(machines) == 1:
        ((machine, count),) = machines.items()
        return f"{name} ({count} on {machine})"
    return f"{name} ({sum(machines.values())}: {', '.join(f'{n} on {m}' for m, n in sorted(machines.items()))})"


def _body(services: Sequence[Service]) -> dict[str, Any]:
    return {"services": [service_to_raw(service) for service in services]}


def _send(
    client: AdminClient, verb: str, file: str, services: Sequence[Service], local: Sequence[str]
) -> dict[str, Any]:
    """Post the values of a file. Warnings go to standard error."""
    with _in_file(file):
        answer: dict[str, Any] = client.post(verb, _body(services))
    left_out = [line for line in local if line.startswith(f"{file}:")]  # the appliance itself warns of the rest
    for line in (*left_out, *answer["warnings"]):
        sys.stderr.write(f"warning: {plain(line, MOST_MESSAGE)}\n")
    return answer


def _pull(client: AdminClient, file: str, services: Sequence[Service], deadline: float) -> None:
    """Have the images pulled that this machine lacks, and show the progress. Raises MeshboxError."""
    rows: dict[str, dict[str, Any]] = {}
    with _in_file(file), _shown() as show:
        try:
            for row in client.lines("pull", _body(services)):
                pulled = row["state"] == "pulled"
                rows[row["image"]] = {**row, "machine": "", "ready": pulled, "failed": False}
                show(list(rows.values()))
                if not pulled and time.monotonic() > deadline:
                    raise HostError(
                        f"image {row['image']} was not pulled in time ({row['state']})",
                        "set a longer --timeout, or deploy with --detach",
                    )
        except HostError as error:
            raise HostError(f"nothing was changed: {error.words}", error.remedy) from None


@contextmanager
def _in_file(file: str) -> Iterator[None]:
    """Begin the text of an error with the name of the file."""
    try:
        yield
    except InputError as error:
        raise InputError(f"{file}: {error.words}", error.remedy) from None


def _leftovers(client: AdminClient, names: Sequence[str]) -> Rows:
    """Return the containers of these services that meshbox made and that still exist, as rows of progress.

    The state of a container that is being removed comes from the appliance: to Docker it just runs while it drains.
    """
    under_way = {_key(row): row for row in client.get("progress", service=list(names)) if not row["ready"]}
    rows = []
    for row in client.get("workloads"):
        container, _, service = row["name"].partition(".")
        if row["managed"] and service in names:
            left = {
                "service": service,
                "replica": row["replica"],
                "container": container,
                "state": row["state"],
                "ready": False,
                "failed": False,
                "machine": "",
            }
            rows.append({**left, **under_way.get(_key(left), {})})
    return rows


def _wait(look: Callable[[], Rows], deadline: float, timeout: float, goal: str) -> None:
    """Show the rows that `look` returns until all are ready. Raises HostError on failure or after the deadline."""
    failing: dict[str, float] = {}
    with _shown() as show:
        while True:
            rows = look()
            show(rows)
            waiting = {_key(row): row["state"] for row in rows if not row["ready"]}
            if not waiting:
                return
            now = time.monotonic()
            for row in rows:
                if row["failed"] and now - failing.setdefault(_key(row), now) > PATIENCE:
                    raise HostError(f"{_key(row)}: {row['state']}; meshbox keeps trying, see: meshbox workloads")
            if now > deadline:
                words = "; ".join(f"{key}: {state}" for key, state in waiting.items())
                raise HostError(
                    f"not {goal} after {timeout:g} s: {words}; meshbox keeps trying, see: meshbox workloads"
                )
            _NEVER.wait(POLL)


def _key(row: dict[str, Any]) -> str:
    return f"image {row['image']}" if "image" in row else f"{row['service']}/{row['replica']}/{row['container']}"


@contextmanager
def _shown() -> Iterator[Show]:
    """Provide a function that shows rows: on a terminal as a table that is redrawn, else as a line for each change."""
    out = tables.console()
    if out.is_terminal:
        with Live(console=out, transient=True, auto_refresh=False) as live:
            yield lambda rows: live.update(_drawn(rows), refresh=True)
        return
    said: dict[str, str] = {}

    def tell(rows: Rows) -> None:
        for row in rows:
            news = re.sub(r"[\d.,]+", "", row["state"])  # a percentage that grows is no news
            if said.get(_key(row)) != news:
                said[_key(row)] = news
                sys.stdout.write(plain(f"{_key(row)}: {row['state']}", MOST_MESSAGE) + "\n")
                sys.stdout.flush()

    yield tell


def _drawn(rows: Rows) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in ("REPLICA", "MACHINE", "STATE"):
        table.add_column(column)
    for row in rows:
        style = "green" if row["ready"] else "red" if row["failed"] else "yellow"
        state = f"[{style}]{tables.shown(row['state'])}[/{style}]"
        table.add_row(tables.shown(_key(row)), tables.shown(row["machine"]), state)
    return table
