from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from clustermesh.errors import UserError
from clustermesh.settings import CommaSeparated, DaemonSettings, parse_address


@dataclass(frozen=True, kw_only=True, slots=True)
class ApiserverSettings(DaemonSettings):
    """Publish what a cluster shares with the mesh in the cluster's own etcd."""

    source: str
    "Where the state of the cluster is read: dir:PATH, a directory of Kubernetes manifests."

    etcd_endpoints: CommaSeparated
    "URLs of the etcd to publish in, separated by commas or given several times."

    etcd_ca: Path | None = None
    "File with the CA that signed the certificate of etcd (PEM)."

    etcd_cert: Path | None = None
    "File with the certificate to show to etcd (PEM)."

    etcd_key: Path | None = None
    "File with the private key of that certificate (PEM)."

    clusters_dir: Path | None = None
    "Directory with a file for each connected cluster: each gets a user of its own to read with."

    listen: str = "127.0.0.1:9880"
    "HOST:PORT or unix:PATH for health, metrics and status."

    def __post_init__(self) -> None:
        DaemonSettings.__post_init__(self)
        kind, colon, path = self.source.partition(":")
        if kind != "dir" or not colon or not path:
            raise UserError(f"--source {self.source!r} is no source", hint="write dir:PATH")
        if not self.etcd_endpoints:
            raise UserError("--etcd-endpoints is empty", hint="write https://HOST:2379")
        given = [self.etcd_ca, self.etcd_cert, self.etcd_key]
        if any(given) and not all(given):
            raise UserError(
                "--etcd-ca, --etcd-cert and --etcd-key belong together",
                hint="give all three, or none for plain http:// on loopback",
            )
        parse_address(self.listen)

    @property
    def directory(self) -> Path:
        """The directory that `source` names."""
        return Path(self.source.removeprefix("dir:"))
