"""Certificates for a Consul that wants them: an authority, one that nobody trusts, a server's and a client's."""

from __future__ import annotations

import subprocess
from pathlib import Path

NEW = ("req", "-newkey", "rsa:2048", "-nodes")


def _openssl(*arguments: str | Path) -> None:
    subprocess.run(["openssl", *map(str, arguments)], check=True, capture_output=True)


def make_certificates(folder: Path) -> None:
    """Write ca, other, server and client, each .pem and .key, valid for two days and for 127.0.0.1."""
    for name in ("ca", "other"):
        files = ("-keyout", folder / f"{name}.key", "-out", folder / f"{name}.pem")
        _openssl(*NEW, "-x509", "-subj", f"/CN={name}", "-days", "2", *files)
    extensions = folder / "extensions"
    extensions.write_text("subjectAltName = IP:127.0.0.1, DNS:localhost\n")
    for name in ("server", "client"):
        request = folder / f"{name}.csr"
        _openssl(*NEW, "-subj", f"/CN={name}", "-keyout", folder / f"{name}.key", "-out", request)
        signer = ("-CA", folder / "ca.pem", "-CAkey", folder / "ca.key", "-CAcreateserial", "-days", "2")
        out = ("-extfile", extensions, "-out", folder / f"{name}.pem")
        _openssl("x509", "-req", "-in", request, *signer, *out)


def tls_settings(folder: Path) -> str:
    """Return a Consul server's settings: over HTTPS, only clients with a certificate of that authority."""
    return f"""
        ca_file = "{folder}/ca.pem"
        cert_file = "{folder}/server.pem"
        key_file = "{folder}/server.key"
        verify_incoming_https = true
    """


def client_settings(folder: Path) -> dict[str, str]:
    """Return the settings of meshbox that go with it."""
    return {"ca": f"{folder}/ca.pem", "cert": f"{folder}/client.pem", "key": f"{folder}/client.key"}
