"""
A Kubernetes cluster without nodes: etcd, a real API server and real controllers, on loopback.

    with KubeCluster(tmp_path, "east") as east:
        east.kubectl("apply", "-f", "-", stdin=manifests)

It has an address of its own in 127.0.0.0/8, so any number of them live side by side. Nodes and
Pods are what a test writes, status included: there are neither kubelets nor a scheduler.
"""

from __future__ import annotations

import contextlib
import json
import random
import signal
import socket
import subprocess
import time
import urllib.request
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from ipaddress import IPv4Address
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self

from clustermesh.sandbox.kube.api import Api
from clustermesh.sandbox.kube.control_plane import (
    API_PORT,
    CONTROLLERS,
    ETCD_PORT,
    ControlPlane,
    client_certificate,
)
from clustermesh.sandbox.kube.programs import kube_assets

_DEADLINE: Final = 60.0  # seconds until a server answers, on a machine that does other things
_POLL: Final = 0.05  # seconds

# A parent's death is that of the thread that forked. This one lives as long as we do, so that
# nothing is left of a run that was killed, and nothing ends with a worker that started it.
_parent: Final = ThreadPoolExecutor(1, thread_name_prefix="parent of servers")


class KubeCluster:
    """
    A cluster below `directory`, made when it is first started; a context manager that runs it.

    Everything in it blocks; from an event loop, call it with `asyncio.to_thread`.
    """

    def __init__(
        self,
        directory: Path,
        name: str,
        *,
        programs: Path | None = None,
        controllers: Sequence[str] = CONTROLLERS,
        address: IPv4Address | None = None,
    ) -> None:
        """
        Args:
            name: its context in `kubeconfig`.
            programs: what `kube_assets` gives, which is the default.
            controllers: those of kube-controller-manager to run; may be none.
            address: where to serve; without it, at an address of loopback that nobody else has.

        Raises:
            UnavailableError: there are no programs to run.
        """
        directory.mkdir(parents=True, exist_ok=True)
        self._plane = ControlPlane(
            directory,
            name,
            address or _own_address(),
            programs or kube_assets(),
            controllers,
        )
        self._authority = self._plane.prepare()
        self._api = Api(self._plane)
        self._running: dict[str, subprocess.Popen[bytes]] = {}

    @property
    def name(self) -> str:
        """Its context in `kubeconfig`."""
        return self._plane.name

    @property
    def url(self) -> str:
        """Where its API server answers, `https://…`."""
        return self._plane.url

    @property
    def ca(self) -> Path:
        """The CA that its API server's certificate is signed by."""
        return self._plane.ca

    @property
    def kubeconfig(self) -> Path:
        """The administrator's credentials, with nothing but this cluster in it."""
        return self._plane.kubeconfig

    def kubeconfig_of(self, user: str, groups: Sequence[str] = ()) -> Path:
        """Credentials of a user, who may do what RBAC says of the user and the groups."""
        path = self._plane.directory / f"kubeconfig-{user.replace(':', '-')}"
        self._plane.write_kubeconfig(path, client_certificate(self._authority, user, groups))
        return path

    def start(self) -> None:
        """
        Start what does not run: etcd, API server, controllers. All that was stored is there again.

        Returns when Pods can be created in the namespace `default`.

        Raises:
            RuntimeError: a server ended, or does not answer after a minute; with its last words.
        """
        plane = self._plane
        self._start("etcd", plane.etcd(), self._etcd_answers)
        self._start("kube-apiserver", plane.apiserver(), self._api.is_ready)
        if plane.controllers:
            self._start(
                "kube-controller-manager", plane.controller_manager(), self._controllers_work
            )

    def stop(self, number: signal.Signals = signal.SIGKILL) -> None:
        """End the API server, as a crash would unless told otherwise. Etcd keeps what it stored."""
        self._stop("kube-apiserver", number)

    def restart(self) -> None:
        """Crash the API server, and wait until it answers again. What it had cached is gone."""
        self.stop()
        self.start()

    def compact(self) -> int:
        """
        Forget all revisions of objects but the present ones, in etcd; the revision it was done at.

        A listing that was begun before cannot be continued. The API server goes on answering
        watches from what it has cached, until it is restarted.
        """
        revision = int(self._etcd("range", {"key": "AA=="})["header"]["revision"])
        self._etcd("compaction", {"revision": revision, "physical": True})
        return revision

    def close(self) -> None:
        """End everything. What was stored stays in the directory."""
        for name in reversed(list(self._running)):
            self._stop(name, signal.SIGKILL)

    def call(self, method: str, path: str, body: Mapping[str, Any] | None = None) -> Any:
        """
        What the API server answers to the administrator: an object of JSON.

        Args:
            body: for PATCH, a merge patch.

        Raises:
            RefusedError: it does not do it; says why.
            OSError: it does not answer.
        """
        return self._api.call(method, path, body)

    def exists(self, path: str) -> bool:
        """Whether there is such an object."""
        return self._api.exists(path)

    def kubectl(self, *arguments: str, stdin: str = "") -> str:
        """
        What kubectl says to the administrator.

        Raises:
            RuntimeError: it failed, with its reason.
        """
        return self._api.run("kubectl", *arguments, stdin=stdin)

    def helm(self, *arguments: str, version: int = 4) -> str:
        """
        What helm, of that major version, says to the administrator.

        Raises:
            RuntimeError: it failed, with its reason.
        """
        return self._api.run(f"helm{version}", *arguments)

    def __enter__(self) -> Self:
        with contextlib.ExitStack() as failing:
            failing.callback(self.close)
            self.start()
            failing.pop_all()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def _start(self, name: str, command: Sequence[str], answers: Callable[[], bool]) -> None:
        if name in self._running:
            return
        log = self._plane.directory / f"{name}.log"
        bound = ["setpriv", "--pdeathsig", "KILL", *command]
        with log.open("ab") as out:
            process = _parent.submit(
                subprocess.Popen, bound, stdin=subprocess.DEVNULL, stdout=out, stderr=out
            ).result()
        self._running[name] = process
        deadline = time.monotonic() + _DEADLINE
        while not answers():
            if process.poll() is not None or time.monotonic() > deadline:
                self._stop(name, signal.SIGKILL)
                said = "\n".join(log.read_text().splitlines()[-20:])
                raise RuntimeError(f"{name} of {self.name} did not start:\n{said}")
            time.sleep(_POLL)

    def _stop(self, name: str, number: signal.Signals) -> None:
        process = self._running.pop(name, None)
        if process is not None:
            process.send_signal(number)
            process.wait()

    def _etcd_answers(self) -> bool:
        with contextlib.suppress(OSError):
            return bool(self._etcd("range", {"key": "AA=="}))
        return False

    def _controllers_work(self) -> bool:
        # The account is that controller's first work; without it there is nothing to wait for.
        if "serviceaccount-controller" not in self._plane.controllers:
            return True
        return self.exists("/api/v1/namespaces/default/serviceaccounts/default")

    def _etcd(self, verb: str, body: Mapping[str, Any]) -> Any:
        """What etcd's JSON gateway answers."""
        url = f"{self._plane.etcd_url}/v3/kv/{verb}"
        with urllib.request.urlopen(url, json.dumps(body).encode(), timeout=10) as answer:
            return json.load(answer)


def _own_address() -> IPv4Address:
    """An address of this host that nobody serves at."""
    while True:
        address = IPv4Address("127.64.0.0") + random.randrange(1 << 22)
        with contextlib.suppress(OSError), contextlib.ExitStack() as stack:
            for port in (API_PORT, ETCD_PORT):
                stack.enter_context(socket.socket()).bind((str(address), port))
            return address
