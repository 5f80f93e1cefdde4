from __future__ import annotations

from pathlib import Path

import pytest

from apiserver.settings import ApiserverSettings
from clustermesh.errors import UserError
from clustermesh.settings import read_settings

NEEDED = {
    "--cluster-name": "east",
    "--cluster-id": "1",
    "--source": "dir:manifests",
    "--etcd-endpoints": "http://127.0.0.1:2379",
}


def read(**flags: str) -> ApiserverSettings:
    given = NEEDED | {f"--{name.replace('_', '-')}": value for name, value in flags.items()}
    arguments = [word for flag in given.items() for word in flag]
    return read_settings(
        ApiserverSettings, name="clustermesh-apiserver", version="1", arguments=arguments
    )


def test_what_must_be_said_is_enough() -> None:
    settings = read()
    assert settings == ApiserverSettings(
        cluster_name="east",
        cluster_id=1,
        source="dir:manifests",
        etcd_endpoints=("http://127.0.0.1:2379",),
        listen="127.0.0.1:9880",
    )
    assert settings.directory == Path("manifests")


def test_etcd_endpoints_are_separated_by_commas() -> None:
    endpoints = read(etcd_endpoints="https://a:2379,https://b:2379").etcd_endpoints
    assert endpoints == ("https://a:2379", "https://b:2379")


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ({"source": "manifests"}, "--source 'manifests' is no source (write kube or dir:PATH)"),
        ({"source": "dir:"}, "--source 'dir:' is no source"),
        ({"source": "git:x"}, "--source 'git:x' is no source"),
        ({"source": "kube:x"}, "--source 'kube:x' is no source"),
        ({"context": "east"}, "--kubeconfig and --context belong to --source kube"),
        ({"etcd_endpoints": ","}, "--etcd-endpoints is empty"),
        ({"etcd_ca": "ca.crt"}, "--etcd-ca, --etcd-cert and --etcd-key belong together"),
        ({"max_connected_clusters": "300"}, 'Invalid value "300" for --max-connected-clusters'),
        ({"listen": "everywhere"}, "'everywhere' is no address"),
    ],
)
def test_a_mistake_is_named(flags: dict[str, str], message: str) -> None:
    with pytest.raises(UserError) as caught:
        read(**flags)
    assert str(caught.value).startswith(message)
