"""
Import what a daemon uses of a library, without what it never does.

A daemon runs on every node, and half of an idle agent's memory is Python modules: these three save
it 14 MB of 79. What is kept out is kept out of that one import only; whoever imports it afterwards,
in the same process, gets the real one. What is there already stays.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator, Mapping
from importlib.machinery import ModuleSpec
from importlib.metadata import version
from importlib.util import find_spec, module_from_spec
from types import ModuleType
from typing import cast


@contextlib.contextmanager
def without(*names: str) -> Iterator[None]:
    """Import as if the modules `names`, which a library can do without, were not installed."""
    with _standing_in(dict.fromkeys(names)):
        yield


@contextlib.contextmanager
def hollow(*names: str) -> Iterator[None]:
    """
    Import with empty classes for all that the modules `names` have.

    For what a library derives from, or makes an instance of, for parts of it that we never use. A
    package is named before its submodules.
    """
    modules = {name: _Hollow(name) for name in names}
    for name, module in modules.items():
        package, _, child = name.rpartition(".")
        if package in modules:
            setattr(modules[package], child, module)
    with _standing_in(modules):
        yield


@contextlib.contextmanager
def bare_package(name: str) -> Iterator[None]:
    """Import submodules of `name` beside a package that is empty but for its `__version__`."""
    found = find_spec(name)
    if found is None:
        yield
        return
    spec = ModuleSpec(name, None, is_package=True)
    spec.submodule_search_locations = found.submodule_search_locations
    bare = module_from_spec(spec)
    vars(bare)["__version__"] = version(name)
    with _standing_in({name: bare}):
        yield


class _Hollow(ModuleType):
    """Has every public name: an empty class."""

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self.__path__: list[str] = []  # a package, without submodules of its own

    def __getattr__(self, name: str) -> type[object]:
        if name.startswith("__"):
            raise AttributeError(name)
        return type(name, (), {})


@contextlib.contextmanager
def _standing_in(modules: Mapping[str, ModuleType | None]) -> Iterator[None]:
    known = cast("dict[str, ModuleType | None]", sys.modules)
    mine = {name: module for name, module in modules.items() if name not in known}
    known.update(mine)
    try:
        yield
    finally:
        for name in mine:
            del known[name]
