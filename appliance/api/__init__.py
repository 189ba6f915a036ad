"""The admin API on the unix socket: what it answers, and how."""
