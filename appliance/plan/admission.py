"""Which labelled containers a deployed service takes in: none, unless its spec says `open=True`.

A label that names a deployed service would make its container a replica, and give it the rights of a sibling. Whoever
deployed the service decides that, not whoever may start a container.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from appliance.text import plain

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from appliance.model.facts import Workload
    from appliance.model.spec import Service

MOST_NAMED = 5
"""Containers that a warning names."""


def admitted(workloads: Iterable[Workload], specs: Mapping[str, Service]) -> tuple[Workload, ...]:
    """Return these containers, those that no deployed service takes in with that as their problem."""
    return tuple(replace(w, problem=_words(w)) if shut_out(w, specs) else w for w in workloads)


def shut_out(workload: Workload, specs: Mapping[str, Service]) -> bool:
    """Whether a container that others started bears the name of a deployed service that is not open."""
    service = specs.get(workload.name.service) if workload.revision is None and workload.problem is None else None
    return service is not None and not service.open


def left_behind(workloads: Iterable[Workload], wanted: Iterable[Service]) -> tuple[str, ...]:
    """Return a warning for each of these services with labelled containers that leave the mesh when it is deployed."""
    specs = {service.name: service for service in wanted}
    found: dict[str, list[str]] = {}
    for w in workloads:
        if shut_out(w, specs):
            found.setdefault(w.name.service, []).append(plain(w.docker_name))
    return tuple(
        f'service "{service}" takes no container by its labels: {", ".join(sorted(names)[:MOST_NAMED])}'
        f"{f' and {len(names) - MOST_NAMED} more' if len(names) > MOST_NAMED else ''} would leave the mesh;"
        " write open=True to keep them"
        for service, names in sorted(found.items())
    )


def _words(workload: Workload) -> str:
    service = workload.name.service
    return (
        f'service "{service}" is deployed and takes no container by its labels: deploy it with open=True,'
        " or give the label meshbox.service another value"
    )
