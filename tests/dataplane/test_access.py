"""Which callers a listener serves, and which backends they may have."""

from __future__ import annotations

from dataclasses import dataclass
from ipaddress import IPv4Address
from typing import Any

import pytest
from tcpworld import CALLER, PEER, STRANGER, listener_of

from appliance.dataplane.access import Access, Caller
from appliance.dataplane.balance import BackendState
from appliance.model.network import Backend

HERE = BackendState(Backend(address=IPv4Address("127.0.0.8"), port=80, local=True))
THERE = BackendState(Backend(address=IPv4Address("127.0.0.9"), port=80, local=False))


@dataclass
class Served:
    """A pair, a dial or a session."""

    caller: Any
    state: BackendState


def access(callers: tuple[str, ...] = (CALLER,), peers: tuple[str, ...] = (PEER,)) -> Access:
    """Return the access that such a listener gives."""
    return Access.of(listener_of(20001, callers=callers, peers=peers))


def known(given: Access, key: str) -> Caller:
    """Return a caller that is not refused."""
    caller = given.caller(key)
    assert caller is not None
    return caller


def test_workloads_and_peers_are_told_apart() -> None:
    """A workload may go anywhere; a peer machine gets backends of this host only."""
    given = access()
    workload, peer = known(given, CALLER), known(given, PEER)
    assert (workload.host, workload.local_only) == (CALLER, False)
    assert (peer.host, peer.local_only) == (PEER, True)


@pytest.mark.parametrize("key", [STRANGER, "", "127.0.0.1 ", "127.0.0.01", "::ffff:127.0.0.1"])
def test_any_other_key_is_refused(key: str) -> None:
    """Whatever it looks like."""
    assert access().caller(key) is None


def test_an_address_of_both_kinds_is_a_workload() -> None:
    """A container with the address of a machine is reached by nothing else."""
    assert not known(access(callers=(PEER,)), PEER).local_only


def test_without_callers_and_peers_everything_is_refused() -> None:
    """A listener that nothing may call."""
    given = access((), ())
    assert given.caller(CALLER) is given.caller(PEER) is None


def test_peers_are_one_table_for_all_listeners() -> None:
    """There may be a thousand machines and as many listeners."""
    assert known(access(), PEER) is known(access(callers=(STRANGER,)), PEER)


def test_what_a_swap_still_allows_stays_and_learns_its_caller() -> None:
    """What is open is handed the value of the new listener, which may say more about the caller."""
    former = access()
    pairs = [Served(known(former, CALLER), HERE), Served(known(former, CALLER), THERE)]
    pairs.append(Served(known(former, PEER), HERE))
    now = access(callers=(CALLER, STRANGER))
    assert now.recheck(pairs) == []
    assert [pair.caller for pair in pairs] == [known(now, CALLER), known(now, CALLER), known(now, PEER)]


def test_what_a_swap_forbids_is_returned() -> None:
    """What a caller has that is gone; and of one that has become a peer, what leads to another machine."""
    former = access(callers=(CALLER, STRANGER))
    gone = [Served(known(former, CALLER), state) for state in (HERE, THERE)]
    here, there = (Served(known(former, STRANGER), state) for state in (HERE, THERE))
    now = access(callers=(), peers=(PEER, STRANGER))
    assert now.recheck([*gone, here, there]) == [*gone, there]
    assert here.caller.local_only
    assert not there.caller.local_only, "what is forbidden is left as it was"


def test_who_has_another_key_keeps_what_it_has() -> None:
    """If that one may call; what others have is left alone."""
    given = access(callers=(CALLER, STRANGER))
    own, others = Served(known(given, CALLER), HERE), Served(known(given, PEER), HERE)
    given.rekey([own, others], CALLER, "127.0.0.99")
    assert own.caller is known(given, CALLER)
    given.rekey([own, others], CALLER, STRANGER)
    assert own.caller is known(given, STRANGER)
    assert others.caller is known(given, PEER)
