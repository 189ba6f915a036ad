"""A machine without Docker offers what an inventory does, and has nothing in it."""

from __future__ import annotations

import inspect

import trio
import trio.testing

from appliance.drivers.docker.inventory import Inventory
from appliance.drivers.docker.none import NoContainers


def test_nothing_is_ever_there():
    """It starts at once, runs until it is cancelled, and knows no container and no network."""

    async def main():
        none = NoContainers()
        async with trio.open_nursery() as nursery:
            with trio.fail_after(5):
                await nursery.start(none.run)
            await trio.testing.wait_all_tasks_blocked()
            assert nursery.child_tasks
            assert (none.workloads, none.networks, none.connected) == ((), (), False)
            assert (none.seen_before_start, dict(none.counts)) == (0, {})
            nursery.cancel_scope.cancel()

    trio.run(main)


def test_it_has_every_public_part_of_an_inventory(tmp_path):
    """With the same parameters, so that it can stand in for one."""

    def parts(one) -> dict[str, object]:
        public = {name: getattr(one, name) for name in dir(one) if not name.startswith("_")}
        return {name: inspect.signature(part) if callable(part) else None for name, part in public.items()}

    inventory = Inventory(None, netns_dir=str(tmp_path), bell=lambda *, urgent=False: None)
    assert parts(NoContainers()) == parts(inventory)
