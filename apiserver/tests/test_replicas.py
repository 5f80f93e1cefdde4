"""Several allocators and one store: one leads, all agree, and what is in use is never lost."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Collection, Iterable, Sequence

import pytest

from apiserver.allocator import Allocator
from apiserver.manifests import Problem
from clustermesh.model import Identity, IdentityId
from clustermesh.state import Delete, Event, Listed, Listing, Put
from clustermesh.tests.etcd_server import running

from .test_allocator import Apiserver, labels

pytestmark = pytest.mark.looptime


class Shared:
    """A store that tells everybody who follows it what anybody changes, as an API server does."""

    problems: Sequence[Problem] = ()

    def __init__(self) -> None:
        self.rows: dict[IdentityId, Identity] = {}
        self._followers: list[asyncio.Queue[Sequence[Event[IdentityId, Identity]]]] = []

    async def follow(self) -> AsyncIterator[Sequence[Event[IdentityId, Identity]]]:
        queue: asyncio.Queue[Sequence[Event[IdentityId, Identity]]] = asyncio.Queue()
        self._followers.append(queue)
        yield [Listing(), *(Put(*item) for item in self.rows.items()), Listed()]
        while True:
            yield await queue.get()

    async def add(self, identities: Sequence[Identity]) -> Iterable[Identity]:
        for identity in identities:
            await asyncio.sleep(0.01)  # others may come between
            if identity.id not in self.rows:
                self.rows[identity.id] = identity
                self._tell(Put(identity.id, identity))
        return [self.rows[identity.id] for identity in identities]

    async def remove(self, numbers: Collection[IdentityId]) -> None:
        for number in numbers:
            if self.rows.pop(number, None):
                self._tell(Delete(number))

    def _tell(self, event: Event[IdentityId, Identity]) -> None:
        for queue in self._followers:
            queue.put_nowait([event])


def start(store: Shared, *apps: str) -> Apiserver:
    replica = Apiserver(store)
    replica.start_pods(*apps)
    replica.pods.list_done()
    return replica


def deletions(replica: Apiserver) -> list[IdentityId]:
    """Numbers that go from the table, from now on."""
    gone: list[IdentityId] = []

    class Listener:
        def touch(self, key: IdentityId) -> None:
            if replica.given.first(key) is None:
                gone.append(key)

        def wake(self) -> None:
            pass

    replica.given.listeners.add(Listener())
    return gone


async def test_one_that_does_not_lead_has_the_numbers_of_the_one_that_does() -> None:
    store = Shared()
    one, two = start(store, "app1", "app2"), start(store, "app1", "app2")
    async with running(two.allocator.run()):
        await asyncio.sleep(1)
        assert not two.given.is_ready  # not complete, and it does not say so
        async with running(one.allocator.run(), one.allocator.lead()):
            await asyncio.sleep(1)
            assert two.given.is_ready
            assert two.numbers == one.numbers
            assert len(store.rows) == 2


async def test_two_that_both_believe_they_lead_agree_on_every_number() -> None:
    store = Shared()
    apps = [f"app{n}" for n in range(40)]
    replicas = [start(store, *apps), start(store, *reversed(apps))]
    loops = [loop for r in replicas for loop in (r.allocator.run(), r.allocator.lead())]
    async with running(*loops):
        await asyncio.sleep(5)
    assert replicas[0].numbers == replicas[1].numbers
    assert sorted(replicas[0].numbers) == sorted(apps)


async def test_what_the_store_has_lost_but_pods_have_stays_and_is_put_back() -> None:
    store = Shared()
    one, two = start(store, "app1"), start(store, "app1")
    async with running(one.allocator.run(), two.allocator.run()):
        async with running(one.allocator.lead()):
            await asyncio.sleep(1)
        before, gone = one.numbers, (deletions(one), deletions(two))
        await store.remove(list(store.rows))
        await asyncio.sleep(60)
        assert store.rows == {}  # nobody leads
        async with running(two.allocator.lead()):
            await asyncio.sleep(1)
        assert {row.labels: number for number, row in store.rows.items()} == {
            labels("app1"): before["app1"]
        }
    assert (one.numbers, two.numbers) == (before, before)
    assert gone == ([], [])


async def test_a_number_is_forgotten_by_all_after_half_an_hour_without_a_pod() -> None:
    store = Shared()
    one, two = start(store, "app1", "app2"), start(store, "app1", "app2")
    async with running(one.allocator.run(), one.allocator.lead(), two.allocator.run()):
        await asyncio.sleep(1)
        for replica in (one, two):
            replica.stop_pod("app1")
        await asyncio.sleep(Allocator.UNUSED_FOR - 1)
        assert sorted(two.numbers) == ["app1", "app2"]
        await asyncio.sleep(2 * Allocator.LOOK_EVERY)
        assert [list(r.numbers) for r in (one, two)] == [["app2"], ["app2"]]
        assert len(store.rows) == 1


async def test_of_two_numbers_for_the_same_labels_the_lower_is_used_and_the_other_forgotten() -> (
    None
):
    store = Shared()
    store.rows = {IdentityId(n): Identity(IdentityId(n), labels("app1")) for n in (65540, 65550)}
    one = start(store, "app1")
    async with running(one.allocator.run(), one.allocator.lead()):
        await asyncio.sleep(Allocator.UNUSED_FOR + 2 * Allocator.LOOK_EVERY)
    assert list(store.rows) == [65540]
    assert one.numbers == {"app1": 65540}
