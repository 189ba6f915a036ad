"""Messages are values that arrive as they were sent."""

from __future__ import annotations

import dataclasses
import inspect
import pickle
from ipaddress import IPv4Address

import pytest
from tcpworld import DESTINATION, listener_of

from appliance.dataplane import api
from appliance.dataplane.workers import messages
from appliance.model.network import Backend, Door, NetnsId, Zone
from appliance.model.sources import CallerSources

ADDRESS = IPv4Address("127.0.0.1")
NETNS = NetnsId(device=4, inode=1)
BACKEND = Backend(address=ADDRESS, port=80, local=True)
EXAMPLES = (
    messages.Init(dns_port=53, idle_udp=60.0, alone=True),
    messages.Ready(),
    messages.Serve(listener_of(20001, BACKEND), opened=True, doors_only=True),
    messages.AcceptFor(DESTINATION, 1),
    messages.StopAcceptingFor(1),
    messages.SetBackends(DESTINATION, (BACKEND,)),
    messages.Close(DESTINATION),
    messages.ServeDoor(Door(netns=NETNS, caller=ADDRESS, dialler=ADDRESS), udp=True),
    messages.MoveDoor(Door(netns=NETNS, caller=ADDRESS, dialler=ADDRESS)),
    messages.LeaveDoor(NETNS),
    messages.DialFrom(CallerSources(step=8, addresses={ADDRESS: ADDRESS})),
    messages.ServeDnsDoor(Door(netns=NETNS, caller=ADDRESS, dialler=ADDRESS), sockets=2),
    messages.LeaveDnsDoor(NETNS),
    messages.EndPairs(DESTINATION),
    messages.Confirm(),
    messages.ServeDns(frozenset({ADDRESS}), ADDRESS),
    messages.AnswerFrom(Zone(suffix="mesh.internal")),
    messages.SetUpstreams((("127.0.0.1", 53),)),
    messages.Ask(7, api.pairs_to(ADDRESS)),
    messages.Stop(),
    messages.Answer(7, (1, 2)),
    messages.Refused(ADDRESS),
    messages.Missing(NETNS, 1),
)


def test_every_kind_has_an_example() -> None:
    """A new message needs one here."""
    kinds = {kind for _, kind in inspect.getmembers(messages, dataclasses.is_dataclass)}
    assert kinds == {type(example) for example in EXAMPLES}


@pytest.mark.parametrize("message", EXAMPLES, ids=lambda message: type(message).__name__)
def test_a_message_arrives_as_it_was_sent(message: object) -> None:
    """Both ends are the same program, so pickle will do."""
    assert pickle.loads(pickle.dumps(message, pickle.HIGHEST_PROTOCOL)) == message
