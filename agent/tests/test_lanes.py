from __future__ import annotations

import base64

import pytest

from agent.lanes import LANES, check_public_key, parity
from clustermesh.errors import BadRowError


def test_the_two_ends_of_a_lane_agree_on_its_ports() -> None:
    """What is here `own` is `peer` over there."""
    for lane in LANES:
        (other,) = (one for one in LANES if (one.own, one.peer) == (lane.peer, lane.own))
        assert lane.peer_port(51871) == other.port(51871)
        assert other.peer_port(51871) == lane.port(51871)
    assert [lane.device for lane in LANES] == ["cm_wg00", "cm_wg01", "cm_wg10", "cm_wg11"]
    assert sorted(lane.port(51871) for lane in LANES) == [51871, 51872, 51873, 51874]


def test_every_key_is_even_or_odd() -> None:
    assert parity(base64.b64encode(bytes([2, *range(31)])).decode()) == 0
    assert parity(base64.b64encode(bytes([3, *range(31)])).decode()) == 1


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("", "has 0 bytes, not 32"),
        ("AAAA", "has 3 bytes, not 32"),
        ("A" * 44, "has 33 bytes, not 32"),
        ("A" * 43 + "=", "is none"),
        ("B" * 42 + "F=", "is none"),  # the same key written in another way
        ("not base64!", "is no base64"),
    ],
)
def test_what_is_no_key_is_told_from_one(text: str, why: str) -> None:
    with pytest.raises(BadRowError, match=why):
        check_public_key(text)
    good = base64.b64encode(bytes(range(32))).decode()
    assert check_public_key(good) == good
