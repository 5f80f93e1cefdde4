"""What the chart installs, run: its command lines, settings, certificates and accounts fit."""

from __future__ import annotations

import base64
import re
from contextlib import ExitStack
from pathlib import Path
from typing import Final

import pytest
import yaml

from .chart import Object, Values
from .conftest import NewKube
from .containers import Pod, two_addresses
from .matrix import MATRIX, with_values
from .release import Release

pytestmark = pytest.mark.xdist_group("chart")

_ETCD_PORT: Final = 2379
_NUMBERS: Final = {"east": 1, "west": 2}  # of clusters


class Runner:
    """Runs pods of a release."""

    def __init__(self, release: Release, directory: Path) -> None:
        self._release = release
        self._directory = directory
        self.loopback, self.address = two_addresses(_ETCD_PORT)
        service = "clustermesh-apiserver"
        self._names = {
            "127.0.0.1": self.loopback,
            f"{service}.{release.namespace}.svc": self.address,
            f"{service}-metrics.{release.namespace}.svc": self.address,
        }

    def pod(self, name: str, spec: Object) -> Pod:
        """A pod, with what its volumes hold now."""
        return Pod(spec, self._directory / name, self._release.get, self._names)

    def workload(self, kind: str, name: str) -> Pod:
        """A pod of a Deployment or DaemonSet."""
        return self.pod(name, self._release.get(kind, name)["spec"]["template"]["spec"])

    def test(self) -> Pod:
        """The pod of `helm test`."""
        arguments = ("get", "hooks", "clustermesh", "--namespace", self._release.namespace)
        hook = yaml.safe_load(self._release.kube.helm(*arguments))
        return self.pod("test", hook["spec"])

    def kubeconfig(self, account: str) -> Path:
        """How a container outside of a pod logs in as what it is in one."""
        path = self._directory / f"{account}.kubeconfig"
        self._release.account(account).write_kubeconfig(path)
        return path

    @property
    def fields(self) -> dict[str, str]:
        """What the kubelet tells the containers."""
        return {"podIP": self.address, "uid": "1-2-3"}


@pytest.mark.parametrize("method", ["helm", "cronJob"])
def test_what_is_installed_runs_and_passes_its_own_test(
    release: Release, tmp_path: Path, method: str
) -> None:
    runner = Runner(release, tmp_path)
    server = {"extraIpAddresses": [runner.loopback, runner.address]}
    tls = {"auto": {"method": method}, "server": server}
    release.put("install", {"clustermesh": {"apiserver": {"tls": tls}}, "test": {"timeout": 30}})
    if method == "cronJob":
        _make_certificates(release, runner)
    pod = runner.workload("deployment", "clustermesh-apiserver")
    login = ("--kubeconfig", str(runner.kubeconfig("apiserver")))
    with (
        pod.running("etcd", **runner.fields),
        pod.running("apiserver", *login, **runner.fields) as apiserver,
    ):
        tester = runner.test()
        with tester.running("connectivity") as test:
            assert test.wait(timeout=60) == 0, tester.log("connectivity") + pod.log("apiserver")
        assert "all is well" in tester.log("connectivity")
        assert apiserver.poll() is None, pod.log("apiserver")
        # As a user would, in the container.
        asked = pod.run("apiserver", "clustermesh", "status", **runner.fields)
        assert asked.returncode == 0, asked.stdout + asked.stderr
        assert "objects in kube" in asked.stdout


def test_helm_test_fails_and_names_the_cluster_that_is_not_reached(
    release: Release, tmp_path: Path
) -> None:
    runner = Runner(release, tmp_path)
    server = {"extraIpAddresses": [runner.loopback, runner.address]}
    west = {"name": "west", "address": runner.address, "port": 1}
    apiserver = {"tls": {"server": server}}
    config = {"enabled": True, "clusters": [west]}
    values = {"clustermesh": {"apiserver": apiserver, "config": config}, "test": {"timeout": 5}}
    release.put("install", values)
    pod = runner.workload("deployment", "clustermesh-apiserver")
    login = ("--kubeconfig", str(runner.kubeconfig("apiserver")))
    with pod.running("etcd", **runner.fields), pod.running("apiserver", *login, **runner.fields):
        tester = runner.test()
        with tester.running("connectivity") as test:
            assert test.wait(timeout=60) == 1, tester.log("connectivity")
    assert re.search(r"west is \w+ .*:1\b.*refused", tester.log("connectivity"))


def test_two_clusters_with_cas_of_their_own_are_joined_by_values(
    new_kube: NewKube, tmp_path: Path
) -> None:
    releases = {name: Release(new_kube(name), "default", tmp_path / name) for name in _NUMBERS}
    runners = {name: Runner(release, tmp_path / name) for name, release in releases.items()}
    common = {name: _values(name, runners[name]) for name in _NUMBERS}
    for name, release in releases.items():
        release.put("install", common[name])
    cas = [r.get("secret", "clustermesh-ca")["data"]["ca.crt"] for r in releases.values()]
    bundle = {"enabled": True, "content": "".join(base64.b64decode(ca).decode() for ca in cas)}
    with ExitStack() as stack:
        for name, release in releases.items():
            (peer,) = _NUMBERS.keys() - {name}
            clusters = [{"name": peer, "address": runners[peer].address}]
            config = {"enabled": True, "clusters": clusters}
            joined = {"clustermesh": {"config": config}, "tls": {"caBundle": bundle}}
            release.put("upgrade", with_values(common[name], joined))
            pod = runners[name].workload("deployment", "clustermesh-apiserver")
            login = ("--kubeconfig", str(runners[name].kubeconfig("apiserver")))
            stack.enter_context(pod.running("etcd", **runners[name].fields))
            stack.enter_context(pod.running("apiserver", *login, **runners[name].fields))
        for name, runner in runners.items():
            (peer,) = _NUMBERS.keys() - {name}
            tester = runner.test()
            with tester.running("connectivity") as test:
                assert test.wait(timeout=60) == 0, tester.log("connectivity")
            assert re.search(
                rf"^{peer} +{_NUMBERS[peer]} +ready", tester.log("connectivity"), re.MULTILINE
            )


def _values(name: str, runner: Runner) -> Values:
    server = {"extraIpAddresses": [runner.loopback, runner.address]}
    copies = {"enabled": name == "west"}  # the agents of east read the etcd of west
    return {
        "cluster": {"name": name, "id": _NUMBERS[name]},
        "clustermesh": {"apiserver": {"tls": {"server": server}, "kvstoremesh": copies}},
    }


def test_the_cron_job_renews_nothing_that_is_not_due(release: Release, tmp_path: Path) -> None:
    runner = Runner(release, tmp_path)
    release.put("install", MATRIX["cron job"])
    assert _make_certificates(release, runner).count(": written") == 5
    assert "nothing is due" in _make_certificates(release, runner)
    release.kube.kubectl(
        "delete", "secret", "clustermesh-apiserver-local-cert", "--namespace", release.namespace
    )
    said = _make_certificates(release, runner)
    assert said.count(": written") == 1
    assert "clustermesh-apiserver-local-cert: written" in said


def _make_certificates(release: Release, runner: Runner) -> str:
    """Run the pod of the CronJob; what it says."""
    spec = release.get("cronjob", "clustermesh-certs")["spec"]["jobTemplate"]["spec"]
    pod = runner.pod("certs", spec["template"]["spec"])
    login = ("--kubeconfig", str(runner.kubeconfig("certs")))
    with pod.running("certs", *login) as job:
        assert job.wait(timeout=60) == 0, pod.log("certs")
    return pod.log("certs")
