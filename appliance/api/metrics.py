"""What Prometheus reads at `GET /metrics`, collected when it asks."""

from __future__ import annotations

import os
import resource
import time
from pathlib import Path
from typing import TYPE_CHECKING

from prometheus_client import CONTENT_TYPE_LATEST as CONTENT_TYPE
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.registry import Collector

from appliance import __version__
from appliance.plan.policy import declaration
from appliance.plan.readiness import missing

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

    from prometheus_client import Metric

    from appliance.api.server import Appliance
    from appliance.model.stats import ListenerStats

__all__ = ["CONTENT_TYPE", "text"]

OF_LISTENER = {
    "accepted": "Connections and sessions that were let in.",
    "refused": "Connections of callers that may not.",
    "failed": "Connections for which no backend answered.",
}
OF_BACKEND = {
    "opened": "Connections and sessions established with the backend.",
    "failed": "Dials that failed.",
    "bytes_in": "Bytes from clients to the backend.",
    "bytes_out": "Bytes from the backend to clients.",
}


async def text(appliance: Appliance) -> bytes:
    """Return all metrics in Prometheus' text format."""
    registry = CollectorRegistry()
    registry.register(_Collector(appliance, await appliance.stats(), await appliance.counters()))
    return generate_latest(registry)


class _Collector(Collector):
    def __init__(self, appliance: Appliance, stats: Iterable[ListenerStats], counters: Mapping[str, float]) -> None:
        self._appliance = appliance
        self._stats = stats
        self._counters = counters

    def collect(self) -> Iterator[Metric]:
        yield from self._process()
        yield from self._mesh()
        yield from _listeners(self._stats)

    def _process(self) -> Iterator[Metric]:
        info = GaugeMetricFamily("meshbox_info", "Always 1.", labels=["version", "node"])
        info.add_metric([__version__, self._appliance.config.node], 1)
        yield info
        yield GaugeMetricFamily(
            "meshbox_uptime_seconds", "Since the start.", value=time.time() - self._appliance.started_at
        )
        usage = resource.getrusage(resource.RUSAGE_SELF)
        yield CounterMetricFamily("process_cpu_seconds", "User and system time.", value=usage.ru_utime + usage.ru_stime)
        pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
        yield GaugeMetricFamily(
            "process_resident_memory_bytes", "Resident memory.", value=pages * os.sysconf("SC_PAGE_SIZE")
        )
        files = sum(1 for _ in Path("/proc/self/fd").iterdir())
        yield GaugeMetricFamily("process_open_fds", "Open file descriptors.", value=files)

    def _mesh(self) -> Iterator[Metric]:
        s, have = self._appliance.snapshot(), self._appliance.have
        ready = sum(missing(w, declaration(w, s.specs).ports) is None for w in s.workloads)
        yield GaugeMetricFamily("meshbox_services", "Deployed services.", value=len(s.specs))
        yield GaugeMetricFamily("meshbox_workloads", "Containers in the mesh.", value=len(s.workloads))
        yield GaugeMetricFamily("meshbox_workloads_ready", "Those of them that are ready.", value=ready)
        yield GaugeMetricFamily("meshbox_rulesets", "Namespaces with our rules.", value=len(have.rulesets))
        yield GaugeMetricFamily("meshbox_listeners", "Open listeners.", value=len(have.listeners))
        yield GaugeMetricFamily("meshbox_machines", "Healthy machines.", value=sum(m.healthy for m in s.machines))
        lasting = len(self._appliance.faults.current)
        yield GaugeMetricFamily("meshbox_faults_lasting", "Faults that are not over.", value=lasting)
        for name, value in sorted(self._counters.items()):
            yield CounterMetricFamily(f"meshbox_{name}", f"{name.replace('_', ' ')} since the start.", value=value)


def _listeners(stats: Iterable[ListenerStats]) -> Iterator[Metric]:
    listeners = tuple(stats)
    active = GaugeMetricFamily("meshbox_active", "Open connections and sessions.", labels=["destination"])
    for one in listeners:
        active.add_metric([str(one.destination)], one.active)
    yield active
    for field, words in OF_LISTENER.items():
        family = CounterMetricFamily(f"meshbox_{field}", words, labels=["destination"])
        for one in listeners:
            family.add_metric([str(one.destination)], getattr(one, field))
        yield family
    for field, words in OF_BACKEND.items():
        family = CounterMetricFamily(f"meshbox_backend_{field}", words, labels=["destination", "backend"])
        for one in listeners:
            for b in one.backends:
                label = b.backend.label or f"{b.backend.address}:{b.backend.port}"
                family.add_metric([str(one.destination), label], getattr(b, field))
        yield family
