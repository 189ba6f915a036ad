"""Is this host fit for the appliance, and what has a former one left behind."""
