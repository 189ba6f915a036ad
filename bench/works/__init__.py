"""The works, in the order in which they run."""

from __future__ import annotations

from typing import TYPE_CHECKING

from bench.works import appliance, bulk, control, dns, echo, http, idle, mesh, redis, ruleset, shares, udp, workers

if TYPE_CHECKING:
    from bench.figures import Work

WORKS: tuple[Work, ...] = (
    *http.WORKS,
    *bulk.WORKS,
    *echo.WORKS,
    *udp.WORKS,
    *redis.WORKS,
    *idle.WORKS,
    *dns.WORKS,
    *ruleset.WORKS,
    *control.WORKS,
    *workers.WORKS,
    *appliance.WORKS,
    *mesh.WORKS,
    *shares.WORKS,
)
