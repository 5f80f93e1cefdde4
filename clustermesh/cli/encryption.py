from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Annotated, Final

import msgspec
from cyclopts import App, Parameter

from clustermesh.errors import UserError
from clustermesh.settings import CommaSeparated
from clustermesh.status import DAEMON_STATUS, DaemonStatus, EncryptionStatus

from .client import AGENT, AgentAddress, Output, decode, get
from .status import ago

app = App(name="encryption", help="Show how nodes encrypt, and change their keys.")

StateDir = Annotated[Path, Parameter(env_var="CLUSTERMESH_STATE_DIR")]
Namespace = Annotated[str | None, Parameter(name=("--namespace", "-n"))]

_POLL: Final = 0.1  # seconds


@app.command
def status(
    *,
    agent: AgentAddress = AGENT,
    context: CommaSeparated = (),
    namespace: Namespace = None,
    kubeconfig: Path | None = None,
    output: Output = "table",
) -> int:
    """
    Print how this node encrypts, or every node of some clusters. Exit code 1 if one does not.

    Args:
        agent: Where the agent answers: http://HOST:PORT or unix:PATH.
        context: Contexts of a kubeconfig: their nodes, and not this machine.
        namespace: With --context: that of the installation; by default it is looked for.
        kubeconfig: With --context: the file; by default what kubectl reads.
    """
    if context:
        from .contexts.encryption import statuses_of  # noqa: PLC0415 - takes long to import

        said, failures = statuses_of(context, namespace=namespace, kubeconfig=kubeconfig)
    else:
        said, failures = [_ask(agent)], []
    return _report(said, failures, output)


@app.command
def rotate(
    *,
    agent: AgentAddress = AGENT,
    state_dir: StateDir = Path("/var/lib/clustermesh"),
    context: CommaSeparated = (),
    namespace: Namespace = None,
    kubeconfig: Path | None = None,
    wait_timeout: float = 60.0,
) -> None:
    """
    Have this node change its WireGuard key, or every node of some clusters. No packet is lost.

    The key that was used before is kept until every peer has moved to the new one: for as long as
    one is reached by the old key only, and `clustermesh encryption status` says by whom. A node
    that is still changing its key begins again afterwards.

    Args:
        agent: Where the agent answers: http://HOST:PORT or unix:PATH.
        state_dir: The directory in which the agent keeps its keys.
        context: Contexts of a kubeconfig: their nodes, one after the other, and not this machine.
        namespace: With --context: that of the installation; by default it is looked for.
        kubeconfig: With --context: the file; by default what kubectl reads.
        wait_timeout: Seconds to wait for each new key.
    """
    if context:
        from .contexts.encryption import rotate_all  # noqa: PLC0415

        rotate_all(context, namespace=namespace, kubeconfig=kubeconfig, timeout=wait_timeout)
        return
    said = _ask(agent)
    before = _encryption(said)
    assert said.cluster is not None, "an agent has a cluster"
    # Who can write there is root on this node, and may have it; nobody else can ask for it.
    request = state_dir / said.cluster.name / said.node / "rotate"
    try:
        request.touch(mode=0o600)
    except OSError as error:
        raise UserError(f"{request}: {error.strerror}", hint="run as root on the node") from error
    found = _wait(
        lambda: _encryption(_ask(agent)),
        lambda now: now.public_key != before.public_key,
        wait_timeout,
    )
    print(f"{said.cluster.name}/{said.node} has a new key: {found.public_key}")


def _ask(agent: str) -> DaemonStatus:
    return decode("agent", agent, get("agent", agent, "/status"), DAEMON_STATUS)


def _encryption(said: DaemonStatus) -> EncryptionStatus:
    if said.encryption is None:
        raise UserError(
            f"{_name(said)} does not encrypt",
            hint="start agents with --encryption wireguard, in all clusters",
        )
    return said.encryption


def _wait(
    look: Callable[[], EncryptionStatus],
    is_done: Callable[[EncryptionStatus], bool],
    timeout: float,
) -> EncryptionStatus:
    deadline = time.monotonic() + timeout
    while not is_done(found := look()):
        if time.monotonic() > deadline:
            reason = found.last_error or (
                f"it is still replacing the last one, and waits for {found.waits_for}"
                if found.previous_key
                else "see its log"
            )
            raise UserError(f"no new key within {timeout:g} s: {reason}")
        time.sleep(_POLL)
    return found


def _report(said: Sequence[DaemonStatus], failures: Sequence[str], output: str) -> int:
    """Print how nodes encrypt; 0 if all of them do."""
    plain = [_name(one) for one in said if one.encryption is None]
    troubles = [*failures, *(f"{name}: nothing is encrypted" for name in plain)]
    if output == "json":
        nodes = [{"node": _name(one), "encryption": one.encryption} for one in said]
        whole = {"nodes": nodes, "troubles": troubles}
        sys.stdout.buffer.write(msgspec.json.encode(whole) + b"\n")
    else:
        _print(said, troubles)
        if plain:
            print("hint: start agents with --encryption wireguard, in all clusters")
    return 1 if troubles else 0


def _print(said: Iterable[DaemonStatus], troubles: Iterable[str]) -> None:
    from rich.console import Console  # noqa: PLC0415 - not needed for JSON
    from rich.table import Table  # noqa: PLC0415
    from rich.text import Text  # noqa: PLC0415

    table = Table(box=None, pad_edge=False, header_style="bold")
    for header in ("NODE", "BY", "AGE", "PEERS", "PORTS", "KEY"):
        table.add_column(header, overflow="fold")  # half a key is of no use
    for one in said:
        if (found := one.encryption) is not None:
            table.add_row(
                _name(one),
                found.driver,
                ago(found.key_age),
                f"{found.answered}/{found.peers}",
                ",".join(map(str, found.ports)),
                f"{found.public_key}{' (new)' if found.previous_key else ''}",
            )
            if found.previous_key:
                table.add_row("", "", "", "", "", f"{found.previous_key} (until peers have moved)")
    console = Console()
    if not console.is_terminal:
        console = Console(width=10_000)  # see show.py
    if table.row_count:
        console.print(table)
    for one in said:
        if one.encryption and one.encryption.waits_for:
            waits = f"{_name(one)} is changing its key, and waits for {one.encryption.waits_for}"
            console.print(Text(waits), soft_wrap=True)
    for line in troubles:
        console.print(Text(line, "red"), soft_wrap=True)


def _name(said: DaemonStatus) -> str:
    return f"{said.cluster.name}/{said.node}" if said.cluster else said.node
