"""One look at one way: does it carry small packets and the largest, and if not, what is wrong?"""

from __future__ import annotations

import asyncio
import errno
from typing import Final, NamedTuple

import msgspec
from msgspec.structs import replace

from agent.kernel.udp import HEADERS
from agent.rules.causes import Cause, Observed, Way, Word, cause
from agent.rules.probes import PathKey, Probe

from .echo import Echo
from .here import Here
from .messages import SMALL, Message, new_token, word
from .pace import Pace
from .prober import Prober, Reply

_TRIES: Final = 3  # before something counts as lost: a packet may be
_TIMEOUT: Final = 1.0  # seconds: several times around the world
_STEPS: Final = (8, 20, 28, 40, 50, 70, 80, 100, 150, 200, 300, 500)
"""Bytes below what was lost that are tried, to tell what would pass: what one tunnel or another
takes off, and some more."""


class Tools(NamedTuple):
    """What one looks with."""

    here: Here
    echo: Echo
    port: int  # where agents answer
    pace: Pace  # of all questions of this node


class Look(msgspec.Struct, frozen=True):
    """What was seen of a way."""

    asked: int  # questions
    answered: int
    round_trip: float | None = None  # seconds, of a small packet
    mtu: int = 0  # bytes of the largest packet that passes
    cause: Cause | None = None  # None: all is well
    note: str = ""  # what one should know even so


async def look_at(tools: Tools, key: PathKey, path: Probe, verdict: str) -> Look:
    """
    Look at the way `key`, which can be probed from here.

    The turn to ask the first question has been waited for.

    Args:
        verdict: of the last look; the other end is told.

    Raises:
        OSError: the address that is to be asked from is none of this node any more.
    """
    source = tools.here.source(key.version)
    assert source is not None
    with Prober(source, tools.port) as prober:
        return await _Looking(tools, prober, key, path, verdict).run()


class _Looking:
    """A look while it is going on."""

    def __init__(
        self, tools: Tools, prober: Prober, key: PathKey, path: Probe, verdict: str
    ) -> None:
        assert path.address is not None
        self._here, self._echo, self._port, self._pace = tools
        self._prober = prober
        self._key = key
        self._path = path
        self._verdict = verdict
        self._address = path.address
        self._carrier = self._here.carrier(key)
        is_wrapped = self._carrier.way is Way.UDP
        self._node_ip = path.outside if is_wrapped else path.node_ip
        self._small = SMALL + HEADERS[key.version]
        self._began = asyncio.get_running_loop().time()
        self._has_turn = True
        self._asked = 0
        self._answered = 0

    async def run(self) -> Look:
        """Look once."""
        observed = Observed(
            address=self._address,
            source=self._prober.source,
            node_ip=self._node_ip,
            carrier=self._carrier,
            lookup=await self._here.lookup(self._prober.source, self._address),
        )
        question, small = await self._ask_patiently(self._small)
        if not self._arrived(small):
            if small.error and small.reporter is None:  # by our own kernel: a route may be to come
                await asyncio.sleep(_TIMEOUT)
            told, small = await self._investigate(observed, question, small)
            if not self._arrived(small):
                found = cause(told)
                note = "" if found else "it answers no probes, but has our answers to its own"
                return Look(self._asked, self._answered, cause=found, note=note)
        seen = small.answer.seen if small.answer else str(self._prober.source)
        said = word(small.answer) if small.answer else Word()
        observed = replace(observed, is_answered=True, seen=seen, word=said)
        observed = await self._try_large(observed)
        return Look(
            self._asked,
            self._answered,
            small.round_trip,
            observed.passing,
            cause(observed),
            "" if small.answer else "its agent does not run; packets get there and back",
        )

    async def _try_large(self, observed: Observed) -> Observed:
        """Ask in the largest packet that fits, as far as the kernels on the way tell ours."""
        size = self._prober.mtu(self._address)
        for _ in range(_TRIES):  # a router may know better, and another one behind it
            _, reply = await self._ask_patiently(size)
            if reply.error != errno.EMSGSIZE or not 0 < reply.mtu < size:
                break
            size = reply.mtu
        if self._arrived(reply):
            return replace(observed, size=size, is_large_answered=True, passing=size)
        sizes = [s for step in _STEPS if (s := size - step) > self._small]
        (_, outward), *smaller = await asyncio.gather(
            self._ask(size, is_short=True), *map(self._ask, sizes)
        )
        passing = [s for s, (_, r) in zip(sizes, smaller, strict=True) if self._arrived(r)]
        return replace(
            observed,
            size=size,
            passing=max(passing, default=self._small),
            is_outward=not self._arrived(outward),
        )

    async def _investigate(
        self, observed: Observed, lost: Message, reply: Reply
    ) -> tuple[Observed, Reply]:
        """
        Find out more, after the question `lost` was, and ask once more at the same time.

        What has been mended meanwhile has no cause any more.
        """
        here, node_ip = self._here, self._node_ip
        filtered, dropped = here.dropped()
        direct, (_, again) = await asyncio.gather(
            self._ask_node(lost), self._ask_counted(self._small)
        )
        is_node_refusing = node_ip is not None and direct.is_refused_by(node_ip)
        if direct.answer or is_node_refusing or self._arrived(again):
            heard = self._echo.heard(self._key, since=self._began)
        else:
            heard = await self._echo.hear(self._key, since=self._began)
        said = direct.answer or heard
        observed = replace(
            observed,
            lookup=await here.lookup(self._prober.source, self._address),
            seen=direct.answer.about_seen if direct.answer else "",
            error=reply.error,
            reporter=str(reply.reporter or ""),
            is_node_answering=direct.answer is not None,
            is_node_refusing=is_node_refusing,
            is_heard=heard is not None,
            word=word(said) if said else Word(),
            rp_filtered=filtered,
            dropped=dropped,
            strict=await asyncio.to_thread(here.strict),
            published_key=self._path.public_key,
            own_key=here.public_key,
        )
        return observed, again

    async def _ask_node(self, lost: Message) -> Reply:
        """Ask at the node's own address whether `lost` arrived, and whatever else it knows."""
        target = self._node_ip
        source = self._here.node_ip(target.version) if target else None
        if target is None or source is None:
            return Reply()
        question = replace(lost, token=new_token(), about=lost.token)
        size = SMALL + HEADERS[target.version]
        try:
            with Prober(source, self._port) as prober:
                await self._turn()
                return await prober.ask(question, target, size, _TIMEOUT)
        except OSError:
            return Reply()

    async def _ask_patiently(self, size: int) -> tuple[Message, Reply]:
        """
        Ask until something arrives, a few times; with it the last question.

        Else what is known of why: of many that are lost, a router reports a few only.
        """
        known = Reply()
        for _ in range(_TRIES):
            question, reply = await self._ask_counted(size)
            if self._arrived(reply) or reply.error == errno.EMSGSIZE:
                return question, reply
            if reply.error and not known.reporter:
                known = reply
        return question, known

    async def _ask_counted(self, size: int) -> tuple[Message, Reply]:
        """Ask, and have that count for the loss."""
        question, reply = await self._ask(size)
        self._asked += 1
        self._answered += self._arrived(reply)
        return question, reply

    async def _ask(self, size: int, *, is_short: bool = False) -> tuple[Message, Reply]:
        await self._turn()
        about_us = self._here.message(self._key, self._verdict)
        question = replace(about_us, token=new_token(), is_short=is_short)
        return question, await self._prober.ask(question, self._address, size, _TIMEOUT)

    async def _turn(self) -> None:
        if not self._has_turn:
            await self._pace.turn()
        self._has_turn = False

    def _arrived(self, reply: Reply) -> bool:
        return reply.answer is not None or reply.is_refused_by(self._address)
