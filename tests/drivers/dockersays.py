"""What Docker 20.10 really answered, shortened."""

from __future__ import annotations

from typing import Any

ID = "6596373865ffcdc68c9c93fd7092467c710d63e2aa6c2007358f194682148fef"
NETWORK_ID = "4f7fb55555415bbd148c7a4fd2d47204f257cb8899cf202b029f0fe22ec5d3ac"


def inspect(**changes: Any) -> dict[str, Any]:
    """Return `GET /containers/{id}/json` of a running container; `State__Status="exited"` changes a field."""
    said: dict[str, Any] = {
        "Id": ID,
        "Created": "2026-11-24T00:32:35.093175799Z",
        "State": {
            "Status": "running",
            "Running": True,
            "Pid": 10600,
            "ExitCode": 0,
            "StartedAt": "2026-11-24T00:32:35.407754632Z",
            "FinishedAt": "0001-01-01T00:00:00Z",
        },
        "Image": "sha256:9ca34f2df370e1e3ac4d48bec58a45967e99431f8421ffa03fb92f65fd00ded0",
        "Name": "/t5",
        "RestartCount": 0,
        "HostConfig": {"Binds": None, "NetworkMode": "meshbox", "Runtime": "runc", "Dns": []},
        "Config": {
            "Image": "meshbox-test:busybox",
            "Env": None,
            "Labels": {"meshbox.service": "a", "meshbox.container": "web", "meshbox.ports": "8080:80"},
        },
        "NetworkSettings": {
            "SandboxKey": "/var/run/docker/netns/2d55439f92b6",
            "Ports": {
                "80/tcp": [{"HostIp": "0.0.0.0", "HostPort": "8099"}, {"HostIp": "::", "HostPort": "8099"}],
                "81/tcp": None,
                "82/sctp": [{"HostIp": "0.0.0.0", "HostPort": "82"}],
                "53/udp": [{"HostIp": "0.0.0.0", "HostPort": "5353"}],
            },
            "Networks": {
                "meshbox": {
                    "IPAMConfig": None,
                    "NetworkID": NETWORK_ID,
                    "Gateway": "172.17.0.1",
                    "IPAddress": "172.17.0.2",
                    "IPPrefixLen": 16,
                    "IPv6Gateway": "fd00::1",
                    "GlobalIPv6Address": "fd00::2",
                    "DriverOpts": None,
                }
            },
        },
    }
    for path, value in changes.items():
        *folders, last = path.split("__")
        inside = said
        for folder in folders:
            inside = inside[folder]
        inside[last] = value
    return said


LIST = [
    {
        "Id": ID,
        "Names": ["/t5"],
        "Image": "meshbox-test:busybox",
        "ImageID": "sha256:9ca34f2df370e1e3ac4d48bec58a45967e99431f8421ffa03fb92f65fd00ded0",
        "State": "running",
        "Status": "Up Less than a second",
        "Labels": {"meshbox.service": "a"},
        "HostConfig": {"NetworkMode": "meshbox"},
        "NetworkSettings": {"Networks": {"meshbox": {"NetworkID": NETWORK_ID, "IPAddress": "172.17.0.2"}}},
    }
]

NETWORK = {
    "Name": "meshbox",
    "Id": NETWORK_ID,
    "Driver": "bridge",
    "EnableIPv6": True,
    "IPAM": {
        "Driver": "default",
        "Config": [
            {"Subnet": "172.17.0.0/16", "Gateway": "172.17.0.1"},
            {"Subnet": "fd00::/64", "Gateway": "fd00::1/64"},
        ],
    },
    "Internal": False,
    "Containers": {
        ID: {"Name": "t5", "IPv4Address": "172.17.0.2/16", "IPv6Address": ""},
        "e" * 64: {"Name": "t6", "IPv4Address": "", "IPv6Address": ""},
    },
    "Options": {"com.docker.network.bridge.enable_icc": "false"},
    "Labels": {"meshbox.managed": "true"},
}
HOST_NETWORK = {"Name": "host", "Id": "b7", "Driver": "host", "IPAM": {"Driver": "default", "Config": []}}

DIE = {
    "status": "die",
    "id": ID,
    "Type": "container",
    "Action": "die",
    "Actor": {
        "ID": ID,
        "Attributes": {"exitCode": "137", "image": "web", "meshbox.service": "a", "name": "t1"},
    },
    "scope": "local",
    "time": 1795480352,
    "timeNano": 1795480352499882856,
}
