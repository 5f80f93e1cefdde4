"""A cluster at a glance: what its daemons say, summed up."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from clustermesh.cli.contexts.overview import PeerView, Seen, facts, overview
from clustermesh.cli.contexts.pods import Answer, Pod
from clustermesh.status import (
    ClusterPaths,
    DaemonStatus,
    PathsStatus,
    Remote,
    RemoteState,
    SourceStatus,
    TableStatus,
)


def pod(name: str, **status: Any) -> Pod:
    fields = {
        "metadata": {"name": name},
        "spec": {"nodeName": name if name.startswith("node") else ""},
        "status": {"phase": "Running", **status},
    }
    return msgspec.convert(fields, Pod)


def agent(node: str, *remotes: Remote, paths: PathsStatus | None = None) -> Answer:
    return Answer(
        pod(node),
        DaemonStatus(daemon="agent", version="1", ready=True, remotes=[*remotes], paths=paths),
    )


def west(state: RemoteState = RemoteState.READY, **fields: Any) -> Remote:
    return Remote(cluster="west", id=2, state=state, since=9, **fields)


APISERVER = Answer(
    pod("apiserver-x"),
    DaemonStatus(
        daemon="apiserver", version="1", ready=True, tables={"services": TableStatus(4, 0)}
    ),
)


def seen(*agents: Answer, **fields: Any) -> Seen:
    usual: dict[str, Any] = {
        "context": "k-east",
        "namespace": "mesh",
        "name": "east",
        "id": 1,
        "version": "1",
        "peers": ["west"],
        "apiservers": 1,
        "agents": len(agents),
        "apiserver_answers": [APISERVER],
        "agent_answers": agents,
    }
    return Seen(**{**usual, **fields})


def test_all_is_well() -> None:
    one = overview(seen(agent("node1", west(nodes=2, services=3)), agent("node2", west(nodes=2))))
    assert one.troubles == one.warnings == []
    assert (one.apiservers_ready, one.agents_ready, one.tables) == (1, 2, {"services": 4})
    assert one.peers == [PeerView("west", 2, 2, 2, nodes=2, services=3, identities=0, endpoints=0)]


def test_the_replica_that_leads_is_told() -> None:
    led = [
        Answer(
            pod(name),
            DaemonStatus(
                daemon="apiserver",
                version="1",
                ready=True,
                tables={"services": TableStatus(4, 0)},
                source=SourceStatus(kind="kube", listed=True, leader=leader),
            ),
        )
        for name, leader in (("apiserver-x", ""), ("apiserver-y", "apiserver-x_0b1c"))
    ]
    one = overview(seen(apiservers=2, apiserver_answers=led, peers=[]))
    assert facts(one) == "4 services, leader apiserver-x"


def test_ways_that_fail_are_told_with_the_node_and_the_worst_is_shown_with_the_peer() -> None:
    cause = "UDP port 8472 (VXLAN) is blocked on the way to 192.0.2.2"
    bad = PathsStatus(
        clusters=[ClusterPaths(cluster="west", paths=4, well=3, failing=1, worst=cause)],
        failing=[f"west/node1 over IPv4: {cause}"],
    )
    good = PathsStatus(clusters=[ClusterPaths(cluster="west", paths=4, well=4)])
    one = overview(seen(agent("node1", west(), paths=good), agent("node2", west(), paths=bad)))
    assert one.troubles == [f"node2: west/node1 over IPv4: {cause}"]
    (peer,) = one.peers
    assert (peer.paths, peer.paths_well, peer.worst_path) == (8, 7, f"node2: {cause}")


def test_a_peer_that_one_node_does_not_reach_is_told_with_node_and_cause() -> None:
    failed = west(RemoteState.FAILED, last_error="connection refused")
    one = overview(seen(agent("node1", west(last_error="long ago")), agent("node2", failed)))
    assert one.troubles == ["node2: west is failed for 9 s: connection refused"]
    (peer,) = one.peers
    assert (peer.ready, peer.agents) == (1, 2)
    assert peer.last_failure == "node2: connection refused"


def test_a_peer_that_nobody_has_heard_of_is_told() -> None:
    one = overview(seen(agent("node1")))
    assert one.troubles == ["node1: has not heard of west yet"]
    assert [(peer.name, peer.ready) for peer in one.peers] == [("west", 0)]


@pytest.mark.parametrize(
    ("fields", "trouble"),
    [
        ({"agents": 2}, "1 of 2 agents are there"),
        (
            {"agents": 0, "agent_answers": []},
            "no node has an agent: does the DaemonSet select any?",
        ),
        ({"apiserver_answers": []}, "0 of 1 apiservers are there"),
        ({"apiservers": 0, "apiserver_answers": []}, "no apiserver is wanted: replicas is 0"),
        (
            {"apiserver_answers": [Answer(pod("apiserver-x"), None, "connection refused")]},
            "apiserver-x: does not answer: connection refused",
        ),
    ],
)
def test_each_trouble_is_a_line(fields: dict[str, Any], trouble: str) -> None:
    assert overview(seen(agent("node1", west()), **fields)).troubles == [trouble]


def test_one_cause_on_many_nodes_is_told_some_times_and_counted() -> None:
    failed = west(RemoteState.FAILED, last_error="timed out")
    one = overview(seen(*(agent(f"node{n}", failed) for n in range(20))))
    assert len(one.troubles) == 9
    assert one.troubles[-1] == "12 more like these"


@pytest.mark.parametrize(
    ("status", "obstacle"),
    [
        ({}, ""),
        ({"phase": "Pending"}, "it is Pending"),
        (
            {
                "phase": "Pending",
                "conditions": [{"type": "S", "status": "False", "message": "no node"}],
            },
            "no node",
        ),
        (
            {
                "containerStatuses": [
                    {"name": "etcd", "state": {"waiting": {"reason": "ImagePullBackOff"}}}
                ]
            },
            "etcd: ImagePullBackOff",
        ),
        (
            {
                "containerStatuses": [
                    {"name": "agent", "state": {"terminated": {"exitCode": 2, "reason": "Error"}}}
                ]
            },
            "agent ended with exit code 2: Error",
        ),
    ],
)
def test_why_a_pod_does_not_run(status: dict[str, Any], obstacle: str) -> None:
    assert pod("x", **status).obstacle == obstacle
