"""Numbers for labels, in virtual time: remembered first, stable, and never of two at once."""

from __future__ import annotations

import asyncio
import errno
import random
from collections.abc import AsyncIterator, Collection, Iterable, Sequence
from contextlib import asynccontextmanager
from ipaddress import IPv4Address
from pathlib import Path

import pytest

from apiserver.allocator import Allocator, Store
from apiserver.manifests import Problem
from apiserver.rules.endpoints import Claim, Labels
from apiserver.stores import FileStore
from clustermesh.errors import UserError
from clustermesh.model import Identity, IdentityId, IPAddress, ObjectName
from clustermesh.state import Event, Index, Listed, Listing, Put, Table
from clustermesh.tests.etcd_server import running

RANGE = range(0x10000, 0x20000)


class Memory:
    """A store that outlives allocators, and fails on demand."""

    problems: Sequence[Problem] = ()

    def __init__(self) -> None:
        self.rows: dict[IdentityId, Identity] = {}
        self.is_broken = False

    async def follow(self) -> AsyncIterator[Sequence[Event[IdentityId, Identity]]]:
        yield [Listing(), *(Put(*item) for item in self.rows.items()), Listed()]

    async def add(self, identities: Sequence[Identity]) -> Iterable[Identity]:
        self._check()
        for identity in identities:
            self.rows.setdefault(identity.id, identity)
        return [self.rows[identity.id] for identity in identities]

    async def remove(self, identities: Collection[IdentityId]) -> None:
        self._check()
        for number in identities:
            self.rows.pop(number, None)

    def _check(self) -> None:
        if self.is_broken:
            raise OSError(errno.EROFS, "Read-only file system")


class Apiserver:
    """The pods of a cluster, and the numbers that their labels have."""

    def __init__(self, store: Store, numbers: range = RANGE) -> None:
        self.claims: Table[IPAddress, Claim] = Table("claims")
        self.pods = self.claims.writer("test")
        self.given: Table[IdentityId, Identity] = Table("identities")
        self.allocator = Allocator(
            Index("claims by labels", self.claims, lambda _, claim: (claim.labels,)),
            self.given,
            Index("identities by labels", self.given, lambda _, row: (row.labels,)),
            numbers,
            store,
        )

    def start_pods(self, *apps: str) -> None:
        for app in apps:
            pod = ObjectName("default", app)
            self.pods.put(address(app), Claim(pod, "", None, "", labels(app), ()))

    def stop_pod(self, app: str) -> None:
        self.pods.delete(address(app))

    @property
    def numbers(self) -> dict[str, int]:
        """The number of each app."""
        found: dict[str, int] = {}
        for number in sorted(self.given.keys()):
            identity = self.given.first(number)
            assert identity is not None
            found[identity.labels[0][2]] = number
        return found

    @property
    def problems(self) -> list[str]:
        return [error for _, error in self.allocator.problems]


def address(app: str) -> IPv4Address:
    return IPv4Address("10.1.0.0") + int(app.removeprefix("app"))


def labels(app: str) -> Labels:
    return (("k8s", "app", app),)


def apps(count: int) -> list[str]:
    return [f"app{n}" for n in range(count)]


@asynccontextmanager
async def leading(apiserver: Apiserver) -> AsyncIterator[None]:
    """Run it, as the one that gives numbers."""
    async with running(apiserver.allocator.run(), apiserver.allocator.lead()):
        yield
        await asyncio.sleep(0)


async def settle(seconds: float = 1.0) -> None:
    """Let everything happen that happens within `seconds` of virtual time."""
    await asyncio.sleep(seconds)


@pytest.mark.looptime
async def test_all_labels_get_numbers_of_the_cluster_and_then_the_table_is_ready() -> None:
    east = Apiserver(Memory())
    east.start_pods(*apps(50))
    async with leading(east):
        await settle()
        assert not east.given.is_ready  # the pods are not all known yet
        east.pods.list_done()
        await settle()
        assert east.given.is_ready
        assert set(east.numbers) == set(apps(50))
        assert len(set(east.numbers.values())) == 50
        assert all(number in RANGE for number in east.numbers.values())


@pytest.mark.looptime
async def test_numbers_are_the_same_after_a_restart_whatever_the_order() -> None:
    store, crowded = Memory(), range(100, 160)
    first = Apiserver(store, crowded)
    first.start_pods(*apps(50))
    async with leading(first):
        await settle()
    second = Apiserver(store, crowded)
    second.start_pods(*reversed(apps(55)))
    async with leading(second):
        await settle()
        assert {app: second.numbers[app] for app in apps(50)} == first.numbers
        assert len(set(second.numbers.values())) == 55


@pytest.mark.looptime
async def test_with_the_store_lost_numbers_are_mostly_the_same() -> None:
    found = []
    for seed in (1, 2):
        east = Apiserver(Memory())
        shuffled = apps(500)
        random.Random(seed).shuffle(shuffled)
        async with leading(east):
            for app in shuffled:
                east.start_pods(app)
                await settle(0.01)
        found.append(east.numbers)
    same = sum(found[0][app] == found[1][app] for app in apps(500))
    assert same > 480
    assert all(len(set(numbers.values())) == 500 for numbers in found)


@pytest.mark.looptime
async def test_a_number_is_remembered_before_anybody_can_read_it() -> None:
    store = Memory()
    store.is_broken = True
    east = Apiserver(store)
    east.start_pods("app1")
    east.pods.list_done()
    async with leading(east):
        await settle(60)
        assert (east.numbers, east.given.is_ready) == ({}, False)
        assert east.problems == [
            "new identities wait: they cannot be remembered: [Errno 30] Read-only file system"
        ]
        store.is_broken = False
        await settle(60)
        assert (list(east.numbers), east.given.is_ready, east.problems) == (["app1"], True, [])


@pytest.mark.looptime
async def test_when_all_numbers_are_taken_the_rest_waits_and_everything_else_goes_on() -> None:
    east = Apiserver(Memory(), range(100, 103))
    east.start_pods(*apps(4))
    east.pods.list_done()
    async with leading(east):
        await settle()
        assert sorted(east.numbers.values()) == [100, 101, 102]
        assert ["all 3 identities" in problem for problem in east.problems] == [True]
        (waiting,) = set(apps(4)) - set(east.numbers)
        freed = next(iter(east.numbers))
        number = east.numbers[freed]
        east.stop_pod(freed)
        await settle(Allocator.UNUSED_FOR - 60)
        assert waiting not in east.numbers  # packets of the other one may be on their way
        await settle(300)
        assert east.numbers[waiting] == number
        assert east.problems == []


@pytest.mark.looptime
async def test_a_pod_that_comes_back_in_time_keeps_its_number() -> None:
    east = Apiserver(Memory())
    east.start_pods("app1")
    east.pods.list_done()
    async with leading(east):
        await settle()
        before = east.numbers
        east.stop_pod("app1")
        await settle(Allocator.UNUSED_FOR - 300)
        east.start_pods("app1")
        await settle(2 * Allocator.UNUSED_FOR)
        assert east.numbers == before
        east.stop_pod("app1")
        await settle(2 * Allocator.UNUSED_FOR)
        assert east.numbers == {}


async def ready(apiserver: Apiserver) -> None:
    async with asyncio.timeout(20), leading(apiserver):
        await apiserver.given.ready()


async def test_a_file_remembers(tmp_path: Path) -> None:
    path = tmp_path / ".identities.json"
    found = []
    for order in (apps(5), list(reversed(apps(5)))):
        east = Apiserver(FileStore(path, RANGE))
        east.start_pods(*order)
        east.pods.list_done()
        await ready(east)
        found.append(east.numbers)
    assert found[0] == found[1]
    assert path.stat().st_mode & 0o777 == 0o644


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("[", "Input data was truncated"),
        ('[{"id": 5, "labels": []}]', "identity 5 is remembered"),
    ],
)
async def test_a_file_that_makes_no_sense_is_named_and_not_overwritten(
    tmp_path: Path, text: str, named: str
) -> None:
    path = tmp_path / ".identities.json"
    path.write_text(text)
    with pytest.raises(UserError, match=named):
        await anext(FileStore(path, RANGE).follow())
    assert path.read_text() == text
