from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping

import pytest

from apiserver.manifests import parse
from apiserver.objects import Namespace, Pod
from apiserver.rules.endpoints import Claim, Labels, claims, endpoints
from clustermesh.model import ClusterName, Identity, IdentityId, IPAddress, ObjectName
from clustermesh.state import Index, Table, derive
from clustermesh.tests.etcd_server import running

NAMESPACE = "apiVersion: v1\nkind: Namespace\nmetadata: {name: shop, labels: {team: red}}"
POD = """
apiVersion: v1
kind: Pod
metadata: {name: web-0, namespace: shop, uid: u1, labels: {app: web}}
spec:
  nodeName: node1
  serviceAccountName: seller
  containers:
  - {name: a, ports: [{name: http, containerPort: 8080}, {containerPort: 9}]}
  - {name: b, ports: [{name: dns, containerPort: 53, protocol: UDP}]}
status:
  phase: Running
  hostIP: 192.0.2.1
  podIP: 10.1.0.7
  podIPs: [{ip: 10.1.0.7}, {ip: "fd00:1::7"}]
"""


def pod(text: str = POD) -> Pod:
    (found,) = parse(text.encode(), "test").objects
    assert isinstance(found, Pod)
    return found


def claimed(text: str = POD, *, namespace: bool = True) -> Mapping[IPAddress, Claim]:
    """The addresses of a pod."""
    (found,) = parse(NAMESPACE.encode(), "test").objects
    assert isinstance(found, Namespace)
    item = pod(text)
    return claims(
        item.key, {"file": item}, found if namespace else None, cluster=ClusterName("east")
    )


def labels(text: str = POD, *, namespace: bool = True) -> list[str]:
    claim = next(iter(claimed(text, namespace=namespace).values()))
    return [f"{source}:{key}={value}" for source, key, value in claim.labels]


def test_a_pod_has_its_addresses_and_says_who_it_is() -> None:
    found = claimed()
    assert [str(ip) for ip in found] == ["10.1.0.7", "fd00:1::7"]
    claim = next(iter(found.values()))
    assert (str(claim.pod), claim.uid, str(claim.node_ip)) == ("shop/web-0", "u1", "192.0.2.1")
    assert claim.service_account == "seller"
    assert claim.named_ports == (("http", 8080, "TCP"), ("dns", 53, "UDP"))


def test_an_old_pod_has_one_address() -> None:
    assert [str(ip) for ip in claimed(POD[: POD.index("  podIPs")])] == ["10.1.0.7"]


@pytest.mark.parametrize(
    "text",
    [
        POD.replace("phase: Running", "phase: Succeeded"),
        POD.replace("phase: Running", "phase: Failed"),
        POD.replace("nodeName: node1", "hostNetwork: true"),
        POD[: POD.index("status:")],
    ],
)
def test_a_pod_that_has_ended_not_begun_or_is_on_the_hosts_network_has_no_address(
    text: str,
) -> None:
    assert claimed(text) == {}


def test_labels_carry_cluster_namespace_and_service_account() -> None:
    assert labels() == [
        "k8s:app=web",
        "k8s:io.cilium.k8s.namespace.labels.team=red",
        "k8s:io.cilium.k8s.policy.cluster=east",
        "k8s:io.cilium.k8s.policy.serviceaccount=seller",
        "k8s:io.kubernetes.pod.namespace=shop",
    ]
    assert "k8s:io.cilium.k8s.namespace.labels.team=red" not in labels(namespace=False)


def test_a_pod_cannot_pretend_to_be_of_another_cluster_or_namespace() -> None:
    lies = (
        "io.cilium.k8s.policy.cluster: west, io.kubernetes.pod.namespace: kube-system, "
        "io.cilium.k8s.policy.serviceaccount: admin, io.cilium.k8s.namespace.labels.team: blue"
    )
    assert labels(POD.replace("app: web", f"app: web, {lies}")) == labels()


def test_labels_that_controllers_make_up_do_not_tell_pods_apart() -> None:
    made_up = "pod-template-hash: x, statefulset.kubernetes.io/pod-name: web-0"
    assert labels(POD.replace("app: web", f"app: web, {made_up}")) == labels()


def test_an_address_is_exported_once_its_labels_have_a_number() -> None:
    found = claimed()
    key = next(iter(found.values())).labels
    assert endpoints(key, found, {}) == {}
    numbers = {IdentityId(n): Identity(IdentityId(n), key) for n in (65537, 65536)}
    assert {str(ip): row.identity for ip, row in endpoints(key, found, numbers).items()} == {
        "10.1.0.7": 65536,
        "fd00:1::7": 65536,
    }


@pytest.mark.looptime
async def test_of_two_pods_with_one_address_the_first_keeps_it_until_it_goes() -> None:
    pods: Table[ObjectName, Pod] = Table("pods")
    found: Table[IPAddress, Claim] = Table("claims")
    by_labels: Index[Labels, IPAddress, Claim] = Index(
        "by labels", found, lambda _, claim: (claim.labels,)
    )
    writer = pods.writer("file")

    def rule(key: ObjectName, rows: Mapping[str, Pod]) -> Mapping[IPAddress, Claim]:
        return claims(key, rows, None, cluster=ClusterName("east"))

    def holders() -> list[str]:
        return [
            str(claim.pod) for key in by_labels.keys() for claim in by_labels.rows(key).values()
        ]

    async with running(derive((pods,), found.writer("rule"), rule)):
        text = POD[: POD.index("  podIPs")]
        first, second = pod(text), pod(text.replace("web-0", "web-1"))
        writer.put(first.key, first)
        await settled(holders, ["shop/web-0"])
        writer.put(second.key, second)
        await settled(holders, ["shop/web-0"])
        writer.delete(first.key)
        await settled(holders, ["shop/web-1"])


async def settled(shown: Callable[[], list[str]], expected: list[str]) -> None:
    """See that `shown` is what is expected when there is nothing left to do."""
    await asyncio.sleep(1)  # of virtual time
    assert shown() == expected
