"""What a user declares: services, containers and their fields."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable

    from appliance.model.names import Allowance, Port


@dataclass(frozen=True, slots=True, kw_only=True)
class Health:
    """A health check, as in Docker. Durations in seconds."""

    command: str | tuple[str, ...]
    interval: float = 10.0
    timeout: float = 5.0
    retries: int = 3
    start_period: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Container:
    """One container of a service. `cpu` in thousandths of a core, `memory` in MiB; None is unlimited.

    `cap_add` and `cap_drop` are capabilities beside Docker's default, without `CAP_`, sorted; `ALL` is all of them.
    """

    name: str
    image: str
    ports: tuple[Port, ...] = ()
    connect_to: tuple[Allowance, ...] = ()
    cpu: int | None = None
    memory: int | None = None
    command: str | tuple[str, ...] | None = None
    env: tuple[tuple[str, str], ...] = ()
    volumes: tuple[str, ...] = ()
    health: Health | None = None
    cap_add: tuple[str, ...] = ()
    cap_drop: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Constraint:
    """Which machines may run a service: the one of that name, or those with that entry in their `meta`.

    `text` is what the user wrote. Either `node` or `meta` is set.
    """

    text: str
    node: str | None = None
    meta: tuple[str, str] | None = None

    def __str__(self) -> str:
        return self.text

    def fits(self, node: str, meta: Iterable[tuple[str, str]]) -> bool:
        """Whether a machine meets it."""
        return self.node == node if self.meta is None else self.meta in tuple(meta)


@dataclass(frozen=True, slots=True, kw_only=True)
class Service:
    """A group of containers that is replicated `count` times, like a pod."""

    name: str
    count: int = 1
    containers: tuple[Container, ...] = field(default=())
    constraint: Constraint | None = None

    def container(self, name: str) -> Container | None:
        """Return the container of that name."""
        return next((c for c in self.containers if c.name == name), None)
