"""The configuration: its options, and how their values are read."""
