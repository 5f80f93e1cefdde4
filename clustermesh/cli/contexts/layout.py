"""The files of a pod on this machine, for a while: what its agents connect to others with."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from .installation import Login
from .plan import REMOTE


@contextmanager
def laid_out(clusters: Mapping[str, bytes], login: Login) -> Iterator[Path]:
    """
    A directory like the one with a pod's clusters: a file for each, and certificates.

    Args:
        clusters: the Secret of that name.
        login: what lies in a pod where these files say, outside that directory.
    """
    with tempfile.TemporaryDirectory(prefix="clustermesh-") as name:
        directory = Path(name)  # nobody else's
        own = directory / "own.d"
        own.mkdir()
        for suffix, content in (
            ("ca.crt", login.ca),
            ("tls.crt", login.certificate),
            ("tls.key", login.key),
        ):
            (own / suffix).write_bytes(content)
        for key, content in clusters.items():
            text = content.replace(f"{REMOTE}/".encode(), f"{own}/".encode())
            (directory / key).write_bytes(text)
        yield directory
