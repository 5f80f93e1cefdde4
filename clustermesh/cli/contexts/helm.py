"""The user's own helm, and our chart."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final, NamedTuple

import yaml

from clustermesh.errors import UserError

_CHARTS: Final = (
    Path(__file__).parents[2] / "chart",  # in a wheel
    Path(__file__).parents[3] / "helm",  # in a checkout
)


class Helm(NamedTuple):
    """A helm, and the cluster that it works on."""

    program: str
    kubeconfig: Path | None
    context: str | None

    def upgrade(
        self,
        release: str,
        namespace: str,
        values: Mapping[str, Any],
        *,
        chart: str | None = None,
        arguments: Sequence[str] = (),
    ) -> str:
        """
        `helm upgrade RELEASE CHART`, and return what it says.

        The values come on top of those that were set before, and go through a pipe: there may be
        private keys among them.

        Raises:
            UserError: there is no helm, or it failed; with its reason.
        """
        where = ["--namespace", namespace, "--reset-then-reuse-values"]
        where += ["--kube-context", self.context] if self.context else []
        where += ["--kubeconfig", str(self.kubeconfig)] if self.kubeconfig else []
        command = [self.program, "upgrade", release, chart or find_chart(), *where, *arguments]
        try:
            ran = subprocess.run(
                [*command, "--values", "-"],
                input=yaml.safe_dump(dict(values)),
                capture_output=True,
                text=True,
                check=False,
            )
        except OSError as error:
            raise UserError(
                f"cannot run {self.program}: {error.strerror}",
                hint="install helm 3 or 4, or say where it is: --helm PROGRAM",
            ) from None
        if ran.returncode != 0:
            reason = " ".join(ran.stderr.removeprefix("Error:").split())
            raise UserError(f"helm: {reason}")
        return ran.stdout

    @property
    def is_there(self) -> bool:
        """Whether it can be run."""
        return shutil.which(self.program) is not None


def find_chart() -> str:
    """
    The chart of this version of clustermesh.

    Raises:
        UserError: it is not where it should be.
    """
    for path in _CHARTS:
        if (path / "Chart.yaml").exists():
            return str(path)
    raise UserError("the chart was not installed with clustermesh", hint="say --chart CHART")


def chart_version(chart: str | None) -> str | None:
    """The version of a chart in a directory; None for one that is elsewhere."""
    file = Path(chart or find_chart()) / "Chart.yaml"
    return str(yaml.safe_load(file.read_text())["version"]) if file.exists() else None
