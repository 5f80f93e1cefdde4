"""
Who of several replicas leads: whoever holds a Lease (coordination.k8s.io/v1).

The rules are those of client-go, so that `kubectl get lease` says what people know: a holder
renews; the others take over when they have not seen it do so for the duration that it promised.
Only their own clock counts, so clocks need not agree.
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Callable, Coroutine
from datetime import UTC, datetime
from typing import Any, Final

import msgspec

from .client import Kube, Resource
from .errors import ConflictError, KubeError, NotFoundError

log = logging.getLogger(__name__)

_LEASES: Final = Resource("coordination.k8s.io/v1", "leases")


class _Metadata(msgspec.Struct, frozen=True, rename="camel"):
    resource_version: str


class _Spec(msgspec.Struct, frozen=True, rename="camel"):
    holder_identity: str | None = None
    lease_duration_seconds: int | None = None
    lease_transitions: int | None = None


class _Lease(msgspec.Struct, frozen=True):
    metadata: _Metadata
    spec: _Spec = _Spec()


class Election:
    """One replica's part in the election of a leader."""

    def __init__(
        self, kube: Kube, namespace: str, name: str, candidate: str, *, duration: int = 15
    ) -> None:
        """
        Args:
            name: of the Lease.
            candidate: our name, which no other replica has.
            duration: seconds that the leader may be silent before others take over. It renews
                three times as often, and gives up leading after two thirds of it.
        """
        self.leader = ""
        """The candidate that leads, as far as we know."""
        self.problem: str | None = None
        """Why it is not known who leads at present."""
        self._kube = kube
        self._namespace = namespace
        self._name = name
        self._candidate = candidate
        self._duration = duration
        self._seen: tuple[str, float] = ("", 0.0)  # a version of the lease, and since when

    async def run(self, lead: Callable[[], Coroutine[Any, Any, None]]) -> None:
        """Run `lead()` whenever we lead, and cancel it when we do not any more."""
        try:
            while True:
                while not await self._hold():
                    await self._pause()
                log.info("lease %s: we lead", self._name)
                async with asyncio.TaskGroup() as tasks:
                    work = tasks.create_task(lead(), name="lead")
                    await self._keep()
                    work.cancel()
                log.warning("lease %s: we do not lead any more", self._name)
        finally:
            if self.leader == self._candidate:
                await self._release()

    async def _keep(self) -> None:
        """Return when we may not lead any more."""
        renewed = self._now()
        while self._now() < renewed + self._duration * 2 / 3:
            await self._pause()
            began = self._now()
            if await self._hold():
                renewed = began
            elif self.leader != self._candidate:
                return

    async def _hold(self) -> bool:
        """Take or renew the lease; whether it is ours now."""
        try:
            # An answer that comes late says nothing of now.
            async with asyncio.timeout(self._duration / 3):
                is_ours = await self._take()
        except ConflictError:
            return False  # somebody was faster: look again
        except (KubeError, TimeoutError) as error:
            problem = str(error) or "no answer in time"
            if problem != self.problem:
                log.warning("lease %s: %s", self._name, problem)
            self.problem = problem
            return False
        self.problem = None
        return is_ours

    async def _take(self) -> bool:
        try:
            lease = await self._kube.get(_LEASES, self._name, _Lease, namespace=self._namespace)
        except NotFoundError:
            spec = {**self._claim(), "acquireTime": _timestamp(), "leaseTransitions": 0}
            await self._kube.create(
                _LEASES,
                {
                    "apiVersion": "coordination.k8s.io/v1",
                    "kind": "Lease",
                    "metadata": {"name": self._name},
                    "spec": spec,
                },
                namespace=self._namespace,
            )
            self.leader = self._candidate
            return True
        version, since = lease.metadata.resource_version, self._now()
        if self._seen[0] != version:
            self._seen = (version, since)
        self.leader = lease.spec.holder_identity or ""
        is_held = since < self._seen[1] + (lease.spec.lease_duration_seconds or 0)
        if self.leader not in {"", self._candidate} and is_held:
            return False
        spec = self._claim()
        if self.leader != self._candidate:
            transitions = (lease.spec.lease_transitions or 0) + 1
            spec |= {"acquireTime": _timestamp(), "leaseTransitions": transitions}
        await self._write(version, spec)
        self.leader = self._candidate
        return True

    async def _release(self) -> None:
        """Let another replica take over at once."""
        self.leader = ""
        try:
            async with asyncio.timeout(2.0):
                lease = await self._kube.get(_LEASES, self._name, _Lease, namespace=self._namespace)
                if lease.spec.holder_identity == self._candidate:
                    await self._write(lease.metadata.resource_version, {"holderIdentity": ""})
        except (KubeError, TimeoutError) as error:
            log.warning("lease %s: not released, it runs out: %s", self._name, error)

    async def _write(self, version: str, spec: dict[str, object]) -> None:
        # A patch, so that labels and annotations of others stay.
        changes = {"metadata": {"resourceVersion": version}, "spec": spec}
        await self._kube.patch(_LEASES, self._name, changes, namespace=self._namespace)

    def _claim(self) -> dict[str, object]:
        return {
            "holderIdentity": self._candidate,
            "leaseDurationSeconds": self._duration,
            "renewTime": _timestamp(),
        }

    async def _pause(self) -> None:
        await asyncio.sleep(self._duration / 3 * random.uniform(0.8, 1.0))

    def _now(self) -> float:
        return asyncio.get_running_loop().time()


def _timestamp() -> str:
    return datetime.now(UTC).isoformat(timespec="microseconds").replace("+00:00", "Z")
