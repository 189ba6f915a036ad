"""How many datagrams a wake-up reads."""

from __future__ import annotations

from appliance.dataplane.udp.batch import BATCH, PROBE, BatchReader


def test_sparse_traffic_is_read_one_by_one_and_probed_now_and_then() -> None:
    """A second read that finds nothing costs time; without one it would never be known that traffic is dense."""
    reader = BatchReader()
    budgets = [reader.budget() for _ in range(2 * PROBE)]
    assert budgets == [*([1] * (PROBE - 1)), BATCH] * 2


def test_dense_traffic_is_read_in_batches_until_it_is_sparse() -> None:
    """The subclass says after each wake-up what it was."""
    reader = BatchReader()
    reader.dense = True
    assert [reader.budget() for _ in range(3)] == [BATCH] * 3
    reader.dense = False
    assert reader.budget() == 1
