"""Computations in turns."""

from __future__ import annotations

from appliance.plan.turns import TURN, at_once, in_turns, reused


def turns(work) -> list[int]:
    """How many items were done before each break, and at the end."""
    done: list[int] = []
    breaks = [len(done) for _ in in_turns(done.append, range(work))]
    return [*breaks, len(done)]


def test_at_once_returns_the_result():
    """All turns are done, and what the computation returns comes back."""

    def work():
        yield
        found = yield from in_turns(str, range(3))
        yield
        return found

    assert at_once(work()) == ["0", "1", "2"]


def test_a_turn_has_so_many_items():
    """Others get to run before the first item and after every full turn, and in order."""
    assert turns(0) == [0]
    assert turns(1) == [0, 1]
    assert turns(TURN) == [0, TURN]
    assert turns(2 * TURN + 1) == [0, TURN, 2 * TURN, 2 * TURN + 1]


def test_equal_objects_are_reused():
    """An equal object under the same key stays; one that changed, came or went does not."""
    same, changed, gone = [1], [2], [3]
    new = [4]
    found = reused({"same": same, "changed": changed, "gone": gone}, {"same": [1], "changed": [5], "new": new})
    assert found == {"same": [1], "changed": [5], "new": [4]}
    assert found["same"] is same
    assert found["new"] is new
