from __future__ import annotations

import errno
from ipaddress import ip_address
from typing import Any

import pytest

from agent.rules.causes import Carrier, Lookup, Observed, Verdict, Way, Word, cause

TUNNEL = Carrier(Way.UDP, "VXLAN", "8472")
WIREGUARD = Carrier(Way.UDP, "WireGuard", "51871")
OURS, THEIRS = "b3Vycw==", "dGhlaXJz"


def told(**observed: Any) -> str:
    """What a person is told of a way from 10.1.0.1 to 10.2.0.1, on the node 192.0.2.2."""
    seen = Observed(
        **{
            "address": ip_address("10.2.0.1"),
            "source": ip_address("10.1.0.1"),
            "node_ip": ip_address("192.0.2.2"),
            "carrier": TUNNEL,
            "published_key": THEIRS,
            "own_key": OURS,
            **observed,
        }
    )
    found = cause(seen)
    return f"{found.verdict}: {found.text}" if found else "well"


@pytest.mark.parametrize(
    ("observed", "said"),
    [
        (
            {"is_answered": True, "seen": "10.1.0.1", "size": 1450, "is_large_answered": True},
            "well",
        ),
        (
            {"is_answered": True, "seen": "192.0.2.1", "size": 1450, "is_large_answered": True},
            "masqueraded: what we send from 10.1.0.1 arrives from 192.0.2.1",
        ),
        (
            {"is_answered": True, "seen": "10.1.0.1", "size": 1450, "passing": 1350},
            "mtu: packets of 1450 bytes are lost on the way to 192.0.2.2, and up to 1350 pass",
        ),
        (
            {"is_answered": True, "seen": "10.1.0.1", "size": 1450, "is_outward": False},
            "mtu: packets of 1450 bytes are lost on the way from 192.0.2.2:",
        ),
    ],
)
def test_a_way_that_is_answered(observed: dict[str, Any], said: str) -> None:
    assert told(**observed).startswith(said)


@pytest.mark.parametrize(
    ("lookup", "said"),
    [
        (Lookup(error=errno.ENETUNREACH), "this node has no route to 10.2.0.1: Network is unreach"),
        (Lookup(error=errno.EINVAL), "this node has no route to 10.2.0.1: a rule or a route makes"),
        (Lookup("eth0", is_ours=False), "this node sends what is for 10.2.0.1 to eth0, and not by"),
    ],
)
def test_a_route_that_is_missing_here_comes_before_all_else(lookup: Lookup, said: str) -> None:
    everything = Word(rp_filtered=3, dropped={"SPOOFED_SOURCE": 1}, key="other")
    assert told(lookup=lookup, is_node_answering=True, word=everything).startswith(
        f"no route: {said}"
    )


def test_a_way_that_is_not_ours_is_none_even_if_somebody_answers() -> None:
    """A node answers for all of its addresses on its segment: its pods need not be reached."""
    answered = {"is_answered": True, "seen": "10.1.0.1", "size": 1450, "is_large_answered": True}
    assert told(**answered, lookup=Lookup("eth0", is_ours=False)).startswith(
        "no route: this node sends what is for 10.2.0.1 to eth0, and not by our route"
    )
    assert told(**answered, word=Word(verdict=Verdict.NO_ROUTE)).startswith(
        "no route back: it has no route back to this node"
    )


def test_a_network_that_routes_pods_itself_needs_no_route_of_ours() -> None:
    native = {"carrier": Carrier(Way.NETWORK), "lookup": Lookup("eth0", is_ours=False)}
    assert told(**native, is_node_answering=True).startswith(
        "blocked: the network does not carry packets between pods to 192.0.2.2"
    )


@pytest.mark.parametrize(
    ("observed", "said"),
    [
        ({}, "blocked: UDP port 8472 (VXLAN) is blocked on the way to 192.0.2.2"),
        ({"carrier": WIREGUARD}, "blocked: UDP port 51871 (WireGuard) is blocked on the way to"),
        ({"carrier": Carrier(Way.NEXT_HOP)}, "blocked: the network does not carry packets between"),
        ({"word": Word(rp_filtered=3)}, "rp_filter: it drops what we send"),
        ({"word": Word(rp_filtered=2, dropped={"TRANSIT": 2})}, "blocked: UDP port 8472 (VXLAN)"),
        ({"word": Word(rp_filtered=3, verdict=Verdict.NO_ROUTE)}, "no route back: it has no route"),
        (
            {"word": Word(dropped={"SPOOFED_SOURCE": 3, "NO_TUNNEL": 3})},
            "dropped: it drops what we send as SPOOFED_SOURCE:",
        ),
        (
            {"carrier": WIREGUARD, "word": Word(key="b3RoZXI=")},
            "key mismatch: it uses the WireGuard key b3RoZXI=…, and its cluster publishes",
        ),
        (
            {"carrier": WIREGUARD, "word": Word(key=THEIRS, our_key="b3RoZXI=")},
            "key mismatch: it knows us by the WireGuard key b3RoZXI=…, and ours is b3Vycw==…",
        ),
        (
            {"error": errno.ECONNREFUSED, "reporter": "192.0.2.9"},
            "blocked: UDP port 8472 (VXLAN) is blocked on the way to 192.0.2.2; 192.0.2.9 says: ",
        ),
    ],
)
def test_a_node_that_lives_and_does_not_receive_what_we_send(
    observed: dict[str, Any], said: str
) -> None:
    assert told(is_node_answering=True, **observed).startswith(said)


@pytest.mark.parametrize(
    ("observed", "said"),
    [
        ({"seen": "10.1.0.1"}, "blocked: UDP port 8472 (VXLAN) is blocked on the way from 192.0."),
        ({"seen": "192.0.2.1"}, "masqueraded: what we send from 10.1.0.1 arrives from 192.0.2.1"),
        (
            {"seen": "10.1.0.1", "rp_filtered": 3, "strict": ("eth0", "eth1")},
            "rp_filter: this node drops what comes from there: rp_filter is strict on eth0, eth1",
        ),
        (
            {"seen": "10.1.0.1", "dropped": {"SPOOFED_SOURCE": 3}},
            "dropped: this node drops its answers as SPOOFED_SOURCE",
        ),
        (
            {"seen": "10.1.0.1", "word": Word(verdict=Verdict.NO_ROUTE)},
            "no route back: it has no route back to this node",
        ),
    ],
)
def test_a_node_that_receives_us_and_whose_answers_are_lost(
    observed: dict[str, Any], said: str
) -> None:
    assert told(is_node_answering=True, **observed).startswith(said)


@pytest.mark.parametrize(
    ("observed", "said"),
    [
        ({}, "silent: it does not answer at 192.0.2.2 either: it is down"),
        ({"is_heard": True}, "silent: what it sends reaches us, but it answers nothing"),
        ({"is_heard": True, "word": Word(verdict=Verdict.WELL)}, "well"),
        ({"is_heard": True, "word": Word(rp_filtered=3)}, "rp_filter: it drops what we send"),
        ({"rp_filtered": 3, "strict": ("eth0",)}, "rp_filter: this node drops what comes from"),
        ({"rp_filtered": 2, "strict": ("eth0",)}, "silent: it does not answer"),  # some other's
        ({"rp_filtered": 3}, "silent: it does not answer"),
        ({"is_node_refusing": True}, "blocked: UDP port 8472 (VXLAN) is blocked on the way to and"),
    ],
)
def test_a_node_that_does_not_answer_at_all(observed: dict[str, Any], said: str) -> None:
    assert told(**observed).startswith(said)


def test_what_one_end_says_of_the_other_does_not_come_back_as_its_own() -> None:
    """Else each would go on saying so because the other does."""
    echoed = Word(verdict=Verdict.NO_WAY_BACK)
    answered = {"is_answered": True, "seen": "10.1.0.1", "size": 1450, "is_large_answered": True}
    assert told(**answered, word=echoed) == "well"
    assert told(is_node_answering=True, word=echoed).startswith("blocked: ")
