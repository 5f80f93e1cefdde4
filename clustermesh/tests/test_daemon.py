from __future__ import annotations

import asyncio
import errno
import io
import json
import logging
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

import aiohttp
import pytest
import structlog

from clustermesh.daemon import Daemon, configure_logging, serve
from clustermesh.errors import UserError
from clustermesh.settings import Address, TcpAddress, UnixAddress
from clustermesh.state import Reconciler, Table
from clustermesh.status import Remote, RemoteState, RowFailure


class Clock:
    """Seconds that pass when the test says so."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def daemon(clock: Clock) -> Daemon:
    return Daemon("agent", "1.2.3", clock=clock)


class Site:
    """A served daemon, and a client of it."""

    def __init__(self, session: aiohttp.ClientSession, base: str) -> None:
        self._session = session
        self._base = base

    async def get(self, path: str) -> tuple[int, str]:
        async with self._session.get(self._base + path) as response:
            return response.status, await response.text()

    async def json(self, path: str) -> Any:
        status, text = await self.get(path)
        assert status == 200, text
        return json.loads(text)


@pytest.fixture
async def site(daemon: Daemon) -> AsyncIterator[Site]:
    async with (
        serve(daemon, TcpAddress("127.0.0.1", 0)) as address,
        aiohttp.ClientSession() as session,
    ):
        yield Site(session, f"http://{address}")


class FullMap:
    """A target that takes two rows and no more, as a BPF map does."""

    def __init__(self) -> None:
        self.held: dict[str, str] = {}

    async def actual(self) -> Mapping[str, str]:
        return dict(self.held)

    async def apply(
        self, puts: Mapping[str, str], deletes: Collection[str]
    ) -> Mapping[str, OSError]:
        for key in deletes:
            self.held.pop(key, None)
        failed = {}
        for key in sorted(puts):
            if key in self.held or len(self.held) < 2:
                self.held[key] = puts[key]
            else:
                failed[key] = OSError(errno.E2BIG, "the map is full")
        return failed

    async def drift(self) -> AsyncIterator[Collection[str] | None]:
        return
        yield


def render(key: str, rows: Mapping[str, str]) -> Iterator[dict[str, Any]]:
    for origin, value in rows.items():
        yield {"name": key, "cluster": origin, "value": value}


async def test_it_is_alive_at_once_and_ready_when_every_part_is(daemon: Daemon, site: Site) -> None:
    missing: list[str | None] = ["etcd has not answered"]
    daemon.add_readiness("local", lambda: missing[0])
    daemon.add_readiness("maps", lambda: None)

    assert await site.get("/healthz") == (200, "ok\n")
    assert await site.get("/readyz") == (503, "local: etcd has not answered\n")
    missing[0] = None
    assert await site.get("/readyz") == (200, "ready\n")


async def test_status_says_what_every_part_says(daemon: Daemon, site: Site, clock: Clock) -> None:
    table: Table[str, str] = Table("nodes")
    table.writer("east").put("node1", "x")
    daemon.add_table("nodes", table, render)
    daemon.add_status("cluster", lambda: {"name": "west", "id": 2})
    daemon.add_remotes(lambda: [Remote(cluster="east", id=1, state=RemoteState.READY, nodes=1)])
    daemon.add_readiness("local", lambda: "not listed")
    clock.now += 12.5

    said = await site.json("/status")

    assert said.pop("remotes")[0] | {"since": 0} == {
        "cluster": "east",
        "id": 1,
        "state": "ready",
        "since": 0,
        "last_error": None,
        "nodes": 1,
        "services": 0,
        "identities": 0,
        "endpoints": 0,
        "bad_rows": 0,
        "last_bad_row": None,
    }
    assert said == {
        "daemon": "agent",
        "version": "1.2.3",
        "uptime": 12.5,
        "ready": False,
        "reasons": ["local: not listed"],
        "cluster": {"name": "west", "id": 2},
        "tables": {"nodes": {"rows": 1, "failures": 0, "bad_rows": 0}},
    }


async def test_a_table_shows_the_rows_of_every_origin_and_what_failed_and_why(
    daemon: Daemon, site: Site
) -> None:
    table: Table[str, str] = Table("colours")
    east, west = table.writer("east"), table.writer("west")
    east.replace({"a": "red", "b": "green", "c": "blue"})
    west.replace({"a": "black"})
    reconciler = Reconciler(table, FullMap(), lambda _, row: row, retry_min=3600, retry_max=3600)
    bad = RowFailure(key="d", origin="west", error="not a colour")
    daemon.add_table("colours", table, render, reconcilers=[reconciler], bad_rows=lambda: [bad])

    task = asyncio.create_task(reconciler.run(), name="reconciler")
    await reconciler.synced.wait()
    reply = await site.json("/tables/colours")
    status = await site.json("/status")
    metrics = (await site.get("/metrics"))[1]
    task.cancel()

    assert sorted(" ".join(row.values()) for row in reply["rows"]) == [
        "a east red",
        "a west black",
        "b east green",
        "c east blue",
    ]
    full, refused = reply["failures"]
    assert 3500 < full.pop("retry_in") <= 3600
    assert full == {
        "key": "c",
        "error": "[Errno 7] the map is full",
        "origin": "",
        "attempts": 1,
    }
    assert refused["error"] == "not a colour"
    assert status["tables"]["colours"] == {"rows": 3, "failures": 1, "bad_rows": 1}
    assert 'clustermesh_table_rows{table="colours"} 3.0' in metrics
    assert 'clustermesh_reconciler_failures{table="colours"} 1.0' in metrics
    assert 'clustermesh_reconciler_repairs_total{table="colours"} 0.0' in metrics


async def test_there_is_a_list_of_tables_and_an_unknown_one_is_told(
    daemon: Daemon, site: Site
) -> None:
    daemon.add_table("nodes", Table[str, str]("nodes"), render)
    assert await site.json("/tables") == ["nodes"]
    assert await site.json("/tables/nodes") == {"rows": [], "failures": []}
    assert await site.get("/tables/noodles") == (404, "agent has no table 'noodles', only nodes\n")


async def test_a_daemon_that_was_told_nothing_yet_is_not_ready(daemon: Daemon, site: Site) -> None:
    status, body = await site.get("/readyz")
    assert (status, body) == (503, "it is starting\n")
    daemon.add_readiness("etcd", lambda: None)
    assert (await site.get("/readyz"))[0] == 200


async def test_metrics_tell_the_state_of_every_remote_and_of_the_process(
    daemon: Daemon, site: Site
) -> None:
    daemon.add_readiness("etcd", lambda: None)
    daemon.add_remotes(
        lambda: [Remote(cluster="east", state=RemoteState.LISTING, services=4, bad_rows=2)]
    )
    metrics = (await site.get("/metrics"))[1]
    for line in (
        'clustermesh_build_info{daemon="agent",version="1.2.3"} 1.0',
        "clustermesh_ready 1.0",
        'clustermesh_remote_state{cluster="east",state="listing"} 1.0',
        'clustermesh_remote_state{cluster="east",state="ready"} 0.0',
        'clustermesh_remote_rows{cluster="east",table="services"} 4.0',
        'clustermesh_remote_bad_rows{cluster="east"} 2.0',
        "process_resident_memory_bytes",
    ):
        assert line in metrics


async def test_50000_rows_are_served_while_the_loop_goes_on_turning(
    daemon: Daemon, site: Site
) -> None:
    table: Table[str, str] = Table("services")
    table.writer("east").replace({f"default/service-{n}": "10.0.0.1:80" for n in range(50_000)})
    daemon.add_table("services", table, render)
    gaps: list[float] = []

    async def turn() -> None:
        last = time.process_time()  # not what a busy machine takes away
        while True:
            await asyncio.sleep(0)
            gaps.append(time.process_time() - last)
            last = time.process_time()

    turning = asyncio.create_task(turn(), name="turn")
    status, text = await site.get("/tables/services")
    turning.cancel()

    assert (status, len(json.loads(text)["rows"])) == (200, 50_000)
    assert max(gaps) < sum(gaps) / 4


async def test_a_row_that_goes_while_its_table_is_read_is_left_out(daemon: Daemon) -> None:
    table: Table[str, str] = Table("nodes")
    writer = table.writer("east")
    writer.replace({"node1": "x", "node2": "y"})
    daemon.add_table("nodes", table, render)
    rows = daemon.tables["nodes"].rows()
    next(rows)
    writer.replace({})
    assert list(rows) == []


async def test_a_taken_port_is_one_clear_line(daemon: Daemon) -> None:
    async with serve(daemon, TcpAddress("127.0.0.1", 0)) as address:
        with pytest.raises(UserError) as caught:
            await enter(daemon, address)
    assert str(caught.value) == (
        f"cannot listen on {address}: it is in use "
        "(stop what listens there, or choose another with --listen)"
    )


async def test_a_unix_socket_is_served_and_not_taken_from_a_running_daemon(
    daemon: Daemon, tmp_path: Path
) -> None:
    address = UnixAddress(tmp_path / "agent.sock")
    connector = aiohttp.UnixConnector(str(address.path))
    async with (
        serve(daemon, address),
        aiohttp.ClientSession(connector=connector) as session,
    ):
        with pytest.raises(UserError, match="it is in use"):
            await enter(daemon, address)
        assert await Site(session, "http://agent").get("/healthz") == (200, "ok\n")


async def test_a_socket_that_a_killed_daemon_left_behind_is_replaced(
    daemon: Daemon, tmp_path: Path
) -> None:
    path = tmp_path / "agent.sock"
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(path))
    assert path.is_socket()
    await enter(daemon, UnixAddress(path))
    assert not path.exists()


async def test_an_address_that_cannot_be_bound_is_one_clear_line(
    daemon: Daemon, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=r"cannot listen on 192\.0\.2\.1:80: "):
        await enter(daemon, TcpAddress("192.0.2.1", 80))
    with pytest.raises(UserError, match=r"cannot listen on unix:.*: No such file"):
        await enter(daemon, UnixAddress(tmp_path / "none" / "agent.sock"))


async def enter(daemon: Daemon, address: Address) -> None:
    async with serve(daemon, address):
        pass


@pytest.fixture
def log_stream() -> Iterator[io.StringIO]:
    root = logging.getLogger()
    handlers, level = root.handlers, root.level
    yield io.StringIO()
    root.handlers = handlers
    root.setLevel(level)
    logging.captureWarnings(capture=False)
    structlog.reset_defaults()


def test_json_logs_are_an_object_a_line_from_wherever_they_come(log_stream: io.StringIO) -> None:
    configure_logging("info", "json", log_stream)
    logging.getLogger("a.library").warning("lost %s", "etcd", extra={"cluster": "east"})
    structlog.get_logger("ours").info("connected", cluster="east", id=1)
    logging.getLogger("a.library").debug("not asked for")
    try:
        raise ValueError("bad")
    except ValueError:
        logging.getLogger("a.library").exception("broken")

    first, second, third = map(json.loads, log_stream.getvalue().splitlines())

    assert first.pop("timestamp").endswith("Z")
    assert first == {
        "event": "lost etcd",
        "level": "warning",
        "logger": "a.library",
        "cluster": "east",
    }
    assert (second["event"], second["cluster"], second["id"]) == ("connected", "east", 1)
    assert "ValueError: bad" in third["exception"]


def test_text_logs_are_a_line_each_without_colours_where_nobody_sees_them(
    log_stream: io.StringIO,
) -> None:
    configure_logging("info", "text", log_stream)
    logging.getLogger("a.library").warning("lost %s", "etcd", extra={"cluster": "east"})
    (line,) = log_stream.getvalue().splitlines()
    assert "[warning" in line
    assert "lost etcd" in line
    assert "cluster=east" in line
    assert "\x1b" not in line


PROGRAM = '''
import asyncio, sys
from dataclasses import dataclass
from clustermesh.daemon import run
from clustermesh.errors import UserError
from clustermesh.settings import DaemonSettings

@dataclass(frozen=True, kw_only=True, slots=True)
class Settings(DaemonSettings):
    """A daemon of a test."""
    listen: str = "127.0.0.1:0"
    fate: str = "serve"

async def main(settings, daemon):
    async with asyncio.TaskGroup() as tasks:
        if settings.fate == "user error":
            tasks.create_task(fail(UserError("no root", hint="use sudo")), name="fail")
        if settings.fate == "bug":
            tasks.create_task(fail(KeyError("oops")), name="fail")
        if settings.fate == "serve":
            tasks.create_task(serve(), name="serve")

async def fail(error):
    raise error

async def serve():
    print("serving", flush=True)
    try:
        await asyncio.Event().wait()
    finally:
        print("stopped", "rich" in sys.modules, flush=True)

sys.exit(run("testd", Settings, main))
'''


def start(*flags: str) -> subprocess.Popen[str]:
    given = [] if "--cluster-id" in flags else ["--cluster-id", "1"]
    return subprocess.Popen(
        [sys.executable, "-c", PROGRAM, "--cluster-name", "east", *given, *flags],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=Path(__file__).parents[2],
        env={k: v for k, v in os.environ.items() if not k.startswith("CLUSTERMESH_")},
    )


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_stops_cleanly_and_rich_was_never_loaded(number: signal.Signals) -> None:
    with start() as process:
        assert process.stdout
        assert process.stdout.readline() == "serving\n"
        process.send_signal(number)
        out, err = process.communicate(timeout=20)
    assert (process.returncode, out) == (0, "stopped False\n")
    assert f"{number.name}: stopping, all state is kept" in err


@pytest.mark.parametrize(
    ("flags", "code", "last_line"),
    [
        (["--fate", "return"], 0, "answers on 127.0.0.1:"),
        (["--fate", "user error"], 1, "clustermesh-testd: no root (use sudo)"),
        (["--fate", "bug"], 1, "KeyError: 'oops'"),
        (["--listen", "x"], 1, "clustermesh-testd: 'x' is no address (write HOST:PORT"),
        (["--max-connected-clusters", "1"], 2, 'clustermesh-testd: Invalid value "1" for'),
        (["--cluster-id", "300"], 2, "clustermesh-testd: cluster id 300 is out of range"),
    ],
)
def test_the_exit_code_and_the_last_line_say_who_is_to_blame(
    flags: list[str], code: int, last_line: str
) -> None:
    with start(*flags) as process:
        _, err = process.communicate(timeout=20)
    assert process.returncode == code, err
    # A traceback of a group of exceptions ends with a line that only closes the frame.
    assert last_line in [line for line in err.splitlines() if "----" not in line][-1]
    assert ("Traceback" in err) == ("bug" in flags)
