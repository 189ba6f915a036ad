from __future__ import annotations

import trio
from prometheus_client.parser import text_string_to_metric_families

from appliance.api import metrics
from appliance.config.options import Config
from appliance.testing.appliance import FakeAppliance
from tests.plan.cases import container


def test_everything_is_readable_and_unique():
    """Prometheus' own parser reads all of it, and no sample appears twice."""
    fake = FakeAppliance(Config(node="h1"), workloads=[container(number, "web.shop", (80,)) for number in (2, 3)])
    families = list(text_string_to_metric_families(trio.run(metrics.text, fake).decode()))
    samples = [(s.name, tuple(sorted(s.labels.items()))) for f in families for s in f.samples]
    assert len(samples) == len(set(samples))
    values = {s.name: s.value for f in families for s in f.samples if not s.labels}
    assert values["meshbox_workloads"] == values["meshbox_workloads_ready"] == 2
    assert values["meshbox_faults_lasting"] == 0
    assert values["process_open_fds"] > 3
    backends = {s.labels["backend"] for f in families for s in f.samples if s.name == "meshbox_backend_opened_total"}
    assert backends == {"c2", "c3"}
