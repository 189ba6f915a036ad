"""Does Consul serve as the registry: reachable, with a leader, and takes our token. Part of `meshbox check`.

Not asked before `meshbox run`: the appliance starts without Consul too, on what it knew last.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import trio

from appliance.drivers.netns import identity
from appliance.errors import HostError, RetryError
from appliance.model.finding import Finding, failed, ok, warning

if TYPE_CHECKING:
    from appliance.config.options import Config
    from appliance.drivers.consul.api import ConsulApi

PATIENCE = 5.0
"""Seconds that Consul gets for all questions together."""


async def consul(config: Config) -> list[Finding]:
    """Look at Consul, if it is the registry."""
    if config.registry != "consul":
        return []
    from appliance.drivers.consul.api import ConsulApi  # noqa: PLC0415 — 6 MB that a machine alone does not need

    try:
        api = ConsulApi(config.consul)
    except HostError as error:
        words, _, remedy = str(error).partition(": ")
        return [failed("Consul", words, f"{remedy}; mend that file, or name another one")]
    try:
        with trio.fail_after(PATIENCE):
            return [await _answers(api, config)]
    except trio.TooSlowError:
        words = f"Consul at {config.consul.address} did not answer within {PATIENCE:g} s"
        return [warning("Consul", words, "check its load and the network, or set consul.address")]
    finally:
        with trio.CancelScope(shield=True):
            await api.aclose()


async def _answers(api: ConsulApi, config: Config) -> Finding:
    from appliance.drivers.consul import codec  # noqa: PLC0415 — as above
    from appliance.drivers.consul.specs import FOLDER  # noqa: PLC0415

    own = codec.machine_id(config.node)
    try:
        await api.address()
        await api.catalogue()
        await api.values(FOLDER)
        found = (await api.own_services(config.node)).get(own)
        if found is not None and codec.is_namesake(found, identity.host()) and await api.is_passing(own):
            return failed("Consul", *_parted(codec.namesake(config.node)))
        machines, _ = codec.parse_machines((await api.health(codec.MESHBOX))[1])
        for doubt in codec.one_per_node(machines)[1]:
            return warning("Consul", *_parted(doubt))
    except HostError as error:  # the token's file, which is read again when the token is refused
        return failed("Consul", str(error), "mend that file, or name another one")
    except RetryError as error:
        return _explained(str(error))
    return ok("Consul", f"{config.consul.address} has a leader and takes our token")


def _parted(line: str) -> tuple[str, str]:
    """Part what is wrong and what to do."""
    words, _, remedy = line.partition("; ")
    return words, remedy


def _explained(error: str) -> Finding:
    """Part the driver's words into what is wrong and what to do."""
    words, found, remedy = error.rpartition("; ")
    if found:
        return warning("Consul", words, f"{remedy}, or set consul.address")
    words, found, remedy = error.rpartition(": the token's policy needs ")
    if found:
        return warning("Consul", words, f"add to the token's policy: {remedy}")
    return warning("Consul", error, "look at Consul's log, and at the other Consul servers")
