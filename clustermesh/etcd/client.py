from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Collection, Iterable, Mapping, Sequence
from types import TracebackType
from typing import Final, NamedTuple, Self, TypeVar

from google.protobuf.message import Message

from . import rpc_pb2 as rpc
from .config import Endpoint, EtcdConfig
from .errors import DeniedError, EtcdError, HistoryLostError, UnreachableError
from .transport import CALL_TIMEOUT, Transport
from .txn import Write, batches

M = TypeVar("M", bound=Message)

PAGE: Final = 5_000
"""Keys to a page: with more the server is no faster, and its memory grows."""

_IN_FLIGHT: Final = 4
"""Transactions under way at once: enough for etcd to sync its log once for several of them."""


class Revision(NamedTuple):
    """A moment in the history of one etcd."""

    cluster: int  # etcd's own cluster id, drawn when the data directory was made
    number: int


class Page(NamedTuple):
    """A part of a listing, in the order of the keys. All parts show the same moment."""

    rows: Sequence[rpc.KeyValue]
    at: Revision


class Outcome(NamedTuple):
    """What became of one transaction."""

    writes: Sequence[Write]
    at: Revision | None
    error: EtcdError | None


class Etcd:
    """
    A client of one etcd, which may have several endpoints.

    Every method raises EtcdError, an OSError, with endpoint and cause in its message; nothing is
    retried here but at another endpoint. Entering the context connects to nothing, and cannot fail.
    """

    def __init__(self, config: EtcdConfig, *, reload_every: float = 5.0) -> None:
        """
        Args:
            reload_every: seconds between looks at the certificate files for new ones.
        """
        self._transport = Transport(config, reload_every=reload_every)

    @property
    def config(self) -> EtcdConfig:
        """How this etcd is reached."""
        return self._transport.config

    @property
    def endpoint(self) -> Endpoint:
        """The endpoint in use at present."""
        return self._transport.endpoint

    @property
    def certificate_problem(self) -> str | None:
        """Why the certificate files that are on disk now are not used, if the older ones are."""
        return self._transport.certificate_problem

    async def __aenter__(self) -> Self:
        await self._transport.__aenter__()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self._transport.__aexit__(kind, error, trace)

    async def call(
        self,
        method: str,
        request: Message,
        answer: type[M],
        what: str,
        timeout: float = CALL_TIMEOUT,
    ) -> M:
        """
        Call `service/method` of etcd's API.

        Args:
            what: what is asked for, for errors: "user west may not {what}".
        """
        return await self._transport.call(f"/etcdserverpb.{method}", request, answer, what, timeout)

    async def range(self, prefix: bytes, *, page: int = PAGE) -> AsyncGenerator[Page, None]:
        """
        List what begins with `prefix`, as it was at the moment of the first page.

        There is at least one page, which may be empty.

        Raises:
            HistoryLostError: that moment was compacted away, or the server replaced, in between.
        """
        request = rpc.RangeRequest(key=prefix, range_end=prefix_end(prefix), limit=page)
        at = None
        while True:
            what = f"read {prefix.decode()}"
            answer = await self.call("KV/Range", request, rpc.RangeResponse, what)
            if at is None:
                at = _revision(answer.header)
            elif answer.header.cluster_id != at.cluster:
                raise HistoryLostError(f"{self.endpoint}: cannot {what}: the server was replaced")
            yield Page(answer.kvs, at)
            if not answer.more:
                return
            request.key = answer.kvs[-1].key + b"\0"
            request.revision = at.number

    async def get(self, key: bytes) -> bytes | None:
        """Return the value of `key`."""
        what = f"read {key.decode()}"
        answer = await self.call("KV/Range", rpc.RangeRequest(key=key), rpc.RangeResponse, what)
        return answer.kvs[0].value if answer.kvs else None

    async def put(self, key: bytes, value: bytes, lease: int = 0) -> Revision:
        """Set the value of `key`. Raises LeaseLostError too."""
        return await self.commit([Write(key, value, lease)])

    async def delete(self, key: bytes) -> Revision:
        """Delete `key`, if it is there."""
        return await self.commit([Write(key, None)])

    async def delete_prefix(self, prefix: bytes) -> Revision:
        """Delete all that begins with `prefix`."""
        request = rpc.DeleteRangeRequest(key=prefix, range_end=prefix_end(prefix))
        what = f"delete {prefix.decode()}"
        answer = await self.call("KV/DeleteRange", request, rpc.DeleteRangeResponse, what)
        return _revision(answer.header)

    async def commit(self, writes: Sequence[Write]) -> Revision:
        """
        Do all of `writes` or none, in one transaction: at most MAX_OPS, no key twice.

        Raises:
            LeaseLostError: the server does not know one of the leases.
        """
        request = rpc.TxnRequest(success=[_operation(write) for write in writes])
        first = writes[0].key.decode()
        what = f"write {first}" + (f" and {len(writes) - 1} others" if len(writes) > 1 else "")
        answer = await self.call("KV/Txn", request, rpc.TxnResponse, what)
        return _revision(answer.header)

    async def apply(self, writes: Iterable[Write]) -> Sequence[Outcome]:
        """
        Do any number of `writes`, in as many transactions as it takes, several at once.

        Of several writes to one key the last one counts. Raises nothing: see the outcomes.
        """
        turn = asyncio.Semaphore(_IN_FLIGHT)

        async def commit(batch: Sequence[Write]) -> Outcome:
            async with turn:
                try:
                    return Outcome(batch, await self.commit(batch), None)
                except EtcdError as error:
                    return Outcome(batch, None, error)

        async with asyncio.TaskGroup() as tasks:
            running = [
                tasks.create_task(commit(batch), name=f"commit {batch[0].key.decode()}")
                for batch in batches(writes)
            ]
        return [task.result() for task in running]

    async def watch(
        self, prefix: bytes, after: Revision
    ) -> AsyncGenerator[Sequence[rpc.Event], None]:
        """
        Yield all changes below `prefix` that came after `after`, in order.

        First comes an empty batch, when the server has accepted. Each further batch holds whole
        revisions, so it is safe to resume after the last event of any. Never ends but by raising.

        Raises:
            HistoryLostError: `after` was compacted away, or belongs to the history of another
                server: a replaced data directory.
            UnreachableError: the connection broke, or the certificates changed: resume.
        """
        what = f"watch {prefix.decode()}"
        request = rpc.WatchCreateRequest(
            key=prefix, range_end=prefix_end(prefix), start_revision=after.number + 1
        )
        async with self._transport.stream(
            "/etcdserverpb.Watch/Watch", rpc.WatchRequest, rpc.WatchResponse, what
        ) as stream:
            await stream.write(rpc.WatchRequest(create_request=request))
            try:
                async with asyncio.timeout(CALL_TIMEOUT):
                    answer = await stream.read()
            except TimeoutError as error:
                raise UnreachableError(f"{self.endpoint}: cannot {what}: no answer") from error
            while True:
                self._check(answer, after, what)
                if answer.created or answer.events:
                    yield answer.events
                answer = await stream.read()

    def _check(self, answer: rpc.WatchResponse, after: Revision, what: str) -> None:
        where = self.endpoint
        if answer.compact_revision:
            message = f"{where}: cannot {what}: history begins at {answer.compact_revision}"
            raise HistoryLostError(message)
        if "permission denied" in answer.cancel_reason:
            raise DeniedError(f"{where}: user {self._transport.user} may not {what}")
        if answer.canceled:
            raise EtcdError(f"{where}: cannot {what}: {answer.cancel_reason or 'broken off'}")
        # A revision older than what we have seen also means a new server: etcd makes its cluster
        # id from its flags, so that it stays the same unless each bootstrap has a random token.
        is_older = answer.created and answer.header.revision < after.number
        if answer.header.cluster_id != after.cluster or is_older:
            raise HistoryLostError(f"{where}: cannot {what}: the server was replaced by another")

    async def grant_lease(self, ttl: int) -> int:
        """Return a new lease, which the server lets expire `ttl` seconds after its last renewal."""
        request = rpc.LeaseGrantRequest(ttl=ttl)
        answer = await self.call("Lease/LeaseGrant", request, rpc.LeaseGrantResponse, "get a lease")
        return answer.id

    async def renew_leases(self, leases: Collection[int]) -> Mapping[int, int]:
        """Renew `leases`. Returns the seconds that each has now; 0: it is lost, with its keys."""
        what = "renew leases"
        ttls: dict[int, int] = {}
        async with self._transport.stream(
            "/etcdserverpb.Lease/LeaseKeepAlive",
            rpc.LeaseKeepAliveRequest,
            rpc.LeaseKeepAliveResponse,
            what,
        ) as stream:
            try:
                async with asyncio.timeout(CALL_TIMEOUT):
                    for lease in leases:
                        await stream.write(rpc.LeaseKeepAliveRequest(id=lease))
                        answer = await stream.read()
                        ttls[answer.id] = answer.ttl
            except TimeoutError as error:
                raise UnreachableError(f"{self.endpoint}: cannot {what}: no answer") from error
        return ttls

    async def revoke_lease(self, lease: int) -> None:
        """Give a lease back, and delete its keys."""
        request = rpc.LeaseRevokeRequest(id=lease)
        await self.call("Lease/LeaseRevoke", request, rpc.LeaseRevokeResponse, "revoke a lease")

    async def compact(self, revision: int) -> None:
        """Forget the history before `revision`."""
        request = rpc.CompactionRequest(revision=revision, physical=True)
        await self.call("KV/Compact", request, rpc.CompactionResponse, "compact")

    async def status(self) -> rpc.StatusResponse:
        """Return the version and size of the server that answers."""
        request = rpc.StatusRequest()
        return await self.call("Maintenance/Status", request, rpc.StatusResponse, "read the status")


def prefix_end(prefix: bytes) -> bytes:
    """Return the first key after all that begin with `prefix`, which is how etcd writes a range."""
    assert prefix[-1] < 0xFF
    return prefix[:-1] + bytes([prefix[-1] + 1])


def _revision(header: rpc.ResponseHeader) -> Revision:
    return Revision(header.cluster_id, header.revision)


def _operation(write: Write) -> rpc.RequestOp:
    if write.value is None:
        return rpc.RequestOp(request_delete_range=rpc.DeleteRangeRequest(key=write.key))
    return rpc.RequestOp(
        request_put=rpc.PutRequest(key=write.key, value=write.value, lease=write.lease)
    )
