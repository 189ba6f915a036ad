"""Two machines whose Consul denies by default and wants client certificates."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from certificates import client_settings, make_certificates, tls_settings
from cluster import HTTP, Cluster, Secrets
from machine import IMAGE, IMAGES, wait_until
from meshworld import TRIO, heard, name_of
from realconsul import ACL_RULES

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from machine import Switch

pytestmark = [pytest.mark.system, pytest.mark.timeout(240)]

ACL = 'acl { enabled = true, default_policy = "deny", tokens { master = "root", agent = "root" } }'


def test_access_control_and_tls(switch: Switch, tmp_path: Path) -> None:
    """A token with the documents' rules and a client certificate are all that a mesh needs; without, it says why."""
    make_certificates(tmp_path)

    def registry(cluster: Cluster) -> Mapping[str, str]:
        consul = cluster.machines[0].consul
        policy = {"Name": "appliance", "Rules": ACL_RULES}
        wait_until(lambda: consul.get("/v1/acl/policies"), "Consul knows its first token")
        if not any(one["Name"] == "appliance" for one in consul.get("/v1/acl/policies")):
            consul.request("PUT", "/v1/acl/policy", policy)
        token = consul.request("PUT", "/v1/acl/token", {"Policies": [{"Name": "appliance"}]}).json()["SecretID"]
        files = {f"consul_{key}": value for key, value in client_settings(tmp_path).items()}
        return {"consul": f"https://127.0.0.1:{HTTP + 3}", "consul_token": token, **files}

    secrets = Secrets(hcl=f"{ACL}\n{tls_settings(tmp_path)}", token="root", registry=registry)
    with Cluster(switch, first=21, count=2, images={IMAGE: IMAGES[IMAGE]}, secrets=secrets) as cluster:
        one, two = cluster.machines
        said = one.deploy(TRIO.replace("count=3", "count=2")).stdout
        assert said.splitlines()[-1] == f"ready: trio (2: 1 on {one.node}, 1 on {two.node})"
        one.run_container("client", IMAGE, service="near", container="client", connect_to="server.trio")
        wait_until(lambda: heard(one).keys() == {name_of(one), name_of(two)}, "both replicas answer")
        two.stop()
        two.start(consul_token="00000000-0000-0000-0000-000000000000")
        wait_until(lambda: "does not know our ACL token" in two.peers["held_why"], "the token is refused")
        two.stop()
        two.start(consul_cert="", consul_key="")
        wait_until(lambda: "check consul.cert and consul.key" in two.peers["held_why"], "a certificate is wanted")
        wait_until(lambda: len(heard(one)) == 2, "who took its leave is replaced", seconds=40)
