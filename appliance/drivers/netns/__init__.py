"""Network namespaces: which one a file leads to, what is in it, and sockets inside it."""
