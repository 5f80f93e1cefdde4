"""Files that a daemon keeps: replaced as a whole, or left as they were."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path


def replace_file(path: Path, content: bytes, *, mode: int = 0o600) -> None:
    """
    Make `content` all that `path` holds. A reader sees the old or the new file, even after a crash.

    Raises:
        OSError: nothing has changed.
    """
    handle, name = tempfile.mkstemp(".new", f".{path.name}.", path.parent)  # nobody else's
    temporary = Path(name)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
            file.flush()
            os.fchmod(file.fileno(), mode)
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    directory = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)
