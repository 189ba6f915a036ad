from __future__ import annotations

import re

from bench import grow


def test_plans_are_measured() -> None:
    """With each figure that SCALING.md quotes."""
    row = grow._plans(3, 2)
    assert re.fullmatch(
        r"3 containers x 2 services: first plan \d+ ms; a backend changes [\d.]+ ms and [\d.]+ ms to compare; a service"
        r" appears \d+ ms, longest turn [\d.]+ ms; facts and plans -?\d+ MiB",
        row,
    )


def test_destinations_are_measured() -> None:
    """One open file each, and they take what is exchanged."""
    assert re.search(r"2 callers, 3 backends: [\d.]+ KiB, 1 open file; [\d.]+ ms", grow._destinations(2, 3))


def test_machines_are_read_as_consul_tells_of_them() -> None:
    """All of them, or the time says nothing."""
    assert grow._read(grow._machines(3)) > 0
