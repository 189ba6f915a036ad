"""`make demo-cluster` itself."""

from __future__ import annotations

import sys

import pytest
from machine import ROOT, run

pytestmark = [pytest.mark.system, pytest.mark.timeout(400)]


def test_demo_of_three_machines() -> None:
    """It shows all that it promises, finds that it was so, and leaves nothing behind."""
    said = run(sys.executable, ROOT / "examples/demo_cluster.py", timeout=380).stdout
    assert said.splitlines()[-1] == "Everything above was checked, and holds."
    assert "nothing is left behind" in said
