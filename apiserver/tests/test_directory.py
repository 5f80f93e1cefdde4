"""A directory of manifests, as people, editors and Kubernetes change one."""

from __future__ import annotations

import os
import shutil
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from apiserver.directory import Directory
from apiserver.tables import Objects
from clustermesh.model import ObjectName
from clustermesh.tests.etcd_server import running, until


class Manifests:
    """A directory, and what the apiserver knows of it."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.objects = Objects()
        self.source = Directory(path, self.objects)

    def write(self, name: str, *services: str) -> None:
        """Replace a file atomically."""
        self.put(name, "\n---\n".join(map(service, services)))

    def put(self, name: str, text: str) -> None:
        path = self.path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        fresh = path.with_name(f".{path.name}.fresh")
        fresh.write_text(text)
        fresh.rename(path)

    @property
    def services(self) -> dict[str, list[str]]:
        """The files that define each service, the one that counts first."""
        table = self.objects.services
        return {key.name: list(table.rows(key)) for key in sorted(table.keys())}

    @property
    def problems(self) -> list[str]:
        return [f"{where}: {error}" for where, error in self.source.problems]


def service(name: str) -> str:
    return f"apiVersion: v1\nkind: Service\nmetadata: {{name: {name}, namespace: shop}}\n"


@pytest.fixture
async def manifests(tmp_path: Path) -> AsyncIterator[Manifests]:
    """A directory that is followed, with the service `web` in `a.yaml`."""
    found = Manifests(tmp_path / "manifests")
    found.write("a.yaml", "web")
    async with running(found.source.run()):
        await until(lambda: found.source.listed)
        yield found


async def test_files_appear_change_and_go_away(manifests: Manifests) -> None:
    assert manifests.objects.services.is_ready
    manifests.write("below/b.yml", "db", "cache")
    await until(lambda: manifests.source.count == 3)
    manifests.write("below/b.yml", "cache")
    await until(lambda: manifests.services == {"cache": ["below/b.yml"], "web": ["a.yaml"]})
    (manifests.path / "a.yaml").unlink()
    await until(lambda: manifests.services == {"cache": ["below/b.yml"]})
    assert manifests.problems == []


async def test_other_files_are_passed_over(manifests: Manifests) -> None:
    for name in ("notes.txt", ".hidden.yaml", ".git/c.yaml", "b.yaml~"):
        manifests.put(name, "no: manifest")
    manifests.write("last.json", "db")
    await until(lambda: "db" in manifests.services)
    assert (list(manifests.services), manifests.problems) == (["db", "web"], [])


async def test_a_file_with_a_mistake_takes_nothing_away(manifests: Manifests) -> None:
    manifests.write("a.yaml", "web", "db")
    await until(lambda: list(manifests.services) == ["db", "web"])
    manifests.put("a.yaml", "\n---\n".join([service("cache"), service("WEB")]))
    await until(lambda: "cache" in manifests.services)
    assert list(manifests.services) == ["cache", "db", "web"]
    (problem,) = manifests.problems
    assert problem.startswith("a.yaml, document 2 (Service WEB): metadata.name: 'WEB'")
    manifests.write("a.yaml", "cache")
    await until(lambda: list(manifests.services) == ["cache"])
    assert manifests.problems == []


async def test_a_file_that_is_half_written_takes_nothing_away(manifests: Manifests) -> None:
    with (manifests.path / "a.yaml").open("w") as file:
        file.write("apiVersion: v1\nkind: Service\nmetadata: {name: we")
        file.flush()
        await until(lambda: bool(manifests.problems))
        assert manifests.problems[0].startswith("a.yaml: no YAML")
        assert list(manifests.services) == ["web"]
        file.write("b2, namespace: shop}\n")
        file.flush()
        await until(lambda: list(manifests.services) == ["web2"])
    assert manifests.problems == []


async def test_a_mistake_is_forgotten_with_its_file(manifests: Manifests) -> None:
    manifests.put("b.yaml", "5")
    await until(lambda: bool(manifests.problems))
    (manifests.path / "b.yaml").unlink()
    await until(lambda: not manifests.problems)


async def test_an_object_in_two_files_is_the_first_ones_until_that_lets_go(
    manifests: Manifests,
) -> None:
    manifests.write("0.yaml", "web")
    await until(lambda: manifests.services == {"web": ["a.yaml", "0.yaml"]})
    assert manifests.problems == ["0.yaml: Service shop/web is already defined in a.yaml"]
    manifests.write("a.yaml")
    await until(lambda: manifests.services == {"web": ["0.yaml"]})
    assert manifests.problems == []


class Witness:
    """Sees whether the service `web` was ever missing."""

    def __init__(self, manifests: Manifests) -> None:
        self._table = manifests.objects.services
        self.was_missing = False
        self._table.listeners.add(self)

    def touch(self, key: ObjectName) -> None:
        self.was_missing |= key.name == "web" and self._table.first(key) is None

    def wake(self) -> None:
        """Being ready changes no row."""


async def test_an_object_that_moves_to_another_file_is_never_missing(manifests: Manifests) -> None:
    witness = Witness(manifests)
    (manifests.path / "a.yaml").rename(manifests.path / "z.yaml")
    await until(lambda: manifests.services == {"web": ["z.yaml"]})
    assert not witness.was_missing


async def test_a_directory_that_goes_away_takes_nothing_away(manifests: Manifests) -> None:
    elsewhere = manifests.path.with_name("elsewhere")
    manifests.path.rename(elsewhere)
    await until(lambda: bool(manifests.problems))
    assert manifests.problems == [f"{manifests.path}: No such file or directory"]
    assert list(manifests.services) == ["web"]
    shutil.rmtree(elsewhere)
    manifests.write("b.yaml", "db")
    await until(lambda: list(manifests.services) == ["db"])
    assert manifests.problems == []


async def test_a_directory_that_is_not_there_yet_is_waited_for(tmp_path: Path) -> None:
    late = Manifests(tmp_path / "late")
    async with running(late.source.run()):
        await until(lambda: bool(late.problems))
        assert (late.source.listed, late.objects.services.is_ready) == (False, False)
        late.write("a.yaml", "web")
        await until(lambda: list(late.services) == ["web"])
        assert late.objects.services.is_ready


async def test_a_mounted_config_map_is_swapped_as_a_whole(tmp_path: Path) -> None:
    mounted = Manifests(tmp_path / "mounted")
    for version, name in (("..v1", "web"), ("..v2", "db")):
        (mounted.path / version).mkdir(parents=True)
        (mounted.path / version / "a.yaml").write_text(service(name))
    (mounted.path / "..data").symlink_to("..v1")
    (mounted.path / "a.yaml").symlink_to("..data/a.yaml")
    async with running(mounted.source.run()):
        await until(lambda: list(mounted.services) == ["web"])
        (mounted.path / "..new").symlink_to("..v2")
        (mounted.path / "..new").rename(mounted.path / "..data")
        await until(lambda: mounted.services == {"db": ["a.yaml"]})
        assert mounted.problems == []


async def test_a_file_that_cannot_be_read_is_named_and_takes_nothing_away(
    manifests: Manifests,
) -> None:
    (manifests.path / "dangling.yaml").symlink_to("nowhere")
    (manifests.path / "loop.yaml").symlink_to("loop.yaml")
    (manifests.path / "here").symlink_to(".")
    manifests.write("b.yaml", "db")
    await until(lambda: manifests.services == {"db": ["b.yaml"], "web": ["a.yaml"]})
    assert manifests.problems == ["loop.yaml: cannot be read: Too many levels of symbolic links"]


async def test_a_pipe_is_named_and_does_not_hold_up_the_others(manifests: Manifests) -> None:
    os.mkfifo(manifests.path / "pipe.yaml")
    await until(lambda: manifests.problems == ["pipe.yaml: is no regular file"])
    manifests.write("b.yaml", "db")
    await until(lambda: manifests.services == {"db": ["b.yaml"], "web": ["a.yaml"]})


async def test_a_file_whose_name_is_no_text_is_read_like_any_other(manifests: Manifests) -> None:
    odd = Path(os.fsdecode(os.fsencode(manifests.path) + b"/\xff.yaml"))
    odd.write_text(service("db"))
    await until(lambda: manifests.services == {"db": ["\\xff.yaml"], "web": ["a.yaml"]})
    manifests.write("a.yaml", "shop")
    await until(lambda: manifests.services == {"db": ["\\xff.yaml"], "shop": ["a.yaml"]})
    await until(lambda: not manifests.problems)
