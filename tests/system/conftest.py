"""Fixtures for tests of several machines."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from cluster import Cluster
from faultyworld import Faulty, faulty_world
from machine import IMAGE, IMAGES
from meshworld import populate

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from machine import Machine, Switch


@pytest.fixture(scope="module")
def allowed_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder that specs may mount on each machine."""
    return tmp_path_factory.mktemp("allowed")


@pytest.fixture(scope="module")
def cluster(switch: Switch, allowed_path: Path) -> Iterator[Cluster]:
    """Three machines at work. A service may ask for one of them by its zone, `a`, `b` or `c`."""
    made = Cluster(switch, images={IMAGE: IMAGES[IMAGE]})
    for machine, zone in zip(made, "abc", strict=True):
        machine.settings["MESHBOX_META"] = f"zone={zone}"
        machine.settings["MESHBOX_ALLOW_HOST_PATHS"] = str(allowed_path)
    with made:
        yield made


@pytest.fixture
def trio(cluster: Cluster) -> Iterator[Cluster]:
    """The three machines with one replica of `trio` each, and a client on the first that may reach it and `late`."""
    populate(cluster)
    yield cluster
    cluster.heal()


@pytest.fixture(scope="module")
def faulty(machine: Machine) -> Iterator[Faulty]:
    """The machine with an appliance whose parts fail and hang as they are told."""
    with faulty_world(machine) as made:
        yield made
