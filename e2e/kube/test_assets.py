from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from clustermesh.sandbox.cache import UnavailableError
from clustermesh.sandbox.kube.programs import PROGRAMS, kube_assets, make


@pytest.fixture(autouse=True)
def bare_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No Go, nothing in the cache, nothing brought."""
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.delenv("KUBEBUILDER_ASSETS", raising=False)


def test_what_is_missing_is_named_with_what_to_do(tmp_path: Path) -> None:
    hint = r"install Go 1\.\S+ or newer, or set KUBEBUILDER_ASSETS"
    with pytest.raises(UnavailableError, match=hint):
        kube_assets()
    with pytest.raises(UnavailableError, match=f"no Go to build kube-apiserver.*{hint}"):
        make()
    _write_program(tmp_path / "bin/go", "echo go.mod needs another Go >&2; exit 1")
    with pytest.raises(UnavailableError, match=f"go.mod needs another Go.*{hint}"):
        make()
    with pytest.raises(UnavailableError, match="make test-kube makes them"):
        kube_assets()


def test_the_command_says_by_its_exit_code_that_they_cannot_be_had() -> None:
    run = _run_command()
    assert "no Go to build kube-apiserver" in run.communicate()[1]
    assert run.returncode == 69


def test_programs_that_the_user_brings_are_taken(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _bring(tmp_path / "brought", monkeypatch, *PROGRAMS, "etcd")
    made = make()
    assert made == kube_assets()
    assert {path.name for path in made.iterdir()} == {*PROGRAMS, "etcd"}
    assert all(path.resolve().parent == tmp_path / "brought" for path in made.iterdir())


def test_other_programs_are_kept_in_another_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _bring(tmp_path / "old", monkeypatch, *PROGRAMS)
    old = make()
    _bring(tmp_path / "new", monkeypatch, *PROGRAMS)
    with pytest.raises(UnavailableError):
        kube_assets()
    assert make() != old


def test_two_at_a_time_make_them_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _bring(tmp_path / "brought", monkeypatch, *PROGRAMS)
    runs = [_run_command() for _ in range(2)]
    directories = {run.communicate()[0].strip() for run in runs}
    assert [run.returncode for run in runs] == [0, 0]
    assert directories == {str(kube_assets())}


def test_a_build_that_fails_says_why_and_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    _bring(tmp_path / "brought", monkeypatch, "kubectl", "helm3", "helm4")
    _write_program(tmp_path / "bin/go", "[ $1 = list ] || { echo no space left >&2; exit 1; }")
    with pytest.raises(subprocess.CalledProcessError):
        make()
    assert "no space left" in capfd.readouterr().err
    with pytest.raises(UnavailableError):
        kube_assets()
    run = _run_command()
    assert "the build failed" in run.communicate()[1]
    assert run.returncode == 1


def _bring(directory: Path, monkeypatch: pytest.MonkeyPatch, *names: str) -> None:
    for name in names:
        _write_program(directory / name, "exit 0")
    monkeypatch.setenv("KUBEBUILDER_ASSETS", str(directory))


def _write_program(path: Path, script: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)


def _run_command() -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "clustermesh.sandbox.kube.programs"],
        cwd=Path(__file__).parents[2],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
