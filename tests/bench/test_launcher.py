from __future__ import annotations

from ipaddress import IPv4Address

import pytest
import uvloop

from appliance.dataplane.inprocess import InProcess
from appliance.model.names import Protocol
from bench import launcher

CALLER = IPv4Address("10.91.1.1")


def test_a_listener_leads_to_the_server_and_lets_the_client_in() -> None:
    """Without doors, the client dials its port; the destination has the server's."""
    entry = {"port": 20050, "protocol": "udp", "backend": ["10.91.2.2", 8080]}
    listener = launcher._listener(3, entry, CALLER, None)
    assert (listener.port, listener.vip, listener.callers) == (20050, None, {CALLER})
    assert str(listener.destination) == "c3.bench:8080/udp"
    assert listener.destination.protocol is Protocol.UDP
    (backend,) = listener.backends
    assert (str(backend.address), backend.port, backend.netns) == ("10.91.2.2", 8080, None)


def test_with_doors_the_client_dials_a_virtual_address() -> None:
    """And the backend is dialled from inside its namespace: here this process's own."""
    doors = {"vip": "241.0.0.1", "into": {"10.91.2.2": "/proc/self/ns/net"}}
    listener = launcher._listener(0, {"port": 1, "protocol": "tcp", "backend": ["10.91.2.2", 8080]}, CALLER, doors)
    assert str(listener.vip) == "241.0.0.1"
    assert listener.backends[0].netns is not None


def test_without_workers_the_data_plane_is_in_this_process() -> None:
    """As the appliance has it by default."""
    loop = uvloop.new_event_loop()
    plane = launcher.make_plane(loop, workers=0, dns_upstreams=list, dns_port=0)
    assert isinstance(plane, InProcess)
    plane.close()
    loop.close()


def test_what_is_no_namespace_is_named(tmp_path: object) -> None:
    """A configuration that was made for another machine."""
    with pytest.raises(SystemExit, match=r"/dev/null is no network namespace"):
        launcher._open_doors(None, {"vip_range": "240.0.0.0/4", "into": {"10.91.1.1": "/dev/null"}})  # type: ignore[arg-type]
