"""
What a kubelet would run of a pod, as plain processes: the real command lines, files and settings.

Volumes are written below a directory, and their paths, a pod's loopback and its address become ones
that are free here. That is all that differs, so what starts here starts in a pod.
"""

from __future__ import annotations

import base64
import contextlib
import os
import random
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from ipaddress import IPv4Address
from pathlib import Path
from typing import Any, Final, TypeAlias

from .chart import Object

Get: TypeAlias = Callable[[str, str], Any]
"""What the API server has of a kind and name."""

_BIN: Final = str(Path(sys.executable).parent)


class Pod:
    """A pod in a world of its own."""

    def __init__(self, spec: Object, directory: Path, get: Get, names: Mapping[str, str]) -> None:
        """
        Args:
            directory: for its volumes and logs.
            names: what is found by another name here than in a cluster: addresses, hosts.
        """
        self._containers = {c["name"]: c for c in spec["containers"]}
        self._directory = directory
        self._volumes = {volume["name"]: volume for volume in spec["volumes"]}
        mounts = {m["mountPath"] for c in spec["containers"] for m in c["volumeMounts"]}
        places = {path: f"{directory}{path}" for path in mounts} | dict(names)
        # A longer one first; a path not in the middle of another one.
        words = sorted(places, key=len, reverse=True)
        parts = [(r"(?<![\w/.])" if w[0] == "/" else r"(?<![\w.])") + re.escape(w) for w in words]
        self._known = re.compile(rf"(?:{'|'.join(parts)})(?![\w.])")
        self._places = places
        self._get = get
        for container in spec["containers"]:
            for mount in container["volumeMounts"]:
                self._mount(Path(places[mount["mountPath"]]), self._volumes[mount["name"]])

    def command(self, name: str, *more: str, **fields: str) -> list[str]:
        """The command line of a container, with more arguments, given what its fieldRefs say."""
        container = self._containers[name]
        values = self.environment(name, **fields)
        words = [*container["command"], *container.get("args", ())]
        for variable, value in values.items():
            words = [word.replace(f"$({variable})", value) for word in words]
        return [*map(self._here, words), *more]

    def environment(self, name: str, **fields: str) -> dict[str, str]:
        """Its variables."""
        values: dict[str, str] = {}
        for variable in self._containers[name].get("env", ()):
            text = variable.get("value")
            if text is None:
                path = variable["valueFrom"]["fieldRef"]["fieldPath"]
                text = fields[path.rpartition(".")[2]]
            for known, value in values.items():
                text = text.replace(f"$({known})", value)
            values[variable["name"]] = text
        return values

    @contextlib.contextmanager
    def running(self, name: str, *more: str, **fields: str) -> Iterator[subprocess.Popen[bytes]]:
        """Run a container while the context is open, with all that it starts."""
        with (self._directory / f"{name}.log").open("wb") as log:
            process = subprocess.Popen(
                self.command(name, *more, **fields),
                env=self._variables(name, fields),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
            try:
                yield process
            finally:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)
                process.wait()

    def run(self, name: str, *command: str, **fields: str) -> subprocess.CompletedProcess[str]:
        """Run a command in a container, as `kubectl exec` does."""
        return subprocess.run(
            command,
            env=self._variables(name, fields),
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )

    def log(self, name: str) -> str:
        """What a container has said."""
        return (self._directory / f"{name}.log").read_text()

    def _variables(self, name: str, fields: Mapping[str, str]) -> dict[str, str]:
        own = {k: self._here(v) for k, v in self.environment(name, **fields).items()}
        return {"PATH": f"{_BIN}:{os.environ['PATH']}", **own}

    def _here(self, text: str) -> str:
        return self._known.sub(lambda found: self._places[found[0]], text)

    def _mount(self, path: Path, volume: Object) -> None:
        shutil.rmtree(path, ignore_errors=True)
        path.mkdir(parents=True)
        for name, content in self._files(volume).items():
            file = path / name
            file.touch(mode=0o600)
            file.write_text(self._here(content))

    def _files(self, volume: Object) -> dict[str, str]:
        if "projected" in volume:
            sources = volume["projected"]["sources"]
            return {n: text for source in sources for n, text in self._files(source).items()}
        if "configMap" in volume:
            source = volume["configMap"]
            found = self._get("configmap", source["name"])["data"]
        elif "secret" in volume:
            source = volume["secret"]
            secret = self._get("secret", source.get("secretName") or source["name"])
            if secret is None:
                assert source.get("optional"), source
                return {}
            found = {k: base64.b64decode(v).decode() for k, v in secret["data"].items()}
        else:
            return {}  # an empty directory
        if "items" not in source:
            return dict(found)
        return {item["path"]: found[item["key"]] for item in source["items"]}


def two_addresses(port: int) -> tuple[str, str]:
    """A pod's loopback and its own address: two of this host's where nobody has that port."""
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline:
        first = IPv4Address("127.160.0.0") + 2 * random.randrange(1 << 20)
        with contextlib.suppress(OSError), contextlib.ExitStack() as stack:
            for address in (first, first + 1):
                stack.enter_context(socket.socket()).bind((str(address), port))
            return str(first), str(first + 1)
    raise AssertionError("no address of this host is free")
