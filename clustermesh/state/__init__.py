"""
Keep a copy of somebody else's state, and make the world agree with it.

    source ──replicate──▶ Table ──derive──▶ Table ──Reconciler──▶ Target
    (etcd, a directory)   rows by key        rules are pure        BPF map, netlink, etcd
                          and origin         functions

A change never carries a payload: it only says *which key* to look at again. So a lost, doubled or
reordered notice costs time and not correctness, and a slow consumer sees the newest row, once.
"""

from .derive import Waiting, derive, derive_whole
from .index import Index
from .reconcile import Failure, Reconciler, Target
from .source import Delete, Event, Listed, Listing, Put, Source, replicate
from .table import Readable, Table, Watch, Writer

__all__ = [
    "Delete",
    "Event",
    "Failure",
    "Index",
    "Listed",
    "Listing",
    "Put",
    "Readable",
    "Reconciler",
    "Source",
    "Table",
    "Target",
    "Waiting",
    "Watch",
    "Writer",
    "derive",
    "derive_whole",
    "replicate",
]
