"""The embedded registry of a single machine, and its state file."""
