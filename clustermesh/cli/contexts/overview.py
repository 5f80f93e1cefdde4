"""
A cluster at a glance: what its daemons say, summed up. Pure: answers in, an overview out.

An overview is also what `clustermesh status --context … -o json` prints.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence

import msgspec

from clustermesh.cli.status import troubles_of, warnings_of
from clustermesh.status import ClusterPaths, DaemonStatus, Remote, RemoteState

from .pods import Answer

_TOLD = 8
"""Troubles of agents that are told one by one: with one cause, a thousand nodes have it."""


class PeerView(msgspec.Struct, frozen=True):
    """A peer, as the agents of a cluster see it."""

    name: str
    id: int | None
    ready: int  # agents that have read all of it
    agents: int  # that should
    nodes: int  # the most that any of them has read; so the rest
    services: int
    identities: int
    endpoints: int
    last_failure: str = ""  # with the node that says so, and the cause
    paths: int = 0  # ways from all nodes to all of the peer's
    paths_well: int = 0
    worst_path: str = ""  # why one fails, with the node that says so


class Overview(msgspec.Struct, frozen=True, kw_only=True):
    """A cluster."""

    context: str
    namespace: str = ""
    name: str = ""  # empty: nothing could be found out
    id: int = 0
    version: str = ""
    apiservers_ready: int = 0
    apiservers: int = 0
    agents_ready: int = 0
    agents: int = 0
    leader: str = ""  # the pod of the apiserver that gives identities; empty: not known
    tables: Mapping[str, int] = {}  # rows of what the cluster itself shares
    peers: list[PeerView] = []
    troubles: list[str] = []  # empty: all is well
    warnings: list[str] = []


class Seen(msgspec.Struct, frozen=True, kw_only=True):
    """What an overview is made of."""

    context: str
    namespace: str
    name: str
    id: int
    version: str
    peers: Sequence[str]  # it should be connected with these
    apiservers: int  # replicas that should run
    agents: int  # nodes that should have one
    apiserver_answers: Sequence[Answer]
    agent_answers: Sequence[Answer]


def overview(seen: Seen) -> Overview:
    """Sum up a cluster."""
    agents = [answer.status for answer in seen.agent_answers if answer.status]
    apiservers = [answer.status for answer in seen.apiserver_answers if answer.status]
    return Overview(
        context=seen.context,
        namespace=seen.namespace,
        name=seen.name,
        id=seen.id,
        version=seen.version,
        apiservers=seen.apiservers,
        apiservers_ready=sum(status.ready for status in apiservers),
        agents=seen.agents,
        agents_ready=sum(status.ready for status in agents),
        leader=next(filter(None, (s.source.leader_host for s in apiservers if s.source)), ""),
        tables=_tables(apiservers),
        peers=[_peer(name, seen) for name in _peer_names(seen.peers, agents)],
        troubles=[*_troubles(seen)],
        warnings=[*_few(_warnings(seen))],
    )


def _tables(apiservers: Iterable[DaemonStatus]) -> dict[str, int]:
    """The rows of each table, by the replica that has most."""
    most: dict[str, int] = defaultdict(int)
    for status in apiservers:
        for name, table in status.tables.items():
            most[name] = max(most[name], table.rows)
    return dict(most)


def _peer_names(wanted: Iterable[str], agents: Iterable[DaemonStatus]) -> list[str]:
    return sorted({*wanted, *(remote.cluster for status in agents for remote in status.remotes)})


def _peer(name: str, seen: Seen) -> PeerView:
    views = list(_views(name, seen.agent_answers))
    remotes = [remote for _, remote in views]
    ways = list(_ways(name, seen.agent_answers))
    failing = [view for view in views if view[1].last_error is not None]
    worst = min(
        failing, key=lambda view: (view[1].state is RemoteState.READY, view[1].since), default=None
    )
    return PeerView(
        name=name,
        id=next((remote.id for remote in remotes if remote.id is not None), None),
        ready=sum(remote.state is RemoteState.READY for remote in remotes),
        agents=seen.agents,
        nodes=max((remote.nodes for remote in remotes), default=0),
        services=max((remote.services for remote in remotes), default=0),
        identities=max((remote.identities for remote in remotes), default=0),
        endpoints=max((remote.endpoints for remote in remotes), default=0),
        last_failure=f"{worst[0]}: {worst[1].last_error}" if worst else "",
        paths=sum(way.paths for _, way in ways),
        paths_well=sum(way.well for _, way in ways),
        worst_path=next((f"{who}: {way.worst}" for who, way in ways if way.worst), ""),
    )


def _ways(name: str, answers: Iterable[Answer]) -> Iterator[tuple[str, ClusterPaths]]:
    """How each agent gets packets to a peer, with the name of its node."""
    for answer in answers:
        paths = answer.status.paths if answer.status else None
        for one in paths.clusters if paths else ():
            if one.cluster == name:
                yield _who(answer), one


def _views(name: str, answers: Iterable[Answer]) -> Iterator[tuple[str, Remote]]:
    """How each agent sees a peer, with the name of its node."""
    for answer in answers:
        for remote in answer.status.remotes if answer.status else ():
            if remote.cluster == name:
                yield _who(answer), remote


def _troubles(seen: Seen) -> Iterator[str]:
    if not seen.apiservers:
        yield "no apiserver is wanted: replicas is 0"
    if len(seen.apiserver_answers) < seen.apiservers:
        yield f"{len(seen.apiserver_answers)} of {seen.apiservers} apiservers are there"
    if not seen.agents:
        yield "no node has an agent: does the DaemonSet select any?"
    if len(seen.agent_answers) < seen.agents:
        yield f"{len(seen.agent_answers)} of {seen.agents} agents are there"
    yield from _few(_of_daemons(seen.apiserver_answers))
    yield from _few(_of_daemons(seen.agent_answers))
    yield from _few(_unconnected(seen))


def _of_daemons(answers: Iterable[Answer]) -> Iterator[tuple[str, str]]:
    for answer in answers:
        if answer.status is None:
            yield _who(answer), f"does not answer: {answer.failure}"
        else:
            for text in troubles_of(answer.status):
                yield _who(answer), text


def _unconnected(seen: Seen) -> Iterator[tuple[str, str]]:
    """Agents that have not heard of a peer yet."""
    for answer in seen.agent_answers:
        if answer.status is not None:
            known = {remote.cluster for remote in answer.status.remotes}
            for name in sorted(set(seen.peers) - known):
                yield _who(answer), f"has not heard of {name} yet"


def _warnings(seen: Seen) -> Iterator[tuple[str, str]]:
    for answer in (*seen.apiserver_answers, *seen.agent_answers):
        if answer.status is not None:
            for text in warnings_of(answer.status):
                yield _who(answer), text


def _who(answer: Answer) -> str:
    return answer.pod.spec.node_name or answer.pod.metadata.name


def _few(lines: Iterable[tuple[str, str]]) -> Iterator[str]:
    """The first lines, and how many more there are."""
    all_lines = [f"{who}: {text}" for who, text in lines]
    yield from all_lines[:_TOLD]
    if more := len(all_lines[_TOLD:]):
        yield f"{more} more like these"


def facts(one: Overview) -> str:
    """What a cluster shares, and who leads there, in words."""
    shared = (f"{rows} {name}" for name, rows in one.tables.items())
    words = ", ".join(shared) or "nothing is known of what it shares"
    return f"{words}, leader {one.leader}" if one.leader else words
