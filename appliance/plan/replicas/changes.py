"""What a deploy would change, in words: the deployed specs compared with the wanted ones."""

from __future__ import annotations

from dataclasses import dataclass, fields
from enum import StrEnum
from typing import TYPE_CHECKING

from appliance.model.spec import Container
from appliance.plan.replicas.rollout import revision

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from appliance.model.spec import Service


class Kind(StrEnum):
    """What happens to a service or to one of its containers."""

    ADD = "add"
    CHANGE = "change"
    REMOVE = "remove"
    SAME = "same"


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """One line of a plan. `container` is empty where the line is about the service as a whole."""

    service: str
    container: str
    kind: Kind
    words: str


def changes(deployed: Mapping[str, Service], wanted: Iterable[Service]) -> tuple[Change, ...]:
    """Compare the wanted services with what is deployed under their names; other services do not change."""
    found: list[Change] = []
    for service in wanted:
        before = deployed.get(service.name)
        if before is None:
            found.append(_line(service, "", Kind.ADD, _times(service.count)))
            found += [_line(service, c.name, Kind.ADD, c.image) for c in service.containers]
        elif before == service:
            found.append(_line(service, "", Kind.SAME, _times(service.count)))
        else:
            found += _differences(before, service)
    return tuple(found)


def removal(service: Service) -> tuple[Change, ...]:
    """Return what removing a service means."""
    return (
        _line(service, "", Kind.REMOVE, _times(service.count)),
        *(_line(service, c.name, Kind.REMOVE, c.image) for c in service.containers),
    )


def _differences(before: Service, after: Service) -> list[Change]:
    words = []
    if before.count != after.count:
        words.append(f"{_times(before.count)} → {_times(after.count)}")
    if before.constraint != after.constraint:
        words.append(f"constraint {before.constraint or 'none'} → {after.constraint or 'none'}")
    if before.open != after.open:
        words.append("opened to labelled containers" if after.open else "closed to labelled containers")
    found = [_line(after, "", Kind.CHANGE, "; ".join(words) or _times(after.count))]
    for container in after.containers:
        former = before.container(container.name)
        if former is None:
            found.append(_line(after, container.name, Kind.ADD, container.image))
        elif former != container:
            found.append(_line(after, container.name, Kind.CHANGE, _fields(former, container)))
    kept = {c.name for c in after.containers}
    found += [_line(after, c.name, Kind.REMOVE, c.image) for c in before.containers if c.name not in kept]
    return found


def _fields(before: Container, after: Container) -> str:
    words = [
        f"{item.name} {_shown(getattr(before, item.name))} → {_shown(getattr(after, item.name))}"
        for item in fields(Container)
        if getattr(before, item.name) != getattr(after, item.name)
    ]
    how = "in place" if revision(before) == revision(after) else "replaces its containers one by one"
    return f"{'; '.join(words)} ({how})"


def _shown(value: object) -> str:
    """Put the value of a field into words. Values of variables may be secrets, so only their names are shown."""
    if value in (None, ()):
        return "none"
    if isinstance(value, tuple):
        return ",".join(item[0] if type(item) is tuple else str(item) for item in value)
    return str(value)


def _times(count: int) -> str:
    return "1 replica" if count == 1 else f"{count} replicas"


def _line(service: Service, container: str, kind: Kind, words: str) -> Change:
    return Change(service=service.name, container=container, kind=kind, words=words)
