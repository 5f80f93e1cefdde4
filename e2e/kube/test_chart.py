"""What the chart renders, and what it refuses to: helm 3 and 4, without a cluster."""

from __future__ import annotations

import base64
import json
import re
import subprocess
from collections.abc import Iterable, Mapping
from ipaddress import ip_address
from pathlib import Path
from typing import Any, Final

import pytest
import yaml
from cryptography import x509

from agent.datapath_metrics import DatapathMetrics
from agent.encryption_metrics import EncryptionMetrics
from agent.probes.metrics import PathMetrics
from agent.refused import RefusedMetrics
from agent.settings import AgentSettings
from apiserver.settings import ApiserverSettings
from certs import leaf
from clustermesh.daemon.daemon import Daemon
from clustermesh.daemon.metrics import Snapshot
from clustermesh.etcd import read_config
from clustermesh.settings import read_settings
from clustermesh.state import Table
from clustermesh.status import (
    ClusterPaths,
    Datapath,
    EncryptionStatus,
    PathsStatus,
    Remote,
    RemoteState,
)

from . import chart
from .chart import CHART, NAMED, Object, RenderError, Values, find, render
from .matrix import MATRIX, PEM, with_values

_BOTH: Final = pytest.mark.parametrize("helm", ["helm3", "helm4"])


@_BOTH
def test_lint_finds_nothing(kube_programs: Path, helm: str) -> None:
    ran = subprocess.run(
        [kube_programs / helm, "lint", "--strict", CHART, "--values", "-"],
        input=json.dumps(NAMED),
        capture_output=True,
        text=True,
        check=False,
    )
    assert ran.returncode == 0, ran.stdout + ran.stderr


@_BOTH
@pytest.mark.parametrize("values", MATRIX.values(), ids=MATRIX.keys())
def test_everything_is_labelled_and_in_the_namespace_of_the_release(
    kube_programs: Path, helm: str, values: Values
) -> None:
    cluster_scoped = {"ClusterRole", "ClusterRoleBinding"}
    for item in render(kube_programs / helm, values):
        where = f"{item['kind']} {item['metadata']['name']}"
        assert item["metadata"]["labels"]["app.kubernetes.io/part-of"] == "clustermesh", where
        if item["kind"] in cluster_scoped or item["kind"].startswith("ValidatingAdmission"):
            assert "namespace" not in item["metadata"], where
        else:
            assert item["metadata"]["namespace"] in {"mesh", "grafana"}, where


@pytest.mark.parametrize("values", MATRIX.values(), ids=MATRIX.keys())
def test_the_daemons_understand_their_settings(
    kube_programs: Path, tmp_path: Path, values: Values
) -> None:
    objects = render(kube_programs / "helm4", values)
    for name, content in find(objects, "ConfigMap", "clustermesh-config")["data"].items():
        (tmp_path / name).write_text(content)

    def settings(kind: type[Any], workload: Object, container: str) -> Any:
        return read_settings(
            kind,
            name=container,
            version="",
            arguments=_arguments(workload, container, tmp_path),
        )

    apiserver = settings(
        ApiserverSettings, find(objects, "Deployment", "clustermesh-apiserver"), "apiserver"
    )
    agent = settings(AgentSettings, find(objects, "DaemonSet", "clustermesh-agent"), "agent")
    for each in (apiserver, agent):
        assert (each.cluster_name, each.cluster_id) == ("east", values["cluster"]["id"])
    assert apiserver.source == "kube"
    assert apiserver.listen.startswith("[10.1.2.3]:")
    assert agent.node_name == "node1"
    assert agent.datapath == values.get("agent", {}).get("datapath", "bpf")


def test_no_setting_is_left_out_by_mistake(kube_programs: Path) -> None:
    objects = render(kube_programs / "helm4", NAMED)
    config = find(objects, "ConfigMap", "clustermesh-config")["data"]
    given = {name: set(yaml.safe_load(config[f"{name}.yaml"])) for name in ("apiserver", "agent")}
    given["apiserver"] |= {"listen"}  # flags
    given["agent"] |= {"listen", "node-name"}
    outside_of_a_pod = {"kubeconfig", "context", "mesh-node-dir", "encryption-sockets"}
    for name, kind in (("apiserver", ApiserverSettings), ("agent", AgentSettings)):
        known = {field.replace("_", "-") for field in kind.__dataclass_fields__}
        assert given[name] == known - outside_of_a_pod


def test_pods_start_anew_exactly_when_their_settings_have_changed(kube_programs: Path) -> None:
    some = {"agent": {"meshCIDRs": ["10.0.0.0/8"]}}
    seen: dict[tuple[str, str], str] = {}
    for values in (*MATRIX.values(), with_values(some)):
        objects = render(kube_programs / "helm4", values)
        config = find(objects, "ConfigMap", "clustermesh-config")["data"]
        pod = find(objects, "DaemonSet", "clustermesh-agent")["spec"]["template"]
        checksum = pod["metadata"]["annotations"]["checksum/settings"]
        assert seen.setdefault(("settings", config["agent.yaml"]), checksum) == checksum
        assert seen.setdefault((checksum, ""), config["agent.yaml"]) == config["agent.yaml"]


@pytest.mark.parametrize("values", MATRIX.values(), ids=MATRIX.keys())
def test_every_mount_has_its_volume_and_what_settings_name_is_mounted(
    kube_programs: Path, values: Values
) -> None:
    objects = render(kube_programs / "helm4", values)
    config = find(objects, "ConfigMap", "clustermesh-config")["data"]
    for kind, name, container in (
        ("Deployment", "clustermesh-apiserver", "apiserver"),
        ("DaemonSet", "clustermesh-agent", "agent"),
    ):
        pod = find(objects, kind, name)["spec"]["template"]["spec"]
        volumes = {volume["name"] for volume in pod["volumes"]}
        mounted = {m["name"] for c in pod["containers"] for m in c["volumeMounts"]}
        assert mounted == volumes
        (main,) = (c for c in pod["containers"] if c["name"] == container)
        mounts = [m["mountPath"] for m in main["volumeMounts"]]
        for key, value in yaml.safe_load(config[f"{container}.yaml"]).items():
            if str(value).startswith("/") and "none" not in config["agent.yaml"]:
                assert any(value == m or value.startswith(f"{m}/") for m in mounts), key


def test_clusters_are_files_that_an_agent_reads(kube_programs: Path, tmp_path: Path) -> None:
    secret = find(
        render(kube_programs / "helm4", MATRIX["connected"]), "Secret", "clustermesh-clusters"
    )
    for name, content in secret["stringData"].items():
        (tmp_path / name).write_text(content)
    read = {name: read_config(tmp_path / name) for name in ("west", "north", "south")}
    assert {name: str(config.endpoints[0]) for name, config in read.items()} == {
        "west": "https://mesh.west.example.org:2379",
        "north": "https://north.mesh.cilium.io:32379",
        "south": "https://[fd00::7]:2379",
    }
    assert {str(f.parent) for f in read["west"].files} == {"/etc/clustermesh/remote"}
    assert {f.name for f in read["south"].files} == set(secret["data"])
    assert {f.parent for f in read["south"].files} == {tmp_path}


def test_clusters_that_are_reached_by_ips_are_in_the_hosts_file_of_agents(
    kube_programs: Path,
) -> None:
    objects = render(kube_programs / "helm4", MATRIX["connected"])
    for pod in (
        find(objects, "DaemonSet", "clustermesh-agent")["spec"]["template"]["spec"],
        find(objects, "Pod", "clustermesh-test")["spec"],
    ):
        assert pod["hostAliases"] == [
            {"ip": "192.0.2.8", "hostnames": ["north.mesh.cilium.io"]},
            {"ip": "192.0.2.9", "hostnames": ["north.mesh.cilium.io"]},
        ]


@_BOTH
@pytest.mark.parametrize("mode", ["cluster", "legacy"])
def test_certificates_say_what_certs_would_make_them_say(
    kube_programs: Path, helm: str, mode: str
) -> None:
    """Whoever makes them, etcd's users and the names that peers dial are the same."""
    more = {"extraDnsNames": ["mesh.example.org"], "extraIpAddresses": ["192.0.2.1", "2001:db8::1"]}
    tls = {"authMode": mode, "server": more}
    values = with_values({"clustermesh": {"apiserver": {"tls": tls}}})
    objects = render(kube_programs / helm, values)
    wanted = {
        "server": leaf.server("mesh", ["mesh.example.org", "192.0.2.1", "2001:db8::1"]),
        "admin": leaf.admin("east"),
        "local": leaf.local("east"),
        "remote": leaf.remote("east" if mode == "cluster" else ""),
    }
    found = {kind: _certificate(objects, f"clustermesh-apiserver-{kind}-cert") for kind in wanted}
    ca = _certificate(objects, "clustermesh-ca", "ca.crt")
    for kind, certificate in found.items():
        profile = leaf.profile_of(wanted[kind].name, certificate)
        assert (profile.subject, profile.names) == (wanted[kind].subject, wanted[kind].names)
        assert profile.usages >= wanted[kind].usages
        certificate.verify_directly_issued_by(ca)
    manager = with_values({"clustermesh": {"apiserver": {"tls": tls}}}, MATRIX["certmanager"])
    for kind, profile in wanted.items():
        name = f"clustermesh-apiserver-{kind}-cert"
        spec = find(render(kube_programs / helm, manager), "Certificate", name)["spec"]
        assert spec["commonName"] == profile.subject
        names = {*spec["dnsNames"], *(str(ip_address(ip)) for ip in spec.get("ipAddresses", []))}
        assert names == profile.names


def test_the_agent_has_the_capabilities_that_it_needs_and_no_more(kube_programs: Path) -> None:
    objects = render(kube_programs / "helm4", NAMED)
    pod = find(objects, "DaemonSet", "clustermesh-agent")["spec"]["template"]["spec"]
    (agent,) = pod["containers"]
    assert agent["securityContext"]["capabilities"] == {
        "add": ["BPF", "NET_ADMIN", "PERFMON"],
        "drop": ["ALL"],
    }
    assert not agent["securityContext"].get("privileged")
    assert "hostPID" not in pod
    assert "hostIPC" not in pod
    mounts = {mount["name"]: mount for mount in agent["volumeMounts"]}
    writable = {v["name"] for v in pod["volumes"] if "hostPath" in v} - {
        name for name, mount in mounts.items() if mount.get("readOnly")
    }
    assert writable == {"state", "bpffs", "sysctls"}


def test_whatever_is_not_the_agent_is_no_root_and_can_write_nowhere(kube_programs: Path) -> None:
    objects = render(kube_programs / "helm4", MATRIX["cron job"])
    pods = [o for o in objects if o["kind"] in {"Deployment", "Job", "CronJob", "Pod"}]
    assert len(pods) == 4
    for item in pods:
        spec = item["spec"]
        spec = spec.get("jobTemplate", {}).get("spec", spec)
        spec = spec.get("template", {}).get("spec", spec)
        assert spec["securityContext"]["runAsNonRoot"] is True
        for container in spec["containers"]:
            context = container["securityContext"]
            assert context["readOnlyRootFilesystem"] is True
            assert context["allowPrivilegeEscalation"] is False
            assert context["capabilities"] == {"drop": ["ALL"]}


# What it refuses


_REFUSED: Final[dict[str, tuple[Values, str]]] = {
    "no name": ({"cluster": {"id": 1}}, "cluster.name is missing: add --set cluster.name="),
    "no id": ({"cluster": {"name": "east"}}, "cluster.id is missing: add --set cluster.id="),
    "id of a larger mesh": (
        {"cluster": {"name": "east", "id": 300}},
        "choose one from 1 to 255, or set clustermesh.maxConnectedClusters=511",
    ),
    "half a CA": (with_values({"tls": {"ca": {"cert": PEM}}}), "set both"),
    "bundle that is off": (
        with_values({"tls": {"caBundle": {"content": "x"}}}),
        "add --set tls.caBundle.enabled=true",
    ),
    "no issuer": (
        with_values({"clustermesh": {"apiserver": {"tls": {"auto": {"method": "certmanager"}}}}}),
        "set clustermesh.apiserver.tls.auto.certManagerIssuerRef.name",
    ),
    "nothing provided": (
        with_values({"clustermesh": {"apiserver": {"tls": {"auto": {"method": "provided"}}}}}),
        "set clustermesh.apiserver.tls.enableSecrets=false",
    ),
    "provided for nothing": (
        with_values({"clustermesh": {"apiserver": {"tls": {"admin": {"cert": PEM}}}}}),
        "set clustermesh.apiserver.tls.auto.method=provided",
    ),
    "clusters that are off": (
        with_values({"clustermesh": {"config": {"clusters": [{"name": "w", "address": "w"}]}}}),
        "add --set clustermesh.config.enabled=true",
    ),
    "itself": (
        with_values(
            {
                "clustermesh": {
                    "config": {"enabled": True, "clusters": [{"name": "east", "address": "e"}]}
                }
            }
        ),
        "name only the others",
    ),
    "no address": (
        with_values({"clustermesh": {"config": {"enabled": True, "clusters": [{"name": "w"}]}}}),
        "give it an address",
    ),
    "two budgets": (
        with_values({"clustermesh": {"apiserver": {"podDisruptionBudget": {"minAvailable": 1}}}}),
        "set one of them to null",
    ),
    "metrics on loopback": (
        with_values({"agent": {"metrics": {"serviceMonitor": {"enabled": True}}}}),
        "add --set agent.metrics.enabled=true",
    ),
    "alerts of nothing": (
        with_values({"alerts": {"enabled": True}}),
        "add --set agent.metrics.enabled=true",
    ),
}


@_BOTH
@pytest.mark.parametrize(("values", "fix"), _REFUSED.values(), ids=_REFUSED.keys())
def test_a_mistake_is_refused_with_the_way_to_mend_it(
    kube_programs: Path, helm: str, values: Values, fix: str
) -> None:
    with pytest.raises(RenderError, match=re.escape(fix)):
        render(kube_programs / helm, values)


_UNKNOWN: Final[dict[str, Values]] = {
    "at the top": {"clsuter": {}},
    "in a group": {"agent": {"routeing": "tunnel"}},
    "deep down": {"clustermesh": {"apiserver": {"service": {"typ": "NodePort"}}}},
    "of a cluster": {"clustermesh": {"config": {"clusters": [{"name": "w", "adress": "w"}]}}},
    "no number": {"clustermesh": {"apiserver": {"replicas": "two"}}},
    "no choice": {"agent": {"routing": "magic"}},
    "no name of a cluster": {"cluster": {"name": "East_1"}},
}


@_BOTH
@pytest.mark.parametrize("values", _UNKNOWN.values(), ids=_UNKNOWN.keys())
def test_a_value_that_is_unknown_or_makes_no_sense_is_refused(
    kube_programs: Path, helm: str, values: Values
) -> None:
    with pytest.raises(RenderError, match="schema"):
        render(kube_programs / helm, with_values(values))


# What is said about it


def test_every_value_has_a_sentence_and_no_sentence_is_without_its_value() -> None:
    found = list(chart.values())
    assert [value.path for value in found if not value.sentence] == []
    comments = re.findall(r"# -- ", (CHART / "values.yaml").read_text())
    assert len(found) == len(comments)


def test_the_schema_knows_exactly_the_values_that_there_are() -> None:
    schema = json.loads((CHART / "values.schema.json").read_text())
    defaults = yaml.safe_load((CHART / "values.yaml").read_text())
    _compare("", defaults, schema)


def _compare(path: str, value: Any, schema: Mapping[str, Any]) -> None:
    if "properties" in schema:
        assert schema["additionalProperties"] is False, path
        if value:
            assert set(value) == set(schema["properties"]), path
            for key in value:
                _compare(f"{path}.{key}", value[key], schema["properties"][key])


def test_the_docs_have_all_values() -> None:
    assert chart.PAGE.read_text() == chart.page(), (
        "docs/kubernetes.md is out of date: run python -m e2e.kube.chart"
    )


def test_the_dashboard_shows_every_metric_that_there_is_and_no_other() -> None:
    dashboard = json.loads((CHART / "files/dashboard.json").read_text())
    asked = _metrics(target["expr"] for panel in dashboard["panels"] for target in panel["targets"])
    there = _metrics_of_an_agent()
    assert asked <= there
    assert {name for name in there if name.startswith("clustermesh_")} <= asked


def test_panels_of_the_dashboard_do_not_overlap() -> None:
    panels = json.loads((CHART / "files/dashboard.json").read_text())["panels"]
    assert [panel["id"] for panel in panels] == list(range(1, len(panels) + 1))
    cells = [
        (x, y)
        for panel in panels
        for grid in (panel["gridPos"],)
        for x in range(grid["x"], grid["x"] + grid["w"])
        for y in range(grid["y"], grid["y"] + grid["h"])
    ]
    assert len(set(cells)) == len(cells)
    assert {x for x, _ in cells} == set(range(24))


def test_alerts_are_made_of_metrics_that_there_are(kube_programs: Path) -> None:
    objects = render(kube_programs / "helm4", MATRIX["monitored"])
    (group,) = find(objects, "PrometheusRule", "clustermesh")["spec"]["groups"]
    rules = {rule["alert"]: rule["expr"] for rule in group["rules"]}
    assert _metrics(rules.values()) <= _metrics_of_an_agent()
    assert rules["ClusterMeshKeyTooOld"].endswith("> 5.184e+06")  # two times 720 hours


def _metrics(expressions: Iterable[str]) -> set[str]:
    pattern = r"\b(?:clustermesh|process)_\w+"
    return {name for text in expressions for name in re.findall(pattern, text)}


def _metrics_of_an_agent() -> set[str]:
    """The names of what Prometheus finds at an agent that encrypts, and knows one other cluster."""
    daemon = Daemon("agent", "1")
    daemon.add_remotes(lambda: [Remote(cluster="west", state=RemoteState.READY, since=0.0)])
    paths = PathsStatus(clusters=[ClusterPaths(cluster="west", round_trip=0.001)])
    daemon.metrics.register(PathMetrics(lambda: paths))
    daemon.metrics.register(DatapathMetrics(Datapath))
    daemon.metrics.register(EncryptionMetrics(EncryptionStatus))
    daemon.metrics.register(RefusedMetrics(Table("cidrs")))
    rendered = Snapshot.take(daemon).render().decode()
    return set(re.findall(r"^# TYPE (\w+) ", rendered, re.MULTILINE))


def _arguments(workload: Object, container: str, config: Path) -> list[str]:
    """The command line of a container, as the kubelet would make it."""
    pod = workload["spec"]["template"]["spec"]
    (found,) = (c for c in pod["containers"] if c["name"] == container)
    known = {"$(POD_IP)": "10.1.2.3", "$(HOST_IP)": "10.1.2.3", "$(NODE_NAME)": "node1"}
    known["/etc/clustermesh/config"] = str(config)
    arguments = []
    for argument in found["args"]:
        expanded = argument
        for old, new in known.items():
            expanded = expanded.replace(old, new)
        assert "$(" not in expanded
        arguments.append(expanded)
    return arguments


def _certificate(objects: list[Object], secret: str, key: str = "tls.crt") -> x509.Certificate:
    data = find(objects, "Secret", secret)["data"]
    return x509.load_pem_x509_certificate(base64.b64decode(data[key]))
