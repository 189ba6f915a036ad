"""The DNS server, and the resolver behind it."""
