"""Containers join from whatever bridge network they are on, and mesh names work there as they are."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from machine import IMAGE, wait_until

if TYPE_CHECKING:
    from machine import Machine

pytestmark = pytest.mark.system


@pytest.mark.parametrize("options", [(), ("--internal",)], ids=["user-defined", "internal"])
def test_names_and_ports_work_on_other_networks(mesh: Machine, options: tuple[str, ...]) -> None:
    """A labelled container on a network of its owner's reaches one on the default bridge, by name, TCP and UDP."""
    mesh.docker("network", "create", *options, "own")
    logged = len(mesh.log(100_000))
    try:
        mesh.run_container("server", IMAGE, service="far", container="server", ports="7000,7000/udp")
        mesh.run_container(
            "caller", IMAGE, options=("--network=own",), service="near", container="caller", connect_to="server.far"
        )
        wait_until(lambda: "answer" in mesh.client("caller", "tcp", "server.far", "7000", "1")[0], "TCP answers")
        (result,) = mesh.client("caller", "udp", "server.far", "7000", "1")
        assert "answer" in result
        assert "failed" not in mesh.log(100_000)[logged:]
    finally:
        mesh.docker("rm", "--force", "caller")
        mesh.docker("network", "rm", "own")
