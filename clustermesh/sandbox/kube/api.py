"""What the administrator of a control plane asks its API server: a few calls, that block."""

from __future__ import annotations

import contextlib
import json
import os
import ssl
import subprocess
import urllib.error
import urllib.request
from collections.abc import Mapping
from http import HTTPStatus
from typing import Any, Final

from .control_plane import ControlPlane

_DEADLINE: Final = 60.0  # seconds for an answer, on a machine that does other things


class RefusedError(Exception):
    """What an API server answered instead of doing what it was told."""

    def __init__(self, code: int, message: str) -> None:
        super().__init__(f"{code}: {message}")
        self.code: Final = code  # of HTTP


class Api:
    """The API server of a control plane whose certificates are there, as its administrator."""

    def __init__(self, plane: ControlPlane) -> None:
        context = ssl.create_default_context(cafile=str(plane.ca))
        context.load_cert_chain(*plane.admin)
        # By no proxy: whatever is set for this machine does not know the way.
        direct = urllib.request.ProxyHandler({})
        self._opener = urllib.request.build_opener(
            direct, urllib.request.HTTPSHandler(context=context)
        )
        self._plane = plane

    def call(self, method: str, path: str, body: Mapping[str, Any] | None = None) -> Any:
        """
        What the API server answers: an object of JSON.

        Args:
            body: for PATCH, a merge patch.

        Raises:
            RefusedError: it does not do it; says why.
            OSError: it does not answer.
        """
        request = urllib.request.Request(  # noqa: S310 - the URL is that of the plane
            self._plane.url + path,
            method=method,
            data=None if body is None else json.dumps(body).encode(),
        )
        kind = "application/merge-patch+json" if method == "PATCH" else "application/json"
        request.add_header("Content-Type", kind)
        try:
            with self._opener.open(request, timeout=_DEADLINE) as answer:
                return json.load(answer)
        except urllib.error.HTTPError as error:
            with error:
                raise RefusedError(error.code, _message(error.read())) from None

    def exists(self, path: str) -> bool:
        """Whether there is such an object."""
        try:
            self.call("GET", path)
        except RefusedError as error:
            if error.code != HTTPStatus.NOT_FOUND:
                raise
            return False
        return True

    def is_ready(self) -> bool:
        """Whether it answers, with all that it makes at its start: RBAC's own roles, and more."""
        try:
            with self._opener.open(f"{self._plane.url}/readyz", timeout=1):
                return True
        except urllib.error.HTTPError as error:
            error.close()
        except OSError:
            pass
        return False

    def run(self, program: str, *arguments: str, stdin: str = "") -> str:
        """
        What kubectl or helm says to the administrator.

        Raises:
            RuntimeError: it failed, with its reason.
        """
        ran = subprocess.run(
            [str(self._plane.programs / program), *arguments],
            input=stdin,
            env={**os.environ, **self.environment},
            capture_output=True,
            text=True,
            check=False,
        )
        if ran.returncode != 0:
            raise RuntimeError(f"{program} {' '.join(arguments)}: {ran.stderr.strip()}")
        return ran.stdout

    @property
    def environment(self) -> Mapping[str, str]:
        """What kubectl and helm have to be told; they cache away from the user's own."""
        plane = self._plane
        return {
            "HOME": str(plane.directory),
            "KUBECONFIG": str(plane.kubeconfig),
            "NO_PROXY": "*",
        }


def _message(body: bytes) -> str:
    """What a `Status` says; of a path that it does not know, the API server says it without one."""
    with contextlib.suppress(ValueError):
        return str(json.loads(body)["message"])
    return body.decode(errors="replace").strip()
