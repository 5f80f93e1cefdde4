from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from clustermesh.errors import BadRowError
from clustermesh.etcd import Etcd, EtcdError, EtcdTarget, Leases, Write
from clustermesh.state import Reconciler, Table

from .etcd_server import EtcdServer, proxy_to, running, until


def make_target(etcd: Etcd, prefix: str, leases: Leases | None = None) -> EtcdTarget[str]:
    def decode(key: bytes) -> str:
        name = key.decode().removeprefix(prefix)
        if name.startswith("."):
            raise BadRowError("not ours")
        return name

    return EtcdTarget(etcd, prefix, lambda name: f"{prefix}{name}".encode(), decode, leases)


async def content(etcd: Etcd, prefix: str) -> dict[str, str]:
    """What is in etcd, without the prefix."""
    return {
        row.key.decode().removeprefix(prefix): row.value.decode()
        async for page in etcd.range(prefix.encode())
        for row in page.rows
    }


async def holds(etcd: Etcd, prefix: str, rows: dict[str, str]) -> bool:
    """Whether that is what is in etcd."""
    return await content(etcd, prefix) == rows


async def leases_of(etcd: Etcd, prefix: str) -> dict[int, int]:
    """How many keys each lease has."""
    count: dict[int, int] = {}
    async for page in etcd.range(prefix.encode()):
        for row in page.rows:
            count[row.lease] = count.get(row.lease, 0) + 1
    return count


@asynccontextmanager
async def reconciled(
    target: EtcdTarget[str], rows: dict[str, str]
) -> AsyncIterator[Reconciler[str, str, bytes]]:
    """Run a reconciler that wants `rows`, until it has put them there first."""
    table = Table[str, str]("wanted")
    table.writer("test").replace(rows)
    reconciler = Reconciler(
        table, target, lambda _, row: row.encode(), repair_every=3600, retry_max=0.2
    )
    async with running(reconciler.run()):
        await asyncio.wait_for(reconciler.synced.wait(), 10)
        yield reconciler


async def test_rows_are_written_and_deleted_and_what_is_not_ours_is_left_be(
    etcd_server: EtcdServer, prefix: str
) -> None:
    async with Etcd(etcd_server.config()) as etcd:
        await etcd.put(f"{prefix}.heartbeat".encode(), b"now")
        await etcd.put(f"{prefix}leftover".encode(), b"1")
        async with reconciled(make_target(etcd, prefix), {"a": "1", "b": "1"}) as reconciler:
            assert await content(etcd, prefix) == {".heartbeat": "now", "a": "1", "b": "1"}
            writer = reconciler.table.origins["test"]
            writer.put("a", "2")
            writer.delete("b")
            expected = {".heartbeat": "now", "a": "2"}
            await until(lambda: holds(etcd, prefix, expected))


async def test_a_no_op_apply_does_not_move_the_revision(
    etcd_server: EtcdServer, prefix: str
) -> None:
    async with Etcd(etcd_server.config()) as etcd:
        leases = Leases(etcd)
        rows = {str(n): b"value" for n in range(300)}
        target = make_target(etcd, prefix, leases)
        await target.apply(rows, ["absent"])
        before = (await anext(etcd.range(prefix.encode()))).at
        await target.apply(rows, ["absent"])
        restarted = make_target(etcd, prefix, Leases(etcd))
        assert await restarted.actual() == rows
        assert await restarted.apply(rows, ["absent"]) == {}
        assert (await anext(etcd.range(prefix.encode()))).at == before


async def test_tampering_is_seen_by_drift_and_own_writes_are_not(
    etcd_server: EtcdServer, prefix: str
) -> None:
    async with Etcd(etcd_server.config()) as etcd:
        target = make_target(etcd, prefix)
        await target.actual()
        drift: list[set[str]] = []

        async def follow() -> None:
            async for keys in target.drift():
                drift.append(set(keys or {"everything"}))  # noqa: PERF401 - it never ends

        async with running(follow()):
            for n in range(500):
                await target.apply({str(n % 7): str(n).encode()}, [str(n % 5)])
            assert {"5", "6"} <= (await target.actual()).keys()
            assert drift == []
            await etcd.put(f"{prefix}5".encode(), b"altered")
            await until(lambda: drift == [{"5"}])
            await etcd.delete(f"{prefix}6".encode())
            await until(lambda: drift == [{"5"}, {"6"}])
            await etcd.put(f"{prefix}new".encode(), b"planted")
            await until(lambda: drift == [{"5"}, {"6"}, {"new"}])


async def test_what_others_alter_delete_or_plant_is_put_back(
    etcd_server: EtcdServer, prefix: str
) -> None:
    wanted = {str(n): "right" for n in range(10)}
    async with (
        Etcd(etcd_server.config()) as etcd,
        reconciled(make_target(etcd, prefix), wanted) as reconciler,
    ):
        await etcd.put(f"{prefix}1".encode(), b"altered")
        await etcd.delete(f"{prefix}2".encode())
        await etcd.put(f"{prefix}planted".encode(), b"1")
        await until(lambda: reconciler.repairs == 3)
        await until(lambda: holds(etcd, prefix, wanted))


async def test_a_change_made_while_we_were_cut_off_is_put_back(
    etcd_server: EtcdServer, prefix: str
) -> None:
    async with (
        proxy_to(etcd_server) as proxy,
        Etcd(etcd_server.config()) as other,
        Etcd(etcd_server.config("admin", proxy.url)) as etcd,
        reconciled(make_target(etcd, prefix), {"a": "right"}),
    ):
        proxy.cut()
        await other.put(f"{prefix}a".encode(), b"altered")
        await proxy.mend()
        await until(lambda: holds(other, prefix, {"a": "right"}))


async def test_a_replaced_server_is_filled_again(own_etcd_server: EtcdServer, prefix: str) -> None:
    wanted = {str(n): "right" for n in range(300)}
    async with Etcd(own_etcd_server.config()) as etcd:
        leases = Leases(etcd)
        async with reconciled(make_target(etcd, prefix, leases), wanted):
            own_etcd_server.stop()
            own_etcd_server.wipe()
            own_etcd_server.start()
            async with Etcd(own_etcd_server.config()) as other:
                await until(lambda: holds(other, prefix, wanted))
                assert list(await leases_of(other, prefix)) == list(leases.ids)


async def test_more_than_1000_keys_use_several_leases(etcd_server: EtcdServer, prefix: str) -> None:
    async with Etcd(etcd_server.config()) as etcd:
        target = make_target(etcd, prefix, Leases(etcd))
        await target.apply({str(n): b"1" for n in range(2500)}, [])
        assert sorted((await leases_of(etcd, prefix)).values()) == [500, 1000, 1000]


async def test_an_earlier_process_leaves_its_keys_with_leases_that_we_renew(
    etcd_server: EtcdServer, prefix: str
) -> None:
    async with Etcd(etcd_server.config()) as etcd:
        await make_target(etcd, prefix, Leases(etcd)).apply({"a": b"1"}, [])
        leases = Leases(etcd)
        await make_target(etcd, prefix, leases).actual()
        assert {*leases.ids} == {*await leases_of(etcd, prefix)}


async def test_what_an_earlier_process_left_is_renewed_as_soon_as_that_succeeds(
    etcd_server: EtcdServer,
) -> None:
    async with (
        proxy_to(etcd_server) as proxy,
        Etcd(etcd_server.config()) as direct,
        Etcd(etcd_server.config("admin", proxy.url)) as etcd,
    ):
        leases = Leases(etcd)
        leases.adopt(b"key", await direct.grant_lease(900))
        proxy.cut()
        with pytest.raises(EtcdError):
            await leases.renew_adopted()
        await proxy.mend()
        (lease,) = leases.ids
        await direct.revoke_lease(lease)
        await until(lambda: renewed(leases))
        assert leases.ids == (), "it was asked for, and is lost"


async def renewed(leases: Leases) -> bool:
    try:
        await leases.renew_adopted()
    except EtcdError:
        return False
    return True


async def test_a_key_that_must_not_expire_gets_rid_of_the_lease_that_it_has(
    etcd_server: EtcdServer, prefix: str
) -> None:
    async with Etcd(etcd_server.config()) as etcd:
        await make_target(etcd, prefix, Leases(etcd)).apply({"a": b"1"}, [])
        async with reconciled(make_target(etcd, prefix), {"a": "1"}):
            assert await leases_of(etcd, prefix) == {0: 1}


async def test_a_lost_lease_has_its_keys_written_again_under_a_new_one(
    etcd_server: EtcdServer, prefix: str
) -> None:
    wanted = {str(n): "1" for n in range(200)}
    async with Etcd(etcd_server.config()) as etcd:
        leases = Leases(etcd, ttl=3)
        async with running(leases.run()), reconciled(make_target(etcd, prefix, leases), wanted):
            (lost,) = leases.ids
            await etcd.revoke_lease(lost)
            await until(lambda: bool(leases.ids) and lost not in leases.ids)
            await until(lambda: holds(etcd, prefix, wanted))


async def test_leases_are_kept_alive_beyond_their_ttl(etcd_server: EtcdServer, prefix: str) -> None:
    async with Etcd(etcd_server.config()) as etcd:
        leases = Leases(etcd, ttl=2)
        await make_target(etcd, prefix, leases).apply({"kept": b"1"}, [])
        short = await etcd.grant_lease(2)
        await etcd.put(f"{prefix}expires".encode(), b"1", short)
        async with running(leases.run()):
            await until(lambda: holds(etcd, prefix, {"kept": "1"}))


async def test_one_row_that_etcd_refuses_does_not_keep_the_others_away(
    etcd_server: EtcdServer, prefix: str
) -> None:
    async with Etcd(etcd_server.config()) as etcd:
        target = EtcdTarget(etcd, prefix, lambda name: name and prefix.encode() + name, bytes)
        rows = {str(n).encode(): b"1" for n in range(20)}
        failed = await target.apply({**rows, b"": b"has no key", b"huge": bytes(2 << 20)}, [])
        assert failed.keys() == {b"", b"huge"}
        assert "key is not provided" in str(failed[b""])
        assert "larger than max" in str(failed[b"huge"])
        assert len(await content(etcd, prefix)) == 20


async def test_a_target_that_is_gone_raises_and_names_the_cause(
    own_etcd_server: EtcdServer, prefix: str
) -> None:
    async with Etcd(own_etcd_server.config()) as etcd:
        target = make_target(etcd, prefix)
        await target.actual()
        own_etcd_server.stop()
        with pytest.raises(EtcdError, match="connection refused"):
            await target.apply({"a": b"1"}, [])
        with pytest.raises(EtcdError, match=own_etcd_server.url):
            await target.actual()


async def test_a_whole_listing_reaches_etcd_in_transactions(
    etcd_server: EtcdServer, prefix: str
) -> None:
    async with Etcd(etcd_server.config()) as etcd:
        outcomes = await etcd.apply(Write(f"{prefix}{n}".encode(), b"1") for n in range(1000))
        assert [len(outcome.writes) for outcome in outcomes] == [128] * 7 + [104]
        assert all(outcome.error is None for outcome in outcomes)
