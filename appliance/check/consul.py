"""Whether Consul can be the registry: reachable, with a leader, and accepting our token. Part of `meshbox check`.

Not asked before `meshbox run`: the appliance starts without Consul too, on what it knew last.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import trio

from appliance.drivers.netns import identity
from appliance.errors import HostError
from appliance.model.finding import Finding, failed, ok, warning

if TYPE_CHECKING:
    from appliance.config.options import Config
    from appliance.drivers.consul.api import ConsulApi

PATIENCE = 5.0
"""Seconds that Consul gets for all questions together."""


async def consul(config: Config) -> list[Finding]:
    """Check Consul, if it is the registry."""
    if config.registry != "consul":
        return []
    from appliance.drivers.consul.api import ConsulApi  # noqa: PLC0415 — 6 MB that a machine alone does not need

    try:
        api = ConsulApi(config.consul)
    except HostError as error:
        return [failed("Consul", error.words, error.remedy)]
    try:
        with trio.fail_after(PATIENCE):
            return await _answers(api, config)
    except trio.TooSlowError:
        words = f"Consul at {config.consul.address} did not answer within {PATIENCE:g} s"
        return [warning("Consul", words, "check its load and the network, or set consul.address")]
    finally:
        with trio.CancelScope(shield=True):
            await api.aclose()


async def _answers(api: ConsulApi, config: Config) -> list[Finding]:
    from appliance.drivers.consul import codec  # noqa: PLC0415 — as above
    from appliance.drivers.consul.agent import parse_agent  # noqa: PLC0415
    from appliance.drivers.consul.specs import FOLDER  # noqa: PLC0415
    from appliance.drivers.consul.transport import ConsulError  # noqa: PLC0415

    own = codec.machine_id(config.node)
    try:
        agent = parse_agent(await api.agent())
        await api.catalogue()
        await api.values(FOLDER)
        found = (await api.own_services(config.node)).get(own)
        if found is not None and codec.is_namesake(found, identity.host()) and await api.is_passing(own):
            clash = codec.namesake(config.node)
            return [failed("Consul", clash.words, clash.remedy)]
        machines, _ = codec.parse_machines((await api.health(codec.MESHBOX))[1])
        for clash in codec.one_per_node(machines)[1]:
            return [warning("Consul", clash.words, clash.remedy)]
    except ConsulError as error:
        if not error.remedy:
            return [warning("Consul", error.words, "look at Consul's log, and at the other Consul servers")]
        elsewhere = "" if error.refused else ", or set consul.address"
        return [warning("Consul", error.words, f"{error.remedy}{elsewhere}")]
    good = ok("Consul", f"{config.consul.address} has a leader and takes our token")
    return [good, *(warning("Consul", words, remedy) for words, remedy in agent.complaints)]
