"""The embedded registry of a machine by itself, and files that outlive the process."""
