"""What connects the control plane (Trio) to the world: Docker, namespaces, nft, Consul, files."""
