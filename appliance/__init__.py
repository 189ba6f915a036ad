"""meshbox: one appliance per machine that turns plain Docker hosts into a service mesh."""

from __future__ import annotations

__version__ = "0.1.0"
