from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from certs.leaf import admin
from clustermesh.errors import BadRowError
from clustermesh.etcd import Etcd, Health, Write, etcd_source
from clustermesh.state import Table, replicate

from .etcd_server import EtcdServer, proxy_to, running, until


class Copy:
    """A table that follows a prefix, and every state that its keys were seen in."""

    def __init__(self, etcd: Etcd, prefix: str) -> None:
        self.health = Health("test")
        self.table = Table[str, str]("copy")
        self.writer = self.table.writer("etcd")
        self.history: list[str] = []
        self.table.listeners.add(self)
        source = etcd_source(
            etcd,
            prefix,
            lambda key, value: (decode_key(key), decode_value(value)),
            decode_key,
            health=self.health,
        )
        self.loop = replicate(source, self.writer)

    @property
    def rows(self) -> dict[str, str]:
        return self.writer.own

    def touch(self, key: str) -> None:
        self.history.append(f"{key}={self.table.first(key)}")

    def wake(self) -> None:
        """Being ready is seen in the table."""


def decode_key(key: bytes) -> str:
    name = key.decode().rsplit("/", 1)[1]
    if name.startswith("foreign"):
        raise BadRowError(f"{name} belongs to another cluster")
    return name


def decode_value(value: bytes) -> str:
    if value == b"bad":
        raise BadRowError("that is bad")
    return value.decode()


async def test_rows_are_listed_and_then_followed(etcd_server: EtcdServer, prefix: str) -> None:
    async with Etcd(etcd_server.config()) as etcd:
        await etcd.apply(Write(f"{prefix}{n}".encode(), b"old") for n in range(3))
        copy = Copy(etcd, prefix)
        async with running(copy.loop):
            await copy.table.ready()
            assert copy.rows == {"0": "old", "1": "old", "2": "old"}
            await etcd.delete(f"{prefix}0".encode())
            await etcd.put(f"{prefix}1".encode(), b"new")
            await until(lambda: copy.rows == {"1": "new", "2": "old"})
            assert copy.health.connected


async def test_a_sibling_whose_name_begins_alike_is_not_read(
    etcd_server: EtcdServer, prefix: str
) -> None:
    async with Etcd(etcd_server.config()) as etcd:
        await etcd.put(f"{prefix}cluster10/a".encode(), b"ten")
        await etcd.put(f"{prefix}cluster1/a".encode(), b"one")
        copy = Copy(etcd, f"{prefix}cluster1/")
        async with running(copy.loop):
            await copy.table.ready()
            assert copy.rows == {"a": "one"}
    with pytest.raises(ValueError, match="no trailing /"):
        await anext(etcd_source(etcd, "cluster1", lambda k, v: (k, v), bytes, health=Health("x")))


async def test_a_connection_cut_in_mid_watch_loses_no_event(
    etcd_server: EtcdServer, prefix: str
) -> None:
    async with (
        proxy_to(etcd_server) as proxy,
        Etcd(etcd_server.config()) as writer,
        Etcd(etcd_server.config("admin", proxy.url)) as reader,
    ):
        copy = Copy(reader, prefix)
        async with running(copy.loop):
            await copy.table.ready()
            for n in range(1500):
                if n in {400, 800, 1200}:
                    await until(lambda: copy.health.connected)
                    proxy.cut()
                elif n in {500, 900, 1300}:
                    await until(lambda: not copy.health.connected)
                    await proxy.mend()
                # A listing would see only the last value of each key: all of them were watched.
                await writer.put(f"{prefix}{n % 10}".encode(), str(n).encode())
            await until(lambda: copy.rows.get("9") == "1499")
    assert copy.history == [f"{n % 10}={n}" for n in range(1500)]
    assert copy.health.listings == 1
    assert copy.health.reconnects == 3


async def test_after_a_compaction_while_cut_all_is_listed_again_and_nothing_dropped(
    etcd_server: EtcdServer, prefix: str
) -> None:
    async with (
        proxy_to(etcd_server) as proxy,
        Etcd(etcd_server.config()) as writer,
        Etcd(etcd_server.config("admin", proxy.url)) as reader,
    ):
        await writer.put(f"{prefix}kept".encode(), b"1")
        await writer.put(f"{prefix}gone".encode(), b"1")
        copy = Copy(reader, prefix)
        async with running(copy.loop):
            await until(lambda: copy.health.connected)
            proxy.cut()
            await until(lambda: not copy.health.connected)
            await writer.delete(f"{prefix}gone".encode())
            last = await writer.put(f"{prefix}new".encode(), b"1")
            await writer.compact(last.number)
            copy.history.clear()
            await proxy.mend()
            await until(lambda: copy.rows == {"kept": "1", "new": "1"})
    assert copy.history == ["new=1", "gone=None"]
    assert copy.health.listings == 2


async def test_a_server_replaced_with_an_empty_data_directory_is_listed_again(
    own_etcd_server: EtcdServer, prefix: str
) -> None:
    async with Etcd(own_etcd_server.config()) as etcd:
        await etcd.put(f"{prefix}kept".encode(), b"1")
        await etcd.put(f"{prefix}gone".encode(), b"1")
        copy = Copy(etcd, prefix)
        async with running(copy.loop):
            await until(lambda: copy.health.connected)
            own_etcd_server.stop()
            await until(lambda: not copy.health.connected)
            assert copy.rows == {"kept": "1", "gone": "1"}, "a lost server takes nothing away"
            assert "connection refused" in str(copy.health.last_error)
            own_etcd_server.wipe()
            own_etcd_server.start()
            async with Etcd(own_etcd_server.config()) as writer:
                await writer.put(f"{prefix}kept".encode(), b"1")
            await until(lambda: copy.rows == {"kept": "1"} and copy.health.connected)
            # And the new server is followed.
            await etcd.put(f"{prefix}kept".encode(), b"2")
            await until(lambda: copy.rows == {"kept": "2"})
    assert "kept=None" not in copy.history


async def test_certificates_rotated_on_disk_are_picked_up_without_losing_an_event(
    own_etcd_server: EtcdServer, prefix: str
) -> None:
    config = own_etcd_server.config()
    async with Etcd(config) as writer, Etcd(config, reload_every=0.05) as reader:
        copy = Copy(reader, prefix)
        async with running(copy.loop):
            await until(lambda: copy.health.connected)
            for n in range(600):
                if n in {200, 400}:
                    own_etcd_server.issue(admin("east"))
                    await until(lambda n=n: copy.health.reconnects == n / 200)  # type: ignore[misc]
                await writer.put(f"{prefix}{n % 10}".encode(), str(n).encode())
            await until(lambda: copy.rows.get("9") == "599")
    assert copy.history == [f"{n % 10}={n}" for n in range(600)]
    assert copy.health.listings == 1
    assert "new certificates" in str(copy.health.last_error)


async def test_certificates_that_do_not_fit_together_yet_disturb_nothing(
    own_etcd_server: EtcdServer, prefix: str
) -> None:
    async with Etcd(own_etcd_server.config(), reload_every=0.02) as etcd:
        copy = Copy(etcd, prefix)
        async with running(copy.loop):
            await until(lambda: copy.health.connected)
            _, key = own_etcd_server.pair("admin")
            before = key.read_bytes()
            key.write_bytes(own_etcd_server.pair("server")[1].read_bytes())
            await until(lambda: etcd.certificate_problem is not None)
            assert "is no key for the certificate" in str(etcd.certificate_problem)
            await etcd.put(f"{prefix}a".encode(), b"1")
            await until(lambda: copy.rows == {"a": "1"})
            key.write_bytes(before)
            await until(lambda: copy.health.reconnects == 1 and copy.health.connected)
            assert etcd.certificate_problem is None


async def test_a_bad_row_is_skipped_and_reported_and_takes_the_good_one_that_it_replaced_away(
    etcd_server: EtcdServer, prefix: str
) -> None:
    async with Etcd(etcd_server.config()) as etcd:
        await etcd.put(f"{prefix}good".encode(), b"1")
        await etcd.put(f"{prefix}other".encode(), b"bad")
        await etcd.put(f"{prefix}foreign".encode(), b"1")
        copy = Copy(etcd, prefix)
        async with running(copy.loop):
            await until(lambda: copy.health.connected)
            assert copy.rows == {"good": "1"}
            assert copy.health.bad_rows == 2
            await etcd.put(f"{prefix}good".encode(), b"bad")
            await until(lambda: copy.rows == {})
            assert copy.health.last_bad_row == f"{prefix}good: that is bad"
            await etcd.delete(f"{prefix}foreign".encode())
            await etcd.put(f"{prefix}good".encode(), b"2")
            await until(lambda: copy.rows == {"good": "2"})


async def test_a_source_started_before_its_certificates_and_server_are_there_gets_going(
    tmp_path: Path, own_etcd_server: EtcdServer, prefix: str
) -> None:
    cert, _ = own_etcd_server.pair("admin")
    hidden = cert.rename(tmp_path / "hidden")
    async with Etcd(own_etcd_server.config()) as etcd:
        copy = Copy(etcd, prefix)
        async with running(copy.loop):
            await until(lambda: copy.health.last_error is not None)
            assert f"{cert}: cannot be read: No such file" in str(copy.health.last_error)
            hidden.rename(cert)
            await asyncio.wait_for(copy.table.ready(), 10)
