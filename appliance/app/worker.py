"""A worker process of the data plane: `python -m appliance.app.worker LEVEL FORM DESCRIPTOR` (see `Config.workers`)."""

from __future__ import annotations

import sys

from appliance import logs
from appliance.dataplane.workers import worker


def command(*, level: str, form: str) -> tuple[str, ...]:
    """Return what starts a worker that logs like this process; the descriptor of its channel is to be added.

    Not from the working directory (-P): whoever may write there would be root here.
    """
    return (sys.executable, "-P", "-m", "appliance.app.worker", level, form)


if __name__ == "__main__":
    _, log_level, log_form, descriptor = sys.argv
    sys.modules.setdefault("rich", None)  # type: ignore[arg-type] # structlog would load it, for nothing
    logs.configure(level=log_level, form=log_form)
    sys.exit(worker.run(int(descriptor)))
