"""Why packets do not get from pod to pod: what was observed in, a cause to tell a person out."""

from __future__ import annotations

import enum
import errno
import os
from collections.abc import Mapping
from typing import Final, NamedTuple

import msgspec

from clustermesh.model import NOTHING, IPAddress


class Verdict(enum.StrEnum):
    """
    The cause in a word.

    # STABLE API: agents tell each other.
    """

    WELL = "well"
    REFUSED = "refused"  # one of the two uses addresses that are not its own
    NO_ROUTE = "no route"
    NO_WAY_BACK = "no route back"  # the other end says `no route`: not to be told it as its own
    KEY = "key mismatch"
    MASQUERADED = "masqueraded"
    RP_FILTER = "rp_filter"
    DROPPED = "dropped"  # by our own BPF programs
    BLOCKED = "blocked"
    MTU = "mtu"
    SILENT = "silent"


class Cause(NamedTuple):
    """What is wrong with a way."""

    verdict: Verdict
    text: str  # a sentence without a full stop


class Way(enum.StrEnum):
    """How packets are carried from node to node."""

    UDP = "udp"  # inside of UDP packets: VXLAN, Geneve, WireGuard
    NEXT_HOP = "next hop"  # as they are, handed to the node
    NETWORK = "network"  # as they are, by a network that knows where pods are


class Carrier(msgspec.Struct, frozen=True):
    """What carries packets to a cluster."""

    way: Way
    name: str = ""  # VXLAN
    ports: str = ""  # 8472, or 51871-51874


class Lookup(msgspec.Struct, frozen=True):
    """The route that the kernel takes."""

    device: str = ""
    is_ours: bool = True  # from our table
    error: int = 0  # errno: it has none


class Word(msgspec.Struct, frozen=True):
    """What the node at the other end says of itself. For diagnosis only: anybody could say it."""

    verdict: str = ""  # its own, of the way to us
    rp_filtered: int = 0  # packets, lately
    dropped: Mapping[str, int] = NOTHING  # by our programs there, lately
    key: str = ""  # its public key
    our_key: str = ""  # ours, as it knows it


class Observed(msgspec.Struct, frozen=True, kw_only=True):
    """What was found out of a way, in the order in which it is looked for."""

    address: IPAddress  # the other end
    source: IPAddress  # ours
    node_ip: IPAddress | None
    carrier: Carrier
    lookup: Lookup = Lookup()
    # Small packets
    is_answered: bool = False
    seen: str = ""  # the source address that the other end saw, if one arrived
    error: int = 0  # errno, from our kernel or by ICMP
    reporter: str = ""  # who reported it by ICMP; empty: our kernel
    # Packets as large as fit
    size: int = 0  # bytes; 0: not tried
    is_large_answered: bool = False
    passing: int = 0  # bytes of the largest that was answered
    is_outward: bool = True  # they are lost on the way there; False: on the way back
    # Looked for when something is lost
    is_node_answering: bool = False  # the node itself, at node_ip
    is_node_refusing: bool = False  # the node is there; its agent does not run
    is_heard: bool = False  # what the node sends does reach us
    word: Word = Word()
    rp_filtered: int = 0  # packets, lately, here
    strict: tuple[str, ...] = ()  # devices whose reverse-path filter is strict, here
    dropped: Mapping[str, int] = NOTHING  # lately, here, of those that come in
    published_key: str = ""  # the public key of the other end, as its cluster says
    own_key: str = ""  # our public key


_EVIDENCE: Final = 3
"""Packets: as many as a look loses at least. Fewer that something drops lately may be another's."""

_FORGERY: Final = ("SPOOFED_SOURCE", "FOREIGN_IDENTITY", "TRANSIT")
_ROUTE_ERRORS: Final = {
    errno.EINVAL: "a rule or a route makes it a blackhole",
    errno.EACCES: "a rule or a route prohibits it",
}


def cause(seen: Observed) -> Cause | None:
    """What is wrong with the way; None: nothing."""
    if not seen.is_answered:
        return _lost(seen)
    if no_route := _no_route(seen):  # what answers may be the node, and not by way of its pods
        return no_route
    if seen.word.verdict == Verdict.NO_ROUTE:
        return _no_way_back()
    if seen.seen != str(seen.source):
        return _masqueraded(seen)
    if seen.size and not seen.is_large_answered:
        return _too_large(seen)
    return None


def _lost(seen: Observed) -> Cause | None:
    if no_route := _no_route(seen):
        return no_route
    if seen.carrier.name == "WireGuard" and (wrong_key := _wrong_key(seen)):
        return wrong_key
    if seen.is_node_answering:
        return _answers_lost(seen) if seen.seen else _questions_lost(seen)
    if seen.is_node_refusing:
        return _blocked(seen, "to and from", "; its agent does not run, so cannot tell more")
    if seen.is_heard and seen.word.rp_filtered >= _EVIDENCE:
        return _filtered_there()
    if _is_filtered_here(seen):
        return _filtered_here(seen)
    if seen.is_heard and seen.word.verdict == Verdict.WELL:
        return None  # it asks us, and has our answers: only its own port for probes is blocked
    if seen.is_heard:
        return Cause(
            Verdict.SILENT,
            f"what it sends reaches us, but it answers nothing, neither at {seen.address} "
            f"nor at {seen.node_ip}",
        )
    return Cause(
        Verdict.SILENT,
        f"it does not answer at {seen.node_ip} either: it is down, cut off from this node, "
        "or drops probes",
    )


def _no_route(seen: Observed) -> Cause | None:
    if seen.lookup.error:
        why = _ROUTE_ERRORS.get(seen.lookup.error) or os.strerror(seen.lookup.error)
        return Cause(Verdict.NO_ROUTE, f"this node has no route to {seen.address}: {why}")
    if not seen.lookup.is_ours and seen.carrier.way is not Way.NETWORK:
        return Cause(
            Verdict.NO_ROUTE,
            f"this node sends what is for {seen.address} to {seen.lookup.device}, and not by our "
            "route: it is missing, or a rule comes before ours",
        )
    return None


def _wrong_key(seen: Observed) -> Cause | None:
    word = seen.word
    if word.key and word.key != seen.published_key:
        return Cause(
            Verdict.KEY,
            f"it uses the WireGuard key {_short(word.key)}, and its cluster publishes "
            f"{_short(seen.published_key) or 'none'}",
        )
    if word.our_key and word.our_key != seen.own_key:
        return Cause(
            Verdict.KEY,
            f"it knows us by the WireGuard key {_short(word.our_key)}, and ours is "
            f"{_short(seen.own_key)}",
        )
    return None


def _questions_lost(seen: Observed) -> Cause:
    """The node answers at its own address, and has not received what went to its pods' network."""
    if seen.word.verdict == Verdict.NO_ROUTE:  # for which it may drop what comes from us, too
        return _no_way_back()
    if seen.word.rp_filtered >= _EVIDENCE:
        return _filtered_there()
    if _is_forged(seen.word.dropped):
        return Cause(
            Verdict.DROPPED,
            f"it drops what we send as {_reasons(seen.word.dropped)}: it does not know our pod "
            "CIDRs, or refuses them, or our source address is masqueraded",
        )
    return _blocked(seen, "to")


def _answers_lost(seen: Observed) -> Cause:
    """The other end has received what we sent, and its answers do not arrive."""
    if seen.seen != str(seen.source):
        return _masqueraded(seen)
    if seen.word.verdict == Verdict.NO_ROUTE:
        return _no_way_back()
    if _is_filtered_here(seen):
        return _filtered_here(seen)
    if _is_forged(seen.dropped):
        return Cause(Verdict.DROPPED, f"this node drops its answers as {_reasons(seen.dropped)}")
    return _blocked(seen, "from")


def _no_way_back() -> Cause:
    return Cause(Verdict.NO_WAY_BACK, "it has no route back to this node: see its status")


def _blocked(seen: Observed, direction: str, more: str = "") -> Cause:
    carrier = seen.carrier
    match carrier.way:
        case Way.UDP:
            what = f"UDP port {carrier.ports} ({carrier.name}) is blocked on the way {direction}"
            text = f"{what} {seen.node_ip}"
        case Way.NEXT_HOP | Way.NETWORK:
            text = (
                f"the network does not carry packets between pods {direction} {seen.node_ip}: "
                "it wants routes for pod CIDRs, or --routing tunnel"
            )
    if seen.error and seen.reporter:
        more = f"; {seen.reporter} says: {os.strerror(seen.error)}"
    return Cause(Verdict.BLOCKED, text + more)


def _masqueraded(seen: Observed) -> Cause:
    return Cause(
        Verdict.MASQUERADED,
        f"what we send from {seen.source} arrives from {seen.seen}: "
        "something on this node masquerades it",
    )


def _too_large(seen: Observed) -> Cause:
    where = "to" if seen.is_outward else "from"
    passing = f", and up to {seen.passing} pass" if seen.passing else ""
    return Cause(
        Verdict.MTU,
        f"packets of {seen.size} bytes are lost on the way {where} {seen.node_ip}{passing}: "
        "the MTU between the nodes is smaller than their devices say",
    )


def _is_filtered_here(seen: Observed) -> bool:
    return bool(seen.strict) and seen.rp_filtered >= _EVIDENCE


def _filtered_here(seen: Observed) -> Cause:
    devices = ", ".join(seen.strict)
    return Cause(
        Verdict.RP_FILTER,
        f"this node drops what comes from there: rp_filter is strict on {devices}, and the way "
        "back leads elsewhere",
    )


def _filtered_there() -> Cause:
    return Cause(
        Verdict.RP_FILTER,
        "it drops what we send: its rp_filter is strict where that arrives, and its way back "
        "leads elsewhere",
    )


def _is_forged(dropped: Mapping[str, int]) -> bool:
    return any(dropped.get(reason, 0) >= _EVIDENCE for reason in _FORGERY)


def _reasons(dropped: Mapping[str, int]) -> str:
    return ", ".join(reason for reason in _FORGERY if dropped.get(reason))


def _short(key: str) -> str:
    """As much of a key as tells it from others."""
    return f"{key[:8]}…" if key else ""
