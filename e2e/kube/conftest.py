"""
The tier that needs real API servers: `make test-kube`, or `pytest e2e/kube`.

Where their programs are not there, its tests are skipped by name, and the run ends by saying why.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Final, TypeAlias
from uuid import uuid4

import pytest

from clustermesh.sandbox.cache import UnavailableError
from clustermesh.sandbox.kube.programs import kube_assets
from clustermesh.tests.etcd_server import own_etcd_server
from e2e.mesh import eventually

from .cluster import KubeCluster
from .release import Release

__all__ = ["own_etcd_server"]

NewKube: TypeAlias = Callable[[str], KubeCluster]

_HERE: Final = Path(__file__).parent


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if _HERE in item.path.parents:
            item.add_marker(pytest.mark.kube)


@pytest.fixture(scope="session")
def kube_programs() -> Path:
    """The directory with kube-apiserver, kube-controller-manager, kubectl, helm3 and helm4."""
    try:
        return kube_assets()
    except UnavailableError as error:
        pytest.skip(str(error))


@pytest.fixture(scope="session")
def kube(kube_programs: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[KubeCluster]:
    """A cluster for the whole session. Tests keep to their own namespaces and leave it running."""
    directory = tmp_path_factory.mktemp("kube")
    with KubeCluster(directory, "shared", programs=kube_programs) as cluster:
        yield cluster


@pytest.fixture
def new_kube(kube_programs: Path, tmp_path: Path) -> Iterator[NewKube]:
    """Start clusters for one test, which may do anything to them."""
    with ExitStack() as stack:

        def start(name: str) -> KubeCluster:
            cluster = KubeCluster(tmp_path / name, name, programs=kube_programs)
            return stack.enter_context(cluster)

        yield start


@pytest.fixture
def namespace(kube: KubeCluster) -> Iterator[str]:
    """A namespace of `kube` that no other test uses, and that Pods can be created in."""
    name = f"test-{uuid4().hex[:12]}"
    kube.call("POST", "/api/v1/namespaces", {"metadata": {"name": name}})
    account = f"/api/v1/namespaces/{name}/serviceaccounts/default"
    eventually(f"{name} has a service account", lambda: kube.exists(account))
    yield name
    kube.call("DELETE", f"/api/v1/namespaces/{name}")


@pytest.fixture
def release(kube: KubeCluster, namespace: str, tmp_path: Path) -> Iterator[Release]:
    """The chart in a namespace of its own: not installed at first, and not left behind."""
    made = Release(kube, namespace, tmp_path)
    yield made
    if made.is_installed():
        made.helm("uninstall")
