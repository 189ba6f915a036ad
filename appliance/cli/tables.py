"""What the commands show on a terminal: values of the admin API as tables."""

from __future__ import annotations

import sys
import time
from collections import Counter
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from appliance.text import MOST_LINE, plain, plain_lines

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

WIDE = 250
"""Columns of output that is no terminal, so that nothing is cut off in a file or a pipe."""

_UNITS = ("B", "KiB", "MiB", "GiB", "TiB")


def console(*, stderr: bool = False) -> Console:
    """Return a console that does not fold lines for a file or a pipe."""
    terminal = (sys.stderr if stderr else sys.stdout).isatty()
    return Console(stderr=stderr, highlight=False, width=None if terminal else WIDE)


def shown(cell: Any) -> str:
    """Return what rich prints as this text: nothing in it steers the terminal or rich itself."""
    return escape(plain(str(cell), MOST_LINE))


def _table(columns: Sequence[str], rows: Iterable[Sequence[Any]], nothing: str) -> None:
    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in columns:
        table.add_column(column, overflow="fold")
    for row in rows:
        table.add_row(*("-" if cell in (None, "") else shown(cell) for cell in row))
    if table.row_count:
        console().print(table)
    else:
        console().print(nothing)


def services(rows: list[dict[str, Any]]) -> None:
    """Print one line for each container of each service."""
    _table(
        ("NAME", "VIRTUAL IP", "PORTS", "READY", "CONNECTS TO", "IMAGE", "MACHINES"),
        (
            (
                c["name"],
                c["vip"],
                " ".join(c["ports"]),
                f"{c['ready']}/{row['count'] if row['deployed'] else c['running']}",
                " ".join(c["connect_to"]),
                c["image"],
                _places(c),
            )
            for row in rows
            for c in row["containers"]
        ),
        "no services yet; deploy some with: meshbox deploy FILE",
    )


def _places(container: dict[str, Any]) -> str:
    """Return how many containers are ready on each machine, and what the others are waiting for."""
    machines: dict[str, int] = dict(container["machines"])
    waiting: dict[str, list[str]] = {}
    for one in container["replicas"]:
        machines.setdefault(one["machine"], 0)
        if not one["ready"]:
            waiting.setdefault(one["machine"], []).append(one["state"])
    found = []
    for node, ready in sorted(machines.items()):
        words = "; ".join(f"{count} {state}" for state, count in Counter(waiting.get(node, ())).items())
        found.append(f"{node}:{ready}" + (f" ({words})" if words else ""))
    return ", ".join(found)


def workloads(rows: list[dict[str, Any]]) -> None:
    """Print one line for each container."""
    _table(
        ("CONTAINER", "NAME", "STATE", "ADDRESS", "PORTS", "CONNECTS TO", "RULES", "DOOR"),
        (
            (
                row["docker_name"],
                row["name"],
                "; ".join(filter(None, (_state(row), row["note"]))),
                " ".join(row["addresses"]),
                " ".join(row["ports"]),
                " ".join(row["connect_to"]),
                "in place" if row["rules"] else "none",
                row["door"],
            )
            for row in rows
        ),
        "no containers in the mesh; deploy a service, or label containers with meshbox.service and meshbox.container",
    )


def _state(row: dict[str, Any]) -> str:
    return row["problem"] or ("ready" if row["ready"] else row["waits_for"])


def routes(rows: list[dict[str, Any]]) -> None:
    """Print one line for each backend of each destination."""
    lines = []
    for row in rows:
        head = (row["destination"], row["vip"], row["proxy_port"], len(row["callers"]))
        for number, b in enumerate(row["backends"] or [{}]):
            out = f"left out for {b['ejected']:.1f} s" if b.get("ejected") else b.get("spare") or ""
            opened = (b.get("opened"), b.get("active"), b.get("failed"), out)
            place = f"{b['label'] or 'backend'} {b['address']}" if b else "nothing serves it: refused"
            lines.append((*(head if number == 0 else ("", "", "", "")), place, *opened))
    columns = ("DESTINATION", "VIRTUAL IP", "PROXY PORT", "CALLERS", "BACKEND", "OPENED", "ACTIVE", "FAILED", "NOTE")
    _table(columns, ([" " if cell == "" else cell for cell in line] for line in lines), "no destinations yet")


def peers(row: dict[str, Any]) -> None:
    """Print the registry and one line for each machine."""
    out = console()
    out.print(shown(f"registry {row['registry']}: {_freshness(row)}; {row['open_queries']} open queries"))
    for problem in row["problems"]:
        out.print(f"! {shown(problem)}")
    if row["machines"]:
        _table(
            ("MACHINE", "ADDRESS", "DESTINATIONS", "META"),
            (
                (
                    m["node"] + _standing(m),
                    m["address"],
                    len(m["destinations"]),
                    " ".join(f"{key}={value}" for key, value in m["meta"].items()),
                )
                for m in row["machines"]
            ),
            "",
        )


def _standing(machine: dict[str, Any]) -> str:
    """Mark this machine, and tell of each unhealthy one whether it answers."""
    if machine["self"]:
        return " (this one)"
    if machine["healthy"]:
        return ""
    return " (unhealthy, answers itself)" if machine["answers"] else " (unhealthy, does not answer)"


def _freshness(row: dict[str, Any]) -> str:
    if row["held_since"] is None:
        return "up to date"
    since = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(row["held_since"]))
    ago = max(0.0, time.time() - row["held_since"])
    return f"held as last known since {since} ({ago:.0f} s): {row['held_why']}"


def connections(rows: list[dict[str, Any]]) -> None:
    """Print one line for each open connection."""
    _table(
        ("DESTINATION", "CLIENT", "BACKEND", "SENT", "RECEIVED", "AGE", "NOTE"),
        (
            (
                row["destination"],
                f"{row['client_name'] or ''} {row['client']}".strip(),
                f"{row['backend_name'] or ''} {row['backend']}".strip(),
                _size(row["bytes_in"]),
                _size(row["bytes_out"]),
                f"{row['age']:.0f} s",
                "draining" if row["draining"] else " ",
            )
            for row in rows
        ),
        "no open connections",
    )


def rules(row: dict[str, Any]) -> None:
    """Print the table as nft lists it."""
    sys.stdout.write(plain_lines(row["rules"].rstrip("\n")) + "\n")


def hosts(rows: list[dict[str, Any]]) -> None:
    """Print a line for each address, in the form of /etc/hosts."""
    for row in rows:
        sys.stdout.write(f"{plain(row['address'])}\t{plain(' '.join(row['names']), MOST_LINE)}\n")


def resolve(row: dict[str, Any]) -> None:
    """Print one line."""
    console().print(shown(f"{row['address'] or row['answer']}  ({row['words']})"))


def why(row: dict[str, Any]) -> None:
    """Print one line for each station, and the remedy at the one where the way ends."""
    out = console()
    width = max(len(station["station"]) for station in row["stations"])
    for station in row["stations"]:
        mark = "[green]ok  [/green]" if station["passed"] else "[red]ENDS[/red]"
        out.print(f"{mark}  {shown(station['station']):<{width}}  {shown(station['words'])}", soft_wrap=True)
        if not station["passed"] and station["remedy"]:
            out.print(f"      {'':<{width}}  to change that: {shown(station['remedy'])}", soft_wrap=True)


_MARKS = {"add": "[green]+[/green]", "change": "[yellow]~[/yellow]", "remove": "[red]-[/red]", "same": "="}


def changes(rows: list[dict[str, Any]]) -> None:
    """Print one line for each service and each container of it that changes."""
    out = console()
    for row in rows:
        what = shown(f"  container {row['container']}" if row["container"] else f"service {row['service']}")
        words = "unchanged" if row["kind"] == "same" else row["words"]
        out.print(f"{_MARKS[row['kind']]} {what}: {shown(words)}", soft_wrap=True)


def findings(rows: list[dict[str, Any]]) -> None:
    """Print one line for each finding, with its remedy."""
    styles = {"ok": "green", "warning": "yellow", "failed": "red"}
    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in ("CHECK", "RESULT", "FOUND", "REMEDY"):
        table.add_column(column, overflow="fold")
    for row in rows:
        style = styles[row["level"]]
        found = shown(row["words"])
        table.add_row(shown(row["subject"]), f"[{style}]{row['level']}[/{style}]", found, shown(row["remedy"]))
    console().print(table)


def _size(count: int) -> str:
    value = float(count)
    for unit in _UNITS:
        if value < 1024 or unit == _UNITS[-1]:
            break
        value /= 1024
    return f"{value:.0f} {unit}" if unit == "B" else f"{value:.1f} {unit}"
