"""A machine without Docker offers what an inventory does, and has nothing in it."""

from __future__ import annotations

import inspect

from fakedocker import FakeDocker

from appliance.drivers.docker.inventory import Inventory
from appliance.drivers.docker.none import NoContainers


def test_nothing_is_ever_there():
    """Nothing runs for it, and it knows no container and no network."""
    none = NoContainers()
    assert none.parts == ()
    assert (none.workloads, none.networks, none.connected) == ((), (), False)
    assert (none.punctuality.in_time, none.punctuality.late, dict(none.counts)) == (0, 0, {})


def test_it_has_every_public_part_of_an_inventory(tmp_path):
    """With the same parameters, so that it can stand in for one."""

    def parts(one) -> dict[str, object]:
        public = {name: getattr(one, name) for name in dir(one) if not name.startswith("_")}
        return {name: inspect.signature(part) if callable(part) else None for name, part in public.items()}

    inventory = Inventory(FakeDocker(), netns_dir=str(tmp_path), bell=lambda *, urgent=False: None)
    assert parts(NoContainers()) == parts(inventory)
