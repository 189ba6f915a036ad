"""Steps on a host whose containers come and go meanwhile."""

from __future__ import annotations

import pytest
import trio

from appliance.control.doors import Doors
from appliance.control.effects import HostEffects
from appliance.drivers.netns import identity
from appliance.drivers.nft.drift import RulesetWatch
from appliance.errors import RetryError
from appliance.model.facts import Netns
from appliance.model.names import Destination
from appliance.model.network import NetnsId
from appliance.render.ruleset import REMOVE

WEB, OTHER = map(Destination.parse, ("web.web:80", "other.web:80"))


class RefusingNft:
    """Refuses every push, after `before` was done."""

    def __init__(self, before=lambda: None):
        self.before = before
        self.pushed = []

    async def push(self, path, text):
        self.pushed.append((path, text))
        self.before()
        await trio.lowlevel.checkpoint()
        raise RetryError("reassociate to namespace failed")


@pytest.fixture
def netns(tmp_path):
    """A file that leads to a namespace."""
    path = tmp_path / "netns"
    path.symlink_to(identity.HOST)
    found = identity.identify(str(path))
    assert found is not None
    return Netns(id=found, path=str(path))


def drop(netns, nft):
    """Carry out the step."""
    watch = RulesetWatch(on_drift=lambda _: None)
    doors = Doors(None, None)
    effects = HostEffects(plane=None, doors=doors, nft=nft, nft_helper=None, watch=watch, registry=None)
    trio.run(effects.drop_ruleset, netns)


def test_namespace_that_goes_while_its_table_is_removed_is_no_fault(netns, tmp_path):
    """Docker may unmount it at any time; then there is nothing left to remove, and nothing to report."""
    nft = RefusingNft(before=(tmp_path / "netns").unlink)
    drop(netns, nft)
    assert nft.pushed == [(netns.path, REMOVE)]


def test_refusal_in_a_namespace_that_is_there_is_one(netns):
    """The step is to be tried again."""
    with pytest.raises(RetryError):
        drop(netns, RefusingNft())


def test_table_of_another_namespace_at_that_path_is_left_alone(netns):
    """Docker uses paths again: what leads elsewhere by now is not ours to clear."""
    nft = RefusingNft()
    gone = Netns(id=NetnsId(device=netns.id.device, inode=netns.id.inode + 1), path=netns.path)
    drop(gone, nft)
    assert nft.pushed == []


class DataPlane:
    """Has connections until they are ended, to what is still accepted and what is not."""

    def __init__(self):
        self.accepts, self.carries = {WEB}, {WEB, OTHER}

    def close_listener(self, destination):
        self.accepts.remove(destination)

    def end_pairs(self, destination):
        assert destination not in self.accepts, "more may come"
        self.carries.remove(destination)


def test_a_listener_that_closes_ends_its_connections():
    """Nobody may reach it any more, so nobody goes on with what was allowed; others' connections stay."""
    plane = DataPlane()
    watch = RulesetWatch(on_drift=lambda _: None)
    HostEffects(plane=plane, doors=None, nft=None, nft_helper=None, watch=watch, registry=None).close_listener(WEB)
    assert (plane.accepts, plane.carries) == (set(), {OTHER})
