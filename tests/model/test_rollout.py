"""Actions on containers, and their progress."""

from __future__ import annotations

from math import inf

from appliance.model.rollout import Progress, ReplicaKey, Retire

WEB = ReplicaKey(service="shop", replica=0, container="web")


def test_keys_in_words():
    """Machines claim replicas in these words, so they never change."""
    assert str(WEB) == "shop/0/web"


def test_keys_sort_by_service_replica_and_container():
    """Replica 10 comes after 9: numbers are compared as numbers."""
    keys = [ReplicaKey(service="shop", replica=n, container=c) for n in (9, 10) for c in ("db", "web")]
    assert sorted({*keys}) == keys
    assert WEB < keys[0] < ReplicaKey(service="x", replica=0, container="a")


def test_defaults():
    """A retired container has all the time that is configured; progress is neither ready nor failed at first."""
    retire = Retire(key=WEB, workload_id="0" * 64, reason="its service was removed")
    assert (retire.drain, retire.grace) == (inf, inf)
    progress = Progress(key=WEB, state="pulling 40 %")
    assert (progress.ready, progress.failed) == (False, False)
