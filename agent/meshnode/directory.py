"""The MeshNode as a file, in a directory of manifests that an apiserver watches."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Final

import msgspec

from agent.own import Known
from clustermesh.files import replace_file

_FOR_ALL: Final = 0o644  # there is no secret in it, and the apiserver may be another user


class ManifestFile:
    """`meshnode-NODE.json` in a directory. Without the directory it cannot be written."""

    def __init__(self, directory: Path, name: str) -> None:
        self._path = directory / f"meshnode-{name}.json"
        self._name = name

    async def write(self, known: Known) -> None:
        """See Place."""
        manifest = {
            "apiVersion": "clustermesh.io/v1alpha1",
            "kind": "MeshNode",
            "metadata": {"name": self._name},
            "spec": known,
        }
        content = msgspec.json.format(msgspec.json.encode(manifest)) + b"\n"
        await asyncio.to_thread(self._replace, content)

    def _replace(self, content: bytes) -> None:
        try:
            is_there = self._path.read_bytes() == content
        except FileNotFoundError:
            is_there = False
        if not is_there:
            replace_file(self._path, content, mode=_FOR_ALL)
