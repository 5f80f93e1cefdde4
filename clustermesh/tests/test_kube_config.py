"""Where an API server is and who we are there, as kubeconfig files and pods say it."""

from __future__ import annotations

import base64
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from clustermesh.errors import UserError
from clustermesh.kube import DeniedError, KubeConfig, in_cluster, read_kubeconfig
from clustermesh.kube.credentials import Login

PLUGIN = """
import json, os, sys
with open(sys.argv[1], "a") as log:
    log.write("called\\n")
told = json.loads(os.environ["KUBERNETES_EXEC_INFO"])
status = {"token": os.environ["WHO"] + "@" + told["spec"]["cluster"]["server"]}
if len(sys.argv) > 2:
    status["expirationTimestamp"] = sys.argv[2]
print(json.dumps({"apiVersion": told["apiVersion"], "kind": "ExecCredential", "status": status}))
"""


def write(path: Path, *, user: dict[str, Any] | None = None, **cluster: Any) -> Path:
    """A kubeconfig with one context, `east`."""
    content = {
        "current-context": "east",
        "contexts": [
            {"name": "east", "context": {"cluster": "c", "user": "u", "namespace": "mesh"}}
        ],
        "clusters": [{"name": "c", "cluster": {"server": "https://192.0.2.1:6443/", **cluster}}],
        "users": [{"name": "u", "user": user or {}}],
    }
    path.write_text(yaml.safe_dump(content))
    return path


async def login(config: KubeConfig) -> Login:
    return await config.credentials.login()


def test_a_context_names_the_server_and_our_namespace(tmp_path: Path) -> None:
    data = base64.b64encode(b"PEM").decode()
    cluster: dict[str, Any] = {"certificate-authority-data": data, "tls-server-name": "x"}
    config = read_kubeconfig([write(tmp_path / "config", **cluster)])
    assert (config.server, config.namespace) == ("https://192.0.2.1:6443", "mesh")
    assert (config.ca, config.server_name, config.verify) == (b"PEM", "x", True)


async def test_files_are_beside_the_kubeconfig_and_read_each_time(tmp_path: Path) -> None:
    (tmp_path / "token").write_text("one\n")
    config = read_kubeconfig([write(tmp_path / "config", user={"tokenFile": "token"})])
    assert (await login(config)).token == "one"
    (tmp_path / "token").write_text("two\n")
    assert (await login(config)).token == "two"


async def test_a_client_certificate_may_be_written_out_or_in_files(tmp_path: Path) -> None:
    (tmp_path / "key.pem").write_text("KEY")
    user = {
        "client-certificate-data": base64.b64encode(b"CERT").decode(),
        "client-key": str(tmp_path / "key.pem"),
    }
    config = read_kubeconfig([write(tmp_path / "config", user=user)])
    assert await login(config) == Login(None, b"CERT", b"KEY")


def plugin(directory: Path, *arguments: str) -> dict[str, Any]:
    (directory / "plugin.py").write_text(PLUGIN)
    return {
        "exec": {
            "apiVersion": "client.authentication.k8s.io/v1",
            "command": sys.executable,
            "args": [str(directory / "plugin.py"), str(directory / "calls"), *arguments],
            "env": [{"name": "WHO", "value": "ada"}],
            "provideClusterInfo": True,
        }
    }


@pytest.mark.parametrize(
    ("end", "calls"), [((), 1), (("2999-01-01T00:00:00Z",), 1), (("2000-01-01T00:00:00Z",), 2)]
)
async def test_a_program_is_asked_again_when_what_it_said_has_expired(
    tmp_path: Path, end: tuple[str, ...], calls: int
) -> None:
    config = read_kubeconfig([write(tmp_path / "config", user=plugin(tmp_path, *end))])
    for _ in range(2):
        assert (await login(config)).token == "ada@https://192.0.2.1:6443/"
    assert len((tmp_path / "calls").read_text().splitlines()) == calls


async def test_a_program_is_asked_again_when_what_it_said_is_not_accepted(tmp_path: Path) -> None:
    config = read_kubeconfig([write(tmp_path / "config", user=plugin(tmp_path))])
    await login(config)
    config.credentials.rejected()
    await login(config)
    assert len((tmp_path / "calls").read_text().splitlines()) == 2


async def test_a_program_that_fails_is_quoted(tmp_path: Path) -> None:
    user = {
        "exec": {
            "apiVersion": "v1",
            "command": "sh",
            "args": ["-c", "echo log in first >&2; exit 3"],
        }
    }
    config = read_kubeconfig([write(tmp_path / "config", user=user)])
    with pytest.raises(DeniedError, match=r"^sh failed with code 3: log in first$"):
        await login(config)


def test_of_several_files_the_first_that_names_something_counts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(tmp_path / "a")
    write(tmp_path / "b", server="https://192.0.2.2")
    monkeypatch.setenv("KUBECONFIG", f"{tmp_path}/missing:{tmp_path}/a:{tmp_path}/b")
    assert read_kubeconfig().server == "https://192.0.2.1:6443"


@pytest.mark.parametrize(
    ("user", "cluster", "message"),
    [
        ({"username": "ada"}, {}, "user u: username is not supported"),
        ({"as": "ada"}, {}, "user u: as is not supported"),
        ({}, {"server": "192.0.2.1"}, "'192.0.2.1' is no URL of an API server"),
        ({}, {"certificate-authority-data": "?"}, "certificate-authority-data is no base64"),
        ({"token": 7}, {}, "user u: Expected `str`, got `int` - at `$.token`"),
    ],
)
def test_a_mistake_is_named_with_its_file(
    tmp_path: Path, user: dict[str, Any], cluster: dict[str, Any], message: str
) -> None:
    path = write(tmp_path / "config", user=user, **cluster)
    with pytest.raises(UserError) as caught:
        read_kubeconfig([path])
    assert str(caught.value).startswith(f"{path}: {message}")


def test_a_context_that_is_not_there_is_told_from_those_that_are(tmp_path: Path) -> None:
    path = write(tmp_path / "config")
    with pytest.raises(UserError) as caught:
        read_kubeconfig([path], "west")
    assert str(caught.value) == f"{path}: no context 'west' (there is east)"
    with pytest.raises(UserError, match=r"cannot read .*/none: No such file"):
        read_kubeconfig([tmp_path / "none"])


async def test_a_pod_has_a_service_account(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("namespace", "token", "ca.crt"):
        (tmp_path / name).write_text(f"the {name}\n")
    monkeypatch.setenv("KUBERNETES_SERVICE_HOST", "fd00::1")
    monkeypatch.setenv("KUBERNETES_SERVICE_PORT", "6443")
    config = in_cluster(tmp_path)
    assert (config.server, config.namespace) == ("https://[fd00::1]:6443", "the namespace")
    assert config.ca == tmp_path / "ca.crt"
    assert (await login(config)).token == "the token"


def test_outside_of_a_pod_there_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("KUBERNETES_SERVICE_HOST", raising=False)
    with pytest.raises(UserError, match=r"this is no pod of a cluster \(say --kubeconfig FILE\)"):
        in_cluster()
