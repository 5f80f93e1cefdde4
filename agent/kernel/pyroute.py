"""
pyroute2's rtnetlink, and nothing else of it.

What its `__init__` imports, databases and a dozen other families among it, costs every node 5 MB.
So the submodules are imported beside a bare package. Whoever imports pyroute2 itself, in the same
process, still gets all of it.
"""

from __future__ import annotations

from clustermesh.imports import bare_package, hollow

with bare_package("pyroute2"), hollow("multiprocessing", "unittest", "unittest.mock"):
    from pyroute2.iproute.linux import AsyncIPRoute
    from pyroute2.netlink.exceptions import NetlinkError

__all__ = ["AsyncIPRoute", "NetlinkError"]
