"""Counters of several workers as one."""

from __future__ import annotations

from dataclasses import replace

from tcpworld import backend_of, free_port, listener_of

from appliance.dataplane.workers.merge import ended, lasting, merged, shares, summed
from appliance.model.stats import BackendStats, ListenerStats, ShareStats

LISTENER = listener_of(20001)


def counted(backend, number: int) -> ListenerStats:
    """Return counters of a worker in which everything was counted `number` times."""
    part = BackendStats(
        backend=backend, opened=number, failed=number, active=number, bytes_in=number, bytes_out=number, ejected=number
    )
    return ListenerStats(
        destination=LISTENER.destination,
        port=LISTENER.port,
        accepted=number,
        refused=number,
        failed=number,
        active=number,
        backends=(part,),
    )


def backend():
    """Return a backend."""
    return replace(backend_of(_Sock()), label="one")


class _Sock:
    def getsockname(self):
        return ("127.0.0.1", free_port())


def test_counters_add_up() -> None:
    """Every worker's counts are included; a backend is left out until the last worker takes it in again."""
    one = backend()
    total = merged(replace(LISTENER, backends=(one,)), [counted(one, 2), counted(one, 3)])
    assert (total.accepted, total.refused, total.failed, total.active) == (5, 5, 5, 5)
    assert (total.backends[0].opened, total.backends[0].bytes_in, total.backends[0].ejected) == (5, 5, 3)


def test_only_backends_of_now_are_told() -> None:
    """A worker may not have heard yet of a change: one that came has nothing counted, one that went is gone."""
    gone, come = backend(), backend()
    total = merged(replace(LISTENER, backends=(come,)), [counted(gone, 2)])
    assert [one.backend for one in total.backends] == [come]
    assert total.backends[0].opened == 0
    assert total.accepted == 2


def test_former_port_counts_no_more() -> None:
    """A destination on another port counts from nothing, as it does without workers."""
    one = backend()
    assert merged(replace(LISTENER, port=1, backends=(one,)), [counted(one, 2)]).accepted == 0


def test_what_stays_of_a_worker_that_ended() -> None:
    """Its connections are gone, what it had counted is not."""
    stays = ended(counted(backend(), 4))
    assert (stays.accepted, stays.active, stays.backends[0].opened, stays.backends[0].active) == (4, 0, 4, 0)
    assert lasting({"questions": 4, "held_now": 2}) == {"questions": 4}
    assert summed([{"questions": 4}, {"questions": 1, "ours": 2}]) == {"questions": 5, "ours": 2}


def test_shares_of_one_caller_add_up() -> None:
    """Each worker has a share of it; when it last gave way is the latest."""
    one = ShareStats(caller="10.0.0.2", held=3, stuck=5, given_up=1, last=10.0)
    other = replace(one, caller="10.0.0.3")
    total = shares([one, other, replace(one, held=4, stuck=0, last=20.0)])
    assert total == (ShareStats(caller="10.0.0.2", held=7, stuck=5, given_up=2, last=20.0), other)
