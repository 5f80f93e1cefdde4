from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from clustermesh.errors import UserError
from clustermesh.settings import CommaSeparated, DaemonSettings, parse_address


@dataclass(frozen=True, kw_only=True, slots=True)
class ApiserverSettings(DaemonSettings):
    """Publish what a cluster shares with the mesh in the cluster's own etcd."""

    source: str
    "Where the cluster's state is read: kube, or dir:PATH, a directory of Kubernetes manifests."

    kubeconfig: Path | None = None
    "For --source kube: file that says how to reach the API server; by default, as pods do."

    context: str | None = None
    "For --source kube: name of a context in that file, or in kubectl's; by default the current."

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

    mirror: bool = False
    "Copy what the connected clusters say into our etcd, for agents that are --mirrored."

    listen: str = "127.0.0.1:9880"
    "HOST:PORT or unix:PATH for health, metrics and status."

    def __post_init__(self) -> None:
        DaemonSettings.__post_init__(self)
        kind, _, path = self.source.partition(":")
        if self.source != "kube" and (kind != "dir" or not path):
            raise UserError(f"--source {self.source!r} is no source", hint="write kube or dir:PATH")
        if self.source != "kube" and (self.kubeconfig or self.context):
            raise UserError("--kubeconfig and --context belong to --source kube")
        if not self.etcd_endpoints:
            raise UserError("--etcd-endpoints is empty", hint="write https://HOST:2379")
        given = [self.etcd_ca, self.etcd_cert, self.etcd_key]
        if any(given) and not all(given):
            raise UserError(
                "--etcd-ca, --etcd-cert and --etcd-key belong together",
                hint="give all three, or none for plain http:// on loopback",
            )
        if self.mirror and self.clusters_dir is None:
            raise UserError("--mirror needs --clusters-dir", hint="it says what there is to copy")
        parse_address(self.listen)

    @property
    def directory(self) -> Path | None:
        """The directory that `source` names; None for `kube`."""
        return None if self.source == "kube" else Path(self.source.removeprefix("dir:"))
