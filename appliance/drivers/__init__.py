"""The doors to the world for the control plane (Trio): Docker, namespaces, nft, Consul, files."""
