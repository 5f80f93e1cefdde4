"""The chart as helm installs it in a cluster."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Final

import yaml

from .accounts import Account
from .chart import CHART, Object, Values
from .cluster import KubeCluster
from .matrix import with_values


class Release:
    """The chart, installed as `clustermesh` in a namespace of its own."""

    def __init__(self, kube: KubeCluster, namespace: str, directory: Path) -> None:
        self.kube: Final = kube
        self.namespace: Final = namespace
        self.version = 4
        self._values = directory / "values.yaml"

    def helm(self, verb: str, *arguments: str) -> str:
        """`helm VERB clustermesh …` there."""
        where = ("--namespace", self.namespace)
        return self.kube.helm(verb, "clustermesh", *arguments, *where, version=self.version)

    def put(self, verb: str, values: Values) -> str:
        """`helm install` or `helm upgrade`, with these values on top of the required ones."""
        self._values.write_text(yaml.safe_dump(with_values(values)))
        return self.helm(verb, str(CHART), "--values", str(self._values))

    def is_installed(self) -> bool:
        """Whether helm knows of it, even if it failed."""
        where = ("--namespace", self.namespace, "--all", "--short")
        return bool(self.kube.helm("list", *where, version=3))

    def objects(self) -> list[Object]:
        """What is installed, as helm remembers it."""
        arguments = ("get", "manifest", "clustermesh", "--namespace", self.namespace)
        text = self.kube.helm(*arguments, version=self.version)
        return [item for item in yaml.safe_load_all(text) if item]

    def get(self, kind: str, name: str) -> Any:
        """What the API server has of an object; None without it."""
        arguments = ("--namespace", self.namespace, "--ignore-not-found", "--output=json")
        text = self.kube.kubectl("get", kind, name, *arguments)
        return json.loads(text) if text else None

    def account(self, name: str, **kwargs: Any) -> Account:
        """A service account of the chart."""
        return Account(self.kube, self.namespace, f"clustermesh-{name}", **kwargs)
