"""
What a kubelet would run of a pod, as plain processes: the real command lines, files and settings.

Volumes are written below a directory, and their paths, a pod's loopback and its address become ones
that are free here. That is all that differs, so what starts here starts in a pod.
"""

from __future__ import annotations

import base64
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final, TypeAlias

from certs.store import write_atomically

Spec: TypeAlias = Mapping[str, Any]
Get: TypeAlias = Callable[[str, str], Any]
"""What the API server has of a kind and name; None without it."""


class Containers:
    """The containers of a pod."""

    def __init__(self, spec: Spec, directory: Path, names: Mapping[str, str]) -> None:
        """
        Args:
            directory: for its volumes.
            names: what is found by another name here than in a cluster: addresses, hosts, and
                paths of the machine. All other paths are below `directory`.
        """
        self._containers = {c["name"]: c for c in spec["containers"]}
        self._volumes = {volume["name"]: volume for volume in spec["volumes"]}
        mounts = {m["mountPath"] for c in spec["containers"] for m in c["volumeMounts"]}
        places = {path: f"{directory}{path}" for path in mounts} | dict(names)
        # A longer one first; a path not in the middle of another one.
        words = sorted(places, key=len, reverse=True)
        parts = [(r"(?<![\w/.])" if w[0] == "/" else r"(?<![\w.])") + re.escape(w) for w in words]
        self._known: Final = re.compile(rf"(?:{'|'.join(parts)})(?![\w.])")
        self._places: Final = places

    def command(self, name: str, *more: str, **fields: str) -> list[str]:
        """The command line of a container, with more arguments, given what its fieldRefs say."""
        container = self._containers[name]
        values = self._variables(name, fields)
        words = [*container["command"], *container.get("args", ())]
        for variable, value in values.items():
            words = [word.replace(f"$({variable})", value) for word in words]
        return [*map(self._here, words), *more]

    def environment(self, name: str, **fields: str) -> dict[str, str]:
        """Its variables."""
        return {key: self._here(text) for key, text in self._variables(name, fields).items()}

    def write_volumes(self, get: Get) -> None:
        """Have the files of all volumes as the API server has them now; what is right stays."""
        for container in self._containers.values():
            for mount in container["volumeMounts"]:
                volume = self._volumes[mount["name"]]
                if "hostPath" not in volume:
                    self._write(Path(self._places[mount["mountPath"]]), volume, get)

    def _variables(self, name: str, fields: Mapping[str, str]) -> dict[str, str]:
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

    def _here(self, text: str) -> str:
        return self._known.sub(lambda found: self._places[found[0]], text)

    def _write(self, directory: Path, volume: Spec, get: Get) -> None:
        directory.mkdir(parents=True, exist_ok=True)
        files = _files(volume, get)
        if files is None:
            return
        wanted = {directory / name: self._here(text).encode() for name, text in files.items()}
        there = {path: path.read_bytes() for path in directory.iterdir() if path.is_file()}
        changed = {p: (text, 0o600) for p, text in wanted.items() if there.get(p) != text}
        if changed:
            write_atomically(changed)
        for path in there.keys() - wanted.keys():
            path.unlink()


def _files(volume: Spec, get: Get) -> Mapping[str, str] | None:
    """The content of a volume by file name; None for one that belongs to the container."""
    if "projected" in volume:
        found = [_files(source, get) for source in volume["projected"]["sources"]]
        return {name: text for files in found if files for name, text in files.items()}
    if "configMap" in volume:
        source = volume["configMap"]
        data = get("configmap", source["name"])["data"]
    elif "secret" in volume:
        source = volume["secret"]
        secret = get("secret", source.get("secretName") or source["name"])
        if secret is None:
            assert source.get("optional"), source
            return {}
        encoded = secret.get("data") or {}
        data = {key: base64.b64decode(value).decode() for key, value in encoded.items()}
    else:
        return None
    if "items" not in source:
        return dict(data)
    return {item["path"]: data[item["key"]] for item in source["items"]}
