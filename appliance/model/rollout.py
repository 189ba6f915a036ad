"""Containers that meshbox creates: the actions on them, and the progress of a replica."""

from __future__ import annotations

import re
from dataclasses import dataclass
from math import inf
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from appliance.model.spec import Container

_REVISION = re.compile(r"[A-Za-z0-9._-]{1,64}")


@dataclass(frozen=True, slots=True, kw_only=True, order=True)
class ReplicaKey:
    """One container of one replica of a service. Replicas count from 0."""

    service: str
    replica: int
    container: str

    def __str__(self) -> str:
        return f"{self.service}/{self.replica}/{self.container}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Create:
    """Pull the image when absent, create the container and start it."""

    key: ReplicaKey
    container: Container
    revision: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Start:
    """Start a stopped container that meshbox created."""

    key: ReplicaKey
    workload_id: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Retire:
    """Wait until its connections have drained, stop it, and remove it with its anonymous volumes."""

    key: ReplicaKey
    workload_id: str
    reason: str
    drain: float = inf
    """Most seconds that its connections may take to drain; the configured drain time counts where it is less."""
    grace: float = inf
    """Most seconds that its program may take to end; the container's stop timeout counts where it is less."""


Action = Create | Start | Retire


@dataclass(frozen=True, slots=True, kw_only=True)
class Progress:
    """The progress of one container of one replica, in words: `pulling 40 %`, `waiting for port 8000`, `ready`."""

    key: ReplicaKey
    state: str
    ready: bool = False
    failed: bool = False
    machine: str = ""


def is_revision(text: str) -> bool:
    """Whether a text from a label or from Consul may be the revision of a container."""
    return _REVISION.fullmatch(text) is not None
