"""The container image: how to recognise that this process runs in it, and the options that it is run with."""

from __future__ import annotations

from pathlib import Path

IMAGE_MARK = Path("/usr/lib/meshbox/healthcheck.py")
"""Only the image has this file."""
CONTAINER_MARK = Path("/.dockerenv")
"""Docker puts this file into every container."""
RUN_OPTIONS = "--pid=host -v /var/run/docker.sock:/var/run/docker.sock -v /var/lib/meshbox:/var/lib/meshbox"
"""Options of `docker run` with which the image is the whole appliance, and not only a gateway."""
