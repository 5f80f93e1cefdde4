"""
pyroute2's rtnetlink, and nothing else of it.

What its `__init__` imports, databases and a dozen other families among it, costs every node 5 MB.
So the submodules are imported beside a bare package. Whoever imports pyroute2 itself, in the same
process, still gets all of it.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator
from importlib.machinery import ModuleSpec
from importlib.util import find_spec, module_from_spec
from typing import Final

_NAME: Final = "pyroute2"


@contextlib.contextmanager
def _bare_package() -> Iterator[None]:
    """Have a package `pyroute2` without content, unless the real one is there already."""
    found = find_spec(_NAME)
    if found is None or _NAME in sys.modules:
        yield
        return
    bare = ModuleSpec(_NAME, None, is_package=True)
    bare.submodule_search_locations = found.submodule_search_locations
    sys.modules[_NAME] = module_from_spec(bare)
    try:
        yield
    finally:
        del sys.modules[_NAME]


with _bare_package():
    from pyroute2.iproute.linux import AsyncIPRoute
    from pyroute2.netlink.exceptions import NetlinkError

__all__ = ["AsyncIPRoute", "NetlinkError"]
