"""A mistake gives one clear line that names it and says what to do; the rest keeps working."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
import yaml

import certs

from .conftest import NewMesh
from .mesh import Mesh, eventually, service

NODE = "cluster1/node1"
CONTROL = "cluster1/control"


@pytest.fixture(scope="module")
def mesh(new_mesh: NewMesh) -> Mesh:
    made = new_mesh("mistakes", "--nodes=1", "--pods=1")
    made.apply("cluster1", service("echo"))
    made.apply("cluster2", service("echo"))
    made.wait_for_backends("echo", cluster1=1, cluster2=1)
    return made


@pytest.fixture(scope="module")
def not_bpffs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("plain-directory")


ELSEWHERE = "--listen=127.0.0.1:0"


@pytest.mark.parametrize(
    ("flags", "code", "said"),
    [
        (["--cluster-id=300"], 2, "cluster id 300 is out of range"),
        (["--cluster-id=one"], 2, "--cluster-id"),
        (["--cluster-name=Not_a_name"], 2, "Not_a_name"),
        (["--node-name=a/b"], 2, "'a/b' is no node name"),
        (["--rooting=tunnel"], 2, "--rooting"),
        (["--routing=magic"], 2, "--routing"),
        (["--config=/no/such/file"], 2, "cannot read /no/such/file"),
        ([], 1, "127.0.0.1:9879"),
        ([ELSEWHERE, "--bpffs=/no/such/directory"], 1, "/no/such/directory"),
        ([ELSEWHERE, "--bpffs={plain}"], 1, "{plain}"),
        ([ELSEWHERE, "--cgroup=/no/such/directory"], 1, "/no/such/directory"),
        ([ELSEWHERE, "--cgroup={plain}"], 1, "{plain} is no cgroup2 directory"),
        ([ELSEWHERE, "--local-etcd-config=/no/such/file"], 1, "/no/such/file"),
        ([ELSEWHERE, "--local-etcd-config={plain}/bad.yaml"], 1, "bad.yaml"),
    ],
    ids=lambda value: " ".join(value).replace("/", " ") if isinstance(value, list) else None,
)
def test_an_agent_that_is_told_something_impossible(
    mesh: Mesh, not_bpffs: Path, flags: list[str], code: int, said: str
) -> None:
    (not_bpffs / "bad.yaml").write_text("endpoints: [https://127.0.0.1:1]\nca: x\n")
    (part,) = mesh.parts(NODE)
    given = [flag.format(plain=not_bpffs) for flag in flags]
    _expect(
        mesh,
        NODE,
        [*_without(mesh.world.command(part), given), *given],
        code,
        said.format(plain=not_bpffs),
    )


def test_an_agent_without_privileges(mesh: Mesh) -> None:
    (part,) = mesh.parts(NODE)
    unprivileged = ["setpriv", "--bounding-set=-all", "--inh-caps=-all"]
    _expect(mesh, NODE, [*unprivileged, *mesh.world.command(part), ELSEWHERE], 1, "root")


@pytest.mark.parametrize(
    ("flags", "code", "said"),
    [
        (["--source=files:/tmp"], 2, "--source 'files:/tmp' is no source"),
        (["--etcd-endpoints="], 2, "--etcd-endpoints"),
        (["--etcd-endpoints=http://192.0.2.1:2379", ELSEWHERE], 1, "plain text"),
        (["--cluster-id=2", ELSEWHERE], 1, "identity"),
        ([], 1, "127.0.0.1:9880"),
    ],
    ids=lambda value: " ".join(value).replace("/", " ") if isinstance(value, list) else None,
)
def test_an_apiserver_that_is_told_something_impossible(
    mesh: Mesh, flags: list[str], code: int, said: str
) -> None:
    (part,) = mesh.parts("cluster1/apiserver")
    _expect(mesh, CONTROL, [*_without(mesh.world.command(part), flags), *flags], code, said)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("a: [", "bad.yaml: no YAML"),
        ("just a sentence", "bad.yaml, document 1: it has no apiVersion and kind"),
        (
            "{apiVersion: v1, kind: Service, metadata: {name: x, namespace: y}, spec: {prots: []}}",
            "bad.yaml, document 1 (Service x): spec.prots is no field of a Service",
        ),
        (
            "{apiVersion: v1, kind: Service, metadata: {name: No_label, namespace: y}, spec: {}}",
            "'No_label' is not a DNS label",
        ),
        (
            "{apiVersion: v1, kind: Node, metadata: {name: n}, spec: {podCIDRs: [10.1.0.0/4]}}",
            "bad.yaml, document 1 (Node n): spec.podCIDRs",
        ),
        (b"\xff\xfe\x00", "bad.yaml"),
    ],
)
def test_a_manifest_with_a_mistake_is_named_and_the_others_count(
    mesh: Mesh, content: str | bytes, said: str
) -> None:
    file = mesh.manifests_dir("cluster1") / "bad.yaml"
    file.write_bytes(content if isinstance(content, bytes) else content.encode())
    try:
        eventually("status names it", lambda: said in mesh.troubles("cluster1/apiserver"))
        mesh.apply("cluster1", service("other"))
        mesh.wait_for_backends("other", NODE, cluster1=1)
        mesh.delete("cluster1", service("other"))
    finally:
        file.unlink()
    mesh.wait_until_well()


def test_a_certificate_that_has_expired_is_named(mesh: Mesh, tmp_path: Path) -> None:
    """The peer's file is changed to name a certificate of two years ago, and back."""
    directory = mesh.world.sandbox.directory
    certs.init(
        tmp_path,
        "cluster2",
        now=datetime.now(UTC) - timedelta(days=2000),
        remotes=["cluster1"],
    )
    file = directory / "cluster1" / "clusters" / "cluster2"
    good = file.read_text()
    named = yaml.safe_load(good)
    for field in ("cert-file", "key-file"):
        named[field] = str(tmp_path / Path(named[field]).name)
    file.write_text(yaml.safe_dump(named))
    try:
        eventually("status names it", lambda: "expired" in mesh.troubles(NODE))
        assert "remote-cluster1.crt" in mesh.troubles(NODE)
        assert mesh.backends(NODE, "echo") == {"cluster1": 1, "cluster2": 1}
    finally:
        file.write_text(good)
    mesh.wait_until_well()


@pytest.mark.parametrize("content", ["endpoints: [", "endpoints: []", "endpoint: [x]", ""])
def test_a_peers_file_that_makes_no_sense_is_named(mesh: Mesh, content: str) -> None:
    file = mesh.world.sandbox.directory / "cluster1" / "clusters" / "cluster2"
    good = file.read_text()
    file.write_text(content)
    try:
        eventually("status names it", lambda: str(file) in mesh.troubles(NODE))
        assert mesh.backends(NODE, "echo") == {"cluster1": 1, "cluster2": 1}
    finally:
        file.write_text(good)
    mesh.wait_until_well()


def _without(command: object, flags: list[str]) -> list[str]:
    """The command without the flags that are given anew."""
    assert isinstance(command, list)
    names = {flag.partition("=")[0] for flag in flags}
    return [argument for argument in command if argument.partition("=")[0] not in names]


def _expect(mesh: Mesh, place: str, command: list[str], code: int, said: str) -> None:
    done = mesh.attempt(place, *command, timeout=30)
    output = done.stdout + done.stderr
    program = Path(next(part for part in command if "clustermesh-" in part)).name
    assert done.returncode == code, output
    assert "Traceback" not in output
    (line,) = [line for line in output.splitlines() if line.startswith(f"{program}: ")]
    assert said in line
