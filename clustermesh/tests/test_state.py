"""The promises of the mechanism, in virtual time: no test sleeps for real."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import random
from collections.abc import AsyncIterator, Callable, Collection, Coroutine, Mapping, Sequence
from functools import partial
from typing import Any

import pytest

from clustermesh.state import (
    Delete,
    Event,
    Index,
    Listed,
    Listing,
    Put,
    Reconciler,
    Table,
    Waiting,
    derive,
    derive_whole,
    replicate,
)

pytestmark = pytest.mark.looptime


class FakeMap:
    """A target that keeps rows in a dict, counts its writes and fails on demand."""

    def __init__(self, **rows: int) -> None:
        self.rows: dict[str, int] = dict(rows)
        self.writes: list[str] = []
        self.broken: set[str] = set()
        self.down = False
        self.notices: asyncio.Queue[Collection[str] | None] = asyncio.Queue()

    async def actual(self) -> Mapping[str, int]:
        self._check()
        return dict(self.rows)

    async def apply(
        self, puts: Mapping[str, int], deletes: Collection[str]
    ) -> Mapping[str, OSError]:
        self._check()
        failed: dict[str, OSError] = {}
        for key, value in puts.items():
            self.writes.append(f"{key}={value}")
            if key in self.broken:
                failed[key] = OSError(errno.ENOSPC, "map full")
            else:
                self.rows[key] = value
        for key in deletes:
            self.writes.append(f"-{key}")
            self.rows.pop(key, None)
        return failed

    async def drift(self) -> AsyncIterator[Collection[str] | None]:
        while True:
            yield await self.notices.get()

    def _check(self) -> None:
        if self.down:
            raise OSError(errno.EHOSTUNREACH, "down")


def reconciler(
    table: Table[str, int], target: FakeMap, **options: Any
) -> Reconciler[str, int, int]:
    return Reconciler(table, target, lambda _, row: row, **options)


@contextlib.asynccontextmanager
async def running(*coroutines: Coroutine[Any, Any, None]) -> AsyncIterator[None]:
    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(c) for c in coroutines]
        try:
            yield
        finally:
            for task in tasks:
                task.cancel()


async def settle() -> None:
    await asyncio.sleep(0.01)


def everything(table: Table[Any, Any]) -> dict[Any, dict[str, Any]]:
    return {key: dict(table.rows(key)) for key in table.keys()}


async def test_restart_does_not_touch_rows_that_are_already_right() -> None:
    target = FakeMap(a=1, b=2, old=9)
    table = Table[str, int]("t")
    writer = table.writer("c1")
    writer.replace({"a": 1, "b": 3})
    async with running(reconciler(table, target).run()):
        await settle()
    assert target.rows == {"a": 1, "b": 3}
    assert sorted(target.writes) == ["-old", "b=3"]


async def test_nothing_is_deleted_before_every_origin_has_listed() -> None:
    target = FakeMap(theirs=1)
    table = Table[str, int]("t")
    ours, theirs = table.writer("c1"), table.writer("c2")
    ours.replace({"ours": 1})
    async with running(reconciler(table, target, grace=10).run()):
        await asyncio.sleep(9)
        assert target.rows == {"theirs": 1}
        await asyncio.sleep(2)
        assert target.rows == {"theirs": 1, "ours": 1}
        target.notices.put_nowait({"theirs"})  # not even when somebody points at it
        await settle()
        assert target.rows == {"theirs": 1, "ours": 1}
        theirs.list_done()
        await settle()
        assert target.rows == {"ours": 1}


async def test_a_row_that_the_table_lost_is_deleted_even_before_it_is_ready() -> None:
    target = FakeMap()
    table = Table[str, int]("t")
    writer = table.writer("c1")
    writer.put("a", 1)
    async with running(reconciler(table, target, grace=1).run()):
        await asyncio.sleep(2)
        assert target.rows == {"a": 1}
        writer.delete("a")
        await settle()
        assert target.rows == {}


@pytest.mark.parametrize("answers", [True, False], ids=["compared", "target away"])
async def test_a_row_that_is_lost_while_rows_are_not_written_one_by_one(answers: bool) -> None:
    target = FakeMap(theirs=1)
    table = Table[str, int]("t")
    writer = table.writer("c1")
    table.writer("c2")  # never read, so never ready
    writer.replace({"a": 1})
    subject = reconciler(table, target, grace=1)
    async with running(subject.run()):
        await asyncio.sleep(2)
        assert target.rows == {"theirs": 1, "a": 1}
        if not answers:
            target.down = True
            writer.put("b", 1)
            await settle()
        writer.delete("a")
        subject.compare_soon()
        await settle()
        target.down = False
        await asyncio.sleep(100)
        assert target.rows == ({"theirs": 1} if answers else {"theirs": 1, "b": 1})


async def test_reconnect_sweeps_only_what_was_not_named_again() -> None:
    table = Table[str, int]("t")
    batches: list[Sequence[Event[str, int]]] = [
        [Listing(), Put("a", 1), Put("b", 1), Listed()],
        [Put("c", 1)],
        [Listing(), Put("a", 1)],
        [Put("c", 2), Listed(), Delete("a")],
    ]

    async def source() -> AsyncIterator[Sequence[Event[str, int]]]:
        for batch in batches:
            yield batch

    await replicate(source(), table.writer("c1"))
    assert everything(table) == {"c": {"c1": 2}}


async def test_failed_row_is_retried_with_doubling_waits_and_others_go_on() -> None:
    target = FakeMap()
    target.broken = {"a"}
    table = Table[str, int]("t")
    table.writer("c1").replace({"a": 1, "b": 1})
    subject = reconciler(table, target, retry_min=1, retry_max=60)
    async with running(subject.run()):
        await asyncio.sleep(7.5)
        assert [w for w in target.writes if w == "a=1"] == ["a=1"] * 4  # at 0, 1, 3 and 7 s
        assert target.rows == {"b": 1}
        assert subject.failures["a"].attempts == 4
        target.broken.clear()
        await asyncio.sleep(8)
        assert target.rows == {"a": 1, "b": 1}
        assert not subject.failures


async def test_a_target_that_does_not_answer_loses_no_change() -> None:
    target = FakeMap()
    table = Table[str, int]("t")
    writer = table.writer("c1")
    writer.replace({"a": 1})
    subject = reconciler(table, target, retry_min=1, retry_max=4)
    async with running(subject.run()):
        await settle()
        target.down = True
        writer.put("a", 2)
        await settle()
        assert subject.target_failure is not None
        writer.put("b", 1)
        writer.delete("b")
        writer.put("c", 1)
        await asyncio.sleep(20)
        target.down = False
        await asyncio.sleep(5)
        assert target.rows == {"a": 2, "c": 1}
        assert subject.target_failure is None


async def test_what_somebody_else_changed_is_put_back_at_once() -> None:
    target = FakeMap()
    table = Table[str, int]("t")
    table.writer("c1").replace({"a": 1, "b": 1})
    async with running(reconciler(table, target).run()):
        await settle()
        target.rows = {"a": 7, "b": 1, "foreign": 1}
        target.notices.put_nowait({"a", "foreign"})
        await settle()
        assert target.rows == {"a": 1, "b": 1}
        target.rows = {}
        target.notices.put_nowait(None)
        await settle()
        assert target.rows == {"a": 1, "b": 1}


async def test_drift_during_a_comparison_is_looked_at_again() -> None:
    class ChangesBehindOurBack(FakeMap):
        async def actual(self) -> Mapping[str, int]:
            found = await super().actual()
            if self.writes == ["a=1"]:
                self.writes.append("somebody")
                self.rows.clear()
                self.notices.put_nowait(None)
                await settle()
            return found

    target = ChangesBehindOurBack()
    table = Table[str, int]("t")
    table.writer("c1").replace({"a": 1})
    subject = reconciler(table, target)
    async with running(subject.run()):
        await settle()
        subject.compare_soon()
        await asyncio.sleep(1)
    assert target.rows == {"a": 1}


async def test_drift_that_nobody_reports_is_repaired_in_time() -> None:
    target = FakeMap()
    table = Table[str, int]("t")
    table.writer("c1").replace({"a": 1})
    subject = reconciler(table, target, repair_every=60)
    async with running(subject.run()):
        await settle()
        target.rows.clear()
        await asyncio.sleep(61)
        assert target.rows == {"a": 1}
        assert subject.repairs == 1


async def test_a_row_that_the_target_shall_not_have_is_taken_from_it() -> None:
    target = FakeMap(odd=1)
    table = Table[str, int]("t")
    writer = table.writer("c1")
    writer.replace({"odd": 1, "even": 2})
    subject = Reconciler(table, target, lambda _, row: row if row % 2 == 0 else None)
    async with running(subject.run()):
        await settle()
        assert target.rows == {"even": 2}
        writer.put("even", 3)
        await settle()
        assert target.rows == {}


async def test_after_repair_follows_only_a_complete_one() -> None:
    target = FakeMap()
    table = Table[str, int]("t")
    writer = table.writer("c1")
    writer.put("a", 1)
    seen: list[dict[str, int]] = []

    async def note() -> None:
        seen.append(dict(target.rows))

    subject = Reconciler(table, target, lambda _, row: row, note, grace=1)
    async with running(subject.run()):
        await asyncio.sleep(2)
        assert seen == []
        writer.put("b", 2)
        writer.list_done()
        await settle()
        assert seen == [{"a": 1, "b": 2}]


async def test_leaving_origin_takes_its_rows_and_only_its_rows() -> None:
    table, merged = Table[str, int]("services"), Table[str, int]("frontends")
    target = FakeMap()
    first, second = table.writer("c1"), table.writer("c2")
    first.replace({"web": 1})
    second.replace({"web": 2, "db": 4})

    def rule(key: str, rows: Mapping[str, int]) -> Mapping[str, int]:
        return {key: sum(rows.values())}

    async with running(
        derive((table,), merged.writer("merged"), rule), reconciler(merged, target).run()
    ):
        await settle()
        assert target.rows == {"web": 3, "db": 4}
        second.close()
        await settle()
        assert target.rows == {"web": 1}


async def test_a_derived_table_is_not_ready_before_every_key_has_been_derived() -> None:
    table, out = Table[int, int]("t"), Table[int, int]("o")
    writer = table.writer("x")
    for key in range(1000):
        writer.put(key, key)

    def rule(key: int, rows: Mapping[str, int]) -> Mapping[int, int]:
        if key == 500:  # in the middle of a long batch, the rest is listed
            writer.replace({key: key for key in range(2000)})
        return {key: key}

    async with running(derive((table,), out.writer("made"), rule)):
        await out.ready()
        assert len(out) == 2000


async def test_two_keys_that_stand_for_one_row_take_turns() -> None:
    table, out = Table[str, int]("t"), Table[int, str]("o")
    writer = table.writer("c1")
    writer.replace({"a": 80})

    def rule(key: str, rows: Mapping[str, int]) -> Mapping[int, str]:
        return dict.fromkeys(rows.values(), key)

    async with running(derive((table,), out.writer("made"), rule)):
        await settle()
        writer.put("b", 80)
        await settle()
        assert everything(out) == {80: {"made": "a"}}
        writer.delete("a")
        await settle()
        assert everything(out) == {80: {"made": "b"}}
        writer.put("b", 81)
        await settle()
        assert everything(out) == {81: {"made": "b"}}


async def test_who_waits_for_a_row_of_another_can_be_seen() -> None:
    table, context = Table[str, int]("t"), Table[str, int]("context")
    out, waiting = Table[int, str]("o"), Waiting[str, int]()
    writer = table.writer("c1")
    writer.replace({"a": 80, "b": 80, "c": 80})
    tick = context.writer("c1")
    tick.replace({})

    def rule(key: str, rows: Mapping[str, int]) -> Mapping[int, str]:
        return dict.fromkeys(rows.values(), key)

    derivation = derive((table,), out.writer("made"), rule, context=(context,), waiting=waiting)
    async with running(derivation):
        await settle()
        (holder,) = everything(out)[80].values()
        rest = {"a", "b", "c"} - {holder}
        for count in range(3):  # however often it is looked at
            assert {key: list(rows) for key, rows in waiting.items()} == {key: [80] for key in rest}
            assert set(waiting.keys(80)) == rest
            tick.put("tick", count)
            await settle()
        gone, last = sorted(rest)
        writer.delete(gone)
        await settle()
        assert (list(waiting.keys(80)), waiting.rows(gone)) == ([last], ())
        writer.delete(holder)
        await settle()
        assert everything(out) == {80: {"made": last}}
        assert (list(waiting.items()), list(waiting.keys(80))) == ([], [])


async def test_inputs_are_joined_on_their_key_and_context_touches_every_key() -> None:
    left, right = Table[str, int]("left"), Table[str, int]("right")
    context, out = Table[int, int]("context"), Table[str, int]("out")
    factor = context.writer("x")
    left.writer("x").replace({"a": 1, "b": 2})
    right.writer("x").replace({"b": 10})
    factor.replace({0: 1})

    def rule(key: str, ours: Mapping[str, int], theirs: Mapping[str, int]) -> Mapping[str, int]:
        return {key: (sum(ours.values()) + sum(theirs.values())) * (context.first(0) or 0)}

    async with running(derive((left, right), out.writer("x"), rule, context=(context,))):
        await settle()
        assert everything(out) == {"a": {"x": 1}, "b": {"x": 12}}
        factor.put(0, 2)
        await settle()
        assert everything(out) == {"a": {"x": 2}, "b": {"x": 24}}


async def test_a_rule_over_everything_follows_its_tables() -> None:
    table, out = Table[str, int]("t"), Table[str, int]("o")
    writer = table.writer("x")
    writer.replace({"a": 1, "b": 2})

    def rule() -> Mapping[str, int]:
        return {"sum": sum(sum(table.rows(key).values()) for key in table.keys())}

    async with running(derive_whole((table,), out.writer("x"), rule)):
        await settle()
        assert everything(out) == {"sum": {"x": 3}}
        writer.delete("b")
        await settle()
        assert everything(out) == {"sum": {"x": 1}}
        assert out.is_ready


async def test_an_index_shows_rows_by_group_with_the_oldest_claim_first() -> None:
    table = Table[str, tuple[str, ...]]("pods")
    writer = table.writer("x")
    writer.put("p1", ("10.0.0.1",))
    index = Index("by_address", table, lambda _key, row: row)
    writer.put("p2", ("10.0.0.1", "10.0.0.2"))
    assert list(index.rows("10.0.0.1")) == ["p1", "p2"]
    writer.put("p1", ("10.0.0.1", "10.0.0.3"))
    assert list(index.rows("10.0.0.1")) == ["p1", "p2"]  # a change elsewhere keeps the claim
    writer.delete("p1")
    assert list(index.rows("10.0.0.1")) == ["p2"]
    writer.put("p2", ())
    assert list(index.keys()) == []


@pytest.mark.parametrize("seed", range(200))
async def test_converges_whatever_happens(seed: int) -> None:
    rnd = random.Random(seed)
    target = FakeMap(**{f"k{i}": 0 for i in range(4)})
    table, out = Table[str, int]("t"), Table[str, int]("o")
    writers = [table.writer(c) for c in "xyz"]

    def rule(key: str, rows: Mapping[str, int]) -> Mapping[str, int]:
        return {key: rows[max(rows)]}

    def fall(down: bool) -> None:
        target.down = down

    subject = reconciler(out, target, retry_min=0.1, retry_max=2, grace=1)
    async with running(derive((table,), out.writer("m"), rule), subject.run()):
        for _ in range(60):
            writer, key = rnd.choice(writers), f"k{rnd.randrange(8)}"
            actions: list[Callable[[], object]] = [
                partial(writer.put, key, rnd.randrange(3)),
                partial(writer.delete, key),
                writer.listing,
                writer.list_done,
                partial(target.broken.add, key),
                partial(target.broken.discard, key),
                partial(target.rows.pop, key, None),
                partial(target.notices.put_nowait, None),
                partial(fall, True),
                partial(fall, False),
            ]
            rnd.choice(actions)()
            await asyncio.sleep(rnd.choice([0, 0, 0.05, 3]))
        target.broken.clear()
        target.down = False
        for writer in writers:
            writer.list_done()
        await asyncio.sleep(2000)  # virtual seconds: past the last retry and one repair
        wanted = {key: rule(key, table.rows(key))[key] for key in table.keys()}
        assert target.rows == wanted
        assert not subject.failures
