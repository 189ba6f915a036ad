"""Whether this host is fit for the appliance, and what a former one has left behind."""
