"""The targets against a model, over random histories, on real maps."""

from __future__ import annotations

import errno
from collections.abc import Iterator, Mapping
from ipaddress import ip_address, ip_network
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from agent.kernel import contents, inspect, layouts
from agent.kernel.bpf import Map
from agent.kernel.contents import Slot
from agent.kernel.datapath import Datapath
from agent.kernel.pins import Limits
from agent.rows import IpcacheEntry
from agent.targets.frontends import FrontendTarget
from agent.targets.ipcache import IpcacheTarget
from clustermesh.model import ClusterId, IdentityId, L4Address

from .conftest import SMALL
from .lab import address, mounted_bpffs

pytestmark = pytest.mark.kernel

Services = Mapping[L4Address, tuple[L4Address, ...]]

WEB = address("10.96.0.1:80/TCP")
DNS = address("[fd00:96::1]:53/UDP")
A, B = (address(f"10.1.0.{n}:8080/TCP") for n in (1, 2))
MANY = tuple(address(f"10.1.0.{n}:8080/TCP") for n in range(1, layouts.NEAR + 4))
"""So many that three have no place in the frontend itself."""


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Datapath]:
    """Maps that many examples use one after the other."""
    with mounted_bpffs(tmp_path_factory.mktemp("targets") / "bpffs") as bpffs:
        datapath = Datapath.open(bpffs, SMALL)
        yield datapath
        datapath.close()


def orphans(datapath: Datapath) -> list[Slot]:
    """Slots that belong to no frontend."""
    return contents.read_frontends(datapath.frontends, datapath.backends)[1]


def slots(datapath: Datapath) -> list[Slot]:
    """Every slot that is taken."""
    keys, _ = datapath.backends.read()
    return [Slot(*key) for key in layouts.BACKEND_KEY.iter_unpack(keys)]


def frontend(family: int, ip: int, port: int, protocol: str) -> L4Address:
    text = f"10.96.0.{ip}" if family == 4 else f"[fd00:96::{ip}]"
    return address(f"{text}:{port}/{protocol}")


@st.composite
def services(draw: st.DrawFn) -> tuple[L4Address, tuple[L4Address, ...]]:
    """A frontend, and up to 20 backends in any order. Some histories do not fit the maps."""
    family = draw(st.sampled_from((4, 6)))
    key = frontend(family, draw(st.integers(1, 3)), 80, draw(st.sampled_from(("TCP", "UDP"))))
    template = "10.1.0.{}" if family == 4 else "fd00:1::{:x}"
    numbers = draw(st.lists(st.integers(1, 60), unique=True, max_size=20))
    backends = [L4Address(ip_address(template.format(n)), 8080, key.protocol) for n in numbers]
    return key, tuple(backends)


steps = st.lists(
    st.tuples(st.lists(services(), max_size=6), st.lists(services(), max_size=2), st.booleans()),
    max_size=12,
)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(history=steps)
async def test_the_maps_hold_exactly_what_was_written(
    history: list[tuple[list[tuple[L4Address, tuple[L4Address, ...]]], ...]], shared: Datapath
) -> None:
    target = FrontendTarget(shared)
    await target.apply({}, list(await target.actual()))
    model: dict[L4Address, tuple[L4Address, ...]] = {}
    for puts_drawn, deletes_drawn, restart in history:
        puts = dict(puts_drawn)
        deletes = [key for key, _ in deletes_drawn if key not in puts]
        target = FrontendTarget(shared) if restart else target

        failed = await target.apply(puts, deletes)

        assert {error.errno for error in failed.values()} <= {errno.ENOSPC}
        for key in deletes:
            model.pop(key, None)
        model |= {key: backends for key, backends in puts.items() if key not in failed}
        assert orphans(shared) == []
        assert await target.actual() == model


async def test_a_restart_writes_nothing_when_all_is_right(datapath: Datapath) -> None:
    wanted: Services = {WEB: MANY, DNS: ()}
    await FrontendTarget(datapath).apply(wanted, ())
    before = datapath.frontends.read(), datapath.backends.read()

    assert await FrontendTarget(datapath).actual() == wanted

    assert (datapath.frontends.read(), datapath.backends.read()) == before


async def test_slots_of_a_change_that_was_cut_off_are_removed(datapath: Datapath) -> None:
    target = FrontendTarget(datapath)
    await target.apply({WEB: MANY}, ())
    [row], _ = contents.read_frontends(datapath.frontends, datapath.backends)
    for slot in (
        Slot(row.id, row.generation + 1, layouts.NEAR),
        Slot(77, 1, layouts.NEAR),
        Slot(row.id, row.generation, len(MANY)),
        Slot(row.id, row.generation, 0),  # of a schema in which no backend was near
    ):
        put_slot(datapath.backends, slot, B)

    assert await FrontendTarget(datapath).actual() == {WEB: MANY}

    assert orphans(datapath) == []
    assert len(slots(datapath)) == 3


async def test_a_frontend_that_lost_a_slot_keeps_the_others(datapath: Datapath) -> None:
    await FrontendTarget(datapath).apply({WEB: MANY}, ())
    [row], _ = contents.read_frontends(datapath.frontends, datapath.backends)
    lost = layouts.NEAR + 1
    datapath.backends.delete(layouts.BACKEND_KEY.pack(row.id, row.generation, lost))
    left = MANY[:lost] + MANY[lost + 1 :]

    assert await FrontendTarget(datapath).actual() == {WEB: left}

    [row], _ = contents.read_frontends(datapath.frontends, datapath.backends)
    assert row.backends == left, "a whole generation again"


async def test_only_backends_that_have_no_place_in_the_frontend_take_slots(
    datapath: Datapath,
) -> None:
    target = FrontendTarget(datapath)
    await target.apply({WEB: MANY[: layouts.NEAR]}, ())
    assert slots(datapath) == []
    await target.apply({WEB: MANY}, ())
    assert sorted(slot.slot for slot in slots(datapath)) == [5, 6, 7]
    await target.apply({WEB: MANY[:1]}, ())
    assert slots(datapath) == []


async def test_a_full_map_fails_the_row_and_leaves_the_old_service(datapath: Datapath) -> None:
    target = FrontendTarget(datapath)
    many = tuple(address(f"10.2.0.{n}:80/TCP") for n in range(SMALL.backends + layouts.NEAR + 1))
    assert await target.apply({WEB: (A, B)}, ()) == {}

    failed = await target.apply({WEB: many}, ())

    assert failed[WEB].errno == errno.ENOSPC
    assert "backends: all 128 rows are taken" in str(failed[WEB])
    assert await target.actual() == {WEB: (A, B)}
    assert orphans(datapath) == []


async def test_what_the_kernel_cannot_do_fails_by_row(datapath: Datapath) -> None:
    sctp = address("10.96.0.1:80/SCTP")
    failed = await FrontendTarget(datapath).apply({sctp: (), DNS: (A,), WEB: (A,)}, [sctp])
    assert {key: error.errno for key, error in failed.items()} == {
        sctp: errno.EPROTONOSUPPORT,
        DNS: errno.EAFNOSUPPORT,
    }


async def test_a_frontend_that_is_gone_may_be_deleted_again(datapath: Datapath) -> None:
    target = FrontendTarget(datapath)
    await target.apply({WEB: (A,)}, ())
    assert await target.apply({}, [WEB]) == {}
    assert await target.apply({}, [WEB, DNS]) == {}
    assert await target.actual() == {}


networks = st.sampled_from(
    [ip_network(text) for text in ("0.0.0.0/0", "10.2.0.0/16", "10.2.0.7/32", "fd00::/8", "::/0",
                                   "fd00:2::/64", "fd00:2::7/128", "192.0.2.0/25")]
)  # fmt: skip
entries = st.builds(
    IpcacheEntry,
    st.integers(0, 2**24 - 1).map(IdentityId),
    st.integers(0, 511).map(ClusterId),
    st.sampled_from([None, ip_address("192.0.2.1"), ip_address("2001:db8::1")]),
)


@settings(max_examples=60, deadline=None)
@given(history=st.lists(st.tuples(st.dictionaries(networks, entries), st.sets(networks))))
async def test_the_ipcache_holds_exactly_what_was_written(
    history: list[tuple[dict[object, IpcacheEntry], set[object]]], shared: Datapath
) -> None:
    target = IpcacheTarget(shared)
    await target.apply({}, list(await target.actual()))
    model: dict[object, IpcacheEntry] = {}
    for puts, drawn in history:
        deletes = drawn - puts.keys()
        assert await target.apply(puts, deletes) == {}  # type: ignore[arg-type]
        model = {k: v for k, v in model.items() if k not in deletes} | puts
        assert await target.actual() == model


async def test_a_full_ipcache_says_so_by_row(bpffs: Path) -> None:
    datapath = Datapath.open(bpffs, Limits(frontends=1, backends=1, ipcache=2))
    entry = IpcacheEntry(IdentityId(1), ClusterId(1), None)
    puts = {ip_network(f"10.{n}.0.0/16"): entry for n in range(3)}
    failed = await IpcacheTarget(datapath).apply(puts, ())
    assert [error.errno for error in failed.values()] == [errno.ENOSPC]
    datapath.close()


async def test_show_maps_reads_what_was_written(datapath: Datapath, bpffs: Path) -> None:
    datapath.settle()
    await FrontendTarget(datapath).apply({WEB: (B, A)}, ())
    [row] = inspect.frontends(bpffs)
    assert (row.address, row.backends) == (WEB, (B, A))
    assert inspect.ipcache(bpffs) == {}
    assert set(inspect.drops(bpffs).values()) == {0}


def put_slot(backends: Map, slot: Slot, backend: L4Address) -> None:
    """Write what an agent that died half-way would have left."""
    assert not backends.update(layouts.BACKEND_KEY.pack(*slot), layouts.pack_endpoint(backend))
