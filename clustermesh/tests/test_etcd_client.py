from __future__ import annotations

import asyncio
from datetime import timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from certs.leaf import SERVER, Profile, admin, server
from clustermesh.etcd import Etcd, HistoryLostError, Revision, UnreachableError, Write, probe
from clustermesh.etcd.txn import MAX_BYTES, MAX_OPS, batches

from .etcd_server import EtcdServer, proxy_to

NOBODY_LISTENS = "https://127.0.0.1:1"


async def test_20000_keys_are_paged_at_one_revision_while_being_written_to(
    etcd_server: EtcdServer, prefix: str
) -> None:
    keys = [f"{prefix}{n:05}".encode() for n in range(20_000)]
    async with Etcd(etcd_server.config()) as etcd:
        await etcd.apply(Write(key, b"before") for key in keys)
        seen, sizes, moments = [], [], set()
        async for page in etcd.range(prefix.encode()):
            seen += [(row.key, row.value) for row in page.rows]
            sizes.append(len(page.rows))
            moments.add(page.at)
            # Behind and ahead of the reader.
            await etcd.delete(keys[len(sizes)])
            await etcd.delete(keys[-len(sizes)])
            await etcd.put(keys[-10 - len(sizes)], b"after")
            await etcd.put(keys[-20 - len(sizes)] + b"new", b"after")
        assert seen == [(key, b"before") for key in keys]
        assert sizes == [5_000] * 4
        assert len(moments) == 1
        assert (await anext(etcd.range(prefix.encode()))).at.number >= moments.pop().number + 16


@given(
    st.lists(
        st.builds(
            Write,
            st.integers(0, 300).map(lambda n: str(n).encode()),
            st.none() | st.sampled_from([b"small", bytes(MAX_BYTES // 3), bytes(MAX_BYTES + 1)]),
        ),
        max_size=600,
    )
)
def test_a_transaction_never_exceeds_128_operations_nor_a_mebibyte_nor_names_a_key_twice(
    writes: list[Write],
) -> None:
    made = list(batches(writes))
    for batch in made:
        assert 1 <= len(batch) <= MAX_OPS == 128
        assert len({write.key for write in batch}) == len(batch)
        size = sum(len(write.key) + len(write.value or b"") for write in batch)
        assert size <= MAX_BYTES or len(batch) == 1
    last = {write.key: write for write in writes}
    assert [write for batch in made for write in batch] == list(last.values())


async def test_a_dead_endpoint_beside_a_live_one_is_passed_over(
    etcd_server: EtcdServer, prefix: str
) -> None:
    config = etcd_server.config("admin", NOBODY_LISTENS, etcd_server.url)
    async with Etcd(config) as etcd:
        await etcd.put(f"{prefix}a".encode(), b"1")
        assert await etcd.get(f"{prefix}a".encode()) == b"1"
        assert str(etcd.endpoint) == etcd_server.url


async def test_an_endpoint_that_dies_is_replaced_by_another(
    etcd_server: EtcdServer, prefix: str
) -> None:
    async with (
        proxy_to(etcd_server) as first,
        proxy_to(etcd_server) as second,
        Etcd(etcd_server.config("admin", first.url, second.url)) as etcd,
    ):
        await etcd.put(f"{prefix}a".encode(), b"1")
        first.cut()
        await etcd.put(f"{prefix}a".encode(), b"2")
        await first.mend()
        second.cut()
        assert await etcd.get(f"{prefix}a".encode()) == b"2"
        assert str(etcd.endpoint) == first.url


async def test_an_endpoint_may_be_a_host_name_of_the_certificate(
    own_etcd_server: EtcdServer,
) -> None:
    own_etcd_server.issue(server("kube-system", ["localhost"]))
    config = own_etcd_server.config("admin", f"https://localhost:{own_etcd_server.port}")
    async with Etcd(config) as etcd:
        assert (await etcd.status()).version.startswith("3.")
    assert probe(config) is None


async def test_a_watch_of_what_was_compacted_or_of_another_server_says_so(
    etcd_server: EtcdServer, prefix: str
) -> None:
    async with Etcd(etcd_server.config()) as etcd:
        first = await etcd.put(f"{prefix}a".encode(), b"1")
        last = await etcd.put(f"{prefix}a".encode(), b"2")
        await etcd.compact(last.number)
        for after in (
            Revision(first.cluster, 1),
            Revision(first.cluster + 1, last.number),
            Revision(first.cluster, last.number + 1_000),
        ):
            with pytest.raises(HistoryLostError):
                async for _ in etcd.watch(prefix.encode(), after):
                    pass


async def test_a_call_on_the_old_certificates_finishes_while_new_ones_are_taken_up(
    own_etcd_server: EtcdServer, prefix: str
) -> None:
    """Calls never fail, whenever the files change."""
    async with Etcd(own_etcd_server.config(), reload_every=0.01) as etcd:

        async def call() -> None:
            for n in range(300):
                await etcd.put(f"{prefix}a".encode(), str(n).encode())

        async with asyncio.TaskGroup() as tasks:
            for _ in range(4):
                tasks.create_task(call())
            for _ in range(5):
                await asyncio.sleep(0.1)
                own_etcd_server.issue(admin("east"))
        assert await etcd.get(f"{prefix}a".encode()) == b"299"


async def cause_of(etcd_server: EtcdServer, user: str = "admin", *urls: str) -> str:
    """What a call says, which is what the probe says."""
    config = etcd_server.config(user, *urls)
    cause = probe(config)
    assert cause is not None
    async with Etcd(config) as etcd:
        with pytest.raises(UnreachableError) as raised:
            await etcd.get(b"a")
    assert str(raised.value) == f"cannot read a: {cause}"
    return cause


async def test_a_server_that_is_well_has_no_cause(etcd_server: EtcdServer) -> None:
    assert probe(etcd_server.config()) is None


async def test_a_refused_connection_and_an_unknown_name_are_named(etcd_server: EtcdServer) -> None:
    cause = await cause_of(etcd_server, "admin", NOBODY_LISTENS, "https://no-such.invalid:2379")
    assert cause == (
        "https://127.0.0.1:1: connection refused: nothing listens there; "
        "https://no-such.invalid:2379: the name no-such.invalid does not resolve"
    )


async def test_a_server_certificate_for_other_names_is_named_with_its_names(
    own_etcd_server: EtcdServer,
) -> None:
    wrong = Profile("server", "etcd", frozenset({"etcd.example", "10.0.0.1"}), SERVER)
    own_etcd_server.issue(wrong)  # etcd reads it anew for each connection
    cause = await cause_of(own_etcd_server)
    assert "certificate is not for 127.0.0.1, but for etcd.example, 10.0.0.1" in cause


async def test_the_name_in_the_certificate_may_be_told(own_etcd_server: EtcdServer) -> None:
    own_etcd_server.issue(Profile("server", "etcd", frozenset({"*.example"}), SERVER))
    config = own_etcd_server.config()
    (endpoint,) = config.endpoints
    good, bad = (
        replace(config, endpoints=(replace(endpoint, server_name=name),))
        for name in ("etcd.example", "etcd.example.org")
    )
    async with Etcd(good) as client:
        assert await client.get(b"nothing") is None
    async with Etcd(bad) as client:
        with pytest.raises(UnreachableError, match=r"not for etcd\.example\.org, but for"):
            await client.get(b"nothing")


async def test_an_expired_server_certificate_is_named_with_its_date(
    own_etcd_server: EtcdServer,
) -> None:
    own_etcd_server.issue(server("kube-system"), lifetime=timedelta(microseconds=1))
    cause = await cause_of(own_etcd_server)
    assert "the server's certificate expired at 20" in cause


async def test_an_expired_client_certificate_is_named_with_its_file_and_date(
    own_etcd_server: EtcdServer,
) -> None:
    own_etcd_server.issue(admin("east"), lifetime=timedelta(microseconds=1))
    cause = await cause_of(own_etcd_server)
    assert f"our certificate {own_etcd_server.pair('admin')[0]} expired at 20" in cause


async def test_a_server_of_an_unknown_ca_is_named(
    etcd_server: EtcdServer, own_etcd_server: EtcdServer
) -> None:
    cause = await cause_of(own_etcd_server, "admin", etcd_server.url)
    assert "the server's certificate is by a CA (CN=clustermesh CA" in cause


async def test_a_client_certificate_that_the_server_refuses_is_named(
    etcd_server: EtcdServer, own_etcd_server: EtcdServer
) -> None:
    ca = own_etcd_server.certs.path("ca", "crt")
    ca.write_bytes(ca.read_bytes() + etcd_server.certs.path("ca", "crt").read_bytes())
    cause = await cause_of(own_etcd_server, "admin", etcd_server.url)
    assert f"the server refuses our certificate {own_etcd_server.pair('admin')[0]}" in cause


async def test_something_that_speaks_no_tls_is_named(etcd_server: EtcdServer) -> None:
    async def hang_up(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 400 Bad Request\r\n\r\n")
        writer.close()

    async with await asyncio.start_server(hang_up, "127.0.0.1", 0) as plain:
        host, port = plain.sockets[0].getsockname()
        config = etcd_server.config("admin", f"https://{host}:{port}")
        cause = await asyncio.to_thread(probe, config)
    assert cause is not None
    assert "TLS failed" in cause


async def test_a_server_that_accepts_and_stays_silent_is_passed_over(
    etcd_server: EtcdServer, prefix: str
) -> None:
    hung: list[asyncio.StreamWriter] = []
    async with await asyncio.start_server(
        lambda _, writer: hung.append(writer), "127.0.0.1", 0
    ) as silent:
        host, port = silent.sockets[0].getsockname()
        config = etcd_server.config("admin", f"https://{host}:{port}", etcd_server.url)
        async with Etcd(config) as etcd:
            assert await etcd.get(prefix.encode()) is None
            assert str(etcd.endpoint) == etcd_server.url
        for writer in hung:
            writer.transport.abort()


async def test_an_error_of_the_body_comes_out_as_it_is(etcd_server: EtcdServer) -> None:
    async def fail() -> None:
        async with Etcd(etcd_server.config()) as etcd:
            await etcd.get(b"a")
            raise LookupError("mine")

    with pytest.raises(LookupError, match="mine"):
        await fail()


async def test_cancelling_stops_at_once(etcd_server: EtcdServer, prefix: str) -> None:
    async def watch() -> None:
        async with Etcd(etcd_server.config()) as etcd:
            at = (await anext(etcd.range(prefix.encode()))).at
            async for _ in etcd.watch(prefix.encode(), at):
                watching.set()

    watching = asyncio.Event()
    task = asyncio.create_task(watch())
    await watching.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await asyncio.wait_for(task, 5)  # and not the ten seconds that a call may take
