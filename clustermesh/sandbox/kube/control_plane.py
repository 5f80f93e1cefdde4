"""
A control plane as files and command lines: what runs them is somebody else.

A sandbox runs them in a network namespace, `e2e.kube.cluster` on loopback. Nothing is run here:
there are certificates to be written, and a command line for each of the three servers.
"""

from __future__ import annotations

import base64
import shutil
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from ipaddress import IPv4Address
from pathlib import Path
from typing import Final

import yaml
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from certs.ca import CLOCK_SKEW, Authority, PrivateKey, create_authority
from certs.leaf import CLIENT, SERVER, Pair, Profile, issue
from certs.store import write_atomically

# Not the ports that people know, so that a cluster of theirs on every address is not in the way.
# Below the ephemeral ones, so that nobody is given them while a server is down.
API_PORT: Final = 26443
ETCD_PORT: Final = 22379
_ETCD_PEER_PORT: Final = 22380

ADMINISTRATORS: Final = "system:masters"  # may do everything, whatever RBAC says

# Those whose work others wait for. Nodes' lifecycle is none of them: it would find that no kubelet
# renews its Lease, and take the endpoints of every Node away.
CONTROLLERS: Final = (
    "endpointslice-controller",
    "namespace-controller",
    "serviceaccount-controller",
    "root-ca-certificate-publisher-controller",
    "garbage-collector-controller",  # EndpointSlices go with their Service, Pods with their owner
)

_LIFETIME: Final = timedelta(days=365)
_NO_ADDRESS: Final = IPv4Address("192.0.2.1")  # RFC 5737: documentation


@dataclass(frozen=True, slots=True)
class ControlPlane:
    """An etcd, an API server and controllers at one address, below one directory."""

    directory: Path  # for certificates and data; has to be there
    name: str
    address: IPv4Address
    programs: Path  # as `kube_assets` gives it
    controllers: Sequence[str] = CONTROLLERS
    service_cidrs: Sequence[str] = ("10.96.0.0/16", "fd00:96::/112")
    etcd_address: IPv4Address | None = None  # of its etcd; without it, the same

    @property
    def url(self) -> str:
        """Where the API server answers."""
        return f"https://{self.address}:{API_PORT}"

    @property
    def etcd_url(self) -> str:
        """Where its etcd answers, to anybody who can reach the address."""
        return f"http://{self.etcd_address or self.address}:{ETCD_PORT}"

    @property
    def ca(self) -> Path:
        """The certificate that the API server's is signed by."""
        return self.directory / "ca.crt"

    @property
    def kubeconfig(self) -> Path:
        """The administrator's credentials, in one file that needs no other."""
        return self.directory / "kubeconfig"

    @property
    def cache(self) -> Path:
        """Where kubectl and helm may remember what the API server knows, and nobody else's."""
        return self.directory / "cache"

    @property
    def helm(self) -> Path:
        """A helm of that name, in a directory that has nothing else."""
        return self.directory / "bin/helm"

    @property
    def account(self) -> Path:
        """The credentials of a service account, if somebody has written them."""
        return self.directory / "account.kubeconfig"

    @property
    def kubelet(self) -> tuple[Path, Path]:
        """The certificate and key of the cluster's kubelets, if somebody has written them."""
        return self.directory / "kubelet.crt", self.directory / "kubelet.key"

    @property
    def admin(self) -> tuple[Path, Path]:
        """The administrator's certificate and key."""
        return self.directory / "admin.crt", self.directory / "admin.key"

    def prepare(self) -> Authority:
        """Write certificates, keys and the administrator's kubeconfig."""
        authority = create_authority(now=datetime.now(UTC))
        names = {str(self.address), "localhost", "kubernetes.default.svc"}
        profile = Profile("server", "kube-apiserver", frozenset(names), SERVER)
        server = issue(profile, authority, now=datetime.now(UTC))
        admin = client_certificate(authority, "admin", [ADMINISTRATORS])
        files = {self.ca: _certificate_pem(authority.certificate)}
        for name, pair in {"server": server, "admin": admin}.items():
            files[self.directory / f"{name}.crt"] = _certificate_pem(pair.certificate)
            files[self.directory / f"{name}.key"] = _key_pem(pair.key)
        service_accounts = ec.generate_private_key(ec.SECP256R1())
        files[self._service_account_key] = _key_pem(service_accounts)
        write_atomically({path: (pem, 0o600) for path, pem in files.items()})
        self.write_kubeconfig(self.kubeconfig, admin)
        self.helm.parent.mkdir(exist_ok=True)
        self.helm.unlink(missing_ok=True)
        self.helm.symlink_to(self.programs / "helm4")
        return authority

    def write_account(self, authority: Authority, namespace: str, name: str) -> None:
        """Write credentials that stand for those that pods of a service account are given."""
        group = "system:serviceaccounts"
        user = f"system:serviceaccount:{namespace}:{name}"
        client = client_certificate(authority, user, [group, f"{group}:{namespace}"])
        self.write_kubeconfig(self.account, client, namespace)

    def write_kubelet(self, authority: Authority, addresses: Iterable[IPv4Address]) -> None:
        """Write the certificate by which the API server knows the kubelets at these addresses."""
        profile = Profile("kubelet", "kubelet", frozenset(map(str, addresses)), SERVER)
        pair = issue(profile, authority, now=datetime.now(UTC))
        pems = (_certificate_pem(pair.certificate), _key_pem(pair.key))
        write_atomically({path: (pem, 0o600) for path, pem in zip(self.kubelet, pems, strict=True)})

    def write_kubeconfig(self, path: Path, client: Pair, namespace: str = "default") -> None:
        """Write the credentials of one who is known by a certificate, and works in a namespace."""
        user = {
            "client-certificate-data": _base64(_certificate_pem(client.certificate)),
            "client-key-data": _base64(_key_pem(client.key)),
        }
        self._write_kubeconfig(path, user, namespace)

    def write_token(self, path: Path, token: str, namespace: str) -> None:
        """Write the credentials of one who is known by a token, and works in a namespace."""
        self._write_kubeconfig(path, {"token": token}, namespace)

    def _write_kubeconfig(self, path: Path, user: Mapping[str, str], namespace: str) -> None:
        ca = self.ca.read_bytes()
        config = {
            "apiVersion": "v1",
            "kind": "Config",
            "clusters": [
                {
                    "name": self.name,
                    "cluster": {"server": self.url, "certificate-authority-data": _base64(ca)},
                }
            ],
            "users": [{"name": self.name, "user": dict(user)}],
            "contexts": [
                {
                    "name": self.name,
                    "context": {"cluster": self.name, "user": self.name, "namespace": namespace},
                }
            ],
            "current-context": self.name,
        }
        text = yaml.safe_dump(config, sort_keys=False)
        write_atomically({path: (text.encode(), 0o600)})

    def etcd(self) -> list[str]:
        """The command line of etcd."""
        peer = f"http://{self.etcd_address or self.address}:{_ETCD_PEER_PORT}"
        flags = {
            "name": self.name,
            "data-dir": self.directory / "etcd",
            "listen-client-urls": self.etcd_url,
            "advertise-client-urls": self.etcd_url,
            "listen-peer-urls": peer,
            "initial-advertise-peer-urls": peer,
            "initial-cluster": f"{self.name}={peer}",
            "logger": "zap",
            "log-level": "warn",
        }
        own = self.programs / "etcd"
        return _command(own if own.exists() else Path(shutil.which("etcd") or "etcd"), flags)

    def apiserver(self) -> list[str]:
        """The command line of the API server."""
        flags: dict[str, object] = {
            "bind-address": self.address,
            "secure-port": API_PORT,
            "etcd-servers": self.etcd_url,
            "etcd-compaction-interval": 0,  # compacted when a test says so, and only then
            "client-ca-file": self.ca,
            "kubelet-certificate-authority": self.ca,
            "kubelet-client-certificate": self.directory / "admin.crt",
            "kubelet-client-key": self.directory / "admin.key",
            "tls-cert-file": self.directory / "server.crt",
            "tls-private-key-file": self.directory / "server.key",
            "service-account-issuer": "https://kubernetes.default.svc",
            "service-account-key-file": self._service_account_key,
            "service-account-signing-key-file": self._service_account_key,
            "service-cluster-ip-range": ",".join(self.service_cidrs),
            "authorization-mode": "Node,RBAC",
            "allow-privileged": "true",
            # Off, so that a listing at a revision that was compacted is refused at once: else it is
            # answered from a snapshot in the cache for as long as that is there.
            "feature-gates": "ListFromCacheSnapshot=false",
            # Tell watches to end when it is told to. Else it waits for them for a minute.
            "shutdown-watch-termination-grace-period": "1s",
            "profiling": "false",
        }
        if self.address.is_loopback:
            # It refuses its own address in the EndpointSlice of the Service `kubernetes`.
            flags |= {"advertise-address": _NO_ADDRESS, "endpoint-reconciler-type": "none"}
        return _command(self.programs / "kube-apiserver", flags)

    def controller_manager(self) -> list[str]:
        """The command line of the controllers."""
        flags: dict[str, object] = {
            "kubeconfig": self.kubeconfig,
            "controllers": ",".join(self.controllers),
            "root-ca-file": self.ca,
            "leader-elect": "false",
            "secure-port": 0,
        }
        return _command(self.programs / "kube-controller-manager", flags)

    @property
    def _service_account_key(self) -> Path:
        return self.directory / "service-accounts.key"


def client_certificate(authority: Authority, user: str, groups: Sequence[str] = ()) -> Pair:
    """
    Credentials of `user`, who is in `groups`.

    `certs` does not make them: in its certificates there is nothing but a CN.
    """
    now = datetime.now(UTC)
    key = ec.generate_private_key(ec.SECP256R1())
    subject = [x509.NameAttribute(NameOID.ORGANIZATION_NAME, group) for group in groups]
    subject.append(x509.NameAttribute(NameOID.COMMON_NAME, user))
    certificate = (
        x509.CertificateBuilder()
        .subject_name(x509.Name(subject))
        .issuer_name(authority.certificate.subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - CLOCK_SKEW)
        .not_valid_after(now + _LIFETIME)
        .add_extension(x509.ExtendedKeyUsage(CLIENT), critical=False)
        .sign(authority.key, hashes.SHA256())
    )
    return Pair(certificate, key)


def _command(program: Path, flags: dict[str, object]) -> list[str]:
    return [str(program), *(f"--{flag}={value}" for flag, value in flags.items())]


def _certificate_pem(certificate: x509.Certificate) -> bytes:
    return certificate.public_bytes(serialization.Encoding.PEM)


def _key_pem(key: PrivateKey) -> bytes:
    # The format that also names the kind of key: the API server looks for the public half of its
    # service accounts' key in no other.
    return key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.TraditionalOpenSSL,
        serialization.NoEncryption(),
    )


def _base64(content: bytes) -> str:
    return base64.b64encode(content).decode()
