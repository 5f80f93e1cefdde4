"""The chart in real API servers: what it puts there, and what that may do there."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any, Final

import pytest
import yaml

from clustermesh.sandbox.kube.api import RefusedError
from e2e.mesh import eventually

from .accounts import Account, Rule
from .chart import CHART, Object, Values, find, render
from .cluster import KubeCluster
from .matrix import MATRIX
from .release import Release

# Some objects of the chart are in no namespace: one installation at a time.
pytestmark = pytest.mark.xdist_group("chart")

_BOTH: Final = pytest.mark.parametrize("version", [3, 4])
_MESH: Final = "/apis/clustermesh.io/v1alpha1"
_KINDS: Final = ("server", "admin", "local", "remote")
_SECRETS: Final = ("clustermesh-ca", *(f"clustermesh-apiserver-{kind}-cert" for kind in _KINDS))


@pytest.fixture
def installed(release: Release) -> Release:
    """The chart with nothing but the required values."""
    release.put("install", {})
    return release


# What helm does


@_BOTH
def test_install_upgrade_rollback_and_uninstall(release: Release, version: int) -> None:
    release.version = version
    notes = release.put("install", {})
    assert "clustermesh connect --context" in notes
    for item in release.objects():
        assert release.get(item["kind"], item["metadata"]["name"]) is not None
    for crd in ("meshnodes", "meshidentities"):
        assert release.get("crd", f"{crd}.clustermesh.io") is not None
    secrets = {name: release.get("secret", name)["data"] for name in _SECRETS}

    release.put("upgrade", {"agent": {"routing": "direct"}})
    assert _agent_settings(release)["routing"] == "direct"
    assert {name: release.get("secret", name)["data"] for name in _SECRETS} == secrets

    release.helm("rollback", "1")
    assert _agent_settings(release)["routing"] == "tunnel"
    assert {name: release.get("secret", name)["data"] for name in _SECRETS} == secrets

    kinds = [(item["kind"], item["metadata"]["name"]) for item in release.objects()]
    release.helm("uninstall")
    for kind, name in kinds:
        eventually(f"{kind} {name} is gone", partial(_is_gone, release, kind, name))
    for crd in ("meshnodes", "meshidentities"):
        assert release.get("crd", f"{crd}.clustermesh.io") is not None  # and what is in them


@_BOTH
def test_an_upgrade_makes_only_the_certificates_that_have_to_change(
    release: Release, version: int
) -> None:
    release.version = version
    release.put("install", {})
    before = {name: release.get("secret", name)["data"] for name in _SECRETS}
    server = {"extraIpAddresses": ["192.0.2.1"]}
    release.put("upgrade", {"clustermesh": {"apiserver": {"tls": {"server": server}}}})
    after = {name: release.get("secret", name)["data"] for name in _SECRETS}
    changed = {name for name in _SECRETS if before[name] != after[name]}
    assert changed == {"clustermesh-apiserver-server-cert"}


@_BOTH
def test_an_unknown_value_is_not_installed(release: Release, version: int) -> None:
    release.version = version
    with pytest.raises(RuntimeError, match=r"clsuter"):
        release.put("install", {"clsuter": {"name": "east"}})
    assert release.get("deployment", "clustermesh-apiserver") is None


# Every manifest, strictly


@pytest.mark.parametrize("values", MATRIX.values(), ids=MATRIX.keys())
def test_a_strict_api_server_takes_every_manifest(
    kube: KubeCluster, kube_programs: Path, namespace: str, values: Values
) -> None:
    objects = render(kube_programs / "helm4", values, namespace=namespace)
    ours = [item for item in objects if not _is_foreign(item)]
    assert len(ours) > 10
    for item in ours:
        if item["metadata"].get("namespace"):
            item["metadata"]["namespace"] = namespace  # the dashboard's is another
    _dry_run(kube, ours)


def test_a_strict_api_server_would_not_take_a_misspelt_field(
    kube: KubeCluster, kube_programs: Path, namespace: str
) -> None:
    objects = render(kube_programs / "helm4", MATRIX["default"], namespace=namespace)
    pod = find(objects, "DaemonSet", "clustermesh-agent")["spec"]["template"]["spec"]
    pod["containers"][0]["imagePolicy"] = "Always"
    with pytest.raises(RuntimeError, match="imagePolicy"):
        _dry_run(kube, objects)


def _is_foreign(item: Object) -> bool:
    """Whether its kind is another project's, which is not installed here."""
    return str(item["apiVersion"]).startswith(("monitoring.coreos.com/", "cert-manager.io/"))


def _dry_run(kube: KubeCluster, objects: list[Object]) -> None:
    arguments = ("apply", "--server-side", "--dry-run=server", "--validate=strict", "--filename=-")
    kube.kubectl(*arguments, stdin=yaml.safe_dump_all(objects))


# Who may do what


def test_an_agent_may_do_to_the_api_what_it_has_to_and_nothing_else(installed: Release) -> None:
    everybody = Account(installed.kube, installed.namespace, "default")
    for namespace in (installed.namespace, "default"):
        own = installed.account("agent").rules(namespace) - everybody.rules(namespace)
        assert own == {
            Rule("", "nodes", "get"),
            *(Rule("clustermesh.io", "meshnodes", verb) for verb in ("get", "create", "patch")),
            Rule("clustermesh.io", "meshnodes/status", "patch"),
        }


def test_an_apiserver_may_do_to_the_api_what_it_has_to_and_nothing_else(
    installed: Release,
) -> None:
    everybody = Account(installed.kube, installed.namespace, "default")
    wanted = {
        *(
            Rule(group, resource, verb)
            for verb in ("list", "watch")
            for group, resource in (
                *(("", kind) for kind in ("namespaces", "nodes", "pods", "services")),
                ("discovery.k8s.io", "endpointslices"),
                ("clustermesh.io", "meshnodes"),
                ("clustermesh.io", "meshidentities"),
            )
        ),
        *(Rule("clustermesh.io", "meshidentities", verb) for verb in ("get", "create", "delete")),
    }
    leases = ("coordination.k8s.io", "leases")
    in_own_namespace = {
        Rule(*leases, "create"),
        *(Rule(*leases, verb, "clustermesh-apiserver") for verb in ("get", "patch")),
    }
    account = installed.account("apiserver")
    assert account.rules("default") - everybody.rules("default") == wanted
    own = account.rules(installed.namespace) - everybody.rules(installed.namespace)
    assert own == wanted | in_own_namespace


def test_the_cron_job_may_touch_its_own_secrets_only(release: Release) -> None:
    release.put("install", MATRIX["cron job"])
    everybody = Account(release.kube, release.namespace, "default")
    account = release.account("certs")
    assert account.rules("default") == everybody.rules("default")
    own = account.rules(release.namespace) - everybody.rules(release.namespace)
    assert own == {
        Rule("", "secrets", "create"),
        *(Rule("", "secrets", verb, name) for verb in ("get", "patch") for name in _SECRETS),
    }


@pytest.mark.parametrize("name", ["agent", "apiserver"])
def test_secrets_are_refused_to_the_daemons(installed: Release, name: str) -> None:
    path = f"/api/v1/namespaces/{installed.namespace}/secrets/clustermesh-ca"
    assert installed.kube.exists(path)
    with pytest.raises(RefusedError, match="403"):
        installed.account(name).call("GET", path)


# An agent and its MeshNode


@pytest.fixture
def node_agent(installed: Release) -> Iterator[Account]:
    """The agent on a node."""
    kube, path = installed.kube, f"/api/v1/namespaces/{installed.namespace}/pods"
    name = f"node-{installed.namespace}"
    kube.call("POST", "/api/v1/nodes", {"metadata": {"name": name}})
    spec = {
        "nodeName": name,
        "serviceAccountName": "clustermesh-agent",
        "containers": [{"name": "agent", "image": "agent"}],
    }
    pod = kube.call("POST", path, {"metadata": {"name": "agent"}, "spec": spec})
    yield installed.account("agent", pod=pod["metadata"])
    kube.call("DELETE", f"/api/v1/nodes/{name}")
    for left in (name, "another"):
        if kube.exists(f"{_MESH}/meshnodes/{left}"):
            kube.call("DELETE", f"{_MESH}/meshnodes/{left}")


def _mesh_node(name: str, **spec: Any) -> dict[str, Any]:
    return {
        "apiVersion": "clustermesh.io/v1alpha1",
        "kind": "MeshNode",
        "metadata": {"name": name},
        "spec": spec,
    }


def test_an_agent_writes_the_mesh_node_of_its_own_node_and_no_other(
    installed: Release, node_agent: Account
) -> None:
    own, other = f"node-{installed.namespace}", "another"
    installed.kube.call("POST", f"{_MESH}/meshnodes", _mesh_node(other))

    def write(name: str) -> None:
        node_agent.call("PATCH", f"{_MESH}/meshnodes/{name}", {"spec": {"bootID": "stolen"}})

    # The API server learns of a new policy after a while.
    def is_refused() -> bool:
        try:
            write(other)
        except RefusedError as error:
            return f"may not write the MeshNode {other}" in str(error)
        return False

    eventually("another node's is refused", is_refused)
    with pytest.raises(RefusedError, match="may not write the MeshNode third"):
        node_agent.call("POST", f"{_MESH}/meshnodes", _mesh_node("third"))
    status = {"status": {"version": "9"}}
    with pytest.raises(RefusedError, match="may not write the MeshNode"):
        node_agent.call("PATCH", f"{_MESH}/meshnodes/{other}/status", status)
    with pytest.raises(RefusedError, match="403"):
        node_agent.call("DELETE", f"{_MESH}/meshnodes/{other}")

    node_agent.call("POST", f"{_MESH}/meshnodes", _mesh_node(own, bootID="1"))
    write(own)
    node_agent.call("PATCH", f"{_MESH}/meshnodes/{own}/status", status)
    found = installed.kube.call("GET", f"{_MESH}/meshnodes/{own}")
    assert (found["spec"], found["status"]) == ({"bootID": "stolen"}, {"version": "9"})


def test_a_token_of_no_node_writes_no_mesh_node(installed: Release, node_agent: Account) -> None:
    homeless = installed.account("agent")

    def is_refused() -> bool:
        try:
            homeless.call("POST", f"{_MESH}/meshnodes?dryRun=All", _mesh_node("x"))
        except RefusedError as error:
            return "was given to no node" in str(error)
        return False

    eventually("it is refused", is_refused)


# The CRDs


@pytest.fixture(scope="module")
def crds(kube: KubeCluster) -> KubeCluster:
    """A cluster that has them."""
    kube.kubectl("apply", "--server-side", "--filename", str(CHART / "crds"))
    kube.kubectl("wait", "--for=condition=Established", "--filename", str(CHART / "crds"))
    return kube


_STRICT: Final = "dryRun=All&fieldValidation=Strict"
_STRICT_NODE: Final = f"{_MESH}/meshnodes?{_STRICT}"
_KEY: Final = "HIgo9xNzJMWLKASShiTqIybxZ0U3wGLiUeJ1PKf8ykw="


@pytest.mark.parametrize(
    "spec",
    [
        {},
        {"wireguardPublicKey": "", "bootID": ""},
        {"wireguardPublicKey": _KEY, "addresses": [{"type": "InternalIP", "address": "fd00::1"}]},
    ],
)
def test_a_mesh_node_that_makes_sense_is_taken(crds: KubeCluster, spec: Mapping[str, Any]) -> None:
    crds.call("POST", _STRICT_NODE, _mesh_node("x", **spec))


@pytest.mark.parametrize(
    ("spec", "reason"),
    [
        ({"wireguardPublicKey": "short"}, "wireguardPublicKey"),
        ({"wireguardPublicKey": f"{_KEY[:-2]}x="}, "wireguardPublicKey"),
        ({"addresses": [{"type": "InternalIP", "address": "node1"}]}, "address"),
        ({"addresses": [{"type": "Hostname", "address": "10.0.0.1"}]}, "type"),
        ({"wireguardPublickey": _KEY}, "unknown field"),
    ],
)
def test_a_mesh_node_that_makes_no_sense_is_refused(
    crds: KubeCluster, spec: Mapping[str, Any], reason: str
) -> None:
    with pytest.raises(RefusedError, match=reason):
        crds.call("POST", _STRICT_NODE, _mesh_node("x", **spec))


def _identity(name: str, *labels: str) -> dict[str, Any]:
    return {
        "apiVersion": "clustermesh.io/v1alpha1",
        "kind": "MeshIdentity",
        "metadata": {"name": name},
        "spec": {"labels": labels},
    }


def test_a_mesh_identity_keeps_its_labels_for_good(crds: KubeCluster) -> None:
    path = f"{_MESH}/meshidentities/4194301"
    crds.call("POST", f"{_MESH}/meshidentities", _identity("4194301", "k8s:a=b", "k8s:c="))
    try:
        with pytest.raises(RefusedError, match="cannot get other labels"):
            crds.call("PATCH", path, {"spec": {"labels": ["k8s:a=x"]}})
        header, row = crds.kubectl("get", "meshidentities", "4194301").splitlines()
        assert re.split(r"\s{2,}", header) == ["NAME", "LABELS", "AGE"]
        assert re.split(r"\s{2,}", row)[:2] == ["4194301", '["k8s:a=b","k8s:c="]']
    finally:
        crds.call("DELETE", path)


@pytest.mark.parametrize(
    ("name", "labels", "reason"),
    [
        ("web", ["k8s:a=b"], "the name is the number"),
        ("007", ["k8s:a=b"], "the name is the number"),
        ("16777216", ["k8s:a=b"], "the name is the number"),
        ("65537", [], "at least 1"),
        ("65537", ["a"], "labels"),
        ("65537", ["k8s:a=b", "k8s:a=b"], "[Dd]uplicate"),
    ],
)
def test_a_mesh_identity_that_makes_no_sense_is_refused(
    crds: KubeCluster, name: str, labels: list[str], reason: str
) -> None:
    path = f"{_MESH}/meshidentities?{_STRICT}"
    with pytest.raises(RefusedError, match=reason):
        crds.call("POST", path, _identity(name, *labels))


def _is_gone(release: Release, kind: str, name: str) -> bool:
    return release.get(kind, name) is None


def _agent_settings(release: Release) -> Mapping[str, Any]:
    config = release.get("configmap", "clustermesh-config")
    settings: Mapping[str, Any] = yaml.safe_load(config["data"]["agent.yaml"])
    return settings
