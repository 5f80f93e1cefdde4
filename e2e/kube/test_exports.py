"""What an apiserver exports does not depend on where it reads: one suite, two sources."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest

from clustermesh.tests.etcd_server import EtcdServer, until

from .cluster import KubeCluster
from .replica import Replica, create_crds, replica
from .sources import Api, Manifests, Place, endpoints, namespace, node, pod, service

HTTP = {"http": 80}


@pytest.fixture(scope="session")
def kube_with_crds(kube: KubeCluster) -> KubeCluster:
    create_crds(kube)
    return kube


@pytest.fixture
def api(kube_with_crds: KubeCluster) -> Iterator[Api]:
    made = Api(kube_with_crds)
    yield made
    made.close()


@pytest.fixture(params=["dir", "kube"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Place:
    if request.param == "dir":
        return Manifests(tmp_path / "manifests")
    found: Place = request.getfixturevalue("api")
    return found


@pytest.fixture
def ns(place: Place) -> str:
    name = f"test-{uuid4().hex[:8]}"
    place.apply(namespace(name))
    return name


@pytest.fixture
async def apiserver(place: Place, own_etcd_server: EtcdServer) -> AsyncIterator[Replica]:
    async with replica(own_etcd_server, **place.settings) as running:
        await running.ready()
        yield running


async def web(apiserver: Replica, ns: str) -> Any:
    """The exported service `web`, or None."""
    return (await apiserver.exports()).get(f"cilium/state/services/v1/east/{ns}/web")


async def backends(apiserver: Replica, ns: str) -> Any:
    found = await web(apiserver, ns)
    return found and {
        ip: {name: port["Port"] for name, port in ports.items()}
        for ip, ports in found["backends"].items()
    }


async def becomes(apiserver: Replica, ns: str, expected: Any) -> None:
    async def same() -> bool:
        return bool(await backends(apiserver, ns) == expected)

    await until(same)


async def test_a_service_is_exported_while_it_is_global_and_shared(
    apiserver: Replica, place: Place, ns: str
) -> None:
    place.apply(endpoints(ns, "web", "10.1.0.7", ports=HTTP))
    for words, expected in [
        ({}, None),
        ({"global": "true"}, {"10.1.0.7": HTTP}),
        ({"global": "true", "shared": "false"}, None),
        ({"global": "true", "shared": "true"}, {"10.1.0.7": HTTP}),
        ({"global": "false"}, None),
    ]:
        place.apply(service(ns, "web", "10.96.7.1", ports=HTTP, **words))
        await becomes(apiserver, ns, expected)


async def test_endpointslices_may_come_before_their_service(
    apiserver: Replica, place: Place, ns: str
) -> None:
    place.apply(endpoints(ns, "web", "10.1.0.7", ports=HTTP))
    place.apply(service(ns, "other", "10.96.7.2", ports=HTTP, **{"global": "true"}))
    await until(lambda: has(apiserver, f"cilium/state/services/v1/east/{ns}/other"))
    assert await web(apiserver, ns) is None
    place.apply(service(ns, "web", "10.96.7.1", ports=HTTP, **{"global": "true"}))
    await becomes(apiserver, ns, {"10.1.0.7": HTTP})


async def test_backends_follow_every_slice(apiserver: Replica, place: Place, ns: str) -> None:
    place.apply(service(ns, "web", "10.96.7.1", ports=HTTP, **{"global": "true"}))
    await becomes(apiserver, ns, {})
    first = endpoints(ns, "web", "10.1.0.7", ports={"http": 8080})
    place.apply(first)
    await becomes(apiserver, ns, {"10.1.0.7": {"http": 8080}})
    place.apply(endpoints(ns, "web", "10.1.0.7", ports={"http": 9090}))
    await becomes(apiserver, ns, {"10.1.0.7": {"http": 9090}})
    place.apply(endpoints(ns, "web", "10.1.0.8", ports={"http": 9090}))
    await becomes(apiserver, ns, {"10.1.0.8": {"http": 9090}})
    place.apply(endpoints(ns, "web", "10.1.0.9", ports={"http": 7070}, name="2"))
    await becomes(apiserver, ns, {"10.1.0.8": {"http": 9090}, "10.1.0.9": {"http": 7070}})
    place.delete(first)
    await becomes(apiserver, ns, {"10.1.0.9": {"http": 7070}})


async def test_an_endpoint_that_is_not_ready_is_no_backend(
    apiserver: Replica, place: Place, ns: str
) -> None:
    place.apply(service(ns, "web", "10.96.7.1", ports={"": 80}, **{"global": "true"}))
    dying = {"addresses": ["10.1.0.8"], "conditions": {"ready": False, "terminating": True}}
    place.apply(endpoints(ns, "web", "10.1.0.7", dying, ports={"": 8080}))
    await becomes(apiserver, ns, {"10.1.0.7": {"": 8080}})


async def test_both_families_zones_and_hints_are_exported(
    apiserver: Replica, place: Place, ns: str
) -> None:
    place.apply(
        service(ns, "web", "10.96.7.1", "fd00:96::71", ports=HTTP, **{"global": "true"}),
        endpoints(
            ns,
            "web",
            {
                "addresses": ["10.1.0.7"],
                "zone": "a",
                "hints": {"forZones": [{"name": "b"}]},
                "hostname": "web-0",
            },
            ports=HTTP,
        ),
        endpoints(ns, "web", "fd00:1::7", ports=HTTP, name="v6"),
    )
    await becomes(apiserver, ns, {"10.1.0.7": HTTP, "fd00:1::7": HTTP})
    found = await web(apiserver, ns)
    assert list(found["frontends"]) == ["10.96.7.1", "fd00:96::71"]
    assert found["zones"] == {"10.1.0.7": {"zone": "a", "forZones": [{"name": "b"}]}}
    assert found["hostnames"] == {"10.1.0.7": "web-0"}


async def test_a_deleted_service_or_namespace_takes_only_its_own_keys(
    apiserver: Replica, place: Place, ns: str
) -> None:
    one = service(ns, "web", "10.96.7.1", ports=HTTP, **{"global": "true"})
    two = service(ns, "two", "10.96.7.2", ports=HTTP, **{"global": "true"})
    there = namespace(f"{ns}-b")
    away = service(f"{ns}-b", "far", "10.96.7.3", ports=HTTP, **{"global": "true"})
    place.apply(there, one, two, away)
    keys = {f"cilium/state/services/v1/east/{name}" for name in (f"{ns}/two", f"{ns}/web")}
    far = f"cilium/state/services/v1/east/{ns}-b/far"
    await until(lambda: has(apiserver, *keys, far))
    place.delete(one)
    await until(lambda: lacks(apiserver, f"cilium/state/services/v1/east/{ns}/web"))
    assert await has(apiserver, f"cilium/state/services/v1/east/{ns}/two", far)
    place.delete(there)
    await until(lambda: lacks(apiserver, far))
    assert await has(apiserver, f"cilium/state/services/v1/east/{ns}/two")


async def test_what_changes_nothing_is_not_written(
    apiserver: Replica, place: Place, ns: str
) -> None:
    web = service(ns, "web", "10.96.7.1", ports=HTTP, **{"global": "true"})
    place.apply(web, endpoints(ns, "web", "10.1.0.7", ports=HTTP))
    await becomes(apiserver, ns, {"10.1.0.7": HTTP})
    before = await apiserver.revision()
    web = {
        **web,
        "metadata": {
            **web["metadata"],
            "annotations": {**web["metadata"]["annotations"], "example.org/nothing": "to us"},
        },
    }
    place.apply(web, service(ns, "quiet", "10.96.7.4", ports=HTTP))
    place.apply(service(ns, "last", "10.96.7.5", ports=HTTP, **{"global": "true"}))
    await until(lambda: has(apiserver, f"cilium/state/services/v1/east/{ns}/last"))
    await until(lambda: has(apiserver, f"clustermesh/local/services/v1/east/{ns}/last"))
    assert await apiserver.revision() == before + 2  # shared, and for our own agents


async def test_both_sources_export_the_same_keys_and_values(
    api: Api, kube_with_crds: KubeCluster, tmp_path: Path, own_etcd_server: EtcdServer
) -> None:
    ns = f"test-{uuid4().hex[:8]}"
    api.apply(
        namespace(ns, team="red"),
        node("node1", "192.0.2.1", "10.1.0.0/24", "fd00:1::/64"),
        node("node2", "192.0.2.2", "10.1.1.0/24"),
        {
            "apiVersion": "clustermesh.io/v1alpha1",
            "kind": "MeshNode",
            "metadata": {"name": "node1"},
            "spec": {
                "wireguardPublicKey": "A" * 42 + "A=",
                "bootID": "b1",
                "addresses": [{"type": "InternalIP", "address": "192.0.2.1"}],
            },
        },
        pod(ns, "web-1", "192.0.2.1", "10.1.0.7", "fd00:1::7", app="web"),
        pod(ns, "web-2", "192.0.2.2", "10.1.1.7", app="web"),
        pod(ns, "db-1", "192.0.2.2", "10.1.1.8", app="db"),
        service(
            ns,
            "web",
            "10.96.7.1",
            "fd00:96::71",
            ports={"http": 80, "admin": 81},
            **{"global": "true", "affinity": "local"},
        ),
        service(ns, "db", "10.96.7.2", ports={"": 5432}, **{"global": "true", "shared": "false"}),
        service(ns, "private", "10.96.7.3", ports=HTTP),
        endpoints(ns, "web", "10.1.0.7", "10.1.1.7", ports={"http": 8080, "admin": 8081}),
        endpoints(ns, "web", "fd00:1::7", ports={"http": 8080}, name="v6"),
        endpoints(ns, "db", "10.1.1.8", ports={"": 5432}),
    )
    exported: dict[str, Any] = {}
    async with replica(own_etcd_server, **api.settings) as from_kube:
        await from_kube.ready()
        for prefix in ("cilium/state/", "clustermesh/local/"):
            exported |= await from_kube.exports(prefix)
    assert {f"cilium/state/ip/v1/default/{ip}" for ip in ("10.1.0.7", "fd00:1::7", "10.1.1.8")} < (
        exported.keys()
    )

    await asyncio.to_thread(own_etcd_server.stop)
    own_etcd_server.wipe()
    await asyncio.to_thread(own_etcd_server.start)
    directory = tmp_path / "manifests"
    directory.mkdir()
    for path in (
        "/api/v1/namespaces",
        "/api/v1/nodes",
        "/api/v1/pods",
        "/api/v1/services",
        "/apis/discovery.k8s.io/v1/endpointslices",
        "/apis/clustermesh.io/v1alpha1/meshnodes",
    ):
        found = kube_with_crds.call("GET", path)
        kind = {"apiVersion": found["apiVersion"], "kind": found["kind"].removesuffix("List")}
        items = [kind | item for item in found["items"]]
        listed = {"apiVersion": "v1", "kind": "List", "items": items}
        (directory / f"{path.rsplit('/', 1)[1]}.json").write_text(json.dumps(listed))
    async with replica(own_etcd_server, f"dir:{directory}") as from_files:
        await from_files.ready()
        assert from_files.source.problems == []
        same: dict[str, Any] = {}
        for prefix in ("cilium/state/", "clustermesh/local/"):
            same |= await from_files.exports(prefix)
    assert same == exported


async def has(apiserver: Replica, *keys: str) -> bool:
    found = await apiserver.exports("c")
    return all(key in found for key in keys)


async def lacks(apiserver: Replica, key: str) -> bool:
    return not await has(apiserver, key)
