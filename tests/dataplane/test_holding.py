"""The order in which one caller gives way; test_shares.py has when."""

from __future__ import annotations

from appliance.dataplane.holding import CHANCES, CalledHolding, Holder


class One:
    """Something that a caller holds."""

    def __init__(self, name: str, *, brief: bool = False) -> None:
        self.name = name
        self.bytes = 0
        self.ended = False
        self.holding = CalledHolding(self.end, lambda: self.bytes, brief=brief)

    def end(self) -> None:
        """End."""
        self.ended = True


def given_up(holder: Holder, *held: One) -> list[str]:
    """Return the names of what gives way, in that order."""
    names = {one.holding: one.name for one in held}
    order = []
    while (one := holder.next()) is not None:
        order.append(names[one])
        holder.remove(one)
    assert not holder.held
    return order


def holder(*held: One, weight: int = 1) -> Holder:
    """Return one that got these in that order."""
    made = Holder("key", "host", weight)
    for one in held:
        made.add(one.holding)
    return made


def test_what_has_probably_ended_goes_first() -> None:
    """The oldest of it; then what goes on, the newest first."""
    held = [One("a"), One("b", brief=True), One("c"), One("d", brief=True), One("e")]
    assert given_up(holder(*held), *held) == ["b", "d", "e", "c", "a"]


def test_what_is_kept_goes_on() -> None:
    """From when that is known; again, or of what goes on anyway, it means nothing."""
    held = [One("a", brief=True), One("b", brief=True), One("c")]
    made = holder(*held)
    made.keep(held[0].holding)
    made.keep(held[0].holding)
    made.keep(held[2].holding)
    assert given_up(made, *held) == ["b", "a", "c"]


def test_of_a_peer_the_oldest_goes_that_is_not_used() -> None:
    """What has carried something since the last look is passed over, but not for ever."""
    held = [One("a"), One("b"), One("c")]
    held[0].bytes = 1
    assert given_up(holder(*held, weight=4), *held) == ["b", "c", "a"]

    class Busy(One):
        """Carries something whenever it is looked at."""

        def __init__(self) -> None:
            super().__init__("busy")
            self.holding = CalledHolding(self.end, self.carry)

        def carry(self) -> int:
            self.bytes += 1
            return self.bytes

    busy = Busy()
    assert given_up(holder(busy, weight=4), busy) == ["busy"]
    assert busy.bytes <= 2 * CHANCES + 2


def test_what_it_stands_for_is_ended_and_let_go() -> None:
    """Giving up ends it; after its end it carries nothing, and giving up does nothing."""
    one = One("a")
    one.bytes = 7
    assert one.holding.carried == 7
    one.holding.give_up()
    assert one.ended
    one.holding.release()
    one.ended = False
    one.holding.give_up()
    assert (one.holding.carried, one.ended) == (0, False)
