"""What a registry tells."""

from __future__ import annotations

from appliance.model.facts import Allocations
from appliance.model.registry import RegistryFacts


def test_no_registry_is_a_machine_alone():
    """Without a registry there are no services, no other machines, and nothing is stale."""
    alone = RegistryFacts()
    assert not alone.specs
    assert not alone.tombstones
    assert alone.allocations == Allocations()
    assert (alone.machines, alone.endpoints, alone.problems) == ((), (), ())
    assert alone.held_since is None
    assert alone == RegistryFacts()


def test_defaults_are_not_shared():
    """Facts are replaced as a whole, so no two of them may share a mapping that one could fill."""
    assert RegistryFacts().specs is not RegistryFacts().specs
