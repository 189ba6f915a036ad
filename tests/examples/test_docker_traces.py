"""What a Docker Engine leaves behind is taken back; with real rules and an engine: system/test_demo_alone.py."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent.parent / "examples"))

from docker_traces import emptied  # examples/ is no package

NAT = """# Generated
*nat
:PREROUTING ACCEPT [0:0]
:OUTPUT ACCEPT [7:512]
:DOCKER - [0:0]
-A PREROUTING -m addrtype --dst-type LOCAL -j DOCKER
COMMIT
"""
FILTER = """*filter
:INPUT ACCEPT [5:420]
:FORWARD DROP [0:0]
:DOCKER - [0:0]
-A FORWARD -j DOCKER
COMMIT
# Completed
"""


def test_tables_that_are_new_are_emptied():
    """Where iptables is the legacy one: no chain of Docker, no rule, nothing dropped; other tables are not touched."""
    assert emptied(NAT + FILTER, NAT) == "*filter\n:INPUT ACCEPT [0:0]\n:FORWARD ACCEPT [0:0]\nCOMMIT\n"
    assert emptied(NAT + FILTER, NAT + FILTER) == emptied("", NAT) == ""
